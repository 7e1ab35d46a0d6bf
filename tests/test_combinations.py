"""显存的各招两两搭配：允许的每一种都能练，方向与什么都不省时一样；不允许的每一种都说为什么。"""

from itertools import product

import pytest
import torch
from torch.nn import functional as F

from lorakit import lora
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import ConfigError
from lorakit.families import open_family
from lorakit.lora import full
from lorakit.memory import apply
from lorakit.train import Trainer
from lorakit.training import preflight
from lorakit.training.objective import Objective

CPU = torch.device("cpu")
# 第一步的梯度与什么都不省时的余弦：底模没有量化就一模一样
LEAST = {"none": 1 - 1e-5, "int8": 0.99, "fp8": 0.97, "fp8-matmul": 0.95, "nf4": 0.85}
BATCHES = {"nf4": 8}  # 一步看几批：nf4 一批一批的差得多（0.77 到 0.88），八批合起来 0.90
# auto 在 CPU 上就是 off；在显卡上见 test_cuda.py
WAYS = list(product(("none", "blocks"), ("off", "selective", "full")))
TRAINED = ["plain", "rslora", "dora", "lokr", "full"]  # lora.variant，或全量微调


def settings(quantize: str, trained: str, offload: str, checkpointing: str):
    kind = ["lora.kind=full"] if trained == "full" else [f"lora.variant={trained}"]
    how = [f"memory.offload={offload}", f"memory.checkpointing={checkpointing}"]
    small = ["data.resolution=64", "train.batch_size=2", "lora.rank=4"]
    return load_config("tiny-qwen-image", [f"model.quantize={quantize}", *kind, *how, *small])


def refused(config) -> str:
    """不允许就是那句话，允许就是空的。"""
    try:
        preflight.refuse(config)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def first_step(dataset):
    """走一步：(梯度排成一长条, 这一批走之前与走之后的损失)；同样的设置只走一次。"""
    done = {}

    def take(*how: str, batches: int = 1):
        if (how, batches) not in done:
            config = settings(*how)
            family = open_family(config, CPU)
            model = family.load("transformer")
            if config.lora.kind == "full":
                learned = full.attach(model)
            else:
                learned = lora.attach(model, family, config.lora, 0)
            apply.prepare(model, config.memory, family)
            objective = Objective(config, family, dataset, model, CPU)
            with torch.random.fork_rng():  # lokr 每次前向都掷一回骰子
                before = sum(objective.draw(n, n)[0] for n in range(batches)) / batches
                before.backward()
                grads = [p.grad.flatten().clone() for p in learned.values() if p.grad is not None]
                rate = 1e-5 if config.lora.kind == "full" else 1e-3
                torch.optim.AdamW(learned.values(), lr=rate).step()
                with torch.no_grad():
                    after = sum(objective.draw(n, n)[0] for n in range(batches)) / batches
            done[how, batches] = torch.cat(grads), before.item(), after.item()
        return done[how, batches]

    return take


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("quantize", LEAST)
def test_every_combination_trains_or_says_why(first_step, quantize, trained):
    if quantize == "nf4":
        pytest.importorskip("bitsandbytes", reason="nf4 要用 bitsandbytes，没有装")
    allowed = 0
    for offload, checkpointing in WAYS:
        how = (quantize, trained, offload, checkpointing)
        if said := refused(settings(*how)):
            assert "请写" in said and any(name in said for name in ("model.", "memory.", "lora."))
            continue
        allowed += 1
        batches = BATCHES.get(quantize, 1)
        grads, before, after = first_step(*how, batches=batches)
        wanted, *_ = first_step("none", trained, "none", "off", batches=batches)
        assert after < before, how
        assert F.cosine_similarity(grads, wanted, dim=0) > LEAST[quantize], how
    never = quantize != "none" and trained in ("dora", "full")
    assert bool(allowed) != (never or (quantize, trained) == ("nf4", "lokr"))


def test_the_table_of_clashes_can_be_read_by_people(capsys):
    assert main(["doctor", "--rules"]) == 0
    said = capsys.readouterr().out
    for rule in preflight.RULES:
        assert f"{rule.field} × {rule.meets}" in said
    assert "{" not in said and "〈model.quantize〉" in said


BLOCKS, BF16 = "memory.offload=blocks", "lora.kind=full model.precision=bf16 "
CLASHES = {  # 设置 -> 那句话里有什么
    "model.quantize=fp8 lora.kind=full": "不能全量微调.*model.quantize=none",
    "model.quantize=int8 lora.variant=dora": "dora.*plain",
    "model.quantize=nf4 lora.variant=lokr": "nf4 把它打包了。.*fp8 或 int8",
    f"{BLOCKS} lora.kind=full": "全量微调的权重每步都在变",
    BLOCKS: "每块都得重算.*checkpointing=full",
    f"{BLOCKS} memory.checkpointing=off": "每块都得重算.*checkpointing=full",
    f"{BLOCKS} memory.checkpointing=selective": "每块都得重算.*checkpointing=full",
    f"{BLOCKS} memory.checkpointing=full lora.variant=dora": "看得到底模的权重.*plain",
    "memory.checkpointing=full memory.offload=5": "memory.offload：底模一共 4 块.*写 blocks",
    "memory.attention=cudnn": "cudnn 要有 NVIDIA 显卡",
    f"{BF16} train.ema=0.9": r"用不了 bf16.*train\.ema=0.*model\.precision=auto",
    f"{BF16} train.optimizer=prodigy": r"用不了 bf16.*prodigy.*adamw8bit.*model\.precision=auto",
}


@pytest.mark.parametrize("how", CLASHES)
def test_each_clash_says_why_and_what_to_write(config, how):
    chosen = config(*how.split())
    with pytest.raises(ConfigError, match=CLASHES[how]):
        preflight.refuse(chosen)  # 只看设置就知道的，在这里就说
        Trainer(chosen)


def test_several_clashes_are_said_at_once_and_before_anything_is_loaded(tmp_path):
    wrong = ["model.quantize=fp8", "lora.kind=full", "train.optimizer=prodigy", "train.lr=1e-4"]
    config = load_config("tiny-qwen-image", [*wrong, f"data.folder={tmp_path / 'none'}"])
    with pytest.raises(ConfigError, match=r"(?s)model\.quantize：.*train\.lr：prodigy"):
        Trainer(config)
