"""推理：用 stock diffusers 管线画图，同一个种子画同一张图；开关 LoRA 做对照。"""

import math
from collections.abc import Sequence
from contextlib import contextmanager
from inspect import signature
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lorakit import full, lora, sampler
from lorakit.config import Config
from lorakit.config_groups import Sample
from lorakit.data import read_image
from lorakit.errors import ConfigError, LorakitError, WeightsError

LANCZOS = Image.Resampling.LANCZOS
BATCH = 8  # 一次画几张；只影响快慢，不影响结果


def open_pipeline(family, weights: Path | None = None):
    """打开家族的 stock 管线；给了 LoRA 或全量微调的结果就先核对、再用上。"""
    whole = full.find(weights) if weights is not None else None
    if whole is not None:
        full.check_fits(whole, family)
    wanted = whole or family.folder / "transformer"
    if family.transformer_folder != wanted:  # 上次打开的是另一份
        family.transformer_folder = wanted
        family.release("transformer")
    transformer = family.untouched()
    pipe = family.pipeline(transformer)
    pipe.set_progress_bar_config(disable=True)
    if weights is not None and whole is None:
        file = lora.find(weights)
        lora.check_fits(file, transformer)
        lora.put_on(pipe, file)
    return pipe


def generate(
    family,
    pipe,
    prompts: Sequence[str],
    settings: Sample,
    size: tuple[int, int],
    negative: str = "",
) -> list[Image.Image]:
    """每句提示词画一张；第 i 张的种子是 settings.seed + i，与一次画几张无关。

    Args:
        size: (宽, 高)，像素，必须是 family.multiple 的倍数。
        negative: 负面提示词；空的就和训练时丢掉描述一样。
    """
    check_size(family, size)
    if family.controls[0]:
        raise ConfigError(f"{family.name} 要先有一张图才能改：用 lorakit edit 图.png “怎么改”。")
    if negative.strip():
        _check_negative(family, pipe, settings.guidance)
    images: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        seeds = [
            torch.Generator("cpu").manual_seed(settings.seed + start + i) for i in range(len(part))
        ]
        arguments = family.sample_arguments(settings.guidance, len(part))
        if negative.strip():
            arguments["negative_prompt"] = [negative] * len(part)
        drawn = pipe(
            prompt=part,
            width=size[0],
            height=size[1],
            num_inference_steps=settings.steps,
            generator=seeds,
            output_type="np",
            **arguments,
        ).images
        check_finite(drawn, part)
        images += pipe.image_processor.numpy_to_pil(drawn)
    return images


def _check_negative(family, pipe, guidance: float):
    """负面提示词要底模会看、引导又大于 1 才起作用，否则说清楚，不悄悄忽略。"""
    if family.embedded_guidance or "negative_prompt" not in signature(pipe.__call__).parameters:
        raise ConfigError(f"{family.name} 不看负面提示词：去掉它，把要的东西写进提示词里。")
    if guidance <= 1:
        raise ConfigError(
            f"引导是 {guidance:g}，负面提示词不起作用：把引导调到 1 以上（常用 3 到 7），或去掉它。"
        )


def edit(
    family,
    pipe,
    prompts: Sequence[str],
    controls: Sequence[Sequence[Image.Image]],
    settings: Sample,
    size: tuple[int, int] | int,
) -> list[Image.Image]:
    """照每句指令改图：controls[i] 是第 i 句的一到三张控制图；第 i 张的种子是 settings.seed + i。

    stock 编辑管线总把图放大到一百万像素，微型模型受不了，所以这里自己走欧拉步；
    时间、引导与 stock 的相同（有测试逐张对照）。

    Args:
        size: (宽, 高)，像素，必须是 family.multiple 的倍数；一个数就是面积的边长，形状随最后一张
            控制图。控制图缩放到一样的面积。
    """
    check_size(family, size if isinstance(size, tuple) else (size, size))
    area = math.prod(size) if isinstance(size, tuple) else size**2
    side, unit = round(math.sqrt(area) / family.multiple) * family.multiple, family.multiple
    jobs = []
    for i, (prompt, pictures) in enumerate(zip(prompts, controls, strict=True)):
        check_controls(family, len(pictures))
        fitted = [p.resize(near_shape(p.size, side, unit), LANCZOS) for p in pictures]
        jobs.append((settings.seed + i, prompt, pictures, fitted))
    images: list[Image.Image] = []
    for shapes, group in groupby(jobs, key=lambda job: [picture.size for picture in job[3]]):
        same = list(group)  # 控制图一样大的才能拼成一批
        wanted = size if isinstance(size, tuple) else shapes[-1]
        for start in range(0, len(same), BATCH):
            seeds, said, seen, fitted = zip(*same[start : start + BATCH], strict=True)
            how = (settings.steps, settings.guidance)
            images += sampler.edit(
                family, pipe.transformer, said, seen, fitted, seeds, wanted, *how
            )
    return images


def check_finite(drawn: np.ndarray, prompts: Sequence[str]):
    """画出来的每张图 (N, H, W, 3) 都要是有限的数；有 NaN 的存下来只会是黑图。

    Raises:
        LorakitError: 哪一句画坏了、怎么办。
    """
    bad = [said for said, image in zip(prompts, drawn, strict=True) if not np.isfinite(image).all()]
    if bad:
        raise LorakitError(
            f"画“{bad[0]}”得到了 NaN 或无穷大（存下来会是黑图）。常见原因："
            "学习率太大，权重已经坏了；或 fp16 溢出。"
            "请换一个更早的检查点，或写 model.precision=bf16（不支持就用 fp32）。"
        )


def near_shape(size: tuple[int, int], side: int, unit: int) -> tuple[int, int]:
    """与 size 形状最接近、面积约 side²、两边都是 unit 倍数的 (宽, 高)；与 stock 编辑管线相同。"""
    width = math.sqrt(side**2 * size[0] / size[1])
    height = width * size[1] / size[0]
    return tuple(max(unit, round(edge / unit) * unit) for edge in (width, height))


def preview(family, pipe, config: Config, dataset) -> list[Image.Image]:
    """训练途中的预览：每句 sample.prompts 一张；编辑就轮流改留出的控制图（没有留出就用训练的）。"""
    side = config.sample.size or config.data.resolution
    prompts = config.sample.prompts
    # 全量微调时 Transformer 是 fp32，别的部分是 bf16：和训练时一样，交给 autocast
    mixed = family.dtype != torch.float32
    with torch.autocast(family.device.type, family.dtype, enabled=mixed):
        if not family.controls[1]:
            return generate(family, pipe, prompts, config.sample, (side, side))
        items = dataset.held or dataset.train
        records = [items[i % len(items)].record for i in range(len(prompts))]
        controls = [[read_image(path) for path in record.controls] for record in records]
        return edit(family, pipe, prompts, controls, config.sample, side)


def check_controls(family, count: int):
    """控制图的张数要合家族的胃口。"""
    least, most = family.controls
    if not most:
        raise ConfigError(
            f"{family.name} 不能改图，它只会从文字画起。要改图请用编辑模型，"
            "例如 --set model.family=qwen-image-edit --set model.path=Qwen/Qwen-Image-Edit。"
        )
    if not least <= count <= most:
        wanted = f"{least} 张" if least == most else f"{least} 到 {most} 张"
        more = "" if most > 1 else "要一次看几张，请换 Qwen/Qwen-Image-Edit-2509。"
        raise ConfigError(f"这个底模一次看 {wanted}图，得到 {count} 张。{more}")


def check_size(family, size: tuple[int, int]):
    """宽和高要是家族的倍数，否则说出最近的合适尺寸。"""
    unit = family.multiple
    if any(side % unit or side <= 0 for side in size):
        near = "x".join(str(max(unit, round(side / unit) * unit)) for side in size)
        raise ConfigError(
            f"图的尺寸 {size[0]}x{size[1]} 不行：宽和高都要是 {unit} 的倍数，最近的是 {near}。"
        )


@contextmanager
def without_lora(transformer):
    """暂时关掉 LoRA，离开时再打开；不必重新载入任何权重。"""
    transformer.disable_lora()
    try:
        yield
    finally:
        transformer.enable_lora()


def set_strength(pipe, strength: float):
    """LoRA 的强度：0 等于没有，1 是训练时的样子，1.5 更夸张。"""
    names = list(getattr(pipe.transformer, "peft_config", {}))
    if not names:
        raise WeightsError(
            "这条管线上没有 LoRA，强度无从设起。先用 open_pipeline(family, LoRA文件) 打开。"
        )
    pipe.set_adapters(names, [strength] * len(names))


def compare(
    family, pipe, prompts, settings: Sample, size, controls=None
) -> tuple[list[Image.Image], list[Image.Image]]:
    """同样的提示词与种子，关掉 LoRA 画一遍、打开画一遍；给了 controls 就是改图（见 edit）。"""
    if not getattr(pipe.transformer, "peft_config", None):
        raise WeightsError(
            "这条管线上没有可以开关的 LoRA。全量微调改的是底模自己，"
            "要比较就用同一个种子分别 lorakit generate 底模和结果。"
        )

    def draw():
        if controls is None:
            return generate(family, pipe, prompts, settings, size)
        return edit(family, pipe, prompts, controls, settings, size)

    with without_lora(pipe.transformer):
        before = draw()
    return before, draw()
