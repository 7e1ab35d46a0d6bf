"""几乎一样的图：按缩小后的低频成分（感知哈希）与颜色比；几个来源之间的也找。"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lorakit.data.record import Record
from lorakit.data.report import Problem, Report, names, relative
from lorakit.errors import InspectionWarning, warn

SIDE, FREQUENCIES, CELLS = 32, 16, 8  # 缩到 32x32，留 16x16 个低频，再分 8x8 格看颜色
BITS = FREQUENCIES**2 - 1  # 去掉平均亮度那一个
# 两个门槛是在小世界的 800 张图（画风、随机场景、ohwx 猫；319,600 对不同的图）上量的：
# 不同的图没有一对同时低于两者；另存为 JPEG 90/60、缩小一半、放大三倍的副本 99% 以上都低于
MAX_BITS = 16
MAX_COLOR = 12  # 0 到 255；只看亮度的话，同一姿势换了颜色也会被当成同一张
BLOCK = 512  # 一次比这么多张：一万张图时约占 20 MB


def _cosines() -> np.ndarray:
    k = np.arange(SIDE)
    waves = np.cos(np.pi * (2 * k[None] + 1) * k[:, None] / (2 * SIDE))
    return waves[:FREQUENCIES].astype(np.float32)  # (16, 32)


DCT = _cosines()


def look(image: Image.Image) -> bytes:
    """一张图看上去的样子，224 字节：亮度的感知哈希 255 位（pHash），加 8x8 格的平均颜色。

    重新压缩或缩放几乎不改变它。离散余弦变换取低频的正负，比相邻像素比大小（dHash）稳：
    大片同色的地方，压缩的噪声会让 dHash 的位随意翻转。
    """
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"), np.float32)
    low = (DCT @ grey @ DCT.T).ravel()[1:]  # (32, 32) -> (16, 16) -> 255
    step = SIDE // CELLS
    pixels = np.asarray(small, np.float32).reshape(CELLS, step, CELLS, step, 3)
    colors = pixels.mean((1, 3)).round().astype(np.uint8)
    return np.packbits(low > np.median(low)).tobytes() + colors.tobytes()


def near_duplicates(looks: Sequence[bytes]) -> list[tuple[int, int]]:
    """几乎一样的图：[(副本的下标, 前面那张的下标)]，每张副本只说最早的一张。"""
    if len(looks) < 2:
        return []
    whole = np.frombuffer(b"".join(looks), np.uint8).reshape(len(looks), -1)
    packed = -(-BITS // 8)
    signs = np.unpackbits(whole[:, :packed], axis=1)[:, :BITS].astype(np.float32) * 2 - 1
    colors = whole[:, packed:].astype(np.int16)
    copy, pairs = np.zeros(len(looks), bool), []
    for start in range(0, len(looks), BLOCK):
        stop = min(start + BLOCK, len(looks))
        # ±1 向量的内积 = 位数 - 2 x 不同的位数，一次矩阵乘法比完一块
        close = signs[start:stop] @ signs[:stop].T >= BITS - 2 * MAX_BITS  # (块, 到块尾)
        close &= np.arange(stop)[None] < np.arange(start, stop)[:, None]
        for i in np.flatnonzero(close.any(1)) + start:
            earlier = np.flatnonzero(close[i - start])
            earlier = earlier[~copy[earlier]]  # 只和每组的第一张比：全是副本时也不会变成平方
            apart = np.abs(colors[earlier] - colors[i]).max(1, initial=0)
            same = earlier[apart <= MAX_COLOR]
            if len(same):
                copy[i] = True
                pairs.append((int(i), int(same[0])))
    return pairs


def lookalikes(records: Sequence[Record], folder: Path) -> list[Problem]:
    distinct: dict[str, Record] = {}  # 一个字节也不差的已经另外报过，每种内容只留第一张
    for record in records:
        if record.look:
            distinct.setdefault(record.digest, record)
    first = list(distinct.values())
    problems = []
    for i, j in near_duplicates([record.look for record in first]):
        reason = f"和 {relative(first[j].path, folder)} 几乎一样，多半是缩放或重新压缩过的同一张"
        mend = "留下清楚的那一张；确实是两张不同的图（例如连拍）就不用管"
        problems.append(Problem.warning("near_duplicate", first[i].path, reason, mend))
    return problems


def across(records: Sequence[Record], homes: Sequence[Path]) -> list[tuple[Path, Problem]]:
    """几个来源之间重复的图：[(后面那个来源, 警告)]；一个来源里面的另外报。

    Args:
        homes: 每张图来自哪个来源。
    """
    if len(set(homes)) < 2:
        return []
    first: dict[str, tuple[Record, Path]] = {}
    copies = defaultdict(list)
    for record, home in zip(records, homes, strict=True):
        earlier = first.setdefault(record.digest, (record, home))[1]
        if earlier != home:
            copies["duplicate", home, earlier].append(record.path)
    distinct = [both for both in first.values() if both[0].look]
    for i, j in near_duplicates([record.look for record, _ in distinct]):
        (record, home), earlier = distinct[i], distinct[j][1]
        if earlier != home:
            copies["near_duplicate", home, earlier].append(record.path)
    problems = []
    for (code, home, earlier), paths in copies.items():
        count, shown = len(paths), names(paths, home)
        reason = f"{count} 张图和 {earlier} 里的内容一样，会多学一遍：{shown}"
        mend = "删掉一份；想让一个文件夹多学几遍，写 {folder: 路径, repeats: 次数}"
        if code != "duplicate":
            reason = f"{count} 张图和 {earlier} 里的几乎一样，多半是缩放或重新压缩过的：{shown}"
            mend = "留下清楚的那一份；确实是不同的图（例如连拍）就不用管"
        problems.append((home, Problem.warning(code, None, reason, mend)))
    return problems


def say_across(records: Sequence[Record], homes: Sequence[Path]):
    """训练之前说出几个来源之间重复的图。"""
    for home, problem in across(records, homes):
        said = f"data.folder：{home} 的 {problem.reason}。{problem.mend}。"
        warn(said, InspectionWarning)


def with_across(
    results: Sequence[tuple[list[Record], Report]], homes: Sequence[Path]
) -> list[tuple[list[Record], Report]]:
    """各来源的 (记录, 报告)，来源之间重复的图也写进后面那个的报告；homes 之后的（同类图）不比。"""
    both = [
        (record, home)
        for (records, _), home in zip(results, homes, strict=False)
        for record in records
    ]
    told = across([record for record, _ in both], [home for _, home in both])
    added = [[one for where, one in told if where == home] for home in homes]
    added += [[]] * (len(results) - len(homes))
    return [(r, report.plus(more)) for (r, report), more in zip(results, added, strict=True)]
