"""没有描述的图、没有图的描述：看名字，多半是谁的什么，写出要抄的那一行。"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lorakit.data.captions import nfc
from lorakit.data.conventions import is_mask_folder, mask_base, yaml_path
from lorakit.data.report import Problem, relative

MISSING = "caption_missing"
WORDS = (".md", ".yaml", ".yml", ".xml", ".xmp", ".rtf", ".doc", ".docx", ".csv", ".tsv", ".cap",
         ".tags", ".html", ".text", ".prompt")  # fmt: skip
_PART = re.compile(r"(.+?)[-_. ]+([^-_. ]+)")  # 0_depth、0-condlabel、0.alpha


def say_whose(
    problems: Sequence[Problem],
    pictures: Sequence[Path],
    captions: Sequence[Path],
    folder: Path,
    others: Sequence[Path] = (),
) -> list[Problem]:
    """给“没有描述”补上多半是怎么回事；整个文件夹都是一回事的，合成一个。

    Args:
        captions: 没有同名的图的描述。
        others: 不读的文件：和图同名、像是文字的，多半写着描述。
    """
    missing = {problem.path for problem in problems if problem.code == MISSING}
    told, loose = defaultdict(set), defaultdict(list)  # 名字 -> 有描述的图在哪里；描述
    for path in pictures:
        if path not in missing:
            told[nfc(path.stem)].add(path.parent)
    for path in captions:
        loose[nfc(path.stem)].append(path)
    unread = {(p.parent, nfc(p.stem)): p for p in others if p.suffix.lower() in WORDS}
    whole = _twins(missing, pictures, told)
    result = [_twin(home, *rest) for home, rest in whole.items()]
    for problem in problems:
        if problem.code != MISSING:
            result.append(problem)
        elif problem.path.parent not in whole:
            same = unread.get((problem.path.parent, nfc(problem.path.stem)))
            result.append(_hinted(problem, told, loose, folder, same))
    return result


def _twins(
    missing: Collection[Path], pictures: Sequence[Path], told: Mapping[str, set[Path]]
) -> dict[Path, tuple[Path, int]]:
    """整个文件夹都没有描述、又都和另一个文件夹里的同名：文件夹 -> (那一个, 几张)。"""
    homes = defaultdict(list)
    for path in pictures:
        homes[path.parent].append(path)
    found = {}
    for home, paths in homes.items():
        common = set.intersection(*(told.get(nfc(path.stem), set()) for path in paths))
        if all(path in missing for path in paths) and len(common) == 1:
            found[home] = common.pop(), len(paths)
    return found


def _twin(home: Path, target: Path, count: int) -> Problem:
    reason = f"{count} 张图都没有描述，名字和 {target.name} 里的一样"
    mend = f"是改之前的图（练编辑），就写 data.folder: {yaml_path(target)} 和 "
    masks = f"挪进 {target}" if is_mask_folder(home.name) else "改名为 masks"
    mend += f"data.control_folder: {yaml_path(home)}；是遮罩，就把它{masks}；都不是就移走"
    return Problem.error("twins", home, reason, mend)


def _hinted(
    problem: Problem,
    told: Mapping[str, set[Path]],
    loose: Mapping[str, list[Path]],
    folder: Path,
    same: Path | None,
) -> Problem:
    path, stem = problem.path, nfc(problem.path.stem)
    away = loose.get(stem, [])
    if len(away) == 1 and away[0].parent != path.parent:
        mend = f"{relative(away[0], folder)} 是它的描述，就挪到它旁边；不是就{problem.mend}"
        return replace(problem, mend=mend)
    if same:
        mend = f"{same.name} 里写着它的描述，就存成纯文本的 {path.stem}.txt（那种文件不读）；不是就"
        return replace(problem, mend=f"{mend}{problem.mend}")
    if base := mask_base(stem):
        mend = f"像是 {base} 的遮罩，可是没有叫 {base} 的图：补上那张图，或移走它；不是遮罩就"
        return replace(problem, mend=f"{mend}{problem.mend}")
    part = _PART.fullmatch(stem)
    if part and path.parent in told.get(part[1], ()):
        mend = f"是 {part[1]} 的遮罩，就改名为 {part[1]}_mask{path.suffix}；是它改之前的图，"
        mend += f"就改名为 {part[1]}{path.suffix}、挪进另一个文件夹，写 data.control_folder；"
        return replace(problem, mend=f"{mend}都不是就{problem.mend}")
    return problem
