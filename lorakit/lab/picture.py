"""图的进出：张量、PIL 图、图表 -> 带中文字体的小文件；只用 Figure，不用 pyplot（回调会并发）。"""

import io
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from matplotlib import font_manager, rcParams
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from lorakit.data.color import on_checker, on_white
from lorakit.errors import LorakitError
from lorakit.families import pixels
from lorakit.results.report import FONT, GAP, LETTERS, chinese, grid

BLUE, RED, GRAY, GREEN, ORANGE = "#3f6fb5", "#c4382c", "#9aa4b2", "#3c8c5a", "#d98a1f"
Picture = Image.Image | Figure | torch.Tensor
SAME = 8  # 指纹差这么多位以内，还是同一张图


# 图例、注释等是画到一半才造出来的，那时也要用中文字体：所以全局设好，读者自己的图表也有中文
rcParams.update(
    chinese()
    | {
        "font.size": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11.5,
        "legend.edgecolor": "none",
        "legend.framealpha": 0.85,
        "legend.fontsize": 9.5,
        "savefig.facecolor": "white",
    }
)


def chart(columns: int = 1, height: float = 2.7, width: float = 7.4, **options):
    """新的图表：返回 (Figure, 一个或一排坐标轴)；中文已经设好。height、width 是英寸。"""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    return figure, figure.subplots(1, columns, **options)


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    fallback = font_manager.findfont("DejaVu Sans")
    return frozenset().union(*(font_manager.get_font(p).get_charmap() for p in (FONT, fallback)))


def missing(text: str, fallback: bool = True) -> set[str]:
    """画不出来的字；`fallback=False` 只看随包的中文字体（对照图上的字用它）。"""
    known = _glyphs() if fallback else font_manager.get_font(FONT).get_charmap()
    return {c for c in text if not c.isspace() and ord(c) not in known}


def to_tensor(image: Image.Image) -> torch.Tensor:
    """PIL 图 -> (1, 3, H, W)，取值 [-1, 1]：模型看到的样子。"""
    return pixels.to_pixels(on_white(image))


def to_image(x: torch.Tensor) -> Image.Image:
    """(1, 3, H, W)、(3, H, W) 或 (H, W)，取值 [-1, 1] -> PIL 图；超出的截到边上。"""
    x = x.detach()
    if x.dim() == 2:  # 一层的灰度图
        return pixels.to_image(x.expand(3, *x.shape)).convert("L")
    return pixels.to_image(x[0] if x.dim() == 4 else x)


def wall(
    rows, row_names: Sequence[str], column_names: Sequence[str], cell: int = 88, letters=LETTERS
):
    """一墙带行名、列名的图；每格可以是 PIL 图或张量。没有行名（[""]）就不留左边的空。"""
    pictures = [[p if isinstance(p, Image.Image) else to_image(p) for p in row] for row in rows]
    whole = grid(pictures, row_names, column_names, cell, letters)
    if any(row_names):
        return whole
    return whole.crop((whole.width - len(column_names) * (cell + GAP), 0, *whole.size))


def render(picture: Picture) -> Image.Image:
    """图表、张量或 PIL 图 -> RGB 的 PIL 图；透明的地方露出格子。"""
    if isinstance(picture, Figure):
        lost = missing("".join(t.get_text() for t in picture.findobj(Text)))
        if lost:
            which = "".join(sorted(lost))
            raise LorakitError(f"图上有字体里没有的字“{which}”，画出来是空框：换成别的字。")
        file = io.BytesIO()
        picture.savefig(file, format="png")
        return Image.open(file).convert("RGB")
    picture = to_image(picture) if isinstance(picture, torch.Tensor) else picture
    return on_checker(picture)


def encode(picture: Picture) -> tuple[str, bytes]:
    """-> (MIME 类型, 字节)：图表存成少色的 PNG，照片样的存成 JPEG，练习册才轻。"""
    image, file = render(picture), io.BytesIO()
    plain = isinstance(picture, Figure) and not any(a.images for a in picture.axes)
    if plain:
        few = image.quantize(20, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(file, "PNG", optimize=True)
        return "image/png", file.getvalue()
    image.save(file, "JPEG", quality=45, optimize=True)
    return "image/jpeg", file.getvalue()


def stack(pictures: Sequence[Picture]) -> Image.Image:
    """几张图从上到下叠成一张，左边对齐。"""
    images = [render(p) for p in pictures]
    whole = Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images)), "white")
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    return whole


def fingerprint(picture: Picture) -> str:
    """按内容认图：缩到 8x8，比平均亮的记 1，共 16 个十六进制字；差几位说明几乎一样。"""
    small = np.asarray(render(picture).convert("L").resize((8, 8), Image.Resampling.BOX), float)
    return np.packbits(small > small.mean()).tobytes().hex()


def distance(one: str, other: str) -> int:
    """两个指纹差几位（一共 64 位）；不超过 SAME 就当作同一张图。"""
    return (int(one, 16) ^ int(other, 16)).bit_count()
