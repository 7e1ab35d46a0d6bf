"""几个进程一起编码同一份数据：每个文件只有一个进程在编码，忙的先放到后面，谁也不重复做。

用系统的文件锁：进程被杀，锁自己就放开，不会留下“正在编码”的假象。
"""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows 没有；不锁也不会错，只是两个进程可能各编码一遍
    fcntl = None

WAIT = 0.05  # 秒；剩下的都被别的进程占着时，隔这么久再看


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """占住一个缓存文件：占到了给 True，别的进程正在编码它给 False；不等。

    锁文件按名字的前两个字分成 256 个，不随缓存增多；删掉锁文件会有先后的漏洞，所以留着。
    """
    lock = path.parent / "locks" / path.name[:2]
    handle = None
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        yield False
        return
    except OSError:  # 有的网络盘不支持锁，只读的盘建不了锁：照常编码，写的时候再说清楚
        pass
    try:
        yield True
    finally:
        if handle is not None:
            os.close(handle)  # 关掉就放开


def shares(paths: Sequence[Path], size: int) -> Iterator[list[Path]]:
    """一批批给出占到的路径，每批最多 size 个；每个路径正好给出一次，处理完这一批才放开。"""
    queue = deque(paths)
    while queue:
        with ExitStack() as held:
            mine: list[Path] = []
            for _ in range(len(queue)):
                path = queue.popleft()
                (mine if held.enter_context(claim(path)) else queue).append(path)
                if len(mine) == size:
                    break
            if mine:
                yield mine
        if not mine:
            time.sleep(WAIT)
