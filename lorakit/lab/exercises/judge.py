"""练习：做对了说对在哪，做错了说错在哪一步想岔了，没动就只说未完成。"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

from lorakit.errors import LorakitError
from lorakit.files import write_text
from lorakit.lab.display import publish
from lorakit.lab.notes import notes

BOOKS = tuple(f"book_0{book}" for book in range(1, 6))
_hands = ThreadPoolExecutor(1, thread_name_prefix="check")


@dataclass(frozen=True)
class Exercise:
    """一道练习。

    probe 从答案里取一个样本值（答案是函数就调用它），用来认出还没动过的空白；
    properties 是一条条 (成立吗, 不成立时说什么)，按从粗到细排，只说第一条不成立的。
    """

    name: str
    probe: Callable[[Any], Any]
    properties: tuple[tuple[Callable[[Any], Any], str], ...]
    praise: str
    hints: tuple[str, str, str]
    solution: str  # 一段代码，运行后 answer 就是答案


def picked(wrong: dict[str, str], right: dict[str, str]) -> tuple:
    """多选题的 properties：先说错选的，再说漏选的；答案是一组字母，{字母: 选错或漏选时说什么}。"""
    return (
        (
            lambda chosen: isinstance(chosen, (set, list, tuple)),
            '答案是一组字母，例如 {"A", "B"}。',
        ),
        *((partial(_without, letter), why) for letter, why in wrong.items()),
        *((partial(_with, letter), why) for letter, why in right.items()),
        (lambda chosen: set(chosen) == set(right), f"正好是 {len(right)} 项。"),
    )


def _with(letter: str, chosen) -> bool:
    return letter in chosen


def _without(letter: str, chosen) -> bool:
    return letter not in chosen


def all_exercises() -> dict[str, Exercise]:
    """全部练习，按书的次序。"""
    books = (import_module(f"lorakit.lab.exercises.{book}").EXERCISES for book in BOOKS)
    return {exercise.name: exercise for book in books for exercise in book}


def _find(name: str) -> Exercise:
    known = all_exercises()
    if name not in known:
        raise LorakitError(f"没有叫“{name}”的练习。有的是：{'、'.join(known)}。")
    return known[name]


def judge(name: str, answer: Any) -> tuple[str, str]:
    """判一道题 -> (passed、blank 或 wrong, 说的话)。"""
    exercise = _find(name)
    if answer is None or answer is ...:
        return "blank", _unfinished(name)
    # 读者的函数什么错都可能出：放到线程里跑，错误就是一个普通的值
    sample = _hands.submit(exercise.probe, answer)
    if sample.exception():
        return "wrong", _broke(sample.exception())
    if sample.result() is None or sample.result() is ...:
        return "blank", _unfinished(name)
    for holds, said in exercise.properties:
        job = _hands.submit(holds, answer)
        if job.exception():
            return "wrong", _broke(job.exception())
        if not job.result():
            return "wrong", f"还差一点：{said}"
    return "passed", f"✓ 通过。{exercise.praise}"


def _unfinished(name: str) -> str:
    return f'未完成：把 ... 换成你的答案再运行。卡住了就运行 lab.hint("{name}")。'


def _broke(error: BaseException) -> str:
    return f"运行你的答案时出错了（{type(error).__name__}）：{error}。先让它能跑起来，再看对不对。"


class _Check:
    """check.练习名(答案)：判一道题，把结果印出来。"""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        _find(name)
        return partial(self._say, name)

    @staticmethod
    def _say(name: str, answer: Any):
        verdict, said = judge(name, answer)
        print(said)
        if verdict == "passed" and name not in passed():
            write_text(_record(), json.dumps([*passed(), name]))


def _record() -> Path:
    return notes() / "exercises.json"


def passed() -> list[str]:
    """通过过的练习，按先后；只存在本机的缓存文件夹里。"""
    place = _record()
    return json.loads(place.read_text("utf-8")) if place.is_file() else []


check = _Check()
_given: dict[str, int] = {}


def hint(name: str):
    """一次比一次多的提示：前三次各给一条，第四次是折起来的答案。"""
    exercise = _find(name)
    level = _given[name] = _given.get(name, 0) + 1
    shown = exercise.hints[:level]
    lines = [f"提示 {i}：{text}" for i, text in enumerate(shown, 1)]
    page = "".join(f"<p>{escape(line)}</p>" for line in lines)
    if level > len(exercise.hints):
        code = escape(exercise.solution)
        folded = f'<pre style="font-family:monospace">{code}</pre>'
        page += f"<details><summary>答案（先自己再想一分钟）</summary>{folded}</details>"
        lines.append(f"答案：\n{exercise.solution}")
    else:
        lines.append("再运行一次这一格，会有更多提示。")
        page += f"<p><small>{lines[-1]}</small></p>"
    publish({"text/html": page, "text/plain": "\n".join(lines)})
