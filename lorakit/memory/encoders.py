"""文本编码器怎么放：显卡放得下就原样放；放不下，内存大的机器放在内存里，用到哪块搬哪块；
内存小的（不超过 32 GB）边读边压成 8 位，再放不下就 4 位，直接放到显卡上，内存里从不会有整份。
"""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from lorakit.memory import loading
from lorakit.memory.quantize import NF4_BYTES, FrozenLinear, nf4_class

SMALL_HOST = 35e9  # 字节；标着 32 GB 的内存（32 GiB）也算小的
ROOM = 2 << 30  # 字节；显卡上给中间结果留的
NUMBER = {"int8": 1.0, "nf4": NF4_BYTES}  # 压过的每个数几字节


class Size(NamedTuple):
    """几个编码器一共几个数，其中能压的几个。"""

    whole: int
    packed: int

    @classmethod
    def of(cls, encoders: Iterable[nn.Module]) -> "Size":
        rows = [
            (
                sum(value.numel() for value in one.parameters()),
                sum(one.get_submodule(path).weight.numel() for path in packable(one)),
            )
            for one in encoders
        ]
        return cls(*(sum(column) for column in zip(*rows, strict=True)))

    def bytes(self, kind: str, itemsize: int) -> float:
        """照 kind 放，占多少字节；没压的每个数 itemsize 字节。"""
        each = NUMBER.get(kind, itemsize)
        return (self.whole - self.packed) * itemsize + self.packed * each


def packable(encoder: nn.Module) -> list[str]:
    """会被压的线性层的名字，和 transformers 的 bitsandbytes 一样：出口与要 fp32 的不压。"""
    head, precise = encoder.get_output_embeddings(), set(encoder._keep_in_fp32_modules or ())
    return [
        path
        for path, module in encoder.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and precise.isdisjoint(path.split("."))
    ]


def kept_as(size: Size, itemsize: int, capacity: float, host: float) -> str:
    """该怎么放："none"（原样，在显卡上）、"moved"（在内存里，随用随搬）、"int8"、"nf4"。

    Args:
        itemsize: 没压的每个数几字节。
        capacity: 显卡能用的字节数。
        host: 机器的内存一共多少字节。
    """
    if size.bytes("none", itemsize) + ROOM <= capacity:
        return "none"
    if host > SMALL_HOST or find_spec("bitsandbytes") is None:
        return "moved"
    fits = (kind for kind in NUMBER if size.bytes(kind, itemsize) + ROOM <= capacity)
    return next(fits, "moved")


def read(cls: type, folder: Path, part: str, kind: str, dtype: torch.dtype, device) -> nn.Module:
    """folder / part 里的编码器，由 transformers 一层层读上 device，读一层压一层。

    8 位的照我们自己的算法算（解码成 dtype 再乘）：bitsandbytes 的要先把输入换成 fp16，
    有的模型的中间结果比 fp16 能表示的还大。
    """
    from transformers import BitsAndBytesConfig

    asked = {
        "int8": {"load_in_8bit": True},
        "nf4": {
            "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_use_double_quant": True,
        },
    }  # fmt: skip
    made = loading.whole_from(
        cls, folder, part, dtype=dtype, device_map={"": device},
        quantization_config=BitsAndBytesConfig(**asked[kind]),
    )  # fmt: skip
    if kind == "int8":
        for path in packable(made):
            layer = made.get_submodule(path)
            codes, most = layer.weight.CB, layer.weight.SCB  # 每行的编码、每行最大的数
            made.set_submodule(path, FrozenLinear.of_int8(codes, most, layer.bias))
    return made


def fill(shell: nn.Module, source: loading.Read, kind: str, device) -> nn.Module:
    """给没有权重的编码器造上权重，和 `read` 一样压；排练用的，source 给什么就是什么。"""
    packed = set(packable(shell))
    for path, module in list(shell.named_modules()):
        if path not in packed:
            continue
        weight = source(f"{path}.weight", module.weight)
        bias = module.bias
        if bias is not None:
            bias = nn.Parameter(source(f"{path}.bias", bias).to(device), requires_grad=False)
        make = FrozenLinear if kind == "int8" else nf4_class()
        shell.set_submodule(path, make(weight.to(device), bias, kind))
    return loading.fill(shell, source, device)
