"""随机权重的微型 Qwen-Image：真正的类、diffusers 布局，只为对照，不会画画。"""

from pathlib import Path

import torch
from random_zimage import TOKENIZER

from lorakit import flow
from lorakit.families.shared import pack, unpack
from lorakit.tiny.pretrain import shapes

# 最后一块的文字流输出被丢弃，所以这些层得不到梯度
UNUSED = r"transformer_blocks\.1\.(attn\.(to_add_out|add_q_proj)|txt_mlp\..*)"


def build(folder: Path) -> Path:
    """写一条随机权重的管线到 folder 并返回它；每次写出的权重都一样。"""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = shapes.qwen_pipeline(TOKENIZER, layers=2)
        for name, parameter in pipe.transformer.named_parameters():
            if "_mod." in name:
                torch.nn.init.normal_(parameter, std=0.1)
        torch.nn.init.normal_(pipe.transformer.proj_out.weight, std=0.1)
        for parameter in pipe.text_encoder.model.language_model.layers.parameters():
            parameter.data *= 5  # 初值很小，不同的话会编成几乎一样的向量
    pipe.save_pretrained(folder)
    return folder


def guide(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    """stock 的 CFG 之后，每个词元的长度缩回没有引导时的长度。"""
    h, w = cond.shape[2:]
    cond, guided = pack(cond), pack(flow.guide(cond, uncond, scale))
    return unpack(
        guided * cond.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True), h, w
    )


def to_latents(x: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """stock 管线里的潜变量 -> (B, C, h, w)。"""
    return unpack(x, h, w)
