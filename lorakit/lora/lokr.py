"""LoKr：ΔW = w1 ⊗ w2，两个小矩阵的克罗内克积；参数少得多，秩却可以高得多。训练由 PEFT 完成。

w1 (a, c) 与 w2 (b, d) 得到 ΔW (ab, cd)；w2 大了再拆成 w2_a (b, r) 乘 w2_b (r, d)。
出处与写法：LyCORIS，https://arxiv.org/abs/2309.14859 。
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from peft import LoKrConfig
from peft.tuners.lora.layer import LoraVariant
from torch import nn

FACTOR = 8  # w1 的边长：越大参数越少；除不尽的层由 PEFT 取最接近的因数
NAME = re.compile(r"(.+)\.lokr_(w[12](?:_[ab])?)(?:\.default)?")
FOLDED = (".lokr_w1", ".lokr_w1_a")  # 缩放乘在这里
PLAIN_RANK = 1024  # 写成普通 LoRA 时，秩超过它就不写
Parts = dict[str, torch.Tensor]


def settings_for(settings, names: Sequence[str]) -> LoKrConfig:
    """lora 一组设置 -> PEFT 的；初值照 LyCORIS：w1 随机，w2 是零，所以刚挂上时什么也不改变。"""
    return LoKrConfig(
        r=settings.rank,
        alpha=settings.alpha or settings.rank,
        target_modules=list(names),
        decompose_factor=FACTOR,
        init_weights="lycoris",
    )


def by_layer(tensors: Mapping[str, torch.Tensor]) -> dict[str, Parts]:
    """{张量名: 张量} -> {层名: {w1, w2 或 w2_a、w2_b}}；不是 LoKr 的张量不管。"""
    layers: dict[str, Parts] = defaultdict(dict)
    for name, value in tensors.items():
        if found := NAME.fullmatch(name):
            layers[found[1]][found[2]] = value
    return dict(layers)


@dataclass(frozen=True)
class Product:
    """一层的 ΔW = w1 ⊗ (left right)，缩放已乘进 w1。"""

    w1: torch.Tensor  # (a, c)
    left: torch.Tensor  # (b, r)
    right: torch.Tensor  # (r, d)
    rows: tuple[int, int] | None = None  # 原作者并起来的一层里，只要这几行

    @classmethod
    def of(cls, parts: Parts) -> "Product | None":
        """parts 里可以有 alpha：LyCORIS 只在有一个因子拆开时才乘 alpha / r；缺了一半就是 None。"""
        w1, w2 = parts.get("w1"), parts.get("w2")
        if w1 is None and {"w1_a", "w1_b"} <= parts.keys():
            w1 = parts["w1_a"] @ parts["w1_b"]
        if w1 is None or (w2 is None and not {"w2_a", "w2_b"} <= parts.keys()):
            return None
        if w2 is None:
            left, right = parts["w2_a"], parts["w2_b"]
        elif len(w2) < w2.shape[1]:
            left, right = torch.eye(len(w2)).to(w2), w2
        else:
            left, right = w2, torch.eye(w2.shape[1]).to(w2)
        split = parts.get("w2_b", parts.get("w1_b"))
        if "alpha" in parts and split is not None:
            w1 = w1 * (float(parts["alpha"]) / len(split))
        return cls(w1, left, right)

    @property
    def shape(self) -> tuple[int, int]:
        """ΔW 的 (出, 入)。"""
        out = len(self.w1) * len(self.left)
        first, last = self.rows or (0, out)
        return last - first, self.w1.shape[1] * self.right.shape[1]

    @property
    def rank(self) -> int:
        """写成普通 LoRA 要多大的秩。"""
        return self.w1.shape[1] * len(self.right)

    def cut(self, wide: Sequence[int]) -> "list[Product]":
        """按行切开：每一份多少行。"""
        ends = list(accumulate(wide, initial=0))
        return [replace(self, rows=rows) for rows in pairwise(ends)]

    def delta(self) -> torch.Tensor:
        """ΔW，(出, 入)。"""
        whole = torch.kron(self.w1.double(), self.left.double() @ self.right.double())
        return whole[slice(*self.rows)] if self.rows else whole

    def norm(self) -> float:
        """|ΔW|，不必展开：第 i 块的行是 w1 的第 i 行乘 w2。"""
        one = self.w1.double().square().sum(dim=1)
        two = (self.left.double() @ self.right.double()).square().sum(dim=1)
        rows = torch.outer(one, two).flatten()  # 每一行的长度的平方
        return float((rows[slice(*self.rows)] if self.rows else rows).sum().sqrt())

    def spectrum(self) -> torch.Tensor:
        """ΔW 的奇异值：两个因子的奇异值两两相乘；只要几行的，照整层的分布，长度是这几行的。"""
        one = torch.linalg.svdvals(self.w1.double())
        two = torch.linalg.svdvals(self.left.double() @ self.right.double())
        values = torch.outer(one, two).flatten().sort(descending=True).values
        return values * (self.norm() / values.norm().clamp(min=1e-30)) if self.rows else values

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """ΔW x，不必展开成大矩阵；x 是 (..., 入)。"""
        w1, left, right = (part.to(x) for part in (self.w1, self.left, self.right))
        inner = x.unflatten(-1, (w1.shape[1], right.shape[1]))  # (..., 入) -> (..., c, d)
        out = (w1 @ (inner @ right.T @ left.T)).flatten(-2)  # -> (..., a, b) -> (..., ab)
        return out[..., slice(*self.rows)] if self.rows else out

    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        """写成普通 LoRA，ΔW 分毫不差：A = I ⊗ right，B = w1 ⊗ left。"""
        b = torch.kron(self.w1, self.left)
        a = torch.kron(torch.eye(self.w1.shape[1]), self.right)
        return a, b[slice(*self.rows)] if self.rows else b


class Kron(LoraVariant):
    """挂在 PEFT 的 LoRA 层上的克罗内克积：因数随便怎么分，也能与 LoRA、DoRA 混着。"""

    def __init__(self, product: Product):
        self.product = product

    def forward(self, module, active_adapter, x, result, **kwargs):
        return result + module.scaling[active_adapter] * self.product.times(x).to(result)

    def merge_safe(self, module, active_adapter, orig_weight):
        change = module.scaling[active_adapter] * self.product.delta().to(orig_weight.device)
        return (orig_weight.double() + change).to(orig_weight.dtype)

    def merge_unsafe(self, module, active_adapter, orig_weight):
        orig_weight.data = self.merge_safe(module, active_adapter, orig_weight.data)

    def unmerge(self, module, active_adapter, orig_weight):
        change = module.scaling[active_adapter] * self.product.delta().to(orig_weight.device)
        return (orig_weight.double() - change).to(orig_weight.dtype)


def put_product(module: nn.Module, adapter: str, product: Product):
    """把挂好的占位的 LoRA 层变成 LoKr。"""
    module.lora_variant[adapter] = Kron(product)
