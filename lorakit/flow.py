"""方法本身：加噪、插值、速度、时间偏移、损失、欧拉步；只有数学，不认识任何模型。

约定：x 是归一化的潜变量 (B, C, h, w)；t 在 [0, 1]，1 是纯噪声；
x_t = (1-t) x0 + t eps；v = eps - x0。
来源：Lipman 等 2023（flow matching）；Esser 等 2024（logit-normal 与 shift）。
教程：notebooks/01_concepts.ipynb
"""

import math

import torch


def _like(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return t.view(-1, *[1] * (x.dim() - 1)).to(x)  # (B,) -> (B, 1, 1, 1)


def sample_t(count: int, density: str, shift: float, generator: torch.Generator) -> torch.Tensor:
    """抽 count 个时间步，(count,)；density 是 logit-normal 或 uniform，再按 shift 推向高噪声。"""
    if density == "uniform":
        u = torch.rand(count, generator=generator)
    else:
        u = torch.sigmoid(torch.randn(count, generator=generator))
    return shift_t(u, shift)


def shift_t(t: torch.Tensor, shift: float) -> torch.Tensor:
    """时间偏移：shift > 1 把 t 推向 1（多练构图），= 1 不动。Esser 等 2024 式 (23)。"""
    return shift * t / (1 + (shift - 1) * t)


def add_noise(x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """干净图与噪声按 t 混合：t = 0 是原图，t = 1 是纯噪声。"""
    t = _like(t, x0)
    return (1 - t) * x0 + t * noise


def velocity(x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """从图指向噪声的速度，模型要学的目标；沿直线走，所以处处一样。"""
    return noise - x0


def loss(
    predicted: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """每张图的均方误差，(B,)；用 fp32 算，免得 bf16 累加丢精度。

    Args:
        weight: (B, 1, h, w)，每处算多少；按权重平均，所以主体大小不同的图，损失仍然可比。
    """
    error = (predicted.float() - target.float()).pow(2)
    if weight is None:
        return error.flatten(1).mean(1)
    weight = weight.expand_as(error)
    return (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-6)


def weight(t: torch.Tensor, kind: str) -> torch.Tensor:
    """各个 t 的损失份量，(B,)。Esser 等 2024 附录：sigma_sqrt 是 t⁻²，cosmap 偏重中间段。"""
    if kind == "sigma_sqrt":
        return t.clamp(min=0.05) ** -2  # 太小的 t 份量会无穷大
    if kind == "cosmap":
        return 2 / (math.pi * (1 - 2 * t + 2 * t**2))
    return torch.ones_like(t)


def euler_step(
    x: torch.Tensor, v: torch.Tensor, t: torch.Tensor, t_next: torch.Tensor
) -> torch.Tensor:
    """沿速度走一小步：从 t 到 t_next（更小，噪声更少）。"""
    return x + _like(t_next - t, x) * v


def guide(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    """无分类器引导（CFG）：从“没有提示词”朝“有提示词”的方向多走 scale 倍。Ho 与 Salimans 2022。"""
    return uncond + scale * (cond - uncond)


EVAL_T = tuple((i + 0.5) / 8 for i in range(8))  # 检验时用的 8 个固定时间步
