"""只有显卡上才走得到的路：fp8 内核、边算边搬、按剩下的显存决定重算、编译。没有显卡就跳过。"""

import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_contract import SHORT, TINY
from test_training_adapter import home, practise, settings  # noqa: F401

from lorakit import infer
from lorakit.config import load_config
from lorakit.errors import LorakitWarning
from lorakit.families import REGISTRY, get, open_family
from lorakit.machine import bench, rehearse
from lorakit.memory import apply, attention, devices, fp8_matmul, quantize
from lorakit.memory.recompute import Recompute
from lorakit.tiny import samples
from lorakit.train import Trainer
from lorakit.training import graphs
from lorakit.training.objective import Batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="要有 NVIDIA 显卡")
GPU = torch.device("cuda")
STREAMED = ("memory.offload=blocks", "memory.checkpointing=full")


@pytest.fixture(autouse=True)
def on_the_card(own_cache, monkeypatch):
    """随包的微型模型也上显卡。"""
    monkeypatch.setenv("LORAKIT_TINY_DEVICE", "cuda")


def fp8_card():
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("这块显卡没有 fp8 矩阵乘法")


def test_segments_grow():
    """新开的进程里，打开底模之前就设好了；这里的 PyTorch 早就用过显卡。"""
    code = (
        "import torch; from lorakit.memory import devices; device = devices.pick_device();"
        "kept = torch.empty(1 << 24, device=device);"
        "print(all(one['is_expandable'] for one in torch.cuda.memory_snapshot()))"
    )
    clean = {k: v for k, v in os.environ.items() if k not in devices.ALLOCATOR}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("rows", [3, 13, 40])
def test_fp8_kernel_equals_the_emulation(rows):
    fp8_card()
    torch.manual_seed(0)
    weight, bias = torch.randn(96, 64), torch.nn.Parameter(torch.randn(96))
    x, grad = torch.randn(rows, 64), torch.randn(rows, 96)
    results = []
    for device in ("cpu", GPU):
        there = torch.nn.Parameter(bias.detach().to(device, torch.bfloat16), requires_grad=False)
        made = quantize.Fp8Linear(weight.to(device), there, "fp8-matmul")
        given = x.to(device, torch.bfloat16).requires_grad_()
        out = made(given)
        (back,) = torch.autograd.grad(out, given, grad.to(device, torch.bfloat16))
        results.append((out.float().cpu(), back.float().cpu()))
    for emulated, real in zip(*results, strict=True):
        assert (emulated - real).norm() / emulated.norm() < 0.01


@pytest.mark.parametrize("sides", [(48, 64), (3072, 12288), (304, 144)])
def test_codes_are_turned_exactly(sides):
    codes = torch.randint(0, 256, sides, dtype=torch.uint8, device=GPU)
    turned = fp8_matmul.turn(codes)
    assert turned.is_contiguous() and torch.equal(turned, codes.t())


def row(*overrides: str, warm: int = 2) -> bench.Row:
    config = load_config("tiny-qwen-image", ["train.batch_size=2", *overrides])
    (made,) = bench.run(config, steps=2, warm=warm).rows
    assert not made.error
    return made


@pytest.mark.parametrize("kind", ["none", "fp8", "int8", "nf4", "fp8-matmul"])
def test_every_kind_trains_streamed_and_resident(kind):
    if kind == "nf4":
        pytest.importorskip("bitsandbytes", reason="nf4 要用 bitsandbytes，没有装")
    if kind == "fp8-matmul":
        fp8_card()
    full = "memory.checkpointing=full"
    stays = row(f"model.quantize={kind}", full)
    moves = row(f"model.quantize={kind}", full, "memory.offload=blocks")
    # 4 位的微型模型还没有搬运用的缓冲区大
    assert kind == "nf4" or moves.allocated < stays.allocated


@pytest.mark.parametrize("kind", ["none", "fp8-matmul"])
def test_streaming_gives_the_same_gradients(kind, tmp_path):
    from lorakit import lora

    if kind == "fp8-matmul":
        fp8_card()
    grads = []
    for offload in ("none", "blocks"):
        overrides = [f"model.quantize={kind}", f"memory.offload={offload}"]
        config = load_config("tiny-qwen-image", [*overrides, "memory.checkpointing=full"])
        family = open_family(config, GPU)
        model = family.load("transformer")
        learned = lora.attach(model, family, config.lora, 0)
        apply.prepare(model, config.memory, family)
        torch.manual_seed(0)
        for name, value in learned.items():
            if "lora_B" in name:
                value.data.normal_(std=0.02)
        x, t = torch.randn(2, 16, 16, 16, device=GPU), torch.rand(2, device=GPU)
        width = model.config.joint_attention_dim
        cond = {"text": torch.randn(2, 20, width, device=GPU, dtype=family.dtype)}
        model.train()
        for _ in range(3):  # 走几步，搬运的次序转起来
            with torch.autocast("cuda", family.dtype):
                v = family.predict_velocity(model, x, t, cond)
            v.float().square().mean().backward()
        grads.append({name: value.grad for name, value in learned.items()})
    for name, value in grads[0].items():
        torch.testing.assert_close(grads[1][name], value, rtol=1e-2, atol=1e-4)


def test_auto_keeps_everything_on_a_large_card_and_nothing_in_a_corner(monkeypatch):
    roomy = row("memory.checkpointing=auto")
    monkeypatch.setattr(devices, "free_memory", lambda device: 0)
    tight = row("memory.checkpointing=auto")
    assert tight.allocated < roomy.allocated


@pytest.mark.parametrize("offload", ["none", "blocks"])
def test_compiled_blocks_train(offload):
    how = ["memory.compile=true", "memory.checkpointing=full", f"memory.offload={offload}"]
    assert row(*how, "model.quantize=fp8").step > 0


@pytest.mark.parametrize("extra", [(), ("memory.checkpointing=auto",), STREAMED])
def test_replayed_graphs_train_the_same(config, extra):
    """描述长短不一，每种形状先照常走、再录、再重放；几份梯度累积、出一次样张，结果都一样。"""
    ends, losses = [], []
    for how in ("true", "graphs"):
        # bf16 的注意力反向每次求和的次序不同，H100 上 24 步之后损失差 2%：用 fp32 才比得出
        exact = ["model.precision=fp32", f"memory.compile={how}", *extra]
        overrides = [*exact, "train.steps=12", "train.grad_accum=2"]
        trainer = Trainer(config(*overrides, "eval.every=0", output=f"run-{how}"))
        steps = iter(trainer)
        losses.append([next(steps).loss for _ in range(6)])
        trainer.pipeline()  # 放掉录好的图，之后要能重录
        losses[-1] += [next(steps).loss for _ in range(3)]
        if extra == STREAMED:  # 像检验过一样：格子里换成了别的块
            for number in range(3):
                trainer.family.streamer.need(number)
        losses[-1] += [step.loss for step in steps]
        ends.append(trainer.parameters)
    assert trainer.graphs.made and len(trainer.graphs.seen) > 1
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("extra", [(), STREAMED])
def test_a_training_adapter_is_recorded_too(home, tmp_path, extra):  # noqa: F811
    """旁边的支路也录进图里：留出集的损失与不编译的一样。"""
    exact, held = ("model.precision=fp32", "train.steps=8", "eval.every=8", *extra), []
    for how in ("false", "graphs"):
        run = settings(home, tmp_path / how, *exact, f"memory.compile={how}")
        trainer, losses = practise(run)
        held.append([loss for loss in losses if loss is not None])
    assert trainer.graphs.made and held[0][-1] < 0.99 * held[0][0]
    assert held[1] == pytest.approx(held[0], rel=0.02)


def test_what_must_be_compiled_first_is_not_recorded_and_keeps_no_memory():
    """描述短于 16 的另编一份：录到它时不编译，放回显存，照常走过两次再录。"""
    weight = torch.nn.Parameter(torch.ones(64, device=GPU))

    @torch.compile(dynamic=True)
    def work(x, words):
        large = (x * weight).repeat(1, 1, 1, 4000)  # 约 64 MB 的中间结果
        return (large.sin() if len(words) > 16 else large.cos()).square().mean()

    class Few:
        device = torch.device(GPU)

        def batch(self, number, *keys):
            x = torch.ones(8, 8, 1, 64, device=GPU)
            words = torch.zeros(number, 2, device=GPU)
            return Batch([((x, words), torch.ones(1))], torch.zeros(1), [])

        def total(self, parts):
            return sum(work(*given) for given, _ in parts)

    made = graphs.Graphs(Few(), Recompute("off", [], Few.device), 1)
    weight.grad = torch.zeros_like(weight)
    wanted = {40: math.sin(1) ** 2, 9: math.cos(1) ** 2}
    before = torch.cuda.memory_reserved()
    for number in (40, 50, 40, 9, 9, 40, 9, 9):
        loss, _, _ = made.draw(number, 0)
        assert float(loss) == pytest.approx(wanted[min(40, number)], rel=1e-3)
    assert len(made.made) == 2 and len(made.shy) == 1 and not made.refused
    del loss
    made.forget()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + (8 << 20)


@pytest.mark.parametrize("extra", [(), STREAMED], ids=["resident", "streamed"])
@pytest.mark.parametrize("name", REGISTRY)
def test_a_step_of_every_family_is_recorded(name, extra, tmp_path, monkeypatch):
    """录不成会警告：例如 stock 的 forward 里从内存抄一张表到显卡上。"""
    monkeypatch.setattr(apply, "compiled", lambda forward, shapes: forward)  # 只看录图，编译太慢
    with warnings.catch_warnings():
        warnings.simplefilter("error", LorakitWarning)
        # 2511 的 zero_cond_t 每步从内存抄一张表到显卡上，录不成：只编译
        how = {"plus": False} if name == "qwen-image-edit" else {}
        folder = TINY[name].build(tmp_path / "model", **how)
        model = f"model.path={folder}", f"model.family={name}"
        made = row(*model, *extra, "memory.compile=graphs", "train.batch_size=1", warm=4)
    assert made.step > 0


@pytest.mark.parametrize("offload", ["none", "blocks"])
@pytest.mark.parametrize("name", REGISTRY)
def test_every_family_trains_and_draws_as_on_the_cpu(name, offload, tmp_path):
    """从一个文件夹的图练到画出来；同一个 LoRA，在显卡上与在 CPU 上画的是同一张。"""
    edits = bool(get(name).controls[1])
    data = samples.write("edit-night" if edits else "papercut", tmp_path / "data", count=4)
    model = f"model.family={name}", f"model.path={TINY[name].build(tmp_path / 'model')}"
    sets = [*model, "model.precision=fp32", f"memory.offload={offload}",
            "memory.checkpointing=full", f"run.output={tmp_path / 'run'}", f"data.folder={data}",
            "data.resolution=64", "train.steps=2", "train.batch_size=2", "sample.steps=2",
            "sample.guidance=3"]  # fmt: skip
    config, drawn = load_config("tiny-qwen-image", sets), []
    assert [step.step for step in Trainer(config)] == [1, 2]
    control = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    for device in (GPU, torch.device("cpu")):
        family = open_family(config, device)
        pipe = infer.open_pipeline(family, tmp_path / "run")
        how = (config.sample, (64, 64))
        if edits:
            (picture,) = infer.edit(family, pipe, [SHORT], [[control]], *how)
        else:
            (picture,) = infer.generate(family, pipe, [SHORT], *how)
        drawn.append(np.asarray(picture, int))
    assert np.abs(drawn[0] - drawn[1]).mean() < 2 and drawn[1].std() > 2


@pytest.mark.parametrize("extra", [(), STREAMED], ids=["resident", "streamed"])
def test_samples_between_replayed_steps(config, extra):
    """录图重放的中间出样张、检验：与不录图、不搬运的一样；样张的提示词早编码好了。"""
    drawn, losses = [], []
    for how in ((), ("memory.compile=graphs", *extra)):
        sample = ["sample.prompts=[一只猫]", "sample.steps=2", "sample.size=128"]
        exact = ["model.precision=fp32", "train.steps=6"]
        settings = config(*exact, *sample, *how, output=f"run{len(how)}")
        trainer = Trainer(settings)
        losses.append([])
        for step in trainer:
            losses[-1].append(step.loss)
            images = infer.preview(trainer.family, trainer.pipeline(), settings, trainer.dataset)
            assert "text" not in trainer.family.parts
        drawn.append(np.asarray(images[0], int))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert np.abs(drawn[0] - drawn[1]).mean() < 2 and drawn[0].std() > 2


def test_saving_asks_nothing_more_of_the_card(config):
    """图录满了显存的时候也要存得下来。"""
    trainer = Trainer(config("train.steps=2"))
    next(iter(trainer))
    count = "allocation.all.allocated"
    before = torch.cuda.memory_stats()[count]
    trainer.save()
    assert torch.cuda.memory_stats()[count] == before


def test_attention_kernels_agree_with_the_reference():
    for name in ("native", "_native_flash", "_native_cudnn"):
        error = attention.attention_error(name, GPU, torch.bfloat16)
        assert error < attention.ATTENTION_ERROR or error == float("inf")


@pytest.mark.parametrize("length", [320, 4608, 4224 + 37])
def test_our_cudnn_operator_agrees_with_the_reference_compiled(length):
    """4608：FLUX 1024² 的词元数，PyTorch 2.11 自带的走法编译以后会非法访问显存。"""
    from torch.nn import functional as F

    from lorakit.memory import cudnn_attention

    torch.manual_seed(0)
    given = [torch.randn(1, length, 2, 128, device=GPU) for _ in range(4)]
    results = []
    for attend in (
        lambda *x: F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in x)).transpose(1, 2),
        torch.compile(lambda *x: cudnn_attention.attention(*(y.bfloat16() for y in x))[0].float()),
    ):
        q, k, v = (x.clone().requires_grad_() for x in given[:3])
        out = attend(q, k, v)
        results.append([out, *torch.autograd.grad(out, (q, k, v), given[3])])
    for right, ours in zip(*results, strict=True):
        assert (right - ours).norm() / right.norm() < attention.ATTENTION_ERROR


def test_8bit_adamw_resumes_exactly(config, cut_at_three, monkeypatch):
    pytest.importorskip("bitsandbytes", reason="adamw8bit 要用 bitsandbytes，没有装")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # 矩阵乘法每次都一样
    extra = "train.optimizer=adamw8bit", "lora.rank=64"  # 小于 4096 个数的张量不压成 8 位
    whole, cut = config(*extra, output="whole"), config(*extra, output="cut")
    list(Trainer(whole))
    cut_at_three(cut)
    for file in ("optimizer", "weights"):
        a, b = (load_file(c.run.output / f"checkpoint-4/state/{file}.safetensors")
                for c in (whole, cut))  # fmt: skip
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        assert file == "weights" or any(value.dtype == torch.uint8 for value in a.values())


def test_copy_speed_is_that_of_a_bus():
    assert 1 < bench.copy_speed(GPU) < 1000  # GB/s：PCIe 3.0 x4 约 3，NVLink-C2C 约 450


def test_rehearsal_on_a_card_and_on_one_too_small():
    how = ["train.batch_size=1", "sample.steps=2", "memory.compile=graphs", "eval.every=0"]
    settings = load_config("tiny-qwen-image", how)
    report = rehearse.run(settings, tier=8)
    assert report.fits and 0 < report.margin < report.limit
    assert all(row.need > 0 for row in report.rows if row.key not in ("check", "export"))
    resumed = next(row for row in report.rows if row.key == "resume")
    assert resumed.compiled > 0  # 像新开的进程：重新编译过
    small = rehearse.run(settings, tier=0.65)  # 只许用不到 40 MiB
    assert not small.fits and any(row.full and row.mend for row in small.rows)
