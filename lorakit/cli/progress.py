"""命令行的进度：编码到第几张、训练到第几步、被打断时怎样停；几个进程时只有 0 号说话。"""

import os
import signal
import sys
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def first_speaks():
    """几个进程一起练（启动器给每个编了 RANK）：不是 0 号的就不出声，免得每句话说几遍。"""
    with ExitStack() as stack:
        if os.environ.get("RANK", "0") != "0":
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


def encoding():
    """看图、编码、写描述的进度条；一秒之内做完的不显示。"""
    from tqdm import tqdm

    bars = {}  # 在做什么 -> 它的进度条
    form = "{desc} {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt}，还要 {remaining}"

    def show(what: str, done: int, total: int):
        if what not in bars:
            bars[what] = tqdm(total=total, desc=what, bar_format=form, delay=1, file=sys.stderr)
        bars[what].update(done - bars[what].n)
        if done == total:
            bars.pop(what).close()

    return show


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


def _speak_to_nobody():
    """终端没了，再往里写就是错：还没存好就停了。接到文件里的照常写。"""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        try:
            if os.isatty(number):
                os.dup2(nowhere, number)
        except OSError:  # 早就关了
            os.dup2(nowhere, number)
    os.close(nowhere)


@contextmanager
def interrupt(trainer):
    """Ctrl-C、SIGTERM、终端或 ssh 断了（SIGHUP）：练完手头这一步再停。"""

    def stop(number, frame):
        if number == hang_up:
            _speak_to_nobody()
        trainer.stop()

    hang_up = getattr(signal, "SIGHUP", None)  # Windows 没有
    asked = [signal.SIGINT, signal.SIGTERM]
    if hang_up and signal.getsignal(hang_up) is not signal.SIG_IGN:  # nohup 的：就是要它接着练
        asked.append(hang_up)
    old = {s: signal.signal(s, stop) for s in asked}
    try:
        yield
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
