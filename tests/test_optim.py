"""优化器、变体、滑动平均、份量：断了再练逐比特相同；存下的 LoRA 在 stock 管线里一样。"""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from lorakit import flow, infer, lora
from lorakit.config import load_config
from lorakit.errors import ConfigError, LorakitError, LorakitWarning
from lorakit.families import open_family
from lorakit.memory import apply
from lorakit.results import checkpoint
from lorakit.results import folder as run_folder
from lorakit.train import Trainer
from lorakit.training import optim
from lorakit.training.objective import refuse_nan

CHOICES = {  # 别的优化器：test_kill.py
    "ema": ["train.ema=0.9"],
    "dora": ["lora.variant=dora"],
    "rslora": ["lora.variant=rslora", "lora.alpha=8"],
    "orthogonal": ["lora.init=orthogonal"],
    "weighting": ["train.weighting=cosmap"],
}


def state(run, step):
    files = sorted((run / f"checkpoint-{step}").rglob("*.safetensors"))
    return {f"{f.name}|{k}": v for f in files for k, v in load_file(f).items()}


@pytest.mark.parametrize("extra", CHOICES.values(), ids=CHOICES)
def test_interrupted_equals_uninterrupted(config, extra, cut_at_three):
    whole, cut = config(*extra, output="whole"), config(*extra, output="cut")
    list(Trainer(whole))
    cut_at_three(cut)
    a, b = state(whole.run.output, 4), state(cut.run.output, 4)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    keys = ("step", "loss", "held", "grad_norm")
    rows = [[m.get(k) for k in keys] for m in run_folder.read(whole.run.output)]
    assert rows == [[m.get(k) for k in keys] for m in run_folder.read(cut.run.output)]


@pytest.mark.parametrize("name", ["dora", "rslora", "ema", "orthogonal"])
def test_saved_file_equals_the_trained_model_in_the_stock_pipeline(config, name):
    settings = config(*CHOICES[name], "sample.steps=2")
    trainer = Trainer(settings)
    list(trainer)
    with trainer.average.swapped():
        pipe = trainer.family.pipeline(trainer.transformer.eval())
        ours = infer.generate(trainer.family, pipe, ["一只猫"], settings.sample, (64, 64))[0]
    family = open_family(settings, torch.device("cpu"))
    pipe = infer.open_pipeline(family, settings.run.output)
    stock = infer.generate(family, pipe, ["一只猫"], settings.sample, (64, 64))[0]
    a, b = (torch.tensor(list(image.tobytes())) for image in (ours, stock))
    assert (a - b).abs().max() <= 1


@pytest.mark.parametrize("name", ["dora", "rslora", "orthogonal"])
def test_every_variant_starts_as_the_base(config, name):
    settings = config(*CHOICES[name])
    plain, trainer = Trainer(config(output="plain")), Trainer(settings)
    assert trainer.evaluate() == pytest.approx(plain.evaluate(), rel=1e-4)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_schedules_agree_with_transformers(config, kind):
    """热身之后相同；热身时我们第一步就有一点学习率，它的第一步是零。"""
    from transformers import get_scheduler

    names = {"constant": "constant_with_warmup"}
    train = config(f"train.schedule={kind}", "train.steps=40", "train.warmup=8").train
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=train.lr)
    theirs = get_scheduler(names.get(kind, kind), other, train.warmup, train.steps)
    for step in range(train.steps):
        (want,) = theirs.get_last_lr()
        if step < train.warmup:
            want += train.lr / train.warmup
        assert optim.lr_at(step, train) == pytest.approx(want), step
        other.step()
        theirs.step()


def test_average_by_hand():
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    average = optim.Average({"w": weight}, 0.5)
    for step, value in ((1, 1.0), (2, 2.0)):
        weight.data = torch.tensor([value])
        average.update(step)
    first = 0 + (1 - 2 / 11) * (1 - 0)  # d = min(0.5, 2 / 11)
    second = first + (1 - 3 / 12) * (2 - first)
    assert average.values["w"].item() == pytest.approx(second)
    with average.swapped():
        assert weight.item() == pytest.approx(second)
    assert weight.item() == 2.0 and average.values["w"].item() == pytest.approx(second)


def test_weights_by_hand():
    t = torch.tensor([0.5, 0.25])
    assert flow.weight(t, "none").tolist() == [1, 1]
    assert flow.weight(t, "sigma_sqrt").tolist() == [4, 16]
    assert flow.weight(t, "cosmap")[0].item() == pytest.approx(2 / (math.pi * 0.5))


def test_weights_agree_with_diffusers():
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    t = torch.linspace(0.1, 0.9, 7)
    for kind in ("sigma_sqrt", "cosmap"):
        assert torch.allclose(flow.weight(t, kind), compute_loss_weighting_for_sd3(kind, t))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["train.optimizer=prodigy"], "应当是 1 左右"),
        (["train.ema=1"], "小于 1"),
        (["train.optimizer=adam"], "是不是想写"),
    ],
)
def test_wrong_choices_are_explained(config, extra, said):
    with pytest.raises(ConfigError, match=said):
        Trainer(config(*extra))


@pytest.mark.skipif(torch.cuda.is_available(), reason="有显卡就真用 8-bit")
def test_without_a_gpu_the_8bit_optimizer_becomes_adamw(config):
    with pytest.warns(LorakitWarning, match="adamw8bit 换成 adamw"):
        trainer = Trainer(config("train.optimizer=adamw8bit"))
    assert isinstance(trainer.optimizer.optimizer, torch.optim.AdamW)


def test_a_missing_library_says_what_to_install(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(ConfigError, match="pip install prodigyopt"):
        Trainer(config("train.optimizer=prodigy", "train.lr=1"))


def test_infinite_gradients_stop_the_run(config, monkeypatch):
    trainer = Trainer(config("train.save_every=1"))
    real = trainer.accelerator.clip_grad_norm_

    def poisoned(*args):
        norm = real(*args)
        return norm if trainer.step < 2 else torch.tensor(float("inf"))

    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", poisoned)
    with pytest.raises(LorakitError, match=r"第 3 步的梯度变成了 inf.*t = .*checkpoint-2"):
        list(trainer)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_likelier_cause_of_a_nan_comes_first(config, dtype):
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True), last_good=lambda: None, step=4,
        config=config("train.lr=2e-4"), family=SimpleNamespace(dtype=dtype),
    )  # fmt: skip
    with pytest.raises(LorakitError, match="第 5 步的损失变成了 nan") as told:
        refuse_nan(trainer, [(float("nan"), [0.5], ["a.png"])], 1.0)
    said = str(told.value)
    rate, half = (
        said.index("学习率太大（现在 0.0002，试试除以 3）"),
        said.index("fp16 溢出（改用 bf16"),
    )
    assert (half < rate and "不会 bf16 的显卡用 fp32" in said) == (dtype == torch.float16)


def test_gradients_are_clipped_and_the_norm_before_is_told(config, monkeypatch):
    trainer, after = Trainer(config("train.max_grad_norm=0.01", "train.steps=2")), []
    real = trainer.optimizer.step

    def step():
        squares = [p.grad.square().sum() for p in trainer.parameters.values() if p.grad is not None]
        after.append(float(torch.stack(squares).sum().sqrt()))
        real()

    monkeypatch.setattr(trainer.optimizer, "step", step)
    assert all(done.grad_norm > 0.1 for done in trainer)
    assert after == pytest.approx([0.01, 0.01], rel=1e-3)


def test_out_of_memory_names_three_settings(config, monkeypatch):
    trainer = Trainer(config())

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "_accumulate", full)
    with pytest.raises(LorakitError, match=r"memory.checkpointing=full") as caught:
        list(trainer)
    assert str(caught.value).count("\n  - ") == 3


def test_no_useless_advice_when_memory_is_full():
    settings = load_config("tiny-qwen-image", ["memory.checkpointing=true", "train.batch_size=1"])
    said = apply.explain_full(settings, 3)
    assert "checkpointing" not in said and "batch_size" not in said and "resolution=64" in said


def test_a_stop_file_stops_and_saves(config):
    trainer = Trainer(config("train.steps=50", "train.save_every=50"))
    for step in trainer:
        if step.step == 2:
            (trainer.run / "STOP").touch()
    assert checkpoint.latest(trainer.run).name == "checkpoint-2"
    assert not (trainer.run / "STOP").exists()


def test_dora_keeps_its_magnitudes_in_the_file(config):
    settings = config("lora.variant=dora")
    list(Trainer(settings))
    tensors, _ = lora.read(settings.run.output)
    assert sum("magnitude" in name for name in tensors) == sum("lora_A" in n for n in tensors)


def test_states_wrapped_in_a_dictionary_are_kept(tmp_path):
    """bitsandbytes 的 state_dict 把 8 位的状态包在里层；一项都不能丢，认不得的也不能悄悄丢。"""

    class Wrapping(torch.optim.AdamW):
        def state_dict(self):
            whole = super().state_dict()
            return whole | {"state": {k: {"inner": {**v}} for k, v in whole["state"].items()}}

    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = Wrapping([weight])
    weight.grad = torch.arange(3.0)
    optimizer.step()
    kept = {name: value.clone() for name, value in optimizer.state[weight].items()}
    files, facts = checkpoint.snapshot({"w": weight}, optimizer, {})
    facts = {"optimizer": facts}
    path = checkpoint.save(tmp_path, 1, files.items(), facts, lambda folder: None, keep=1)
    optimizer.step()
    assert checkpoint.load(path, {"w": weight}, optimizer) == 1
    assert optimizer.state[weight].keys() == kept.keys()
    assert all(torch.equal(optimizer.state[weight][name], value) for name, value in kept.items())
    optimizer.state[weight]["odd"] = object()
    with pytest.raises(TypeError, match="odd 是 object"):
        checkpoint.snapshot({"w": weight}, optimizer, {})


def test_large_states_are_not_copied_in_host_memory(config, cut_at_three, monkeypatch):
    """bitsandbytes 的 load_state_dict 会把收到的整份复制：大的张量不给它，直接放到设备上。"""
    given, real = [], torch.optim.AdamW.load_state_dict

    def load(self, state):
        given.extend(v for one in state["state"].values() for v in one.values())
        return real(self, state)

    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", load)
    cut_at_three(config())
    tensors = [value for value in given if isinstance(value, torch.Tensor)]
    assert tensors and all(value.numel() == 1 for value in tensors)  # 只有各自的步数


def test_adafactor_learns_as_far_as_adamw(config):
    """B 从零开始：学习率若跟着权重的大小缩小，就一步也走不动。"""
    moved = {}
    for name in ("adamw", "adafactor"):
        trainer = Trainer(config(f"train.optimizer={name}", "train.steps=10", output=name))
        list(trainer)
        ends = trainer.parameters.items()
        moved[name] = sum(float(p.detach().abs().sum()) for n, p in ends if "lora_B" in n)
    assert moved["adafactor"] == pytest.approx(moved["adamw"], rel=0.5)


def test_fp16_gradients_are_scaled_up_and_back(config):
    """大图的梯度在 fp16 里会变成 0：放大了再反向，更新之前除回来。"""
    grads = {}
    for kind in ("fp32", "fp16"):
        trainer = Trainer(config(f"model.precision={kind}", "data.resolution=128", output=kind))
        seen = []
        hook = lambda *_, trainer=trainer, seen=seen: seen.append(  # noqa: E731
            {n: p.grad.clone() for n, p in trainer.parameters.items() if p.grad is not None}
        )
        trainer.optimizer.optimizer.register_step_pre_hook(hook)
        next(iter(trainer))
        grads[kind] = torch.cat([seen[0][n].flatten() for n in sorted(seen[0]) if "lora_B" in n])
    assert (grads["fp16"] - grads["fp32"]).norm() < 0.02 * grads["fp32"].norm()
    assert (grads["fp16"] == 0).sum() <= (grads["fp32"] == 0).sum()


def test_broken_checkpoints_are_not_overtaken_in_silence(config):
    """坏的检查点不会挤掉刚存的好的；一个也读不出来，就停下，不悄悄从头练。"""
    whole = config("train.keep=1", "train.steps=6", "train.save_every=3")
    list(Trainer(whole))
    kept = whole.run.output / "checkpoint-6"
    for file in (kept / "state").glob("*.safetensors"):
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
    with pytest.raises(LorakitError, match=r"1 个检查点都不完整.*checkpoint-6"):
        Trainer(whole)
    kept.rename(kept.with_name("checkpoint-9"))  # 号码更大的坏检查点
    (whole.run.output / "metrics.jsonl").write_text("")
    good = checkpoint.save(whole.run.output, 4, [], {}, lambda folder: None, keep=1)
    assert [path.name for path in checkpoint.all_of(whole.run.output)] == [
        good.name, "checkpoint-9",
    ]  # fmt: skip
