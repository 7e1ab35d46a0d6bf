"""看过的图记下来：内容没变就不再解码，第二次体检只要读文件、算哈希。

缓存文件夹里的一个文本文件，一张图一行，只在末尾添：几个进程可以同时用；坏了的行不算，再看一遍就是。
"""

import base64
import hashlib
import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import PIL
import pillow_heif

from lorakit.data.lookalike import look
from lorakit.data.read import decode, read_bytes
from lorakit.files import cache_root, parse_json

FILE = "seen.tsv"
MARKS = {"color": "sRGB", "key": "clear"}  # 读法改过的两种
VERSION = (
    f"3 {PIL.__version__} {pillow_heif.__version__}"  # 看图的办法或 Pillow 变了，以前记的就不算
)


class Seen(NamedTuple):
    """看一眼就知道的事：转正后的 (宽, 高)、是哪张图、看上去的样子、做过的处理、是不是一色。

    是哪张图：内容的 sha256；按颜色配置换过颜色的、透明读错过的另算一个，以前编码的缓存不会再用。
    """

    size: tuple[int, int]
    digest: str
    look: bytes
    did: frozenset[str]
    blank: bool


class Album:
    """以前看过的图；用 with 打开，离开时把新看的一起写下。"""

    def __enter__(self) -> "Album":
        self._path, self._lines, self._new = cache_root() / FILE, {}, []
        with suppress(OSError):  # 没有、读不了：就当没有记过
            lines = self._path.read_text("ascii", "replace").split("\n")
            self._lines = {line.partition("\t")[0]: line for line in lines}
        return self

    def __exit__(self, *_):
        with suppress(OSError):  # 磁盘满、只读：下次再看一遍就是
            if self._new:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="ascii") as file:
                    file.write("\n".join(["", *self._new, ""]))  # 上次没有写完的半行，到此为止

    def see(self, path: Path) -> Seen:
        """读一个文件；以前看过同样的内容，就不再解码。

        Raises:
            DataError: 和 read_image 一样；坏的图不记，每次都重新报。
        """
        data = read_bytes(path)
        digest = hashlib.sha256(data).hexdigest()
        key = f"{VERSION} {digest}"
        facts = self._lines.get(key, "").partition("\t")[2].partition("\t")[0]
        if facts and self._lines[key] == _line(key, facts):  # 坏了一个字节也重新看
            size, seen, did, blank = parse_json(facts, list)
            which = _which(digest, did)
            return Seen(tuple(size), which, base64.b64decode(seen), frozenset(did), blank)
        picture, did = decode(path, data)
        blank = all(low == high for low, high in picture.getextrema())
        seen = Seen(picture.size, _which(digest, did), look(picture), did, blank)
        facts = [seen.size, base64.b64encode(seen.look).decode(), sorted(did), blank]
        self._new.append(_line(key, json.dumps(facts)))
        return seen


def _which(digest: str, did: Collection[str]) -> str:
    again = [mark for name, mark in MARKS.items() if name in did]
    return hashlib.sha256(" ".join([digest, *again]).encode()).hexdigest() if again else digest


def _line(key: str, facts: str) -> str:
    return f"{key}\t{facts}\t{hashlib.sha256(f'{key}{facts}'.encode()).hexdigest()[:16]}"
