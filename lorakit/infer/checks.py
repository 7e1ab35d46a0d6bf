"""画图之前与之后的核对：尺寸、控制图、负面提示词、有没有 NaN。"""

from collections.abc import Sequence
from inspect import signature

import numpy as np
from PIL import Image

from lorakit.errors import ConfigError, LorakitError

NARROW = 100  # 要改的图，长边最多是短边的几倍；再细长，Qwen2.5-VL 就不看了


def check_negative(family, pipe, guidance: float):
    """负面提示词要底模会看、引导又大于 1 才起作用，否则说清楚，不悄悄忽略。"""
    if family.embedded_guidance or "negative_prompt" not in signature(pipe.__call__).parameters:
        raise ConfigError(f"{family.name} 不看负面提示词：去掉它，把要的东西写进提示词里。")
    if guidance <= 1:
        raise ConfigError(
            f"引导是 {guidance:g}，负面提示词不起作用：把引导调到 1 以上（常用 3 到 7），或去掉它。"
        )


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


def check_controls(family, count: int):
    """控制图的张数要合家族的胃口。"""
    least, most = family.controls
    if not most:
        raise ConfigError(
            f"{family.name} 不能改图，它只会从文字画起。要改图请用编辑模型，"
            "例如 --set model.family=qwen-image-edit --set model.path=Qwen/Qwen-Image-Edit。"
        )
    least = max(1, least)  # 画图、改图都会的，要改总得有一张
    if not least <= count <= most:
        wanted = f"{least} 张" if least == most else f"{least} 到 {most} 张"
        more = "" if most > 1 else "要一次看几张，请换 Qwen/Qwen-Image-Edit-2509。"
        raise ConfigError(f"这个底模一次看 {wanted}图，得到 {count} 张。{more}")


def check_pictures(family, pictures: Sequence[Image.Image]):
    """一句话要改的几张图：张数合家族的胃口，也不太细长。"""
    check_controls(family, len(pictures))
    for width, height in (picture.size for picture in pictures):
        if max(width, height) > NARROW * min(width, height):
            raise ConfigError(
                f"图 {width}x{height} 太细长了，长边最多是短边的 {NARROW} 倍。先把它裁短一些。"
            )


def check_size(family, size: tuple[int, int]):
    """宽和高要是家族的倍数，否则说出最近的合适尺寸。"""
    unit = family.multiple
    if any(side % unit or side <= 0 for side in size):
        near = "x".join(str(max(unit, round(side / unit) * unit)) for side in size)
        raise ConfigError(
            f"图的尺寸 {size[0]}x{size[1]} 不行：宽和高都要是 {unit} 的倍数，最近的是 {near}。"
        )
