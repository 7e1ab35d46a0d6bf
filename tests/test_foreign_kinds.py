"""别家的 DoRA、LoKr，与混着的：ΔW 与写它的软件算的一样，挂上去、合并也一样。"""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    swap_scale_shift,
)
from foreign_tools import (
    NORM,
    OUT,
    Q,
    flux,
    meaning,
    moved,
    named,
    near,
    pair,
    put,
    read,
    write,
)
from peft import LoKrConfig, LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from lorakit import lora
from lorakit.errors import WeightsError
from lorakit.families.flux import Flux
from lorakit.lora import algebra, convert, dora, lokr
from lorakit.lora import audit as lora_audit
from lorakit.lora import fused as lora_fused

ONES = torch.ones


@pytest.fixture(scope="module")
def base():
    """不改动它：要挂东西的测试自己造一个。"""
    return flux()


# ---- DoRA


def trained_dora():
    """PEFT 的 DoRA，A、B、长度都动过 -> (模型, 各层的张量)。"""
    model = flux()
    config = LoraConfig(r=4, lora_alpha=4, target_modules=[Q, OUT, NORM], use_dora=True)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.add_adapter(config, adapter_name="x")
        for name, p in model.named_parameters():
            if ".lora_" in name:
                p.data += torch.randn_like(p) * (0.02 if "magnitude" not in name else 0.2)
    return model, get_peft_model_state_dict(model, adapter_name="x")


LENGTHS = ["magnitude", *(f"lora_magnitude_vector{end}" for end in (
    "", ".default", ".weight", ".default.weight"))]  # fmt: skip


@pytest.mark.parametrize("spelling", LENGTHS)
def test_dora_of_peft(base, tmp_path, spelling):
    stock, tensors = trained_dora()
    file = write(tmp_path, {
        f"transformer.{k}".replace("lora_magnitude_vector", spelling): v for k, v in tensors.items()
    })  # fmt: skip
    pipe, before = put(file)
    want = moved(stock, before)
    assert want.keys() == {Q, OUT, NORM}
    got, actual = read(file, base), moved(pipe.transformer, before)
    for path, change in want.items():
        near(got[path], change, 1e-5)
        near(actual[path], change, 1e-5)
    pipe.transformer.set_adapters(["mine"], [0.0])  # 强度 0 就是底模
    assert moved(pipe.transformer, before) == {}
    pipe.transformer.set_adapters(["mine"], [-0.5])
    for path, change in moved(pipe.transformer, before).items():
        near(change, -0.5 * want[path], 1e-5)
    pipe.transformer.set_adapters(["mine"], [1.0])
    pipe.transformer.fuse_lora()
    near(pipe.transformer.get_submodule(Q).base_layer.weight.double() - before[Q], want[Q], 1e-5)
    pipe.transformer.unfuse_lora()
    near(pipe.transformer.get_submodule(Q).base_layer.weight.double(), before[Q])
    merged = flux()
    algebra.merge(meaning(file, base).layers, merged)
    for path in want:
        near(merged.get_submodule(path).weight.double() - before[path], want[path], 1e-5)
    result = lora_audit.audit(file, base)
    assert result.good and result.form.startswith("DoRA") and "每行的长度" in result.strength


def comfy(model, a, b, m):
    """ComfyUI 0.33 的 weight_decompose：除的是 |W|。"""
    weight = model.weight.detach().double()
    return m * (weight + b.double() @ a.double()) / weight.norm(dim=1, keepdim=True) - weight


def lycoris(model, a, b, m):
    """LyCORIS 的 apply_weight_decompose：除的是 |W + ΔW|。"""
    weight = model.weight.detach().double()
    whole = weight + b.double() @ a.double()
    return m * whole / whole.norm(dim=1, keepdim=True) - weight


@pytest.mark.parametrize(("header", "reference"), [
    ({}, comfy), ({"lorakit": {"alpha": "folded"}}, comfy),
    ({"ss_network_module": "lycoris.kohya"}, lycoris), ({"ot_revision": "1"}, lycoris),
])  # fmt: skip
def test_dora_scale_means_what_its_writer_divides_by(base, tmp_path, header, reference):
    for path in (Q, OUT):
        layer = base.get_submodule(path)
        a, b = pair(base, path)
        m = layer.weight.detach().norm(dim=1, keepdim=True) * (1 + torch.rand(len(b), 1))
        tensors = named(path, a, b, "diffusion_model.", "lora_down", "lora_up")
        stem = f"diffusion_model.{path}"
        file = write(tmp_path, tensors | {f"{stem}.dora_scale": m}, **header)
        want = reference(layer, a, b, m.double())
        near(read(file, base)[path], want, 1e-6)
        near(moved(*((lambda x: (x[0].transformer, x[1]))(put(file))))[path], want, 1e-5)
        found = meaning(file, base).layers
        again = found[path].trained(layer.weight.detach())
        near(again.delta(layer.weight.detach()), want, 1e-6)
        near(lycoris(layer, again.a, again.b, again.magnitude.double()[:, None]), want, 1e-6)


@pytest.mark.parametrize("form", ["diffusers", "comfyui"])
def test_dora_of_comfyui_is_exported_and_read_again(base, tmp_path, form):
    tensors, names = {}, convert.Names.of(Flux, base)
    for path in (Q, NORM):
        scale = torch.rand(base.get_submodule(path).out_features, 1)
        tensors |= named(path, *pair(base, path)) | {f"transformer.{path}.dora_scale": scale}
    file = write(tmp_path, tensors)
    want = read(file, base)
    near(want[Q], comfy(base.get_submodule(Q), *pair(base, Q), tensors[
        f"transformer.{Q}.dora_scale"].double()))  # fmt: skip
    weights = {"weight": lambda path: base.get_submodule(path).weight.detach()}
    made = convert.write(meaning(file, base).layers, form, tmp_path / form, {}, names, **weights)
    again = read(made.file, base)
    assert again.keys() == want.keys()
    for path, change in want.items():
        near(again[path], change)


def test_dora_on_a_fused_layer_is_cut_by_rows(base, tmp_path):
    parts = lora_fused.slots(Flux.original, base)["single_blocks.0.linear1"]
    weight = torch.cat([base.get_submodule(path).weight.detach() for path, _ in parts])
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 128, generator=g), torch.randn(len(weight), 2, generator=g)
    m = torch.rand(len(weight), 1, generator=g)
    stem = "lora_unet_single_blocks_0_linear1"
    file = write(tmp_path, named(stem, a, b, "", "lora_down", "lora_up")
                 | {f"{stem}.dora_scale": m, f"{stem}.alpha": torch.tensor(1.0)})  # fmt: skip
    whole = SimpleNamespace(weight=weight)
    got = read(file, base)
    near(torch.cat([got[path] for path, _ in parts]), comfy(whole, a, b / 2, m.double()), 1e-6)


def test_dora_is_neither_added_nor_shrunk(base, tmp_path):
    layer = {Q: dora.Dora(*pair(base, Q), torch.ones(128))}
    for wrong in (lambda: convert.combine([(layer, 1.0)]), lambda: convert.resize(layer, 2)):
        with pytest.raises(WeightsError, match=r"DoRA.*--merge"):
            wrong()


def test_dora_by_columns(base, tmp_path):
    """OneTrainer 的默认：m (W + BA) / |W + BA|，长度按列；ComfyUI 也这样算，不分谁写的。"""
    tensors, want, weights = {}, {}, {n: base.get_submodule(n).weight.detach() for n in (Q, NORM)}
    g = torch.Generator().manual_seed(0)
    for path, weight in weights.items():
        a, b = pair(base, path)
        m = weight.norm(dim=0, keepdim=True) * (1 + torch.rand(1, a.shape[1], generator=g))
        stem = f"lora_transformer_{path.replace('.', '_')}"
        tensors |= named(stem, a, b, "", "lora_down", "lora_up") | {f"{stem}.dora_scale": m}
        whole = weight.double() + b.double() @ a.double()
        want[path] = m.double() * whole / whole.norm(dim=0, keepdim=True) - weight.double()
    file = write(tmp_path, tensors)
    assert "每列的长度" in lora_audit.audit(file, base).strength
    layers, names = meaning(file, base).layers, convert.Names.of(Flux, base)
    given = {"weight": weights.__getitem__}
    made = convert.write(layers, "comfyui", tmp_path / "c", {}, names, **given)
    for one in (file, made.file):
        got = read(one, base)
        pipe, before = put(one)
        for strength in (1.0, -0.5):
            pipe.transformer.set_adapters(["mine"], [strength])
            actual = moved(pipe.transformer, before)
            for path, change in want.items():
                near(got[path], change)
                near(actual[path], strength * change, 2e-5)
    pipe.transformer.set_adapters(["mine"], [1.0])
    pipe.transformer.fuse_lora()
    near(pipe.transformer.get_submodule(Q).base_layer.weight.double() - before[Q], want[Q], 1e-5)
    pipe.transformer.unfuse_lora()
    near(pipe.transformer.get_submodule(Q).base_layer.weight.double(), before[Q])
    for form in ("diffusers", "kohya"):
        with pytest.raises(WeightsError, match=r"请用 --to comfyui，或合并进底模：--merge"):
            convert.write(layers, form, tmp_path / "no", {}, names, **given)
    fused = named("double_blocks.0.img_attn.qkv", torch.ones(1, 128), torch.ones(384, 1), "")
    fused |= {"double_blocks.0.img_attn.qkv.dora_scale": torch.ones(1, 128)}
    with pytest.raises(WeightsError, match=r"按列.*拆不开"):
        meaning(write(tmp_path, fused), base)


def test_dora_moves_a_bf16_base_by_little(base, tmp_path):
    """bf16 里 1.001 是 1：长度的改变要先减再舍入，否则就没了。"""
    weight = base.get_submodule(Q).weight.detach().bfloat16().float()
    a, b = pair(base, Q)
    lengths = (weight + b @ a * 0).norm(dim=1) * 1.002
    file = write(tmp_path, named(Q, a, b * 0)
                 | {f"transformer.{Q}.lora_magnitude_vector": lengths})  # fmt: skip
    model = flux().bfloat16()
    lora.put_on(SimpleNamespace(transformer=model), file, "mine", Flux.original)
    layer = model.get_submodule(Q)
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    variant, base_out = layer.lora_variant["mine"], torch.zeros(64, 128, dtype=torch.bfloat16)
    bias = layer.get_base_layer().bias
    change = variant.forward(layer, "mine", x, base_out + 1 + bias) - (base_out + 1 + bias)
    assert layer.scaling["mine"] == 1 and (change.float().mean() - 0.002).abs() < 0.002


# ---- LoKr 与混着的


@pytest.mark.parametrize("factors", [((8, 8), (16, 16)), ((4, 8), (32, 16)), ((2, 2), (64, 64))])
@pytest.mark.parametrize("rank", [2, 30])
def test_lokr_of_any_factors_is_put_on(base, tmp_path, factors, rank):
    (one, two), g = factors, torch.Generator().manual_seed(0)
    w1 = torch.randn(*one, generator=g)
    a, b = torch.randn(two[0], rank, generator=g), torch.randn(rank, two[1], generator=g)
    c = torch.randn(128 // 4, 640 // 8, generator=g)
    stems = [f"lycoris_{path.replace('.', '_')}" for path in (Q, OUT)]
    file = write(tmp_path, {
        f"{stems[0]}.lokr_w1": w1, f"{stems[0]}.lokr_w2_a": a, f"{stems[0]}.lokr_w2_b": b,
        f"{stems[0]}.alpha": torch.tensor(1.0),
        f"{stems[1]}.lokr_w1": torch.ones(4, 8), f"{stems[1]}.lokr_w2": c,
    })  # fmt: skip
    want = {Q: torch.kron(w1, a @ b / rank).double(), OUT: torch.kron(torch.ones(4, 8), c).double()}
    pipe, before = put(file)
    got, actual = read(file, base), moved(pipe.transformer, before)
    for path, change in want.items():
        near(got[path], change, 1e-5)
        near(actual[path], change, 1e-5)


@pytest.mark.parametrize("full", [True, False])
def test_lokr_on_fused_layers_is_cut_by_rows(base, tmp_path, full, monkeypatch):
    """ai-toolkit 的 LoKr 练的是并起来的层：不展开，也不受普通 LoRA 的秩的限制。"""
    monkeypatch.setattr(lokr, "PLAIN_RANK", 1)
    g, tensors, want = torch.Generator().manual_seed(0), {}, {}
    places = lora_fused.slots(Flux.original, base)
    for name in ("double_blocks.0.img_attn.qkv", "single_blocks.1.linear1", "final_layer.linear",
                 "final_layer.adaLN_modulation.1"):  # fmt: skip
        out = sum(wide for _, wide in places[name])
        w1, w2 = torch.randn(4, 4, generator=g), torch.randn(out // 4, 32, generator=g)
        parts = {"lokr_w1": w1, "lokr_w2": w2}
        if not full:
            left, right = torch.randn(out // 4, 2, generator=g), torch.randn(2, 32, generator=g)
            parts, w2 = {"lokr_w1": w1, "lokr_w2_a": left, "lokr_w2_b": right}, left @ right
        tensors |= {f"diffusion_model.{name}.{kind}": value for kind, value in parts.items()}
        whole = torch.kron(w1, w2).double() * 0.1
        tensors[f"diffusion_model.{name}.lokr_w1"] = w1 * 0.1
        paths = list(dict.fromkeys(path for path, _ in places[name]))
        rows = whole.split([wide for _, wide in places[name]]) if len(paths) > 1 else [
            swap_scale_shift(whole) if paths == [NORM] else whole]  # fmt: skip
        want |= dict(zip(paths, rows, strict=True))
    file = write(tmp_path, tensors)
    assert lora_audit.audit(file, base, places).good
    pipe, before = put(file)
    got, actual = read(file, base), moved(pipe.transformer, before)
    assert got.keys() == actual.keys() == want.keys()
    for path, change in want.items():
        near(got[path], change, 1e-5)
        near(actual[path], change, 2e-5)
        assert meaning(file, base).layers[path] is not None
    layer = meaning(file, base).layers[Q]
    assert layer.norm() == pytest.approx(float(want[Q].norm()), rel=1e-5)
    assert float(layer.spectrum().norm()) == pytest.approx(layer.norm(), rel=1e-5)
    near(
        torch.linalg.multi_dot([layer.pair()[1].double(), layer.pair()[0].double()]), want[Q], 1e-5
    )
    pipe.transformer.fuse_lora()
    near(pipe.transformer.get_submodule(Q).base_layer.weight.double() - before[Q], want[Q], 1e-5)
    pipe.transformer.unfuse_lora()
    near(pipe.transformer.get_submodule(Q).base_layer.weight.double(), before[Q])


def test_peft_lokr_strength_is_what_peft_does(base, tmp_path):
    stock = flux()
    settings = {"r": 16, "alpha": 8, "rank_pattern": {OUT: 4}, "alpha_pattern": {OUT: 8}}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LoKrConfig(target_modules=[Q, OUT], init_weights=False, **settings)
        stock.add_adapter(config, adapter_name="x")
    tensors = get_peft_model_state_dict(stock, adapter_name="x")
    file = tmp_path / "adapter_model.safetensors"
    save_file({f"base_model.model.{k}": v.contiguous() for k, v in tensors.items()}, file)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    for path, change in read(file, base).items():
        want = stock.get_submodule(path).get_delta_weight("x").double().detach()
        near(change, want, 1e-5)


def test_plain_dora_and_lokr_in_one_file(base, tmp_path):
    a, b = pair(base, Q)
    c, d = pair(base, OUT)
    kron = {f"transformer.{NORM}.lokr_w1": torch.ones(2, 2),
            f"transformer.{NORM}.lokr_w2": torch.randn(128, 64)}  # fmt: skip
    magnitude = {f"transformer.{OUT}.lora_magnitude_vector": torch.rand(128)}
    file = write(tmp_path, named(Q, a, b) | named(OUT, c, d) | kron | magnitude)
    pipe, before = put(file)
    got, actual = read(file, base), moved(pipe.transformer, before)
    assert got.keys() == actual.keys() == {Q, OUT, NORM}
    for path in got:
        near(actual[path], got[path], 1e-5)
