"""LoKr：手算、断了再练、存成的文件（stock diffusers 与 ComfyUI 的算法）、体检、转换、合并。

六个家族的 stock 管线都打得开它存的文件：见 test_contract.py 第 4 条。
"""

import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lorakit import infer, lora
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import ConfigError, LorakitWarning, WeightsError
from lorakit.families import open_family
from lorakit.lora import convert, lokr
from lorakit.train import Trainer

# 秩 16 让宽的层把 w2 拆开、窄的不拆；alpha 不等于秩，才看得出缩放折得对不对
LOKR = ["lora.variant=lokr", "lora.rank=16", "lora.alpha=24", "train.lr=2e-2", "train.ema=0.9",
        "data.resolution=64", "sample.steps=2"]  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("lokr")


@pytest.fixture(scope="module")
def run(place, papercut):
    """练一次，大家共用；不改它的文件夹。"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAKIT_CACHE", str(place / "cache"))
        trainer = Trainer(settings(papercut, place / "whole"))
        list(trainer)
    return trainer


def settings(papercut, output, *more):
    base = [f"data.folder={papercut}", f"run.output={output}", "train.steps=4",
            "train.batch_size=2", "train.save_every=2", "eval.every=2"]  # fmt: skip
    return load_config("tiny-qwen-image", [*base, *LOKR, *more])


def deltas(transformer, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """PEFT 自己算的 ΔW。"""
    named = transformer.named_modules()
    layers = {name: m for name, m in named if hasattr(m, "lokr_w1")}
    return {
        name: m.get_delta_weight(m.active_adapters[0]).double().detach() * scale
        for name, m in layers.items()
    }


def changed(transformer) -> dict[str, torch.Tensor]:
    """挂着的层实际改了多少：单位矩阵送进去，减去底模的。"""
    named = ((n, m) for n, m in transformer.named_modules() if hasattr(m, "lora_variant"))
    return {
        name: (m(x) - m.base_layer(x)).T.detach()
        for name, m in ((n, copy.deepcopy(m).double()) for n, m in named)
        for x in [torch.eye(m.in_features, dtype=torch.float64)]
    }


def near(one, other):
    assert one.keys() == other.keys() and one
    for name, value in one.items():
        assert (value - other[name]).norm() <= 1e-6 * value.norm(), name


def linear(transformer) -> list[str]:
    return [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("kinds", ["w1 w2", "w1 w2_a w2_b", "w1_a w1_b w2_a w2_b"])
@pytest.mark.parametrize("wide", [3, 7])
def test_product_by_hand(kinds, wide):
    g = torch.Generator().manual_seed(1)
    shapes = {"w1": (2, 3), "w1_a": (2, 2), "w1_b": (2, 3),
              "w2": (5, wide), "w2_a": (5, 2), "w2_b": (2, wide)}  # fmt: skip
    parts = {kind: torch.randn(shapes[kind], generator=g) for kind in kinds.split()}
    w1 = parts["w1"] if "w1" in parts else parts["w1_a"] @ parts["w1_b"]
    w2 = parts["w2"] if "w2" in parts else parts["w2_a"] @ parts["w2_b"]
    want = torch.kron(w1.double(), w2.double())
    product = lokr.Product.of(parts)
    assert product.shape == want.shape == (10, 3 * wide)
    a, b = product.pair()
    torch.testing.assert_close(b.double() @ a.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product.delta(), want, rtol=1e-5, atol=1e-5)
    assert product.norm() == pytest.approx(float(want.norm()), rel=1e-6)
    values = torch.linalg.svdvals(want)
    ours = product.spectrum()  # 其余的都是零
    most = min(len(ours), len(values))
    torch.testing.assert_close(ours[:most], values[:most], rtol=1e-4, atol=1e-4)
    assert max([*ours[most:], *values[most:], torch.zeros(())]) < 1e-5
    # LyCORIS：两个因子都是整个的，就不看 alpha
    scaled = lokr.Product.of({**parts, "alpha": torch.tensor(4.0)}).delta()
    torch.testing.assert_close(scaled, want if kinds == "w1 w2" else want * 2)


def test_half_a_product_is_none():
    assert lokr.Product.of({"w1": torch.ones(2, 2), "w2_a": torch.ones(2, 1)}) is None
    assert lokr.Product.of({"w2": torch.ones(2, 2)}) is None


def test_the_file_means_what_was_trained(run):
    """ComfyUI 的算法：没有 alpha 就乘 1，ΔW = kron(w1, w2)。"""
    tensors, card = lora.read(run.run)
    assert card["alpha"] == "folded"
    assert all(name.startswith("transformer.") for name in tensors)
    parts = lokr.by_layer(tensors)
    split = sum("w2_a" in layer for layer in parts.values())
    assert 0 < split < len(parts)
    with run.average.swapped():
        want = deltas(run.transformer)
    ours = {}
    for name, layer in parts.items():
        w2 = layer["w2_a"] @ layer["w2_b"] if "w2_a" in layer else layer["w2"]
        ours[name.removeprefix("transformer.")] = torch.kron(layer["w1"].double(), w2.double())
    near(want, ours)
    norms = lora.delta_norms(tensors)
    by_hand = {}
    for name, value in ours.items():
        block = lora.block_of(name)
        by_hand[block] = by_hand.get(block, 0) + float(value.norm()) ** 2
    assert norms == pytest.approx({block: square**0.5 for block, square in by_hand.items()})
    assert run.examine()["delta"] == pytest.approx(norms, rel=1e-5)  # 训练中看到的也是它


def test_stock_diffusers_opens_the_file(run, monkeypatch):
    from diffusers import DiffusionPipeline

    stock = DiffusionPipeline.from_pretrained(run.family.folder, torch_dtype=torch.float32)
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        stock.load_lora_weights(lora.find(run.run).parent, weight_name=lora.FILE)
    stock.transformer.load_lora_adapter(lora.find(run.run).parent, weight_name=lora.FILE)
    with run.average.swapped():
        near(deltas(run.transformer), deltas(stock.transformer))
        pipe = run.family.pipeline(run.transformer.eval())
        pipe.set_progress_bar_config(disable=True)
        draw = (["一只猫"], run.config.sample, (64, 64))
        ours = infer.generate(run.family, pipe, *draw)[0]
    stock.set_progress_bar_config(disable=True)
    theirs = infer.generate(run.family, stock, *draw)[0]
    plain = open_family(run.config, CPU)
    before = infer.generate(plain, plain.pipeline(plain.load("transformer")), *draw)[0]
    a, b, c = (torch.tensor(list(image.tobytes())) for image in (ours, theirs, before))
    assert (a - b).abs().max() <= 1 and (a - c).abs().max() > 5


def test_interrupted_equals_uninterrupted(run, papercut, place, monkeypatch, cut_at_three):
    monkeypatch.setenv("LORAKIT_CACHE", str(place / "cache"))
    cut = settings(papercut, place / "cut")
    cut_at_three(cut)
    files = [p.relative_to(run.run) for p in (run.run / "checkpoint-4").rglob("*.safetensors")]
    assert len(files) == 4  # 给别人的、参数、优化器、滑动平均
    for file in files:
        whole, mine = load_file(run.run / file), load_file(cut.run.output / file)
        assert whole.keys() == mine.keys()
        assert all(torch.equal(whole[name], mine[name]) for name in whole), file


def test_generate_compare_and_a_grid_of_strengths(run, tmp_path):
    source = str(run.run)
    assert main(["generate", source, "--prompt", "一只猫", "--out", str(tmp_path / "g.png")]) == 0
    command = ["compare", source, "--prompt", "一只猫"]
    assert main([*command, "--out", str(tmp_path / "c.png")]) == 0
    grid = ["--strengths", "0,1", "--checkpoints", "2,4", "--out", str(tmp_path / "x.png")]
    assert main([*command, *grid]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_strength_scales_it_and_switching_off_is_the_base(run):
    family = open_family(run.config, CPU)
    pipe = infer.open_pipeline(family, run.run)
    tensors = lora.read(run.run)[0]
    parts = lokr.by_layer({k.removeprefix("transformer."): v for k, v in tensors.items()})
    whole = {name: lokr.Product.of(layer).delta() for name, layer in parts.items()}
    for strength in (1.0, 0.5):
        infer.set_strength(pipe, strength)
        near(changed(pipe.transformer), {name: value * strength for name, value in whole.items()})
    infer.set_strength(pipe, 1.0)
    fresh = open_family(run.config, CPU)
    stock = fresh.pipeline(fresh.load("transformer"))
    stock.set_progress_bar_config(disable=True)
    draw = (["一只猫"], run.config.sample, (64, 64))
    before, after = infer.compare(family, pipe, *draw)
    assert before[0].tobytes() == infer.generate(fresh, stock, *draw)[0].tobytes()
    assert before[0].tobytes() != after[0].tobytes()


def test_audit_export_merge_and_resize(run, tmp_path, capsys):
    assert main(["audit", str(run.run)]) == 0
    assert "全部对得上" in capsys.readouterr().out
    shell = run.family.skeleton()
    layers, unknown = convert.read(lora.find(run.run), linear(shell))
    want = {path: convert.delta(layer) for path, layer in layers.items()}
    assert unknown == [] and len(want) == 56
    for form in convert.FORMATS:  # 写成普通 LoRA，ΔW 不变
        out = tmp_path / f"{form}.safetensors"
        exact = ["--out", str(out), "--dtype", "fp32"]
        assert main(["export", str(run.run), "--to", form, *exact]) == 0
        made, _ = convert.read(out, linear(shell))
        near(want, {path: convert.delta(pair) for path, pair in made.items()})
    out = tmp_path / "small.safetensors"
    both = ["export", str(run.run), "--also", str(run.run), "--weight", "0.5", "--weight", "0.5"]
    assert main([*both, "--rank", "8", "--out", str(out)]) == 0
    assert "保住了" in capsys.readouterr().out
    assert lora.read(out)[1]["rank"] == "8"
    assert main(["export", str(run.run), "--merge", "--out", str(tmp_path / "merged")]) == 0
    file = next((tmp_path / "merged").rglob("*.safetensors"))
    merged, base = load_file(file), shell.__class__.from_pretrained(
        run.family.folder, subfolder="transformer"
    ).state_dict()  # fmt: skip
    for path, value in want.items():
        moved = merged[f"{path}.weight"].double() - base[f"{path}.weight"].double()
        assert torch.allclose(moved, value, atol=1e-6), path


def test_a_lycoris_file_is_read_and_one_too_large_says_the_way_out(run, tmp_path):
    ours, _ = convert.read(lora.find(run.run), linear(run.family.skeleton()))
    foreign = {}
    for name, value in load_file(lora.find(run.run)).items():
        layer, _, kind = name.removeprefix("transformer.").rpartition(".")
        stem = f"lycoris_{layer.replace('.', '_')}"
        foreign |= {f"{stem}.{kind}": value, f"{stem}.alpha": torch.tensor(8.0)}
    save_file(foreign, tmp_path / "foreign.safetensors")
    theirs, unknown = convert.read(tmp_path / "foreign.safetensors", linear(run.family.skeleton()))
    assert unknown == []
    parts = lokr.by_layer(lora.read(run.run)[0])  # 拆开的才乘 8 / 16
    times = {path: 0.5 if "w2_a" in parts[f"transformer.{path}"] else 1 for path in ours}
    want = {path: layer.delta() * times[path] for path, layer in ours.items()}
    near(want, {path: layer.delta() for path, layer in theirs.items()})
    big = lokr.Product(torch.ones(8, 8), torch.ones(384, 384), torch.ones(384, 384))
    with pytest.raises(WeightsError, match=r"要秩 3072，最多 1024。.*原来的文件.*--merge"):
        convert.write({"x": big}, "kohya", tmp_path / "no", {})


def test_wrong_files_are_refused(run, tmp_path):
    transformer = run.family.skeleton()
    tensors = load_file(lora.find(run.run))
    name = next(key for key in tensors if key.endswith("lokr_w1"))
    cases = {
        "shape": {**tensors, name: torch.ones(8, 9)},
        "place": {key.replace("blocks.0", "blocks.99"): value for key, value in tensors.items()},
        "half": {key: value for key, value in tensors.items() if not key.endswith("lokr_w2")},
        "nan": {**tensors, name: tensors[name] * float("nan")},
    }
    for case, broken in cases.items():
        save_file(broken, tmp_path / f"{case}.safetensors")
        with pytest.raises(WeightsError, match="NaN" if case == "nan" else "对不上"):
            lora.check_fits(tmp_path / f"{case}.safetensors", transformer)
    with pytest.raises(WeightsError, match="只有一半"):
        convert.read(tmp_path / "half.safetensors", linear(transformer))


@pytest.mark.parametrize(
    "extra", [["model.quantize=int8"], ["memory.offload=blocks", "memory.checkpointing=full"]]
)
def test_trains_on_frozen_bases_of_every_kind(papercut, place, monkeypatch, extra):
    monkeypatch.setenv("LORAKIT_CACHE", str(place / "cache"))
    shutil.rmtree(place / "frozen", ignore_errors=True)
    trainer = Trainer(settings(papercut, place / "frozen", *extra))
    first = trainer.evaluate()
    assert [step.held for step in trainer][-1] < first
    assert lora.check_fits(trainer.run, trainer.family.skeleton())


def test_what_cannot_work_says_why(papercut, place, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(place / "cache"))
    with pytest.raises(ConfigError, match=r"lora\.rank"):
        Trainer(settings(papercut, place / "no", "lora.rank=512"))
    with pytest.warns(LorakitWarning, match=r"lora\.init 不起作用"):
        Trainer(settings(papercut, place / "warned", "lora.init=orthogonal"))
