"""练习：judge 判题，trial 限时地跑答案，hints 给提示，book_01 到 book_05 是每一本的题。"""

from lorakit.lab.exercises.hints import Hints, hint
from lorakit.lab.exercises.judge import Exercise, all_exercises, find, judge, passed, picked
from lorakit.lab.exercises.marking import check

__all__ = [
    "Exercise",
    "Hints",
    "all_exercises",
    "check",
    "find",
    "hint",
    "judge",
    "passed",
    "picked",
]
