"""训练面板：进度、损失与留出集的线、按时间步的损失、样张、停止与继续；只改控件的属性。"""

import time
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lorakit.flow import EVAL_T
from lorakit.inert import in_html
from lorakit.lab.display import Placed, both, frame, headless, pictured, put, reachable, widgets
from lorakit.lab.film import Film
from lorakit.lab.picture import BLUE, GRAY, RED, chart, stack
from lorakit.results.report import draw_held, smooth

EVERY = 0.5  # 秒；一秒最多更新两次，再快眼睛看不见，还会堵住网页
SURE_STEPS, SURE_SECONDS = 3, 2.0  # 练了几步、几秒以后，才说得准还要多久
SHARE = 10  # 画曲线最多占训练时间的十分之一；步数那一行不用等它


class Board(Placed):
    """一块面板；`board.show(step)` 记下一步，另外几个 show_ 换上图。

    用在普通的循环里：`for step in Trainer(config): board.show(step)`。
    """

    def __init__(self, total: int, prompts: Sequence[str] = (), names: Sequence[str] = ()):
        """
        Args:
            names: 样张的列名，一句提示词一个；不写就取提示词末尾的几个字。
        """
        w = widgets()
        self.total = total
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.held: list[tuple[int, float]] = []
        self.by_t: list[tuple[int, list[float]]] = []
        self.film = Film(names or [_short(prompt) for prompt in prompts])
        self.bar = w.IntProgress(0, 0, total, layout=w.Layout(width="min(520px, 95%)"))
        self.said = "还没有开始"  # 状态那一行的字
        self.status, self.note = w.HTML(self.said), w.HTML()
        self.stop_button = w.Button(description="停止", icon="stop", disabled=True)
        self.continue_button = w.Button(description="继续", icon="play", disabled=True)
        for button in (self.stop_button, self.continue_button):
            reachable(button)
        self.lines, self.shots = frame(format="png"), frame(format="jpeg")
        self.shots.layout.display = "none"  # 还没有样张时不占地方
        buttons = w.HBox([self.stop_button, self.continue_button])
        parts = [self.bar, self.status, self.note, buttons, self.lines, self.shots, self.film.box]
        self.box = w.VBox(parts)
        self._next = self._redraw = 0.0  # 何时再更新步数那一行、再画曲线
        self._pace, self._freshen = None, lambda static: None
        put(self.lines, self.curves())

    @property
    def samples(self) -> list[tuple[int, list[Image.Image]]]:
        """画过的样张：(步数, 几张图)。"""
        return self.film.rows

    def display(self):
        """摆出面板，和此刻的静态图；已经摆过的再摆一份，两份一起动。"""
        self._freshen = both(self.box, self._static())

    def settle(self):
        """停下或练完了：静态的那一份也换成最后的样子，隔天打开还看得见。"""
        self._freshen(self._static())

    def picture(self) -> Image.Image:
        """此刻的整块面板，一张图。"""
        parts = [self.curves()] + ([self.film.wall()] if self.samples else [])
        return stack(parts)

    def _static(self) -> dict:
        static = pictured(self.picture())
        if not headless() and len(self.samples) > 1:
            static["image/webp"] = self.film.animation()
        return static

    def show(self, step):
        """记下一步；离上次更新太近就先不写，曲线画得慢就少画几次。"""
        self.steps.append(step.step)
        self.losses.append(step.loss)
        if step.held is not None:
            self.held.append((step.step, step.held))
        start = time.monotonic()
        if start < self._next and step.step < self.total:
            return
        left = self._left(start, step.step)
        self.bar.value = step.step
        self.say(
            f"第 {step.step} / {self.total} 步 · 损失 {step.loss:.3f}"
            + (f" · 留出集 {self.held[-1][1]:.3f}" if self.held else "")
            + (f" · {left}" if step.step < self.total else "")
        )
        self._next = start + EVERY
        if start < self._redraw and step.step < self.total:
            return
        put(self.lines, self.curves())
        now = time.monotonic()
        self._redraw = now + max(EVERY, SHARE * (now - start))

    def _left(self, now: float, step: int) -> str:
        """还要多久：从开始（或继续）到现在平均每步多久，出样张的工夫也算在里面，所以会稳下来。"""
        began, first = self._pace = self._pace or (now, step)
        if step - first < SURE_STEPS or now - began < SURE_SECONDS:
            return "正在估计还要多久"
        seconds = (now - began) / (step - first) * (self.total - step)
        if seconds < 60:
            return f"大约还要 {max(5, 5 * round(seconds / 5))} 秒"
        return f"大约还要 {round(seconds / 60)} 分钟"

    def show_start(self, held: float | None):
        """训练前（没有 LoRA 时）的留出集损失。"""
        if held is not None:
            self.held.insert(0, (0, held))

    def other_held(self, rows: Sequence[dict]):
        """换了一批留出图：以前的不能一起比，换成 rows，新的一批检验过的那些行。"""
        rows = [row for row in rows if row.get("held_each")]
        self.held[:] = [(row["step"], row["held"]) for row in rows]
        self.by_t = [(row["step"], np.mean(row["held_each"], 0).tolist()) for row in rows]

    def show_by_t(self, step: int, losses: list[float]):
        """留出集上 8 个时间步各自的损失；同一步量了第二次就换掉。"""
        self.by_t = [entry for entry in self.by_t if entry[0] != step] + [(step, losses)]
        put(self.lines, self.curves())

    def show_samples(self, step: int, images: list[Image.Image]):
        """添一行样张；同一步画了第二次就换掉。"""
        self.film.add(step, images)
        put(self.shots, self.film.wall())
        self.shots.layout.display = ""

    def rewind(self, step: int):
        """从第 step 步的检查点接着练：它之后的记录作废，免得同一步记两次。"""
        kept = sum(done <= step for done in self.steps)
        del self.steps[kept:], self.losses[kept:]
        for log in (self.held, self.by_t):
            log[:] = [entry for entry in log if entry[0] <= step]
        self.film.rewind(step)
        self._pace = None

    def say(self, text: str, bad: bool = False):
        """状态那一行；bad 用红字。几行的报告照原样分行。"""
        self.said = text
        look = f"color:{RED if bad else 'inherit'};white-space:pre-wrap;line-height:1.5"
        self.status.value = f'<div style="{look}">{in_html(text)}</div>'

    def remark(self, text: str):
        """状态下面的一行小字；空的就收起来。"""
        self.note.value = f"<small>{in_html(text)}</small>" if text else ""

    def running(self, yes: bool):
        """训练中能停，停了能继续。"""
        done = bool(self.steps) and self.steps[-1] >= self.total
        self.stop_button.disabled, self.continue_button.disabled = not yes, yes or done

    def curves(self):
        """左：损失与留出集；右：按时间步的损失，训练前与现在。"""
        figure, (left, right) = chart(2, height=2.6, gridspec_kw={"width_ratios": (3, 2)})
        # 训练在另一个线程里还在往后添：先各抄一份，步数与损失才一样长
        points = list(zip(self.steps, self.losses, strict=False))
        held, by_t = list(self.held), list(self.by_t)
        if points:
            steps, losses = np.array(points).T
            left.plot(steps, losses, color=GRAY, lw=0.7, label="每一步的损失（会抖）")
            left.plot(steps, smooth(losses), color=BLUE, label="滑动平均")
            left.set_ylim(0, float(np.quantile(losses, 0.98)) * 1.4)  # 上面留给图例
        if held:
            draw_held(left, held, 4, "留出集（看这条）")
        left.set(xlabel="训练步数", ylabel="损失", title="损失降了没有", xlim=(0, self.total))
        for (step, values), color in zip(by_t[:1] + by_t[1:][-1:], (GRAY, RED), strict=False):
            name = "训练前" if step == 0 else f"第 {step} 步"
            right.plot(EVAL_T, values, "o-", ms=4, color=color, label=name)
        right.set(xlabel="时间步 t（1 是纯噪声）", title="哪种噪声下学得多", xlim=(0, 1))
        right.set_ylim(0, 1.4 * max((max(values) for _, values in by_t), default=1))
        for axes in (left, right):
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="upper right")
        return figure


def _short(prompt: str, most: int = 5) -> str:
    """样张墙的列名：取最后一段里最后几个字，放得进一格。"""
    text = (prompt.replace("，", " ").replace(",", " ").split() or ["…"])[-1]
    return text if len(text) <= most else text[-most:]
