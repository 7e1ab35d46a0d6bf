"""触发词：描述里有没有、是不是写成了长得像的字、是不是只占着位置；没有就加上。"""

import re
import unicodedata
from collections.abc import Sequence

from lorakit.data.ordinary import ordinary
from lorakit.data.read import CJK

# 看着像英文字母的西里尔字母与希腊字母：网页和聊天软件里复制来的触发词里会混进它们
TWINS = str.maketrans(
    "АВЕКМНОРСТХаеорсухіјѕһԁοανΑΒΕΗΙΚΜΝΟΡΤΥΧ", "ABEKMHOPCTXaeopcyxijshdoavABEHIKMNOPTYX"
)

# 别处给触发词占位置的记号：[trigger]、{name}、<token>、%trigger%、【触发词】、［触发词］……
_SURE = r"(?:trigger[ _-]?(?:word|token|phrase)|触发词)"
_WORDS = rf"(?:{_SURE}|trigger|(?:instance|concept|subject|placeholder|identifier)(?:[ _-]?token)?"
_WORDS += r"|name|token|keyword|v\*?)"
_PAIRS = (
    (r"[\[［]+", r"[\]］]+"), (r"[{｛]+", r"[}｝]+"), ("[<＜]", "[>＞]"),
    ("%", "%"), ("__", "__"), ("【", "】"),
)  # fmt: skip
# 平常也用的括号：里面的字要一看就是占位
_ROUND = (r"[(（]", r"[)）]"), ("[「『《〈]", "[」』》〉]")
PLACEHOLDER = re.compile(
    "|".join(
        [rf"{left}\s*{_WORDS}\s*{right}" for left, right in _PAIRS]
        + [rf"{left}\s*{_SURE}\s*{right}" for left, right in _ROUND]
        + [r"\$\{?trigger\b\}?"]
    ),
    re.IGNORECASE,
)

WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
PHRASE = re.compile(r"[^，,]+[，,]\s*")  # 到逗号为止的一段


def placeholder(caption: str) -> str:
    """描述里头一个给触发词占位置的记号，没有就是空的。"""
    found = PLACEHOLDER.search(caption)
    return found.group() if found else ""


def fill(caption: str, trigger: str) -> str:
    """占位置的记号换成触发词；没有触发词就原样。"""
    return PLACEHOLDER.sub(lambda _: trigger, caption) if trigger else caption


def has_trigger(caption: str, trigger: str) -> bool:
    """描述里有没有这个触发词；“sks”不算出现在“asks”里。"""
    return position(caption, trigger) is not None


def looks_like(caption: str, trigger: str) -> bool:
    """不分大小写、把全角和西里尔、希腊字母换成长得一样的英文字母之后，才有这个触发词。"""
    plain = unicodedata.normalize("NFKC", caption).translate(TWINS).casefold()
    return not has_trigger(caption, trigger) and has_trigger(plain, trigger.casefold())


def position(caption: str, trigger: str) -> int | None:
    before = r"(?<![A-Za-z0-9_])" if re.match(r"[A-Za-z0-9_]", trigger) else ""
    after = r"(?![A-Za-z0-9_])" if re.search(r"[A-Za-z0-9_]$", trigger) else ""
    found = re.search(before + re.escape(trigger) + after, caption)
    return found.start() if found else None


def known_word(trigger: str) -> str:
    """触发词是平常的词，就说一句为什么不好、换成什么样的；不是，就是空的。"""
    word = trigger.strip()
    if not ordinary(word):
        return ""
    return (
        f"提醒：“{word}”是平常的词，模型早就认得，学到的会和它原来的意思混在一起。"
        "换一个平时不用、没有意思的词，例如 ohwx；是什么东西，写在描述里它的后面（例如 ohwx 猫）。"
        "不换也能练。"
    )


def apply_trigger(caption: str, trigger: str) -> str:
    """描述里没有触发词就加在最前面：中文描述用“，”隔开，其他用“, ”；占位置的记号先换成它。"""
    trigger = trigger.strip()
    caption = fill(caption, trigger)
    if not trigger or has_trigger(caption, trigger):
        return caption
    return f"{trigger}{'，' if CJK.search(caption) else ', '}{caption}"


def shared_word(captions: Sequence[str], others: Sequence[str] = ()) -> str:
    """每句描述都有、别的图（同类图片）的描述里没有的英文词，多半就是触发词；没有就是空的。"""
    if len(captions) < 2:
        return ""
    words = set.intersection(*(set(WORD.findall(caption)) for caption in captions))
    words -= {word for caption in others for word in WORD.findall(caption)}
    return min(words, key=captions[0].find) if words else ""


def shared_opening(captions: Sequence[str]) -> str:
    """每句描述开头共有的几段，到逗号为止，如“剪纸风格，”；没有就是空的。"""
    if len(set(captions)) < 2:
        return ""
    shared = ""
    for column in zip(*map(PHRASE.findall, captions), strict=False):
        if len(set(column)) > 1:
            break
        shared += column[0]
    return shared


def without(caption: str, opening: str, trigger: str) -> str:
    """去掉共有的开头与触发词：还画普通的东西吗，要不说它们才看得出。"""
    kept = caption.removeprefix(opening)
    if trigger and (place := position(kept, trigger)) is not None:
        kept = kept[:place].rstrip() + kept[place + len(trigger) :].lstrip()
    return kept.strip("，,、 ")
