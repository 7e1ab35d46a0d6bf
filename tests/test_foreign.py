"""别家的 LoRA 文件：意思与训练它的人想的一样；参照是 PEFT、diffusers 自己读的，或手算的。"""

import json
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_xlabs_flux_lora_to_diffusers,
    swap_scale_shift,
)
from peft import LoKrConfig, LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from lorakit import lora
from lorakit.errors import LorakitWarning, WeightsError
from lorakit.families.flux import Flux
from lorakit.families.registry import get
from lorakit.lora import algebra, convert, dora, foreign
from lorakit.lora import audit as lora_audit
from lorakit.lora import fused as lora_fused
from lorakit.tiny.pretrain import shapes

Q, OUT = "transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_out"
NORM = "norm_out.linear"


def flux() -> FluxTransformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return shapes.flux_transformer(latent_channels=4, layers=1, single_layers=2).eval()


@pytest.fixture(scope="module")
def base():
    """不改动它：要挂东西的测试自己造一个。"""
    return flux()


def linear(model) -> dict[str, nn.Linear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}


def pair(model, path, rank=4, seed=0):
    g, layer = torch.Generator().manual_seed(seed), model.get_submodule(path)
    a = torch.randn(rank, layer.in_features, generator=g) * 0.1
    return a, torch.randn(layer.out_features, rank, generator=g) * 0.1


def named(path, a, b, prefix="transformer.", down="lora_A", up="lora_B"):
    return {f"{prefix}{path}.{down}.weight": a, f"{prefix}{path}.{up}.weight": b}


def write(folder, tensors, **header):
    file = folder / "f.safetensors"
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in header.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, text)
    return file


def meaning(file, model):
    return foreign.meaning(file, linear(model), lora_fused.slots(Flux.original, model))


def near(one, other, most=1e-6):
    assert (one - other).norm() <= most * other.norm().clamp(min=1e-9)


def read(file, model):
    found = meaning(file, model)
    assert found.unknown == []
    weights = {path: model.get_submodule(path).weight.detach() for path in found.layers}
    return {path: algebra.delta(layer, weights[path]) for path, layer in found.layers.items()}


def put(file):
    """挂到新的模型上，返回 (管线的替身, 每层实际的 ΔW)。"""
    model = flux()
    before = {n: m.weight.detach().double().clone() for n, m in linear(model).items()}
    pipe = SimpleNamespace(transformer=model)
    lora.put_on(pipe, file, "mine", Flux.original)
    return pipe, before


def moved(model, before):
    """把单位矩阵送过每一层：它现在的权重减去原来的。"""
    changes = {}
    for path, weight in before.items():
        layer = model.get_submodule(path)
        bias = 0 if (b := getattr(layer, "base_layer", layer).bias) is None else b
        with torch.no_grad():
            now = (layer(torch.eye(weight.shape[1])) - bias).T.double()
        if (now - weight).abs().max() > 1e-6:
            changes[path] = now - weight
    return changes


SMALL = {"flux": {"num_layers": 1, "num_single_layers": 2},
         "flux2-klein": {"num_layers": 1, "num_single_layers": 1},
         "z-image": {"n_layers": 1, "n_refiner_layers": 1}}  # fmt: skip
ADAPTER = {"r": 4, "lora_alpha": 16, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
PATTERN = {"alpha_pattern": {"attn.to_q": 2}, "rank_pattern": {f"^{OUT}": 8}}
STRENGTHS = {  # 文件头 -> (to_q 秩 4 的强度, proj_out 秩 8 的强度)
    "nothing": ({}, 1, 1),
    "adapter": ({"lora_adapter_metadata": ADAPTER | PATTERN}, 0.5, 2),
    "prefixed": (
        {"lora_adapter_metadata": {f"transformer.{k}": v for k, v in ADAPTER.items()}}, 4, 2
    ),
    "rslora": ({"lora_adapter_metadata": ADAPTER | {"use_rslora": True}}, 8, 16 / 8**0.5),
    "rslora pattern": (
        {"lora_adapter_metadata": ADAPTER | PATTERN | {"use_rslora": True}}, 1, 16 / 8**0.5
    ),
    "ss": ({"ss_network_alpha": "2", "ss_network_dim": "4"}, 0.5, 0.5),
    "ss dynamic": ({"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"}, 1, 1),
    "adapter before ss": (
        {"lora_adapter_metadata": ADAPTER, "ss_network_alpha": "1", "ss_network_dim": "4"}, 4, 2
    ),
    "folded": ({"lorakit": {"alpha": "folded"}, "lora_adapter_metadata": ADAPTER}, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize(("header", "one", "two"), STRENGTHS.values(), ids=STRENGTHS)
def test_strength(base, tmp_path, header, one, two):
    (a, b), (c, d) = pair(base, Q), pair(base, OUT, 8)
    file = write(tmp_path, named(Q, a, b) | named(OUT, c, d), **header)
    got = read(file, base)
    near(got[Q], one * (b @ a).double())
    near(got[OUT], two * (d @ c).double())
    pipe, before = put(file)
    actual = moved(pipe.transformer, before)
    assert actual.keys() == {Q, OUT}
    near(actual[Q], got[Q], 1e-5)
    near(actual[OUT], got[OUT], 1e-5)
    scales = lora_audit.audit(file, base).strength
    assert scales.startswith(f"{one:.4g}") or scales.startswith(f"{two:.4g}")


@pytest.mark.parametrize("more", [{}, PATTERN, PATTERN | {"use_rslora": True}])
def test_the_adapters_own_metadata_means_what_diffusers_does(base, tmp_path, more):
    """同一份文件由 diffusers 自己的 load_lora_adapter 读，ΔW 相同。"""
    tensors = named(Q, *pair(base, Q)) | named(OUT, *pair(base, OUT, 8))
    settings = ADAPTER | {"rank_pattern": {OUT: 8}} | more
    settings["target_modules"] = [Q, OUT]
    told = {f"transformer.{key}": value for key, value in settings.items()}
    file = write(tmp_path, tensors, lora_adapter_metadata=told)
    stock = flux()
    stock.load_lora_adapter(tmp_path, weight_name=file.name, adapter_name="x")
    for path, change in read(file, base).items():
        near(change, stock.get_submodule(path).get_delta_weight("x").double().detach())


def test_alpha_tensors_come_first_and_a_peft_folder_carries_its_own(base, tmp_path):
    a, b = pair(base, Q)
    peft = named(Q, a, b, "base_model.model.")
    file = write(tmp_path, peft | {f"base_model.model.{Q}.alpha": torch.tensor(2)},
                 lora_adapter_metadata=ADAPTER)  # fmt: skip
    near(read(file, base)[Q], 0.5 * (b @ a).double())
    folder = tmp_path / "peft"
    folder.mkdir()
    save_file(peft, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    assert lora.find(folder).name == "adapter_model.safetensors"
    near(read(folder, base)[Q], 4 * (b @ a).double())
    for broken in ("[]", "{", "[" * 100_000, json.dumps(ADAPTER | {"lora_alpha": "x"}),
                   json.dumps(ADAPTER | {"alpha_pattern": {"(a+)+": 1}})):  # fmt: skip
        (folder / "adapter_config.json").write_text(broken)
        with pytest.raises(WeightsError, match="读不懂"):
            read(folder, base)


DTYPES = {torch.float16: 1e-3, torch.bfloat16: 1e-2, torch.float64: 1e-6,
          torch.float8_e4m3fn: 0.1, torch.float8_e5m2: 0.2}  # fmt: skip


@pytest.mark.parametrize(("dtype", "most"), DTYPES.items(), ids=map(str, DTYPES))
def test_every_number_format(base, tmp_path, dtype, most):
    a, b = pair(base, Q)
    file = write(tmp_path, named(Q, a.to(dtype), b.to(dtype)))
    near(read(file, base)[Q], (b.to(dtype).double() @ a.to(dtype).double()))
    near(read(file, base)[Q], (b @ a).double(), most)
    assert lora_audit.audit(file, base).good
    pipe, before = put(file)
    near(moved(pipe.transformer, before)[Q], (b @ a).double(), most)


ONES = torch.ones
ODD = {
    "int8": ({"A": ONES(4, 128, dtype=torch.int8)}, "int8.*量化"),
    "bool": ({"B": ONES(128, 4, dtype=torch.bool)}, "bool"),
    "scalar": ({"A": torch.tensor(1.0)}, "一个数，不是矩阵"),
    "vector": ({"A": ONES(128)}, "128，不是矩阵"),
    "3-d": ({"A": ONES(4, 128, 3)}, "4x128x3，不是矩阵"),
    "rank 0": ({"A": ONES(0, 128), "B": ONES(128, 0)}, "不是矩阵"),
    "ranks": ({"A": ONES(8, 128)}, "A 的秩是 8，B 的是 4"),
    "alphas": ({"alpha": ONES(3)}, "alpha 有 3 个数"),
    "half": ({"B": None}, "只有一半"),
    "infinite": ({"A": torch.full((4, 128), torch.inf)}, "无穷大"),
    "other shape": ({"A": ONES(4, 64)}, "对不上"),
    "magnitude": ({"lora_magnitude_vector": ONES(3)}, "长度有 3 个"),
    "columns": ({"dora_scale": ONES(1, 128)}, "按列"),
}


@pytest.mark.parametrize(("change", "said"), ODD.values(), ids=ODD)
def test_odd_tensors_are_named(base, tmp_path, change, said):
    parts = {"A": ONES(4, 128), "B": ONES(128, 4)} | change
    spelled = {"A": "lora_A.weight", "B": "lora_B.weight"}
    tensors = {
        f"transformer.{Q}.{spelled.get(key, key)}": value
        for key, value in parts.items()
        if value is not None
    }
    with pytest.raises(WeightsError, match=said):
        lora.check_fits(write(tmp_path, tensors), base, Flux.original)


def test_a_convolution_of_one_point_is_a_matrix(base, tmp_path):
    a, b = pair(base, Q)
    file = write(tmp_path, named(Q, a[..., None, None], b[..., None, None]))
    near(read(file, base)[Q], (b @ a).double())


DOTTED = ["", "transformer.", "diffusion_model.", "model.diffusion_model.", "pipe.dit.",
          "base_model.model.", "base_model.model.transformer.", "unet."]  # fmt: skip
SPELLED = [("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up"),
           ("lora_A.default", "lora_B.default"), ("lora_A.我的-1", "lora_B.我的-1")]  # fmt: skip


@pytest.mark.parametrize("down", SPELLED, ids=str)
def test_every_prefix_and_infix(base, tmp_path, down):
    a, b = pair(base, Q)
    flat = Q.replace(".", "_")
    places = [(Q, prefix) for prefix in DOTTED]
    places += [(flat, prefix) for prefix in ("lora_unet_", "lora_transformer_", "lycoris_")]
    for path, prefix in places:
        got = read(write(tmp_path, named(path, a, b, prefix, *down)), base)
        near(got[Q], (b @ a).double())
    assert lora_audit.audit(tmp_path / "f.safetensors", base).form == "LoRA（LyCORIS）"


def test_the_last_modulation_is_swapped_like_diffusers_does_both_ways(base, tmp_path):
    a, b = pair(base, NORM)
    stem = "lora_unet_final_layer_adaLN_modulation_1"
    got = read(write(tmp_path, named(stem, a, b, "", "lora_down", "lora_up")), base)
    near(got[NORM], (swap_scale_shift(b) @ a).double())
    places = lora_fused.slots(Flux.original, base)
    ours = {NORM: (a, b)}
    back = lora_fused.join(ours, places)
    a, b = lora_fused.split(*back["final_layer.adaLN_modulation.1"], places[
        "final_layer.adaLN_modulation.1"])[NORM]  # fmt: skip
    assert torch.equal(b, ours[NORM][1]) and torch.equal(a, ours[NORM][0])


def test_xlabs_means_what_diffusers_reads(base, tmp_path):
    g = torch.Generator().manual_seed(3)
    wide = {"qkv_lora1": (384, 128), "qkv_lora2": (384, 128), "proj_lora1": (128, 128),
            "proj_lora2": (128, 128)}  # fmt: skip
    tensors = {}
    for name, (out, into) in wide.items():
        stem = f"double_blocks.0.processor.{name}"
        tensors[f"{stem}.down.weight"] = torch.randn(2, into, generator=g)
        tensors[f"{stem}.up.weight"] = torch.randn(out, 2, generator=g)
    for name, (out, into) in {"qkv_lora": (384, 128), "proj_lora": (128, 640)}.items():
        stem = f"single_blocks.1.processor.{name}"
        tensors[f"{stem}.down.weight"] = torch.randn(2, into, generator=g)
        tensors[f"{stem}.up.weight"] = torch.randn(out, 2, generator=g)
    stock = _convert_xlabs_flux_lora_to_diffusers(dict(tensors))
    for prefix in ("", "diffusion_model."):
        got = read(write(tmp_path, {prefix + k: v for k, v in tensors.items()}), base)
        assert {f"transformer.{path}.lora_A.weight" for path in got} <= stock.keys()
        assert len(got) == len(stock) / 2 == 12
        for path, change in got.items():
            stem = f"transformer.{path}"
            want = stock[f"{stem}.lora_B.weight"] @ stock[f"{stem}.lora_A.weight"]
            near(change, want.double())


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "lora_unet_"])
@pytest.mark.parametrize("name", ["flux", "flux2-klein", "z-image"])
def test_fused_layers_of_every_family_at_the_real_width(tmp_path, name, prefix):
    """ai-toolkit、musubi、sd-scripts、ComfyUI 自己的名字：ΔW 按行切开，经随机的一列比。"""
    family = get(name)
    config = dict(family.full_size["transformer"])
    with torch.device("meta"):
        shell = getattr(diffusers, config.pop("_class_name"))(**config | SMALL[name])
    places = lora_fused.slots(family.original, shell)
    assert len(places) >= len(family.original)
    tensors, want, g = {}, {}, torch.Generator().manual_seed(0)
    for theirs, parts in places.items():
        paths = list(dict.fromkeys(path for path, _ in parts))
        a = torch.randn(2, shell.get_submodule(paths[0]).in_features, generator=g)
        b = torch.randn(sum(wide for _, wide in parts), 2, generator=g)
        x = torch.randn(a.shape[1], 1, generator=g)
        y = swap_scale_shift(b @ a @ x) if paths == [NORM] else b @ a @ x
        rows = y.split([wide for _, wide in parts]) if len(paths) > 1 else [y]
        want |= {path: (x, row) for path, row in zip(paths, rows, strict=True)}
        flat = theirs.replace(".", "_") if prefix.endswith("_") else theirs
        tensors |= named(flat, a, b, prefix)
    found = foreign.meaning(write(tmp_path, tensors), linear(shell), places)
    assert not found.unknown and found.layers.keys() == want.keys()
    for path, (x, row) in want.items():
        a, b = found.layers[path]
        near(b @ (a @ x), row, 1e-5)
    assert "原作者" in found.form


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


@pytest.mark.parametrize("spelling", ["lora_magnitude_vector", "lora_magnitude_vector.default",
                                      "lora_magnitude_vector.weight",
                                      "lora_magnitude_vector.default.weight"])  # fmt: skip
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


# ---- 不是 Transformer 的部分，与读不了的


def test_the_text_encoders_part_is_left_out_and_said(base, tmp_path):
    a, b = pair(base, Q)
    others = ["lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_te3_encoder_block_0",
              "text_encoder.layers.0.q_proj", "text_encoder_2.block.0"]  # fmt: skip
    tensors = named(Q, a, b)
    for stem in others:
        tensors |= named(stem, ONES(1, 2), ONES(2, 1), "", "lora_down", "lora_up")
        tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    file = write(tmp_path, tensors)
    result = lora_audit.audit(file, base)
    assert result.good and len(result.left) == 12 and "用不上" in result.text()
    with pytest.warns(LorakitWarning, match="12 个张量属于文本编码器"):
        lora_audit.refuse(result, file)
    with pytest.warns(LorakitWarning, match="12 个张量"):
        pipe, before = put(file)
    assert moved(pipe.transformer, before).keys() == {Q}
    only = write(tmp_path, {k: v for k, v in tensors.items() if Q not in k})
    with pytest.raises(WeightsError, match="只练了文本编码器") as said:
        lora.check_fits(only, base)
    assert "--model" not in str(said.value)


PAIR = {
    f"transformer.{Q}.lora_A.weight": ONES(1, 128),
    f"transformer.{Q}.lora_B.weight": ONES(128, 1),
}
KINDS = {
    "LoHa": {f"lycoris_x.hada_{w}": ONES(2, 2) for w in ("w1_a", "w1_b", "w2_a", "w2_b")},
    "OFT": {"lycoris_x.oft_blocks": ONES(2, 2, 2)},
    "GLoRA": {"lycoris_x.a1.weight": ONES(2, 2)},
    "(IA)³": {"base_model.model.x.ia3_l": ONES(2, 1)},
    "权重的差": {**PAIR, "diffusion_model.norm.diff": ONES(2)},
    "带偏置": {**PAIR, f"transformer.{Q}.lora_B.bias": ONES(2)},
    "量化过的": {**PAIR, f"transformer.{Q}.absmax": ONES(2)},
    "ControlNet": {"controlnet_blocks.0.weight": ONES(2, 2)},
    "IP-Adapter": {"double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": ONES(2, 2)},
    "文本反演": {"emb_params": ONES(2, 4)},
    "VAE": {"decoder.conv_in.weight": ONES(2, 2, 3, 3)},
    "文本编码器": {"text_model.embeddings.weight": ONES(2, 2)},
    "整个模型": {"transformer_blocks.0.attn.to_q.weight": ONES(2, 2)},
    "Tucker": {**PAIR, f"transformer.{Q}.lora_mid.weight": ONES(2, 2, 3, 3)},
    "DoRA 的 LoKr": {f"x.{Q}.lokr_w1": ONES(2, 2), f"x.{Q}.lokr_w2": ONES(64, 64),
                    f"x.{Q}.dora_scale": ONES(128, 1)},
    "两份": {**PAIR, f"{Q}.lora_A.weight": ONES(1, 128)},
}  # fmt: skip


@pytest.mark.parametrize(("kind", "tensors"), KINDS.items(), ids=KINDS)
def test_what_cannot_be_read_is_named(base, tmp_path, kind, tensors):
    file = write(tmp_path, {key.replace("x.tr", "tr", 1): v for key, v in tensors.items()})
    with pytest.raises(WeightsError) as said:
        lora.check_fits(file, base, Flux.original)
    assert kind in str(said.value), said.value
    assert "lorakit" not in str(said.value)  # 不叫人去跑一条一定失败的命令


@pytest.mark.parametrize(("start", "said"), [
    (b"PK\x03\x04" + b"\0" * 80, "pickle"), (b"\x80\x02}", "pickle"), (b"GGUF\x03", "GGUF"),
    (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), (b"<!DOCTYPE html>", "网页"),
    (b"", "打不开"),
])  # fmt: skip
def test_what_is_no_safetensors_is_named(base, tmp_path, start, said):
    file = tmp_path / "x.safetensors"
    file.write_bytes(start)
    with pytest.raises(WeightsError, match=said):
        lora.check_fits(file, base)


@pytest.mark.parametrize("card", ["{bad", "[]", '"x"', "[" * 100_000, "3", '{"base": [1]}'])
def test_a_broken_card_is_no_card(base, tmp_path, card, recwarn):
    file = write(tmp_path, PAIR, lorakit=card)
    assert lora.read(file)[1] == {} and lora_audit.audit(file, base).good
    nothing = [w for w in recwarn if "卡片坏了" in str(w.message)]
    assert bool(nothing) == (card != '{"base": [1]}')
