"""一张图的几种样子：左右翻转、随机裁切；由图的内容决定，所以可以缓存，重来也一样。"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from lorakit.data import crop_box

SMALLEST = 0.8  # 随机裁切的边长最小是最大框的这么多倍：再小，描述里说的东西可能就裁没了
Box = tuple[float, float, float, float]


class View(NamedTuple):
    """一种样子：翻不翻转、第几种裁切（0 是正中间最大的）。"""

    flip: bool = False
    crop: int = 0
    place: str = ""  # 裁在哪里由这个内容哈希决定；空的就用自己的（控制图用目标图的，才裁在同一处）

    def fields(self) -> dict:
        """写进缓存键的字段；原样不写，所以以前的缓存仍然有效。"""
        flip = {"flip": True} if self.flip else {}
        crop = {"crop": self.crop} if self.crop else {}
        return flip | crop | ({"place": self.place} if self.crop and self.place else {})


def views(flip: bool, crops: int) -> list[View]:
    """要编码的全部样子；第一种总是正中间、不翻转。"""
    return [View(turned, crop) for crop in range(crops) for turned in (False, True)[: 1 + flip]]


def box_for(source: tuple[int, int], size: tuple[int, int], view: View, digest: str) -> Box:
    """这种样子在原图（宽, 高）上的裁切框 (左, 上, 右, 下)，宽高比与 size 相同。"""
    left, top, right, bottom = crop_box(source, size)
    if not view.crop:
        return left, top, right, bottom
    rng = np.random.default_rng([view.crop, int((view.place or digest)[:12], 16)])
    scale, x, y = rng.uniform(SMALLEST, 1), rng.random(), rng.random()
    width, height = (right - left) * scale, (bottom - top) * scale
    left, top = x * (source[0] - width), y * (source[1] - height)
    return left, top, min(left + width, source[0]), min(top + height, source[1])


def show(
    image: Image.Image, size: tuple[int, int], view: View, digest: str,
    filter: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:  # fmt: skip
    """裁切、缩放一次到 size，需要时翻转。"""
    shown = image.resize(size, filter, box=box_for(image.size, size, view, digest))
    return _turned(shown, view)


def cut(image: Image.Image, size: tuple[int, int], view: View, digest: str) -> Image.Image:
    """文本编码器看到的控制图：和 show 裁在同一处、一样翻转，但不缩放；没有另外裁切就是整张。"""
    if view.crop:
        image = image.crop([round(edge) for edge in box_for(image.size, size, view, digest)])
    return _turned(image, view)


def _turned(image: Image.Image, view: View) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else image
