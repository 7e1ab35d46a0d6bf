"""平常的词：模型早就认得、早有自己的画法，当触发词就和原来的意思混在一起。

认的是整个触发词：全由平常的词拼成才算，所以“ohwx cat”“小橘”不算，“my cat”“一只小猫”算。
"""

import re
import unicodedata
from functools import lru_cache

from lorakit.files import ASSETS

WORDS = ASSETS / "ordinary-words.txt"
SHORT = 3  # 去掉复数的 s，至少还剩几个字母：Wes、Ames 是名字
LONGEST = 3  # 单子里的中文词最长几个字
PARTS = re.compile(r"[a-z]+|\d+|[^\W\da-z_]+")  # 一串字母、数字，或一串别的字；空格、标点只是隔开


def ordinary(trigger: str) -> bool:
    """整个触发词是不是全由平常的词（和光秃秃的数）拼成；没有触发词不算。"""
    parts = PARTS.findall(unicodedata.normalize("NFKC", trigger).casefold())
    return bool(parts) and all(map(_known, parts))


def _known(part: str) -> bool:
    if part.isascii():
        ends = [one for one in ("s", "es") if part.endswith(one) and len(part) - len(one) >= SHORT]
        single = {part, *(part.removesuffix(end) for end in ends)}
        return bool(single & _words()) or part.isdecimal()
    ends = {0}  # 从头起，几个词正好连到哪里
    for start in range(len(part)):
        if start in ends:
            longest = range(start + 1, start + LONGEST + 1)
            ends |= {end for end in longest if part[start:end] in _words()}
    return len(part) in ends


@lru_cache
def _words() -> frozenset[str]:
    return frozenset(WORDS.read_text(encoding="utf-8").split())
