"""训练看板 board.png：损失、按 t 的损失、梯度、各层改了多少、样张，一张图看完。"""

from pathlib import Path

import numpy as np
from PIL import Image

from lorakit.data.read import read_image
from lorakit.flow import EVAL_T
from lorakit.inert import in_figure
from lorakit.results import folder as run_folder
from lorakit.results import heldout, shots
from lorakit.results.report import RED, draw_loss, figure_to, grid
from lorakit.results.verdict import UNSEEN, last

SHOTS = 8  # 最多放几张样张
WIDTH, DPI = 12, 100  # 英寸、每英寸几个像素
GRAY, BLUE = "#9aa5b1", "#5078b4"


def plot(run: Path) -> Path:
    """把 run 里的记录、检查点与样张画成 board.png，返回它的路径。"""
    metrics, wall = run_folder.read(run), _samples(run)
    tall = 0 if wall is None else min(1, WIDTH / (wall.width / DPI)) * wall.height / DPI
    with figure_to(run / "board.png", figsize=(WIDTH, 7.6 + tall), dpi=DPI) as figure:
        rows = [3.5, 3.5, tall] if tall else [1, 1]
        spaces = figure.add_gridspec(len(rows), 2, height_ratios=rows)
        axes = [figure.add_subplot(spaces[i // 2, i % 2]) for i in range(4)]
        draw_loss(axes[0], metrics)
        _by_t(axes[1], metrics)
        _gradient(axes[2], metrics)
        _changes(axes[3], metrics)
        if wall is not None:
            bottom = figure.add_subplot(spaces[2, :])
            bottom.imshow(wall)
            bottom.axis("off")
        figure.suptitle(in_figure(_headline(run, metrics)), fontsize=11, wrap=True)
    return run / "board.png"


def _headline(run: Path, metrics) -> str:
    """判断的词与三个灯；没看过的灯合成一行。"""
    verdict = last(run, metrics)
    seen = [str(light) for light in verdict.lights if light.said != UNSEEN]
    unseen = [light.name for light in verdict.lights if light.said == UNSEEN]
    return "\n".join(
        [verdict.phrase, *seen, *[f"[灭] {'、'.join(unseen)}：{UNSEEN}"] * bool(unseen)]
    )


def _by_t(axes, metrics):
    axes.set_title("留出集损失，按噪声多少 t 分开")
    rows = [m for m in heldout.same(metrics) if m.get("held_each")]
    tables = [(m["step"], np.mean(m["held_each"], 0)) for m in rows]
    if not tables:
        axes.text(0.5, 0.5, "没有留出集", ha="center", transform=axes.transAxes)
        return
    best = min(tables, key=lambda pair: pair[1].mean())
    first = "没有 LoRA 时" if tables[0][0] == 0 else f"第 {tables[0][0]} 步"
    axes.plot(EVAL_T, tables[0][1], "o:", color=GRAY, label=first)
    if best[0] not in (tables[0][0], tables[-1][0]):
        axes.plot(EVAL_T, best[1], "o--", color=BLUE, label=f"最好的第 {best[0]} 步")
    axes.plot(EVAL_T, tables[-1][1], "o-", color=RED, label=f"第 {tables[-1][0]} 步")
    axes.set_xlabel("t（0 是原图，1 是纯噪声）")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=9)
    axes.grid(alpha=0.25)


def _gradient(axes, metrics):
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_title("梯度的长度（裁剪之前）")
    pairs = [(m["step"], m["grad_norm"]) for m in metrics if m.get("grad_norm") is not None]
    if pairs:
        axes.semilogy(*zip(*pairs, strict=True), color=BLUE, lw=1)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # 别的刻度不写字，免得叠在一起
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("步数")
    axes.grid(alpha=0.25)


def _changes(axes, metrics):
    axes.set_title("各块的权重改了多少 |ΔW|")
    tables = [(m["step"], m["delta"]) for m in metrics if m.get("delta")]
    if not tables:
        axes.text(0.5, 0.5, "没有记录", ha="center", transform=axes.transAxes)
        return
    middle, last = tables[len(tables) // 2], tables[-1]
    for (step, blocks), color in ((last, BLUE), (middle, GRAY)):
        axes.bar(range(len(blocks)), blocks.values(), color=color, label=f"第 {step} 步")
    blocks = last[1]
    if len(blocks) <= 12:
        axes.set_xticks(range(len(blocks)), map(in_figure, blocks), fontsize=8)
    axes.set_xlabel("第几块（从输入到输出）")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25, axis="y")


def _samples(run: Path) -> Image.Image | None:
    """最早与最新一步的样张排成两行，同一列是同一句话；没有就是 None。"""
    steps, columns = shots.before_and_after(run)
    if not steps:
        return None
    there, columns = shots.rows(run), columns[:SHOTS]
    rows = [[read_image(there[step][i], True) for i in columns] for step in steps]
    names = ["没有\nLoRA" if step == 0 else f"第 {step}\n步" for step in steps]
    return grid(rows, names, [str(i + 1) for i in columns])
