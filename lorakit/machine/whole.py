"""照排练的账推算整个训练要多久。"""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Whole:
    """整个训练，各项都是秒。"""

    encode: float
    prepare: float  # 载入、编译、录图
    steps: float
    each: float  # 一步
    evaluate: float
    save: float
    sample: float

    @property
    def total(self) -> float:
        parts = (self.encode, self.prepare, self.steps, self.evaluate, self.save, self.sample)
        return sum(parts)


@dataclass(frozen=True)
class Counts:
    """真的训练与排练各有多少张图、每种形状一轮几批。"""

    shares: Mapping[Hashable, int]  # 形状 -> 一轮里有几批
    pictures: int
    few: int  # 排练编码了几张
    held: int
    few_held: int


def estimate_whole(config, drawn: int, rows: Mapping, counts: Counts, typical: Mapping) -> Whole:
    """各环节的账 -> 整个训练。

    Args:
        config: 真的设置；排练时样张只走 drawn 步。
        rows: 环节的键 -> 走成了的那一行。
        typical: 形状 -> 平常的一批几秒。
    """
    train = config.train
    batches, usual = sum(counts.shares.values()), statistics.mean(typical.values())
    each = sum(typical.get(shape, usual) * n for shape, n in counts.shares.items()) / batches
    each *= train.grad_accum
    walked = rows["train"].facts["steps"]
    spent = {key: row.seconds for key, row in rows.items()}
    evals = 1 + (train.steps // config.eval.every if config.eval.every else 0)
    ratio = counts.held / max(1, counts.few_held)
    rounds = 2 + (train.steps // config.sample.every if config.sample.every else 0)
    encoding = rows["encode"].facts.get("each", 0.0)
    return Whole(
        encode=spent["encode"] + (counts.pictures - counts.few) * encoding,
        prepare=spent["load"]
        + spent.get("compile", 0.0)
        + max(0.0, sum(walked) - len(walked) * each),
        steps=train.steps * each,
        each=each,
        evaluate=evals * spent.get("examine", 0.0) * ratio,
        save=math.ceil(train.steps / train.save_every) * spent.get("save", 0.0),
        sample=rounds * len(config.sample.prompts) * picture(rows.get("sample"), config, drawn),
    )


def picture(row, config, drawn: int) -> float:
    """画一张样张要几秒：量到的，加上没有走的那些步。"""
    if row is None:
        return 0.0
    return row.seconds / row.facts["images"] + (config.sample.steps - drawn) * row.facts["pace"]


def pace(marks: Sequence[float], steps: int) -> float:
    """前向的时刻 -> 走一步几秒；一步可能有两次前向（引导）。"""
    gaps = [b - a for a, b in pairwise(marks)]
    return len(marks) / steps * statistics.median(gaps) if gaps else 0.0


def spoken(seconds: float) -> str:
    """一段时间怎么说。"""
    if seconds < 90:
        return f"{seconds:.3g} 秒"
    return f"{seconds / 60:.0f} 分钟" if seconds < 5400 else f"{seconds / 3600:.1f} 小时"
