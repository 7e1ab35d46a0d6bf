"""用什么设备、什么精度，显卡上还剩多少。"""

import ctypes
import os
import sys

import torch

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # PyTorch 怎么管显存的环境变量
CONTEXT = int(0.6 * 2**30)  # 字节；CUDA 自己在每块显卡上占的
_MAPPABLE = 102  # cuda.h：CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED


def grow_segments():
    """让 PyTorch 把显存要成能接着长的段：大小不一的图、样张、录好的 CUDA 图轮着用，也不会切碎。

    要在头一次用显卡之前；用户自己设过就听他的，驱动不会的（Windows、有的云上切开的显卡）不设。
    """
    if sys.platform == "linux" and not any(name in os.environ for name in ALLOCATOR):
        if _can_map():
            os.environ[ALLOCATOR[1]] = "expandable_segments:True"


def _can_map() -> bool:
    """每块显卡的驱动都能自己安排地址吗。"""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count, able = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return False
    for number in range(count.value):
        if driver.cuDeviceGetAttribute(ctypes.byref(able), _MAPPABLE, number) or not able.value:
            return False
    return count.value > 0


def free_memory(device: torch.device) -> int:
    """显卡上还能再用多少字节：没分出去的，加上 PyTorch 攒着没用的；给进程设过上限就按上限算。"""
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    free = min(free, _limit(device, total) - reserved)
    return free + reserved - torch.cuda.memory_allocated(device)


def whole_memory(device: torch.device) -> int:
    """显卡一共能用多少字节，不管此刻谁占着：除去 CUDA 自己的；给进程设过上限就按上限算。"""
    total = torch.cuda.get_device_properties(device).total_memory
    return min(total - CONTEXT, _limit(device, total))


def _limit(device: torch.device, total: int) -> int:
    if hasattr(torch.cuda, "get_per_process_memory_fraction"):  # torch 2.8 起
        return int(total * torch.cuda.get_per_process_memory_fraction(device.index))
    return total


def name_of(device: torch.device) -> str:
    """给人看的名字：显卡的型号，或 CPU。"""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def pick_device() -> torch.device:
    """有显卡用显卡，没有就用 CPU。"""
    if torch.cuda.is_available():
        grow_segments()
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """model.precision -> 精度；auto 在支持 bf16 的显卡上用 bf16，别处用 fp32。"""
    names = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if precision != "auto":
        return names[precision]
    return names["bf16" if has_bf16(device) else "fp32"]


def loss_scale(dtype: torch.dtype) -> float:
    """反向之前损失先乘多少：fp16 最小只到 6e-8，大图的梯度会变成 0；更新之前再除回来。"""
    return 4096.0 if dtype == torch.float16 else 1.0


def has_bf16(device: torch.device) -> bool:
    """显卡真有 bf16 的计算单元；T4 那样由 PyTorch 模拟的不算。"""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
