"""torch.compile 与 CUDA 图在这里用不用得了；编译一块。"""

import os
import shutil
from collections.abc import Callable
from functools import wraps

import torch

from lorakit.files import cache_root

VARIANTS = 64  # 一种块最多编几份，PyTorch 原来是 8


def cannot_compile(device: torch.device) -> str:
    """torch.compile 在这台机器上为什么用不了；能用就是空的。只看缺什么，不真的编译。"""
    if device.type != "cuda":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except RuntimeError:
            return "没有 C++ 编译器，装上 g++ 就能用"
        return ""
    from torch.utils._triton import has_triton

    if not has_triton():
        return (
            "没有 Triton（Windows 上要另装与 torch 配套的 triton-windows），或显卡比 RTX 20 系还老"
        )
    named = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return "" if named or os.name == "nt" else "Triton 要 C 编译器，装上 gcc 就能用"


def keep_compiled():
    """编译好的代码与我们的缓存放在一起，下一次接着用；用户自己指定过地方，就听他的。"""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root() / "compiled"))


def compiled(forward: Callable) -> Callable:
    """编译一块的 forward；先把输入弄成一个样，否则编译器会为头一块单独再编一份。"""
    fast = torch.compile(forward)

    @wraps(forward)
    def run(*args, **kwargs):
        return fast(*map(_alike, args), **{key: _alike(value) for key, value in kwargs.items()})

    return run


def _alike(value):
    """词元 (B, L, D)：不是别的张量的视图，训练时都带梯度，像上一块的输出那样；其余原样。"""
    if not (isinstance(value, torch.Tensor) and value.dim() == 3 and value.is_floating_point()):
        return value
    learns = value.requires_grad or not torch.is_grad_enabled()
    if learns and value._base is None:
        return value
    return value.clone() if learns else value.clone().requires_grad_()


def can_replay(device: torch.device, processes: int) -> bool:
    """一步能不能录成 CUDA 图：几个进程要在步里通信，录不了。"""
    return device.type == "cuda" and processes == 1
