"""优化器与滑动平均：优化器来自 torch、bitsandbytes 与 prodigyopt，这里只按设置挑选。"""

import math
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

import torch

from lorakit.memory import devices

PRODIGY_LR = 0.1  # Prodigy 的 lr 是倍数，常用 1；比这还小多半是照抄了 AdamW 的学习率


def build(parameters: Iterable[torch.nn.Parameter], train) -> torch.optim.Optimizer:
    """按 train.optimizer 造优化器。

    要的库装了没有、学习率对不对得上，preflight 已经核对过。
    """
    parameters, kind = list(parameters), train.optimizer
    common = {"lr": train.lr, "weight_decay": train.weight_decay}
    on_card = parameters[0].device.type == "cuda"
    if kind == "adamw" or (kind == "adamw8bit" and not on_card):  # 同一份配置要能先在微型模型上试
        return torch.optim.AdamW(parameters, fused=True, **common)
    if kind == "adamw8bit":
        return import_module("bitsandbytes").optim.AdamW8bit(parameters, **common)
    if kind == "adafactor":
        # 第二个 eps：默认的会按权重的大小缩小学习率，LoRA 的 B 从零开始，就一步也走不动
        return torch.optim.Adafactor(parameters, eps=(None, 1.0), **common)
    return import_module("prodigyopt").Prodigy(
        parameters, use_bias_correction=True, safeguard_warmup=True, **common
    )


def lacks(kind: str, device: torch.device) -> str:
    """这种优化器要用、却还没有装的库；不缺就是空的。"""
    package = {"prodigy": "prodigyopt", "adamw8bit": "bitsandbytes"}.get(kind, "")
    if not package or (kind == "adamw8bit" and device.type != "cuda"):
        return ""
    return "" if find_spec(package) else package


def divisor(train, dtype: torch.dtype) -> float:
    """每份的损失先除以几：累积几份就是几；fp16 还要放大。"""
    return train.grad_accum / devices.loss_scale(dtype)


def unscale(parameters: Iterable[torch.nn.Parameter], dtype: torch.dtype):
    """把 divisor 放大过的梯度还原。"""
    scale = devices.loss_scale(dtype)
    given = [p.grad for p in parameters if p.grad is not None]
    if scale != 1 and given:
        torch._foreach_div_(given, scale)


def set_lr(optimizer: torch.optim.Optimizer, step: int, train) -> float:
    """换上第 step 步的学习率，并返回它。"""
    lr = lr_at(step, train)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def lr_at(step: int, train) -> float:
    """第 step 步的学习率：先热身，再按 train.schedule 变化。"""
    warm = min(1.0, (step + 1) / train.warmup) if train.warmup else 1.0
    done = max(0, step - train.warmup) / max(1, train.steps - train.warmup)
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return train.lr * warm * fall[train.schedule]


class Average:
    """权重的滑动平均（EMA）：检验、出样张、存下来的都用它，训练的权重不受影响。

    平均 <- 平均 + (1 - d)(权重 - 平均)，d = min(decay, (1 + n) / (10 + n))：开头走得快，
    不被起点拖住。decay 为 0 就什么也不做。
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float):
        self.live, self.decay = parameters, decay
        self.values = {n: p.detach().clone() for n, p in parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int):
        """第 step 步（从 1 数起）之后调用。"""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self.values.items():
            value.lerp_(self.live[name].detach(), 1 - decay)

    @contextmanager
    def swapped(self):
        """暂时换上平均的权重；离开时换回，一个比特也不差。"""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self):
        for name, value in self.values.items():
            live = self.live[name]
            kept = live.clone()  # 就地换：FSDP2 认的是这块内存，不是参数对象
            live.copy_(value)
            value.copy_(kept)
