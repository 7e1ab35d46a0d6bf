"""真的练过、判过、记下来的训练：红线、样张墙、三个灯并排，不用再等几分钟。

每一份记录是 assets/recordings 里的一个 JSON 和一张图，由 tests/measure_trap.py 练出来。
"""

import json
from dataclasses import dataclass

from matplotlib.figure import Figure
from PIL import Image

from lorakit.errors import LorakitError
from lorakit.files import ASSETS
from lorakit.inert import in_html
from lorakit.lab.display import pictured, publish, table
from lorakit.lab.lights import COLORS
from lorakit.lab.picture import RED, chart, stack, wall
from lorakit.results.report import draw_held
from lorakit.results.verdict import NAMES, Light

HOME = ASSETS / "recordings"
CELL = 96  # 像素；记下来的样张，一张的边长


@dataclass(frozen=True)
class Recorded:
    """一次训练的几个检查点。

    held 是 [(步数, 留出集损失)]，从没练（0）开始；checkpoints 是 {步数: (词, 三个灯)}；
    rows 是 {步数: 几张样张}，0 是没练时。
    """

    command: str
    held: list[tuple[int, float]]
    checkpoints: dict[int, tuple[str, tuple[Light, ...]]]
    columns: list[str]
    rows: dict[int, list[Image.Image]]

    def line(self) -> Figure:
        """红线，几个检查点的地方标出来。"""
        figure, axes = chart(height=2.3, width=6.4)
        draw_held(axes, self.held, 3, "留出集损失")
        low = dict(self.held)
        for step in self.checkpoints:
            axes.axvline(step, color="#9aa4b2", lw=0.8, ls="--", zorder=0)
            down = low[step] / self.held[0][1] - 1
            said, place = f"第 {step} 步\n{down:.0%}", (step + 1.5, low[step] + 0.5)
            axes.annotate(said, (step, low[step]), place, fontsize=9.5, color=RED)
        axes.set(xlabel="训练步数", ylabel="留出集损失", ylim=(0, None), title="只看红线")
        return figure

    def wall(self) -> Image.Image:
        """样张墙：一行一个检查点。"""
        names = ["没练" if step == 0 else f"{step} 步" for step in self.rows]
        return wall(list(self.rows.values()), names, self.columns, CELL)

    def show_lights(self):
        """三个灯，一行一个检查点。"""
        rows, lines = [("", "一个词", *NAMES)], []
        for step, (word, lights) in self.checkpoints.items():
            dots = [
                f'<span style="color:{COLORS[one.color]}">●</span> {one.color}<br>'
                f"<small>{in_html(one.said)}</small>"
                for one in lights
            ]
            rows.append((f"第 {step} 步", f"<b>{in_html(word)}</b>", *dots))
            lines.append("\n".join([f"第 {step} 步：{word}", *map(str, lights)]))
        page = f"{table(rows)}<p><small>记下来的训练：{in_html(self.command)}</small></p>"
        publish({"text/html": page, "text/plain": "\n".join(lines)})

    def show(self):
        """红线与样张墙，上下一张图。"""
        publish(pictured(stack([self.line(), self.wall()])))


def recorded(name: str) -> Recorded:
    """按名字取一份记录，例如 recorded("trap")。

    Raises:
        LorakitError: 没有这份记录。
    """
    known = sorted(file.stem for file in HOME.glob("*.json"))
    if name not in known:
        raise LorakitError(f"没有叫“{name}”的记录。有的是：{'、'.join(known)}。")
    facts = json.loads((HOME / f"{name}.json").read_text(encoding="utf-8"))
    with Image.open(HOME / f"{name}.webp") as file:
        sheet = file.convert("RGB")
    rows = {
        step: [
            sheet.crop((j * CELL, i * CELL, (j + 1) * CELL, (i + 1) * CELL))
            for j in range(len(facts["columns"]))
        ]
        for i, step in enumerate(facts["rows"])
    }
    found = {
        one["step"]: (one["word"], tuple(Light(**light) for light in one["lights"]))
        for one in facts["checkpoints"]
    }
    held = [tuple(pair) for pair in facts["held"]]
    return Recorded(facts["command"], held, found, facts["columns"], rows)
