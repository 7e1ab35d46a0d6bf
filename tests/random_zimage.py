"""随机权重的微型 Z-Image：真正的类、diffusers 布局，只为对照，不会画画。"""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

import lorakit

TOKENIZER = Path(lorakit.__file__).parent / "assets" / "tiny-qwen-image" / "tokenizer"
# Qwen3 对话模板里管线用得到的部分：一轮用户发言，然后轮到助手
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(folder: Path) -> Path:
    """写一条随机权重的管线到 folder 并返回它；每次写出的权重都一样。"""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = Qwen2Tokenizer.from_pretrained(TOKENIZER)
        tokenizer.chat_template = CHAT
        text_encoder = Qwen3Model(
            Qwen3Config(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64,
                num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                max_position_embeddings=1024, initializer_range=0.5,
            )
        )  # fmt: skip
        transformer = ZImageTransformer2DModel(
            in_channels=4, dim=64, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
            cap_feat_dim=32, axes_dims=[8, 12, 12], axes_lens=[1024, 64, 64],
        )  # fmt: skip
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            torch.nn.init.normal_(token)  # 原本是零，那样补齐得对不对都看不出
        vae = random_vae(shift_factor=0.1159)
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def random_vae(shift_factor: float) -> AutoencoderKL:
    """缩小 8 倍、4 个通道的 AutoencoderKL；两个家族用的都是 FLUX 的 VAE。"""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, norm_num_groups=4,
        latent_channels=4, scaling_factor=0.3611, shift_factor=shift_factor,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def to_latents(x: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """stock 管线里的潜变量 -> (B, C, h, w)。"""
    return x
