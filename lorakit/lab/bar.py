"""长的格子：一条进度条，说做到第几个、已经几秒、大约还要几秒；没人看时什么也不摆。"""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lorakit.inert import in_html
from lorakit.lab import display
from lorakit.lab.display import both, headless, widgets

BEAT = 1.0  # 秒；隔多久更新一次
_running: list["Bar"] = []  # 正在走的；里面再套一条，只看外面的


def talking() -> bool:
    """现在有没有进度条、等待的那行字在替格子说话。"""
    return bool(_running or display.WAITING)


class Bar:
    """一条进度条；total 是 None 时不知道有几个，只说已经几秒。"""

    def __init__(self, what: str, total: int | None = None):
        w = widgets()
        self.what, self.total, self.done = what, total, 0
        self.start = self.last = time.monotonic()
        wide = w.Layout(width="min(320px, 60%)")
        self.bar = w.IntProgress(0 if total else 1, 0, total or 1, layout=wide)
        if not total:
            self.bar.bar_style = "info"
        self.label = w.HTML()
        self.box = w.HBox([self.bar, self.label])
        self._over = threading.Event()
        self._say()
        self._freshen = both(self.box, _static(f"〔进度条：{what}〕"), again="")
        _running.append(self)
        _cells("register", self._left_behind)
        threading.Thread(target=self._beat, daemon=True, name="bar").start()

    def step(self):
        """又做好一个。"""
        self.done, self.last = self.done + 1, time.monotonic()
        self.bar.value = self.done

    def close(self, finished: bool):
        """做完了，或停在半路。"""
        if self._over.is_set():
            return
        self._over.set()
        _running.remove(self)
        _cells("unregister", self._left_behind)
        took = f"用了 {time.monotonic() - self.start:.0f} 秒"
        if finished:
            self.bar.value, self.bar.bar_style = self.total or 1, "success"
        end = "做好了" if finished else f"停在第 {self.done + 1} 个" if self.total else "停下了"
        text = f"{self.what}：{end}，{took}"
        self.label.value = in_html(text)
        self._freshen(_static(text))  # 隔天打开，看见的是结局，不是走到一半的条

    def left(self, now: float) -> float | None:
        """大约还要几秒；一个也没做好时不知道。"""
        if not self.total or not self.done:
            return None
        each = (self.last - self.start) / self.done
        return max(0.0, each * (self.total - self.done) - (now - self.last))

    def _left_behind(self, *result):
        """格子结束了，循环却没有走完（出了错、按了方块）：别让它一直数下去。"""
        self.close(False)

    def _say(self):
        now = time.monotonic()
        where = f"第 {min(self.done + 1, self.total)} / {self.total} 个，" if self.total else ""
        left = self.left(now)
        tail = "" if not self.total else "，正在估计还要多久"
        if left is not None:
            tail = f"，大约还要 {left:.0f} 秒"
        self.label.value = in_html(f"{self.what}：{where}已经 {now - self.start:.0f} 秒{tail}")

    def _beat(self):
        while not self._over.wait(BEAT):
            self._say()


def _static(text: str) -> dict:
    return {"text/html": f"<p><small>{in_html(text)}</small></p>", "text/plain": text}


def _cells(what: str, told):
    """一格运行完时叫 told；不在 IPython 里就没有格子。"""
    from IPython import get_ipython

    shell = get_ipython()
    if shell:
        getattr(shell.events, what)("post_run_cell", told)


def each(things: Iterable, what: str, total: int | None = None) -> Iterator:
    """一个个地交出来，同时摆一条进度条：`for x in lab.each(xs, "三次训练"): ...`。"""
    if headless() or _running:
        yield from things
        return
    known = len(things) if total is None and hasattr(things, "__len__") else total
    bar, finished = Bar(what, known), False
    try:
        for thing in things:
            yield thing
            bar.step()
        finished = True
    finally:
        bar.close(finished)


@contextmanager
def waiting(what: str):
    """不知道要多久的一段：`with lab.waiting("载入"): ...`，每秒说一次已经几秒。"""
    if headless() or _running:
        yield
        return
    bar, finished = Bar(what), False
    try:
        yield
        finished = True
    finally:
        bar.close(finished)
