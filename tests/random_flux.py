"""随机权重的微型 FLUX：真正的类、diffusers 布局，只为对照，不会画画。"""

from pathlib import Path

import torch

from lorakit.families.shared import unpack
from lorakit.tiny.pretrain import shapes, tokenizer_flux
from lorakit.tiny.pretrain.tokenizer import captions


def build(folder: Path) -> Path:
    """写一条随机权重的管线到 folder 并返回它；每次写出的权重都一样。"""
    tokenizer_flux.train(folder, captions(200))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = shapes.flux_vae(channels=(8, 8, 8, 8), latent_channels=4)
        transformer = shapes.flux_transformer(latent_channels=4, layers=1, single_layers=2)
        pipe = shapes.flux_pipeline(folder, vae=vae, transformer=transformer)
        for parameter in pipe.text_encoder.parameters():
            parameter.data *= 5  # 初值很小，不同的话会编成几乎一样的向量
    pipe.save_pretrained(folder)
    return folder


def to_latents(x: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """stock 管线里的潜变量 -> (B, C, h, w)。"""
    return unpack(x, h, w)
