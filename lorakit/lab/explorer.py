"""拖一拖，看图怎么变：`explore` 把控件接到画图函数上；没人看时把每个极端值都画一遍。"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lorakit.errors import LorakitError
from lorakit.inert import in_html
from lorakit.lab.display import Placed, both, frame, headless, pictured, put, widgets
from lorakit.lab.picture import encode

SLOW = 0.03  # 秒；画一次比这久，就等松开滑块再画
_hands = ThreadPoolExecutor(1, thread_name_prefix="explore")


@dataclass(frozen=True)
class Control:
    """一个控件：名字、起始值、测试时要试的值、怎么造出来。"""

    label: str
    start: Any
    extremes: tuple
    build: Callable

    def __post_init__(self):
        if self.start not in self.extremes and not self._inside():
            raise LorakitError(
                f"控件“{self.label}”的起始值 {self.start} 不在 {self.extremes} 里面。"
            )

    def _inside(self) -> bool:
        ends = self.extremes
        numbers = all(isinstance(v, (int, float)) for v in (*ends, self.start))
        return numbers and min(ends) <= self.start <= max(ends)


def slider(label: str, low, high, step, start=None) -> Control:
    """滑块：从 low 到 high，每格 step；都是整数就是整数滑块。"""
    start = low if start is None else start
    whole = all(isinstance(value, int) for value in (low, high, step, start))

    def build():
        kind = widgets().IntSlider if whole else widgets().FloatSlider
        return kind(start, min=low, max=high, step=step, description=label, **_looks())

    return Control(label, start, (low, high), build)


def choice(label: str, options: list, start=None) -> Control:
    """几选一；没人看时每一个都会试到。"""
    start = options[0] if start is None else start

    def build():
        return widgets().Dropdown(options=options, value=start, description=label, **_looks())

    return Control(label, start, tuple(options), build)


def _looks() -> dict:
    layout = widgets().Layout(width="min(460px, 95%)")
    return {"style": {"description_width": "9em"}, "layout": layout}


def cases(controls: dict[str, Control]) -> Iterator[dict[str, Any]]:
    """要试的取值：每个控件各走到头，再全部最小、全部最大。"""
    start = {name: control.start for name, control in controls.items()}
    for name, control in controls.items():
        for value in control.extremes:
            yield {**start, name: value}
    if len(controls) > 1:
        for end in (0, -1):
            yield {name: control.extremes[end] for name, control in controls.items()}


def explore(draw: Callable, **controls: Control):
    """控件 -> 图：`draw(**值)` 返回一张图；值一变就重画。返回面板，`panel.values` 是现在的值。"""
    if not controls:
        raise LorakitError("explore 至少要一个控件，例如 t=slider('时间 t', 0, 1, 0.1)。")
    panel = Explorer(draw, controls)
    if headless():
        panel.sweep()
    panel.display()
    return panel


class Explorer(Placed):
    """一组控件、一张图、一行话；只改控件的属性，所以在哪种前端里都一样。"""

    def __init__(self, draw: Callable, controls: dict[str, Control]):
        self.draw, self.controls = draw, controls
        start = time.perf_counter()
        self.picture = draw(**{name: control.start for name, control in controls.items()})
        slow = time.perf_counter() - start > SLOW
        w = widgets()
        self.boxes = {name: control.build() for name, control in controls.items()}
        self.image, self.message = frame(), w.HTML()
        for box in self.boxes.values():
            if slow and hasattr(box, "continuous_update"):
                box.continuous_update = False
            box.observe(self._redraw, names="value")
        put(self.image, self.picture)
        self.box = w.VBox([*self.boxes.values(), self.image, self.message])
        self._freshen = lambda static: None

    @property
    def values(self) -> dict[str, Any]:
        """现在的值。"""
        return {name: box.value for name, box in self.boxes.items()}

    def sweep(self):
        """把每个极端值都画一遍；画不出来就说是哪个值。"""
        for values in cases(self.controls):
            job = _hands.submit(lambda values=values: encode(self.draw(**values)))
            error = job.exception()
            if error:
                error.add_note(f"explore：取值 {values} 时画不出来")
                raise error

    def display(self):
        self._freshen = both(self.box, pictured(self.picture))

    def _redraw(self, change):
        # 回调里的错误前端看不见：放到线程里跑，再把错误写在图下面
        job = _hands.submit(self._draw)
        error = job.exception()
        said = f"这一组值画不出来：{type(error).__name__}：{error}" if error else ""
        self.message.value = f'<span style="color:#c4382c">{in_html(said)}</span>'

    def _draw(self):
        self.picture = self.draw(**self.values)
        put(self.image, self.picture)
        self._freshen(pictured(self.picture))
