"""占住结果文件夹：同一台机器上靠系统的锁（进程一没就放开），共用的盘上再看主人的心跳。"""

import json
import os
import socket
import threading
import uuid
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lorakit.errors import ConfigError, LorakitError, LorakitWarning, plain_reason
from lorakit.files import write_text

OWNER = ".running"  # 谁在用这个文件夹；修改的时刻是它的心跳
GATE = ".running.lock"  # 系统锁的是它：Windows 上锁着的文件读不了，所以主人另写一个
BEAT, STALE = 15.0, 120.0  # 秒：多久一次心跳、多久没有就当它不在了


class Lock:
    """一个文件夹的锁；同一个进程可以再占一次，归后来的。"""

    def __init__(self, folder: Path):
        self.folder, self.owner, self.gate = folder, folder / OWNER, folder / GATE
        self.token, self._resting = uuid.uuid4().hex, threading.Event()
        # 训练在哪个线程里都行；同一个进程里的几把是同一把，才不会自己挡住自己
        self._lock = FileLock(self.gate, timeout=0, thread_local=False, is_singleton=True)
        weakref.finalize(self, self._resting.set)

    @contextmanager
    def take(self) -> Iterator[None]:
        """占住它；with 里面再核对别的，不成就放开，成了才写下自己的名字、开始心跳。

        Raises:
            ConfigError: 别的进程，或别的机器正在用。
            LorakitError: 写不进。
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise self._refusal(self.read()) from None
        except OSError as error:
            raise LorakitError(
                f"写不进“{self.folder}”：{plain_reason(error)}。请换个地方或腾出空间再来；已经存好的文件都还在。"
            ) from error
        try:
            self._refuse_other_machine()
            yield
            me = {"token": self.token, "pid": os.getpid(), **_machine()}
            write_text(self.owner, json.dumps(me))
        except BaseException:
            if self._lock.lock_counter == 1 and not self.owner.exists():
                self._sweep()
            self._lock.release()
            raise
        beat = (self.owner, self._resting)  # 不握着自己，没人用了才会停
        threading.Thread(target=_beat, args=beat, name="heartbeat", daemon=True).start()

    def release(self):
        """放开；同一个进程里后来又占了的，归它放。"""
        self._resting.set()
        if self._lock.is_locked and self.read().get("token") == self.token:
            self.owner.unlink(missing_ok=True)
            self._sweep()
            self._lock.release(force=True)

    def _sweep(self):
        """趁还占着把锁的文件删掉：正等着它的进程会发现换了一个，再来一次。"""
        with suppress(OSError):  # Windows 上开着的删不掉，放开时 filelock 自己会删
            self.gate.unlink()

    def read(self) -> dict:
        """主人写下的；没有主人、读不出来就是空的。"""
        try:
            return json.loads(self.owner.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _refuse_other_machine(self):
        """系统的锁到不了别的机器：主人在那边而且还有心跳，就拒绝；早没了的，说一声再接过来。"""
        owner = self.read()
        if owner.get("boot", _machine()["boot"]) == _machine()["boot"]:
            return  # 锁是空的，那个进程已经不在了
        os.utime(self.gate)  # 两个时刻都由那个盘来定：几台机器的钟不一定一样
        silent = self.gate.stat().st_mtime - self.owner.stat().st_mtime
        if silent < STALE:
            raise self._refusal(owner)
        warnings.warn(
            f"“{self.folder}”上次是机器 {owner['host']} 上的进程 {owner['pid']} 在用，"
            f"已经 {silent / 60:.0f} 分钟没有动静，由这次接过来。",
            LorakitWarning,
            stacklevel=2,
        )

    def _refusal(self, owner: dict) -> ConfigError:
        who = f"进程 {owner['pid']} " if "pid" in owner else "另一个进程"
        if owner.get("boot", _machine()["boot"]) != _machine()["boot"]:
            who = f"机器 {owner['host']} 上的{who}"
        return ConfigError(
            f"run.output：{who}正在“{self.folder}”里训练。等它结束，"
            f"或建一个空文件 {self.folder / 'STOP'} 让它停下，或换一个 run.output。"
        )


def _machine() -> dict[str, str]:
    """哪台机器、哪一次开机；没有开机编号的系统用机器名代替。"""
    host = socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        boot = host
    return {"host": host, "boot": boot}


def _beat(owner: Path, resting: threading.Event):
    while not resting.wait(BEAT):
        with suppress(OSError):  # 盘一时够不着，下次再来
            os.utime(owner)
