"""看懂与清理缓存：一张图为什么重用、为什么重编；删掉多余的。"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from lorakit.cache import keys, store
from lorakit.config.groups import Data, Source
from lorakit.data.huggingface import unpacked
from lorakit.data.inspection import inspect
from lorakit.data.load import places
from lorakit.data.seen import FILE
from lorakit.data.select import fit_controls
from lorakit.data.trigger import apply_trigger
from lorakit.errors import DataError, LorakitError, plain_reason
from lorakit.files import cache_root

HEX = "[0-9a-f]"
NAMES = {  # 字段 -> 人话
    "format": "lorakit 的缓存格式",
    "family": "模型家族",
    "dtype": "计算精度",
    "encoder": "编码器（底模换了，或权重文件变了）",
    "text_kind": "文本编码器压成几位（内存小的机器才压）",
    "picture": "图片内容",
    "size": "训练尺寸",
    "caption": "描述",
    "controls": "控制图",
    "flip": "左右翻转",
    "crop": "第几种裁切",
    "alpha": "透明的地方留不留（data.alpha）",
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
    (record,) = fit_controls(family, mine)
    side, caption = config.data.resolution, apply_trigger(record.caption, trigger)
    image = keys.image_fields(family, [record], side)[0]
    text = keys.text_fields(family, [(caption, record, keys.PLAIN)], side)[0]
    return f"图：{_explain('image', image)}\n描述：{_explain('text', text)}"


def _home(data: Data, picture: Path) -> tuple[Source, str]:
    """图在哪个来源里、那里用什么触发词（同类图片不用）；都不在，就是它自己的文件夹。"""
    for source, trigger in places(data):
        if picture.is_relative_to(unpacked(source.folder).resolve()):
            return source, trigger
    return Source(folder=picture.parent, control_folder=data.control_folder), data.trigger


def _explain(kind: str, fields: dict) -> str:
    path = store.place(kind, fields)
    if path.is_file():
        return f"会重用（{path.name[:12]}…）"
    others = [old for old in map(store.fields_of, _files(kind)) if old]
    same = [{key for key in fields if old.get(key) == fields[key]} for old in others]
    closest = max(same, key=len, default=set())
    changed = [NAMES[key] for key in fields if key not in closest]
    if len(closest) < 2 or len(changed) == len(fields):
        return "要编码：缓存里没有与它相近的"
    return f"要编码：与最接近的一份相比，变了的是 {'、'.join(changed)}"


def _files(kind: str = "*") -> Iterator[Path]:
    return cache_root().glob(f"{kind}/{HEX * 64}.safetensors")


def clean(days: float) -> tuple[int, int]:
    """删掉 days 天没用过的缓存（0 表示全部），返回 (删了几个文件, 多少字节)。

    编码好的、看过的图的记录、摊开的 datasets、断电留下的半个文件：都能重新做出来，不会丢东西。
    只删自己起的名字，缓存指到了放着别的东西的文件夹也不会误删。

    Raises:
        LorakitError: days 是负数；没有权限删。
    """
    if not days >= 0:
        raise LorakitError(f"--days 不能小于 0，得到 {days:g}；0 表示全部删掉。")
    top, count, size = cache_root(), 0, 0
    units = [*_files(), *top.glob(f"*/.{HEX * 16}*.tmp"), *top.glob(FILE)]
    units += [*top.glob(f"datasets/{HEX * 16}"), *top.glob("seen.sqlite")]  # 后者是旧版留下的
    units += top.glob(f"digests/*/{HEX * 64}.txt")
    if not days:  # 哪一份编码器是原来的：还有它的缓存，就还要记着
        units += top.glob(f"encoders/whole/{HEX * 64}.txt")
    for unit in units:
        files = [unit] if unit.is_file() else [path for path in unit.rglob("*") if path.is_file()]
        facts = [path.stat() for path in files]
        last = max((max(one.st_atime, one.st_mtime) for one in facts), default=0)
        if time.time() - last < days * 86400:
            continue
        try:
            shutil.rmtree(unit) if unit.is_dir() else unit.unlink(missing_ok=True)
        except OSError as error:
            raise LorakitError(
                f"删不掉“{unit}”：{plain_reason(error)}。已经删了 {count} 个。"
            ) from error
        count, size = count + len(files), size + sum(one.st_size for one in facts)
    return count, size
