"""控制图缩放到多大：给 VAE 的，与给文本编码器看的。"""

import math
from collections.abc import Sequence

from PIL import Image

LANCZOS = Image.Resampling.LANCZOS
Size = tuple[int, int] | int  # (宽, 高)，像素；一个数就是面积的边长，形状随控制图


def area(size: Size) -> int:
    """一共多少像素。"""
    return math.prod(size) if isinstance(size, tuple) else size**2


def fit(family, pictures: Sequence[Image.Image], size: Size) -> list[Image.Image]:
    """控制图缩放到与要画的图一样的面积，宽高比不变，两边都是家族的倍数。"""
    unit = family.multiple
    side = round(math.sqrt(area(size)) / unit) * unit
    return [one.resize(near_shape(one.size, side, unit), LANCZOS) for one in pictures]


def seen(family, pictures: Sequence[Image.Image], size: Size) -> list[Image.Image]:
    """文本编码器看到的控制图：原样的，或与给 VAE 的一样大。"""
    return fit(family, pictures, size) if family.text_sees == "fitted" else list(pictures)


def near_shape(size: tuple[int, int], side: int, unit: int) -> tuple[int, int]:
    """与 size 形状最接近、面积约 side²、两边都是 unit 倍数的 (宽, 高)；与 stock 编辑管线相同。"""
    width = math.sqrt(side**2 * size[0] / size[1])
    height = width * size[1] / size[0]
    return tuple(max(unit, round(edge / unit) * unit) for edge in (width, height))
