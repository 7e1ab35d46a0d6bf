"""从描述里拼样张要画的话和列名：说的是作品自己的东西，不是内置的那只猫。"""

import re
from collections.abc import Sequence

from lorakit.data import Record
from lorakit.data.trigger import apply_trigger, has_trigger
from lorakit.lab.picture import missing

ASKED = 4  # 一排几张
SHORT = 6  # 列名最多几个字
CLAUSE = re.compile(r"[，,；;。]\s*")


def prompts(records: Sequence[Record], trigger: str) -> list[str]:
    """几句样张的话：一张照片的主体配另一张的场景，拼成没练过的搭配；有触发词就再来一句不说它的。"""
    said = list(dict.fromkeys(apply_trigger(record.caption, trigger) for record in records))
    if not said:
        return []
    spread = [said[i * len(said) // min(ASKED, len(said))] for i in range(min(ASKED, len(said)))]
    asked = [_crossed(one, said) for one in spread]
    plain = _without(said[0], trigger)
    if plain and len(asked) == ASKED:
        asked[-1] = plain
    # 设置里写成 sample.prompts=[…]：引号和反斜杠会被当成记号
    return list(dict.fromkeys(one.replace('"', "”").replace("\\", " ") for one in asked))


def titles(asked: Sequence[str], trigger: str) -> list[str]:
    """每句话一个短名字：最后一个小句；字体里没有的字、重了的，改用号码。"""
    names = []
    for number, text in enumerate(asked, 1):
        clauses = [c.strip() for c in CLAUSE.split(text) if c.strip()]
        word = clauses[-1] if clauses else ""
        word = re.sub(r"^(背景是|背景|在)", "", word)
        word = word if len(word) <= SHORT else word.split()[-1][-SHORT:]
        if trigger and not has_trigger(text, trigger):
            word = "不说触发词"
        bad = not word or word in names or missing(word, fallback=False)
        names.append(f"第 {number} 句" if bad else word)
    return names


def _crossed(text: str, said: Sequence[str]) -> str:
    """主体留着，后面的场景换成别的照片的；换不出新的就原样。"""
    parts = CLAUSE.split(text, maxsplit=1)
    for other in said:
        rest = CLAUSE.split(other, maxsplit=1)
        if len(parts) == 2 and len(rest) == 2 and rest[1]:
            made = f"{parts[0]}{'，' if '，' in text else ', '}{rest[1]}"
            if made not in said:
                return made
    return text


def _without(text: str, trigger: str) -> str:
    """去掉触发词的同一句话；没有触发词、去掉就没话了，是空的。"""
    if not trigger:
        return ""
    return re.sub(r"\s{2,}", " ", text.replace(trigger, "")).strip("，, ")
