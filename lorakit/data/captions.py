"""描述从哪里来：图旁边的 .txt、.caption、.json，或文件夹里的 metadata.jsonl、metadata.csv。

metadata 的写法和 Hugging Face 的 imagefolder 一样：file_name 相对于这个文件所在的文件夹。
教程：notebooks/02_dataset.ipynb
"""

import json
import os
import re
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from lorakit.data.read import EXAMPLE, PICTURE, one_line, read_caption, start_of
from lorakit.data.report import Fault, Problem, names
from lorakit.data.rows import csv_rows, json_value, jsonl, not_trained

SIDECARS = (".txt", ".caption", ".json")  # 同名的有几份，写得要一样
TABLES = ("metadata.jsonl", "metadata.csv")
CAPTION_KEYS = ("caption", "text", "prompt")  # 几个都写了，要一样
LINES = "caption_lines"
MOVED = ".lorakit-moved"  # lorakit check --fix 把不能用的图移到这里
CACHED = re.compile(r"(datasets|models|spaces)--")  # Hugging Face 缓存里一份数据的文件夹
SUFFIX = re.compile(rf"({PICTURE}|\.txt)\b")
FIELDS = "caption、text 或 prompt"


@dataclass(frozen=True)
class Said:
    """一处写着的描述：写了什么（没有这一项是 None，写错了是空的）、在哪个文件、怎么向人指出它。"""

    caption: str | None
    path: Path
    where: str
    row: Mapping = field(default_factory=dict, compare=False, repr=False)  # 整行


def nfc(text: str) -> str:
    """苹果电脑把“が”“é”存成两个字符；不统一的话，看着同名的图和描述对不上。"""
    return unicodedata.normalize("NFC", text)


def stay_inside(path: Path, folder: Path):
    """链接指到文件夹外面就报错：打包、搬家、换机器后它就断了，也可能读到不该读的文件。"""
    if not os.path.islink(path):  # 不用 Path.is_symlink：没有权限时它会抛错
        return
    target, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    # Hugging Face 的缓存里，snapshots 下面都是指到同一份数据的 blobs 的链接：那里本来就是一家
    whole = next((one for one in (home, *home.parents) if CACHED.match(one.name)), home)
    if os.path.exists(target) and not target.is_relative_to(whole):
        reason = f"这是一个链接，指向文件夹外面的 {target}"
        raise Fault(
            "link_outside", path, reason, f"把真正的文件复制进来，删掉链接；{copied(folder)}"
        )


def copied(folder: Path) -> str:
    """把一个文件夹连同链接指着的文件都复制一份的命令。"""
    source, target = shlex.quote(str(folder)), shlex.quote(f"{folder}-copy")
    return f"很多个就一起复制：cp -rL {source} {target}，再用 {target}"


def links_together(problems: Sequence[Problem], pictures: Sequence[Path], folder: Path):
    """好几张图都是指到外面的链接：合成一个问题，给一条命令。"""
    outside = [problem for problem in problems if problem.code == "link_outside"]
    linked = [p.path for p in outside if p.path in set(pictures)]
    if len(linked) < 2:
        return list(problems)
    reason = f"{len(outside)} 个文件是链接，指向文件夹外面：{names(linked, folder)}"
    whole = Problem.error("link_outside", folder, reason, copied(folder))
    return [whole, *(problem for problem in problems if problem not in outside)]


def read_sidecar(path: Path) -> str | None:
    """读图旁边的一份描述；.json 里没有 caption、text、prompt 时返回 None。

    Raises:
        DataError: 读不出来、不是 UTF-8、空的、不是合格的 JSON。
    """
    if path.suffix.lower() != ".json":
        return read_caption(path)
    value = json_value(whole_text(path))
    if isinstance(value, str):
        mend = '改成 {"caption": "一句话"} 的样子，或把描述写进同名的 .txt'
        raise Fault("caption_json", path, f"不是合格的 JSON（{value}）", mend)
    row = value[0] if isinstance(value[0], dict) else {}
    return _caption(row, path, "")


def caption_for(
    picture: Path,
    sidecars: Sequence[Path],
    rows: Sequence[Said],
    folder: Path,
    strays: Mapping[tuple[Path, str], Path],
    extras: Sequence[Said] = (),
) -> tuple[str | None, list[Problem]]:
    """一张图的描述和读它时发现的问题；两处写得不一样时报出来，不悄悄挑一个。

    Args:
        extras: 别的工具的表里写的；别处都没有才用。
        strays: loose(描述) -> 没有同名的图的描述；图没有描述时，看看是不是名字写错了。
    """
    problems, told = [], []
    for path in sidecars:
        try:
            stay_inside(path, folder)
            told.append(Said(read_sidecar(path), path, path.name))
            if not any(one.code == LINES for one in problems) and _lines(path) > 1:
                problems.append(Problem.note(LINES, picture.name))
        except Fault as fault:
            problems.append(fault.problem)
    told += [*rows, *extras]
    said = [one for one in told if one.caption]
    if not said and all(problem.code == LINES for problem in problems):
        return None, [_missing(picture, told, strays)]
    for silent in (one for one in told if not one.caption and one not in rows):
        reason, mend = f"里面没有 {FIELDS}，没有用到", "用不着就移走"
        problems.append(Problem.error("not_used", silent.path, reason, mend))
    for other in said[1:]:
        if other.caption == said[0].caption:
            continue
        both = f"{said[0].where}（“{start_of(said[0].caption)}”）和 {other.where}"
        both += f"（“{start_of(other.caption)}”）"
        if other in rows:  # 两份都像是认真写的，选错了会悄悄教错
            reason, mend = f"描述写了两次，不一样：{both}", "留下对的那一份，删掉或改正另一份"
            problems.append(Problem.error("caption_conflict", picture, reason, mend))
        else:  # 打标签的工具常在 .txt 旁边留下自己的 .caption
            reason = f"和 {said[0].where} 写得不一样（{both}），不知道用哪一份"
            mend = f"想用这一份就移走 {said[0].where}；不用就移走这一份"
            problems.append(Problem.error("caption_conflict", other.path, reason, mend))
    return (said[0].caption if said else None), problems


def _lines(path: Path) -> int:
    """一份描述有几行字；.json 里的不看。"""
    if path.suffix.lower() == ".json":
        return 1
    return sum(bool(line.strip()) for line in whole_text(path).splitlines())


def lines_together(problems: Sequence[Problem], folder: Path) -> list[Problem]:
    """有几行的描述说一次就够：接成了一句，别的训练器有的一行算一句、每次挑一句。"""
    found = [problem.reason for problem in problems if problem.code == LINES]
    rest = [problem for problem in problems if problem.code != LINES]
    if not found:
        return rest
    shown = "、".join(found[:5]) + (f" 等 {len(found)} 张" if len(found) > 5 else "")
    reason = f"{len(found)} 份描述有几行，接成了一句：{shown}；一行是一种说法的，只留一行"
    return [*rest, Problem.note(LINES, reason)]


def loose(path: Path) -> tuple[Path, str]:
    """(文件夹, 大概的名字)：不分大小写、全角半角，不看空格、后缀和“(1)”“- 副本”。"""
    stem = unicodedata.normalize("NFKC", path.stem).casefold()
    stem = SUFFIX.sub("", stem)  # 后缀被藏起来时常存成 1.png.txt
    return path.parent, re.sub(r"\(\d+\)|副本|copy|[\s\-]", "", stem)


def _missing(picture: Path, told: Sequence[Said], strays: Mapping) -> Problem:
    wanted, near = picture.with_suffix(".txt"), strays.get(loose(picture))
    mend = f"建一个 {wanted.name}，写一句话说图里有什么；也可以先用 lorakit caption 写一遍"
    reason = "没有描述"
    if near:
        mend = f"把 {near.name} 改名为 {picture.stem}{near.suffix}"
    elif os.path.isdir(wanted):
        reason, mend = f"没有描述（{wanted.name} 是文件夹，不是文件）", f"移走它，再{mend}"
    silent = "、".join(one.where for one in told if one.caption is None)
    wrong = "、".join(one.where for one in told if one.caption == "")
    if silent or wrong:
        parts = [f"{silent} 里没有 {FIELDS}"] * bool(silent) + [f"{wrong} 写错了"] * bool(wrong)
        reason += f"（{'，'.join(parts)}）"
    return Problem.error("caption_missing", picture, reason, mend)


def read_tables(
    tables: Sequence[Path], pictures: Sequence[Path], bare: Sequence[Path], folder: Path
) -> tuple[Mapping[Path, list[Said]], list[Problem]]:
    """读所有 metadata 文件，返回 (图 -> 写它的那几行, 问题)。

    Args:
        bare: 旁边没有自己的描述的图；一行也读不懂的 metadata 只有耽误了它们才算错误。
    """
    known = {nfc(path.relative_to(folder).as_posix()): path for path in pictures}
    said, problems = defaultdict(list), []
    for path in tables:
        try:
            stay_inside(path, folder)
            found, wrong = _read_table(path, known, folder)
        except Fault as fault:
            found, wrong = {}, [fault.problem]
        needed = any(picture.is_relative_to(path.parent) for picture in bare)
        unreadable = [p for p in wrong if p.code == "metadata_line"]
        if not found and unreadable and len(unreadable) == len(wrong):
            # 一行也读不懂：说一次就够；每张图都有自己的描述时，它多半是别的程序留下的
            reason = f"像是描述，但一行也读不懂，没有用到（{unreadable[0].reason}）"
            mend = unreadable[0].mend + ("" if needed else "；每张图都有自己的描述，用不着就移走")
            wrong = [Problem.error("not_used", path, reason, mend)]
        problems += wrong
        for picture, one in found.items():
            said[picture].append(one)
    return said, problems


def _read_table(
    path: Path, known: Mapping[str, Path], folder: Path
) -> tuple[dict[Path, Said], list[Problem]]:
    rows = csv_rows if path.suffix.lower() == ".csv" else jsonl
    found, lines, problems = {}, {}, []
    for number, row, mend in rows(whole_text(path)):
        line = f"第 {number} 行"
        try:
            if isinstance(row, str):
                raise Fault("metadata_line", path, f"{line}{row}", mend)
            picture = _picture(row, path, line, known, folder)
            if picture in found:
                reason = f"{line}和第 {lines[picture]} 行写的是同一张图 {row['file_name']}"
                mend = "一张图只写一行，删掉多出来的"
                raise Fault("metadata_twice", path, reason, mend)
            lines[picture] = number
            found[picture] = Said("", path, f"{path.name} {line}", row)
            found[picture] = replace(found[picture], caption=_caption(row, path, line))
        except Fault as fault:
            problem = fault.problem
            if problem.code == "metadata_moved":  # 自己移走的，不算用户的错
                problem = Problem.warning(problem.code, path, problem.reason, problem.mend)
            problems.append(problem)
    return found, problems


def _picture(row: dict, path: Path, line: str, known: Mapping[str, Path], folder: Path) -> Path:
    """这一行说的是哪张图。"""
    name = row.get("file_name")
    if not isinstance(name, str) or not name.strip():
        reason = f"{line}没有 file_name（这一行有：{'、'.join(map(str, row)) or '什么也没有'}）"
        raise Fault("metadata_line", path, reason, "每一行都要有 file_name，写图片的文件名")
    mend = f"写成相对于 {path.name} 所在文件夹的名字，例如 images/01.png"
    parts = PurePosixPath(name if "/" in name else name.replace("\\", "/"))
    if parts.is_absolute() or re.match(r"[A-Za-z]:[\\/]", name):
        reason = f"{line}的 file_name 是绝对路径 {name}，换一台机器就找不到了"
        raise Fault("metadata_path", path, reason, mend)
    if ".." in parts.parts:
        reason = f"{line}的 file_name 里有“..”（{name}），可能走到文件夹外面去"
        raise Fault("metadata_path", path, reason, mend)
    inside = path.parent.relative_to(folder) / parts
    key = nfc(inside.as_posix())
    if key in known:
        return known[key]
    if os.path.exists(folder / MOVED / inside):
        reason = f"{line}的 {name} 已经被 --fix 移到 {MOVED} 里，这一行没有用到"
        raise Fault("metadata_moved", path, reason, "确实不要这张图，就删掉这一行")
    if os.path.isfile(path.parent / parts):
        raise not_trained(path, line, name)
    stem = (inside.parent, nfc(inside.stem).casefold())
    near = [p for k, p in known.items() if (Path(k).parent, Path(k).stem.casefold()) == stem]
    near = near or [p for p in known.values() if p.name == inside.name]
    hint = f"（是不是 {near[0].relative_to(folder).as_posix()}？）" if near else ""
    reason = f"{line}写的 {name} 找不到{hint}"
    raise Fault("metadata_file", path, reason, "改正 file_name，或删掉这一行")


def _caption(row: dict, path: Path, line: str) -> str | None:
    """一行或一个 .json 里的描述；没有这一项返回 None。"""
    name = next((key for key in CAPTION_KEYS if row.get(key) is not None), None)
    if name is None:
        return None
    value = row[name]
    if not isinstance(value, str):
        line = f"{line}的 " if line else ""
        reason = f"{line}{name} 要是一句话，得到 {json.dumps(value, ensure_ascii=False)[:40]}"
        raise Fault("caption_kind", path, reason, f'写成 "{name}": "一句话"')
    caption = one_line(value)
    if not caption:
        line = f"{line}的" if line else ""
        raise Fault("caption_empty", path, f"{line}描述是空的", EXAMPLE)
    if other := differs(row, CAPTION_KEYS, caption):
        reason = f"{line + '的 ' if line else ''}{name} 和 {other} 都写了描述，不一样"
        raise Fault("caption_conflict", path, reason, "留下要用的那一项，删掉另一项")
    return caption


def differs(row: Mapping, keys: Sequence[str], caption: str) -> str | None:
    """一行里另一项也是描述，写的却不一样：哪一项；没有就是 None。"""
    said = {key: one_line(row[key]) for key in keys if isinstance(row.get(key), str)}
    return next((key for key, one in said.items() if one not in ("", caption)), None)


def whole_text(path: Path) -> str:
    """一个文件的全文；读不出、不是 UTF-8、空的都由 read_caption 说清楚。"""
    read_caption(path)
    return path.read_bytes().decode("utf-8-sig")
