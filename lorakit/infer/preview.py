"""训练途中的样张。"""

import hashlib
import json
from collections.abc import Sequence

import torch
from PIL import Image

from lorakit.config import Config
from lorakit.data.read import read_image
from lorakit.data.record import Record
from lorakit.data.trigger import shared_opening, shared_word, without
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


def columns(config: Config, dataset) -> list[str]:
    """`preview` 的每一张画的是什么：哪句话、怎样画、改哪张图，各一个指纹；一样才比得。"""
    how = config.sample.model_dump(mode="json", exclude={"prompts", "every", "count"})
    pairs = _controlled(config, dataset) or [None] * len(config.sample.prompts)
    seen = [
        [prompt, how, record and list(record.control_digests)]
        for prompt, record in zip(config.sample.prompts, pairs, strict=True)
    ]
    return [hashlib.sha256(json.dumps(one).encode()).hexdigest()[:16] for one in seen]


def with_own_prompts(config: Config, dataset) -> Config:
    """没有写 sample.prompts 而 sample.every 大于 0：从描述里挑几句补上，最后一句去掉触发词。"""
    sample = config.sample
    if sample.prompts or not sample.every:
        return config
    records = [item.record for item in dataset.held or dataset.train]
    if not records[0].controls:  # 改图的题要配得上自己的控制图，次序不能动
        records = [item.record for item in (*dataset.held, *dataset.train)]
    said = [records[i % len(records)].caption for i in range(sample.count)]
    others = [item.record.caption for item in dataset.prior]
    whole = [item.record.caption for item in (*dataset.train, *dataset.held)]
    word = config.data.trigger or shared_word(whole, others)
    plain = without(said[-1], shared_opening(whole), word)
    if len(said) > 1 and plain and not records[0].controls:
        said[-1] = plain
    return config.model_copy(update={"sample": sample.model_copy(update={"prompts": said})})


def cost(config: Config, family, start: int = 0) -> str:
    """样张什么时候画、画几张、约合几个训练步；不画就说怎么画。

    一张图在训练里要算一遍前向和两遍那么多的反向；引导要把每一步算两遍。

    Args:
        start: 从第几步接着练；没有 LoRA 时的样子只在从头练时画。
    """
    sample, train = config.sample, config.train
    if not sample.prompts:
        return "不画样张：想看着它学，写 sample.every=100。"
    middle = range(sample.every, train.steps, sample.every) if sample.every else ()
    first = () if start else (0,)
    later = (step for step in middle if step > start)
    rounds: Sequence[int] = (*first, *later, max(start, train.steps))
    guided = sample.guidance > 1 and not family.embedded_guidance
    count = len(rounds) * len(sample.prompts)
    passes = count * sample.steps * (1 + guided)
    same = passes / (3 * train.batch_size * train.grad_accum)
    shown = "、".join(map(str, rounds[:3])) + (
        "……" if len(rounds) > 4 else "、" * (len(rounds) > 3)
    )
    shown += f"{rounds[-1]}" if len(rounds) > 3 else ""
    each = "各" * (len(rounds) > 1)
    return (
        f"样张：{len(sample.prompts)} 句，第 {shown} 步{each}画一遍，共 {count} 张，"
        f"约合 {same:.0f} 个训练步的时间；不要就写 sample.prompts=[] 和 sample.every=0。"
    )


def remember_preview(family, config: Config, dataset) -> bool:
    """显卡上，载入 Transformer 之前先编码好 `preview` 要用的；返回编码了没有。"""
    needed = pipeline.scarce(family) and bool(config.sample.prompts)
    if needed:
        size, controls = config.sample.size or config.data.resolution, _controls(config, dataset)
        controls = controls and [seen(family, pictures, size) for pictures in controls]
        remember(family, config.sample.guidance, config.sample.prompts, controls)
    return needed


def _controls(config: Config, dataset) -> list[list[Image.Image]] | None:
    records = _controlled(config, dataset)
    if records is None:
        return None
    return [[read_image(one, config.data.clear) for one in record.controls] for record in records]


def _controlled(config: Config, dataset) -> list[Record] | None:
    """改图的：每句提示词改哪一条的控制图；不是改图的就是 None。"""
    if not dataset.edits:
        return None
    paired = [[i for i in some if i.record.controls] for some in (dataset.held, dataset.train)]
    items = paired[0] or paired[1]
    return [items[i % len(items)].record for i in range(len(config.sample.prompts))]
