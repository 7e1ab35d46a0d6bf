"""几个进程一起练时看着同一台机器上的别的进程：有一个没了，几秒内说一句、一起结束。

通信的另一头没了，NCCL 会一直等下去（gloo 会立刻报错）；启动器发来的 SIGTERM 只是请它练完
手头这一步，那一步也等不到头。所以另有一个线程看着。教程：CONTRIBUTING 附录的“几张卡”。
"""

import os
import socket
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from lorakit.errors import LorakitError
from lorakit.results import checkpoint

LOOK, GRACE = 0.5, 3.0  # 几秒看一次；没了几秒才算：别人只是先练完、先报了错，这里马上也会离开
STOPPED = 1  # 退出码，与别的错误一样


@dataclass(frozen=True)
class Peer:
    """一个进程：几号、在哪台机器、进程号、几时起的（进程号会被别人再用）。"""

    rank: int
    host: str
    pid: int
    born: float

    @classmethod
    def me(cls, rank: int) -> "Peer":
        own = psutil.Process()
        return cls(rank, socket.gethostname(), own.pid, own.create_time())

    @property
    def alive(self) -> bool:
        try:
            found = psutil.Process(self.pid)
            return found.create_time() == self.born and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:  # 是别人的，不是我们的
            return False


class Peers:
    """看着别的进程，直到 rest；一个进程时什么也不做。

    别的机器上的看不见，由那边的启动器收场；不在同一个进程空间（两个容器）的，一开始就不算。
    """

    def __init__(self, accelerator: Accelerator, run: Path):
        self.run, self.all, self._rested = run, [], threading.Event()
        self._first: list[int] = []  # 头一次看见时没了的；后来没了的，是跟着停下的
        if accelerator.num_processes > 1:
            me = Peer.me(accelerator.process_index)
            found = gather_object([me])
            self.all = [one for one in found if one.host == me.host and one.alive]
            self.rank = me.rank
            threading.Thread(target=self._look, name="peers", daemon=True).start()

    def rest(self):
        """不用再看：大家都练完了。"""
        self._rested.set()

    def gone(self) -> list[int]:
        """没了的进程是几号；看见过就不再变。"""
        self._first = self._first or [one.rank for one in self.all if not one.alive]
        return self._first

    @contextmanager
    def explaining(self):
        """通信断了，先看是不是有进程没了：是就说那一句，不给人看通信库的英文。

        Raises:
            LorakitError: 有一个进程没了。
        """
        try:
            yield
        except torch.OutOfMemoryError:  # 也算 RuntimeError，可它说的是自己
            raise
        except RuntimeError as error:  # torch.distributed 的错误都是它
            gone = self._soon() if self.all else []
            if not gone:
                raise
            time.sleep(GRACE)  # 先走了，别的就分不清谁是没了、谁是跟着停下的
            said = LorakitError(self.sentence(gone))
            said.told = not self._speaks(gone)
            raise said from error

    def sentence(self, ranks: list[int]) -> str:
        """说出谁没了、练到的在哪里、怎么接着练。"""
        names = "、".join(f"{rank} 号" for rank in ranks)
        last = checkpoint.latest(self.run)
        kept = f"再运行同一条命令，从 {last.name} 接着练" if last else "还没有存过检查点，要从头练"
        return (
            f"{len(self.all)} 个进程里，{names}没了（多半是内存不够被系统结束，或有人结束了它），"
            f"别的也都停下了。{kept}。"
        )

    def _soon(self) -> list[int]:
        """没了的是几号；刚断开时它可能还在收场，等一小会儿。"""
        end = time.monotonic() + GRACE
        while not (gone := self.gone()) and time.monotonic() < end:
            time.sleep(LOOK / 5)
        return gone

    def _speaks(self, gone: list[int]) -> bool:
        """剩下的里号最小的那个说。"""
        return self.rank == min(one.rank for one in self.all if one.rank not in gone)

    def _look(self):
        while not self._rested.wait(LOOK):
            if gone := self.gone():
                break
        if self._rested.wait(GRACE):
            return
        if self._speaks(gone):
            print(f"\n{self.sentence(gone)}", file=sys.stderr, flush=True)
        os._exit(STOPPED)  # 主线程正等着一个不会来的数，叫不醒
