"""一层 LoRA 的代数：ΔW、秩、奇异值；缩秩、叠加、合并进底模。A (r, 入)，B (出, r)。"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lorakit.errors import WeightsError
from lorakit.lora import dora, lokr
from lorakit.lora import fused as lora_fused
from lorakit.memory.quantize import is_quantized

Pair = lora_fused.Pair  # A (r, 入), B (出, r)，缩放已折进 B
Layer = Pair | lokr.Product | dora.Dora
NOISE = 1e-7  # fp32 的一格：ΔW 比 |A||B| 的这么多还小，就只剩舍入
Layers = dict[str, Layer]  # 层名 -> 它的 ΔW


def plain(path: str, layer: Layer) -> Pair | dora.Dora:
    """LoKr 的一层写成普通 LoRA，ΔW 不变；DoRA 写不成，原样返回。

    Raises:
        WeightsError: LoKr 的这一层要的秩太大。
    """
    if not isinstance(layer, lokr.Product):
        return layer
    if layer.rank > lokr.PLAIN_RANK:
        raise WeightsError(
            f"{path} 是 LoKr，写成普通 LoRA 要秩 {layer.rank}，最多 {lokr.PLAIN_RANK}。"
            "请直接用原来的文件（generate、compare 与 ComfyUI 都能读），"
            "或合并进底模：--merge（不写 --rank、--to、--dtype）。"
        )
    return layer.pair()


def _pair(path: str, layer: Layer) -> Pair:
    if isinstance(layer, dora.Dora):
        raise WeightsError(
            f"{path} 是 DoRA：改的还有每行的长度，不能叠加、缩秩。"
            "可以合并进底模：--merge（不写 --also、--weight、--rank、--to、--dtype）。"
        )
    return plain(path, layer)


def delta(layer: Layer, weight: torch.Tensor | None = None) -> torch.Tensor:
    """这一层的权重改了多少：ΔW = B A（LoKr 是 w1 ⊗ w2），(出, 入)。

    Args:
        weight: 底模的权重；DoRA 才要。
    """
    if isinstance(layer, lokr.Product):
        return layer.delta()
    if isinstance(layer, dora.Dora):
        return layer.delta(weight)
    a, b = layer
    return b.double() @ a.double()


def distance(one: Pair, other: Pair) -> float:
    """两个 ΔW 的相对误差；从小矩阵算，不必展开成整个权重。A、B 互相抵消的，比的是抵消之前。"""
    (a, b), (c, d) = one, other
    apart = torch.cat([a, c]), torch.cat([b, -d], dim=1)
    least = max(1e-30, NOISE * float(a.double().norm() * b.double().norm()))
    return float(spectrum_of(apart).norm() / spectrum_of(one).norm().clamp(min=least))


def low(layer: Layer) -> Pair | lokr.Product:
    """DoRA 里 B A 那一部分；别的就是它自己。"""
    return (layer.a, layer.b) if isinstance(layer, dora.Dora) else layer


def shape_of(layer: Layer) -> tuple[int, int]:
    layer = low(layer)
    return layer.shape if isinstance(layer, lokr.Product) else (len(layer[1]), layer[0].shape[1])


def spectrum_of(layer: Layer) -> torch.Tensor:
    """ΔW 的奇异值，从大到小；DoRA 只看 B A。"""
    layer = low(layer)
    return layer.spectrum() if isinstance(layer, lokr.Product) else _core(*layer)[1]


def _core(a: torch.Tensor, b: torch.Tensor):
    """ΔW = B A 的奇异值分解；经两次 QR 只分解 r x r 的小矩阵。"""
    qb, rb = torch.linalg.qr(b.double())
    qa, ra = torch.linalg.qr(a.double().T)
    u, s, vh = torch.linalg.svd(rb @ ra.T)
    return qb @ u, s, vh @ qa.T


def resize(layers: Layers, rank: int) -> tuple[Layers, float]:
    """用奇异值分解把每层缩到 rank -> (新的层, 保住的能量，0 到 1)。"""
    small, kept, whole = {}, 0.0, 0.0
    for path, layer in layers.items():
        u, s, vh = _core(*_pair(path, layer))
        root = s[:rank].sqrt()
        small[path] = ((root[:, None] * vh[:rank]).float(), (u[:, :rank] * root).float())
        kept, whole = kept + float(s[:rank].square().sum()), whole + float(s.square().sum())
    return small, kept / whole if whole else 1.0


def combine(several: Sequence[tuple[Layers, float]]) -> Layers:
    """几个 LoRA 按份量叠成一个：A 上下接、B 左右接，秩相加，ΔW 正好是加权和。"""
    joined: dict[str, list[Pair]] = defaultdict(list)
    for layers, weight in several:
        for path, layer in layers.items():
            a, b = _pair(path, layer)
            joined[path].append((a, b * weight))
    return {
        path: (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1))
        for path, pairs in joined.items()
    }


@torch.no_grad()
def merge(layers: Layers | Sequence[tuple[Layers, float]], transformer: nn.Module) -> float:
    """把 ΔW 加进底模的权重，就地修改 -> 舍入成底模的精度之后，加进去的与 ΔW 的相对误差。

    Args:
        layers: 一份；或几份与各自的份量，先加起来再舍入，秩多大都行。

    Raises:
        WeightsError: 底模量化过；加进去的 ΔW 多半比量化的一格还小，会被舍入吃掉。
            或者几份互相抵消，加起来正好是零。
    """
    several = [(layers, 1.0)] if isinstance(layers, Mapping) else layers
    paths = dict.fromkeys(path for one, _ in several for path in one)
    if any(is_quantized(transformer.get_submodule(path)) for path in paths):
        raise WeightsError(
            "量化过的底模不能合并：ΔW 比量化的一格还小，加进去就被舍入掉了。"
            "请用没有量化的底模合并（model.quantize=none），合并完再量化。"
        )
    lost = whole = 0.0
    for path in paths:
        weight = transformer.get_submodule(path).weight
        parts = (times * delta(one[path], weight) for one, times in several if path in one)
        before, change = weight.double(), sum(parts).to(weight.device)
        weight.copy_((before + change).to(weight.dtype))
        lost += float((weight.double() - before - change).square().sum())
        whole += float(change.square().sum())
    if len(several) > 1 and not whole:
        raise WeightsError("几份互相抵消，加起来是零，没有写：改 --weight 的份量，或换一份。")
    return (lost / whole) ** 0.5 if whole else 0.0
