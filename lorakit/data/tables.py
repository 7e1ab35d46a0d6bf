"""别的工具写的描述表：kohya 的 meta_cap.json、musubi 的 jsonl、JSON 列表、CSV、TSV……

表里至少有一行写的是这个文件夹里的图，才当它是描述表；读不了的（parquet）说出怎么转。
"""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from lorakit.data.captions import (
    CAPTION_KEYS,
    MOVED,
    Said,
    differs,
    nfc,
    stay_inside,
    whole_text,
)
from lorakit.data.conventions import pictures_in
from lorakit.data.read import IMAGE_SUFFIXES, one_line
from lorakit.data.report import Fault, Problem
from lorakit.data.rows import json_value, repeated

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
BINARY = (".parquet", ".arrow")
RESAVED = "用记事本或 VS Code 打开，看到的字没有错，就另存为 UTF-8"  # --fix 不碰别的工具的表
LARGEST = 200_000_000  # 字节；再大的不是描述表
FILES = ("file_name", "image_path", "image", "image_file", "img_path", "img", "file", "filename",
         "filepath", "file_path", "path", "key")  # fmt: skip
CAPTIONS = (*CAPTION_KEYS, "description", "instruction", "edit_prompt")


@dataclass
class Read:
    """读出来的：图 -> 写它的几处、用到的表、问题。"""

    said: dict[Path, list[Said]] = field(default_factory=lambda: defaultdict(list))
    used: set[Path] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)


def foreign_rows(path: Path) -> bool:
    """metadata 里图的名字不叫 file_name（叫 image_path、image……），或不是用逗号隔开的。"""
    try:
        first = whole_text(path).lstrip().partition("\n")[0]
    except Fault:
        return False
    if path.suffix.lower() == ".csv":
        if "file_name" in (cell.strip() for cell in first.split(",")):
            return False
        row = [cell.strip().strip('"').lower() for cell in first.split(_mark(first))]
    else:
        value = json_value(first)
        row = value[0] if isinstance(value, list) else None
        if not isinstance(row, dict) or "file_name" in row:
            return False
    return any(key in row for key in FILES)


def _mark(first: str) -> str:
    """第一行 -> 隔开各格的符号。"""
    return max("\t,;|", key=first.count)


def read_foreign(paths: Sequence[Path], pictures: Sequence[Path], folder: Path) -> Read:
    """读一个文件夹里可能是描述表的文件。"""
    read, index = Read(), _Index(pictures, folder)
    for path in paths:
        suffix = path.suffix.lower()
        if suffix in BINARY:
            read.used.add(path)
            read.problems.append(_binary(path))
        elif suffix in SUFFIXES and path.is_file() and path.stat().st_size <= LARGEST:
            _one(read, path, index)
    return read


def _one(read: Read, path: Path, index: "_Index"):
    try:
        stay_inside(path, index.folder)
        rows = list(_rows(path, index))
    except Fault as fault:
        if path.suffix.lower() != ".json" or _speaks(path, index):
            read.used.add(path)
            problem = fault.problem
            reason = f"像是描述表，没有用到（{problem.reason}）"
            mend = RESAVED if problem.code == "caption_encoding" else problem.mend
            read.problems.append(Problem.error("not_used", path, reason, f"{mend}；用不着就移走"))
        return
    found: dict[Path, Said] = {}
    missing = []
    for place, row in rows:
        name = next((row[key] for key in FILES if isinstance(row.get(key), str)), None)
        caption = _caption(row)
        if not name or not caption:
            continue
        picture = index.find(name, path.parent)
        where = f"{path.name} {place}"
        first = next(
            (one_line(row[key]) for key in CAPTION_KEYS if isinstance(row.get(key), str)), ""
        )
        if picture and first and (other := differs(row, CAPTION_KEYS, first)):
            reason = f"{where} 里有两项描述（另一项是 {other}），不一样"
            mend = "留下要用的那一项，删掉另一项"
            read.problems.append(Problem.error("caption_conflict", path, reason, mend))
        if picture is None:
            missing.append((name, where))
        elif picture in found and found[picture].caption != caption:
            reason = f"{where} 和 {found[picture].where} 写的是同一张图 {name}，描述不一样"
            mend = "一张图只留一行，删掉多出来的"
            read.problems.append(Problem.error("metadata_twice", path, reason, mend))
        else:
            found[picture] = Said(caption, path, where, row)
    if found or any(name.lower().endswith(IMAGE_SUFFIXES) for name, _ in missing):
        read.used.add(path)
        moved = [one for one in missing if index.moved.find(one[0], path.parent)]
        read.problems += _told(path, found, [one for one in missing if one not in moved], moved)
    elif path.suffix.lower() != ".json" and _speaks(path, index):  # .json 多半是别的程序的
        read.used.add(path)
        reason = "提到了这里的图，可是看不出哪一列是图、哪一列是描述，没有用到"
        mend = "列名写成 file_name,text（jsonl 的每一行也用这两个名字）；用不着就移走"
        read.problems.append(Problem.error("not_used", path, reason, mend))
    for picture, one in found.items():
        read.said[picture].append(one)


def _speaks(path: Path, index: "_Index") -> bool:
    """读不懂的 .json 是不是描述表：名字像，或里面提到这里的图。"""
    if path.name.lower().startswith(("meta", "caption")):
        return True
    raw = path.read_bytes()
    return any(picture.name.encode() in raw for picture in [*index.known.values()][:100])


def _told(
    path: Path,
    found: Mapping[Path, Said],
    missing: Sequence[tuple[str, str]],
    moved: Sequence[tuple[str, str]],
) -> list[Problem]:
    """一份表读出了什么；moved 是 --fix 移走的图，不算用户的错。"""
    if not found and not moved:
        reason = f"像是描述表，可是里面的图（{missing[0][0]} 等 {len(missing)} 张）都不在这里"
        mend = "检查 data.folder 是不是写到了别处；用不着就移走这份表"
        return [Problem.error("not_used", path, reason + "，没有用到", mend)]
    reason = f"{path.name} 当作描述表读，{len(found)} 张图的描述在里面"
    problems = [Problem.note("table_foreign", reason)] * bool(found)
    if moved:
        reason = f"{len(moved)} 行写的图已经被 --fix 移到 {MOVED} 里，没有用到，"
        reason += f"例如 {moved[0][0]}（{moved[0][1]}）"
        mend = "确实不要这些图，就删掉这几行"
        problems.append(Problem.warning("metadata_moved", path, reason, mend))
    if missing:
        reason = f"{len(missing)} 行写的图不在这里，例如 {missing[0][0]}（{missing[0][1]}）"
        mend = "改正图的名字，或删掉这几行"
        problems.append(Problem.error("metadata_file", path, reason, mend))
    return problems


def _binary(path: Path) -> Problem:
    table = path.with_name("metadata.jsonl")
    code = f"import pandas; pandas.read_parquet({path.name!r}).to_json({table.name!r}, "
    code += "orient='records', lines=True, force_ascii=False)"
    mend = f'只有名字和描述的，在它的文件夹里运行 python -c "{code}"；图也在里面的，'
    mend += "用 datasets 读出来，再用 lorakit.data.huggingface 的 write_dataset 写成文件夹；"
    mend += "不用就移走"
    return Problem.error("not_used", path, f"像是描述表，没有用到（{path.suffix} 不直接读）", mend)


class _Index:
    """按名字找图：只会给出走到过的图，表里写什么路径都走不出文件夹。"""

    def __init__(self, pictures: Sequence[Path], folder: Path, home: Path | None = None):
        """home 是图真正的所在，它们算作在 folder 里。"""
        self.folder, self.real = folder, Path(os.path.realpath(folder))
        self.known = {nfc(p.relative_to(home or folder).as_posix()): p for p in pictures}
        self.ends = defaultdict(list)
        for key, path in self.known.items():
            self.ends[PurePosixPath(key).name].append(path)
            self.ends[PurePosixPath(key).stem].append(path)

    @cached_property
    def moved(self) -> "_Index":
        """--fix 移走的图，名字照原来的算。"""
        home = self.folder / MOVED
        return _Index(pictures_in(home), self.folder, home)

    def find(self, name: str, beside: Path) -> Path | None:
        parts = PurePosixPath(nfc(name.strip().replace("\\", "/")))
        if ".." in parts.parts or not parts.name:
            return None
        inside = beside.relative_to(self.folder)
        for key in ((inside / parts).as_posix(), parts.as_posix()):
            if key in self.known:
                return self.known[key]
        for count in range(1, len(parts.parts)):  # kohya 写的路径常从 train_data_dir 起
            if self.real.parts[-count:] == parts.parts[:count]:
                return self.known.get(PurePosixPath(*parts.parts[count:]).as_posix())
        for whole in (self.folder.absolute(), self.real):
            if parts.is_relative_to(whole.as_posix()):
                return self.known.get(parts.relative_to(whole.as_posix()).as_posix())
        if len(parts.parts) > 1 and not parts.is_absolute() and ":" not in parts.parts[0]:
            return None
        same = self.ends.get(parts.name, [])  # 在别的机器上写的绝对路径，或只有名字没有后缀
        return same[0] if len(same) == 1 else None


def _caption(row: Mapping) -> str:
    """一行的描述；kohya 的表里 caption 与 tags 分开写，它练的时候接在一起。"""
    said = next((row[key] for key in CAPTIONS if isinstance(row.get(key), str)), "")
    tags = row.get("tags")
    if isinstance(tags, list):
        tags = ", ".join(tag for tag in tags if isinstance(tag, str))
    parts = [one_line(one) for one in (said, tags) if isinstance(one, str)]
    return ", ".join(filter(None, dict.fromkeys(parts)))


def _rows(path: Path, index: _Index) -> Iterator[tuple[str, dict]]:
    """(第几行或第几项, 内容)；不是表的就一行也没有。"""
    text, suffix = whole_text(path), path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        yield from _cells(path, text, index)
    elif suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            value = json_value(line) if line.strip() else [None]
            if isinstance(value, str):
                mend = "一行写一个 {}，引号用英文的，行尾不加逗号"
                raise Fault(
                    "metadata_line", path, f"第 {number} 行不是合格的 JSON（{value}）", mend
                )
            if isinstance(value[0], dict):
                yield f"第 {number} 行", value[0]
    else:
        value = json_value(text)
        if isinstance(value, str):
            raise Fault("caption_json", path, f"不是合格的 JSON（{value}）", "改正它，或移走")
        yield from _json_rows(value[0])


def _json_rows(tree: object) -> Iterator[tuple[str, dict]]:
    if isinstance(tree, list):
        for number, row in enumerate(tree, 1):
            if isinstance(row, dict):
                yield f"第 {number} 项", row
    elif isinstance(tree, dict):
        pictures = tree.get("images")
        if isinstance(pictures, list) and isinstance(tree.get("annotations"), list):  # COCO
            known = {row.get("id"): row for row in pictures if isinstance(row, dict)}
            tree = [
                {**known[row["image_id"]], **row} for row in tree["annotations"]
                if isinstance(row, dict) and _hashable(row.get("image_id")) in known
            ]  # fmt: skip
            yield from _json_rows(tree)
            return
        lists = [value for value in tree.values() if isinstance(value, list)]
        if len(lists) == 1 and all(isinstance(row, dict) for row in lists[0]):
            yield from _json_rows(lists[0])
            return
        for name, value in tree.items():  # kohya：{图: 描述} 或 {图: {"caption": …, "tags": …}}
            if isinstance(value, str):
                yield f"“{name}”", {"file_name": name, "caption": value}
            elif isinstance(value, dict):
                yield f"“{name}”", {**value, "file_name": name}


def _hashable(value: object) -> object:
    return value if isinstance(value, (str, int)) else None


def _cells(path: Path, text: str, index: _Index) -> Iterator[tuple[str, dict]]:
    """CSV、TSV：隔开的符号看第一行；没有列名的，前两格是图和描述。"""
    first = text.partition("\n")[0]
    mark = _mark(first) if path.suffix.lower() == ".csv" else "\t"
    header: list[str] = []
    try:
        for number, cells in enumerate(
            csv.reader(io.StringIO(text, newline=""), delimiter=mark), 1
        ):
            cells = [cell.strip() for cell in cells]
            if not header:
                header = [cell.lower() for cell in cells]
                if any(key in header for key in FILES):
                    if twice := repeated(header):
                        reason, mend = f"列名 {twice} 写了两次", "留下对的那一列，另一列改个名字"
                        raise Fault("metadata_line", path, reason, mend)
                    continue
                header = ["file_name", "caption"]
                if not cells or index.find(cells[0], path.parent) is None:
                    return  # 既没有列名，第一格也不是图：不是描述表
            yield f"第 {number} 行", dict(zip(header, cells, strict=False))
    except csv.Error as error:
        mend = "多半是少了一个双引号，用表格软件打开另存一次"
        raise Fault("metadata_line", path, f"读不懂（{error}）", mend) from None


def tables_of(others: Sequence[Path], tables: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(按约定的 metadata 表, 要当别人的表来读的文件)。"""
    musubi = [path for path in tables if foreign_rows(path)]
    rest = [path for path in others if path.suffix.lower() in (*SUFFIXES, *BINARY)]
    return [path for path in tables if path not in musubi], [*musubi, *rest]
