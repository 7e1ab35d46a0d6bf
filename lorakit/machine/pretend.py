"""排练的场地：只许用这么多显存、自己的缓存、像新开的进程；一次次前向的时刻。"""

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from lorakit.errors import ConfigError
from lorakit.machine import estimate
from lorakit.machine.estimate import GIB
from lorakit.memory import devices


@contextmanager
def limited(tier: float | None, device: torch.device) -> Iterator[float | None]:
    """假装是一块标着 tier GB 的显卡；给出能用的显存，GiB，没有显卡是 None。

    Raises:
        ConfigError: 没有显卡，或比这块卡还大。
    """
    if device.type != "cuda":
        if tier is not None:
            raise ConfigError("--tier：要有 NVIDIA 显卡才能假装成小一点的卡；这里没有。")
        yield None
        return
    total, wanted = torch.cuda.mem_get_info(device)[1] / GIB, None
    if tier is not None:
        wanted = estimate.usable(tier)
        if not 0 < wanted <= total:
            raise ConfigError(f"--tier：这块显卡一共 {total:.0f} GiB，不能当成 {tier:g} GB 的。")
    share = wanted / total if wanted else 1.0
    torch.cuda.set_per_process_memory_fraction(share, device.index)
    try:
        yield wanted or devices.free_memory(device) / GIB
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device.index)


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """随机权重编码出来的，别混进真的缓存。"""
    before = os.environ.get("LORAKIT_CACHE")
    os.environ["LORAKIT_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("LORAKIT_CACHE")
        if before is not None:
            os.environ["LORAKIT_CACHE"] = before


def fresh(device: torch.device):
    """像新开一个进程：放掉的模型、编译好的代码、显存都还回去。"""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def forwards(transformer: nn.Module, device: torch.device) -> Iterator[list[float]]:
    """记下 Transformer 每次前向开始的时刻，秒；显卡上的用它自己的时钟，离开时才算出来。"""
    gpu, marks, times = device.type == "cuda", [], []

    def note(*_):
        marks.append(torch.cuda.Event(enable_timing=True) if gpu else time.perf_counter())
        if gpu:
            marks[-1].record()

    handle = transformer.register_forward_pre_hook(note)
    try:
        yield times
    finally:
        handle.remove()
        if gpu and marks:
            torch.cuda.synchronize(device)
            times += [marks[0].elapsed_time(mark) / 1000 for mark in marks]
        else:
            times += marks
