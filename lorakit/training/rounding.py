"""bf16 的权重怎么练：更新的时候临时换成 fp32，写回去时随机舍入。

bf16 只有八位有效数字，1e-5 的一小步四舍五入就没了；随机舍入按离两边的远近决定进还是舍，
平均下来一点也不少（Zamirai 等 2020，“Revisiting BFloat16 Training”）。
"""

from collections.abc import Callable
from contextlib import contextmanager
from types import MethodType

import numpy as np
import torch
from torch import nn

from lorakit.memory.sharded import local, shared_like, split

PIECE = 1 << 28  # 一次把这么多个数换成 fp32：多占 2 GiB，一块块来，不会整份翻倍
DRAW = 2**31 + 1  # 与训练、检验的随机数分开


def stochastic(x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """fp32 -> bf16，随机舍入：低 16 位加 noise（int32，0 到 65535）再截掉；NaN 与无穷大照原样。"""
    bits = x.contiguous().view(torch.int32)
    rounded = ((bits + noise) & -(1 << 16)).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)


def draw(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """这个进程那一份 like 的随机数；总按整个的形状抽，所以切成几份都一样。"""
    kind = {"dtype": torch.int32, "device": generator.device}
    noise = torch.randint(0, 1 << 16, like.shape, generator=generator, **kind)
    return local(shared_like(noise, like))


def generator(device: torch.device, seed: int, step: int) -> torch.Generator:
    """第 step 步舍入用的随机数发生器：只由种子与步数决定，续练才能逐比特相同。"""
    state = np.random.SeedSequence((seed, step, DRAW)).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) >> 1)


def round_updates(optimizer: torch.optim.Optimizer, seed: int, step_now: Callable[[], int]):
    """让优化器能练 bf16 的参数：`step` 一块块地换成 fp32、更新、舍入回来；状态按 fp32 的样子存。"""
    update = optimizer.step

    @torch.no_grad()
    def step(self, closure=None):
        learned = [p for group in self.param_groups for p in group["params"]]
        source = generator(local(learned[0]).device, seed, step_now())
        given = [p for p in learned if p.grad is not None]
        for piece in split(given, lambda p: local(p).numel(), PIECE):
            update_piece(self, piece, source)  # 各块的 fp32 用完就放掉

    def update_piece(self, piece: list, source: torch.Generator):
        wide = {p: nn.Parameter(p.detach().float()) for p in piece}
        for p, stand_in in wide.items():
            stand_in.grad = p.grad.float()
        with _instead(self, wide):
            update()
        for p, stand_in in wide.items():  # 写回原处：录好的 CUDA 图认得这里
            local(p).copy_(stochastic(local(stand_in), draw(p, source)))

    optimizer.step = MethodType(step, optimizer)


@contextmanager
def _instead(optimizer: torch.optim.Optimizer, wide: dict[nn.Parameter, nn.Parameter]):
    """暂时让优化器只看见这几个替身，状态也归替身；离开时还回去。"""
    groups, state = optimizer.param_groups, optimizer.state
    whole = [group["params"] for group in groups]
    for group in groups:
        group["params"] = [wide[p] for p in group["params"] if p in wide]
    for p, stand_in in wide.items():
        if p in state:
            state[stand_in] = state.pop(p)
    try:
        yield
    finally:
        for group, params in zip(groups, whole, strict=True):
            group["params"] = params
        for p, stand_in in wide.items():
            if stand_in in state:
                state[p] = state.pop(stand_in)
