"""模型家族：每个家族一个文件，别处不出现家族的名字；新家族在这里登记一行。"""

import difflib
from importlib import import_module

import torch

from lorakit import hub, memory, quantize
from lorakit.errors import ConfigError

REGISTRY = {
    "qwen-image": "lorakit.families.qwen_image:QwenImage",
    "qwen-image-edit": "lorakit.families.qwen_image_edit:QwenImageEdit",
    "flux": "lorakit.families.flux:Flux",
    "flux2-klein": "lorakit.families.flux2_klein:Flux2Klein",
    "z-image": "lorakit.families.z_image:ZImage",
    "kandinsky5": "lorakit.families.kandinsky5:Kandinsky5",
}


def get(name: str):
    """家族名 -> 家族类；名字不对就说有哪些、可能想写哪个。"""
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f"是不是想写“{near[0]}”？" if near else ""
        raise ConfigError(
            f"model.family：没有叫“{name}”的模型家族。{hint}可选：{'、'.join(REGISTRY)}。"
        )
    module, attribute = REGISTRY[name].split(":")
    return getattr(import_module(module), attribute)


def open_family(config, device: torch.device | None = None):
    """按设置打开家族（还不载入任何权重）。"""
    device = device or memory.pick_device()
    dtype = memory.pick_dtype(config.model.precision, device)
    model = hub.find(config.model.path, config.model.source)
    family = get(config.model.family)(model.folder, device, dtype)
    family.model = model
    quantize.check(config.model.quantize, device)
    family.quantize, family.offload = config.model.quantize, config.memory.offload
    family.guidance = config.train.guidance
    return family
