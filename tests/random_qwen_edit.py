"""随机权重的微型 Qwen-Image-Edit：真正的类、diffusers 布局，只为对照，不会改图。"""

from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch
from PIL import Image

from lorakit.families.pixels import to_pixels
from lorakit.families.qwen_image_edit import QwenImageEdit
from lorakit.families.shared import unpack
from lorakit.files import ASSETS
from lorakit.tiny.pretrain import shapes

# 最后一块的文字流输出被丢弃，所以这些层得不到梯度
UNUSED = r"transformer_blocks\.1\.(attn\.(to_add_out|add_q_proj|norm_added_q)|txt_mlp)\..*"


def build(folder: Path, plus: bool = True) -> Path:
    """写一条随机权重的管线到 folder 并返回它；每次写出的权重都一样。

    Args:
        plus: 能看一到三张控制图的 QwenImageEditPlusPipeline，控制图的时间恒为 0（zero_cond_t）。
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        pipe = shapes.qwen_pipeline(ASSETS / "tiny-qwen-image" / "tokenizer", layers=2)
        if plus:
            transformer = pipe.transformer
            pipe.transformer = type(transformer).from_config(transformer.config, zero_cond_t=True)
        for name, parameter in pipe.transformer.named_parameters():
            if "_mod." in name:
                torch.nn.init.normal_(parameter, std=0.1)
        for parameter in pipe.text_encoder.model.visual.parameters():
            parameter.mul_(5)  # 初值太小，换一张图几乎看不出
    pipe.save_pretrained(folder)
    return shapes.make_edit(folder, plus)


def stock(folder: Path):
    """不经过 lorakit、直接用 diffusers 打开的管线；处理器换成不要 torchvision 的。"""
    family = QwenImageEdit(folder, torch.device("cpu"), torch.float32)
    pipe = getattr(diffusers, family.pipeline_class).from_pretrained(
        folder, processor=family.load("text")[2], torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def conditions(family, captions: Sequence[str], controls: Sequence[Sequence[Image.Image]]):
    """每句指令与它的控制图 -> 完整的条件。"""
    texts = family.encode_prompts(list(captions), controls)
    latents = [[family.encode_images(to_pixels(one))[0][0] for one in same] for same in controls]
    return [{**a, **family.control_cond(b)} for a, b in zip(texts, latents, strict=True)]


def to_latents(x: torch.Tensor, side: int) -> torch.Tensor:
    """stock 管线里的潜变量 -> (B, C, h, w)。"""
    return unpack(x, side, side)
