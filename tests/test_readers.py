"""写出的每个名字，声称能读它的软件都认得：每个家族的真实块数 × 三种写法 × 每个目标预设。"""

import re

import diffusers
import pytest
import reader_names
import torch
from torch import nn

from lorakit.families.registry import REGISTRY, get
from lorakit.lora import convert


def skeleton(family):
    """真模型的骨架：块数与层名都是真的，没有权重。"""
    config = dict(family.full_size["transformer"])
    with torch.device("meta"):
        return getattr(diffusers, config.pop("_class_name"))(**config)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_name_is_one_its_readers_know(name):
    family = get(name)
    shell = skeleton(family)
    names = convert.Names.of(family, shell)
    linear = {n: m for n, m in shell.named_modules() if isinstance(m, nn.Linear)}
    counts, whole = {}, {}
    for preset, wanted in family.targets.items():
        layers = {
            path: (torch.zeros(1, layer.in_features), torch.zeros(layer.out_features, 1))
            for path, layer in linear.items()
            if re.fullmatch(wanted, path)
        }
        for form in convert.FORMATS:
            tensors = convert.spell(layers, form, names)
            stems = {re.sub(r"\.(lora_\w+\.weight|alpha)$", "", key) for key in tensors}
            for reader in reader_names.READERS:
                rule = reader_names.known(reader, name)
                taken = sum(bool(rule and rule.fullmatch(stem)) for stem in stems)
                counts[f"{preset} {form} {reader}"] = f"{taken}/{len(stems)}"
                whole[form, reader] = whole.get((form, reader), True) and taken == len(stems)
    for (form, reader), good in whole.items():  # 每个预设的每一层都认得，才算能读
        assert good == (reader in family.read_by[form]), (form, reader, counts)


@pytest.mark.parametrize("name", REGISTRY)
def test_who_misses_each_layer_outside_the_blocks(name):
    """命令说谁会漏掉它，与那个软件自己认得的名字一致。"""
    family = get(name)
    shell = skeleton(family)
    names = convert.Names.of(family, shell)
    linear = {n: m for n, m in shell.named_modules() if isinstance(m, nn.Linear)}
    outside = [path for path in linear if not re.fullmatch(family.targets["all-linear"], path)]
    assert outside
    for path in outside:
        layer = linear[path]
        pair = torch.zeros(1, layer.in_features), torch.zeros(layer.out_features, 1)
        for form in convert.FORMATS:
            tensors = convert.spell({path: pair}, form, names)
            (stem,) = {re.sub(r"\.(lora_\w+\.weight|alpha)$", "", key) for key in tensors}
            missed = family.skipped(form, [path])
            for reader in family.read_by[form]:
                rule = reader_names.known(reader, name, reader_names.OUTSIDE)
                taken = bool(rule and rule.fullmatch(stem))
                assert taken == (reader not in missed), (path, form, reader)


CONTINUED = dict.fromkeys(
    ("qwen-image", "qwen-image-edit", "flux", "flux-kontext"), ("diffusers", "comfyui")
)


@pytest.mark.parametrize("name", REGISTRY)
def test_which_files_ai_toolkit_goes_on_with(name):
    """接着练：Z-Image 它只认 layers（refiner 的会丢），FLUX.2 要并起来的；别的两家它没有。"""
    family = get(name)
    shell, rule = skeleton(family), reader_names.known("ai-toolkit", name)
    layers = {
        path: (torch.zeros(1, m.in_features), torch.zeros(m.out_features, 1))
        for path, m in shell.named_modules()
        if isinstance(m, nn.Linear) and re.fullmatch(family.targets["all-linear"], path)
    }
    whole = []
    for form in convert.FORMATS:
        tensors = convert.spell(layers, form, convert.Names.of(family, shell))
        stems = {re.sub(r"\.(lora_\w+\.weight|alpha)$", "", key) for key in tensors}
        whole += [form] if rule and all(map(rule.fullmatch, stems)) else []
    assert tuple(whole) == CONTINUED.get(name, ())


def test_what_used_to_be_dead_is_told_apart():
    """klein 的 diffusers 层名配 diffusion_model.、Z-Image 的 kohya 写法：ComfyUI 一层也不认。"""
    klein, z_image = (reader_names.known("ComfyUI", name) for name in ("flux2-klein", "z-image"))
    assert not klein.fullmatch("diffusion_model.single_transformer_blocks.0.attn.to_out")
    assert klein.fullmatch("transformer.single_transformer_blocks.0.attn.to_out")
    assert not z_image.fullmatch("lora_unet_layers_0_attention_to_q")
    assert z_image.fullmatch("lora_unet_layers_29_attention_qkv")
    assert not z_image.fullmatch("lora_unet_layers_30_attention_qkv")
