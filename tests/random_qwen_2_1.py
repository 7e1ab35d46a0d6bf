"""随机权重的微型 Qwen-Image 2.1：真正的类、diffusers 布局，只为对照，不会画画。"""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from random_flux2_dev import CHAT
from random_zimage import TOKENIZER
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lorakit.families.processor import PictureProcessor

SCHEDULER = {
    "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 8192, "max_shift": 0.9,
    "use_dynamic_shifting": True,
}  # fmt: skip


def encoder(tokenizer) -> Qwen3VLForConditionalGeneration:
    """两层语言模型、两层视觉塔。"""
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{mark}|>") for name, mark in
           (("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
            ("vision_end", "vision_end"))}  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "initializer_range": 0.3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4,
        "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        "initializer_range": 0.3,
    }  # fmt: skip
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    )


def build(folder: Path) -> Path:
    """写一条随机权重的管线到 folder 并返回它；每次写出的权重都一样。"""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = Qwen2Tokenizer.from_pretrained(TOKENIZER)
        tokenizer.chat_template = CHAT
        small = {"shortest_edge": 32 * 32, "longest_edge": 256 * 256}
        images = Qwen2VLImageProcessorPil(size=small, patch_size=16)
        transformer = QwenImage21Transformer2DModel(
            in_channels=8, out_channels=8, num_layers=2, attention_head_dim=16,
            num_attention_heads=2, context_in_dim=32, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip
        for name, parameter in transformer.named_parameters():
            if "modulation" in name or name.startswith(("proj_out", "norm_out")):
                torch.nn.init.normal_(parameter, std=0.3)  # 默认的初值太小，几乎不起作用
        vae = AutoencoderKLQwenImage21(
            base_dim=8, decoder_base_dim=8, z_dim=8, dim_mult=[1, 1, 1, 2, 2], num_res_blocks=1,
            latents_mean=[0.1 * i for i in range(8)], latents_std=[1 + 0.1 * i for i in range(8)],
        )  # fmt: skip
        text_encoder = encoder(tokenizer)
    processor = PictureProcessor(images, tokenizer, CHAT)
    QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER), vae=vae, processor=processor,
        text_encoder=text_encoder, transformer=transformer,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def to_latents(x: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """stock 管线里的潜变量 -> (B, C, h, w)。"""
    return x.transpose(1, 2).unflatten(2, (h, w))
