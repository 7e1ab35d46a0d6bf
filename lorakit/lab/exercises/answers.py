"""读者的答案：每次给它新抄的一份输入，交回来的东西整理成判题看得懂的样子。"""

import copy
import math
import os
import re
import unicodedata
from collections.abc import Iterator, KeysView, Sequence, ValuesView
from contextlib import redirect_stdout
from decimal import Decimal
from fractions import Fraction
from itertools import islice

import numpy as np
import torch

from lorakit.lab.exercises.mishaps import returns_something
from lorakit.lab.exercises.printed import Printed
from lorakit.lab.exercises.trial import Stopped

MANY = 100_000  # 生成器里最多取这么多


class Blank(BaseException):
    """还没有动过：交回来的是 ...。"""


class Broke(BaseException):
    """读者的函数里出了错；错误在 __cause__。"""


class Nothing(BaseException):
    """函数没有返回东西；话就是要对读者说的。"""


class Fresh:
    """读者的函数：每次调用都给它新抄的一份，它改了也只改自己的。

    用 BaseException 的三种错误说话：判题的代码、读者的 except Exception 都不会吃掉它们。
    """

    def __init__(self, answer, printed: Printed | None = None):
        self.answer, self.printed = answer, printed or Printed()

    def __call__(self, *given):
        here, before = os.getpid(), self.printed.count
        try:
            with redirect_stdout(self.printed):
                made = plain(self.answer(*copy.deepcopy(given)))
        except Stopped:
            raise
        except BaseException as error:  # 读者的函数什么错都可能出
            raise Broke from error
        finally:
            if os.getpid() != here:  # 读者用 os.fork 分出来的一份：判题的只有原来那一份
                os._exit(0)
        if made is ... or (isinstance(made, (tuple, list)) and any(one is ... for one in made)):
            raise Blank
        if made is None:
            raise Nothing(self._nothing(self.printed.count > before))
        return made

    def _nothing(self, printed: bool) -> str:
        if not returns_something(self.answer):
            if printed:
                return (
                    "函数把结果 print 了出来，却没有交出来：print 只是给人看。"
                    "把 print(…) 换成 return …。"
                )
            return "函数没有返回任何东西：最后一行要写 return，后面跟你算的结果。"
        return (
            "函数返回了 None，也就是什么也没有：可能有一条路没有写 return；也可能 return 后面"
            "那一步（print、append、sort 这些）本来就不给结果。"
        )


def plain(value):
    """同一个意思的几种写法 -> 一种：0 维张量和 numpy 的数是数，数组是张量，生成器是列表。"""
    if torch.is_tensor(value):
        value = value.detach()
        return value if value.dim() else value.item()
    if isinstance(value, np.ndarray):
        return plain(torch.as_tensor(value)) if value.dtype.kind in "bif" else value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (Fraction, Decimal)):
        return float(value)
    if isinstance(value, (Iterator, KeysView, ValuesView)):
        return [plain(one) for one in islice(value, MANY)]
    if isinstance(value, tuple):
        return tuple(plain(one) for one in value)
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value


def is_number(value) -> bool:
    """是一个数（是非不算）。"""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def pair(value) -> tuple | None:
    """两个数的一对，方的圆的括号、张量都行 -> 元组；不是一对数就是 None。"""
    two = listed(value)
    good = isinstance(two, (tuple, list)) and len(two) == 2 and all(map(is_number, two))
    return tuple(two) if good else None


def listed(value):
    """一组东西：数组、张量、生成器 -> 列表，里面的 numpy 的数也换成数；别的照原样。"""
    value = plain(value)
    return value.tolist() if torch.is_tensor(value) else value


def letters(value):
    """一组字母：集合、列表、"AB"、"A 和 B" 都行 -> 大写字母的集合；不是字母的照原样。"""
    value = listed(value)
    if isinstance(value, str):
        value = re.findall(r"[^\W_]", unicodedata.normalize("NFKC", value).replace("和", " "))
    if not isinstance(value, (set, frozenset, list, tuple)):
        return value
    if not all(isinstance(one, str) for one in value):
        return value
    return {unicodedata.normalize("NFKC", one).strip().upper() for one in value}


def same(made, want) -> bool:
    """一样就行：数差一点舍入、列表还是元组，都算一样。"""
    if torch.is_tensor(want):
        alike = torch.is_tensor(made) and made.shape == want.shape
        return alike and torch.allclose(made.double(), want.double(), rtol=1e-4, atol=1e-4)
    if is_number(want):
        return is_number(made) and math.isclose(made, want, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(want, Sequence) and not isinstance(want, str):
        if torch.is_tensor(made):
            made = made.tolist()
        several = isinstance(made, Sequence) and not isinstance(made, str)
        return several and len(made) == len(want) and all(map(same, made, want))
    return made == want
