"""FSDP2 切开的张量：取自己的一份、拼成完整的、照别人的样子切。"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

Tensors = Mapping[str, torch.Tensor]


def whole(value: torch.Tensor) -> torch.Tensor:
    """FSDP2 切开的张量拼回整个（各进程要一起调用）；没切的原样返回。"""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(value: torch.Tensor) -> torch.Tensor:
    """FSDP2 切开的张量在这个进程里的那一份，不复制；没切的原样返回。"""
    return value.to_local() if isinstance(value, DTensor) else value


def split(items: Iterable, size: Callable, most: int) -> list[list]:
    """依次分成几份，每份的 size 加起来不超过 most（单个更大的自成一份）。"""
    parts, total = [[]], 0
    for item in items:
        if parts[-1] and total + size(item) > most:
            parts.append([])
            total = 0
        parts[-1].append(item)
        total += size(item)
    return parts


def shared_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """把整个的张量切成和 like 一样的份；like 没切（或形状不同）就原样返回。不通信。"""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
