"""编码好的提示词，记在家族名下：先编码、放掉文本编码器，再画；家族没了，记的也一起没了。

也写进编码缓存：同一句话再画、接着练时，文本编码器不必载入。
"""

import hashlib
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from lorakit.cache.keys import prompt_fields
from lorakit.cache.store import cached
from lorakit.families.shared import Cond

_known: WeakKeyDictionary = WeakKeyDictionary()  # 家族 -> {(提示词, 它看着的图) -> 条件，在内存里}


def _keys(prompts: Sequence[str], refs) -> list[tuple]:
    pairs = zip(prompts, refs or [()] * len(prompts), strict=True)
    return [(said, *map(_digest, seen)) for said, seen in pairs]


def _digest(picture) -> str:
    return hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).hexdigest()


def remember(family, guidance: float, prompts: Sequence[str], refs=None, negative: str = ""):
    """编码好（或取缓存）prompts（编辑还有各句的控制图 refs）与负面提示词，再放掉文本编码器。

    画它们时，显卡上就不用同时放编码器与 Transformer；都编码过，就连载入也不用。
    """
    said, seen = [*prompts], [*(refs or [()] * len(prompts))]
    if guidance > 1 and not family.embedded_guidance:
        said += [negative if negative.strip() else family.blank] * len(prompts)
        seen += seen
    known, keys = _known.setdefault(family, {}), _keys(said, seen)
    new = {key: i for i, key in enumerate(keys) if key not in known}

    def encode(batch: list[int]) -> list[Cond]:
        rows = [places[i] for i in batch]
        return [family.encode_prompts([said[i]], [seen[i]] if refs else None)[0] for i in rows]

    places = list(new.values())
    if places:
        fields = prompt_fields(family, [key[0] for key in new], [key[1:] for key in new])
        found = cached("text", fields, encode, 1, lambda *_: None)
        known |= dict(zip(new, found, strict=True))
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
