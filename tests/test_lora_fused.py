"""FLUX 原作者的层名：并与拆不改变 ΔW；每种写法都由 stock diffusers 读一遍对照。"""

import json

import pytest
import random_flux
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from safetensors.torch import load_file, save_file
from torch import nn

from lorakit import lora
from lorakit.cli import main
from lorakit.families.flux import Flux
from lorakit.lora import algebra, convert
from lorakit.lora import fused as lora_fused

TINY = "transformer_blocks.0."


def shell_of(**sizes):
    with torch.device("meta"):
        return FluxTransformer2DModel(**sizes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_flux.build(tmp_path_factory.mktemp("flux") / "model")


@pytest.fixture(scope="module")
def tiny(folder):
    return FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer")


def random_lora(shell, keep=lambda path: True, rank=3):
    """给 keep 留下的每个线性层一对随机的 A、B。"""
    g, layers = torch.Generator().manual_seed(0), {}
    for path, module in shell.named_modules():
        if isinstance(module, nn.Linear) and "blocks" in path and keep(path):
            a = torch.randn(rank, module.in_features, generator=g)
            layers[path] = (a, torch.randn(module.out_features, rank, generator=g) * 0.1)
    return layers


def linear(shell):
    return [name for name, module in shell.named_modules() if isinstance(module, nn.Linear)]


def same(one, other):
    """ΔW 的相对误差；只经随机向量比，完整的 3072 宽矩阵太大。"""
    x = torch.randn(one[0].shape[1], 8, generator=torch.Generator().manual_seed(1)).double()
    want, got = ((b.double() @ (a.double() @ x)) for a, b in (one, other))
    return float((want - got).norm() / want.norm())


@pytest.mark.parametrize("form", convert.FORMATS)
def test_every_format_keeps_every_delta_and_the_rank(tiny, tmp_path, form):
    layers, names = random_lora(tiny), convert.Names.of(Flux, tiny)
    file, rounded = convert.write(layers, form, tmp_path / form, {"family": "flux"}, names)
    again, unknown = convert.read(file, linear(tiny), names.places)
    assert unknown == [] and again.keys() == layers.keys() and rounded == 0
    assert max(same(layers[path], again[path]) for path in layers) < 1e-6
    assert {len(a) for a, _ in again.values()} == {3}
    names = {name.split(".lora_")[0].removesuffix(".alpha") for name in load_file(file)}
    fused = {
        "diffusers": f"transformer.{TINY}attn.to_q",
        "comfyui": f"transformer.{TINY}attn.to_q",
        "kohya": "lora_unet_single_blocks_1_linear1",
    }
    assert fused[form] in names


@pytest.mark.parametrize(("error", "written"), [(0.0, True), (1e-7, True), (1e-5, False)])
def test_a_changed_layer_is_not_written(tiny, tmp_path, monkeypatch, error, written):
    names, join = convert.Names.of(Flux, tiny), lora_fused.join

    def wrong(*args):
        joined = join(*args)
        a, b = joined["single_blocks.0.linear1"]
        return {**joined, "single_blocks.0.linear1": (a, b * (1 + error))}

    monkeypatch.setattr(lora_fused, "join", wrong)
    given = (random_lora(tiny), "kohya", tmp_path / "mine", {}, names)
    if written:
        assert convert.write(*given).file.exists()
    else:
        with pytest.raises(AssertionError, match="single_transformer_blocks"):
            convert.write(*given)
        assert list(tmp_path.iterdir()) == []


def test_the_error_of_a_layer_by_hand():
    g = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randn(*size, generator=g) for size in ((3, 9), (7, 3), (4, 9), (7, 4)))
    for other in ((c, d), (a, b), (a, b * (1 + 1e-5))):
        want, got = convert.delta((a, b)), convert.delta(other)
        by_hand = float((got - want).norm() / want.norm())
        assert algebra.distance((a, b), other) == pytest.approx(by_hand, rel=1e-6, abs=1e-12)


def test_fused_shapes_are_the_original_ones(tiny, tmp_path):
    places = lora_fused.slots(Flux.original, tiny)
    joined = lora_fused.join(random_lora(tiny), places)
    a, b = joined["single_blocks.0.linear1"]
    assert a.shape == (12, 128) and b.shape == (3 * 128 + 512, 12)
    whole = convert.delta((a, b))
    layers = random_lora(tiny)
    block = "single_transformer_blocks.0."
    parts = [*(f"{block}attn.to_{x}" for x in "qkv"), f"{block}proj_mlp"]
    by_hand = torch.cat([convert.delta(layers[path]) for path in parts])
    assert torch.allclose(whole, by_hand, atol=1e-12)


def test_missing_parts_are_zero_and_come_back_missing(tiny, tmp_path):
    names = convert.Names.of(Flux, tiny)
    layers = random_lora(tiny, lambda p: p.endswith(("attn.to_q", "attn.to_v")))
    file, _ = convert.write(layers, "kohya", tmp_path / "part", {}, names)
    again, _ = convert.read(file, linear(tiny), names.places)
    assert again.keys() == layers.keys()
    assert load_file(file)["lora_unet_single_blocks_0_linear1.lora_up.weight"].shape == (896, 6)


def test_a_dense_fused_file_splits_exactly(tiny, tmp_path):
    """kohya 训出来的：q、k、v 共用一个 A，B 是满的，另有不等于秩的 alpha。"""
    a, b = torch.randn(4, 128), torch.randn(384, 4)
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    pair = {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}
    save_file(pair | {f"{stem}.alpha": torch.tensor(2.0)}, tmp_path / "k.safetensors")
    places = lora_fused.slots(Flux.original, tiny)
    layers, unknown = convert.read(tmp_path / "k.safetensors", linear(tiny), places)
    assert unknown == []
    whole = torch.cat([convert.delta(layers[f"{TINY}attn.to_{x}"]) for x in "qkv"])
    assert torch.allclose(whole, b.double() @ a.double() / 2, atol=1e-6)


def stock_change(folder, file):
    """stock diffusers 读了文件、合并之后，每层权重改了多少。"""
    pipe = FluxPipeline.from_pretrained(folder)
    before = {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    after = pipe.transformer.state_dict()
    return {k.removesuffix(".weight"): (after[k] - before[k]).double() for k in before}


@pytest.mark.parametrize("form", convert.FORMATS)
def test_stock_diffusers_loads_every_format(folder, tiny, tmp_path, form):
    """单流块的 linear1 另测：stock 把它的宽写死成了 3072，微型模型读不了。"""
    layers = random_lora(
        tiny, lambda p: "single" not in p or p.endswith(("proj_out", "norm.linear"))
    )
    file, _ = convert.write(layers, form, tmp_path / form, {}, convert.Names.of(Flux, tiny))
    moved = stock_change(folder, file)
    for path, change in moved.items():
        if path in layers:
            want = convert.delta(layers[path])
            assert (change - want).norm() <= 1e-6 * want.norm(), path
        else:
            assert not change.any(), path


@pytest.mark.parametrize("form", ["kohya"])
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("part", ["", "attn"])
def test_stock_converter_at_the_real_width(tmp_path, form, rank, part):
    """FLUX.1 真正的宽度：经 stock 的转换函数，每层的 ΔW 与我们的相同。"""
    shell = shell_of(num_layers=1, num_single_layers=1)
    layers = random_lora(shell, lambda p: part in p, rank)
    file, _ = convert.write(layers, form, tmp_path / form, {}, convert.Names.of(Flux, shell))
    theirs = _convert_kohya_flux_lora_to_diffusers(load_file(file))
    for path, pair in layers.items():
        stem = f"transformer.{path}"
        assert same(pair, (theirs[f"{stem}.lora_A.weight"], theirs[f"{stem}.lora_B.weight"])) < 1e-6


def yaml_of(card, folder):
    file = folder / "model.yaml"
    file.write_text(f"model: {{family: {card['family']}, path: '{card['base']}'}}\n", "utf-8")
    return file


def test_command_line_round_trip_and_half_renamed(folder, tiny, tmp_path, capsys):
    card = {"family": "flux", "base": str(folder)}
    file, _ = convert.write(random_lora(tiny), "diffusers", tmp_path / "mine", card)
    assert lora.read(file)[1]["base"] == folder.name  # 文件里不记本地的路径
    out, model = tmp_path / "kohya.safetensors", ["--model", str(yaml_of(card, tmp_path))]
    assert main(["export", str(file), "--to", "kohya", "--out", str(out)]) == 1
    assert "--model" in capsys.readouterr().err
    exact = ["--dtype", "fp32", *model]
    assert main(["export", str(file), "--to", "kohya", "--out", str(out), *exact]) == 0
    assert main(["audit", str(out), *model]) == 0 and "全部对得上" in capsys.readouterr().out
    back = tmp_path / "back.safetensors"
    assert main(["export", str(out), "--to", "diffusers", "--out", str(back), *exact]) == 0
    ours, again = load_file(file), load_file(back)
    assert ours.keys() == again.keys()
    assert lora.read(back)[1]["rank"] == "3"
    broken = {k.replace("single_blocks", "singel_blocks"): v for k, v in load_file(out).items()}
    half = tmp_path / "half.safetensors"
    save_file(broken, half, {"lorakit": json.dumps(card)})
    assert main(["audit", str(half), *model]) == 1
    assert "没有地方放" in capsys.readouterr().out
    no = tmp_path / "no.safetensors"
    assert main(["export", str(half), "--out", str(no), *model]) == 1 and not no.exists()
