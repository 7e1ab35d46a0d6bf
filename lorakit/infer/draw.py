"""画图：提示词 -> 图，走 stock diffusers 管线；同一个种子画同一张图。"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from lorakit.config.groups import Sample
from lorakit.errors import ConfigError, LorakitError
from lorakit.infer.checks import check_finite, check_negative, check_size
from lorakit.infer.decoding import fit_vae
from lorakit.infer.prompts import recall

BATCH = 8  # 一次画几张；只影响快慢，不影响结果


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
        check_negative(family, pipe, settings.guidance)
    fit_vae(family, math.prod(size))
    images: list[Image.Image] = []
    # 编码好的一张张画：显存紧才先编码
    count = BATCH if family.stock_batches and not recall(family, prompts) else 1
    for start in range(0, len(prompts), count):
        part = list(prompts[start : start + count])
        numbers = range(settings.seed + start, settings.seed + start + len(part))
        seeds = [torch.Generator("cpu").manual_seed(number) for number in numbers]
        drawn = pipe(
            **_said(family, pipe, part, settings.guidance, negative),
            width=size[0],
            height=size[1],
            num_inference_steps=settings.steps,
            generator=seeds,
            output_type="np",
        ).images
        check_finite(drawn, part)
        images += pipe.image_processor.numpy_to_pil(drawn if family.clear else _on_white(drawn))
    return images


def _on_white(drawn: np.ndarray) -> np.ndarray:
    """画出来的 (N, H, W, C)，[0, 1]：有透明通道的，透明的地方露出白底。"""
    if drawn.shape[-1] == 3:
        return drawn
    return 1 - (1 - drawn[..., :3]) * drawn[..., 3:]


def _said(family, pipe, part: list[str], guidance: float, negative: str) -> dict:
    """告诉管线画什么、怎么引导；编码好的提示词不再给文字。"""
    arguments = family.sample_arguments(guidance, len(part))
    if negative.strip():
        arguments["negative_prompt"] = [negative] * len(part)
    guided = guidance > 1 and not family.embedded_guidance
    blanks = arguments.get("negative_prompt", [family.blank] * len(part)) if guided else []
    known, empty = recall(family, part), recall(family, blanks)
    if known is None or empty is None:
        if pipe.text_encoder is None:
            raise LorakitError(f"这条管线没有文本编码器，画不了没有编码过的“{part[0]}”。")
        return {"prompt": part, **arguments}
    arguments.pop("negative_prompt", None)
    arguments |= family.prompt_arguments(known)
    return arguments | (family.prompt_arguments(empty, "negative_") if guided else {})
