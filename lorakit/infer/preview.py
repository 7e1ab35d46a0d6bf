"""训练途中的样张。"""

import torch
from PIL import Image

from lorakit.config import Config
from lorakit.data.read import read_image
from lorakit.infer import pipeline
from lorakit.infer.draw import generate
from lorakit.infer.edit import edit
from lorakit.infer.fitting import seen
from lorakit.infer.prompts import remember


def preview(family, pipe, config: Config, dataset) -> list[Image.Image]:
    """训练途中的预览：每句 sample.prompts 一张；编辑就轮流改留出的控制图（没有留出就用训练的）。"""
    side = config.sample.size or config.data.resolution
    prompts = config.sample.prompts
    # 全量微调时 Transformer 是 fp32，别的部分是 bf16：和训练时一样，交给 autocast
    mixed = family.dtype != torch.float32
    with torch.autocast(family.device.type, family.dtype, enabled=mixed):
        controls = _controls(config, dataset)
        if controls is None:
            return generate(family, pipe, prompts, config.sample, (side, side))
        return edit(family, pipe, prompts, controls, config.sample, side)


def remember_preview(family, config: Config, dataset) -> bool:
    """显卡上，载入 Transformer 之前先编码好 `preview` 要用的；返回编码了没有。"""
    needed = pipeline.scarce(family) and bool(config.sample.prompts)
    if needed:
        size, controls = config.sample.size or config.data.resolution, _controls(config, dataset)
        controls = controls and [seen(family, pictures, size) for pictures in controls]
        remember(family, config.sample.guidance, config.sample.prompts, controls)
    return needed


def _controls(config: Config, dataset) -> list[list[Image.Image]] | None:
    if not dataset.edits:
        return None
    paired = [[i for i in some if i.record.controls] for some in (dataset.held, dataset.train)]
    items = paired[0] or paired[1]
    records = [items[i % len(items)].record for i in range(len(config.sample.prompts))]
    return [[read_image(path) for path in record.controls] for record in records]
