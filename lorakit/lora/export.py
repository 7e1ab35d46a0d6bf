"""把 LoRA 写成各家的样子；写完当场重读，核对每一层的 ΔW 没有变，然后才舍入成 bf16、fp16。

谁读哪一种，在家族的 read_by 里；tests/reader_names.py 有各家认得的名字，写出的每一个都照它核对过。
DoRA 写给 ComfyUI 时要底模的权重：它除的是 |W|，训练时除的是 |W+BA|，所以 dora_scale 按行换算。
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn

from lorakit.errors import ConfigError, WeightsError
from lorakit.files import write_whole
from lorakit.lora import fused as lora_fused
from lorakit.lora import metadata
from lorakit.lora.algebra import Layers, Pair, distance, plain
from lorakit.lora.dora import MOVED, Dora
from lorakit.lora.foreign import read
from lorakit.lora.tensors import write_tensors

FORMATS = ("diffusers", "comfyui", "kohya")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SAME = 1e-6  # 转换前后（舍入之前）ΔW 的相对误差不能超过它
LOST = 0.05  # 舍入之后差得比它多，就不写：这种精度装不下这个 LoRA
Weight = Callable[[str], torch.Tensor]  # 层名 -> 底模的权重 (出, 入)


@dataclass(frozen=True)
class Names:
    """一个家族的层，交给别家时怎么叫。"""

    places: lora_fused.Slots = field(default_factory=dict)  # 原作者的名字，读与写都用
    fused: bool = False  # kohya 用不用原作者的名字
    comfyui: str = "diffusion_model."

    @classmethod
    def of(cls, family, transformer: nn.Module) -> "Names":
        """transformer 是骨架就够。"""
        places = lora_fused.slots(family.original, transformer)
        return cls(places, family.kohya_original, family.comfyui_prefix)


class Written(NamedTuple):
    """写好的文件，与舍入之后差得最多的那一层 ΔW 的相对误差（fp32 是 0）。"""

    file: Path
    rounded: float


def spell(
    layers: Mapping[str, Pair | Dora], form: str, names: Names, weight: Weight | None = None
) -> dict[str, torch.Tensor]:
    """层 -> {张量名: 张量}，照 form 的写法；只看形状，所以 meta 设备上的也行。

    Raises:
        WeightsError: 这种写法里没有这一层，或装不下 DoRA。
    """
    if form == "kohya" and (dora := [p for p, layer in layers.items() if _is_dora(layer)]):
        raise WeightsError(
            f"{dora[0]} 是 DoRA：sd-scripts、musubi-tuner 没有这种写法。"
            "请用 --to comfyui，或合并进底模：--merge（不写 --to、--dtype）。"
        )
    if form == "kohya" and names.fused:
        known = {path for parts in names.places.values() for path, _ in parts}
        if strange := [path for path in layers if path not in known]:
            raise WeightsError(f"kohya 的写法里没有 {strange[0]} 这一层；请用 --to comfyui。")
        layers = lora_fused.join(layers, names.places)
    tensors = {}
    for path, layer in layers.items():
        stem = {
            "diffusers": f"transformer.{path}",
            "comfyui": f"{names.comfyui}{path}",
            "kohya": f"lora_unet_{path.replace('.', '_')}",
        }[form]
        a, b = (layer.a, layer.b) if _is_dora(layer) else layer
        down, up = ("lora_down", "lora_up") if form == "kohya" else ("lora_A", "lora_B")
        tensors |= {f"{stem}.{down}.weight": a, f"{stem}.{up}.weight": b}
        if form == "kohya":
            tensors[f"{stem}.alpha"] = torch.tensor(float(len(a)))  # 等于秩：乘 1
        elif _is_dora(layer) and form == "comfyui":
            scale = dora_scale(layer, weight(path))
            # 前后两半对调的层：ComfyUI 只对调 BA，长度照它自己的次序
            swapped = lora_fused.is_swapped(path, names.places) and not layer.columns
            tensors[f"{stem}.dora_scale"] = scale.roll(len(scale) // 2, 0) if swapped else scale
        elif _is_dora(layer):
            if layer.columns:
                raise WeightsError(
                    f"{path} 是按列算长度的 DoRA，diffusers 没有这种写法。"
                    "请用 --to comfyui，或合并进底模：--merge（不写 --to、--dtype）。"
                )
            own = layer if layer.over == MOVED else layer.trained(weight(path))
            tensors[f"{stem}.lora_magnitude_vector"] = own.magnitude.float().flatten()
    return tensors


def _is_dora(layer) -> bool:
    return isinstance(layer, Dora)


def dora_scale(layer: Dora, weight: torch.Tensor) -> torch.Tensor:
    """ComfyUI 的 dora_scale (出, 1) = c · |W|：它算的是 dora_scale · (W + BA) / |W|。

    按列的 (1, 入) 就是 m：那时它除的也是 |W + BA|。
    """
    if layer.columns:
        return layer.magnitude[None].float()
    return layer.ratio(weight).cpu().mul(weight.double().cpu().norm(dim=1, keepdim=True)).float()


def write(
    layers: Layers,
    form: str,
    file: Path,
    card: Mapping[str, str],
    names: Names = Names(),
    *,
    dtype: torch.dtype = torch.float32,
    about: Mapping[str, str] = MappingProxyType({}),
    weight: Weight | None = None,
) -> Written:
    """按 form 的写法写一个文件（LoKr 写成普通 LoRA），写完重读一遍，核对每一层的 ΔW 没有变。

    Args:
        dtype: 核对过再舍入成它；alpha 与 DoRA 的长度总是 fp32。
        about: 写给别的软件看的说明（`metadata.describe`）。
        weight: 底模的权重；只有 DoRA 换算成另一种算法才要。

    Raises:
        WeightsError: 这种写法、这种精度装不下它。
    """
    layers = {path: plain(path, layer) for path, layer in layers.items()}
    tensors = spell(layers, form, names, weight)
    rank = max(len(layer.a if _is_dora(layer) else layer[0]) for layer in layers.values())
    file, errors = named(file), {}
    facts = metadata.header({**card, "rank": str(rank)}, about, rank, file.stem)

    def checked(temporary: Path):
        write_tensors(temporary, tensors, facts)
        exact = apart(layers, temporary, form, names, tensors)
        assert max(exact.values()) <= SAME, max(exact, key=exact.get)
        if dtype != torch.float32:
            write_tensors(temporary, _rounded(tensors, dtype), facts)
            errors.update(apart(layers, temporary, form, names, tensors))
            _refuse_lost(errors, dtype)

    return Written(write_whole(file, checked), max(errors.values(), default=0.0))


def _rounded(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    small = {
        name: value.to(dtype) if name.endswith(".weight") else value
        for name, value in tensors.items()
    }
    if big := next((name for name, v in small.items() if not v.isfinite().all()), None):
        raise WeightsError(f"{big} 里有 fp16 装不下的大数（最大 65504）。请用 --dtype bf16。")
    return small


def _refuse_lost(errors: Mapping[str, float], dtype: torch.dtype):
    worst = max(errors, key=errors.get)
    if errors[worst] > LOST:
        name = next(name for name, kind in DTYPES.items() if kind == dtype)
        raise WeightsError(
            f"存成 {name}，{worst} 的 ΔW 会差 {errors[worst]:.0%}：这个 LoRA 的数太小，或互相抵消。"
            "请用 --dtype fp32。"
        )


def apart(
    layers: Mapping[str, Pair | Dora],
    file: Path,
    form: str,
    names: Names,
    tensors: Mapping[str, torch.Tensor],
) -> dict[str, float]:
    """文件重读之后，每一层的 ΔW 与 layers 的相对误差；DoRA 比的是 BA 与长度。"""
    if any(_is_dora(layer) for layer in layers.values()):
        return _dora_apart(layers, file, form, names, tensors)
    again, unknown = read(file, layers, names.places)
    assert not unknown
    # 并起来的一层全是零，拆开就多出几层零：没有改什么
    assert not any(again[path][1].any() for path in again.keys() - layers.keys())
    errors = {}
    for path, pair in layers.items():  # 全是零的层，并了再拆就不在了
        gone = float(pair[1].any())
        errors[path] = distance(pair, again[path]) if path in again else gone
    return errors


def _dora_apart(layers, file, form, names, tensors) -> dict[str, float]:
    """DoRA 不并层，张量与层一一对应：长度要一个字节不差，BA 照普通 LoRA 比。"""
    found = load_file(file)
    assert found.keys() == tensors.keys()
    for name in tensors:
        assert name.endswith(".weight") or torch.equal(found[name], tensors[name]), name
    errors = {}
    for path, layer in layers.items():
        stem = f"{'transformer.' if form == 'diffusers' else names.comfyui}{path}"
        pair = tuple(found[f"{stem}.lora_{side}.weight"].float() for side in "AB")
        mine = (layer.a, layer.b) if _is_dora(layer) else layer
        errors[path] = distance(mine, pair) if mine[1].any() else 0.0
    return errors


def named(file: Path) -> Path:
    """补上 .safetensors；“style-0.5”里的点是名字的一部分，不是后缀。

    Raises:
        ConfigError: 只有文件夹，没有文件名。
    """
    if not file.name:
        raise ConfigError(f"--out：“{file}”里没有文件名，例如 --out 我的画风.safetensors。")
    return file if file.suffix == ".safetensors" else file.with_name(f"{file.name}.safetensors")
