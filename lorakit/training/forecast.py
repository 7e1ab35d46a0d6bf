"""照着一份设置体检：除了图和描述本身，还看底模读不读得完、图够不够大、练多少步。"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from lorakit import families
from lorakit.config import Config
from lorakit.data.batches import Batches
from lorakit.data.crops import bucket_for, framing
from lorakit.data.lint import over_limit
from lorakit.data.load import inspect_sources, places
from lorakit.data.read import Progress
from lorakit.data.record import Record
from lorakit.data.report import Problem, Report
from lorakit.data.select import select
from lorakit.data.trigger import apply_trigger
from lorakit.errors import InspectionWarning, LorakitError, warn
from lorakit.training.plan import Plan

Checked = list[tuple[list[Record], Report]]


class Needs(NamedTuple):
    """底模对数据的要求；lengthy 挑出太长的描述，要读它的分词器，取不到底模就什么也不说。"""

    name: str
    multiple: int
    controls: tuple[int, int]
    lengthy: Callable[[Sequence[Record], str], list[Problem]] = lambda records, trigger: []


def open_light(config: Config) -> Needs:
    """底模的要求；不下载权重。取不到底模，就用这个家族一般的要求。"""
    try:
        one = families.open_family(config)
    except LorakitError as error:
        warn(f"{error}这次没有检查描述的长度。")
        one = families.get(config.model.family)
        return Needs(one.name, one.multiple, one.controls)
    return Needs(one.name, one.multiple, one.controls, partial(_length, one))


def examine(config: Config, family: Needs, progress: Progress | None = None) -> Checked:
    """每个来源一份 (可用的记录, 报告)，同类图片在最后。"""
    results = []
    for (records, report), (_, trigger) in zip(
        inspect_sources(config.data, progress), places(config.data), strict=True
    ):
        problems = framing(records, config.data.resolution, family.multiple, report.folder)
        problems += family.lengthy(records, trigger)
        results.append((records, report.plus(problems)))
    return results


def forecast(config: Config, family: Needs) -> str:
    """体检没有错误之后：真照这份设置挑一遍记录，说出训练与留出各几张、一共看几遍。

    Raises:
        LorakitError: 图没有毛病，但设置与它们、与底模对不上。
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InspectionWarning)  # 报告刚刚说过
        chosen = select(config, family)
    data, train = config.data, config.train
    sizes = [(r.size, *r.control_sizes) for r in chosen.train]
    shapes = [
        tuple(bucket_for(size, data.resolution, family.multiple) for size in row) for row in sizes
    ]
    repeats = [record.repeats for record in chosen.train]
    each = [data.repeats * times for times in repeats]
    batches = Batches(shapes, train.batch_size, train.seed, each)
    plan = Plan.of(config, repeats, batches.per_epoch)
    prior = f"，同类 {len(chosen.prior)} 张" if chosen.prior else ""
    return f"训练 {len(chosen.train)} 张，留出 {len(chosen.held)} 张检验{prior}。\n{plan.text()}"


def _length(family, records: Sequence[Record], trigger: str) -> list[Problem]:
    """超过文本编码器上限的描述。"""
    if not records:  # 不必为它取分词器
        return []
    counts = family.count_tokens([apply_trigger(record.caption, trigger) for record in records])
    return over_limit(records, counts, family.caption_limit, f"{family.name} 的文本编码器")
