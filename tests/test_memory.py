"""省显存的各招：算出来的和不省时一样；合不来的说为什么。"""

import math
import os
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from random_qwen import build
from torch._functorch import config as functorch

from lorakit import infer, lora
from lorakit.config import load_config
from lorakit.errors import ConfigError
from lorakit.families import open_family
from lorakit.memory import (
    apply,
    attention,
    compiling,
    devices,
    loading,
    quantize,
    streaming,
)  # fmt: skip
from lorakit.memory.recompute import Recompute
from lorakit.train import Trainer

CPU = torch.device("cpu")
RECOMPUTE = ["memory.checkpointing=full"]
STREAM = [*RECOMPUTE, "memory.offload=blocks"]


@pytest.fixture
def trainer(config, dataset):
    def make(*overrides: str, output: str = "run") -> Trainer:
        tiny = ["train.steps=3", "eval.every=0", "data.resolution=64"]
        return Trainer(config(*tiny, *overrides, output=output), dataset)

    return make


@pytest.fixture
def after(trainer):
    """练 3 步之后的 LoRA。"""

    def run(*overrides: str, output: str) -> dict[str, torch.Tensor]:
        made = trainer(*overrides, output=output)
        list(made)
        return {name: p.detach().clone() for name, p in made.parameters.items()}

    return run


def same(one: dict, other: dict):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["true", "selective", "auto"])
def test_every_way_of_recomputing_trains_the_same(after, how):
    plain = after(output="plain")
    same(plain, after(f"memory.checkpointing={how}", output=how))


def test_selective_recomputes_every_other_block(trainer):
    counts = {}
    for how in ("off", "selective", "full"):
        made = trainer(f"memory.checkpointing={how}", output=how)
        counts[how] = 0

        def count(*_, how=how):
            counts[how] += 1

        for block in loading.blocks(made.transformer).values():
            block.register_forward_pre_hook(count)
        made.transformer.train()
        made.objective.draw(0, 0, 0, 0)[0].backward()
    blocks = len(loading.blocks(made.transformer))
    assert counts == {"off": blocks, "selective": blocks * 3 // 2, "full": blocks * 2}


@pytest.mark.parametrize(("room", "kept"), [(8000, 4), (7600, 3)])
def test_auto_keeps_what_fits(room, kept, monkeypatch):
    """假装显卡上还剩 room 字节：放得下的留着，放不下的重算。"""

    class Block(torch.nn.Module):
        def forward(self, x):
            nonlocal used
            used += 1000 * (not torch.is_inference_mode_enabled())
            return x * 1.0

    used, members = 0, [Block() for _ in range(6)]
    recompute = Recompute("auto", members, CPU)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: used)
    monkeypatch.setattr(devices, "free_memory", lambda device: room - used)
    again = []
    monkeypatch.setattr(recompute, "_again", lambda block, args: again.append(block) or args[0])
    x = torch.ones(1)
    for block in members:
        x = recompute(block, x)
    # 一块 1000 字节，要留出 3 块、输入，还有一成半的碎块：7600 里第 4 块要 4612，只剩 4600
    assert again == members[kept:] and list(recompute.costs.values()) == [1000]


@pytest.mark.parametrize("kind", ["none", "fp8", "int8", "nf4", "fp8-matmul"])
def test_streaming_trains_exactly_the_same(after, kind):
    if kind == "nf4":
        pytest.importorskip("bitsandbytes", reason="nf4 要用 bitsandbytes，没有装")
    quantized = f"model.quantize={kind}"
    stays = after(quantized, *RECOMPUTE, output="stays")
    for some in ("blocks", 3):
        moves = after(quantized, *STREAM, f"memory.offload={some}", output=f"moves-{some}")
        assert all(torch.equal(stays[name], moves[name]) for name in stays)


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_compiled_blocks_can_be_streamed(kind, monkeypatch):
    """编译好的代码不在乎权重搬来搬去：和不搬时编的一样多，梯度一样，也不打断提前搬。"""
    if kind == "nf4":
        pytest.importorskip("bitsandbytes", reason="nf4 要用 bitsandbytes，没有装")
    from torch._dynamo.utils import counters

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.manual_seed(0)
    x, t = torch.randn(1, 16, 16, 16, requires_grad=True), torch.rand(1)
    grads, graphs = [], []
    for how in (RECOMPUTE, STREAM):
        torch.compiler.reset()
        counters.clear()
        overrides = [f"model.quantize={kind}", "memory.compile=true", *how]
        config = load_config("tiny-qwen-image", overrides)
        family = open_family(config, CPU)
        model = family.load("transformer").train()
        learned = lora.attach(model, family, config.lora, 0)
        apply.prepare(model, config.memory, family)
        text = torch.ones(1, 5, model.config.joint_attention_dim, requires_grad=True)
        for _ in range(2):
            v = family.predict_velocity(model, x, t, {"text": text})
            v.square().mean().backward()
        grads.append({n: p.grad for n, p in learned.items() if p.grad is not None})
        graphs.append(counters["stats"]["unique_graphs"])
        assert not counters["graph_break"]
    assert graphs[0] == graphs[1] > 0
    assert family.streamer.waits == 1  # 只等过第一块
    same(*grads)


def test_next_block_is_always_on_its_way(trainer):
    made = trainer(*STREAM)
    streamer, steps = made.family.streamer, iter(made)
    next(steps)
    assert len(streamer.blocks) == len(loading.blocks(made.transformer))
    waited = streamer.waits
    next(steps)
    assert streamer.waits == waited  # 第一步之后，前向与反向都不用等
    made.transformer.eval()
    device, width = made.family.device, made.transformer.config.joint_attention_dim
    x, t = torch.randn(1, 16, 16, 16, device=device), torch.tensor([0.5], device=device)
    cond = {"text": torch.randn(1, 5, width, device=device)}
    low = made.family.dtype != torch.float32
    with torch.no_grad(), torch.autocast(device.type, made.family.dtype, enabled=low):
        for _ in range(3):
            made.family.predict_velocity(made.transformer, x, t, cond)
    assert streamer.waits <= waited + 1


def test_blocks_that_move_are_spread_and_the_others_stay(trainer):
    assert streaming.moving(range(6), "blocks") == streaming.moving(range(6), 6) == list(range(6))
    assert streaming.moving(range(6), 4) == [0, 1, 3, 4]
    assert streaming.moving(range(6), 3) == [0, 2, 4]
    assert streaming.moving(range(6), 1) == [0] and streaming.moving(range(6), "none") == []
    for total in range(1, 62):
        for some in range(1, total + 1):
            assert len(streaming.moving(range(total), some)) == some
    made = trainer(*STREAM, "memory.offload=2")
    streamer, steps = made.family.streamer, iter(made)
    first, second, third, fourth = loading.blocks(made.transformer).values()
    next(steps), next(steps)
    assert len(streamer.blocks) == 2 and streamer.waits == 1
    mine = [id(t) for block in streamer.blocks for t in block.tensors]
    for block, moves in ((first, True), (second, False), (third, True), (fourth, False)):
        frozen = [p for p in block.parameters() if not p.requires_grad]
        assert all((id(p) in mine) == moves for p in frozen)


def test_a_settled_streamer_is_where_a_step_begins(trainer, monkeypatch):
    """录图的首尾都是这样：训练的一步走完就已经是；走过别的路，头两块搬回来。"""
    made, brought = trainer(*STREAM), []
    streamer = made.family.streamer
    bring = lambda number, place: (brought.append((number, place)), plain(number, place))  # noqa: E731
    plain = streamer._bring
    monkeypatch.setattr(streamer, "_bring", bring)
    next(iter(made))
    brought.clear()
    streamer.settle()
    assert streamer.holds == [0, 1] and not brought
    for number in range(3):
        streamer.need(number)
    brought.clear()
    streamer.settle()
    assert streamer.holds == [0, 1] and brought == [(0, 0), (1, 1)]
    here = [streamer.blocks[number].views(streamer.blocks[number].host) for number in (0, 1)]
    for block, whole in zip(streamer.blocks, here, strict=False):
        assert all(map(torch.equal, block.tensors, whole))
    streamer.drop()
    assert all(t.isnan().all() for t in streamer.blocks[0].tensors) and streamer.holds == [None] * 2


def test_only_two_blocks_are_on_the_device():
    family = open_family(load_config("tiny-qwen-image", STREAM), CPU)
    model = family.load("transformer")
    streamer = family.streamer
    x = torch.randn(1, 16, 16, 16)
    cond = {"text": torch.randn(1, 5, model.config.joint_attention_dim)}
    with torch.no_grad():
        family.predict_velocity(model, x, torch.tensor([0.5]), cond)
    away = [block for i, block in enumerate(streamer.blocks) if i not in streamer.holds]
    assert len(streamer.blocks) - len(away) == streaming.SLOTS
    for block in away:  # 没轮到的块是 NaN 占位，不占地方
        for value in block.tensors:
            assert value.untyped_storage().nbytes() <= 8
            assert not value.is_floating_point() or value.isnan().all()
    plain = open_family(load_config("tiny-qwen-image")).load("transformer").state_dict()
    for i, block in enumerate(streamer.blocks):  # 内存里的一份完好
        names = [n for n, _ in model.transformer_blocks[i].named_parameters()]
        for name, view in zip(names, block.views(block.host), strict=True):
            assert torch.equal(view, plain[f"transformer_blocks.{i}.{name}"])


def test_streamed_pipeline_draws_the_same(tmp_path):
    """文本编码器与 Transformer 都随用随搬，再挂上 LoRA，画得和平常一模一样。"""
    folder, pictures = build(tmp_path / "model"), []
    model = {"family": "qwen-image", "path": str(folder)}
    for how in ("none", "blocks"):
        tree = {"model": model, "memory": {"offload": how}, "sample": {"steps": 2}}
        config = load_config(tree)
        family = open_family(config)
        if how == "none":
            transformer = family.load("transformer")
            for name, p in lora.attach(transformer, family, config.lora, 0).items():
                p.data.add_(0.1 * ("lora_B" in name))
            lora.save(tmp_path, transformer, config.lora, {})
            family.release("transformer")
        pipe = infer.open_pipeline(family, tmp_path / lora.FILE)
        pictures.append(infer.generate(family, pipe, ["一只猫"], config.sample, (64, 64))[0])
    away = [p.isnan().all() for p in pipe.text_encoder.parameters()]  # 没轮到的块不在
    assert family.streamer and any(away) and not all(away)
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_attention_backends_are_checked(trainer, monkeypatch):
    from diffusers.models import attention_dispatch

    assert attention.attention_error("native", CPU, torch.float32) < 1e-4
    assert attention.attention_error("_native_flash", CPU, torch.float32) < 1e-4
    assert attention.attention_error("_native_cudnn", CPU, torch.float32) == float("inf")
    with pytest.raises(ConfigError, match=r"要用掩码.*auto"):
        trainer("memory.attention=flash")
    model = trainer().transformer
    maskless = SimpleNamespace(masks_text=False, device=CPU, dtype=torch.float32)
    attention.set_attention(model, maskless, "flash")
    backends = {block.attn.processor._attention_backend for block in model.transformer_blocks}
    assert {backend.value for backend in backends} == {"_native_flash"}
    registry = attention_dispatch._AttentionBackendRegistry
    assert registry.get_active_backend()[0].value == "native"  # 别的模型不受影响
    monkeypatch.setattr(attention, "attention_error", lambda *_: 0.5)
    with pytest.raises(ConfigError, match=r"差 0\.5.*native"):
        attention.set_attention(model, maskless, "flash")


def test_auto_takes_the_first_attention_kernel_that_is_right(monkeypatch):
    """像 H200 上那样：带掩码时 cuDNN 的梯度是 NaN，就不用它。"""
    asked, chosen = [], []

    def error(backend, device, dtype, masked, head):
        asked.append(backend)
        bad = (masked and backend == "_native_cudnn") or (head < 64 and backend != "native")
        return float("nan") if bad else 0.004

    monkeypatch.setattr(attention, "attention_error", error)
    real, tiny = {"axes_dims_rope": (16, 56, 56)}, {"axes_dims": [8, 24]}
    cases = (real, True, False), (real, True, True), (tiny, True, False), (tiny, False, False)
    for config, masks_text, masked in cases:
        model = SimpleNamespace(set_attention_backend=chosen.append, config=config)
        gpu = SimpleNamespace(
            device=torch.device("cuda"), dtype=torch.bfloat16, masks_text=masks_text
        )
        attention.set_attention(model, gpu, "auto", masked)
    assert chosen == ["_native_cudnn", "_native_efficient", "native", "native"]
    cudnn, flash, efficient = "_native_cudnn", "_native_flash", "_native_efficient"
    assert asked == [
        *(cudnn, cudnn, efficient),
        *(cudnn, efficient, "native"),  # flash 没有掩码
        *(cudnn, flash, efficient, "native"),
    ]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_gradients_are_checked_too(masked, monkeypatch):
    from diffusers.models import attention_dispatch

    assert attention.attention_error("native", CPU, torch.float32, masked) < 1e-4
    assert (
        attention.attention_error("native", CPU, torch.bfloat16, masked) < attention.ATTENTION_ERROR
    )
    right = attention_dispatch.dispatch_attention_fn

    def broken(q, k, v, **options):
        out = right(q, k, v, **options)
        out.register_hook(lambda grad: grad * torch.nan)
        return out

    monkeypatch.setattr(attention_dispatch, "dispatch_attention_fn", broken)
    assert math.isnan(attention.attention_error("native", CPU, torch.float32, masked))


def test_values_of_checkpointing():
    for text, value in (("true", True), ("false", False), ("auto", "auto"), ("off", "off")):
        config = load_config(None, [f"memory.checkpointing={text}"])
        assert config.memory.checkpointing == value
    with pytest.raises(ConfigError, match=r"memory\.checkpointing：得到 .*halb"):
        load_config(None, ["memory.checkpointing=halb"])


@pytest.mark.parametrize(("preset", "kinds"), [("tiny-qwen-image", 1), ("tiny-flux", 2)])
def test_warming_up_compiles_once_and_changes_nothing(preset, kinds, config, tmp_path, monkeypatch):
    """编译在头一步之前：一种块只编一份，检验的另一份，管住每种形状；练的时候不再编，一个比特也不差。"""
    from torch._dynamo.utils import counters

    from lorakit.machine import mixed
    from lorakit.training.warm import warm

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    folder = mixed.write(tmp_path / "data", 128, 2)
    learned, walked = {}, {}
    for name in ("cold", "warm"):
        torch.compiler.reset()
        made = Trainer(config(f"data.folder={folder}", "data.resolution=128", "eval.every=0",
                              "train.batch_size=1", "train.steps=6", "memory.compile=true",
                              preset=preset, output=name))  # fmt: skip
        said, before = [], counters["stats"]["unique_graphs"]
        if name == "warm":
            count = warm(made, lambda *what, said=said: said.append(what))
            shapes = {item.shapes for item in made.dataset.train}
            assert count == len(shapes) > 2 and said[-1] == ("编译", count + 1, count + 1)
            assert all(p.grad is None for p in made.parameters.values())
            assert counters["stats"]["unique_graphs"] - before == 2 * kinds
        before = counters["stats"]["unique_graphs"]
        list(made)
        walked[name] = counters["stats"]["unique_graphs"] - before
        learned[name] = {key: value.detach().clone() for key, value in made.parameters.items()}
    assert all(torch.equal(value, learned["warm"][key]) for key, value in learned["cold"].items())
    assert walked["warm"] == 0 < walked["cold"]


class Doubled(torch.autograd.Function):
    """前向乘 2，反向乘多少由子类说。"""

    @staticmethod
    def forward(ctx, x):
        return x * 2


class Right(Doubled):
    @staticmethod
    def backward(ctx, grad):
        return grad * 2


class Wrong(Doubled):
    @staticmethod
    def backward(ctx, grad):
        return grad * 3


def test_a_second_start_compiles_packed_layers_no_more(tmp_path, monkeypatch):
    """第二次从缓存里拿，梯度一样；反向的内容变了就不拿旧的。"""
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(functorch, compiling.OWN_BACKWARD, False)
    compiling.keep_compiled()
    weight = torch.randn(32, 48)
    layers = [kind(weight, None, name) for kind, name in
              ((quantize.FrozenLinear, "int8"), (quantize.Fp8Linear, "fp8-matmul"))]  # fmt: skip
    want = ["miss", "hit"]
    for layer in [*layers, Right.apply, Wrong.apply]:
        x = torch.randn(5, 48, requires_grad=True)
        (plain,) = torch.autograd.grad(layer(x).sum(), x)
        for what in ["miss"] if layer == Wrong.apply else want:
            torch.compiler.reset()
            counters.clear()
            (learned,) = torch.autograd.grad(torch.compile(layer)(x).sum(), x)
            assert counters["aot_autograd"][f"autograd_cache_{what}"] == 1
            assert torch.allclose(learned, plain, rtol=1e-5, atol=1e-6)


class Driver:
    """libcuda 的替身：count 块显卡，各会不会自己安排地址。"""

    def __init__(self, *able: int):
        self.able = able

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGetCount(self, place) -> int:
        place._obj.value = len(self.able)
        return 0

    def cuDeviceGetAttribute(self, place, which: int, number: int) -> int:
        assert which == 102
        place._obj.value = self.able[number]
        return 0


@pytest.mark.parametrize(
    ("able", "already", "set_to"),
    [
        ((1, 1), {}, "expandable_segments:True"),
        ((1, 0), {}, None),
        ((), {}, None),
        ((1,), {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, None),
        ((1,), {"PYTORCH_CUDA_ALLOC_CONF": ""}, ""),
    ],
)
def test_segments_grow_where_the_driver_can_and_nobody_said_otherwise(
    able, already, set_to, monkeypatch
):
    for name in devices.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    for name, value in already.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(devices.sys, "platform", "linux")
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: Driver(*able))
    devices.grow_segments()
    assert os.environ.get("PYTORCH_CUDA_ALLOC_CONF") == set_to
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)


def test_without_a_driver_nothing_is_set(monkeypatch):
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setattr(devices.sys, "platform", "linux")

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(devices.ctypes, "CDLL", missing)
    devices.grow_segments()
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ
