"""病历：从随包的记录读出曲线、图、日志和灯；健康的对照画在旁边。"""

import json
from dataclasses import dataclass
from functools import cache

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from lorakit.files import ASSETS
from lorakit.flow import EVAL_T
from lorakit.lab.board import Board
from lorakit.lab.hospital.cases import ALL, Case
from lorakit.lab.hospital.record import SHOWN
from lorakit.lab.hospital.treatment import Checked
from lorakit.lab.picture import GREEN, stack, wall
from lorakit.results.evidence import Share
from lorakit.results.report import smooth
from lorakit.results.verdict import Light, Verdict

HOME = ASSETS / "clinic"
CELL, SMALL = 92, 54  # 像素：病历里、一览里一张图的边长
ASKED = "没练过的"
LOOK = {"color": GREEN, "ls": "--", "lw": 1.4, "label": "健康的对照（点线是滑动平均）"}


@dataclass(frozen=True)
class Chart:
    """一份记录：facts 是 JSON 里的事，rows 是 {行名: 几张图}。"""

    facts: dict
    rows: dict[str, list[Image.Image]]

    @property
    def checked(self) -> Checked:
        """记下来的复查。"""
        facts = self.facts
        lights = tuple(Light(*light) for light in facts["lights"])
        counts = {what: Share(*count) for what, count in facts["shares"].items()}
        verdict = Verdict(facts["word"], facts["sentence"], lights=lights)
        return Checked(verdict, counts, facts["measured"])


@cache
def chart(name: str) -> Chart:
    """按名字（病人或对照的）读一份记录。"""
    facts = json.loads((HOME / f"{name}.json").read_text("utf-8"))
    with Image.open(HOME / f"{name}.webp") as file:
        page = file.convert("RGB")
    side, rows = page.width // SHOWN, {}
    for i, (title, count) in enumerate(facts["rows"]):
        left = [(j * side, i * side, (j + 1) * side, (i + 1) * side) for j in range(count)]
        rows[title] = [page.crop(box) for box in left]
    return Chart(facts, rows)


def board(case: Case) -> Image.Image:
    """面板与几行图，上下一张；绿的虚线、最后一行是健康的对照。"""
    mine, well = chart(case.name), chart(case.control)
    rows = {title.replace("样张", "样张\n前 3 后 3"): images for title, images in mine.rows.items()}
    rows["对照画的"] = well.rows[ASKED]
    blank = Image.new("RGB", (CELL, CELL), "white")
    filled = [[*images, *[blank] * (SHOWN - len(images))] for images in rows.values()]
    columns = [str(i + 1) for i in range(SHOWN)]
    return stack([lines(mine, well), wall(filled, list(rows), columns, CELL)])


def lines(mine: Chart, well: Chart) -> Figure:
    """损失与按 t 的损失：这一个的，和健康的对照的。"""
    facts = mine.facts
    panel = Board(len(facts["losses"]))
    panel.losses = facts["losses"]
    panel.steps = list(range(1, len(panel.losses) + 1))
    panel.held, panel.by_t = facts["held"], facts["by_t"]
    figure = panel.curves()
    left, right = figure.axes
    left.plot(panel.steps, smooth(np.array(well.facts["losses"])), color=GREEN, lw=1, ls=":")
    left.plot(*zip(*well.facts["held"], strict=True), **LOOK)
    right.plot(EVAL_T, well.facts["by_t"][-1][1], **LOOK | {"label": "健康的对照"})
    top = max(*(loss for _, loss in facts["held"]), *(loss for _, loss in well.facts["held"]))
    left.set_ylim(0, max(left.get_ylim()[1], 1.35 * top))
    for axes in (left, right):
        axes.legend(loc="upper right", fontsize=8.5)
    return figure


def strip() -> Image.Image:
    """全部病人的一览：一列一个，上面是训练图，下面是它画的没练过的。"""
    shown = [chart(case.name).rows for case in ALL]
    rows = [[next(iter(one.values()))[0] for one in shown], [one[ASKED][0] for one in shown]]
    return wall(rows, ["训练图", "画的"], [str(i + 1) for i in range(len(ALL))], SMALL)
