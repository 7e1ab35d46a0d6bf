"""练习：做对了说对在哪，做错了说错在哪一步想岔了，没动就只说未完成。"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from lorakit.errors import LorakitError
from lorakit.files import kept, write_text
from lorakit.lab.exercises import trial
from lorakit.lab.exercises.answers import Blank, Broke, Fresh, Nothing, letters, plain, same
from lorakit.lab.exercises.mishaps import brief, explain
from lorakit.lab.exercises.printed import Printed
from lorakit.lab.notes import notes

BOOKS = tuple(f"book_0{book}" for book in range(1, 6))
MISFIT = (  # 判题的代码用不了交回来的东西：样子不对
    TypeError, ValueError, AttributeError, LookupError, RuntimeError, ArithmeticError,
)  # fmt: skip
TRIES = 6  # 函数题最后再用几组随机的输入试
Verdict = tuple[str, str]


@dataclass(frozen=True)
class Exercise:
    """一道练习。

    properties 是一条条 (成立吗, 不成立时说什么)，按从粗到细排，只说第一条不成立的；
    第一条说的是答案该是什么样的东西。答案是函数的，每次调用都拿到新抄的输入，
    最后再照 draw 抽几组随机的输入，和标准答案比，免得把见过的几个结果写死。
    """

    name: str
    properties: tuple[tuple[Callable[[Any], Any], str], ...]
    praise: str
    hints: tuple[str, str, str]
    solution: str  # 一段代码，运行后 answer 就是答案
    draw: Callable[[random.Random], tuple] | None = None  # 函数题：抽一组输入
    alike: Callable[[Any, Any], bool] = same  # (读者的, 标准的) 算不算一样
    read: Callable[[Any], Any] = plain  # 不是函数的题：先把答案整理成一种写法

    @property
    def official(self):
        """标准答案。"""
        scope: dict[str, Any] = {}
        exec(self.solution, scope)
        return scope["answer"]


def picked(wrong: dict[str, str], right: dict[str, str]) -> dict:
    """多选题：先说错选的，再说漏选的；{字母: 错选、漏选时说什么} -> properties 与 read。"""
    known = "、".join(sorted({*wrong, *right}))
    properties = (
        (lambda chosen: isinstance(chosen, set), '答案是一组字母，例如 {"A", "B"}。'),
        (lambda chosen: chosen <= {*wrong, *right}, f"只有 {known} 可以选，写字母就行。"),
        *((partial(_without, letter), why) for letter, why in wrong.items()),
        *((partial(_with, letter), why) for letter, why in right.items()),
        (lambda chosen: chosen == set(right), f"正好是 {len(right)} 项。"),
    )
    return {"properties": properties, "read": letters}


def _with(letter: str, chosen) -> bool:
    return letter in chosen


def _without(letter: str, chosen) -> bool:
    return letter not in chosen


def all_exercises() -> dict[str, Exercise]:
    """全部练习，按书的次序。"""
    books = (import_module(f"lorakit.lab.exercises.{book}").EXERCISES for book in BOOKS)
    return {exercise.name: exercise for book in books for exercise in book}


def find(name: str) -> Exercise:
    """按名字找一道题。"""
    known = all_exercises()
    if name not in known:
        raise LorakitError(f"没有叫“{name}”的练习。有的是：{'、'.join(known)}。")
    return known[name]


UNFINISHED = "未完成：把 ... 换成你的答案再运行。卡住了，就按下面的“提示”。"


def judge(name: str, answer: Any) -> Verdict:
    """判一道题 -> (passed、blank 或 wrong, 说的话)；最多跑几秒，答案停不下来也会被停掉。"""
    exercise = find(name)
    if _blank(answer):
        return "blank", UNFINISHED
    if exercise.draw is None:
        if callable(answer):
            return "wrong", "这一题要的是一个值，你给的是函数：直接写等号右边的值就行。"
        return _look(exercise, exercise.read(answer))
    if not callable(answer):
        said = f"要交的是函数本身，你给的是 {brief(answer)}：check 里写函数的名字，后面不加括号。"
        return "wrong", said
    printed = Printed()
    try:
        verdict, said = trial.run(partial(_call, exercise, answer, printed))
    except KeyboardInterrupt:
        verdict, said = "wrong", "照你说的停下了，这一次没有判完。"
    return verdict, "\n".join(filter(None, [said, printed.text()]))


def _blank(answer) -> bool:
    return answer is None or answer is ... or (hasattr(answer, "__len__") and _empty(answer))


def _empty(answer) -> bool:
    return isinstance(answer, (str, set, dict, list, tuple)) and not answer


def _call(exercise: Exercise, answer, printed: Printed) -> Verdict:
    """判一道函数题；读者的函数在这里面跑，它打印的记在 printed 里。"""
    fresh = Fresh(answer, printed)
    try:
        verdict = _look(exercise, fresh)
        return _once_more(exercise, fresh) if verdict[0] == "passed" else verdict
    except Blank:
        return "blank", UNFINISHED
    except Nothing as nothing:
        return "wrong", str(nothing)
    except Broke as broke:
        return "wrong", f"{explain(broke.__cause__, answer)}。先让它能跑起来，再看对不对。"


def _look(exercise: Exercise, answer) -> Verdict:
    """一条条地看；判题的代码用不了交回来的东西，就是样子不对：说第一条。"""
    for holds, said in exercise.properties:
        try:
            good = holds(answer)
        except MISFIT:
            return "wrong", f"还差一点：{exercise.properties[0][1]}现在给的用不了。"
        if not good:
            return "wrong", f"还差一点：{said}"
    return "passed", f"✓ 通过。{exercise.praise}"


def _once_more(exercise: Exercise, answer: Fresh) -> Verdict:
    """见过的都对了，再用随机的输入比一比。"""
    chance, official = random.Random(), Fresh(exercise.official)
    for _ in range(TRIES):
        given = exercise.draw(chance)
        made, want = answer(*given), official(*given)
        try:
            good = exercise.alike(made, want)
        except MISFIT:  # 交回来的样子变了，比不了
            good = False
        if not good:
            asked = "，".join(map(brief, given))
            said = f"换一组输入（{asked}），应为 {brief(want)}，你的是 {brief(made)}"
            said += "，样子一样，里面的数不一样。" if brief(made) == brief(want) else "。"
            return "wrong", f"还差一点：{said}要对随便什么输入都成立，别把见过的几个结果写死。"
    return "passed", f"✓ 通过。{exercise.praise}"


def _record() -> Path:
    return notes() / "exercises.json"


def passed() -> list[str]:
    """通过过的练习，按先后；只存在本机的缓存文件夹里。"""
    return kept(_record(), [str], [])


def remember(name: str):
    """记下通过了的一道题。"""
    if name not in passed():
        write_text(_record(), json.dumps([*passed(), name]))
