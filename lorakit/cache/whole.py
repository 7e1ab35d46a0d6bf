"""权重文件每个字节的指纹：一份文件只整读一遍，大小、时间、编号都没有变，就用记下的。"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from lorakit.errors import LorakitError
from lorakit.files import Unreadable, cache_root, digest, read_words, write_text

WORKERS = min(4, os.cpu_count() or 1)  # 算哈希时 Python 放开锁，几个文件一起读
HASH = re.compile(r"[0-9a-f]{64}")


def whole(folder: Path) -> str:
    """一个文件夹里每个文件的名字与每个字节；第一次要整读一遍，大的显示进度。"""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    rows = zip(paths, _digests(paths), strict=True)
    named = [(path.relative_to(folder).as_posix(), one) for path, one in rows]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def settled(sampled: str, complete: str) -> str:
    """抽样的指纹没有变、别处的字节变了：另算一份，别用旧的缓存。

    Args:
        sampled: 抽样的指纹，缓存的键里一直用它。
        complete: 整个的指纹。
    """
    note = cache_root() / "encoders" / "whole" / f"{sampled}.txt"
    known = _noted(note)
    if known is None:
        _write(note, complete)
    return sampled if known in (None, complete) else f"{sampled}-{complete[:16]}"


def _digests(paths: Iterable[Path]) -> list[str]:
    """各个文件的 sha256。"""
    from tqdm import tqdm

    notes = {path: _note(path) for path in paths}
    found = {path: _noted(note) for path, note in notes.items()}
    todo = [path for path, known in found.items() if known is None]
    form = "核对底模 {percentage:3.0f}%|{bar:24}|，还要 {remaining}（每份只整读这一遍）"
    size = sum(path.stat().st_size for path in todo)
    with (
        tqdm(total=size, bar_format=form, delay=1, file=sys.stderr, disable=not todo) as show,
        ThreadPoolExecutor(WORKERS) as pool,
    ):
        for path, one in zip(todo, pool.map(digest, todo), strict=True):
            found[path] = one
            _write(notes[path], one)
            show.update(path.stat().st_size)
    return list(found.values())


def _note(path: Path) -> Path:
    """这一份文件（哪里、多大、什么时候改的、编号）的指纹记在哪里。"""
    facts = path.stat()
    stamp = [os.path.realpath(path), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
    name = hashlib.sha256(json.dumps([*stamp, facts.st_ino]).encode()).hexdigest()
    return cache_root() / "digests" / name[:2] / f"{name}.txt"


def _noted(note: Path) -> str | None:
    with suppress(Unreadable):
        if HASH.fullmatch(said := read_words(note, 1 << 10)):
            return said
    return None


def _write(note: Path, text: str):
    with suppress(LorakitError):  # 缓存只读、满了：下次再整读一遍
        write_text(note, text)
