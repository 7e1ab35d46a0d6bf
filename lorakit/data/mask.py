"""遮罩：画面的哪一部分算进损失；来自图自己的透明通道，或旁边的 _mask 图（白处要学）。

教程：notebooks/02_dataset.ipynb
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageChops

from lorakit.data.color import layers
from lorakit.data.read import TURNS, in_threads, open_picture, peek, read_bytes
from lorakit.data.record import Record
from lorakit.data.report import Fault, Problem
from lorakit.errors import DataError, warn

MASK = "_mask"
FAINT = 8  # 离全黑、全白这么近，眼睛分不出来；JPEG 存的黑和白也差几级
VIVID = 48  # 最亮与最暗的通道差这么多，看得出是彩色
SIDEWAYS = (5, 6, 7, 8)  # 转正以后宽高对调的几种方向
TOLERANCE = 0.02  # 宽高比差这么多以内算同一种：缩小时取整会差一点


def read_mask(path: Path, picture: Path | None = None) -> Image.Image:
    """一张 _mask 图 -> 灰度图（L），255 是要学的地方；存成哪种模式都是画的人看到的样子。

    透明的地方没有画东西，当作黑；颜色配置不换：存的数就是权重。

    Args:
        picture: 它说的那张图；遮罩照没有转正的图画、自己又没写方向时，跟着它一起转。

    Raises:
        DataError: 和 read_image 一样。
    """
    image, orientation = open_picture(path, read_bytes(path))
    return _upright(_painted(image), orientation, picture)


def _painted(image: Image.Image) -> Image.Image:
    """遮罩的亮度（L）：合成在黑底上。"""
    color, alpha = layers(image)
    grey = color.convert("RGB").convert("L")
    return grey if alpha is None else ImageChops.multiply(grey, alpha)


def _upright(mask: Image.Image, orientation: int | None, picture: Path | None) -> Image.Image:
    """转正：自己写了方向就按自己的；没有写、形状却和没转正的图一样，就按图的。"""
    if orientation is None and picture:
        stored, turn = peek(picture)
        if turn in SIDEWAYS and _same_shape(mask.size, stored):
            orientation = None if _same_shape(mask.size, stored[::-1]) else turn
    return mask.transpose(TURNS[orientation]) if orientation in TURNS else mask


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(one[0] * other[1] / (one[1] * other[0]) - 1) <= TOLERANCE


def read_alpha(path: Path) -> Image.Image | None:
    """一张图的透明通道 -> 灰度图（L），已按 EXIF 转正；没有，或处处不透明，返回 None。"""
    image, orientation = open_picture(path, read_bytes(path))
    alpha = layers(image)[1]
    if alpha is None or alpha.getextrema()[0] == 255:
        return None
    return alpha.transpose(TURNS[orientation]) if orientation in TURNS else alpha


def _brightest(mask: Image.Image | None) -> int | None:
    return None if mask is None else mask.getextrema()[1]


def check_masks(records: Sequence[Record], folder: Path) -> list[Problem]:
    """逐张看 _mask 图：读得出、形状和图一样、有黑有白；再说一声有几张、怎么用。"""
    problems, masked = [], [record for record in records if record.mask]

    def look(record: Record) -> list[Problem]:
        try:
            image, orientation = open_picture(record.mask, read_bytes(record.mask))
            mask = _upright(_painted(image), orientation, record.path)
        except Fault as fault:
            return [fault.problem]
        if not _same_shape(mask.size, record.size):
            shapes = "遮罩是 {}x{}，图 {} 是 {}x{}".format(
                *mask.size, record.path.name, *record.size
            )
            mend = "重新画一张和图同样大小的遮罩；不要遮罩就删掉它"
            return [Problem.error("mask_shape", record.mask, f"{shapes}，宽高比不一样", mend)]
        return _meaning(record.mask, image, mask)

    for found in in_threads(look, masked):
        problems += found
    if masked:
        reason = f"{len(masked)} 张 {MASK} 图是遮罩，不当训练图；训练时写 data.mask=file 才用到"
        problems.append(Problem.note("masks", reason))
    return problems


def _meaning(path: Path, image: Image.Image, mask: Image.Image) -> list[Problem]:
    """画的多半不是要学什么：全黑、太暗、全白、彩色。"""
    low, high = mask.getextrema()
    paint = "要学的地方涂成白色"
    if high < FAINT:
        clear = "（透明的地方算黑：黑色画在透明图层上就什么也没有）"
        clear = clear if image.has_transparency_data else ""
        if high:
            clear = f"（最亮处也只有 {high}/255；用 0 和 1 存的标签图要乘以 255）"
        reason, mend = (
            f"遮罩全是黑的，什么也学不到{clear}",
            f"{paint}；整张都不想学，就连图一起移走",
        )
        return [Problem.error("mask_black", path, reason, mend)]
    if low > 255 - FAINT:
        reason, mend = "遮罩全是白的，和没有遮罩一样", "不要学的地方涂成黑色；不要遮罩就删掉它"
        return [Problem.warning("mask_white", path, reason, mend)]
    if _colorful(image):
        reason = "遮罩是彩色的，按亮度换成了灰度：红色只算 30%，蓝色只算 11%"
        mend = f"{paint}，不学的涂成黑色；放错了图就换成遮罩"
        return [Problem.warning("mask_color", path, reason, mend)]
    if high < 128:
        reason = f"遮罩太暗，最亮处也只有 {high}/255，要学的地方几乎学不到"
        return [Problem.warning("mask_dark", path, reason, f"{paint}（255）")]
    return []


def _colorful(image: Image.Image) -> bool:
    """有一块地方带颜色；压缩的杂色、几个像素的毛边不算。"""
    color, alpha = layers(image)
    if color.mode == "L":
        return False
    hue = color.convert("HSV").split()
    strong = ImageChops.multiply(hue[1], hue[2])  # 鲜艳而且亮
    strong = strong if alpha is None else ImageChops.multiply(strong, alpha)
    counts = strong.histogram()
    return sum(counts[VIVID:]) > sum(counts) / 200


def mask_files(records: Sequence[Record], kind: str) -> dict[Path, Path]:
    """图 -> 它的遮罩从哪个文件读；有的图没有就提醒。kind 是 data.mask。

    Raises:
        DataError: 要用遮罩，可是一张也没有。
    """
    if kind == "none":
        return {}
    if kind == "alpha":
        alphas = in_threads(lambda record: _brightest(read_alpha(record.path)), records)
        tops = {r.path: top for r, top in zip(records, alphas, strict=True) if top is not None}
        masks = {path: path for path in tops}
        empty = [path.name for path, top in tops.items() if top == 0]
        if empty:
            shown = "、".join(empty[:5])
            raise DataError(f"data.mask：{shown} 整张都是透明的，什么也学不到。换一张，或移走。")
    else:
        masks = {r.path: r.mask for r in records if r.mask}
    wanted = f"旁边有 {MASK} 图（例如 猫.png 旁边的 猫{MASK}.png）"
    wanted = "带透明通道" if kind == "alpha" else wanted
    if not masks:
        raise DataError(
            f"data.mask：写的是 {kind}，可是没有一张图{wanted}。准备好遮罩，或改回 none。"
        )
    without = [record.path.name for record in records if record.path not in masks]
    if without:
        warn(f"{len(without)} 张图没有遮罩，整张都学：{'、'.join(without[:5])}")
    return masks
