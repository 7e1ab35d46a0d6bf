"""check.练习名(答案)：判一道题，把结果印出来；没通过的，下面有提示的按钮。"""

from functools import partial
from typing import Any

from lorakit.inert import inert
from lorakit.lab.exercises.hints import hint
from lorakit.lab.exercises.judge import find, judge, remember
from lorakit.lab.exercises.own import keep


class _Check:
    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        find(name)
        return partial(self._say, name)

    @staticmethod
    def _say(name: str, answer: Any = ...):
        verdict, said = judge(name, answer)
        print(inert(said))
        if verdict == "passed":
            remember(name)
            keep(name, answer)
        else:
            hint(name)


check = _Check()
