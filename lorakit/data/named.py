"""表和 .json 里点名的控制图：这里按文件夹和名字配对，点名的不是配上的那张，就不能悄悄挑一个。"""

import filecmp
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lorakit.config.explain import inline
from lorakit.data.captions import Said, nfc, whole_text
from lorakit.data.folder import Found, key_of
from lorakit.data.read import IMAGE_SUFFIXES
from lorakit.data.record import Record
from lorakit.data.report import Fault, Problem, relative
from lorakit.data.rows import json_value

_SURE = re.compile(  # 说的就是控制图
    r"(control|condition(ing)?)_?(path|image|img|file)?s?(_path|_name)?(_?\d+)?"
    r"|(source|input|edit|kontext|original|before|ref(erence)?)_?(image|img)s?(_path|_file)?(_?\d+)?"
)
# 也常用来记一张图从哪里来：真有这个文件，才当它是控制图
_MAYBE = re.compile(r"(source|input|original|before)_?(path|file)?s?(_name)?(_?\d+)?")


class Named(NamedTuple):
    """一处点名：哪张图、写在哪个文件、怎么向人指出它、哪一项、写的是哪几张。"""

    picture: Path
    path: Path
    where: str
    key: str
    values: tuple[str, ...]


def _named(tables: Sequence[Mapping[Path, Sequence[Said]]], found: Found) -> list[Named]:
    """每张图的控制图写着哪几张：描述表里的各行，和图旁边的 .json。"""
    pictures = {os.path.realpath(path) for path in found.pictures}
    named = []
    for picture in found.pictures:
        said = [one for table in tables for one in table.get(picture, ())]
        said += _beside(found.captions.get(key_of(picture), ()))
        for one in said:
            key, values = _values(one, picture, pictures)
            if values:
                named.append(Named(picture, one.path, one.where, key, values))
    return named


def _beside(paths: Sequence[Path]) -> Iterator[Said]:
    for path in paths:
        if path.suffix.lower() == ".json":
            try:
                value = json_value(whole_text(path))
            except Fault:  # 读不出来的，描述那里已经说了
                continue
            if isinstance(value, list) and isinstance(value[0], dict):
                yield Said(None, path, path.name, value[0])


def _values(one: Said, picture: Path, pictures: set[str]) -> tuple[str, tuple[str, ...]]:
    """一行里 (头一个点名的项, 点名的图)；没有就是空的。

    写的就是这张图自己（来处、和控制图同名时只写名字）的不算点名。
    """
    keys, values, own = [], [], os.path.realpath(picture)
    for key, value in one.row.items():
        name = str(key).lower()
        sure = _SURE.fullmatch(name)
        if not sure and not _MAYBE.fullmatch(name):
            continue
        told = [text for text in _texts(value) if _like_path(text)]
        told = [text for text in told if _real(text, (one.path.parent,)) != own]
        if not sure:
            real = {text: _real(text, (one.path.parent,)) for text in told}
            told = [text for text in told if real[text] and real[text] not in pictures]
        keys += [str(key)] * bool(told)
        values += told
    return (keys[0] if keys else ""), tuple(values)


def _texts(value: object) -> list[str]:
    """一项里的文字；几张写成列表，CSV 里也常写成一段 JSON。"""
    if isinstance(value, str) and value.lstrip().startswith("["):
        read = json_value(value)
        value = read[0] if isinstance(read, list) else value
    values = value if isinstance(value, (list, tuple)) else [value]
    return [one.strip() for one in values if isinstance(one, str) and one.strip()]


def _like_path(text: str) -> bool:
    """像本机的一张图；网址不是。"""
    return not any(mark in text for mark in ("\n", "://")) and text.lower().endswith(IMAGE_SUFFIXES)


def _real(text: str, homes: Sequence[Path]) -> str | None:
    """写的是哪个文件，依次在这几个文件夹里找；找不到是 None。"""
    places = (home / text.replace("\\", "/") for home in homes)
    return next((os.path.realpath(place) for place in places if os.path.isfile(place)), None)


def check_named(
    tables: Sequence[Mapping[Path, Sequence[Said]]],
    found: Found,
    records: Sequence[Record],
    control: Path | None,
) -> list[Problem]:
    """点名的控制图没有用到，或不是按名字配上的那张：每份表一个错误。

    Args:
        tables: 图 -> 写它的那几行。
        records: 配好控制图的记录；没有配好的另外报过。
        control: 控制图的文件夹；没有就一张也没有用到。
    """
    mine = {record.path: record.controls for record in records}
    wrong = defaultdict(list)
    for one in _named(tables, found):
        own = mine.get(one.picture)
        if control is None or (own and not _agrees(one, own, control, found.folder)):
            wrong[one.path].append(one)
    if control is None:
        return [_unused(path, same[0]) for path, same in wrong.items()]
    return [_apart(path, same, mine, found.folder) for path, same in wrong.items()]


def _agrees(one: Named, controls: Sequence[Path], control: Path, folder: Path) -> bool:
    homes = (one.path.parent, folder, control, control.parent)
    return len(one.values) == len(controls) and all(
        _same(_real(text, homes), text, path)
        for text, path in zip(one.values, controls, strict=True)
    )


def _same(real: str | None, text: str, path: Path) -> bool:
    """找得到的比内容（挪过、另存了一份也算同一张）；在别的机器上写的，比名字。"""
    if real is None:
        return nfc(PurePosixPath(text.replace("\\", "/")).stem) == nfc(path.stem)
    try:
        return os.path.samefile(real, path) or filecmp.cmp(real, path, shallow=False)
    except OSError:
        return False


def _unused(path: Path, one: Named) -> Problem:
    home = os.path.dirname(one.values[0].replace("\\", "/"))
    place = Path(home) if os.path.isabs(home) else path.parent / home
    reason = f"里面写着控制图（{one.values[0]}），这里不从表里读，还没有用到"
    mend = f"控制图和目标图同名，放在一个文件夹里，写 data.control_folder: {inline(str(place))}"
    mend += "；练的不是编辑，就从表里删掉这一项"
    return Problem.error("control_in_table", path, reason, mend)


def _apart(
    path: Path, wrong: Sequence[Named], mine: Mapping[Path, Sequence[Path]], folder: Path
) -> Problem:
    one = wrong[0]
    shown = "、".join(relative(control, folder) for control in mine[one.picture])
    reason = f"{len(wrong)} 张图的控制图，这里写的和按名字配上的不一样：例如 {one.where} 写的是 "
    reason += f"{'、'.join(one.values)}，{one.picture.name} 配上的是 {shown}"
    mend = "这里只按名字配对：写在这里的才对，就把控制图改成和目标图一样的名字"
    mend += f"（第二张叫 名字_2），再删掉 {one.key} 这一项；配上的才对，就只删掉这一项"
    return Problem.error("control_in_table", path, reason, mend)
