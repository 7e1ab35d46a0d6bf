"""缓存文件的存取：核对每个字节；几个进程一起编码时，一个文件只由一个进程做。"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from lorakit.errors import LorakitError
from lorakit.families.shared import Cond
from lorakit.files import Unreadable, cache_root, parse_json, write_whole

WAIT = 0.05  # 秒；剩下的都被别的进程占着时，隔这么久再看


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """占住一个缓存文件：占到了给 True，别的进程正在编码它给 False；不等。

    锁文件按名字的前两个字分成 256 个，不随缓存增多；进程一死，系统就放开它的锁。
    """
    lock = FileLock(path.parent / "locks" / path.name[:2])
    with ExitStack() as held:
        mine = True
        try:
            Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock.acquire(timeout=0))
        except Timeout:
            mine = False
        except (OSError, NotImplementedError):
            pass  # 有的网络盘不支持锁，只读的盘建不了锁：照常编码，写的时候再说清楚
        yield mine


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


FORMAT = 1  # 预处理或文件格式一变就加 1，旧缓存自然作废
KINDS = {"image": "编码图片", "text": "编码描述", "mask": "缩小遮罩"}


def place(kind: str, fields: dict) -> Path:
    """这些东西算出来的缓存文件在哪里。"""
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
    return cache_root() / kind / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"


def _checksum(tensors: Cond, fields: str) -> str:
    sha = hashlib.sha256(fields.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        sha.update(value.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _pack(tensors: Cond, fields: str) -> bytes:
    """张量与“由什么算出”-> 文件的全部字节；元数据只有一项，所以同样的内容总是同样的字节。"""
    facts = json.dumps({"sha256": _checksum(tensors, fields), "fields": fields}, ensure_ascii=False)
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return save(whole, {"lorakit": facts})


def fields_of(path: Path) -> dict | None:
    """缓存文件里写着的“由什么算出”；读不出来就是 None。"""
    try:
        with safe_open(path, framework="pt") as handle:
            facts = parse_json((handle.metadata() or {})["lorakit"], {"fields": str})
        return parse_json(facts["fields"])
    except (FileNotFoundError, SafetensorError, KeyError, Unreadable):
        return None


def _read(path: Path) -> Cond | None:
    """缓存里的张量；没有或哪怕坏了一个字节，都返回 None（重新编码）。"""
    fields = fields_of(path)
    if fields is None:
        return None
    try:
        content = path.read_bytes()
        tensors = load(content)
    except (FileNotFoundError, SafetensorError):
        return None
    return tensors if _pack(tensors, json.dumps(fields, ensure_ascii=False)) == content else None


def _write(path: Path, tensors: Cond, fields: dict):
    content = _pack(tensors, json.dumps(fields, ensure_ascii=False))
    try:
        write_whole(path, lambda temporary: temporary.write_bytes(content))
    except LorakitError as error:
        hint = "缓存的位置由环境变量 LORAKIT_CACHE 决定；旧的可以用 lorakit cache clean 清掉。"
        raise LorakitError(f"{error}{hint}") from error


def cached(
    kind: str, all_fields: Sequence[dict], encode: Callable, size: int, report
) -> list[Cond]:
    """逐个取缓存；缺的按 encode(下标列表) 一批批编码，编完立刻写下。"""
    paths = [place(kind, fields) for fields in all_fields]
    index = {path: i for i, path in enumerate(paths)}  # 同样的描述只编码一次
    found = {path: _read(path) for path in index}
    missing = [path for path, value in found.items() if value is None]
    done = 0
    for mine in shares(missing, size):
        for path in mine:  # 等的时候，别的进程可能已经编码好了
            found[path] = _read(path)
        batch = [index[path] for path in mine if found[path] is None]
        for i, tensors in zip(batch, encode(batch) if batch else (), strict=True):
            found[paths[i]] = {name: value.cpu() for name, value in tensors.items()}
            _write(paths[i], found[paths[i]], all_fields[i])
        done += len(mine)
        report(KINDS[kind], done, len(missing))
    return [found[path] for path in paths]
