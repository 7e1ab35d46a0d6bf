"""把张量写成 safetensors：太大就分成几个文件。"""

import errno
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lorakit.memory.sharded import Tensors, split

LIMIT = 2 << 30  # 一个文件最多这么多字节：写的时候内存里只有一个文件的张量


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict | None = None):
    """写 safetensors；与别的张量共享内存的先复制，否则 safetensors 拒收。

    Raises:
        OSError: 磁盘满、写不进；safetensors 自己报的错不是 OSError，这里换回来。
    """
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        save_file(whole, path, metadata)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number)) from error


def sharded(stem: str, tensors: Tensors) -> dict[str, dict[str, torch.Tensor]]:
    """{名字: 张量} -> {文件名: 那个文件里的}：大的分成几个文件，照 diffusers 的名字。"""
    parts = split(tensors.items(), lambda item: item[1].numel() * item[1].element_size(), LIMIT)
    if len(parts) == 1:
        return {f"{stem}.safetensors": dict(tensors)}
    count = len(parts)
    names = [f"{stem}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    return {name: dict(part) for name, part in zip(names, parts, strict=True)}
