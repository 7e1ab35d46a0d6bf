"""按设置打开一个家族：底模在哪、用什么设备与精度；还不载入任何权重。"""

import json
import os
from pathlib import Path

import torch

from lorakit import hub
from lorakit.config.foreign import PIPELINES, declared
from lorakit.errors import ConfigError, WeightsError, warn
from lorakit.families.registry import REGISTRY, get
from lorakit.files import Unreadable, read_json, user_path
from lorakit.hub.bundled import bundled, tiny_models
from lorakit.memory import devices, quantize

TINY_DEVICE = "LORAKIT_TINY_DEVICE"  # 环境变量：随包的微型模型用什么设备，不写就是 cpu


def device_for(path: str) -> torch.device:
    """底模放在哪里：随包的微型模型小得用不着显卡，总在 CPU 上，每个数在哪台机器上都一样。"""
    if path in tiny_models() and (os.environ.get(TINY_DEVICE) or "cpu") == "cpu":
        return torch.device("cpu")
    return devices.pick_device()


def open_blank(
    config, folder: Path, device: torch.device | None = None, dtype: torch.dtype | None = None
):
    """只有尺寸、没有权重的家族：测速与估计用。本地有这个模型就照它的设置，没有就照真模型的。

    Args:
        folder: 空文件夹，真模型的设置写在里面。
        dtype: 不写就照 model.precision。
    """
    path = config.model.path
    local = bundled(path) if path in tiny_models() else user_path(path, "model.path")
    cls = get(config.model.family)
    if not (local / "model_index.json").is_file():
        local = folder
        for part, facts in {"model_index": {}, **cls.size_of(path)}.items():
            names = {
                "model_index": "model_index.json", "scheduler": "scheduler_config.json",
                "processor": "preprocessor_config.json",
            }  # fmt: skip
            name = "tokenizer_config.json" if part.startswith("tokenizer") else "config.json"
            home = folder if part == "model_index" else folder / part
            home.mkdir(parents=True, exist_ok=True)
            (home / names.get(part, name)).write_text(json.dumps(facts), encoding="utf-8")
    return _configured(cls, local, config, device, dtype, random_weights=True)


def open_family(config, device: torch.device | None = None):
    """按设置打开家族（还不载入任何权重）。"""
    cls = get(config.model.family)
    model = hub.find(config.model.path, config.model.source)
    family = _configured(cls, model.folder, config, device, model=model)
    quantize.check(family.quantize, family.device)
    family.check_small()
    return family


def _refuse_other_family(cls: type, folder: Path, path: str):
    """底模的网络不是这个家族的，就说它是谁的，别等到一半才算不下去。"""
    file = folder / "transformer" / "config.json"
    if not file.is_file():
        return
    try:
        found = read_json(file).get("_class_name")
    except Unreadable as error:
        raise WeightsError(f"model.path：{error}请删掉它重新下载。") from error
    if found == cls.full_size["transformer"]["_class_name"]:
        return
    kinds = {name: get(name).full_size["transformer"]["_class_name"] for name in REGISTRY}
    names = "、".join(name for name, kind in kinds.items() if kind == found)
    mend = f"请写 model.family={names}" if names else "这里还没有它的家族"
    raise ConfigError(
        f"model.path：“{path}”的网络是 {found}，不是 {cls.name} 家族的。"
        f"{mend}，或换一个 model.path。"
    )


def _refuse_other_pipeline(cls: type, folder: Path, path: str):
    """底模的 model_index.json 说自己是哪一种管线，就是哪一家：编辑与文生图的网络是同一种。"""
    said = declared(folder)
    owner = PIPELINES.get(said)
    if owner and owner != cls.name:
        raise ConfigError(
            f"model.path：“{path}”的 model_index.json 说它是 {said}，是 {owner} 家族的，"
            f"不是 {cls.name}。请写 model.family={owner}，或换一个 model.path。"
        )
    if said and not owner:
        warn(f"“{path}”的 model_index.json 说它是 {said}，这里没有它；当作 {cls.name} 来练。")


def _configured(cls: type, folder: Path, config, device=None, dtype=None, **how):
    device = device or device_for(config.model.path)
    _refuse_other_family(cls, folder, config.model.path)
    _refuse_other_pipeline(cls, folder, config.model.path)
    how |= {"quantize": config.model.quantize, "offload": config.memory.offload}
    dtype = dtype or devices.pick_dtype(config.model.precision, device)
    how |= {"guidance": config.train.guidance, "clear": config.data.clear}
    return cls(folder, device, dtype, **how)
