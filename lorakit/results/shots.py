"""样张：samples/步数_第几句.png；samples.json 记着每一步各列画的是什么：哪句话、怎样画、改哪张图。

接着练时提示词可能换了：同一列画的是同一件事，练之前和练之后才比得。
退回更早的检查点时，后来画的在 samples/discarded（results/folder.py），不算。
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lorakit.files import Unreadable, read_json, write_text
from lorakit.results.report import save_image

NAME = re.compile(r"(\d+)_(\d+)\.png")
COLUMNS = "samples.json"  # {步数: [每一列画的是什么，一个指纹]}


def keep(run: Path, step: int, images: Sequence[Image.Image], columns: Sequence[str]):
    """存下第 step 步的一行样张；columns 见 `infer.columns`。"""
    folder = run / "samples"
    for i, image in enumerate(images):
        save_image(image, folder / f"{step}_{i}.png")
    known = {**_known(run), str(step): list(columns)}
    write_text(run / COLUMNS, json.dumps(known, indent=1))


def rows(run: Path) -> dict[int, dict[int, Path]]:
    """{步数: {第几列: 文件}}，都从小到大。"""
    known, found = _known(run), {}
    for path in (run / "samples").glob("*.png"):
        if match := NAME.fullmatch(path.name):
            found.setdefault(int(match[1]), {})[int(match[2])] = path
    rows = {}
    for step in sorted(found):
        drawn = len(known.get(str(step), found[step]))  # 同一步先前多画的几句，不是这一行的
        rows[step] = {i: found[step][i] for i in sorted(found[step]) if i < drawn}
    return rows


def before_and_after(run: Path) -> tuple[list[int], list[int]]:
    """(哪一两步, 哪几列)：最新的一步，和画的是同样几列的最早的一步；没有样张就都是空的。

    只有几列一样就只要那几列；没有更早的一步一样，就只有最新的一步。以前的样张没有记，当作一样。
    """
    there, known = rows(run), _known(run)
    if not there:
        return [], []
    last = max(there)
    for step in there:
        same = [i for i in there[last] if i in there[step]]
        one, other = known.get(str(step)), known.get(str(last))
        if one is not None and other is not None:
            same = [i for i in same if one[i] == other[i]]
        if same and step != last:
            return [step, last], same
    return [last], list(there[last])


def alike(run: Path, steps: Sequence[int], column: int) -> bool:
    """这几步的这一列画的是同一件事；以前的样张没有记，当作一样。"""
    known = _known(run)
    told = [known[str(step)] for step in steps if str(step) in known]
    return len({one[column] for one in told if column < len(one)}) < 2


def _known(run: Path) -> dict[str, list[str]]:
    try:
        return read_json(run / COLUMNS, {str: [str]})
    except Unreadable:
        return {}
