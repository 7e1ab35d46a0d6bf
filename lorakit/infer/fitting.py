"""控制图缩放到多大：给 VAE 的，与给文本编码器看的。"""

import math
from collections.abc import Sequence

from PIL import Image

from lorakit.data.color import on_white

LANCZOS = Image.Resampling.LANCZOS
Size = tuple[int, int] | int  # (宽, 高)，像素；一个数就是面积的边长，形状随控制图


def area(size: Size) -> int:
    """一共多少像素。"""
    return math.prod(size) if isinstance(size, tuple) else size**2


def fit(family, pictures: Sequence[Image.Image], size: Size) -> list[Image.Image]:
    """控制图缩放到与要画的图一样的面积，宽高比不变，两边都是家族的倍数。"""
    unit = family.multiple
    side = round(math.sqrt(area(size)) / unit) * unit
    shapes = [near_shape(one.size, side, unit) for one in pictures]
    # Pillow 先把颜色乘上透明度再缩放，边缘不会渗进看不见的颜色；stock 管线也这样
    looks = zip(_looked(family, pictures), shapes, strict=True)
    return [one.resize(shape, LANCZOS) for one, shape in looks]


def seen(family, pictures: Sequence[Image.Image], size: Size) -> list[Image.Image]:
    """文本编码器看到的控制图：原样的，或与给 VAE 的一样大。"""
    fitted = family.text_sees == "fitted"
    return fit(family, pictures, size) if fitted else _looked(family, pictures)


def _looked(family, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """data.alpha=keep 就连透明一起看，不然合成在白底上。"""
    return [one if family.clear else on_white(one) for one in pictures]


def near_shape(size: tuple[int, int], side: int, unit: int) -> tuple[int, int]:
    """与 size 形状最接近、面积约 side²、两边都是 unit 倍数的 (宽, 高)；与 stock 编辑管线相同。"""
    width = math.sqrt(side**2 * size[0] / size[1])
    height = width * size[1] / size[0]
    return tuple(max(unit, round(edge / unit) * unit) for edge in (width, height))
