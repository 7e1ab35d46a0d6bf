"""torch.compile 与 CUDA 图在这里用不用得了；编译一块。"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import torch
from torch._functorch import config as functorch
from torch.utils import _pytree as pytree

from lorakit.files import cache_root

OWN_BACKWARD = "autograd_cache_allow_custom_autograd_functions"
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
    # 压过的层自己写反向，编译器平常不存这样的块；存的时候键里有前向与反向的内容，改了就不用旧的
    if hasattr(functorch, OWN_BACKWARD):  # PyTorch 2.6 还没有
        setattr(functorch, OWN_BACKWARD, True)


class Shapes:
    """每种块的输入哪几维会变：不编译先走几遍看出来，编译时就把这几维写成不定长。

    不先看，编译器照头一种形状编一份定长的，图变了大小改编一份，描述变了长短再改编一份。
    """

    def __init__(self):
        self.noting = False
        self.sizes: dict[tuple[type, int], list[set[int]]] = {}  # 哪种块的第几个输入 -> 各维见过的

    @contextmanager
    def look(self) -> Iterator[None]:
        """这期间只看不编：块照原来的样子走。"""
        self.noting = True
        try:
            yield
        finally:
            self.noting = False

    def note(self, kind: type, given: list):
        for place, value in enumerate(given):
            if isinstance(value, torch.Tensor):
                seen = self.sizes.setdefault((kind, place), [set() for _ in value.shape])
                for one, size in zip(seen, value.shape, strict=False):
                    one.add(size)

    def mark(self, kind: type, given: list):
        for place, value in enumerate(given):
            if not isinstance(value, torch.Tensor):
                continue
            for axis, seen in enumerate(self.sizes.get((kind, place), ())[: value.dim()]):
                if len(seen) > 1:
                    torch._dynamo.maybe_mark_dynamic(value, axis)


def compiled(forward: Callable, shapes: Shapes) -> Callable:
    """编译一块的 forward；先把输入弄成一个样，否则编译器会为头一块单独再编一份。"""
    fast, kind = torch.compile(forward), type(forward.__self__)

    @wraps(forward)
    def run(*args, **kwargs):
        if shapes.noting:
            shapes.note(kind, pytree.tree_leaves((args, kwargs)))
            return forward(*args, **kwargs)
        given = tuple(map(_alike, args)), {key: _alike(value) for key, value in kwargs.items()}
        shapes.mark(kind, pytree.tree_leaves(given))
        return fast(*given[0], **given[1])

    return run


def _alike(value):
    """词元 (B, L, D)：挨着排的、不是别的张量的视图，训练时都带梯度；其余原样。

    FLUX 的单流块把图文接成一条再切开，切出来的两段步幅不同，一批只有一张时 is_contiguous 也看不出。
    """
    if not (isinstance(value, torch.Tensor) and value.dim() == 3 and value.is_floating_point()):
        return value
    learns = value.requires_grad or not torch.is_grad_enabled()
    _, length, width = value.shape
    if learns and value._base is None and value.stride() == (length * width, width, 1):
        return value
    made = value.clone(memory_format=torch.contiguous_format)
    return made if learns else made.requires_grad_()


def can_replay(device: torch.device, processes: int) -> bool:
    """一步能不能录成 CUDA 图：几个进程要在步里通信，录不了。"""
    return device.type == "cuda" and processes == 1
