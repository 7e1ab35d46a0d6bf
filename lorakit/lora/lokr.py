"""LoKr：ΔW = w1 ⊗ w2，两个小矩阵的克罗内克积；参数少得多，秩却可以高得多。训练由 PEFT 完成。

w1 (a, c) 与 w2 (b, d) 得到 ΔW (ab, cd)；w2 大了再拆成 w2_a (b, r) 乘 w2_b (r, d)。
出处与写法：LyCORIS，https://arxiv.org/abs/2309.14859 。
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import LoKrConfig

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
        return len(self.w1) * len(self.left), self.w1.shape[1] * self.right.shape[1]

    @property
    def rank(self) -> int:
        """写成普通 LoRA 要多大的秩。"""
        return self.w1.shape[1] * len(self.right)

    def delta(self) -> torch.Tensor:
        """ΔW，(出, 入)。"""
        return torch.kron(self.w1.double(), self.left.double() @ self.right.double())

    def norm(self) -> float:
        """|ΔW|：克罗内克积的长度是两个因子的长度相乘。"""
        return float(self.w1.double().norm() * (self.left.double() @ self.right.double()).norm())

    def spectrum(self) -> torch.Tensor:
        """ΔW 的奇异值：两个因子的奇异值两两相乘。"""
        one = torch.linalg.svdvals(self.w1.double())
        two = torch.linalg.svdvals(self.left.double() @ self.right.double())
        return torch.outer(one, two).flatten().sort(descending=True).values

    def factors(self) -> Parts:
        """PEFT 的写法：w2 拆开了划算才拆，与它自己的分界相同。"""
        most = max(len(self.left), self.right.shape[1])
        if len(self.right) >= most / 2:
            return {"w1": self.w1, "w2": self.left @ self.right}
        return {"w1": self.w1, "w2_a": self.left, "w2_b": self.right}

    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        """写成普通 LoRA，ΔW 分毫不差：A = I ⊗ right，B = w1 ⊗ left。"""
        return torch.kron(torch.eye(self.w1.shape[1]), self.right), torch.kron(self.w1, self.left)
