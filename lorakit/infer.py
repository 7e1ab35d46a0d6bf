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
from lorakit.memory import free_memory

LANCZOS = Image.Resampling.LANCZOS
NARROW = 100  # 要改的图，长边最多是短边的几倍；再细长，Qwen2.5-VL 就不看了
BATCH = 8  # 一次画几张；只影响快慢，不影响结果
TILE = 512  # VAE 分片解码时一片的边长，像素
DECODING = 4500  # VAE 解码一个像素另要几字节；Qwen-Image 的 1024² 在 H100 上实测 4.1 GiB


def open_pipeline(family, weights: Path | None = None, text="load"):
    """打开家族的 stock 管线；给了 LoRA 或全量微调的结果就先核对、再用上。

    Args:
        text: None 就不载入文本编码器，只能画 `remember` 过的提示词。
    """
    whole = full.find(weights) if weights is not None else None
    if whole is not None:
        full.check_fits(whole, family)
    wanted = whole or family.folder / "transformer"
    if family.transformer_folder != wanted:  # 上次打开的是另一份
        family.transformer_folder = wanted
        family.release("transformer")
    transformer = family.untouched()
    pipe = family.pipeline(transformer, text=text)
    pipe.set_progress_bar_config(disable=True)
    if weights is not None and whole is None:
        file = lora.find(weights)
        lora.check_fits(file, transformer)
        lora.put_on(pipe, file)
    return pipe


def open_for(family, weights, guidance: float, prompts, controls=None, negative: str = ""):
    """打开只画这几句的管线：显卡上先编码、放掉文本编码器，再载入 Transformer。"""
    for pictures in controls or []:  # 别等编码完了才说
        _check_pictures(family, pictures)
    if not scarce(family) or (family.controls[0] and controls is None):
        return open_pipeline(family, weights)
    if weights is not None and full.find(weights) is None:
        lora.find(weights)  # 文件不在，就别先等编码
    remember(family, guidance, prompts, controls, negative)
    return open_pipeline(family, weights, text=None)


def scarce(family) -> bool:
    """显存紧：文本编码器与 Transformer 不同时放。"""
    return family.device.type == "cuda"


def remember(family, guidance: float, prompts, controls=None, negative: str = ""):
    """编码好 prompts（编辑还有每句的控制图 controls）与引导用的负面提示词，见 Family.remember。"""
    family.remember(prompts, controls)
    if guidance > 1 and not family.embedded_guidance:
        blank = negative if negative.strip() else family.blank
        family.remember([blank] * len(prompts), controls)


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
    _fit_vae(family, math.prod(size))
    images: list[Image.Image] = []
    # 编码好的一张张画：显存紧才先编码
    count = 1 if family.recall(prompts) else BATCH
    for start in range(0, len(prompts), count):
        part = list(prompts[start : start + count])
        seeds = [
            torch.Generator("cpu").manual_seed(settings.seed + start + i) for i in range(len(part))
        ]
        drawn = pipe(
            **_said(family, pipe, part, settings.guidance, negative),
            width=size[0],
            height=size[1],
            num_inference_steps=settings.steps,
            generator=seeds,
            output_type="np",
        ).images
        check_finite(drawn, part)
        images += pipe.image_processor.numpy_to_pil(drawn)
    return images


def _said(family, pipe, part: list[str], guidance: float, negative: str) -> dict:
    """告诉管线画什么、怎么引导；编码好的提示词不再给文字。"""
    arguments = family.sample_arguments(guidance, len(part))
    if negative.strip():
        arguments["negative_prompt"] = [negative] * len(part)
    guided = guidance > 1 and not family.embedded_guidance
    blanks = arguments.get("negative_prompt", [family.blank] * len(part)) if guided else []
    known, empty = family.recall(part), family.recall(blanks)
    if known is None or empty is None:
        if pipe.text_encoder is None:
            raise LorakitError(f"这条管线没有文本编码器，画不了没有编码过的“{part[0]}”。")
        return {"prompt": part, **arguments}
    arguments.pop("negative_prompt", None)
    arguments |= family.prompt_arguments(known)
    return arguments | (family.prompt_arguments(empty, "negative_") if guided else {})


def _fit_vae(family, pixels: int):
    """解码很占显存：一张张来；一张也放不下，就一小片一小片地来，接缝处稍有不同。"""
    if not scarce(family):
        return
    vae = family.load("vae")
    torch.cuda.empty_cache()
    vae.enable_slicing()
    tight = free_memory(family.device) < DECODING * pixels
    (vae.enable_tiling if tight else vae.disable_tiling)()
    if hasattr(vae, "tile_latent_min_size"):  # 原来的一片和训练时的图一样大：1024² 就不分了
        vae.tile_sample_min_size = TILE
        vae.tile_latent_min_size = TILE >> (len(vae.config.block_out_channels) - 1)


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
    _fit_vae(family, area)
    side, unit = round(math.sqrt(area) / family.multiple) * family.multiple, family.multiple
    jobs = []
    for i, (prompt, pictures) in enumerate(zip(prompts, controls, strict=True)):
        _check_pictures(family, pictures)
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
        return edit(family, pipe, prompts, _controls(config, dataset), config.sample, side)


def remember_preview(family, config: Config, dataset) -> bool:
    """显卡上，载入 Transformer 之前先编码好 `preview` 要用的；返回编码了没有。"""
    needed = scarce(family) and bool(config.sample.prompts)
    if needed:
        controls = _controls(config, dataset) if family.controls[1] else None
        remember(family, config.sample.guidance, config.sample.prompts, controls)
    return needed


def _controls(config: Config, dataset) -> list[list[Image.Image]]:
    items = dataset.held or dataset.train
    records = [items[i % len(items)].record for i in range(len(config.sample.prompts))]
    return [[read_image(path) for path in record.controls] for record in records]


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


def _check_pictures(family, pictures: Sequence[Image.Image]):
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
