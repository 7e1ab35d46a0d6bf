"""你的图、答案、通过的练习记在哪里：总在你的缓存文件夹里，练习册临时换一个空缓存也不会丢。"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil

from lorakit.errors import LorakitError
from lorakit.files import cache_root, kept, write_text
from lorakit.results import lock

JOBS: dict[Path, Future] = {}  # 结果文件夹 -> 在后台练它的活（runner.py 记）
_places: dict[str, tempfile.TemporaryDirectory] = {}  # 哪一本 -> 它的临时文件夹
HOME = "LORAKIT_NOTES"  # 换缓存之前的文件夹；另起的进程也看得见


def notes() -> Path:
    """记着你的图、前后测和练习的文件夹。"""
    return Path(os.environ.get(HOME) or cache_root())


def best(name: str, one: Any, shape: Any, key: Callable = lambda score: -score, keep: int = 3):
    """大作业的榜：记下成绩 one，返回本机最好的几次；key 小的在前，shape 见 `files.kept`。"""
    place = notes() / name
    scores = sorted([*kept(place, [shape], []), one], key=key)[:keep]
    write_text(place, json.dumps(scores))
    return scores


def workplace(book: str) -> Path:
    """一本练习册的临时文件夹：关掉内核就自动删掉；再运行一次还是它，练过的都在。"""
    if book not in _places:
        _places[book] = tempfile.TemporaryDirectory(prefix=f"lorakit-{book}-")
    return Path(_places[book].name).resolve()


def fresh(folder: str | Path) -> Path:
    """清空临时文件夹里的一个结果，这一格再运行就从头练；别处的（你自己的结果）一点不动。

    正在里面练的不动：再运行开始训练的那一格，看到的还是那一次的面板。

    Raises:
        LorakitError: 里面还有训练没有停。
    """
    folder = Path(folder).resolve()
    if training(folder):
        return folder
    if busy := [one for one, job in JOBS.items() if one.is_relative_to(folder) and not job.done()]:
        raise LorakitError(
            f"“{busy[0].name}”里的训练还在跑：等它练完，或在它的面板上按“停止”，再运行这一格。"
        )
    if folder.is_relative_to(Path(tempfile.gettempdir()).resolve()):
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def training(folder: Path) -> bool:
    """有没有在里面练：这个内核里的，或先前的内核另起的进程。"""
    job = JOBS.get(folder.resolve())
    if job is not None and not job.done():
        return True
    return lock.busy(folder).get("pid", os.getpid()) != os.getpid()  # 自己的，是没用完的 Trainer


def elsewhere(folder: Path) -> bool:
    """是不是另一个内核（另开的一本练习册）在里面练：那样的接不过来；另起的训练进程才接得过来。"""
    owner = lock.busy(folder)
    if not owner or owner["pid"] == os.getpid():
        return False
    try:
        return "train" not in psutil.Process(owner["pid"]).cmdline()
    except psutil.Error:
        return False


def fresh_cache(folder: str | Path):
    """从这里起，图和描述编码到这个空文件夹里；你的图和成绩还记在老地方。"""
    os.environ[HOME] = str(notes())
    os.environ["LORAKIT_CACHE"] = str(folder)
