"""遮罩缩到潜变量的大小，和图一样裁切、翻转；按遮罩的内容缓存。"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lorakit.data.crops import View, show
from lorakit.data.mask import read_alpha, read_mask
from lorakit.data.record import Record
from lorakit.files import digest

RULE = 2  # 读 _mask 图的办法一变就加 1；图的缓存不受它影响


def weigh(mask: Image.Image, size: tuple[int, int], view: View, digest: str) -> torch.Tensor:
    """灰度遮罩 -> (1, h, w)、0 到 1：每个潜变量格子里白的比例（按面积平均）。

    Args:
        size: 潜变量的 (宽, 高)。
        digest: 它所属的图的内容哈希，裁切由它决定，才和图裁在同一处。
    """
    small = show(mask.convert("F"), size, view, digest, Image.Resampling.BOX)
    return torch.from_numpy(np.array(small, np.float32)[None] / 255)


def plan(
    shown: Sequence[tuple[Record, View]],
    sizes: Sequence[tuple[int, int]],
    masks: Mapping[Path, Path],
    kind: str,
):
    """要准备哪些遮罩：(有遮罩的下标, 各由什么算出, 函数 下标列表 -> [{"mask": (1, h, w)}])。

    Args:
        sizes: 每种样子的潜变量的 (宽, 高)。
        masks: 图 -> 从哪个文件读它的遮罩。
        kind: data.mask，alpha 或 file。
    """
    chosen = [i for i, (record, _) in enumerate(shown) if record.path in masks]
    fields = []
    for i in chosen:
        record, view = shown[i]
        facts = {"kind": kind, "picture": record.digest}
        facts |= {"rule": RULE} if kind == "file" else {}
        facts["mask"] = digest(masks[record.path])
        fields.append({**facts, "size": list(sizes[i]), **view.fields()})

    def encode(batch: list[int]) -> list[dict]:
        results = []
        for j in batch:
            record, view = shown[chosen[j]]
            path = masks[record.path]
            mask = read_alpha(path) if kind == "alpha" else read_mask(path, record.path)
            results.append({"mask": weigh(mask, fields[j]["size"], view, record.digest)})
        return results

    return chosen, fields, encode
