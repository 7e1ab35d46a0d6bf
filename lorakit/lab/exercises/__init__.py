"""练习：judge 判题与提示，book_01 到 book_05 是每一本的题。"""

from lorakit.lab.exercises.judge import Exercise, all_exercises, check, hint, judge, passed, picked

__all__ = ["Exercise", "all_exercises", "check", "hint", "judge", "passed", "picked"]
