"""走遍一个文件夹：哪些是图、哪些是遮罩、哪些是描述、哪些不用看。"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from lorakit.data.captions import SIDECARS, TABLES, nfc, read_tables
from lorakit.data.conventions import holds_pictures, in_mask_folder, mask_targets
from lorakit.data.read import IMAGE_SUFFIXES
from lorakit.data.report import Problem, relative
from lorakit.data.tables import read_foreign, tables_of
from lorakit.errors import plain_reason


@dataclass
class Found:
    """走一遍文件夹看到的东西；图旁边的描述按（文件夹，不带后缀的名字）放，先 .txt。"""

    folder: Path
    pictures: list[Path] = field(default_factory=list)
    captions: dict[tuple[Path, str], list[Path]] = field(default_factory=dict)
    masks: dict[tuple[Path, str], Path] = field(default_factory=dict)
    tables: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def key_of(path: Path) -> tuple[Path, str]:
    return path.parent, nfc(path.stem)


def same_file(path: Path, other: Path | None) -> bool:
    return other is not None and os.path.realpath(path) == os.path.realpath(other)


# 系统、网盘、群晖自己留下的
LEFT = ("__macosx", "thumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin",
        "system volume information", "lost+found")  # fmt: skip


def _ignored(name: str) -> bool:
    """系统自己留下的东西，不是用户的数据。"""
    return name.startswith(".") or name.lower() in LEFT


def walk(folder: Path, skip: Path | None = None, masks: bool = True) -> Found:
    """走遍文件夹（不进 skip），按名字排好；打不开的文件夹、链接文件夹也记下来。

    Args:
        masks: 认不认 _mask 图；控制图没有遮罩，里面每一张都是图。
    """
    found = Found(folder)
    if not os.path.isdir(folder):  # 不用 Path.is_dir：上层文件夹没有权限时它会抛错
        if os.path.exists(folder):
            reason, mend = "这是一个文件，要的是文件夹", "写装着图片的那个文件夹"
            found.problems.append(Problem.error("folder_is_file", folder, reason, mend))
        else:
            mend = "检查路径有没有写错、在不在当前文件夹下"
            found.problems.append(Problem.error("folder_missing", folder, "没有这个文件夹", mend))
        return found

    def closed(error: OSError):
        reason = f"打不开这个文件夹（{plain_reason(error)}）"
        mend = "给它读的权限（chmod u+rx），或移走"
        found.problems.append(Problem.error("permission", Path(error.filename), reason, mend))

    files = []
    for parent, inner, here in os.walk(folder, onerror=closed):  # 不跟着链接走：会绕圈，也会走出去
        inner[:] = sorted(
            name for name in inner if not _ignored(name) and not same_file(Path(parent, name), skip)
        )
        for path in (Path(parent, name) for name in inner):
            if os.path.islink(path):
                found.problems.append(_linked(path, folder))
        files += [Path(parent, name) for name in here if not _ignored(name)]
    for path in sorted(files, key=lambda p: nfc(p.relative_to(folder).as_posix())):
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            found.pictures.append(path)
        elif path.name.lower() in TABLES:
            found.tables.append(path)
        else:
            found.others.append(path)
    _sidecars(found)
    if masks:
        _masks(found)
    return found


def _linked(path: Path, folder: Path) -> Problem:
    """链接文件夹不跟着走；外面那一头真有图，就是没有用到的数据。"""
    target, mend = Path(os.path.realpath(path)), "要用就把真正的文件夹复制进来；不用就删掉这个链接"
    away = not target.is_relative_to(os.path.realpath(folder)) and holds_pictures(target)
    reason = "这是链接到别处的文件夹，里面的图没有用到"
    return Problem("error" if away else "warning", "link_folder", path, reason, mend)


def _masks(found: Found):
    """“猫_mask.png”旁边有“猫.jpg”、自己又没有描述，它就是遮罩，不当训练图；别的叫法也认。"""
    folder, problems, rest, strays = found.folder, found.problems, [], []
    keys = set(map(key_of, found.pictures))
    targets = {path: mask_targets(path, nfc(path.stem), keys, folder) for path in found.pictures}
    listed = captions_in(found)[0] if any(targets.values()) else ()
    for path in found.pictures:
        told = key_of(path) in found.captions or path in listed
        bases = [] if told else targets[path]
        if not bases:
            (strays if not told and in_mask_folder(path, folder) else rest).append(path)
        elif len(bases) > 1:
            both = "、".join((home / name).relative_to(folder).as_posix() for home, name in bases)
            mend = f"放到那张图旁边，改名为 {bases[0][1]}_mask.png"
            reason = f"不知道是哪一张图的遮罩，{both} 都像"
            problems.append(Problem.error("mask_ambiguous", path, reason, mend))
        elif bases[0] in found.masks:
            reason = f"和 {relative(found.masks[bases[0]], folder)} 是同一张图的遮罩"
            mend = "只留一份，删掉另一份"
            problems.append(Problem.error("mask_twice", path, reason, mend))
        else:
            found.masks[bases[0]] = path
    homes = {path.parent for path in found.masks.values()}
    for path in strays:
        if path.parent not in homes:  # 整个文件夹没有一张对得上：多半是画着面具的训练图
            rest.append(path)
            continue
        reason = "在遮罩的文件夹里，可是没有同名的图，没有用到"
        mend = "改成和图一样的名字；用不着就移走"
        problems.append(Problem.error("mask_orphan", path, reason, mend))
    kept = set(rest)
    found.pictures = [path for path in found.pictures if path in kept]


def captions_in(found: Found) -> tuple[set[Path], list[Problem]]:
    """(描述写在表里的图，自己的表和别的工具的都算；表里的错误)。"""
    ours, theirs = tables_of(found.others, found.tables)
    rows, wrong = read_tables(ours, found.pictures, found.pictures, found.folder)
    foreign = read_foreign(theirs, found.pictures, found.folder)
    told = {path for path, said in rows.items() if any(one.caption for one in said)}
    wrong = [one for one in wrong + foreign.problems if one.severity == "error"]
    return told | set(foreign.said), wrong


def _sidecars(found: Found):
    """从别的文件里认出图旁边的描述；.json 只有和图同名才算，别处的多半是别的程序的设置。"""
    pictures, rest = set(map(key_of, found.pictures)), []
    for path in found.others:
        suffix, same = path.suffix.lower(), found.captions.get(key_of(path), [])
        likely = suffix in SIDECARS and (suffix != ".json" or key_of(path) in pictures)
        if likely and suffix not in (p.suffix.lower() for p in same):
            found.captions[key_of(path)] = [*same, path]
        else:
            rest.append(path)
    for same in found.captions.values():
        same.sort(key=lambda p: SIDECARS.index(p.suffix.lower()))
    found.others = rest
