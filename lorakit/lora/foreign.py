"""各家的 LoRA 文件读成同一种样子：层名 -> ΔW。

名字怎么认在 names.py，强度听谁的在 strength.py。
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch

from lorakit.errors import WeightsError
from lorakit.lora import dora, lokr, names, strength
from lorakit.lora import files as lora_files
from lorakit.lora import fused as lora_fused
from lorakit.lora.algebra import Layers, distance, shape_of

NO_PLACES = MappingProxyType({})
ALIKE = 1e-2  # 同一层存了两遍（并起来的、拆开的），舍入之后最多差这么多
SPELLED = {"moved": "lora_magnitude_vector", "dora": "dora_scale"}  # 别的就是它自己
TRAINED_BY = ("lycoris", "onetrainer")  # 它们写的 dora_scale 除的是 |W + BA|


@dataclass(frozen=True)
class Meaning:
    """一个文件的意思。"""

    layers: Layers  # 层名 -> ΔW，强度已经乘进去
    unknown: list[str]  # 没有地方放的张量
    left: list[str]  # Transformer 以外的张量（文本编码器等），用不上
    form: str  # 谁的写法
    scales: Mapping[str, float]  # 文件里的层名 -> 强度
    said: str  # 强度听谁的
    card: Mapping[str, str]
    doubt: str = ""  # 文件头写的与张量对不上的地方

    @property
    def is_plain(self) -> bool:
        """diffusers 的写法，强度是 1：不看 alpha 的软件读来也是这个意思。"""
        pairs = all(isinstance(layer, tuple) for layer in self.layers.values())
        return pairs and self.form == "LoRA（diffusers）" and set(self.scales.values()) == {1.0}


def read(
    file: Path, modules: Iterable[str], places: lora_fused.Slots = NO_PLACES
) -> tuple[Layers, list[str]]:
    """任何一种写法的文件 -> (层, 没有地方放的张量名)；其余见 `meaning`。"""
    found = meaning(file, modules, places)
    return found.layers, found.unknown


def meaning(file: Path, modules: Iterable[str], places: lora_fused.Slots = NO_PLACES) -> Meaning:
    """任何一种写法的文件是什么意思；modules 是底模里线性层的全名。

    places 是原作者的层名（见 fused.slots），没有就只认 diffusers 的。

    Raises:
        WeightsError: 不是 LoRA、成对的缺一个、强度读不懂、是读不了的变体（会说出是哪一种）。
    """
    file = lora_files.find(file)
    tensors, header = lora_files.load(file)
    places = _with_xlabs(places)
    parts, unknown, left, forms = _sorted(file, tensors, modules, places)
    card = lora_files.card_of(header)
    silent = any("alpha" not in part for part in parts.values())
    rule = strength.rule(file, header, card, tensors) if silent else strength.Rule()
    if rule.dora and (bare := [p for p, part in parts.items() if not {"moved", "dora"} & {*part}]):
        raise WeightsError(
            f"“{file}”的设置说它是 DoRA（use_dora），可是 {lora_files.brief(bare[0])} 等 "
            f"{len(bare)} 层没有每行的长度：文件不完整，照普通 LoRA 用就错了。请重新下载或导出。"
        )
    over = _over(header, card)
    layers, scales = {}, {}
    for path, part in parts.items():
        layer, scales[path] = _Layer(file, path, part, rule).read(over)
        if "dora" in part and over == dora.BASE and lora_fused.is_swapped(path, places):
            layer = dora.swapped(layer)  # ComfyUI 只对调 BA，长度照它自己的次序
        for name, one in _unfused(layer, path, places).items():
            if not _same(layers.setdefault(name, one), one):
                raise _twice(file, name, "并起来的一份、拆开的一份，说的不一样")
    beside = [path for path, part in parts.items() if "alpha" in part]
    said = "张量旁边的 alpha" if beside else rule.said
    if beside and len(beside) < len(parts):
        said = f"张量旁边的 alpha，没有的层：{rule.said}"
    form = _called(forms, layers)
    ranks = {path: (rank, len(places.get(path, "1"))) for path, part in parts.items()
             if (rank := _rank(part))}  # fmt: skip
    told = strength.claims(file, header, tensors)
    doubt = strength.contradiction(told, ranks, scales, card.get("alpha") == "folded")
    return Meaning(layers, unknown, left, form, scales, said, card, doubt)


def _rank(part: Mapping[str, torch.Tensor]) -> int | None:
    """一层张量自己的秩；LoKr 的两个因子都是整个的，就没有。"""
    return next((len(part[kind]) for kind in ("A", "w2_b", "w1_b") if kind in part), None)


def _sorted(file: Path, tensors: Mapping[str, torch.Tensor], modules, places: lora_fused.Slots):
    """张量 -> (层 -> 它的几样, 没有地方放的, 别的部分的, 各种写法几个)。"""
    known = {name: name for name in (*modules, *places)}
    flat = {name.replace(".", "_"): name for name in known}
    parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    unknown, left, forms, adapters = [], [], Counter(), set()
    for key, value in tensors.items():
        place = names.parse(key)
        path, whose = names.resolve(place.layer, known, flat) if place else (None, None)
        if path is None and names.is_other(key):
            left.append(key)
        elif place is None:
            raise _strange(file, key, tensors)
        elif path is None:
            unknown.append(key)
        elif not _repeats(parts[path].get(place.kind), value):
            raise _twice(file, path, "说的不一样")
        else:
            parts[path][place.kind] = value
            forms[_form(key, whose, path in places, place)] += 1
            adapters |= {place.adapter} if place.kind in ("A", "B") else set()
    if len(adapters) > 1:
        said = "、".join(
            lora_files.brief(a.removeprefix(".")) or "没有名字的" for a in sorted(adapters)
        )
        raise WeightsError(
            f"“{file}”里不止一个适配器（{said}），不知道用哪一个。请每个存成一个文件。"
        )
    return parts, unknown, left, forms


def _repeats(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    """第一次见，或一字不差地又存了一遍（换个前缀给另一个软件）。"""
    return one is None or (one.dtype == other.dtype and torch.equal(one, other))


def _twice(file: Path, path: str, why: str) -> WeightsError:
    return WeightsError(
        f"“{file}”里 {lora_files.brief(path)} 有两份（{why}），不知道用哪一份。请拆成两个文件。"
    )


def _same(one, other) -> bool:
    """同一层的两份说的是不是一回事；有的工具两种写法都存。"""
    if one is other:
        return True
    pairs = all(isinstance(layer, tuple) for layer in (one, other))
    return pairs and shape_of(one) == shape_of(other) and distance(one, other) <= ALIKE


def _form(key: str, whose: str, original: bool, place: names.Place) -> str:
    if names.XLABS.match(key):
        return "XLabs"
    if not whose:
        whose = "DiffSynth" if place.adapter else "没有前缀"
    return f"{whose}，原作者的层名" if original else whose


def _called(forms: Counter, layers: Layers) -> str:
    kinds = {dora.Dora: "DoRA", lokr.Product: "LoKr"}
    kind = "、".join(dict.fromkeys(kinds.get(type(layer), "LoRA") for layer in layers.values()))
    return f"{kind}（{forms.most_common(1)[0][0]}）" if forms else ""


def _over(header: Mapping[str, str], card: Mapping[str, str]) -> str:
    """dora_scale 除的是哪一个长度：训练它的工具写明了就听工具的，否则照 ComfyUI 的。"""
    told = f"{header.get('ss_network_module', '')} {' '.join(header)}".lower()
    trained = "ot_revision" in header or any(tool in told for tool in TRAINED_BY)
    return dora.MOVED if trained and "alpha" not in card else dora.BASE


def _strange(file: Path, key: str, tensors: Collection[str]) -> WeightsError:
    """一个读不了的张量 -> 说出这个文件是什么。"""
    kind = names.kind_of([key])
    if kind is None:
        odd = [k for k in tensors if names.parse(k) is None and not names.is_other(k)]
        kind = names.kind_of(odd)
    what = f"这是{kind}" if kind and kind != "整个模型" else "它不是 LoRA、LoKr 或 DoRA 的张量"
    if kind in (None, "整个模型") and key.endswith((".weight", ".bias")):
        what = "这是整层的权重或偏置（PEFT 的 modules_to_save、bias），不只是 LoRA"
    return WeightsError(
        f"“{file}”里有 {lora_files.brief(key)}：{what}，这里读不了。"
        f"{names.mend_of(tensors, kind)}。"
    )


def _with_xlabs(places: lora_fused.Slots) -> lora_fused.Slots:
    """XLabs 在单流块里只碰并起来的那一层的 q、k、v。"""
    return {
        **places,
        **{
            f"{name}.qkv": parts[:3]
            for name, parts in places.items()
            if len(parts) > 3 and parts[2][0].endswith("to_v")
        },
    }


def _unfused(layer, path: str, places: lora_fused.Slots) -> Layers:
    """原作者并在一起的层拆开。"""
    if path not in places:
        return {path: layer}
    if isinstance(layer, dora.Dora):
        return dora.split(layer, places[path])
    if isinstance(layer, lokr.Product):
        return lora_fused.cut(layer, places[path])
    return lora_fused.split(*layer, places[path])


@dataclass(frozen=True)
class _Layer:
    """文件里的一层：几个张量，与没有 alpha 时听谁的。"""

    file: Path
    path: str
    part: Mapping[str, torch.Tensor]
    rule: strength.Rule

    def read(self, over: str) -> tuple[object, float]:
        """-> (这一层, 强度)。"""
        if any(kind.startswith("w") for kind in self.part):
            return self._product()
        a, b = self._matrix("A"), self._matrix("B")
        rank = len(a)
        if rank == 0 or b.shape[1] != rank:
            raise self._wrong(f"的 A 的秩是 {rank}，B 的是 {b.shape[1]}，合不到一起")
        scale = self._alpha() / rank if "alpha" in self.part else self.rule.scale(self.path, rank)
        pair = a, b * scale
        if not torch.isfinite(pair[1]).all():
            raise self._wrong(f"的强度是 {scale:.3g}，乘进去就超出了能装的数")
        if not {"moved", "dora"} & self.part.keys():
            return pair, scale
        if {"moved", "dora"} <= self.part.keys():
            raise self._wrong(
                "的长度有两种写法（dora_scale 与 lora_magnitude_vector），不知道听谁的"
            )
        key = "moved" if "moved" in self.part else "dora"
        length = self.part[key].float()
        columns = key == "dora" and length.ndim > 1 and len(length) == 1 != len(b)
        most = a.shape[1] if columns else len(b)
        if length.numel() != most:
            raise self._wrong(f"的长度有 {length.numel()} 个，应该是 {most} 个")
        over = dora.MOVED if key == "moved" or columns else over
        return dora.Dora(*pair, length.flatten(), over, columns), scale

    def _product(self) -> tuple[lokr.Product, float]:
        if {"moved", "dora"} & self.part.keys():
            raise self._wrong("是带 DoRA 的 LoKr，这里读不了")
        if {"A", "B"} & self.part.keys():
            raise self._wrong("又有 LoRA 又有 LoKr，不知道用哪一份")
        found = {kind: self._matrix(kind) for kind in self.part if kind.startswith("w")}
        for kind in ("w1", "w2"):
            if {kind, f"{kind}_a"} <= found.keys():
                raise self._wrong(f"的 {kind} 有两份（整个的与拆开的），不知道用哪一份")
            sides = [found.get(f"{kind}_{side}") for side in "ab"]
            if all(side is not None for side in sides) and sides[0].shape[1] != len(sides[1]):
                raise self._wrong(f"的 {kind}_a 与 {kind}_b 合不到一起")
        rank = next((len(found[kind]) for kind in ("w2_b", "w1_b") if kind in found), None)
        alpha = {"alpha": torch.tensor(self._alpha())} if "alpha" in self.part else {}
        product = lokr.Product.of({**found, **alpha})
        if product is None:
            raise self._half()
        if alpha:
            return product, self._alpha() / rank if rank else 1.0
        scale = self.rule.scale(self.path, rank)
        return replace(product, w1=product.w1 * scale), scale

    def _matrix(self, kind: str) -> torch.Tensor:
        """一个张量 -> fp32 的矩阵；1x1 的卷积也是矩阵。"""
        if kind not in self.part:
            raise self._half()
        value = self.part[kind]
        if value.ndim > 2 and set(value.shape[2:]) == {1}:
            value = value.flatten(1)
        if value.ndim != 2 or 0 in value.shape:
            shape = "x".join(map(str, value.shape)) or "一个数"
            raise self._wrong(f"的 {kind} 是 {shape}，不是矩阵")
        return value.float()

    def _half(self) -> WeightsError:
        there = "、".join(SPELLED.get(kind, kind) for kind in self.part)
        return self._wrong(f"只有一半（{there}），对不上：文件不完整")

    def _alpha(self) -> float:
        value = self.part["alpha"]
        if value.numel() != 1:
            raise self._wrong(f"的 alpha 有 {value.numel()} 个数，应该是一个")
        return float(value)

    def _wrong(self, what: str) -> WeightsError:
        return WeightsError(f"“{self.file}”里 {lora_files.brief(self.path)} {what}。")
