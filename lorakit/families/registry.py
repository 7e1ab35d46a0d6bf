"""家族的登记处：新家族在这里加一行。"""

import difflib
from importlib import import_module

from lorakit.errors import ConfigError

REGISTRY = {
    "qwen-image": "lorakit.families.qwen_image:QwenImage",
    "qwen-image-edit": "lorakit.families.qwen_image_edit:QwenImageEdit",
    "qwen-image-2.1": "lorakit.families.qwen_image_2_1:QwenImage21",
    "flux": "lorakit.families.flux:Flux",
    "flux-kontext": "lorakit.families.flux_kontext:FluxKontext",
    "flux2-dev": "lorakit.families.flux2_dev:Flux2Dev",
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


def workflow_of(family: str, base: str = "") -> tuple[str, type | None]:
    """家族名（或工作流自己的名字）与底模 -> ComfyUI 工作流的名字，与它所属的家族类。"""
    if family in REGISTRY:
        cls = get(family)
        return next(
            (name for word, name in cls.workflows.items() if word in base.lower()), family
        ), cls
    owners = (cls for cls in map(get, REGISTRY) if family in cls.workflows.values())
    return family, next(owners, None)
