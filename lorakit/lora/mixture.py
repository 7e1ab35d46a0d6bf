"""叠加、改份量、缩秩做成的一份：记下由什么做成；原来那份的留出集损失等，不再是它的。"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lorakit.errors import ConfigError, WeightsError
from lorakit.files import Unreadable, parse_json
from lorakit.lora import algebra, dora, metadata, steps
from lorakit.lora.files import FILE, PEFT_FILE, brief, card_of

WORDS = "ss_tag_frequency"  # {数据的名字: {词: 几次}}
SIZE = "modelspec.resolution"


@dataclass(frozen=True)
class Mixture:
    """由哪几份、各占多少份量、缩没缩秩；只有一份、份量 1、没有缩的，就是原来那份。"""

    files: Sequence[Path]
    weights: Sequence[float]
    rank: int | None = None  # 缩到的秩
    kept: float = 1.0  # 缩秩保住的能量

    def __post_init__(self):
        for file, weight in zip(self.files, self.weights, strict=True):
            if weight == 0:
                raise ConfigError(
                    f"--weight：份量 0 等于没有用“{file}”。去掉它，或写一个不是 0 的数，例如 0.5。"
                )

    @property
    def same(self) -> bool:
        """份量没有动、也没有叠：每一层就是原来的。"""
        return list(self.weights) == [1.0]

    @property
    def whole(self) -> bool:
        """就是原来那份，一个数也没有变。"""
        return self.same and self.rank is None

    @cached_property
    def heads(self) -> list[dict[str, str]]:
        return [metadata.of(file) for file in self.files]

    @cached_property
    def cards(self) -> list[dict[str, str]]:
        return [card_of(head) for head in self.heads]

    @property
    def names(self) -> list[str]:
        return [called(file, head) for file, head in zip(self.files, self.heads, strict=True)]

    @property
    def made(self) -> str:
        """一句话：甲 × 0.5 + 乙 × 0.5，缩到秩 16（保住 98.0% 的能量）。"""
        parts = []
        for name, card, weight in zip(self.names, self.cards, self.weights, strict=True):
            inside = f"（{card['made']}）" if card.get("made") else ""
            parts.append(f"{name}{inside}" + f" × {weight:g}" * (not self.same))
        shrunk = f"，缩到秩 {self.rank}（保住 {self.kept:.1%} 的能量）" if self.rank else ""
        return " + ".join(parts) + shrunk

    @property
    def trigger(self) -> str:
        """每一份的触发词，各写一次。"""
        told = zip(self.cards, self.heads, strict=True)
        every = (
            one.get("trigger") or head.get("modelspec.trigger_phrase", "") for one, head in told
        )
        return "，".join(dict.fromkeys(word for word in every if word))

    def card(self) -> dict[str, str]:
        """写进文件头的卡片。"""
        first = self.cards[0]
        if self.whole:
            return first
        gone = {"held"} if len(self.files) == 1 else {"held", "steps"}
        kept = {key: value for key, value in first.items() if key not in gone}
        return kept | {"trigger": self.trigger, "made": self.made}

    def about(self) -> dict[str, str]:
        """写给别的软件看的：叠了几份的，只留仍然是真的。"""
        if len(self.files) == 1:
            return self.heads[0]
        terms = dict.fromkeys(head.get("modelspec.license", "") for head in self.heads)
        sizes = {head.get(SIZE, "") for head in self.heads}
        told = {
            "modelspec.merged_from": ", ".join(self.names),
            "modelspec.trigger_phrase": self.trigger,
            "modelspec.license": "；".join(term for term in terms if term),
            SIZE: sizes.pop() if len(sizes) == 1 else "",
            WORDS: _words(self.heads),
        }
        return {key: value for key, value in told.items() if value}


def called(file: Path, head: Mapping[str, str]) -> str:
    """这一份叫什么：文件名；大家都叫的那个名字，就用文件头里的，或结果文件夹的。"""
    if file.name not in (FILE, PEFT_FILE):
        return brief(file.stem)
    inside = file.resolve().parent
    run = inside.parent if steps.step_of(inside) is not None else inside
    told = head.get("modelspec.title") or head.get("ss_output_name") or run.name
    return brief(metadata.bare(told))


def _words(heads: Sequence[Mapping[str, str]]) -> str:
    """各份的词频放在一起；同名的数据另取一个名字。"""
    found: dict[str, dict] = {}
    for number, head in enumerate(heads, 1):
        try:
            table = parse_json(head.get(WORDS, "{}"), dict)
        except Unreadable:  # 别人写坏的
            continue
        found |= {f"{name}_{number}" if name in found else name: one for name, one in table.items()}
    return json.dumps(found, ensure_ascii=False) if found else ""


def refuse_nothing(layers: algebra.Layers):
    """做成的一份每一层都是零：不写。

    Raises:
        WeightsError: 几份互相抵消了，或它们自己就没有改什么。
    """
    for layer in layers.values():
        if not isinstance(layer, tuple):
            nothing = not isinstance(layer, dora.Dora) and not layer.norm()
        else:
            a, b = (float(side.double().norm()) for side in layer)
            nothing = float(algebra.spectrum_of(layer).norm()) <= algebra.NOISE * a * b
        if not nothing:
            return
    raise WeightsError(
        "做成的 LoRA 每一层都是零：几份互相抵消了，或它们自己就什么也没有改，没有写。"
        "改 --weight 的份量（同一份别一正一负），或换一份。"
    )
