"""把任何一种写法的 LoRA 文件挂到模型上：先照 foreign.py 读懂，再变成 PEFT 的适配器。"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from diffusers.utils.peft_utils import get_adapter_name
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import nn

from lorakit.errors import WeightsError
from lorakit.lora import dora, lokr, names
from lorakit.lora import files as lora_files
from lorakit.lora import fused as lora_fused
from lorakit.lora.algebra import Layers, low, shape_of
from lorakit.lora.audit import changes_nothing, strength_of, tell
from lorakit.lora.foreign import Meaning, meaning

Original = Mapping[str, tuple[str, ...]]  # 家族的 original
NONE: Original = MappingProxyType({})


def shapes_of(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """线性层的全名 -> (出, 入)；挂着适配器的看里面的；4 位的权重打包过，所以问层自己。"""
    found = {}
    for name, module in transformer.named_modules():
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        inside = ".base_layer" in name or ".lora_" in name
        if isinstance(base, nn.Linear) and not inside:
            found[name] = (base.out_features, base.in_features)
    return found


def understood(path: Path, transformer: nn.Module, original: Original = NONE) -> Meaning:
    """文件对这个底模是什么意思；有一层对不上就不算数。

    Args:
        original: 家族的 original；没有就只认 diffusers 的层名。

    Raises:
        WeightsError: 读不了，或有张量没有地方放、形状不对。
    """
    path = lora_files.find(path)
    shapes = shapes_of(transformer)
    found = meaning(path, shapes, lora_fused.slots(original, transformer))
    misfit = [name for name, layer in found.layers.items() if shape_of(layer) != shapes.get(name)]
    wrong = [lora_files.brief(name) for name in (*found.unknown, *misfit)]
    if not found.layers and found.left and not wrong:
        raise WeightsError(f"“{path}”只练了文本编码器，Transformer 一层也没有，这里用不上。")
    if wrong or not found.layers:
        for_whom = (
            f"文件里写的底模是 {found.card['base']}" if "base" in found.card else "文件里没有写底模"
        )
        model = None if found.layers else names.model_of(found.unknown)
        guess = f"看层名，它像是给 {model} 练的" if model else "它多半是给别的底模训练的"
        raise WeightsError(
            f"“{path}”与这个底模对不上：放得上 {len(found.layers) - len(misfit)} 层，"
            f"放不上 {len(wrong)} 个，例如 {(wrong or ['（一层也没有）'])[0]}。"
            f"{guess}（{for_whom}）。"
        )
    return found


def check_fits(path: Path, transformer: nn.Module, original: Original = NONE) -> Mapping[str, str]:
    """核对 LoRA 与底模：每一层都要有地方放、形状对得上；返回它的卡片。"""
    return understood(path, transformer, original).card


def put_on(pipe, file: Path, name: str | None = None, original: Original = NONE):
    """把文件挂到管线的 Transformer 上；name 是以后开关它用的名字。

    不经 load_lora_weights：它不看文件里的强度，各个家族认的写法也不同。

    Raises:
        WeightsError: 读不了，或与底模对不上。
    """
    transformer = pipe.transformer
    found = understood(file, transformer, original)
    tell(found.left, found.doubt, strength_of(found), file, changes_nothing(found))
    layers = found.layers
    name = name or get_adapter_name(transformer)
    state = _state(layers)
    with warnings.catch_warnings():  # 层名的末尾相同（proj_out）时它的提醒；挂了哪些下面核对
        warnings.filterwarnings("ignore", message="While injecting the PEFT adapters")
        transformer.load_lora_adapter(state, prefix=None, adapter_name=name)
    loaded = get_peft_model_state_dict(transformer, adapter_name=name)
    assert loaded.keys() == state.keys(), min(loaded.keys() ^ state.keys())
    for path, layer in layers.items():
        if isinstance(layer, dora.Dora):
            dora.put_rows(transformer.get_submodule(path), name, layer)
        elif isinstance(layer, lokr.Product):
            lokr.put_product(transformer.get_submodule(path), name, layer)


def _state(layers: Layers) -> dict[str, torch.Tensor]:
    """层 -> PEFT 的张量；LoKr 先放一个秩 1 的零占着位置。"""
    state = {}
    for path, layer in layers.items():
        out, into = shape_of(layer)
        holds = isinstance(layer, lokr.Product)
        a, b = (torch.zeros(1, into), torch.zeros(out, 1)) if holds else low(layer)
        state |= {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
    return state
