"""一格跑了几秒还没有动静：替它摆一行“还在算”，每秒说一次；自己摆了进度条的、跑完了的，就收起来。"""

import contextvars
import threading
import time
import uuid

from lorakit.inert import in_html
from lorakit.lab import bar, display

PATIENCE, BEAT = 2.0, 1.0  # 秒：等多久才说；隔多久说一次


def offer(shell):
    """从这里起，哪一格也不会好几秒没有动静；没人看时不用。"""
    known = shell.events.callbacks["pre_run_cell"]
    twice = any(isinstance(getattr(one, "__self__", None), Pulse) for one in known)
    if not display.headless() and not twice:  # 第一格再运行一次，不说两遍
        made = Pulse()
        shell.events.register("pre_run_cell", made.begin)
        shell.events.register("post_run_cell", made.end)


class Pulse:
    """看着正在跑的那一格；一格一个线程，跑得快的格子里它什么也不做。"""

    def __init__(self):
        self._over = self._thread = None

    def begin(self, info=None):
        self._over = threading.Event()
        here = contextvars.copy_context()  # 在线程里说的，也要摆在这一格底下
        work = {"target": here.run, "args": (_watch, self._over)}
        self._thread = threading.Thread(**work, daemon=True, name="pulse")
        self._thread.start()

    def end(self, result=None):
        """格子跑完了：那一行收起来，存盘里也没有它。"""
        if self._over is not None:
            self._over.set()
            self._thread.join(1)


def _watch(over: threading.Event):
    begun = quiet = time.monotonic()
    line = Line()
    while not over.wait(BEAT):
        now = time.monotonic()
        if bar.talking():
            line.say("")
            quiet = now
        elif now - quiet >= PATIENCE:
            line.say(f"这一格还在算，已经 {now - begun:.0f} 秒……")
    line.say("")


class Line:
    """格子底下的一行话；头一次有话说才摆出来。"""

    def __init__(self):
        self.name, self.said = "", ""

    def say(self, text: str):
        if text == self.said:
            return
        page = {"text/html": f"<i>{in_html(text)}</i>" if text else "", "text/plain": text}
        first, self.name, self.said = not self.name, self.name or uuid.uuid4().hex, text
        display.publish(page, display_id=self.name, update=not first)
