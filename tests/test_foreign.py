"""别家的 LoRA 文件：意思与训练它的人想的一样；参照是 PEFT、diffusers 自己读的，或手算的。"""

import json
import time

import diffusers
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_xlabs_flux_lora_to_diffusers,
    swap_scale_shift,
)
from foreign_tools import (
    NORM,
    OUT,
    Q,
    flux,
    linear,
    meaning,
    moved,
    named,
    near,
    pair,
    put,
    read,
    write,
)
from safetensors.torch import save_file

from lorakit import lora
from lorakit.errors import WeightsError
from lorakit.families.flux import Flux
from lorakit.families.registry import get
from lorakit.lora import audit as lora_audit
from lorakit.lora import foreign, strength
from lorakit.lora import fused as lora_fused


@pytest.fixture(scope="module")
def base():
    """不改动它：要挂东西的测试自己造一个。"""
    return flux()


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
    "columns": ({"dora_scale": ONES(1, 64)}, "长度有 64 个，应该是 128 个"),
    "lengths": ({"dora_scale": ONES(128, 1), "lora_magnitude_vector": ONES(128)}, "两种写法"),
    "overflow": ({"B": ONES(128, 4) * 1e4, "alpha": torch.tensor(3e38)}, "超出"),
    "two factors": (
        {
            "A": None,
            "B": None,
            "lokr_w1": ONES(4, 4),
            "lokr_w2": ONES(32, 32),
            "lokr_w2_a": ONES(32, 2),
            "lokr_w2_b": ONES(2, 32),
        },
        "w2 有两份",
    ),
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


def test_alphas_of_every_kind(base, tmp_path):
    a, b = pair(base, Q)
    kinds = [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.int8,
             torch.int64, torch.uint16]  # fmt: skip
    for alpha in (*(torch.tensor(2).to(kind) for kind in kinds), torch.tensor([[2.0]])):
        got = read(write(tmp_path, named(Q, a, b) | {f"transformer.{Q}.alpha": alpha}), base)
        near(got[Q], 0.5 * (b @ a).double())
    for alpha in (0.0, -8.0):
        extra = {f"transformer.{Q}.alpha": torch.tensor(alpha)}
        got = read(write(tmp_path, named(Q, a, b) | extra), base)
        near(got[Q], alpha / 4 * (b @ a).double())


BARE = {
    "no .weight": (f"{Q}.lora_A", f"{Q}.lora_B"),
    "_lora": (f"transformer.{Q}_lora.down.weight", f"transformer.{Q}_lora.up.weight"),
    "linear_layer": (f"{Q}.lora_linear_layer.down.weight", f"{Q}.lora_linear_layer.up.weight"),
    "dots": (f"diffusion_model.{Q.replace('to_q', 'to.q')}.lora.down.weight",
             f"diffusion_model.{Q.replace('to_q', 'to.q')}.lora.up.weight"),
    "flat": (f"transformer.{Q.replace('.', '_')}.lora_A.weight",
             f"transformer.{Q.replace('.', '_')}.lora_B.weight"),
    "compiled": (f"transformer._orig_mod.{Q}.lora_A.weight",
                 f"transformer._orig_mod.{Q}.lora_B.weight"),
    "parallel": (f"module.base_model.model.{Q}.lora_A.weight",
                 f"module.base_model.model.{Q}.lora_B.weight"),
}  # fmt: skip


@pytest.mark.parametrize("names", BARE.values(), ids=BARE)
def test_rarer_spellings(base, tmp_path, names):
    a, b = pair(base, Q)
    file = write(tmp_path, dict(zip(names, (a, b), strict=True)))
    near(read(file, base)[Q], (b @ a).double())


@pytest.mark.parametrize("name", ["flux", "flux2-klein", "z-image", "qwen-image", "kandinsky5"])
def test_no_two_layers_share_a_flat_name(name):
    family = get(name)
    config = dict(family.full_size["transformer"])
    with torch.device("meta"):
        shell = getattr(diffusers, config.pop("_class_name"))(**config | SMALL.get(name, {}))
    names = [*linear(shell), *lora_fused.slots(family.original, shell)]
    assert len({name.replace(".", "_") for name in names}) == len(names)


def test_several_adapters_are_never_mixed(base, tmp_path):
    (a, b), (c, d) = pair(base, Q), pair(base, OUT)
    apart = named(Q, a, b, "", "lora_A.one", "lora_B.one") | named(
        OUT, c, d, "", "lora_A.two", "lora_B.two"
    )
    crossed = {f"{Q}.lora_A.one.weight": a, f"{Q}.lora_B.two.weight": b}
    for tensors in (apart, crossed):
        with pytest.raises(WeightsError, match="不止一个适配器（one、two）"):
            meaning(write(tmp_path, tensors), base)


def test_a_layer_said_fused_and_split(base, tmp_path):
    """有的工具两种都存：一样就只算一次，不一样就说出来，不悄悄丢掉一份。"""
    fused = "double_blocks.0.img_attn.qkv"
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 128, generator=g), torch.randn(384, 2, generator=g)
    whole = named(fused, a, b, "diffusion_model.")
    got = read(write(tmp_path, whole | named(Q, a, b[:128], "diffusion_model.")), base)
    near(got[Q], (b[:128] @ a).double())
    assert len(got) == 3
    for other in (named(Q, a, b[128:256]), named("single_blocks.0.linear1_qkv", a, -b, "") | named(
            "single_blocks.0.linear1", a, torch.cat([b, torch.ones(512, 2)]), "")):  # fmt: skip
        with pytest.raises(WeightsError, match="有两份"):
            meaning(write(tmp_path, whole | other), base)


@pytest.mark.parametrize("kind", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_adapters_of_a_changed_base_are_refused(base, tmp_path, kind):
    told = ADAPTER | {"init_lora_weights": kind}
    file = write(tmp_path, named(Q, *pair(base, Q)), lora_adapter_metadata=told)
    with pytest.raises(WeightsError, match="底模也改过"):
        meaning(file, base)
    told = ADAPTER | {"init_lora_weights": "gaussian"}
    read(write(tmp_path, named(Q, *pair(base, Q)), lora_adapter_metadata=told), base)


def test_a_pattern_for_every_layer_is_quick_and_the_first_wins():
    """diffusers 一层写一条；re 只记得住 512 条，逐条编译要一分钟。"""
    layers = [f"blocks.{i}.attn.to_{x}" for i in range(300) for x in "qkv"]
    told = {f"^{layer}": 1.0 + i for i, layer in enumerate(layers)}
    rule = strength.Rule(alpha=1.0, alphas=told)
    start = time.process_time()
    assert [rule.scale(layer, 1) for layer in layers] == list(told.values())
    assert time.process_time() - start < 5
    rule = strength.Rule(alpha=9.0, alphas={"^to_q": 1, "0.attn.to_q": 2, "to_[qk]": 3, "to_q": 4})
    said = {"blocks.0.attn.to_q": 2, "blocks.1.attn.to_q": 3, "x_to_q": 9, "to_q": 1, "to_v": 9}
    assert {layer: rule.scale(layer, 1) for layer in said} == said


def test_patterns_with_classes_are_read(base, tmp_path):
    told = ADAPTER | {"alpha_pattern": {r"transformer_blocks\.[0-9]+\.attn\.to_[qkv]": 2}}
    a, b = pair(base, Q)
    file = write(tmp_path, named(Q, a, b), lora_adapter_metadata=told)
    near(read(file, base)[Q], 0.5 * (b @ a).double())


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
