"""把安全的修改做到文件夹里，并且能一字节不差地改回去：lorakit check --fix 与 --undo。

先把原件、改好的内容和清单都备齐，一次改名生效，再逐个换上：中途断电也能撤销。
教程：notebooks/02_dataset.ipynb
"""

import hashlib
import json
import os
import re
import shlex
import shutil
from datetime import datetime
from pathlib import Path

from lorakit.data.captions import MOVED
from lorakit.data.folder import walk
from lorakit.data.mend import changes
from lorakit.data.report import names
from lorakit.errors import DataError, LorakitError, plain_reason
from lorakit.files import Unreadable, digest, inside, read_json, user_path, write_whole

UNDO = ".lorakit-undo"
FORMAT = 1
MANIFEST = "manifest.json"
HASH = r"[0-9a-f]{64}"


def _hash(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(HASH, value) is not None


SHAPE = {
    "format": lambda number: number == FORMAT,
    "changes": [{"path": str, "before": _hash, "to?": str, "after?": _hash}],
}


def fix(folder: str | Path, trigger: str = "", clear: bool = False) -> str:
    """做所有安全的修改，返回一段中文：改了什么、原件在哪、怎么撤销。

    Args:
        clear: 透明通道有用（data.mask=alpha、data.alpha=keep），不去掉。

    Raises:
        LorakitError: 磁盘满、没有写的权限；写清楚停在哪里。
    """
    folder = user_path(folder)
    _refuse_links(folder)
    found = walk(folder)
    store = folder / UNDO / _next(folder)
    entries: list[dict] = []

    def stage(temporary: Path):
        temporary.mkdir(parents=True)
        for change in changes(found, trigger, clear):
            entries.append(_stage(temporary, folder, change))
        if not entries:
            raise _NothingToDo
        text = json.dumps({"format": FORMAT, "changes": entries}, indent=1)
        (temporary / MANIFEST).write_text(text, encoding="utf-8")

    try:
        if found.pictures or found.captions:
            write_whole(store, stage)
    except _NothingToDo:
        pass
    finally:
        _prune(folder / UNDO)  # 没有备成时别留下空文件夹
    if not entries:
        return "没有可以自动修的，什么也没有改。"
    _apply(folder, store, entries)
    command = f"lorakit check {shlex.quote(str(folder))} --undo"
    lines = [f"改好了 {len(entries)} 个文件，原件都留着；要全部还原就运行 {command}"]
    for why in dict.fromkeys(entry["why"] for entry in entries):
        paths = [folder / entry["path"] for entry in entries if entry["why"] == why]
        lines.append(f"  · {why}（{len(paths)} 个）：{names(paths, folder)}")
    return "\n".join(lines)


def _next(folder: Path) -> str:
    """这一次原件放哪里：名字的先后就是修改的先后，撤销从最近的一次开始；钟往回拨了也排在最后。"""
    now = datetime.now().strftime("%Y%m%d-%H%M%S-%f")  # 微秒也写上
    last = max((path.name for path in (folder / UNDO).glob("[0-9]*")), default="")
    return now if now > last else f"{last}-1"


class _NothingToDo(Exception):
    """没有要改的：让 write_whole 收走空文件夹。"""


def _stage(store: Path, folder: Path, change) -> dict:
    """备好一个修改：原件放进 old，新内容放进 new，返回清单里的一项。"""
    inside = change.path.relative_to(folder)
    entry = {"path": inside.as_posix(), "why": change.why, "before": digest(change.path)}
    if change.content is None:
        return {**entry, "to": _free(folder, inside).as_posix()}
    old, new = store / "old" / inside, store / "new" / inside
    for path in (old, new):
        path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(change.path, old)
    new.write_bytes(change.content)
    shutil.copymode(change.path, new)
    return {**entry, "after": hashlib.sha256(change.content).hexdigest()}


def _free(folder: Path, inside: Path) -> Path:
    """移走以后的位置（相对于 folder）；以前移走过同名的，就换一个名字。"""
    target, number = Path(MOVED) / inside, 1
    while os.path.lexists(folder / target):
        number += 1
        target = Path(MOVED) / inside.with_name(f"{inside.stem}-{number}{inside.suffix}")
    return target


def _apply(folder: Path, store: Path, entries: list[dict]):
    for entry in entries:
        path = folder / entry["path"]
        try:
            if "to" in entry:
                (folder / entry["to"]).parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, folder / entry["to"])
            else:
                os.replace(store / "new" / entry["path"], path)
        except OSError as error:
            raise LorakitError(
                f"改到 {path} 时停下了（{plain_reason(error)}）。前面改过的都记下了，"
                f"运行 lorakit check {shlex.quote(str(folder))} --undo 可以全部还原。"
            ) from error
    shutil.rmtree(store / "new", ignore_errors=True)


def undo(folder: str | Path) -> str:
    """撤销最近一次 --fix，返回一段中文；改过之后又被人动过的文件不会被盖掉。

    Raises:
        DataError: 没有可以撤销的，清单坏了，或有文件在修改之后又变了。
        LorakitError: 磁盘满、没有写的权限。
    """
    folder = user_path(folder)
    _refuse_links(folder)
    # 点开头的是没有备齐就中断的，还什么都没有改
    stores = sorted(path.parent for path in (folder / UNDO).glob(f"[0-9]*/{MANIFEST}"))
    if not stores:
        raise DataError(f"{folder} 里没有可以撤销的修改（要先用过 lorakit check --fix）。")
    store = stores[-1]
    entries = _manifest(folder, store)
    blocked = [why for entry in entries if (why := _blocked(folder, store, entry))]
    if blocked:
        raise DataError("不能撤销，什么也没有改：\n" + "\n".join(f"  · {why}" for why in blocked))
    for entry in entries:
        path = folder / entry["path"]
        if digest(path) == entry["before"]:  # 上次撤销到一半已经还原的
            continue
        try:
            _restore(folder, store, entry)
        except OSError as error:
            raise LorakitError(
                f"还原到 {path} 时停下了（{plain_reason(error)}）。原件都还在 {store} 和 "
                f"{folder / MOVED} 里；解决以后再运行一次 --undo，会接着还原。"
            ) from error
    shutil.rmtree(store)
    for left in (UNDO, MOVED):
        _prune(folder / left)
    more = f"；更早还有 {len(stores) - 1} 次，可以接着撤销" if len(stores) > 1 else ""
    return f"还原了 {len(entries)} 个文件{more}。"


def _restore(folder: Path, store: Path, entry: dict):
    path = folder / entry["path"]
    path.parent.mkdir(parents=True, exist_ok=True)
    if "to" in entry:
        os.replace(folder / entry["to"], path)
        return
    # 先复制再改名，原件留到全部还原以后。临时名字放在自己的文件夹里：原名可能已经长到不能再加字
    shutil.copy2(store / "old" / entry["path"], store / "restoring")
    os.replace(store / "restoring", path)


def _refuse_links(folder: Path):
    """放原件的地方是链接，就会写到别的文件夹里去。"""
    for name in (UNDO, MOVED):
        if (folder / name).is_symlink():
            raise DataError(f"“{folder / name}”是一个链接，不往里面放原件。请先删掉它。")


def _manifest(folder: Path, store: Path) -> list[dict]:
    """清单；文件夹可能是下载来的，所以只认这个文件夹里面的路径。"""
    try:
        entries = read_json(store / MANIFEST, SHAPE)["changes"]
    except Unreadable as error:
        raise DataError(
            f"清单 {store / MANIFEST} 读不懂，不能自动撤销；原件都在 {store / 'old'} 里。"
        ) from error
    for entry in entries:
        here = [inside(folder, entry[key]) for key in ("path", "to") if key in entry]
        moved = "to" not in entry or entry["to"].startswith(f"{MOVED}/")
        ours = entry["path"].partition("/")[0] not in (UNDO, MOVED)
        if not (all(here) and moved and ours and inside(store / "old", entry["path"])):
            raise DataError(
                f"清单 {store / MANIFEST} 想改 {entry['path']}，不在这个文件夹里，或经过链接："
                "不是 lorakit 写的，什么也没有改。"
            )
    return entries


def _blocked(folder: Path, store: Path, entry: dict) -> str:
    """这一项为什么不能撤销；能就返回空的。"""
    path = folder / entry["path"]
    now = digest(path)
    if now == entry["before"]:
        return ""
    source = folder / entry["to"] if "to" in entry else store / "old" / entry["path"]
    if now is not None and now != entry.get("after"):
        return f"{entry['path']} 在修改之后又变了，撤销会盖掉它：先把它移到别的文件夹，再撤销"
    if digest(source) != entry["before"]:
        return f"{entry['path']} 的原件（{source}）不见了或变了：找回来再撤销"
    return ""


def _prune(folder: Path):
    """删掉空了的文件夹，由里到外；里面还有东西的留着。"""
    for parent, _, _ in os.walk(folder, topdown=False):
        if not os.listdir(parent):
            os.rmdir(parent)
