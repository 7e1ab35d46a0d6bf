"""看懂与清理缓存：一张图为什么重用、为什么重编；删掉多余的。"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lorakit import cache
from lorakit.config import load_config
from lorakit.config_groups import Data, Source
from lorakit.data import Record, apply_trigger, inspect, unpacked
from lorakit.data_lint import over_limit
from lorakit.data_report import Report
from lorakit.errors import DataError
from lorakit.families import open_family

NAMES = {  # 字段 -> 人话
    "format": "lorakit 的缓存格式",
    "family": "模型家族",
    "dtype": "计算精度",
    "encoder": "编码器（底模换了，或权重文件变了）",
    "picture": "图片内容",
    "size": "训练尺寸",
    "caption": "描述",
    "controls": "控制图",
    "flip": "左右翻转",
    "crop": "第几种裁切",
    "place": "裁在哪里（目标图变了）",
}


def why(config, family, picture: Path) -> str:
    """一张图的潜变量与描述：会重用缓存还是重新编码；重编的话，是哪一项变了。"""
    source, trigger = _home(config.data, picture.resolve())
    records, report = inspect(unpacked(source.folder), trigger, source.control_folder)
    mine = [record for record in records if record.path.resolve() == picture.resolve()]
    if not mine:
        wrong = [p.reason for p in report.problems if p.path and p.path.name == picture.name]
        raise DataError(f"“{picture}”不能用于训练：{'；'.join(wrong) or '没有这张图'}。")
    (record,) = cache.fit_controls(family, mine)
    side, caption = config.data.resolution, apply_trigger(record.caption, trigger)
    image = cache.image_fields(family, [record], side)[0]
    text = cache.text_fields(family, [(caption, record, cache.PLAIN)], side)[0]
    return f"图：{_explain('image', image)}\n描述：{_explain('text', text)}"


def _home(data: Data, picture: Path) -> tuple[Source, str]:
    """图在哪个来源里、那里用什么触发词（同类图片不用）；都不在，就是它自己的文件夹。"""
    choices = [(source, data.trigger) for source in data.sources]
    choices += [(Source(folder=data.class_folder), "")] if data.class_folder else []
    for source, trigger in choices:
        if picture.is_relative_to(unpacked(source.folder).resolve()):
            return source, trigger
    return Source(folder=picture.parent, control_folder=data.control_folder), data.trigger


def check_length(source: str, records: Sequence[Record], report: Report) -> Report:
    """再看描述有没有超过底模的文字编码器的上限；source 是 YAML 文件或预设名。"""
    config = load_config(source)
    family = open_family(config)
    captions = [apply_trigger(record.caption, config.data.trigger) for record in records]
    counts = family.count_tokens(captions) if captions else []
    encoder = f"{family.name} 的文字编码器"
    found = over_limit(records, counts, family.caption_limit, encoder)
    return replace(report, problems=(*report.problems, *found))


def _explain(kind: str, fields: dict) -> str:
    path = cache.place(kind, fields)
    if path.is_file():
        return f"会重用（{path.name[:12]}…）"
    others = [old for old in map(cache.fields_of, _files(kind)) if old]
    same = [{key for key in fields if old.get(key) == fields[key]} for old in others]
    closest = max(same, key=len, default=set())
    changed = [NAMES[key] for key in fields if key not in closest]
    if len(closest) < 2 or len(changed) == len(fields):
        return "要编码：缓存里没有与它相近的"
    return f"要编码：与最接近的一份相比，变了的是 {'、'.join(changed)}"


def _files(kind: str = "*") -> Iterator[Path]:
    return cache.root().glob(f"{kind}/*.safetensors")


def clean(days: float) -> tuple[int, int]:
    """删掉 days 天没用过的缓存文件（0 表示全部），返回 (删了几个, 多少字节)。

    缓存随时可以重新编码出来，删掉不会丢失任何东西。
    """
    count = size = 0
    for path in list(_files()):
        facts = path.stat()
        if time.time() - max(facts.st_atime, facts.st_mtime) >= days * 86400:
            path.unlink(missing_ok=True)
            count, size = count + 1, size + facts.st_size
    return count, size
