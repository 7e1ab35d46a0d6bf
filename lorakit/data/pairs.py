"""编辑训练的成对图片：目标图（改好的样子）和控制图（改之前的样子）按文件名配对。

同名就是一对，后缀不必一样；一张目标图有几张控制图时，依次叫 名字、名字_2、名字_3。
教程：notebooks/02_dataset.ipynb
"""

import difflib
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lorakit.data.captions import MOVED, nfc, read_sidecar, stay_inside
from lorakit.data.conventions import pictures_in
from lorakit.data.folder import Found
from lorakit.data.limits import CONTROLS, check_size
from lorakit.data.read import RESAVE, in_threads, read_image
from lorakit.data.record import Record
from lorakit.data.report import Fault, Problem, names, relative
from lorakit.data.seen import Album, Seen
from lorakit.files import user_path

ASPECT = 1.05  # 两张图的宽高比差过 5%，裁切后就对不齐了


def locate(folder: Path, control: str | Path | None) -> Path | None:
    """控制图的文件夹：写明的，或 folder 里与 images 并排的 control；都没有就是 None。"""
    if control is not None:
        return user_path(control)
    both = os.path.isdir(folder / "images") and os.path.isdir(folder / "control")
    return folder / "control" if both else None


def attach(
    album: Album, records: Sequence[Record], found: Found, before: Found
) -> tuple[list[Record], dict[Path, Seen], list[Problem]]:
    """给每条记录配上控制图；配不上、读不出的去掉，返回 (记录, 用到的控制图, 问题)。

    Args:
        found, before: 走一遍目标文件夹与控制图文件夹看到的东西。
    """
    matched, problems = _match(found, before)
    paths = [path for same in matched.values() for path in same]

    def read(path: Path) -> Seen | Problem:
        try:
            stay_inside(path, before.folder)
            return album.see(path)
        except Fault as fault:
            return fault.problem

    results = dict(zip(paths, in_threads(read, paths), strict=True))
    for path, result in results.items():
        bad = isinstance(result, Problem)
        problems += [result] if bad else check_size(path, result.size)
    wrong = {problem.path for problem in problems if problem.severity == "error"}
    good = []
    for record in records:
        mine = matched.get(record.path, [])
        if not mine or wrong & {record.path, *mine}:
            continue
        controls = [results[path] for path in mine]
        problems += _compare(record, mine[0], controls, found.folder)
        sizes, digests = zip(*((one.size, one.digest) for one in controls), strict=True)
        good.append(
            replace(record, controls=tuple(mine), control_sizes=sizes, control_digests=digests)
        )
    used = {path: one for path, one in results.items() if isinstance(one, Seen)}
    return good, used, problems


def captions_beside(records: Sequence[Record], found: Found, before: Found) -> list[Problem]:
    """控制图旁边的描述和描述表不读：和目标图的一样就说一声，不一样就不知道该听谁的。"""
    said = {_key(record.path, found.folder): record.caption for record in records}
    same, other, moved = [], [*before.tables], _moved(found)
    for paths in before.captions.values():
        for path in paths:
            if (key := _key(path, before.folder)) in moved:  # 控制图那里说了
                continue
            mine = said.get(key)
            (same if mine is not None and _says(path) == mine else other).append(path)
    problems = []
    if same:
        reason = f"控制图旁边的 {len(same)} 份描述和目标图的一样，用的是目标图的"
        problems.append(Problem.note("control_captions", reason))
    if other:
        shown = names(other, before.folder)
        reason = f"控制图旁边有 {len(other)} 份描述，和目标图的不一样，没有用到：{shown}"
        mend = "描述（怎么改）写在目标图旁边：要用它们就挪过去，换掉那里的；不用就移走，"
        mend += f"或挪进 {before.folder / '.不用的'}（名字以点开头的不看）"
        problems.append(Problem.error("control_captions", None, reason, mend))
    return problems


def _says(path: Path) -> str | None:
    try:
        return read_sidecar(path)
    except Fault:  # 读不出来，也就和目标图的不一样
        return None


def _key(path: Path, root: Path) -> tuple[Path, str]:
    """相对于 root 的文件夹、不带后缀的名字；root 里的 images 这一层不算。"""
    inside = root / "images"
    parent = path.parent.relative_to(inside if path.is_relative_to(inside) else root)
    return parent, nfc(path.stem)


def _moved(found: Found) -> set[tuple[Path, str]]:
    """--fix 移走的目标图，和它们的第二、第三张控制图会叫的名字。"""
    home = found.folder / MOVED
    keys = [_key(path, home) for path in pictures_in(home)]
    more = [(parent, f"{stem}_{n}") for parent, stem in keys for n in range(2, CONTROLS + 1)]
    return {*keys, *more}


def _match(found: Found, before: Found) -> tuple[dict[Path, list[Path]], list[Problem]]:
    """目标图 -> 它的控制图（第一张同名，其余 _2、_3）。"""
    problems: list[Problem] = []
    controls = defaultdict(list)
    for path in before.pictures:
        controls[_key(path, before.folder)].append(path)
    targets = {_key(path, found.folder): path for path in found.pictures}
    matched, used, guessed = {}, set(), set()
    for (parent, stem), path in targets.items():
        # 另有一张目标图就叫 名字_2 时，名字_2 是它的控制图，不是这一张的第二张
        more = [(parent, f"{stem}_{n}") for n in range(2, CONTROLS + 2)]
        keys = [(parent, stem), *(key for key in more if key not in targets)]
        mine = []
        for key in keys:
            if key not in controls:
                break
            mine.append(key)
        used |= set(mine)
        if not mine:
            near = _near(stem, parent, controls)
            guessed.add(near)
            like = controls[near][0] if near else None
            problems.append(_missing(path, stem, parent, like, before))
        elif len(mine) > CONTROLS:
            reason = f"有 {len(mine)} 张以上的控制图，最多 {CONTROLS} 张"
            mend = f"留下最要紧的 {CONTROLS} 张：{stem}、{stem}_2 到 {stem}_{CONTROLS}"
            problems.append(Problem.error("control_many", path, reason, mend))
        else:
            matched[path] = [controls[key][0] for key in mine]
    moved = _moved(found)
    for key, same in controls.items():
        if len(same) > 1 and key in used:
            reason = f"有 {len(same)} 张同名的控制图：{names(same, before.folder)}"
            mend = "不知道该用哪一张，只留下一张；要当作几张用就改成 名字_2、名字_3"
            problems.append(Problem.error("control_twice", same[0], reason, mend))
        elif key not in used and key in moved:  # 自己移走的，不算用户的错
            reason = f"它的目标图已经被 --fix 移到 {MOVED} 里，这张没有用到"
            mend = "确实不要那张目标图，就把它也移走"
            problems += [Problem.warning("control_moved", p, reason, mend) for p in same]
        elif key not in used:
            reason = "没有和它配对的目标图，没有用到"
            mend = "改成和目标图一样的名字；是第二、第三张就从 名字_2 起依次编号；用不着就移走"
            severity = "warning" if key in guessed else "error"  # “没有控制图”那一条提到了它
            problems += [Problem(severity, "control_orphan", p, reason, mend) for p in same]
    return matched, problems


def _near(stem: str, parent: Path, controls: Mapping) -> tuple[Path, str] | None:
    """名字最像的一张控制图。"""
    stems = [name for where, name in controls if where == parent]
    near = difflib.get_close_matches(stem, stems, n=1, cutoff=0.75)
    return (parent, near[0]) if near else None


def _missing(path: Path, stem: str, parent: Path, near: Path | None, before: Found) -> Problem:
    unread = [one for one in before.others if _key(one, before.folder) == (parent, stem)]
    hint = f"（是不是 {near.name}？）" if near else ""
    hint = f"（{unread[0].name} 这种文件不读，{RESAVE}）" if unread else hint
    mend = f"把改之前的那张图放进 {before.folder / parent}，取名 {stem}（后缀随意）{hint}"
    return Problem.error("control_missing", path, "没有控制图，不知道是从哪张图改来的", mend)


def _compare(record: Record, path: Path, controls: Sequence[Seen], folder: Path) -> list[Problem]:
    """目标与第一张控制图：一模一样就没什么可学，形状不同就对不齐。"""
    problems, first = [], controls[0]
    same = first.digest == record.digest or (
        first.look == record.look
        and first.size == record.size
        and read_image(path).tobytes() == read_image(record.path).tobytes()
    )
    if same:
        code = "control_same"
        reason = f"和控制图 {relative(path, folder)} 一模一样，从这一对里学不到改动"
        mend = "把两张里放错的那张换掉；确实想教它“不用改”就留着"
        if read_image(path, True).mode != read_image(record.path, True).mode:
            code, reason = "control_clear", f"{reason}（只差在透明）"
            mend = "想教它把背景变透明，就写 data.alpha=keep（底模要 Qwen-Image 2.1）"
        problems.append(Problem.warning(code, record.path, reason, mend))
    ratios = [math.log(size[0] / size[1]) for size in (record.size, first.size)]
    if len(controls) == 1 and abs(ratios[0] - ratios[1]) > math.log(ASPECT):
        shapes = [f"{width}x{height}" for width, height in (record.size, first.size)]
        reason = f"是 {shapes[0]}，控制图是 {shapes[1]}，宽高比不同，裁切以后两张对不齐"
        mend = "把两张裁成一样的形状，让没有改动的地方落在同一个位置"
        problems.append(Problem.warning("control_aspect", record.path, reason, mend))
    return problems
