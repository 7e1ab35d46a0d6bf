"""bf16 的权重怎么练：更新的时候临时换成 fp32，写回去时随机舍入。

bf16 只有八位有效数字，1e-5 的一小步四舍五入就没了；随机舍入按离两边的远近决定进还是舍，
平均下来一点也不少（Zamirai 等 2020，“Revisiting BFloat16 Training”）。
"""

from collections.abc import Callable
from types import MethodType

import numpy as np
import torch

PIECE = 1 << 28  # 一次把这么多个数换成 fp32：多占 2 GiB，一块块来，不会整份翻倍
DRAW = 2**31 + 1  # 与训练、检验的随机数分开


def stochastic(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """fp32 -> bf16，随机舍入：低 16 位加一个随机数再截掉；NaN 与无穷大照原样。"""
    bits = x.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, x.shape, generator=generator, device=x.device)
    rounded = ((bits + noise.to(torch.int32)) & -(1 << 16)).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)


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
        grads = {p: p.grad for p in learned if p.grad is not None}
        for p in grads:
            p.grad = None  # 没轮到的，优化器就当没有梯度
        source = generator(learned[0].device, seed, step_now())
        for piece in _pieces(list(grads)):
            homes = [p.data for p in piece]
            for p in piece:
                p.data = p.data.float()
                p.grad = grads[p].float()
            update()
            for p, home in zip(piece, homes, strict=True):  # 写回原处：录好的 CUDA 图认得这里
                home.copy_(stochastic(p.data, source))
                p.grad, p.data = None, home
        for p, grad in grads.items():
            p.grad = grad

    optimizer.step = MethodType(step, optimizer)


def _pieces(parameters: list) -> list[list]:
    """依次分成几份，每份不超过 PIECE 个数（单个更大的自成一份）。"""
    pieces, size = [[]], 0
    for parameter in parameters:
        if pieces[-1] and size + parameter.numel() > PIECE:
            pieces.append([])
            size = 0
        pieces[-1].append(parameter)
        size += parameter.numel()
    return pieces
