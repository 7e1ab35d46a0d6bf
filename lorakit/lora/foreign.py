"""各家的 LoRA 文件读成同一种样子：层名 -> ΔW；强度由谁说了算，只在这里定。

各家的写法（路径都是 diffusers 的层名）：
  diffusers   transformer.<路径>.lora_A.weight / lora_B.weight
  PEFT        base_model.model.<路径>.lora_A[.default].weight
  DiffSynth   <路径>.lora_A.default.weight
  ComfyUI     diffusion_model.<路径>.lora_A.weight
  kohya       lora_unet_<路径，点换成下划线>.lora_down / lora_up.weight 加 .alpha
  LyCORIS     lycoris_<路径，点换成下划线>.lokr_w1 / lokr_w2 加 .alpha（LoKr，见 lokr.py）
FLUX 在 ComfyUI 与 kohya 里用原作者的路径，q、k、v 并在一起（lora_fused.py）。
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from lorakit.errors import WeightsError
from lorakit.lora import files as lora_files
from lorakit.lora import fused as lora_fused
from lorakit.lora import lokr
from lorakit.lora.algebra import Layers, plain

TENSOR = re.compile(
    r"(.+?)\.(?:lora[._](A|B|down|up)(?:\.\w+)?\.weight|(alpha)|lokr_(w[12](?:_[ab])?))"
)
PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.", "model.diffusion_model.")
FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")  # kohya 一系：点换成了下划线


def read(
    file: Path, modules: Iterable[str], places: lora_fused.Slots = MappingProxyType({})
) -> tuple[Layers, list[str]]:
    """任何一种写法的文件 -> (层, 没有地方放的张量名)；modules 是底模里线性层的全名。

    places 是原作者的层名（见 lora_fused.slots），没有就只认 diffusers 的。

    Raises:
        WeightsError: 不是 LoRA、成对的缺一个、是 DoRA 等只能由原来的工具读的变体。
    """
    tensors, _ = lora_files.read(file)
    known = {name: name for name in (*modules, *places)}
    flat = {name.replace(".", "_"): name for name in known}
    parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    unknown = []
    for key, value in tensors.items():
        found = TENSOR.fullmatch(key)
        if found is None:
            raise WeightsError(
                f"“{file}”里的 {key} 不是 LoRA 或 LoKr 的张量（也许是 DoRA），转换不了；"
                "请用训练它的工具，或先合并进底模。"
            )
        path = _path(found[1], known, flat)
        if path is None:
            unknown.append(key)
            continue
        kind = {"down": "A", "up": "B"}.get(found[2], found[2]) or found[3] or found[4]
        parts[path][kind] = value.float()
    layers = {}
    for path, part in parts.items():
        product = lokr.Product.of(part)
        if product is not None:
            layers |= _unfused(product, path, places)
            continue
        if not {"A", "B"} <= part.keys():
            raise WeightsError(f"“{file}”里 {path} 只有一半（{'、'.join(part)}），文件不完整。")
        rank = part["A"].shape[0]
        scale = float(part["alpha"]) / rank if "alpha" in part else 1.0
        pair = (part["A"], part["B"] * scale)
        layers |= lora_fused.split(*pair, places[path]) if path in places else {path: pair}
    return layers, unknown


def _unfused(product: lokr.Product, path: str, places: lora_fused.Slots) -> Layers:
    """克罗内克积拆不开；原作者并在一起的层要先写成普通 LoRA。"""
    if path not in places:
        return {path: product}
    return lora_fused.split(*plain(path, product), places[path])


def _path(name: str, known: Mapping[str, str], flat: Mapping[str, str]) -> str | None:
    for prefix in FLAT:
        if name.startswith(prefix):
            return flat.get(name.removeprefix(prefix))
    for prefix in ("", *PREFIXES):
        if name.startswith(prefix) and name.removeprefix(prefix) in known:
            return name.removeprefix(prefix)
    return None
