"""图片文件夹 -> 可以训练的记录：体检没有错才给，加好触发词；留出哪些在 select.py。

教程：notebooks/02_dataset.ipynb
"""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lorakit.config.groups import Data, Source
from lorakit.data.huggingface import unpacked
from lorakit.data.inspection import inspect, stays_clear
from lorakit.data.lookalike import say_across, with_across
from lorakit.data.read import Progress
from lorakit.data.record import Record
from lorakit.data.report import Report, names
from lorakit.data.trigger import apply_trigger, has_trigger
from lorakit.errors import DataError, InspectionWarning, warn


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
        warn(f"{said}看全部：{command}", InspectionWarning)
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
    say_across(records, [seen[record.path.resolve()] for record in records])
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


def inspect_sources(
    data: Data, progress: Progress | None = None
) -> list[tuple[list[Record], Report]]:
    """体检设置里的每个来源（同类图片在最后），各返回 (可用的记录, 报告)。"""
    results = []
    for source, trigger in places(data):
        given = (unpacked(source.folder), trigger, source.control_folder, progress)
        records, report = inspect(*given)
        # 次数、同类图片、透明已经写了，不必再说
        told = {"folder_counted": source.repeats > 1, "class_beside": data.class_folder}
        told["control_clear"] = data.clear
        kept = tuple(p for p in report.problems if not told.get(p.code))
        kept = tuple(map(stays_clear, kept)) if data.clear else kept
        results.append((records, replace(report, problems=kept)))
    return with_across(results, [source.folder for source in data.sources])
