"""训练面板：进度、损失与留出集的线、按时间步的损失、样张墙、停止与继续；只改控件的属性。"""

import time
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from lorakit.errors import inert
from lorakit.flow import EVAL_T
from lorakit.lab.display import Placed, both, frame, pictured, put, widgets
from lorakit.lab.picture import BLUE, GRAY, RED, chart, stack, wall
from lorakit.results.report import draw_held, smooth

EVERY = 0.5  # 秒；一秒最多重画两次，再快眼睛看不见，还会堵住网页
SHARE = 10  # 画图最多占训练时间的十分之一


class Board(Placed):
    """一块面板；`board.show(step)` 记下一步，另外几个 show_ 换上图。

    用在普通的循环里：`for step in Trainer(config): board.show(step)`。
    """

    def __init__(self, total: int, prompts: Sequence[str] = ()):
        w = widgets()
        self.total, self.names = total, [_short(prompt) for prompt in prompts]
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.held: list[tuple[int, float]] = []
        self.by_t: list[tuple[int, list[float]]] = []
        self.samples: list[tuple[int, list[Image.Image]]] = []
        self.bar = w.IntProgress(0, 0, total, layout=w.Layout(width="min(520px, 95%)"))
        self.status = w.HTML("还没有开始")
        self.stop_button = w.Button(description="停止", icon="stop", disabled=True)
        self.continue_button = w.Button(description="继续", icon="play", disabled=True)
        self.lines, self.shots = frame(format="png"), frame(format="jpeg")
        self.shots.layout.display = "none"  # 还没有样张时不占地方
        buttons = w.HBox([self.stop_button, self.continue_button])
        self.box = w.VBox([self.bar, self.status, buttons, self.lines, self.shots])
        self._next = 0.0
        put(self.lines, self.curves())

    def display(self):
        """摆出面板；同一份输出里带着此刻的静态图。"""
        both(self.box, pictured(self.picture()))

    def picture(self) -> Image.Image:
        """此刻的整块面板，一张图。"""
        parts = [self.curves()] + ([self.samples_wall()] if self.samples else [])
        return stack(parts)

    def show(self, step):
        """记下一步；离上次重画太近就先不画。"""
        self.steps.append(step.step)
        self.losses.append(step.loss)
        if step.held is not None:
            self.held.append((step.step, step.held))
        start = time.monotonic()
        if start < self._next and step.step < self.total:
            return
        left = (self.total - step.step) * step.seconds
        self.bar.value = step.step
        self.say(
            f"第 {step.step} / {self.total} 步 · 损失 {step.loss:.3f}"
            + (f" · 留出集 {self.held[-1][1]:.3f}" if self.held else "")
            + f" · 大约还要 {left:.0f} 秒"
        )
        put(self.lines, self.curves())
        now = time.monotonic()
        self._next = now + max(EVERY, SHARE * (now - start))

    def show_start(self, held: float | None):
        """训练前（没有 LoRA 时）的留出集损失。"""
        if held is not None:
            self.held.insert(0, (0, held))

    def show_by_t(self, step: int, losses: list[float]):
        """留出集上 8 个时间步各自的损失。"""
        self.by_t.append((step, losses))
        put(self.lines, self.curves())

    def show_samples(self, step: int, images: list[Image.Image]):
        """样张墙添一行。"""
        self.samples.append((step, images))
        put(self.shots, self.samples_wall())
        self.shots.layout.display = ""

    def rewind(self, step: int):
        """从第 step 步的检查点接着练：它之后的记录作废，免得同一步记两次。"""
        kept = sum(done <= step for done in self.steps)
        del self.steps[kept:], self.losses[kept:]
        for log in (self.held, self.by_t, self.samples):
            log[:] = [entry for entry in log if entry[0] <= step]

    def say(self, text: str, bad: bool = False):
        """状态那一行；bad 用红字。"""
        color = RED if bad else "inherit"
        self.status.value = f'<span style="color:{color}">{escape(inert(text))}</span>'

    def running(self, yes: bool):
        """训练中能停，停了能继续。"""
        done = bool(self.steps) and self.steps[-1] >= self.total
        self.stop_button.disabled, self.continue_button.disabled = not yes, yes or done

    def curves(self):
        """左：损失与留出集；右：按时间步的损失，训练前与现在。"""
        figure, (left, right) = chart(2, height=2.6, gridspec_kw={"width_ratios": (3, 2)})
        if self.steps:
            losses = np.array(self.losses)
            left.plot(self.steps, losses, color=GRAY, lw=0.7, label="每一步的损失（会抖）")
            left.plot(self.steps, smooth(losses), color=BLUE, label="滑动平均")
            left.set_ylim(0, float(np.quantile(losses, 0.98)) * 1.4)  # 上面留给图例
        if self.held:
            draw_held(left, self.held, 4, "留出集（看这条）")
        left.set(xlabel="训练步数", ylabel="损失", title="损失降了没有", xlim=(0, self.total))
        for (step, values), color in zip(
            self.by_t[:1] + self.by_t[1:][-1:], (GRAY, RED), strict=False
        ):
            name = "训练前" if step == 0 else f"第 {step} 步"
            right.plot(EVAL_T, values, "o-", ms=4, color=color, label=name)
        right.set(xlabel="时间步 t（1 是纯噪声）", title="哪种噪声下学得多", xlim=(0, 1))
        right.set_ylim(0, 1.4 * max((max(values) for _, values in self.by_t), default=1))
        for axes in (left, right):
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="upper right")
        return figure

    def samples_wall(self) -> Image.Image:
        rows = [images for _, images in self.samples]
        names = ["训练前" if step == 0 else f"{step} 步" for step, _ in self.samples]
        return wall(rows, names, self.names)


def _short(prompt: str, most: int = 6) -> str:
    """样张墙的列名：取最后一段里最后几个字，放得进一格。"""
    text = prompt.replace("，", " ").replace(",", " ").split()[-1]
    return text if len(text) <= most else text[-most:]
