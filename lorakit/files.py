"""一个文件要么整个在、要么不在；缓存与随包的文件在哪里。只用标准库，谁都可以用它。"""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from lorakit.errors import LorakitError, plain_reason

ASSETS = Path(__file__).parent / "assets"  # 随包的权重、预设、工作流、字体
WINDOWS = os.name == "nt"


def _flush(path: Path):
    """写进盘里。Windows 上文件要能写才刷得了，文件夹打不开、也不必刷。"""
    if WINDOWS and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(target: Path, write: Callable[[Path], None]) -> Path:
    """让 write(临时路径) 写完一个文件或文件夹，再一次性改名成 target；中途失败不留半成品。

    Raises:
        LorakitError: 磁盘满、没有权限等；原来的 target 不受影响。
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            _flush(path)
        if temporary.is_dir() and target.is_dir():
            shutil.rmtree(target)
        _rename(temporary, target)
        _flush(target.parent)
    except OSError as error:
        raise LorakitError(
            f"写不进“{target}”：{plain_reason(error)}。请换个地方或腾出空间再来；已经存好的文件都还在。"
        ) from error
    finally:
        _remove(temporary)  # 成了的已经改名；失败了，哪怕是 Ctrl-C，也不留下半个文件夹
    return target


def _rename(old: Path, new: Path):
    """os.replace；Windows 上别的程序（杀毒、网盘）正好看着它就改不成，等一下再试。"""
    for wait in (0.1, 0.3, 1.0) if WINDOWS else ():
        try:
            return os.replace(old, new)
        except PermissionError:
            time.sleep(wait)
    return os.replace(old, new)


def _remove(path: Path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink()


def write_text(target: Path, text: str) -> Path:
    """原子地写一个文本文件。"""
    return write_whole(target, lambda path: path.write_text(text, encoding="utf-8"))


def cache_root() -> Path:
    """缓存文件夹：环境变量 LORAKIT_CACHE，或 ~/.cache/lorakit。"""
    return Path(os.environ.get("LORAKIT_CACHE", "~/.cache/lorakit")).expanduser()
