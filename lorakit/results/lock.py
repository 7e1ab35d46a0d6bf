"""占住结果文件夹：同一台机器上靠系统的锁（进程一没就放开），别的机器、别的容器看主人的心跳。"""

import gc
import json
import os
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lorakit.errors import ConfigError, LorakitError, plain_reason, warn
from lorakit.files import Unreadable, read_json, write_text

OWNER = ".running"  # 谁在用这个文件夹；修改的时刻是它的心跳
GATE = ".running.lock"  # 系统锁的是它：Windows 上锁着的文件读不了，所以主人另写一个
BEAT, STALE = 15.0, 120.0  # 秒：多久一次心跳、多久没有就当它不在了
WATCH = 3  # 接过来之前，再亲眼看这么多次心跳的工夫：几台机器的钟不一定一样，也会跳
SHAPE = {"token": str, "pid": int, "host": str, "boot": str, "space?": str}


class Lock:
    """一个文件夹的锁；一个 Trainer 一把，没人用了就自己放开。"""

    def __init__(self, folder: Path):
        self.folder, self.owner, self.gate = folder, folder / OWNER, folder / GATE
        self.token, self._resting = uuid.uuid4().hex, threading.Event()
        # 训练在哪个线程里都行；同一个进程里的两把也互相挡着
        self._lock = FileLock(self.gate, timeout=0, thread_local=False)
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
            self._acquire()
        except Timeout:
            raise self._refusal(self.read()) from None
        except (OSError, NotImplementedError) as error:
            error = error if isinstance(error, OSError) else OSError("这个盘不支持文件锁")
            raise LorakitError(
                f"写不进“{self.folder}”：{plain_reason(error)}。请换个地方或腾出空间再来；已经存好的文件都还在。"
            ) from error
        with ExitStack() as undo:
            undo.callback(self._give_up)  # 核对不成，或准备到一半失败了
            self._refuse_other_machine()
            yield
            me = {"token": self.token, "pid": os.getpid(), **_machine()}
            write_text(self.owner, json.dumps(me))
            undo.pop_all()
        beat = (self.owner, self.token, self._resting)  # 不握着自己，没人用了才会停
        threading.Thread(target=_beat, args=beat, name="heartbeat", daemon=True).start()

    def _give_up(self):
        if not self.owner.exists():
            self._sweep()
        self._lock.release()

    def _acquire(self):
        try:
            self._lock.acquire()
        except Timeout:
            gc.collect()  # 占着的也许是这个进程里没人要了、还没收走的一把
            self._lock.acquire()

    def release(self):
        """放开；已经被别人接过去的，只放自己的。"""
        self._resting.set()
        if self._lock.is_locked:
            if self.read().get("token") == self.token:
                with suppress(OSError):
                    self.owner.unlink()
                self._sweep()
            self._lock.release()

    def check(self):
        """还是自己占着吗：盘断了一阵，别的机器可能以为没人，接过去了。

        Raises:
            ConfigError: 文件夹没了，或归了别人。
        """
        if not self.folder.is_dir():
            raise ConfigError(
                f"run.output：“{self.folder}”在训练途中被删掉或改了名，记不下去了。"
                "改回原来的名字，再运行同一条命令就从最后的检查点接着练。"
            )
        owner = self.read()
        if owner and owner["token"] != self.token:
            raise self._refusal(owner)

    def _sweep(self):
        """趁还占着把锁的文件删掉：正等着它的进程会发现换了一个，再来一次。"""
        with suppress(OSError):  # Windows 上开着的删不掉，放开时 filelock 自己会删
            self.gate.unlink()

    def read(self) -> dict:
        """主人写下的；没有主人、读不出来就是空的。"""
        try:
            return read_json(self.owner, SHAPE, 1 << 16)
        except Unreadable:
            return {}

    def _refuse_other_machine(self):
        """系统的锁到不了别处：主人在那边而且还有心跳，就拒绝；早没了的，说一声再接过来。"""
        owner = self.read()
        if not owner or _here(owner):
            return  # 锁是空的，那个进程已经不在了
        os.utime(self.gate)  # 两个时刻都由那个盘来定：几台机器的钟不一定一样
        last = self.owner.stat().st_mtime_ns
        silent = self.gate.stat().st_mtime - last / 1e9
        until = time.monotonic() + WATCH * BEAT
        while not 0 <= silent < STALE and time.monotonic() < until:  # 也许只是钟差得远：看它跳不跳
            time.sleep(min(1.0, BEAT))
            with suppress(FileNotFoundError):  # 正好放开了
                if self.owner.stat().st_mtime_ns != last:
                    raise self._refusal(owner)
        if 0 <= silent < STALE:
            raise self._refusal(owner)
        warn(
            f"“{self.folder}”上次是{_place(owner)}进程 {owner['pid']} 在用，"
            f"已经 {abs(silent) / 60:.0f} 分钟没有动静，由这次接过来。"
        )

    def _refusal(self, owner: dict) -> ConfigError:
        who = f"{_place(owner)}进程 {owner['pid']} " if owner else "另一个进程"
        if owner and _here(owner) and owner["pid"] == os.getpid():
            return ConfigError(
                f"run.output：这个进程（{os.getpid()}）里先前的一个 Trainer 正占着“{self.folder}”。"
                "等它练完，或用它的 close() 放开，或换一个 run.output。"
            )
        return ConfigError(
            f"run.output：{who}正在“{self.folder}”里训练。等它结束，"
            f"或建一个空文件 {self.folder / 'STOP'} 让它停下，或换一个 run.output。"
        )


def busy(folder: Path) -> dict:
    """谁正在这个文件夹里训练：主人写下的，没有人就是空的；不占它，也不留下什么。"""
    lock = Lock(folder)
    owner = lock.read()
    if not owner:
        return {}
    if not _here(owner):
        return owner
    if not lock.gate.exists():
        return {}
    try:
        with FileLock(lock.gate, timeout=0, thread_local=False):
            return {}
    except (Timeout, OSError):
        return owner


def _here(owner: dict) -> bool:
    """主人在不在系统的锁管得到的地方：同一次开机、同一个容器。"""
    mine = _machine()
    return owner["boot"] == mine["boot"] and owner.get("space", mine["space"]) == mine["space"]


def _place(owner: dict) -> str:
    if owner["boot"] != _machine()["boot"]:
        return f"机器 {owner['host']} 上的"
    return "" if _here(owner) else f"这台机器上另一个容器（{owner['host']}）里的"


def _machine() -> dict[str, str]:
    """哪台机器、哪一次开机；没有开机编号的系统用机器名代替。"""
    host = socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        boot = host
    try:
        space = os.readlink("/proc/self/ns/pid")  # 一个容器一个：里面的进程号各编各的
    except OSError:
        space = ""
    return {"host": host, "boot": boot, "space": space}


def _beat(owner: Path, token: str, resting: threading.Event):
    while not resting.wait(BEAT):
        with suppress(OSError, Unreadable):  # 盘一时够不着，下次再来
            if read_json(owner, SHAPE, 1 << 16)["token"] == token:  # 别替接过去的人跳
                os.utime(owner)
