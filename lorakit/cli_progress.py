"""命令行的进度：编码到第几张、训练到第几步、被打断时怎样停。"""

import signal
import sys
from contextlib import contextmanager

_bars: dict = {}  # 在做什么 -> 它的进度条


def say_encoding(what: str, done: int, total: int):
    """看图、编码、写描述的进度条；一秒之内做完的不显示。"""
    from tqdm import tqdm

    if what not in _bars:
        form = "{desc} {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt}，还要 {remaining}"
        _bars[what] = tqdm(total=total, desc=what, bar_format=form, delay=1, file=sys.stderr)
    _bars[what].update(done - _bars[what].n)
    if done == total:
        _bars.pop(what).close()


@contextmanager
def bar(start: int = 0):
    """训练进度条：步数、损失、预计剩余时间。"""
    from tqdm import tqdm

    shown = None

    def show(step, total: int):
        nonlocal shown
        if shown is None:
            form = (
                "训练 {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} 步，"
                "已用 {elapsed}，还要 {remaining}{postfix}"
            )
            shown = tqdm(total=total, initial=start, bar_format=form, mininterval=0.5)
        held = {} if step.held is None else {"留出集": f"{step.held:.3f}"}
        shown.set_postfix({"损失": f"{step.loss:.3f}", **held}, refresh=False)
        shown.update()

    try:
        yield show
    finally:
        if shown is not None:
            shown.close()


@contextmanager
def interrupt(trainer):
    """Ctrl-C 或 SIGTERM：练完手头这一步再停；产出的列表非空就是被打断过。"""
    hits: list[int] = []

    def stop(number, frame):
        hits.append(number)
        trainer.stop()

    old = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield hits
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
