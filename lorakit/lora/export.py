"""把 LoRA 写成各家的样子；写完当场重读，核对每一层的 ΔW 没有变。"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from lorakit.errors import ConfigError
from lorakit.files import write_whole
from lorakit.lora import fused as lora_fused
from lorakit.lora.algebra import Layers, distance, plain
from lorakit.lora.foreign import read
from lorakit.lora.tensors import write_tensors

FORMATS = ("diffusers", "comfyui", "kohya")
SAME = 1e-6  # 转换前后 ΔW 的相对误差不能超过它


def write(
    layers: Layers,
    form: str,
    file: Path,
    card: Mapping[str, str],
    places: lora_fused.Slots = MappingProxyType({}),
) -> Path:
    """按 form 的写法写一个文件（LoKr 写成普通 LoRA），写完重读一遍，核对每一层的 ΔW 没有变。"""
    layers = {path: plain(path, layer) for path, layer in layers.items()}
    ranks, tensors = [len(a) for a, _ in layers.values()], {}
    theirs = layers if form == "diffusers" else lora_fused.join(layers, places)
    for path, (a, b) in theirs.items():
        prefix = {"diffusers": "transformer.", "comfyui": "diffusion_model."}
        stem = f"lora_unet_{path.replace('.', '_')}" if form == "kohya" else prefix[form] + path
        # diffusers 只在见到 lora_down 时才认得原作者的层名；ComfyUI 两种都认
        old = form == "kohya" or path in places
        down, up = ("lora_down", "lora_up") if old else ("lora_A", "lora_B")
        tensors |= {f"{stem}.{down}.weight": a, f"{stem}.{up}.weight": b}
        if form == "kohya":
            tensors[f"{stem}.alpha"] = torch.tensor(float(len(a)))  # 等于秩：乘 1
    card = {**card, "alpha": "folded", "rank": str(max(ranks))}
    facts = {"format": "pt", "lorakit": json.dumps(card, ensure_ascii=False)}

    def checked(temporary: Path):
        write_tensors(temporary, tensors, facts)
        again, unknown = read(temporary, layers, places)
        assert not unknown and again.keys() <= layers.keys()
        for path, pair in layers.items():  # 全是零的层，并了再拆就不在了
            same = not pair[1].any() if path not in again else distance(pair, again[path]) <= SAME
            assert same, path

    return write_whole(named(file), checked)


def named(file: Path) -> Path:
    """补上 .safetensors；“style-0.5”里的点是名字的一部分，不是后缀。

    Raises:
        ConfigError: 只有文件夹，没有文件名。
    """
    if not file.name:
        raise ConfigError(f"--out：“{file}”里没有文件名，例如 --out 我的画风.safetensors。")
    return file if file.suffix == ".safetensors" else file.with_name(f"{file.name}.safetensors")
