"""预训练各步共用的小零件：时钟、优化器、取数。"""

import math
import time

import numpy as np
import torch


class Clock:
    """训练进度：步数或时间，哪个先用完算哪个；学习率随它余弦下降，换一台机器也收得住。"""

    def __init__(self, steps: int, minutes: float):
        self.steps, self.seconds, self.start, self.step = steps, minutes * 60, time.time(), 0

    def progress(self) -> float:
        return max(self.step / self.steps, (time.time() - self.start) / self.seconds)

    def __iter__(self):
        while self.progress() < 1:
            yield self.step
            self.step += 1

    def lr(self, peak: float, warmup: int = 200) -> float:
        fall = 0.5 * (1 + math.cos(math.pi * min(1, self.progress())))
        return peak * min(1, (self.step + 1) / warmup) * fall

    def facts(self, **more) -> dict:
        """练了几步、几秒，和别的要记下的。"""
        return {"steps": self.step, **more, "seconds": round(time.time() - self.start)}


def to_device(pixels: np.ndarray, device) -> torch.Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) uint8 张量。"""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)


def set_lr(optimizer, lr: float):
    for group in optimizer.param_groups:
        group["lr"] = lr


def adamw(parameters) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


def checked_compile(step_loss, parameters: list, *batch):
    """编译一步的损失，并用一批真数据核对：梯度与不编译时相差太多，就退回不编译。

    torch 2.13 的 CPU inductor 曾把带切片权重的 bf16 卷积的梯度算错，损失却看不出来。
    """

    def gradient(function) -> torch.Tensor:
        function(*batch).backward()
        flat = [p.grad.flatten().float() for p in parameters if p.grad is not None]
        for p in parameters:
            p.grad = None
        return torch.cat(flat)

    fast = torch.compile(step_loss, dynamic=False)
    plain, compiled = gradient(step_loss), gradient(fast)
    if not plain.isfinite().all():
        raise FloatingPointError("第一步的梯度就有 NaN 或无穷大，练下去只会更糟")
    error = float((compiled - plain).norm() / plain.norm())
    print(f"编译核对：梯度相对误差 {error:.4f}", flush=True)
    return fast if error < 0.15 else step_loss
