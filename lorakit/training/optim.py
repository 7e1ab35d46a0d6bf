"""优化器与滑动平均：优化器来自 torch、bitsandbytes 与 prodigyopt，这里只按设置挑选。"""

import math
import warnings
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from importlib import import_module

import torch

from lorakit.errors import ConfigError, LorakitWarning

PRODIGY_LR = 0.1  # Prodigy 的 lr 是倍数，常用 1；比这还小多半是照抄了 AdamW 的学习率


def build(parameters: Iterable[torch.nn.Parameter], train) -> torch.optim.Optimizer:
    """按 train.optimizer 造优化器。

    Raises:
        ConfigError: 要的库没有装，或学习率与优化器对不上。
    """
    parameters, kind = list(parameters), train.optimizer
    common = {"lr": train.lr, "weight_decay": train.weight_decay}
    if kind == "adamw8bit" and parameters[0].device.type != "cuda":
        # 同一份配置要能先在微型模型上试
        warnings.warn("没有 NVIDIA 显卡，adamw8bit 换成 adamw 来练。", LorakitWarning, stacklevel=3)
        kind = "adamw"
    if kind == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **common)
    if kind == "adamw8bit":
        return _module("bitsandbytes").optim.AdamW8bit(parameters, **common)
    if kind == "adafactor":
        # 第二个 eps：默认的会按权重的大小缩小学习率，LoRA 的 B 从零开始，就一步也走不动
        return torch.optim.Adafactor(parameters, eps=(None, 1.0), **common)
    if train.lr < PRODIGY_LR:
        raise ConfigError(
            f"train.lr：prodigy 自己找学习率，lr 只是倍数，应当是 1 左右，得到 {train.lr:g}。"
        )
    return _module("prodigyopt").Prodigy(
        parameters, use_bias_correction=True, safeguard_warmup=True, **common
    )


def lr_at(step: int, train) -> float:
    """第 step 步的学习率：先热身，再按 train.schedule 变化。"""
    warm = min(1.0, (step + 1) / train.warmup) if train.warmup else 1.0
    done = max(0, step - train.warmup) / max(1, train.steps - train.warmup)
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return train.lr * warm * fall[train.schedule]


def _module(name: str):
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"train.optimizer：这个优化器要用 {name}，还没有装。请运行 pip install {name}，"
            "或改用 adamw。"
        ) from error


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
