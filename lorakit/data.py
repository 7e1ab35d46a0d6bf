"""图片文件夹 -> 可以训练的记录：检查、触发词、分桶、裁切、留出检验集、分批。

教程：notebooks/02_dataset.ipynb
"""

import hashlib
import math
import shlex
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from lorakit.data_check import IMAGE_SUFFIXES, Record, has_trigger, inspect
from lorakit.data_read import CJK, read_caption, read_image
from lorakit.data_report import Problem, Report
from lorakit.errors import DataError

__all__ = [
    "IMAGE_SUFFIXES",
    "Batches",
    "Problem",
    "Record",
    "Report",
    "apply_trigger",
    "bucket_for",
    "buckets",
    "fit",
    "inspect",
    "load_records",
    "read_caption",
    "read_image",
    "split_holdout",
]


def load_records(
    folder: str | Path, trigger: str = "", control: str | Path | None = None
) -> list[Record]:
    """检查文件夹，返回加好触发词的记录。

    Raises:
        DataError: 有任何错误时；列出错误，警告和说明留给 lorakit check。
    """
    records, report = inspect(folder, trigger, control)
    if report.errors:
        pair = f" --control {shlex.quote(str(control))}" if control else ""
        command = f"lorakit check {shlex.quote(str(folder))}{pair}"
        hint = f"先运行 {command} 看完整报告；改好之前没有开始训练。"
        raise DataError(f"{report.text(('error',))}\n\n{hint}")
    return [replace(r, caption=apply_trigger(r.caption, trigger)) for r in records]


def apply_trigger(caption: str, trigger: str) -> str:
    """描述里没有触发词就加在最前面：中文描述用“，”隔开，其他用“, ”。"""
    trigger = trigger.strip()
    if not trigger or has_trigger(caption, trigger):
        return caption
    return f"{trigger}{'，' if CJK.search(caption) else ', '}{caption}"


def buckets(resolution: int, multiple: int) -> list[tuple[int, int]]:
    """分桶用的 (宽, 高)：面积约为 resolution²，宽高比 1:2 到 2:1，都是 multiple 的倍数，含正方形。

    Raises:
        DataError: resolution 不是 multiple 的倍数。
    """
    if resolution <= 0 or resolution % multiple:
        raise DataError(f"分辨率要是 {multiple} 的倍数，得到 {resolution}。")
    # 步子约为边长的 1/16：桶再多，每桶只剩一两张图，一批就凑不满；最多多裁 7%
    step = max(multiple, round(resolution / 16 / multiple) * multiple)
    sizes = {(resolution, resolution)}
    for width in range(resolution, int(resolution * math.sqrt(2)) + 1, step):
        height = round(resolution**2 / width / multiple) * multiple
        if height and width <= 2 * height and abs(width * height / resolution**2 - 1) < 0.15:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def bucket_for(size: tuple[int, int], resolution: int, multiple: int) -> tuple[int, int]:
    """宽高比最接近 size 的桶（按比值的对数，横竖一样对待）。"""
    aspect = math.log(size[0] / size[1])
    return min(
        buckets(resolution, multiple), key=lambda b: (abs(math.log(b[0] / b[1]) - aspect), b)
    )


def fit(
    image: Image.Image, size: tuple[int, int]
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """从中间裁出 size 的宽高比、缩放一次到 size（像素），不变形。

    Returns:
        (图, 裁切框)；框是原图坐标 (左, 上, 右, 下)，可以有小数。
    """
    width, height = image.size
    if width * size[1] > height * size[0]:  # 太宽，裁左右
        inner, outer = height * size[0] / size[1], float(height)
    else:
        inner, outer = float(width), width * size[1] / size[0]
    left, top = max(0.0, (width - inner) / 2), max(0.0, (height - outer) / 2)
    box = (left, top, min(left + inner, float(width)), min(top + outer, float(height)))
    return image.resize(size, Image.Resampling.LANCZOS, box=box), box


def split_holdout(records: Sequence[Record], fraction: float) -> tuple[list[Record], list[Record]]:
    """分成 (训练, 留出)：按图片内容决定，添一张图不会打乱别的图。

    至少 4 张才留出，这时至少留一张；最多留约定的两倍，不会全留。
    """
    count = len(records)
    if fraction <= 0 or count < 4:
        return list(records), []
    # 内容的哈希当作 [0, 1) 的随机数，小于 fraction 的留出：每张图自己决定，与别的图无关
    hashes = [hashlib.sha256(record.digest.encode()).hexdigest() for record in records]
    draws = [int(value[:13], 16) / 16**13 for value in hashes]
    wanted = sum(draw < fraction for draw in draws)
    wanted = min(max(wanted, 1), max(1, round(2 * fraction * count)), count - 1)
    order = sorted(range(count), key=lambda i: (draws[i], records[i].path.as_posix()))
    held = set(order[:wanted])
    train = [record for i, record in enumerate(records) if i not in held]
    return train, [records[i] for i in sorted(held)]


class Batches:
    """无穷的批次流：第 k 批只由 (seed, k) 决定，接着训练不必从头走一遍。

    每轮每个下标正好出现 repeats 次；一批只有一种尺寸；一桶的零头成为一个小批，不丢。
    """

    def __init__(self, buckets: Sequence[Hashable], batch_size: int, seed: int, repeats: int = 1):
        """buckets[i] 是第 i 张图的尺寸（任何可比较的东西）。

        Raises:
            DataError: 没有图，或 batch_size、repeats 小于 1。
        """
        if not buckets:
            raise DataError("没有可以训练的图。先运行 lorakit check 看看数据。")
        if batch_size < 1 or repeats < 1:
            raise DataError(f"batch_size 和 repeats 至少是 1，得到 {batch_size} 和 {repeats}。")
        self._groups = defaultdict(list)
        for i, bucket in enumerate(buckets):
            self._groups[bucket].append(i)
        self._size, self._seed, self._repeats = batch_size, seed, repeats
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    @property
    def per_epoch(self) -> int:
        """一轮有几批。"""
        return sum(-(-len(group) * self._repeats // self._size) for group in self._groups.values())

    def batch(self, k: int) -> list[int]:
        """第 k 批（从 0 数）的下标。"""
        assert k >= 0, k
        epoch, place = divmod(k, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffle(epoch))
        return list(self._epoch[1][place])

    def _shuffle(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng((self._seed, epoch))
        batches = []
        for group in self._groups.values():
            # 一遍一遍地洗，而不是重复后一起洗：同一张图尽量不落在同一批
            order = np.concatenate([rng.permutation(group) for _ in range(self._repeats)]).tolist()
            batches += [order[i : i + self._size] for i in range(0, len(order), self._size)]
        return [batches[i] for i in rng.permutation(len(batches))]
