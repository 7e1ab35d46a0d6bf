"""梯度检查点：哪些块的中间结果留着，哪些反向时重算。"""

from collections.abc import Iterable
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorakit.memory import devices

SHREDS = 0.15  # 留着的中间结果越多，切碎了用不上的显存越多：Qwen-Image-Edit 1024² 留 33 GiB、碎 5.3


class Recompute:
    """前向走到每一块时决定：留下中间结果，还是反向时重算这一块（梯度检查点，Chen 等 2016）。"""

    def __init__(self, how: str, members: Iterable[nn.Module], device: torch.device, context=None):
        self.how, self.device = how, device
        self.more = {"context_fn": context} if context else {}  # 重算时要还原的（见 Kandinsky）
        self.places = {id(block): i for i, block in enumerate(members)}
        self.costs: dict[tuple, int] = {}  # 哪种块、什么形状 -> 留下一块的中间结果要多少字节
        self.most: int | None = None  # 张量一共最多占多少字节；None 就现问显卡
        self.start = 0  # 走到头一块时，张量占了多少字节

    def __call__(self, block: nn.Module, *args):
        if self.how == "selective" and self.places[id(block)] % 2:
            return block(*args)
        if self.how != "auto":
            return self._again(block, args)
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        kind = (type(block), *(value.shape for value in tensors))
        before = torch.cuda.memory_allocated(self.device)
        if self.places[id(block)] == 0:
            self.start = before
        if kind in self.costs:
            left = len(self.places) - self.places[id(block)]
            # 留出：后面每块都重算时要存的输入、反向时重算的那一块与它的梯度、切碎了用不上的
            spare = left * sum(value.nbytes for value in tensors) + 3 * max(self.costs.values())
            cost = self.costs[kind]
            spare += int(SHREDS * (before - self.start + cost))
            return block(*args) if cost + spare < self._free() else self._again(block, args)
        out = block(*args)  # 这种块头一次见：留下它，量一量
        self.costs[kind] = torch.cuda.memory_allocated(self.device) - before
        return out

    @contextmanager
    def within(self, free: int):
        """暂时不问显卡：从现在起还能再用 free 字节。"""
        self.most = torch.cuda.memory_allocated(self.device) + free
        try:
            yield
        finally:
            self.most = None

    def _free(self) -> int:
        if self.most is None:
            return devices.free_memory(self.device)
        return self.most - torch.cuda.memory_allocated(self.device)

    def _again(self, block: nn.Module, args: tuple):
        # 块里没有随机数，不用存随机数发生器的状态
        how = {"use_reentrant": False, "preserve_rng_state": False, **self.more}
        return checkpoint(block, *args, **how)
