"""随机权重的微型 FLUX.2 klein：真正的类、diffusers 布局，只为对照，不会画画。"""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from random_zimage import CHAT, TOKENIZER
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM


def build(folder: Path) -> Path:
    """写一条随机权重的管线到 folder 并返回它；每次写出的权重都一样。"""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = Qwen2Tokenizer.from_pretrained(TOKENIZER)
        tokenizer.chat_template, tokenizer.model_max_length = CHAT, 64
        text_encoder = Qwen3ForCausalLM(
            Qwen3Config(  # 管线要取第 9、18、27 层，所以只能窄，不能浅
                vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16,
                num_hidden_layers=27, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
                max_position_embeddings=512, initializer_range=0.5, bos_token_id=None,
                eos_token_id=None,
            )
        )  # fmt: skip
        transformer = Flux2Transformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16,
            num_attention_heads=4, joint_attention_dim=48, axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        )  # fmt: skip
        for name, parameter in transformer.named_parameters():
            if "modulation" in name:
                torch.nn.init.normal_(parameter, std=0.3)  # 默认的初值太小，文字几乎不起作用
        vae = AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
            latent_channels=4,
        )  # fmt: skip
        torch.nn.init.normal_(vae.bn.running_mean)  # 原本是 0 与 1，那样用没用都看不出
        torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2.0)
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def to_latents(x: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """stock 管线里的潜变量 -> (B, C, h, w)。"""
    return x.transpose(1, 2).unflatten(2, (h, w))
