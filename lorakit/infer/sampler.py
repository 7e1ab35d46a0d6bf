"""自己的采样：从噪声沿速度走欧拉步，时间与引导都和 stock 管线相同；任何尺寸都行，不认识设置。"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from PIL import Image

from lorakit import flow
from lorakit.families.base import Family
from lorakit.families.pixels import to_image, to_pixels
from lorakit.families.shared import Cond
from lorakit.infer.prompts import recall


@torch.no_grad()
def sample(
    family: Family,
    transformer,
    prompts: Sequence[str],
    seen: Sequence[Sequence[Image.Image]],
    fitted: Sequence[Sequence[Image.Image]],
    seeds: Sequence[int],
    size: tuple[int, int],
    steps: int,
    guidance: float,
) -> list[Image.Image]:
    """照指令改一批图；没有控制图就是画。

    Args:
        seen, fitted: 每句的几张控制图：原样的（给文本编码器）、缩放好的（给 VAE，要一样大）。
        size: (宽, 高)，像素。
    """
    control = [
        family.control_cond([family.encode_images(to_pixels(one))[0][0] for one in pictures])
        for pictures in fitted
    ]

    def condition(texts) -> Cond:
        conds = recall(family, texts, seen) or family.encode_prompts(list(texts), seen)
        return family.collate([{**a, **b} for a, b in zip(conds, control, strict=True)])

    asked = condition(prompts)
    if family.embedded_guidance:  # 引导是模型的一个输入，不用再看一遍空描述
        family, empty = family.again(guidance=guidance), None
    else:
        empty = condition([family.blank] * len(prompts)) if guidance > 1 else None
    h, w = size[1] // family.compression, size[0] // family.compression
    shape = (family.latent_channels, h, w)
    noise = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(s)) for s in seeds]
    x = torch.stack(noise).to(family.device, family.dtype)
    for t, t_next in pairwise(family.times(steps, *size).to(x.device)):
        now = t.expand(len(x))
        v = family.predict_velocity(transformer, x, now, asked)
        if empty is not None:
            blank = family.predict_velocity(transformer, x, now, empty)
            v = family.guide(v, blank, guidance)
        # 与 stock 的调度器一样，用 fp32 走这一步
        x = flow.euler_step(x.float(), v.float(), now, t_next.expand(len(x))).to(family.dtype)
    return [to_image(pixels) for pixels in family.decode(x)]
