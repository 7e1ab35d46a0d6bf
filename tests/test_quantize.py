"""量化的底模：解码后的算法与普通线性层一样；照样能练，练出的 LoRA 与不量化的方向一致。"""

import json
import re
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
from random_kandinsky5 import build as random_kandinsky5
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from lorakit import infer, lora
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import WeightsError
from lorakit.families import open_family
from lorakit.files import ASSETS
from lorakit.lora import convert
from lorakit.memory import fp8_matmul, loading, quantize
from lorakit.train import Trainer
from lorakit.training import preflight

KINDS = {"fp8": 0.97, "int8": 0.99, "nf4": 0.85, "fp8-matmul": 0.96}  # 20 步之后 ΔW 方向的余弦
LAYER_ERROR = {"fp8": 0.03, "int8": 0.011, "nf4": 0.11, "fp8-matmul": 0.03}  # 正态分布的权重
TINY = ASSETS / "tiny-qwen-image" / "transformer"


def needs(kind: str):
    if kind == "nf4":
        pytest.importorskip("bitsandbytes", reason="nf4 要用 bitsandbytes，没有装")


def small(kind: str, sides=(64, 48)) -> tuple[nn.Linear, nn.Module]:
    """一层普通的线性层与它量化后的样子。"""
    torch.manual_seed(0)
    plain = nn.Linear(*sides).requires_grad_(False)
    if kind == "nf4":
        make = quantize.nf4_class()
    else:
        make = quantize.Fp8Linear if kind == "fp8-matmul" else quantize.FrozenLinear
    return plain, make(plain.weight.data, plain.bias, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_and_its_gradient_are_close(kind):
    needs(kind)
    plain, made = small(kind)
    x = torch.randn(2, 20, 64, requires_grad=True)
    grad = torch.randn(2, 20, 48)
    rows = []
    for layer in (plain, made):
        out = layer(x)
        rows.append((out.detach() - layer.bias, *torch.autograd.grad(out, x, grad)))
    for want, got in zip(*rows, strict=True):
        limit = LAYER_ERROR[kind] * (2 if kind == "fp8-matmul" else 1)  # 两边都舍入
        assert 0 < (got - want).norm() / want.norm() < limit
    assert quantize.is_quantized(made) and not quantize.is_quantized(plain)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_decoding_is_exact_and_nothing_decoded_is_kept(kind):
    _, made = small(kind)
    x = torch.randn(5, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = made(x)
    weight = quantize.decode(made.weight, made.scale, torch.float32)
    assert torch.equal(out, F.linear(x, weight, made.bias))
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.ones(5, 48) @ weight)
    big = [t for t in kept if t.numel() == made.weight.numel()]
    assert big and all(t.element_size() == 1 for t in big)


def test_largest_weight_of_a_row_survives_and_zeros_stay_zero():
    weight = torch.tensor([[1e-6, -3e-6, 0.0], [100.0, -50.0, 1.0], [0.0, 0.0, 0.0]])
    for kind in ("fp8", "int8"):
        again = quantize.decode(*quantize.encode(weight, kind), torch.float32)
        largest = weight.abs().amax(1)
        torch.testing.assert_close(again.abs().amax(1), largest, rtol=1e-6, atol=0)
        assert torch.equal(again[2], weight[2])


def test_few_rows_decode_instead_of_fp8_kernels():
    plain, made = small("fp8-matmul")
    x = torch.randn(1, 64)
    weight = quantize.decode(made.weight, made.scale, torch.float32)
    assert torch.equal(made(x), F.linear(x, weight, plain.bias))


def test_autocast_decides_the_precision():
    for kind in ("fp8", "fp8-matmul"):
        _, made = small(kind)
        with torch.autocast("cpu", torch.bfloat16):
            assert made(torch.randn(20, 64)).dtype == torch.bfloat16
        assert made(torch.randn(20, 64)).dtype == torch.float32


@pytest.fixture(scope="module")
def run(papercut, tmp_path_factory):
    """练 20 步，同样的设置只练一次：返回 (Trainer, [练之前, ..., 练之后的留出集损失])。"""
    root, done = tmp_path_factory.mktemp("runs"), {}

    def train(kind: str):
        if kind not in done:
            tree = {
                "model": {"quantize": kind},
                "data": {"folder": str(papercut), "resolution": 128},
                "train": {"steps": 20, "batch_size": 2, "lr": 7e-4},
                "eval": {"every": 20},
                "run": {"output": str(root / kind)},
            }
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("LORAKIT_CACHE", str(root / "cache"))
                trainer = Trainer(load_config(tree))
                first = trainer.evaluate()
                done[kind] = trainer, [first, *(step.held for step in trainer)]
        return done[kind]

    return train


def layers_of(trainer: Trainer) -> dict:
    linear = [n for n, m in trainer.family.skeleton().named_modules() if isinstance(m, nn.Linear)]
    return convert.read(lora.find(trainer.run), linear)[0]


def cosine(one: dict, other: dict) -> float:
    flat = [torch.cat([convert.delta(x[k]).flatten() for k in one]) for x in (one, other)]
    return float(F.cosine_similarity(*flat, dim=0))


@pytest.mark.parametrize(("kind", "least"), KINDS.items())
def test_trains_like_the_unquantized_base(run, kind, least):
    needs(kind)
    trainer, (first, *_, last) = run(kind)
    assert last < first / 2
    assert cosine(layers_of(run("none")[0]), layers_of(trainer)) > least
    assert all(p.dtype == torch.float32 for p in trainer.parameters.values())
    block = trainer.transformer.transformer_blocks[0]
    assert quantize.is_quantized(block.attn.to_q.base_layer)
    assert not quantize.is_quantized(trainer.transformer.proj_out)


def test_lora_from_a_quantized_base_works_in_the_stock_pipeline(run, tmp_path):
    trainer, _ = run("fp8")
    from diffusers import DiffusionPipeline

    stock = DiffusionPipeline.from_pretrained(
        ASSETS / "tiny-qwen-image", torch_dtype=torch.bfloat16
    )
    file = lora.find(trainer.run)
    stock.load_lora_weights(file.parent, weight_name=file.name)
    want = layers_of(trainer)
    for path, (_, b) in want.items():
        layer = stock.transformer.get_submodule(path)
        torch.testing.assert_close(layer.lora_B["default_0"].weight.float(), b, rtol=1e-2, atol=0)
    # 反过来：推理时底模也可以量化，读的是同一个文件
    for kind in ("none", "int8"):
        out = tmp_path / f"{kind}.png"
        command = ["compare", str(trainer.run), "--prompt", "一只猫", "--out", str(out)]
        assert main([*command, "--quantization", kind, "--set", "sample.steps=2"]) == 0
        assert out.is_file()


def test_quantized_pipeline_draws_nearly_the_same():
    pictures = []
    for kind in ("none", "int8"):
        config = load_config("tiny-qwen-image", [f"model.quantize={kind}", "sample.steps=4"])
        family = open_family(config)
        pipe = infer.open_pipeline(family)
        (image,) = infer.generate(family, pipe, ["一只猫"], config.sample, (128, 128))
        pictures.append(torch.tensor(list(image.tobytes())).float())
    assert 0 < (pictures[0] - pictures[1]).abs().mean() < 8  # 满分 255


def test_merging_into_a_quantized_base_says_why_not(run, tmp_path, capsys):
    trainer, _ = run("int8")
    with pytest.raises(WeightsError, match=r"不能合并.*model.quantize=none"):
        convert.merge(layers_of(trainer), open_family(trainer.config).load("transformer"))
    # 命令行合并用的是没有量化的底模
    done = main(["export", str(trainer.run), "--merge", "--out", str(tmp_path / "merged")])
    assert done == 0 and "合并好了" in capsys.readouterr().out
    merged = load_file(tmp_path / "merged" / "transformer" / loading.WEIGHTS)
    base = load_file(TINY / loading.WEIGHTS)
    path, pair = next(iter(layers_of(trainer).items()))
    want = base[f"{path}.weight"].float() + convert.delta(pair).float()
    torch.testing.assert_close(merged[f"{path}.weight"].float(), want, rtol=1e-2, atol=1e-3)


def split(folder, tensors: dict) -> dict:
    """把权重分成两片，像大模型那样；返回写好的目录。"""
    places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == file}, folder / file)
    index = folder / f"{loading.WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    return places


def test_shards_give_the_same_weights_and_say_what_is_missing(tmp_path):
    tensors = load_file(TINY / loading.WEIGHTS)
    split(tmp_path, tensors)
    read = loading.Shards(tmp_path)
    for name, value in tensors.items():
        assert torch.equal(read(name, nn.Parameter(value, requires_grad=False)), value)
    with pytest.raises(WeightsError, match=r"没有 nothing\.weight"):
        read("nothing.weight", nn.Parameter(torch.zeros(1)))
    with pytest.raises(WeightsError, match="不是一套"):
        read(next(iter(tensors)), nn.Parameter(torch.zeros(1)))
    (tmp_path / "part-0.safetensors").write_bytes(b"broken")
    with pytest.raises(WeightsError, match=r"part-0.*重新下载"):
        broken = loading.Shards(tmp_path)
        for name in tensors:
            broken(name, nn.Parameter(tensors[name], requires_grad=False))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="要 Linux 的 /proc")
def test_weights_on_the_cpu_stay_mapped_to_their_file(tmp_path):
    """精度没变的权重不复制：FSDP 的几个进程共用系统为文件留的那一份内存。"""

    def private() -> int:  # 不是映射进来的内存，MB
        (line,) = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(line) // 1024

    class Model(nn.Sequential):
        _repeated_blocks, _keep_in_fp32_modules = [], None  # diffusers 的模型都有

    with torch.device("meta"):
        model = Model(nn.Linear(8192, 8192, bias=False))
    weight = torch.zeros(8192, 8192, dtype=torch.bfloat16)  # 134 MB
    save_file({"0.weight": weight}, tmp_path / loading.WEIGHTS)
    del weight
    before = private()
    loading.build(model, loading.Shards(tmp_path), "none", "cpu", torch.bfloat16, shown=False)
    assert model[0].weight.sum() == 0 and private() - before < 20


def test_at_most_one_layer_is_unquantized_at_a_time():
    family = open_family(load_config("tiny-qwen-image"))
    model = family.skeleton()
    shards, most = loading.Shards(TINY), 0

    def read(name, shape):
        nonlocal most
        inside = [m for block in loading.blocks(model).values() for m in block.modules()]
        linear = [m for m in inside if isinstance(m, nn.Linear) and not m.weight.is_meta]
        most = max(most, sum(not quantize.is_quantized(m) for m in linear))
        return shards(name, shape)

    loading.build(model, read, "int8", "cpu", torch.float32)
    assert most <= 1
    assert all(not value.is_meta for value in model.state_dict().values())


def test_modules_that_must_stay_fp32_stay(tmp_path):
    folder = random_kandinsky5(tmp_path)
    family = open_family(
        load_config({"model": {"family": "kandinsky5", "path": str(folder), "precision": "bf16"}})
    )
    model = family.again(quantize="int8").load("transformer")
    block = model.visual_transformer_blocks[0]
    assert block.visual_modulation.out_layer.weight.dtype == torch.float32
    assert quantize.is_quantized(block.self_attention.to_query)
    assert model.visual_embeddings.in_layer.weight.dtype == torch.bfloat16


def test_random_weights_need_no_files():
    config = load_config("tiny-qwen-image", ["model.quantize=int8"])
    family = open_family(config, torch.device("cpu"))
    model = family.again(random_weights=True).load("transformer")
    weight = model.transformer_blocks[0].attn.norm_q.weight
    assert torch.equal(weight, torch.ones_like(weight))
    cond = family.collate([{"text": torch.randn(5, model.config.joint_attention_dim)}])
    x, t = torch.randn(1, 16, 16, 16), torch.tensor([0.5])
    assert torch.isfinite(family.predict_velocity(model, x, t, cond)).all()


def test_replaced_layers_are_let_go_while_loading():
    """换下来的层连同原来的权重当场放掉：不然载入时要多占一整个底模，小显卡就载不进来。"""
    family = open_family(load_config("tiny-qwen-image"), torch.device("cpu"))
    folder = family.folder / "transformer"
    model = family.skeleton()
    inside = [m for block in loading.blocks(model).values() for m in block.modules()]
    old = [weakref.ref(m) for m in inside if isinstance(m, nn.Linear)]
    del inside
    alive = []

    def finished(block):
        alive.append(sum(ref() is not None for ref in old))

    loading.build(model, loading.Shards(folder), "int8", "cpu", torch.float32, finished)
    per_block = len(old) // len(alive)
    expected = [len(old) - per_block * (i + 1) for i in range(len(alive))]
    assert all(0 <= real - left <= 1 for real, left in zip(alive, expected, strict=True))


def test_bad_input_is_explained(capsys):
    assert (
        main(["generate", "tiny-qwen-image", "--prompt", "猫", "--set", "model.quantize=fp9"]) == 1
    )
    assert "model.quantize：得到 “fp9”" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["fp8", "int8", "fp8-matmul"])
def test_compiles_without_a_break(kind):
    """regional compile 把一块编成一张图；量化的层不能把它打断。"""
    _, made = small(kind)
    x = torch.randn(20, 64, requires_grad=True)
    whole = torch.compile(made, backend="aot_eager", fullgraph=True)
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            one, other = made(x), whole(x)
        assert torch.equal(one, other)
        grads = [torch.autograd.grad(y.float().sum(), x)[0] for y in (one, other)]
        torch.testing.assert_close(*grads, rtol=1e-2, atol=1e-6)  # bf16 差一格


def _noted(kept: list, value: torch.Tensor) -> torch.Tensor:
    kept.append(value)
    return value


def test_one_copy_of_the_codes_serves_both_directions():
    """每行的缩放差几个数量级，反向也一样准；除了编码与缩放，什么也不为反向留下，编译了也是。"""
    torch.manual_seed(0)
    weight = torch.randn(48, 64) * torch.logspace(-3, 1, 48)[:, None]
    made = quantize.Fp8Linear(weight, None, "fp8-matmul")
    assert {name for name, _ in made.named_parameters()} == {"weight"}
    x, grad = torch.randn(20, 64, requires_grad=True), torch.randn(20, 48)
    for layer in (made, torch.compile(made, backend="aot_eager_decomp_partition", fullgraph=True)):
        kept = []
        keep = partial(_noted, kept)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = layer(x)
        assert {tuple(t.shape) for t in kept} == {(48, 64), (48, 1)}
        want = grad @ weight
        (got,) = torch.autograd.grad(out, x, grad)
        assert (got - want).norm() / want.norm() < 2 * LAYER_ERROR["fp8-matmul"]
        assert (out - x @ weight.t()).norm() / (x @ weight.t()).norm() < 2 * LAYER_ERROR[
            "fp8-matmul"
        ]


def test_codes_for_the_kernel_lie_by_rows():
    _, made = small("fp8-matmul")
    assert made.weight.is_contiguous() and made.weight.shape == (48, 64)
    left, scale = fp8_matmul.rows_to_fp8(torch.randn(64, 20).t())
    assert left.is_contiguous() and scale.shape == (20, 1)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_single_row_is_decoded_in_one_pass_when_compiled(kind):
    _, made = small(kind)
    x = torch.randn(1, 64)
    fast = torch.compile(made, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(fast(x), made(x))


def test_a_card_without_fp8_kernels_stores_the_same_codes_and_says_so(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "RTX 3090")
    gpu = torch.device("cuda", 0)
    for capability, kind in (((8, 6), "fp8"), ((8, 9), "fp8-matmul"), ((9, 0), "fp8-matmul")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d, c=capability: c)
        assert quantize.done_as("fp8-matmul", gpu) == kind
        case = preflight.Case(config("model.quantize=fp8-matmul"), device=gpu)
        said = [text for rule, text in preflight.clashes(case, stops=False) if "fp8" in text]
        assert len(said) == (kind == "fp8")
        assert all("RTX 3090" in one and "照 fp8 存" in one for one in said)
    assert quantize.done_as("fp8-matmul", torch.device("cpu")) == "fp8-matmul"
    assert quantize.done_as("nf4", gpu) == "nf4"
    weight = torch.randn(48, 64)
    stored, used = (
        quantize.FrozenLinear(weight, None, "fp8"),
        quantize.Fp8Linear(weight, None, "fp8-matmul"),
    )
    assert torch.equal(stored.weight, used.weight) and torch.equal(stored.scale, used.scale)
