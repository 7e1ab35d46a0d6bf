"""推理：用 stock diffusers 管线画图，同一个种子画同一张图；开关 LoRA 做对照。"""

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from lorakit import lora
from lorakit.config import Sample
from lorakit.errors import ConfigError, WeightsError

BATCH = 8  # 一次画几张；只影响快慢，不影响结果


def open_pipeline(family, weights: Path | None = None):
    """打开家族的 stock 管线；给了 LoRA 文件就先核对、再挂上。"""
    transformer = family.load("transformer")
    pipe = family.pipeline(transformer)
    pipe.set_progress_bar_config(disable=True)
    if weights is not None:
        file = lora.find(weights)
        lora.check_fits(file, transformer)
        pipe.load_lora_weights(file.parent, weight_name=file.name)
    return pipe


def generate(
    family, pipe, prompts: Sequence[str], settings: Sample, size: tuple[int, int]
) -> list[Image.Image]:
    """每句提示词画一张；第 i 张的种子是 settings.seed + i，与一次画几张无关。

    Args:
        size: (宽, 高)，像素，必须是 family.multiple 的倍数。
    """
    check_size(family, size)
    images: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        seeds = [
            torch.Generator("cpu").manual_seed(settings.seed + start + i) for i in range(len(part))
        ]
        images += pipe(
            prompt=part,
            width=size[0],
            height=size[1],
            num_inference_steps=settings.steps,
            generator=seeds,
            **family.sample_arguments(settings.guidance, len(part)),
        ).images
    return images


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
    family, pipe, prompts, settings: Sample, size
) -> tuple[list[Image.Image], list[Image.Image]]:
    """同样的提示词与种子，关掉 LoRA 画一遍、打开画一遍。"""
    with without_lora(pipe.transformer):
        before = generate(family, pipe, prompts, settings, size)
    return before, generate(family, pipe, prompts, settings, size)
