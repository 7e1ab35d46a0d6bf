"""显存与速度：每一招一个函数，用不用由设置决定。"""

import torch
from torch import nn


def prepare(transformer: nn.Module, settings) -> nn.Module:
    """按 memory 一组设置改造 Transformer，就地修改并返回。"""
    if settings.checkpointing:
        transformer.enable_gradient_checkpointing()
    if settings.compile:
        # 只编译重复的块：编译一次，几十块共用，比编译整个模型快得多
        transformer.compile_repeated_blocks(dynamic=False)
    return transformer


def pick_device() -> torch.device:
    """有显卡用显卡，没有就用 CPU。"""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """model.precision -> 精度；auto 在支持 bf16 的显卡上用 bf16，别处用 fp32。"""
    names = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if precision != "auto":
        return names[precision]
    modern = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return names["bf16" if modern else "fp32"]
