"""遮罩：画面的哪一部分算进损失；来自图自己的透明通道，或旁边的 _mask 图（白处要学）。

教程：notebooks/02_dataset.ipynb
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lorakit.data.read import TURNS, open_picture, read_bytes, read_image
from lorakit.data.record import Record
from lorakit.data.report import Fault, Problem
from lorakit.errors import DataError, warn

MASK = "_mask"
TOLERANCE = 0.02  # 宽高比差这么多以内算同一种：缩小时取整会差一点


def read_mask(path: Path) -> Image.Image:
    """一张 _mask 图 -> 灰度图（L），255 是要学的地方。

    Raises:
        DataError: 和 read_image 一样。
    """
    return read_image(path).convert("L")


def read_alpha(path: Path) -> Image.Image | None:
    """一张图的透明通道 -> 灰度图（L），已按 EXIF 转正；没有透明通道返回 None。"""
    image, orientation = open_picture(path, read_bytes(path))
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return alpha.transpose(TURNS[orientation]) if orientation in TURNS else alpha


def check_masks(records: Sequence[Record], folder: Path) -> list[Problem]:
    """逐张看 _mask 图：读得出、形状和图一样、不是全黑；再说一声有几张、怎么用。"""
    problems, count = [], 0
    for record in (record for record in records if record.mask):
        count += 1
        try:
            mask = read_mask(record.mask)
        except Fault as fault:
            problems.append(fault.problem)
            continue
        (width, height), (w, h) = record.size, mask.size
        if abs(w * height / (h * width) - 1) > TOLERANCE:
            reason = f"遮罩是 {w}x{h}，图 {record.path.name} 是 {width}x{height}，宽高比不一样"
            mend = "重新画一张和图同样大小的遮罩；不要遮罩就删掉它"
            problems.append(Problem.error("mask_shape", record.mask, reason, mend))
        elif not mask.getextrema()[1]:
            reason, mend = (
                "遮罩全是黑的，什么也学不到",
                "要学的地方涂成白色；整张都不想学，就连图一起移走",
            )
            problems.append(Problem.error("mask_black", record.mask, reason, mend))
    if count:
        reason = f"{count} 张 {MASK} 图是遮罩，不当训练图；训练时写 data.mask=file 才用到"
        problems.append(Problem.note("masks", reason))
    return problems


def mask_files(records: Sequence[Record], kind: str) -> dict[Path, Path]:
    """图 -> 它的遮罩从哪个文件读；有的图没有就提醒。kind 是 data.mask。

    Raises:
        DataError: 要用遮罩，可是一张也没有。
    """
    if kind == "none":
        return {}
    if kind == "alpha":
        masks = {r.path: r.path for r in records if read_alpha(r.path) is not None}
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
