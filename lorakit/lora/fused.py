"""原作者的层名：diffusers 拆开的 q、k、v，原作者并成一个线性层；LoRA 跟着并起来、拆开，ΔW 不变。

并：几个 A 上下接、几个 B 排成对角的块，秩相加；缺的那一层（没有练）补零。
拆：B 按行切开，各自只留用得上的那几列（与 A 的那几行），所以并了再拆还是原来的秩。
对调：同一层写了两遍的，前后两半（scale 与 shift）在原作者那里次序相反；只换 B 的行。
"""

import re
from collections.abc import Mapping

import torch
from torch import nn

Pair = tuple[torch.Tensor, torch.Tensor]  # A (r, 入), B (出, r)
Slots = Mapping[str, tuple[tuple[str, int], ...]]  # 原作者的名字 -> ((层名, 输出的宽), ...)


def slots(original: Mapping[str, tuple[str, ...]], transformer: nn.Module) -> Slots:
    """家族的 original 与真正的模型（骨架就够）-> 每个原作者的层由哪几层并成、各多宽。"""
    wide = {
        n.removesuffix(".base_layer"): m.out_features  # 挂着 LoRA 的层，原来的在这里面
        for n, m in transformer.named_modules()
        if isinstance(m, nn.Linear)
    }
    found = {}
    for name, parts in original.items():
        first = re.compile(re.escape(parts[0]).replace(r"\{\}", r"(\d+)"))
        for path in wide:
            if match := first.fullmatch(path):
                paths = [part.format(*match.groups()) for part in parts]
                found[name.format(*match.groups())] = tuple(
                    (p, wide[p] // paths.count(p)) for p in paths
                )
    return found


def join(layers: Mapping[str, Pair], places: Slots) -> dict[str, Pair]:
    """diffusers 的层 -> 原作者的层；places 里没有的层照原名留着。"""
    joined, used = {}, set()
    for name, parts in places.items():
        pairs = [layers.get(path) for path, _ in parts]
        used |= {path for path, _ in parts}
        if all(pair is None for pair in pairs):
            continue
        if _swapped(parts):
            joined[name] = _swap(*pairs[0])
            continue
        columns = [
            torch.zeros(wide, 0) if pair is None else pair[1]
            for pair, (_, wide) in zip(pairs, parts, strict=True)
        ]
        a = torch.cat([pair[0] for pair in pairs if pair is not None])
        joined[name] = (a, torch.block_diag(*columns))
    return joined | {path: pair for path, pair in layers.items() if path not in used}


def is_swapped(path: str, places: Slots) -> bool:
    """这一层的前后两半，在原作者那里是不是次序相反。"""
    return any(_swapped(parts) and parts[0][0] == path for parts in places.values())


def _swapped(parts: tuple[tuple[str, int], ...]) -> bool:
    return len(parts) == 2 and parts[0] == parts[1]


def _swap(a: torch.Tensor, b: torch.Tensor) -> Pair:
    return a, b.roll(len(b) // 2, 0)


def split(a: torch.Tensor, b: torch.Tensor, parts: tuple[tuple[str, int], ...]) -> dict[str, Pair]:
    """原作者的一层 -> diffusers 的几层；补的零（这一层没有练）不留。"""
    if len(b) != sum(wide for _, wide in parts):  # 形状不对：整个交给第一层，体检会指出来
        return {parts[0][0]: (a, b)}
    if _swapped(parts):
        return {parts[0][0]: _swap(a, b)}
    rows = dict(zip([path for path, _ in parts], b.split([w for _, w in parts]), strict=True))
    kept = {path: row.any(dim=0) for path, row in rows.items()}
    if not b.any():  # 刚挂上、还没练：每层都是零，都留着
        return {path: (a, row) for path, row in rows.items()}
    return {path: (a[keep], rows[path][:, keep]) for path, keep in kept.items() if keep.any()}


def cut(layer, parts: tuple[tuple[str, int], ...]) -> dict:
    """原作者的一层 LoKr（lokr.Product）-> diffusers 的几层：克罗内克积按行切开。"""
    if layer.shape[0] != sum(wide for _, wide in parts):  # 形状不对，同 split
        return {parts[0][0]: layer}
    if _swapped(parts):
        return {parts[0][0]: _swap(*layer.pair())}
    pieces = layer.cut([wide for _, wide in parts])
    return dict(zip([path for path, _ in parts], pieces, strict=True))
