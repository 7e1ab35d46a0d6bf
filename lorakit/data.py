"""图片文件夹 -> 可以训练的记录：检查、触发词、分桶、裁切、留出检验集、分批。

教程：notebooks/02_dataset.ipynb
"""

import hashlib
import math
import shlex
import warnings
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from lorakit.config_groups import Data, Source
from lorakit.data_check import IMAGE_SUFFIXES, Record, has_trigger, inspect
from lorakit.data_datasets import unpacked
from lorakit.data_read import CJK, Progress, read_caption, read_image
from lorakit.data_report import Problem, Report, names
from lorakit.errors import DataError, LorakitWarning

MULTIPLE = 16  # 文生图家族的宽高都要是它的倍数（有测试对着每个家族核对）
ENLARGED = 1.5  # 放大到这么多倍以上，看得出模糊

__all__ = [
    "IMAGE_SUFFIXES",
    "Batches",
    "Problem",
    "Record",
    "Report",
    "apply_trigger",
    "bucket_for",
    "buckets",
    "crop_box",
    "doctor",
    "fit",
    "framing",
    "inspect",
    "load_prior",
    "load_records",
    "load_sources",
    "places",
    "read_caption",
    "read_image",
    "split_holdout",
    "unpacked",
]


def load_records(
    folder: str | Path, trigger: str = "", control: str | Path | None = None
) -> list[Record]:
    """检查文件夹（也可以是 datasets 存下的），返回加好触发词的记录。

    Raises:
        DataError: 有任何错误时；列出错误，警告和说明留给 lorakit check。
    """
    folder = unpacked(folder)
    records, report = inspect(folder, trigger, control)
    pair = f" --control {shlex.quote(str(control))}" if control else ""
    command = f"lorakit check {shlex.quote(str(folder))}{pair}"
    if report.errors:
        hint = f"先运行 {command} 看完整报告；改好之前没有开始训练。"
        raise DataError(f"{report.text(('error',))}\n\n{hint}")
    if report.warnings:
        said = f"体检有 {len(report.warnings)} 个警告，例如 {report.warnings[0].reason}；"
        warnings.warn(f"{said}看全部：{command}", LorakitWarning, stacklevel=2)
    return [replace(r, caption=apply_trigger(r.caption, trigger)) for r in records]


def load_sources(sources: Sequence[Source], trigger: str = "") -> list[Record]:
    """几个来源的记录接在一起，各带各的重复次数。

    Raises:
        DataError: 任何一个来源有错误；同一个文件从两个来源都能走到。
    """
    records, seen = [], {}
    for source in sources:
        for record in load_records(source.folder, trigger, source.control_folder):
            first = seen.setdefault(record.path.resolve(), source.folder)
            if first is not source.folder:
                raise DataError(
                    f"data.folder：{record.path} 从 {first} 和 {source.folder} 都能走到，会学两遍。"
                    "去掉一个；想多学几遍，写 {folder: 路径, repeats: 次数}。"
                )
            records.append(replace(record, repeats=source.repeats))
    return records


def load_prior(folder: Path | None, trigger: str, train: Sequence[Record]) -> list[Record]:
    """同类图片（先验保留）的记录，描述原样；没有指定文件夹就是空的。

    Raises:
        DataError: 文件夹里有错误；和训练图重复，或描述里有触发词：那会把同类也教成它。
    """
    if folder is None:
        return []
    records, known = load_records(folder), {record.digest for record in train}
    same = [record.path for record in records if record.digest in known]
    marked = [r.path for r in records if trigger.strip() and has_trigger(r.caption, trigger)]
    for paths, what in ((same, "也在训练图里"), (marked, f"的描述里有触发词“{trigger.strip()}”")):
        if paths:
            raise DataError(
                f"data.class_folder：{names(paths, Path(folder))} {what}。"
                "这里要放普通的同类（练一只特定的猫，就放别的猫），描述里不写触发词。"
            )
    return records


def places(data: Data) -> list[tuple[Source, str]]:
    """设置里的每个来源和它的触发词；同类图片在最后，它没有触发词。"""
    prior = [Source(folder=data.class_folder)] if data.class_folder else []
    return [*((source, data.trigger) for source in data.sources), *((one, "") for one in prior)]


def doctor(data: Data, progress: Progress | None = None) -> list[tuple[list[Record], Report]]:
    """体检设置里的每个来源（同类图片在最后），各返回 (可用的记录, 报告)。"""
    return [
        inspect(unpacked(source.folder), trigger, source.control_folder, progress)
        for source, trigger in places(data)
    ]


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
        low = max(resolution // multiple, 1) * multiple
        near = f"最近的是 {low} 和 {low + multiple}"
        raise DataError(f"分辨率要是 {multiple} 的倍数，得到 {resolution}；{near}。")
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
    box = crop_box(image.size, size)
    return image.resize(size, Image.Resampling.LANCZOS, box=box), box


def framing(
    records: Sequence[Record], resolution: int, multiple: int, folder: Path
) -> list[Problem]:
    """按这个分辨率训练时，各桶有几张、裁得最多的是哪张；要放大才够大的图是警告。"""
    if not records:
        return []
    boxes = {r.path: bucket_for(r.size, resolution, multiple) for r in records}
    kept, grown = {}, {}
    for record in records:
        size, box = record.size, crop_box(record.size, boxes[record.path])
        kept[record.path] = (box[2] - box[0]) * (box[3] - box[1]) / (size[0] * size[1])
        grown[record.path] = boxes[record.path][0] / (box[2] - box[0])
    counts = Counter(boxes.values()).most_common()
    shown = "、".join(f"{width}x{height} {count} 张" for (width, height), count in counts[:5])
    more = f" 等 {len(counts)} 种" if len(counts) > 5 else ""
    most = min(kept, key=kept.get)
    lost = f"；裁掉最多的是 {most.name}，裁掉 {1 - kept[most]:.0%}（网页报告里画着红框）"
    lost = lost if kept[most] < 0.995 else ""
    reason = f"按分辨率 {resolution} 训练时的尺寸（宽x高）：{shown}{more}{lost}"
    problems = [Problem("note", "buckets", None, reason, "")]
    blurred = [path for path, times in grown.items() if times > ENLARGED]
    if blurred:
        times = max(grown.values())
        reason = f"{len(blurred)} 张图比训练尺寸小，要放大（最多 {times:.1f} 倍），会学到模糊的样子"
        reason += f"：{names(blurred, folder)}"
        mend = "换成大一点的原图，或把 data.resolution 改小"
        problems.append(Problem("warning", "enlarged", None, reason, mend))
    return problems


def crop_box(source: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """从 source 大小的图中间裁出 size 的宽高比：最大的那个框 (左, 上, 右, 下)。"""
    width, height = source
    if width * size[1] > height * size[0]:  # 太宽，裁左右
        inner, outer = height * size[0] / size[1], float(height)
    else:
        inner, outer = float(width), width * size[1] / size[0]
    left, top = max(0.0, (width - inner) / 2), max(0.0, (height - outer) / 2)
    return left, top, min(left + inner, float(width)), min(top + outer, float(height))


def split_holdout(records: Sequence[Record], fraction: float) -> tuple[list[Record], list[Record]]:
    """分成 (训练, 留出)：按图片内容决定，添一张图不会打乱别的图。

    至少 4 张才留出，这时至少留一张；最多留约定的两倍，不会全留。为了守住这两头，
    图很少时（二十来张）添一张偶尔会让一张换边。
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

    def __init__(
        self,
        buckets: Sequence[Hashable],
        batch_size: int,
        seed: int,
        repeats: int | Sequence[int] = 1,
    ):
        """buckets[i] 是第 i 张图的尺寸（任何可比较的东西）；repeats 可以每张图各给一个。

        Raises:
            DataError: 没有图，或 batch_size、repeats 小于 1。
        """
        if not buckets:
            raise DataError("没有可以训练的图。先运行 lorakit check 看看数据。")
        repeats = [repeats] * len(buckets) if isinstance(repeats, int) else list(repeats)
        if batch_size < 1 or min(repeats) < 1:
            raise DataError(
                f"batch_size 和 repeats 至少是 1，得到 {batch_size} 和 {min(repeats)}。"
            )
        self._groups = defaultdict(list)
        for i, bucket in enumerate(buckets):
            self._groups[bucket].append(i)
        self._size, self._seed, self._repeats = batch_size, seed, repeats
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    @property
    def per_epoch(self) -> int:
        """一轮有几批。"""
        sizes = (sum(self._repeats[i] for i in group) for group in self._groups.values())
        return sum(-(-size // self._size) for size in sizes)

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
            times = np.asarray([self._repeats[i] for i in group])
            rounds = (np.asarray(group)[times > i] for i in range(times.max()))
            order = np.concatenate([rng.permutation(some) for some in rounds]).tolist()
            batches += [order[i : i + self._size] for i in range(0, len(order), self._size)]
        return [batches[i] for i in rng.permutation(len(batches))]
