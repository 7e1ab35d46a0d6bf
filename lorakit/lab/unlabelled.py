"""大作业：没有标签的检查点。六个检查点的样张打乱了排成一列，挑最好的、认出背图的，和三个灯对一对。

记录由 tests/measure_lineup.py 练出来：八张图练 400 步，检查点各画没练过的和练过的。
"""

import random

from PIL import Image

from lorakit.lab.display import pictured, publish
from lorakit.lab.exercises.answers import letters
from lorakit.lab.notes import best as ranked
from lorakit.lab.picture import wall
from lorakit.lab.recordings import CELL, Recorded, recorded
from lorakit.results.verdict import GREEN

NAME, LETTERS = "lineup", "甲乙丙丁戊己"
BLANK = (
    '未完成：看过上面的图，写 最好的="甲"、抄的="乙丙" 这样的答案，再运行。'
    '一个也没抄，就写 抄的=""。'
)


def lineup(最好的=..., 抄的=...) -> None:
    """摆出六个没有标签的检查点；给了答案就判，判完才亮出步数和三个灯。

    Args:
        最好的: 一个字，例如 "甲"。
        抄的: 背了训练图的那几个，例如 "乙丙"；没有就是空的。
    """
    record = recorded(NAME)
    publish(pictured(picture(record)))
    if 最好的 is ... or 抄的 is ...:
        print(BLANK)
        return
    chosen, copied = letters(最好的), letters(抄的)
    named = isinstance(chosen, set) and isinstance(copied, set)
    if not named or len(chosen) != 1 or not chosen | copied <= set(LETTERS):
        print(f"最好的写一个字，抄的写几个字，都从 {'、'.join(LETTERS)} 里挑。")
        return
    right = mark(record, chosen.pop(), copied)
    print("\n".join(right.values()))
    record.show_lights()
    scores = ranked("lineup.json", sum(said.startswith("✓") for said in right.values()), _score)
    print("本机最好的（两问对几问）：", "、".join(map(str, scores)))


def order(record: Recorded) -> dict[str, int]:
    """哪个字是第几步：打乱了，每次都一样。"""
    steps = list(record.checkpoints)
    random.Random(NAME).shuffle(steps)
    return dict(zip(LETTERS, steps, strict=True))


def picture(record: Recorded) -> Image.Image:
    """一行一个检查点，行头只有一个字；最上面是训练图。"""
    rows = [record.rows[0], *(record.rows[step] for step in order(record).values())]
    return wall(rows, ["训练图", *LETTERS], record.columns, CELL)


def mark(record: Recorded, chosen: str, copied: set[str]) -> dict[str, str]:
    """两问各一句话，对的以 ✓ 开头：挑的是不是三个灯都绿的；抄的认全了没有。"""
    where = order(record)
    lights = {one: record.checkpoints[step][1] for one, step in where.items()}
    good = [one for one in where if all(light.color == GREEN for light in lights[one])]
    guilty = {one for one in where if lights[one][2].color != GREEN}
    said = {}
    if chosen in good:
        said["best"] = f"✓ 最好的：{chosen}，第 {where[chosen]} 步，三个灯都绿。"
    else:
        lamp = next(light for light in lights[chosen] if light.color != GREEN)
        said["best"] = (
            f"✗ 最好的：{chosen} 是第 {where[chosen]} 步，{lamp.name}的灯是{lamp.color}的："
            f"{lamp.said}三个灯都绿的是 {'、'.join(good)}。"
        )
    if copied == guilty:
        said["copied"] = f"✓ 抄的：{'、'.join(sorted(guilty)) or '一个也没有'}，认全了。"
    else:
        missed, wrong = "、".join(sorted(guilty - copied)), "、".join(sorted(copied - guilty))
        parts = [f"漏了 {missed}"] * bool(missed) + [f"冤枉了 {wrong}"] * bool(wrong)
        said["copied"] = (
            f"✗ 抄的：{'，'.join(parts)}。看后四列：换了种子，还和训练图一样的，就是抄。"
        )
    return said


def _score(value: object) -> bool:
    return type(value) is int and 0 <= value <= 2
