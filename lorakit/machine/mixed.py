"""排练用的数据：几种宽高比都有的一小批假照片；以及从自己的数据里，每种形状各挑一批。"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from lorakit.data.crops import bucket_for
from lorakit.data.record import Record
from lorakit.data.select import Selection

RATIOS = ((1, 1), (3, 4), (9, 16), (16, 9), (2, 3))
WORDS = "red cat sits on the old wooden bench under a tall tree beside the quiet lake"
LONG = 60  # 最长的描述约多少个词


def write(folder: Path, side: int, each: int, controls: bool = False) -> Path:
    """写一个假数据集：RATIOS 的每种形状各 each 张，面积约 side²，描述长短不一；返回 folder。

    Args:
        controls: 编辑模型要的控制图也写，与图一样大；各在 images 与 control 里。
    """
    rng = np.random.default_rng(0)
    images = folder / "images" if controls else folder
    for number in range(each * len(RATIOS)):
        across, down = RATIOS[number % len(RATIOS)]
        size = [round(side * math.sqrt(a / b)) for a, b in ((across, down), (down, across))]
        for home in [images, *([folder / "control"] if controls else [])]:
            home.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            picture.save(home / f"{number:02}.jpg", quality=92)
        count = 5 + (LONG - 5) * number // max(1, each * len(RATIOS) - 1)
        said = " ".join(rng.choice(WORDS.split(), count))
        (images / f"{number:02}.txt").write_text(f"{said}\n", encoding="utf-8")
    return folder


def shape_of(record: Record, side: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """一条记录训练时的形状：图与各张控制图裁成的 (宽, 高)。"""
    return tuple(bucket_for(size, side, multiple) for size in (record.size, *record.control_sizes))


def shares(records: Sequence[Record], config, multiple: int) -> dict[Hashable, int]:
    """{形状: 一轮里有几批}，占得最多的在前。"""
    seen: dict[Hashable, int] = {}
    for record in records:
        shape = shape_of(record, config.data.resolution, multiple)
        seen[shape] = seen.get(shape, 0) + record.repeats * config.data.repeats
    counts = {shape: -(-count // config.train.batch_size) for shape, count in seen.items()}
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


def kinds(records: Sequence[Record], config, family) -> int:
    """形状与描述的长短一共有几种：录成 CUDA 图时，每种各录一张。"""
    side, captions = config.data.resolution, [record.caption for record in records]
    counts: Sequence[int] = [0] * len(captions)
    if family.cond_shapes(1, side) != family.cond_shapes(2, side):  # 有的总补到一样长
        counts = family.count_tokens(captions)
    pairs = zip(records, counts, strict=True)
    return len({(shape_of(one, side, family.multiple), count) for one, count in pairs})


def few(chosen: Selection, config, multiple: int) -> Selection:
    """每种形状挑一批（描述最长的几张），重复次数都当 1：一轮正好把每种形状走一遍。"""

    def pick(records: Sequence[Record], most: int) -> list[Record]:
        groups: dict[Hashable, list[Record]] = {}
        for record in sorted(records, key=lambda one: -len(one.caption)):
            shape = shape_of(record, config.data.resolution, multiple)
            groups.setdefault(shape, []).append(replace(record, repeats=1))
        return [record for group in groups.values() for record in group[:most]]

    size = config.train.batch_size
    kept = (pick(chosen.train, size), pick(chosen.held, 1), pick(chosen.prior, size))
    return Selection(*kept, chosen.masks)
