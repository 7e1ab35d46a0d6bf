"""跑读者的答案：另开一个进程，到点就杀掉，死循环、占内存、退出都伤不到练习册。

Linux（Colab、WSL 也是）上从内核分出一个子进程；别的系统上分出去不稳当，就用一个线程，
到点从外面叫停，Python 写的死循环也停得下来。
"""

import builtins
import ctypes
import faulthandler
import gc
import io
import json
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

import psutil
import torch

FORKS = sys.platform == "linux"
LIMIT = 5.0  # 秒；答案里的函数都只要几毫秒
ROOM = 2 << 30  # 字节；子进程最多再多占这么多内存
SUBREAPER = 36  # Linux 的 PR_SET_CHILD_SUBREAPER
ROUNDS = 200  # 停它另开的进程，最多看这么多遍
STARTED, END = b"s", b'"]'
LATE = (
    "你的答案跑了 {:g} 秒还没有结束，多半是循环停不下来：看看 while 的条件会不会变成假，"
    "循环里有没有改它用到的数。已经停下它了，改好再运行。"
)
BUSY = (
    "你的答案跑了 {:g} 秒还没有结束：它另开了进程（os.fork、subprocess、multiprocessing 这些），"
    "那些进程没有做完。已经都停下了；答案里不用另开进程，在函数里直接算就行。"
)
STARTED_MORE = "另外：你的答案另开了进程，已经都停下了；这里用不着，在函数里直接算就行。"
CRASHED = "你的答案让 Python 整个停掉了（{}）。练习册没有事，改好再运行。"
Verdict = tuple[str, str]


class Stopped(BaseException):
    """时间到了：从线程外面放进去的，不归 except Exception 管。"""


def run(work: Callable[[], Verdict]) -> Verdict:
    """做 work，最多 LIMIT 秒 -> 它的结果；超时、崩溃也是一个结果。"""
    return (_forked(work) if FORKS else None) or _threaded(work)


def _forked(work: Callable[[], Verdict]) -> Verdict | None:
    """在子进程里做；子进程没能开始（分出去时别的线程正锁着什么）是 None。"""
    out, into = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 有线程时分进程的提醒：下面都防着
        child = os.fork()
    if not child:
        _alone(work, into)
    os.close(into)
    said, status, more = b"", None, False
    try:
        said = _listen(out)
    finally:
        os.close(out)
        more = _stop_started(child)
        for kill in (os.kill, os.killpg):
            with suppress(ProcessLookupError, PermissionError):
                kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if not said:
        return None
    if said != STARTED:
        verdict, told = json.loads(said[len(STARTED) :])
        return verdict, f"{told}\n{STARTED_MORE}" if more else told
    if _killed(status):
        return "wrong", (BUSY if more else LATE).format(LIMIT)
    return "wrong", CRASHED.format(_end(status))


def _stop_started(child: int) -> bool:
    """停掉答案另开的每一个进程，连同它们再开的、自成一组的 -> 它另开过没有。"""
    more = False
    with suppress(psutil.Error):  # 走了的，或不归我们管的
        root = psutil.Process(child)
        root.suspend()  # 免得一边停，一边又开
        for _ in range(ROUNDS):
            found = root.children(recursive=True)
            more = more or bool(found)
            living = [one for one in found if _lives(one)]
            if not living:
                break
            for one in living:
                with suppress(psutil.Error):
                    one.kill()
            psutil.wait_procs(living, timeout=0.01)
    return more


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _killed(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _end(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"退出码 {os.waitstatus_to_exitcode(status)}"


def _listen(out: int) -> bytes:
    """子进程说的话，直到它说完或时间到；时间从它开始跑答案算起。"""
    said, until = b"", time.monotonic() + LIMIT
    while (left := until - time.monotonic()) > 0 and select.select([out], [], [], left)[0]:
        part = os.read(out, 1 << 16)
        if not said:
            until = time.monotonic() + LIMIT
        said += part
        if not part or said.endswith(END):
            break
    return said if said.endswith(END) else said[:1]


def _alone(work: Callable[[], Verdict], into: int):
    """子进程的一生：关好门窗，跑答案，说结果，直接走（不做内核退出时的事）。"""
    try:
        os.setsid()
        _adopt()
        faulthandler.disable()  # 崩溃了由我们来说
        gc.freeze(), gc.disable()  # 内核留下的东西，一样也不替它收
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        sys.stdout = sys.stderr = io.StringIO()
        builtins.input = _no_input
        torch.set_num_threads(1)  # 内核的计算线程没有跟过来
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _limit_memory()
        os.write(into, STARTED)
        os.write(into, json.dumps(work()).encode())
        time.sleep(LIMIT)  # 先不走：内核要看它另开过什么，看完就停掉它
    finally:
        os._exit(0)


def _adopt():
    """答案开的进程，生它的先走了，也归到这个子进程名下：停的时候一个也不漏。"""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def _no_input(*asked):
    raise EOFError


def _limit_memory():
    import resource  # 只有 Linux、macOS 有

    with open("/proc/self/statm") as file:
        mine = int(file.read().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = mine + ROOM
    if most == resource.RLIM_INFINITY or wanted < most:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, most))


def _threaded(work: Callable[[], Verdict]) -> Verdict:
    """在线程里做；到点从外面放进一个错误，它就停了。"""
    job: Future = Future()
    thread = threading.Thread(target=_into, args=(job, work), daemon=True, name="check")
    thread.start()
    thread.join(LIMIT)
    for _ in range(100):
        if not thread.is_alive():
            break
        number, stop = ctypes.c_ulong(thread.ident), ctypes.py_object(Stopped)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(number, stop)
        thread.join(0.05)
    if not job.done() or isinstance(job.exception(), Stopped):
        return "wrong", LATE.format(LIMIT)
    return job.result()


def _into(job: Future, work: Callable[[], Verdict]):
    try:
        job.set_result(work())
    except BaseException as error:  # 什么错都要交给等着的人
        job.set_exception(error)
