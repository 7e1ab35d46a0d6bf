"""翻转一个字节一个数的矩阵：Triton 写的内核，读、写都是整段整段的。"""

import torch
import triton
from torch import Tensor
from triton import language as tl

SIDE, WARPS = 128, 8


@triton.jit
def _turn(source, target, rows, columns, side: tl.constexpr):
    r = tl.program_id(0) * side + tl.arange(0, side)
    c = tl.program_id(1) * side + tl.arange(0, side)
    inside = (r[:, None] < rows) & (c[None, :] < columns)
    tile = tl.load(source + r[:, None] * columns + c[None, :], mask=inside)
    tl.store(target + c[:, None] * rows + r[None, :], tl.trans(tile), mask=tl.trans(inside))


def turn(codes: Tensor) -> Tensor:
    """(N, K) 一个字节的整数 -> (K, N)，按行排好。"""
    rows, columns = codes.shape
    target = codes.new_empty(columns, rows)
    grid = (triton.cdiv(rows, SIDE), triton.cdiv(columns, SIDE))
    with torch.cuda.device(codes.device):
        _turn[grid](codes, target, rows, columns, side=SIDE, num_warps=WARPS)
    return target
