"""别家 LoRA 文件的邻居：少见的强度写法、存了两遍的层、给别的模型的文件、随用随搬的底模。"""

import json
import re
from types import SimpleNamespace

import diffusers
import pytest
import torch
from foreign_tools import OUT, Q, flux, linear, meaning, named, near, pair, read, write
from peft import LoraConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from torch import nn

from lorakit import lora
from lorakit.errors import LorakitWarning, WeightsError
from lorakit.families.flux import Flux
from lorakit.families.registry import REGISTRY, get
from lorakit.lora import algebra, convert, names
from lorakit.lora import audit as lora_audit
from lorakit.memory import streaming
from lorakit.memory.loading import blocks
from lorakit.memory.quantize import nf4_class

STEM = f"lycoris_{Q.replace('.', '_')}"


@pytest.fixture(scope="module")
def base():
    """不改动它：要挂东西的测试自己造一个。"""
    return flux()


ADAPTER = {"r": 4, "lora_alpha": 16}
SCALES = {  # 文件头 -> 秩 4 的强度、听谁的
    "lora_alpha": ({"lora_alpha": "16", "lora_rank": "4"}, 4, "文件头的 lora_alpha"),
    "peft": ({"lora_alpha": "16", "r": "4", "use_rslora": "True"}, 8, "文件头的 lora_alpha"),
    "network": ({"network_alpha": "2.0", "network_dim": "4"}, 0.5, "文件头的 network_alpha"),
    "before ss": ({"lora_alpha": "2", "ss_network_alpha": "4", "ss_network_dim": "4"}, 0.5,
                  "文件头的 lora_alpha"),
    "after the adapter": ({"lora_alpha": "2", "lora_adapter_metadata": ADAPTER}, 4,
                          "文件头的 lora_adapter_metadata"),
    "folded": ({"lora_alpha": "2", "lorakit": {"alpha": "folded"}}, 1, "已经乘进权重"),
    "alpha and rank": ({"alpha": "16", "rank": "4"}, 4, "文件头的 alpha"),
    "alpha of what": ({"alpha": "0.75"}, 1, "没有写强度，照 1"),
    "not a number": ({"lora_alpha": "nan", "network_alpha": "inf"}, 1, "没有写强度，照 1"),
    "one pattern a layer": (
        {"lora_adapter_metadata": ADAPTER | {"alpha_pattern": {
            re.escape(f"transformer_blocks.{i}.attn.to_q") + "$" * (i % 2): 2 for i in range(99)
        }}}, 0.5, "文件头的 lora_adapter_metadata",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("header", "scale", "said"), SCALES.values(), ids=SCALES)
def test_strength_wherever_it_is_written(base, tmp_path, header, scale, said):
    a, b = pair(base, Q)
    file = write(tmp_path, named(Q, a, b), **header)
    near(read(file, base)[Q], scale * (b @ a).double())
    assert lora_audit.audit(file, base).strength == f"{scale:g}（{said}）"
    both = write(tmp_path, named(Q, a, b) | {f"transformer.{Q}.alpha": torch.tensor(1)}, **header)
    near(read(both, base)[Q], 0.25 * (b @ a).double())  # 张量旁边的 alpha 在先


def test_a_whole_lokr_of_lycoris_has_no_strength(base, tmp_path):
    """LyCORIS 的两个因子都是整个的，就不看 alpha；它常写 dim=100000 来要整个的。PEFT 的总是乘。"""
    w1, w2 = torch.randn(8, 8), torch.randn(16, 16)
    parts = {f"{STEM}.lokr_w1": w1, f"{STEM}.lokr_w2": w2}
    want = torch.kron(w1, w2).double()
    for told in ({"ss_network_alpha": "1", "ss_network_dim": "100000"}, {}):
        near(read(write(tmp_path, parts, **told), base)[Q], want)
    half = ADAPTER | {"lora_alpha": 2}
    near(read(write(tmp_path, parts, lora_adapter_metadata=half), base)[Q], 0.5 * want)
    left, right = torch.randn(16, 4), torch.randn(4, 16)
    parts = {f"{STEM}.lokr_w1": w1, f"{STEM}.lokr_w2_a": left, f"{STEM}.lokr_w2_b": right}
    told = {"ss_network_alpha": "2", "ss_network_dim": "4"}
    want = 0.5 * torch.kron(w1.double(), left.double() @ right.double())
    near(read(write(tmp_path, parts, **told), base)[Q], want)


def test_a_layer_stored_twice_counts_once(base, tmp_path):
    """两个前缀各存一份，给两个软件读；不一样的就不知道用哪一份。"""
    a, b = pair(base, Q)
    flat = named(f"lora_unet_{Q.replace('.', '_')}", a, b, "", "lora_down", "lora_up")
    near(read(write(tmp_path, named(Q, a, b) | flat), base)[Q], (b @ a).double())
    wrong = named(Q, a, b) | named(Q, a, b * 2, "diffusion_model.")
    with pytest.raises(WeightsError, match=r"有两份（说的不一样）"):
        meaning(write(tmp_path, wrong), base)


def test_numbers_beside_the_lora_do_not_matter(base, tmp_path):
    a, b = pair(base, Q)
    ids = {"text_encoder.text_model.embeddings.position_ids": torch.arange(4)}
    file = write(tmp_path, named(Q, a, b) | ids)
    assert lora_audit.audit(file, base).good and len(meaning(file, base).left) == 1
    with pytest.raises(WeightsError, match=r"to_q\.rank：它不是 LoRA"):
        meaning(write(tmp_path, named(Q, a, b) | {f"{Q}.rank": torch.tensor(4)}), base)
    packed = torch.zeros(4, 64, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    with pytest.raises(WeightsError, match="float4"):
        meaning(write(tmp_path, named(Q, packed, b)), base)


def test_half_a_dora_is_said_in_the_files_own_words(base, tmp_path):
    tensors = {f"transformer.{Q}.lora_magnitude_vector": torch.ones(128)}
    with pytest.raises(WeightsError, match=r"to_q 只有一半（lora_magnitude_vector）"):
        meaning(write(tmp_path, tensors), base)


def test_every_other_method_of_peft_is_named(base, tmp_path):
    known = {"IA3": "(IA)³", "BOFT": "OFT", "PVERA": "VeRA"}
    others = {k.value: v for k, v in PEFT_TYPE_TO_PREFIX_MAPPING.items() if v not in names.OWN}
    assert len(others) > 30
    for kind, prefix in others.items():
        odd = {f"base_model.model.{Q}.{prefix}x": torch.ones(2, 2)}
        for tensors in (odd, odd | named(Q, *pair(base, Q))):
            with pytest.raises(WeightsError) as said:
                meaning(write(tmp_path, tensors), base)
            assert known.get(kind, kind).lower() in str(said.value).lower(), said.value


OURS = {"qwen-image": "Qwen-Image", "qwen-image-2.1": "Qwen-Image 2.1", "flux": "FLUX.1",
        "flux2-klein": "FLUX.2", "flux2-dev": "FLUX.2", "z-image": "Z-Image",
        "kandinsky5": "Kandinsky 5"}  # fmt: skip
THEIRS = {
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k": "SD 1.5 或 SDXL",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "SD 1.5 或 SDXL",
    "lora_unet_joint_blocks_3_x_block_attn_qkv": "SD 3",
    "diffusion_model.blocks.0.self_attn.q": "Wan", "lora_unet_blocks_0_cross_attn_k": "Wan",
    "diffusion_model.double_blocks.0.img_attn.qkv": "FLUX.1 或 FLUX.2",
    "transformer.transformer_blocks.0.attn.to_q": None, "my.own.layer": None,
}  # fmt: skip


@pytest.mark.parametrize("name", REGISTRY)
def test_a_file_for_another_model_says_which(tmp_path, name):
    """每个家族的每个目标预设，三种写法，放到别的底模上都说得出它是给谁的。"""
    family = get(name)
    config = dict(family.full_size["transformer"])
    with torch.device("meta"):
        shell = getattr(diffusers, config.pop("_class_name"))(**config)
    spellings = convert.Names.of(family, shell)
    said = next(OURS[cls.name] for cls in family.__mro__ if getattr(cls, "name", "") in OURS)
    for wanted in family.targets.values():
        layers = {
            path: (torch.zeros(1, m.in_features), torch.zeros(m.out_features, 1))
            for path, m in shell.named_modules()
            if isinstance(m, nn.Linear) and re.fullmatch(wanted, path)
        }
        for form in convert.FORMATS:
            found = names.model_of(convert.spell(layers, form, spellings))
            exact = form != "kohya" and any(".attn." not in path for path in layers)
            assert found == said or (said in found.split(" 或 ") and not exact), (form, found)


def test_other_peoples_models_are_named_too(base, tmp_path):
    for stem, model in THEIRS.items():
        tensors = {f"{stem}.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
        assert names.model_of(tensors) == model, stem
    file = write(tmp_path, {f"diffusion_model.blocks.0.self_attn.q.lora_{side}.weight":
                            torch.ones(2, 2) for side in "AB"})  # fmt: skip
    result = lora_audit.audit(file, base)
    assert "像是给 Wan 练的" in result.text()
    for refused in (lambda: lora_audit.refuse(result, file), lambda: lora.check_fits(file, base)):
        with pytest.raises(WeightsError, match="像是给 Wan 练的"):
            refused()


def test_a_folder_names_only_a_file_that_can_be_used(base, tmp_path):
    """“要用它就写它的路径”：写了要真的能用。"""
    write(tmp_path, {"transformer_blocks.0.attn.to_q.weight": torch.ones(2, 2)})
    part = tmp_path / "a-00001-of-00002.safetensors"
    (tmp_path / "f.safetensors").rename(tmp_path / "b.safetensors")
    write(tmp_path, named(Q, *pair(base, Q))).rename(part)
    (tmp_path / "c.safetensors").write_bytes(b"<html>")
    with pytest.raises(WeightsError, match=r"结果文件夹。$"):
        lora.find(tmp_path)
    write(tmp_path, named(Q, *pair(base, Q))).rename(tmp_path / "我的.safetensors")
    with pytest.raises(WeightsError, match=r"里面有 我的\.safetensors：要用它就写它的路径"):
        lora.find(tmp_path)
    assert lora.check_fits(tmp_path / "我的.safetensors", base) == {}


@pytest.mark.parametrize("form", convert.FORMATS)
def test_layers_that_change_nothing_are_written(base, tmp_path, form):
    """刚挂上、alpha 是 0 的层：ΔW 是零；并进 qkv 再拆开会多出两层零，不是出错。"""
    layers = {Q: (pair(base, Q)[0], torch.zeros(128, 4)), OUT: pair(base, OUT)}
    given = convert.Names.of(Flux, base)
    file, _ = convert.write(layers, form, tmp_path / form, {}, given)
    again, unknown = convert.read(file, linear(base), given.places)
    assert not unknown and not any(algebra.delta(again[p]).any() for p in again if p != OUT)
    near(algebra.delta(again[OUT]), algebra.delta(layers[OUT]))


def effect(model, path):
    """这一层现在多出来的：单位矩阵送进去，减去底模的；随用随搬的先等它的块到。"""
    block = next(block for name, block in blocks(model).items() if path.startswith(f"{name}."))
    for hook in block._forward_pre_hooks.values():
        hook(block, ())
    layer = model.get_submodule(path)
    with torch.no_grad():
        x = torch.eye(layer.in_features)
        return (layer(x) - layer.base_layer(x)).T.double()


@pytest.mark.parametrize("bits", ["none", "nf4"])
@pytest.mark.parametrize("kind", ["dora_scale", "lora_magnitude_vector", "columns"])
def test_dora_on_a_base_that_is_streamed(tmp_path, kind, bits):
    """随用随搬的块，权重一开始是占位的 NaN：长度的比等它到了再算；解码 4 位的权重不能换掉参数。"""
    if bits == "nf4":
        pytest.importorskip("bitsandbytes", reason="nf4 要用 bitsandbytes，没有装")
    between = OUT.replace(".1.", ".0.")  # 三块轮流用两个格子：第二圈每块都换了格子
    tensors, models = {}, []
    for streamed in (False, True):
        model = flux()
        for path in (Q, between, OUT):
            layer = model.get_submodule(path)
            columns = (1, layer.in_features)
            wide = columns if kind == "columns" else (layer.out_features, 1)
            length = torch.rand(wide, generator=torch.Generator().manual_seed(1)) + 0.5
            key = "dora_scale" if kind == "columns" else kind
            tensors |= named(path, *pair(model, path)) | {f"transformer.{path}.{key}": length}
            if bits == "nf4":
                made = nf4_class()(layer.weight.data, layer.bias, "nf4")
                model.set_submodule(path, made)
        if streamed:
            streaming.stream(model, torch.device("cpu"))
        file = write(tmp_path, tensors)
        lora.put_on(SimpleNamespace(transformer=model), file, "mine", Flux.original)
        models.append(model)
    for path in (Q, between, OUT) * 2:
        plain, moving = (effect(model, path) for model in models)
        near(moving, plain)
        assert plain.norm() > 1


def test_the_card_is_json_of_simple_values(base, tmp_path):
    file = write(tmp_path, named(Q, *pair(base, Q)), lorakit={"base": "x", "rank": 4, "odd": [1]})
    assert lora.read(file)[1] == {"base": "x", "rank": "4"}
    assert json.loads(json.dumps(lora.read(file)[1]))


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_what_is_said_of_a_changed_base_can_be_done(base, tmp_path, kind):
    """照那句话做：减掉开头的那一份，得到的是普通的 LoRA；或合并进底模，整个存下来。"""
    before = {path: base.get_submodule(path).weight.detach().double() for path in (Q, OUT)}
    peft = get_peft_model(flux(), LoraConfig(r=4, target_modules=[Q, OUT], init_lora_weights=kind))
    peft.peft_config["default"].init_lora_weights = True
    peft.save_pretrained(tmp_path / "start")
    peft.peft_config["default"].init_lora_weights = kind
    with torch.no_grad():
        for name, value in peft.named_parameters():
            value.add_(torch.randn_like(value) * 0.05 * ("lora_" in name))
    peft.save_pretrained(tmp_path / "raw")
    with pytest.raises(WeightsError, match=r"path_initial_model_for.*merge_and_unload") as told:
        meaning(tmp_path / "raw/adapter_model.safetensors", base)
    start = {"path_initial_model_for_weight_conversion": str(tmp_path / "start")}
    assert next(iter(start)) in str(told.value)
    peft.save_pretrained(tmp_path / "plain", **start)
    peft.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = type(base).from_pretrained(tmp_path / "merged")
    got = read(tmp_path / "plain/adapter_model.safetensors", base)
    for path, weight in before.items():
        near(got[path], merged.get_submodule(path).weight.detach().double() - weight, 1e-5)


VARIANTS = {"use_qalora": True, "alora_invocation_tokens": [1], "use_bdlora": {"r": 1},
            "kasa_config": {"x": 1}, "layer_replication": [[0, 2]]}  # fmt: skip


@pytest.mark.parametrize("key", VARIANTS)
def test_other_kinds_with_the_same_tensors_are_named(base, tmp_path, key):
    """PEFT 的几种：张量和普通 LoRA 一样，算法不同；关着的不算。"""
    tensors = named(Q, *pair(base, Q))
    for value in (VARIANTS[key], None, False):
        file = write(tmp_path, tensors, lora_adapter_metadata=ADAPTER | {key: value})
        if value:
            with pytest.raises(WeightsError, match="不是普通的 LoRA，这里读不了"):
                meaning(file, base)
        else:
            read(file, base)


def test_a_dora_without_its_lengths_is_not_a_plain_lora(base, tmp_path):
    tensors = named(Q, *pair(base, Q))
    told = {"lora_adapter_metadata": ADAPTER | {"use_dora": True}}
    with pytest.raises(WeightsError, match=r"use_dora.*没有每行的长度"):
        meaning(write(tmp_path, tensors, **told), base)
    whole = tensors | {f"transformer.{Q}.lora_magnitude_vector": torch.ones(128)}
    assert meaning(write(tmp_path, whole, **told), base).layers
    with pytest.raises(WeightsError, match="没有每行的长度"):
        meaning(write(tmp_path, whole | named(OUT, *pair(base, OUT)), **told), base)


def test_alpha_in_the_header_without_a_rank_is_over_the_tensors(base, tmp_path):
    a, b = pair(base, Q)
    file = write(tmp_path, named(Q, a, b), ss_network_alpha="2")
    near(read(file, base)[Q], 0.5 * (b @ a).double())


@pytest.mark.parametrize("prefix", ["pipe.transformer.", "net.", "pipe.", "denoiser.module."])
def test_more_shells_around_the_same_names(base, tmp_path, prefix):
    a, b = pair(base, Q)
    near(read(write(tmp_path, named(Q, a, b, prefix)), base)[Q], (b @ a).double())


SHELLS = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_around_each_block_are_taken_off(base, tmp_path, shell):
    a, b = pair(base, Q)
    inside = Q.replace("blocks.0.", f"blocks.0.{shell}.") if shell else Q
    for path in (inside, inside.replace(".attn.", f".attn.{shell}.")):
        near(read(write(tmp_path, named(path, a, b)), base)[Q], (b @ a).double())


def test_names_in_lower_case_are_not_a_whole_model(base, tmp_path):
    tensors = {f"{Q}.lora_a": torch.ones(128, 4), f"{Q}.lora_b": torch.ones(4, 128)}
    with pytest.raises(WeightsError, match="MLX 的 LoRA"):
        meaning(write(tmp_path, tensors), base)


def test_a_file_that_changes_nothing_says_so(base, tmp_path):
    a, b = pair(base, Q)
    for tensors in (
        named(Q, a, b * 0),
        named(Q, a, b) | {f"{Q}.alpha": torch.tensor(0.0)},
        {f"{STEM}.lokr_w1": torch.ones(8, 8), f"{STEM}.lokr_w2": torch.zeros(16, 16)},
    ):
        file = write(tmp_path, tensors)
        result = lora_audit.audit(file, base)
        with pytest.warns(LorakitWarning, match="什么也没改"):
            lora_audit.refuse(result, file)
        with pytest.warns(LorakitWarning, match="什么也没改"):
            lora.put_on(SimpleNamespace(transformer=flux()), file, "mine", Flux.original)
