"""你要用的模型：练习册开头写一个名字；真模型先说清楚要什么，放不下就不开始，什么也不下载。"""

import difflib
import tempfile
from pathlib import Path

import torch

from lorakit.config import Config, load_config, preset_for, presets
from lorakit.errors import LorakitError
from lorakit.families import open_blank
from lorakit.hub.bundled import tiny_models
from lorakit.inert import inert
from lorakit.machine import doctor, estimate

TINY = "tiny-"
SAID = ("model", "download", "vram", "host-need", "disk", "time", "quantize", "settings", "compile")


def open_model(name: str) -> Config:
    """预设的名字 -> 设置；随包的微型模型马上能用，真模型先说清楚下载、显存和时间。

    Raises:
        LorakitError: 没有这个名字，或这台机器练不动；会说改成什么。
    """
    preset = name if name in presets() else preset_for(str(name))
    if preset is None:
        near = difflib.get_close_matches(str(name), presets(), 1)
        hint = f"是不是想写“{near[0]}”？" if near else ""
        raise LorakitError(
            f"练习册不认识模型“{name}”。{hint}微型的可以写：{_names(True)}；真的可以写：{_names(False)}。"
        )
    config = load_config(preset)
    if config.model.path in tiny_models():
        print(f"{name}：随包自带，不下载；图 {config.data.resolution}x{config.data.resolution}。")
        return config
    checks = doctor.examine(config, online=False)
    print(f"{preset}（真模型，还没有下载任何东西）：")
    print(inert("\n".join(f"  {check.text()}" for check in checks if check.key in SAID)))
    bad = [check.said for check in checks if check.level == doctor.BAD]
    if not torch.cuda.is_available():
        bad = [f"这台机器没有 NVIDIA 显卡，{preset} 至少要约 {_least(config):.0f} GiB 显存"]
        print(f"  想租卡：lorakit doctor {preset} --card 4090 说要几小时，--price 再算几元。")
    if bad:
        listed = "；".join(bad)
        raise LorakitError(
            f"放不下，没有开始，也没有下载：{listed}。请把 模型 改回微型的（tiny- 开头）先学；"
            "要练真的，换一台有显卡的机器，按显存选预设，例如 qwen-image-24gb。"
        )
    return config


def _names(tiny: bool) -> str:
    return "、".join(name for name in presets() if name.startswith(TINY) is tiny)


def _least(config: Config) -> float:
    """照这份设置练，最省的时候要多少 GiB 显存；只按形状算。"""
    with tempfile.TemporaryDirectory() as folder:
        family = open_blank(config, Path(folder), torch.device("meta"), torch.bfloat16)
        return doctor.fitting(estimate.measure(family, config), config, 0)[1]
