"""编码好的提示词，记在家族名下：先编码、放掉文本编码器，再画；家族没了，记的也一起没了。"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from lorakit.families.shared import Cond

_known: WeakKeyDictionary = WeakKeyDictionary()  # 家族 -> {(提示词, 它看着的图) -> 条件，在内存里}


def _keys(prompts: Sequence[str], refs) -> list[tuple]:
    pairs = zip(prompts, refs or [()] * len(prompts), strict=True)
    return [(said, *(hash((p.size, p.tobytes())) for p in seen)) for said, seen in pairs]


def remember(family, guidance: float, prompts: Sequence[str], refs=None, negative: str = ""):
    """编码好 prompts（编辑还有每句的控制图 refs）与引导用的负面提示词，再放掉文本编码器。

    画它们时，显卡上就不用同时放编码器与 Transformer。
    """
    known, asked = _known.setdefault(family, {}), [prompts]
    if guidance > 1 and not family.embedded_guidance:
        asked.append([negative if negative.strip() else family.blank] * len(prompts))
    for texts in asked:
        for i, key in enumerate(_keys(texts, refs)):
            if key not in known:
                (cond,) = family.encode_prompts([texts[i]], [refs[i]] if refs else None)
                known[key] = {name: value.cpu() for name, value in cond.items()}
    family.release("text")


def recall(family, prompts: Sequence[str], refs=None) -> list[Cond] | None:
    """`remember` 过的条件，在设备上；有一句没有就是 None。"""
    found = [_known.get(family, {}).get(key) for key in _keys(prompts, refs)]
    if None in found:
        return None
    return [{name: value.to(family.device) for name, value in cond.items()} for cond in found]


def forget(family):
    """记下的都不要了。"""
    _known.pop(family, None)
