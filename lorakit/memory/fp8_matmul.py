"""fp8 的矩阵乘法：冻住的权重只存一份，前向、反向都用它；两边逐行缩放，累加用 fp32。

W ≈ s C：C 是 fp8 的编码 (出, 入)，s 是每行的缩放 (出, 1)。前向 x Wᵀ = (x Cᵀ) sᵀ，缩放乘在结果的
各列上；反向 g W = (g sᵀ) C，缩放先乘进梯度，再把它逐行压成 fp8。所以同一份编码、同一份缩放，
两个方向都准。
fp8 的内核要求右边的矩阵沿着求和的方向排；反向时 C 不是，就在乘之前翻一份，乘完就放掉。
"""

from functools import cache

import torch
from torch import Tensor

FP8, MOST = torch.float8_e4m3fn, 448.0  # MOST：fp8 能表示的最大的数


def rows_to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """(M, K) -> fp8 的 (M, K) 与每行的缩放 (M, 1)。"""
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / MOST
    return (x / scale).to(FP8).contiguous(), scale


class Matmul(torch.autograd.Function):
    """y = x Wᵀ，W 是 codes (出, 入) 与每行的缩放 scale (出, 1)；梯度只给 x，为反向什么也不另存。"""

    @staticmethod
    def forward(ctx, x, codes, scale):
        ctx.save_for_backward(codes, scale)
        left, left_scale = rows_to_fp8(x.reshape(-1, x.shape[-1]))  # (..., K) -> (M, K)
        right = codes.view(FP8).t()
        if x.device.type == "cuda":
            out = torch._scaled_mm(
                left, right, left_scale, scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
            )
        else:  # 没有 fp8 内核的设备：舍入完全相同，只是乘法用 fp32
            out = left.float() @ right.float() * left_scale * scale.t()
        return out.to(x.dtype).view(*x.shape[:-1], len(codes))

    @staticmethod
    def backward(ctx, grad):
        codes, scale = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1]).float() * scale.t()
        out = backwards(*rows_to_fp8(flat), codes)
        return out.to(grad.dtype).view(*grad.shape[:-1], codes.shape[1]), None, None


@torch.library.custom_op("lorakit::fp8_backwards", mutates_args=())
def backwards(left: Tensor, left_scale: Tensor, codes: Tensor) -> Tensor:
    """fp8 的 left (M, N)、每行的缩放 (M, 1)，乘 codes (N, K) -> (M, K)。

    包成编译器不拆开的一个算子：翻好的那一份只在这里面，编译器不会把它留到反向。
    """
    if left.device.type != "cuda":
        return left.float() @ codes.view(FP8).float() * left_scale
    turned = turn(codes).view(FP8)
    one = _ones(codes.device, len(turned))
    return torch._scaled_mm(
        left, turned.t(), left_scale, one, out_dtype=torch.bfloat16, use_fast_accum=True
    )


@backwards.register_fake
def _(left, left_scale, codes):
    dtype = torch.bfloat16 if left.device.type == "cuda" else torch.float32
    return left.new_empty(left.shape[0], codes.shape[1], dtype=dtype)


@cache
def _ones(device: torch.device, length: int) -> Tensor:
    """(1, length) 个 1：右边的缩放已经乘进左边了，内核却一定要一份。"""
    return torch.ones(1, length, device=device)


def turn(codes: Tensor) -> Tensor:
    """一个字节一个数的 (N, K) -> (K, N)，按行排好。"""
    from torch.utils._triton import has_triton

    if not has_triton():  # Windows 上要另装
        return codes.t().contiguous()
    from lorakit.memory import turning

    return turning.turn(codes)
