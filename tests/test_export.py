"""写出去的文件：DoRA 照 ComfyUI 的算法还原，舍入说真话，文件头没有路径，工作流配对底模。"""

import json
import re

import pytest
import random_flux2_klein
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel, ZImagePipeline
from diffusers import ZImageTransformer2DModel as ZImageModel
from safetensors.torch import load_file, save_file
from torch import nn

from lorakit import lora
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import LorakitError, WeightsError
from lorakit.families import open_family
from lorakit.families.flux2_klein import Flux2Klein
from lorakit.families.registry import REGISTRY, get, workflow_of
from lorakit.families.z_image import ZImage
from lorakit.lora import comfyui, convert, metadata
from lorakit.lora.dora import Dora
from lorakit.train import Trainer

KLEIN = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "in_channels": 16,
         "num_attention_heads": 2, "joint_attention_dim": 24, "axes_dims_rope": (4, 4, 4, 4),
         "guidance_embeds": False}  # fmt: skip
Z_IMAGE = {"n_layers": 1, "n_refiner_layers": 1, "dim": 32, "n_heads": 2, "n_kv_heads": 2,
           "cap_feat_dim": 24, "axes_dims": [4, 6, 6], "axes_lens": [64, 64, 64]}  # fmt: skip
SECRET = "/home/张三/models/Qwen-Image"


def shell_of(cls, config):
    with torch.device("meta"):
        return cls(**config)


def linear(shell):
    return {name: m for name, m in shell.named_modules() if isinstance(m, nn.Linear)}


def random_lora(shell, keep=lambda path: True, rank=3):
    g = torch.Generator().manual_seed(0)
    return {
        path: (
            torch.randn(rank, layer.in_features, generator=g),
            torch.randn(layer.out_features, rank, generator=g),
        )
        for path, layer in linear(shell).items()
        if keep(path)
    }


def near(one, other, most=1e-6):
    return float((one - other).norm()) <= most * float(other.norm())


@pytest.mark.parametrize(
    ("family", "cls", "config", "pipe"),
    [
        (Flux2Klein, Flux2Transformer2DModel, KLEIN, Flux2KleinPipeline),
        (ZImage, ZImageModel, Z_IMAGE, ZImagePipeline),
    ],
    ids=["flux2-klein", "z-image"],
)
@pytest.mark.parametrize("form", convert.FORMATS)
def test_stock_diffusers_reads_what_we_say_it_reads(family, cls, config, pipe, form, tmp_path):
    shell = shell_of(cls, config)
    names = convert.Names.of(family, shell)
    block = family.targets["all-linear"]
    layers = random_lora(shell, lambda path: re.fullmatch(block, path))
    file, _ = convert.write(layers, form, tmp_path / form, {}, names)
    theirs = pipe.lora_state_dict(load_file(file))
    if "diffusers" not in family.read_by[form]:  # 它只要 transformer. 开头的
        assert not any(key.startswith("transformer.") for key in theirs)
        return
    assert len(theirs) == 2 * len(layers)
    for path, pair in layers.items():
        a, b = (theirs[f"transformer.{path}.lora_{side}.weight"] for side in "AB")
        assert near(convert.delta((a, b)), convert.delta(pair)), path


@pytest.mark.parametrize("stem", ["diffusion_model.{}", "lora_unet_{}", "{}"])
@pytest.mark.parametrize("family", [Flux2Klein, ZImage], ids=lambda f: f.name)
def test_the_original_names_are_read(family, stem, tmp_path):
    """原作者的名字（ai-toolkit、musubi、ComfyUI 自己的）：并起来的拆开，每层的 ΔW 不变。"""
    from lorakit.lora import fused

    shell = shell_of(*((Flux2Transformer2DModel, KLEIN) if family is Flux2Klein else
                       (ZImageModel, Z_IMAGE)))  # fmt: skip
    places = fused.slots(family.original, shell)
    owned = {path for parts in places.values() for path, _ in parts}
    layers = random_lora(shell, lambda path: path in owned)
    tensors = {}
    for path, (a, b) in fused.join(layers, places).items():
        name = stem.format(path.replace(".", "_") if "unet" in stem else path)
        tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b * 2}
        tensors[f"{name}.alpha"] = torch.tensor(len(a) / 2)
    save_file(tensors, tmp_path / "x.safetensors")
    again, unknown = convert.read(tmp_path / "x.safetensors", linear(shell), places)
    assert unknown == [] and again.keys() == layers.keys()
    assert all(near(convert.delta(again[p]), convert.delta(layers[p])) for p in layers)


def test_the_last_layer_swaps_scale_and_shift():
    from lorakit.lora import fused

    places = fused.slots(Flux2Klein.original, shell_of(Flux2Transformer2DModel, KLEIN))
    a, b = torch.randn(2, 32), torch.randn(64, 2)
    joined = fused.join({"norm_out.linear": (a, b)}, places)
    scale, shift = b.chunk(2)
    theirs = joined["final_layer.adaLN_modulation.1"]
    assert torch.equal(theirs[1], torch.cat([shift, scale]))
    assert fused.is_swapped("norm_out.linear", places)
    assert not fused.is_swapped("proj_out", places)
    back = fused.split(*theirs, places["final_layer.adaLN_modulation.1"])["norm_out.linear"]
    assert torch.equal(back[1], b)


def test_kohya_refuses_a_layer_it_has_no_name_for(tmp_path):
    names = convert.Names.of(Flux2Klein, shell_of(Flux2Transformer2DModel, KLEIN))
    layer = {"guidance": (torch.ones(1, 2), torch.ones(2, 1))}
    with pytest.raises(WeightsError, match="没有 guidance 这一层"):
        convert.write(layer, "kohya", tmp_path / "x", {}, names)


def dora():
    g = torch.Generator().manual_seed(0)
    a, b, w = (torch.randn(*s, generator=g) for s in ((3, 8), (6, 3), (6, 8)))
    return Dora(a, b, w.norm(dim=1) * (1 + torch.rand(6, generator=g))), w


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_dora_in_comfyui_is_exact(tmp_path, strength):
    """照 ComfyUI 的 weight_decompose 算一遍：W + 强度 · (dora_scale (W + BA) / |W| - W)。"""
    layer, w = dora()
    file, _ = convert.write({"x.y": layer}, "comfyui", tmp_path / "d", {}, weight=lambda path: w)
    found = load_file(file)
    stem = "diffusion_model.x.y"
    assert found.keys() == {f"{stem}.{k}" for k in ("lora_A.weight", "lora_B.weight", "dora_scale")}
    moved = w + found[f"{stem}.lora_B.weight"] @ found[f"{stem}.lora_A.weight"]
    theirs = found[f"{stem}.dora_scale"] * moved / w.norm(dim=1, keepdim=True)
    trained = w + layer.b @ layer.a
    ours = layer.magnitude[:, None] * trained / trained.norm(dim=1, keepdim=True)
    assert near(w + strength * (theirs - w), w + strength * (ours - w))
    plain, _ = convert.write({"x.y": layer}, "diffusers", tmp_path / "p", {}, dtype=torch.bfloat16)
    assert torch.equal(load_file(plain)["transformer.x.y.lora_magnitude_vector"], layer.magnitude)


def test_a_trained_dora_goes_to_comfyui_and_back(config, tmp_path, capsys):
    settings = config("lora.variant=dora", "train.lr=1e-2")
    list(Trainer(settings))
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    for source, form, out in ((settings.run.output, "comfyui", there), (there, "diffusers", back)):
        argv = ["export", str(source), "--to", form, "--out", str(out), "--dtype", "fp32"]
        assert main(argv) == 0
        assert f"{'ComfyUI' if out == there else 'diffusers'} 能读" in capsys.readouterr().out
    ours, again = load_file(lora.find(settings.run.output)), load_file(back)
    assert ours.keys() == again.keys()
    assert all(near(again[name], ours[name], 1e-5) for name in ours if ours[name].any())


def test_dora_has_no_kohya_and_no_workflow_as_it_is(tmp_path, capsys):
    with pytest.raises(WeightsError, match="DoRA"):
        convert.write({"x": dora()[0]}, "kohya", tmp_path / "x", {})
    raw, out = tmp_path / "d.safetensors", tmp_path / "w.json"
    tensors = {f"transformer.x.lora_{k}.weight": torch.ones(1, 1) for k in "AB"}
    tensors["transformer.x.lora_magnitude_vector"] = torch.ones(1)
    save_file(tensors, raw, {"lorakit": json.dumps({"family": "flux"})})
    assert main(["export", str(raw), "--workflow", str(out)]) == 1 and not out.exists()
    assert "--to comfyui" in capsys.readouterr().err


def test_rounding_is_measured_and_alpha_stays(tmp_path):
    layers = {"x.y": (torch.randn(3, 8), torch.randn(6, 3))}
    for kind, most in (("bf16", 2e-2), ("fp16", 2e-3), ("fp32", 0)):
        given = {"dtype": convert.DTYPES[kind]}
        file, rounded = convert.write(layers, "kohya", tmp_path / kind, {}, **given)
        found = load_file(file)
        down, up, alpha = (
            found[f"lora_unet_x_y.{k}"] for k in ("lora_down.weight", "lora_up.weight", "alpha")
        )
        assert down.dtype == up.dtype == convert.DTYPES[kind] and float(alpha) == 3
        want, got = convert.delta(layers["x.y"]), convert.delta((down.float(), up.float()))
        assert rounded == pytest.approx(float((want - got).norm() / want.norm()), rel=1e-5)
        assert rounded <= most


@pytest.mark.parametrize(
    ("times", "word"), [(1e-7, "--dtype fp32"), (1e6, "--dtype bf16")], ids=["small", "big"]
)
def test_what_half_precision_cannot_hold_is_refused(tmp_path, times, word):
    layers = {"x": (torch.randn(3, 8), torch.randn(6, 3) * times)}
    with pytest.raises(WeightsError, match=word):
        convert.write(layers, "diffusers", tmp_path / "x", {}, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_the_header_says_what_readers_read_and_no_path(tmp_path):
    told = {"trigger": "ohwx", "resolution": 512, "licence": "mit", "captions": ["猫，坐着", "猫"]}
    about = metadata.describe(get("qwen-image"), SECRET, "mine", **told)
    pair = {"x": (torch.ones(2, 2), torch.ones(2, 2))}
    old = about | {"ss_sd_model_name": SECRET, "ss_datasets": json.dumps([{"d": "C:\\用户\\猫"}])}
    card = {"base": SECRET, "family": "qwen-image", "trigger": "ohwx"}
    head = metadata.of(convert.write(pair, "kohya", tmp_path / "cat", card, about=old).file)
    want = {
        "modelspec.sai_model_spec": "1.0.1", "modelspec.architecture": "Qwen-Image/lora",
        "modelspec.title": "cat", "modelspec.trigger_phrase": "ohwx",
        "modelspec.resolution": "512x512", "modelspec.license": "mit",
        "ss_base_model_version": "qwen_image", "ss_network_module": "networks.lora",
        "ss_network_dim": "2", "ss_network_alpha": "2", "ss_output_name": "cat",
        "ss_sd_model_name": "Qwen-Image", "ss_datasets": '[{"d": "猫"}]', "format": "pt",
    }  # fmt: skip
    assert {key: head[key] for key in want} == want
    assert json.loads(head["ss_tag_frequency"]) == {"mine": {"猫": 2, "坐着": 1}}
    assert json.loads(head["lorakit"])["base"] == "Qwen-Image"
    assert "张三" not in str(head) and "用户" not in str(head)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_family_has_a_name_elsewhere(name):
    told = metadata.describe(get(name), "x/FLUX.2-klein-base-9B", "a")
    assert told["modelspec.architecture"].endswith("/lora") and told["ss_base_model_version"]


def test_old_files_lose_their_path_and_nothing_else(tmp_path):
    file = tmp_path / "old.safetensors"
    tensors = {"transformer.x.lora_A.weight": torch.randn(3, 5)}
    save_file(tensors, file, {"lorakit": json.dumps({"base": SECRET, "rank": "3"})})
    (tmp_path / "new.safetensors").write_bytes(metadata.clean(file))
    again = load_file(tmp_path / "new.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[k], tensors[k]) for k in again)
    assert lora.read(file)[1] == {"base": SECRET, "rank": "3"}
    assert lora.read(tmp_path / "new.safetensors")[1] == {"base": "Qwen-Image", "rank": "3"}
    assert metadata.clean(tmp_path / "new.safetensors") is None


def test_bases_are_named_without_their_folder(tmp_path):
    said = {
        "Qwen/Qwen-Image": "Qwen/Qwen-Image", "tiny-flux": "tiny-flux", "~/a/b": "b",
        "./m": "m", "D:\\m\\q": "q", "\\\\host\\m\\q": "q", "a/b/c": "c",
        str(tmp_path): tmp_path.name,
    }  # fmt: skip
    assert {path: metadata.base_of(path) for path in said} == said


@pytest.mark.parametrize(
    ("family", "base", "name", "unet"),
    [
        ("qwen-image-edit", "Qwen/Qwen-Image-Edit", "qwen-image-edit", ""),
        ("qwen-image-edit", "Qwen/Qwen-Image-Edit-2509", "qwen-image-edit-2509", ""),
        ("qwen-image-edit", "qwen_image_edit_2511", "qwen-image-edit-2509", "2511"),
        ("qwen-image", "Qwen/Qwen-Image-2512", "qwen-image", "2512"),
        ("flux", "black-forest-labs/FLUX.1-dev", "flux", ""),
        ("flux", "black-forest-labs/FLUX.1-Krea-dev", "flux", "krea"),
        ("qwen-image-edit", "Qwen/Qwen-Image-Edit-2703", None, ""),
        ("flux", "black-forest-labs/FLUX.1-Kontext-dev", None, ""),
        ("flux-kontext", "black-forest-labs/FLUX.1-Kontext-dev", "flux-kontext", ""),
        ("flux2-dev", "black-forest-labs/FLUX.2-dev", "flux2-dev", ""),
        ("flux2-klein", "black-forest-labs/FLUX.2-klein-base-4B", "flux2-klein", ""),
        ("flux2-klein", "black-forest-labs/FLUX.2-klein-base-9B", "flux2-klein-9b", ""),
        ("qwen-image-2.1", "Qwen/Qwen-Image-2.1", "qwen-image-2.1", ""),
        ("qwen-image-2.1-edit", "Qwen/Qwen-Image-2.1", "qwen-image-2.1-edit", ""),
        ("z-image", "Tongyi-MAI/Z-Image-Turbo", "z-image", "turbo"),
        ("z-image", "Tongyi-MAI/Z-Image-Edit", None, ""),
        ("kandinsky5", "", None, ""),
    ],
)
def test_the_workflow_loads_the_right_base(family, base, name, unet):
    found, cls = workflow_of(family, base)
    file = cls.workflow_base(base)
    if name is None:
        with pytest.raises(LorakitError, match="LoRA 文件本身 ComfyUI 能读") as said:
            comfyui.refuse_unknown(found, file is not None)
        assert "--family" not in str(said.value)
        return
    comfyui.refuse_unknown(found, file is not None)
    assert found == name and unet in file and bool(unet) == bool(file)
    filled = comfyui.fill(found, comfyui.Fill("a", "b", 20, 4, 1024, 0, 2.0, file))
    assert not unet or f"models/diffusion_models/{file}" in comfyui.files(filled)


def test_layers_that_cancel_are_written(tmp_path):
    """两份相反的叠在一起：ΔW 是零，不是出错。"""
    one = {"x.y": (torch.randn(3, 8), torch.randn(6, 3))}
    none = convert.combine([(one, 1.0), (one, -1.0)])
    file, _ = convert.write(none, "diffusers", tmp_path / "none", {})
    found = load_file(file)
    b, a = (found[f"transformer.x.y.lora_{side}.weight"].double() for side in "BA")
    assert float((b @ a).norm()) < 1e-6


def test_who_misses_layers_outside_the_blocks_is_said(tmp_path, capsys):
    raw, out = tmp_path / "x.safetensors", str(tmp_path / "out.safetensors")
    layers = linear(open_family(load_config("tiny-flux")).skeleton())
    block = "transformer_blocks.0.attn.to_q"
    for paths, said in (
        ([block], "sd-scripts、ComfyUI、diffusers、DiffSynth 能读。\n原作者"),
        ([block, "proj_out"], "sd-scripts 会漏掉块外的层：proj_out 等 1 层"),
        (["proj_out"], "\nComfyUI 能读；diffusers 请用 --to diffusers 或原文件。\n原作者"),
        (["x_embedder"], "\nsd-scripts、ComfyUI 能读；diffusers 请用"),
    ):
        tensors = {}
        for path in paths:
            tensors[f"transformer.{path}.lora_A.weight"] = torch.ones(1, layers[path].in_features)
            tensors[f"transformer.{path}.lora_B.weight"] = torch.ones(layers[path].out_features, 1)
        save_file(tensors, raw)
        argv = ["export", str(raw), "--model", "tiny-flux", "--to", "kohya", "--out", out]
        assert main(argv) == 0
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(("form", "said"), [
    ("comfyui", "ComfyUI、DiffSynth 能读；diffusers 请用 --to diffusers 或原文件；"
                "musubi 请用 --to kohya。"),
    ("kohya", "musubi、ComfyUI、diffusers 能读；DiffSynth 请用 --to comfyui。"),
    ("diffusers", "diffusers、ComfyUI 能读；DiffSynth 请用 --to comfyui；musubi 请用 --to kohya。"),
])  # fmt: skip
def test_who_cannot_read_it_is_told_what_to_take(tmp_path, capsys, form, said):
    base = random_flux2_klein.build(tmp_path / "base")
    raw, path = tmp_path / "x.safetensors", "transformer_blocks.0.attn.to_q"
    config = load_config(None, ["model.family=flux2-klein", f"model.path={base}"])
    (tmp_path / "klein.yaml").write_text(config.to_yaml(), encoding="utf-8")
    layer = open_family(config).skeleton().get_submodule(path)
    save_file(
        {
            f"transformer.{path}.lora_A.weight": torch.ones(1, layer.in_features),
            f"transformer.{path}.lora_B.weight": torch.ones(layer.out_features, 1),
        },
        raw,
    )
    argv = ["export", str(raw), "--model", str(tmp_path / "klein.yaml"), "--to", form]
    assert main([*argv, "--out", str(tmp_path / "out.safetensors")]) == 0
    assert said in capsys.readouterr().out


def test_deep_json_in_a_header_is_left_alone():
    deep = "[" * 100_000
    assert metadata.bare(deep) == deep


def test_what_others_wrote_stays_small():
    about = {f"ss_{i}": "x" for i in range(5000)} | {"modelspec.thumbnail": "x" * (2 << 20)}
    head = metadata.header({"rank": "4"}, about, 4)
    assert len(str(head)) < 10_000 and head["ss_0"] == "x" and head["ss_network_dim"] == "4"
