"""看过的图记下来：内容没变就不再解码，第二次体检只要读文件、算哈希。

记在缓存文件夹里的一个 SQLite 文件：几个进程可以同时用；坏了、写不进，就当没有记过。
"""

import hashlib
import json
import sqlite3
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import PIL

from lorakit.data.lookalike import look
from lorakit.data.read import decode, read_bytes
from lorakit.files import cache_root

FILE = "seen.sqlite"
VERSION = f"1 {PIL.__version__}"  # 看图的办法或 Pillow 变了，以前记的就不算
PATIENCE = 2  # 秒；别的进程正在写时等这么久，再等不到就不记了


class Seen(NamedTuple):
    """看一眼就知道的事：转正后的 (宽, 高)、内容的 sha256、看上去的样子、做过的处理、是不是一色。"""

    size: tuple[int, int]
    digest: str
    look: bytes
    did: frozenset[str]
    blank: bool


class Album:
    """以前看过的图；用 with 打开，离开时把新看的一起写下。"""

    def __enter__(self) -> "Album":
        self._lock, self._new, self._base, self._path = Lock(), {}, None, cache_root() / FILE
        for _ in range(2):  # 第一次是坏文件，删掉重建；还不行就不用它
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._base = sqlite3.connect(self._path, timeout=PATIENCE, check_same_thread=False)
                self._base.execute("PRAGMA synchronous = OFF")  # 丢了、坏了都能重看，不等落盘
                self._base.execute("CREATE TABLE IF NOT EXISTS seen (key PRIMARY KEY, facts, sum)")
                break
            except (sqlite3.Error, OSError) as error:
                self._give_up(error)
        return self

    def __exit__(self, *_):
        try:
            if self._base and self._new:
                rows = [(key, facts, _sum(key, facts)) for key, facts in self._new.items()]
                with self._base:  # 一次提交
                    self._base.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:  # 磁盘满、只读：下次再看一遍就是
            self._give_up(error)
        if self._base:
            self._base.close()

    def _give_up(self, error: Exception):
        """这次不用它了；文件坏了的（不是被别的进程占着、没有权限）顺手删掉，下次重建。"""
        if self._base:
            self._base.close()
        self._base = None
        damaged = isinstance(error, sqlite3.DatabaseError)
        if damaged and not isinstance(error, sqlite3.OperationalError):
            with suppress(OSError):
                self._path.unlink()

    def see(self, path: Path) -> Seen:
        """读一个文件；以前看过同样的内容，就不再解码。

        Raises:
            DataError: 和 read_image 一样；坏的图不记，每次都重新报。
        """
        data = read_bytes(path)
        digest = hashlib.sha256(data).hexdigest()
        known = self._recall(digest)
        if known:
            return known
        picture, did = decode(path, data)
        blank = all(low == high for low, high in picture.getextrema())
        seen = Seen(picture.size, digest, look(picture), did, blank)
        facts = {"size": seen.size, "look": seen.look.hex(), "did": sorted(did), "blank": blank}
        with self._lock:
            self._new[_key(digest)] = json.dumps(facts)
        return seen

    def _recall(self, digest: str) -> Seen | None:
        key, row = _key(digest), None
        with self._lock:
            try:
                if self._base:
                    query = "SELECT facts, sum FROM seen WHERE key = ?"
                    row = self._base.execute(query, (key,)).fetchone()
            except sqlite3.Error as error:
                self._give_up(error)
        if not row or row[1] != _sum(key, row[0]):  # 哪怕坏了一个字节，也重新看
            return None
        facts = json.loads(row[0])
        rest = bytes.fromhex(facts["look"]), frozenset(facts["did"]), facts["blank"]
        return Seen(tuple(facts["size"]), digest, *rest)


def _key(digest: str) -> str:
    return f"{VERSION} {digest}"


def _sum(key: str, facts: object) -> str:
    return hashlib.sha256(f"{key}{facts}".encode()).hexdigest()
