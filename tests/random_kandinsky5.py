"""随机权重的微型 Kandinsky 5：真正的类、diffusers 布局，只为对照，不会画画。"""

from pathlib import Path

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
)
from random_zimage import TOKENIZER, random_vae
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)


def build(folder: Path) -> Path:
    """写一条随机权重的管线到 folder 并返回它；每次写出的权重都一样。"""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = Qwen2Tokenizer.from_pretrained(TOKENIZER)
        tokenizer_2 = clip_tokenizer()
        transformer = Kandinsky5Transformer3DModel(
            in_visual_dim=4, out_visual_dim=4, in_text_dim=32, in_text_dim2=16, time_dim=32,
            model_dim=64, ff_dim=128, num_text_blocks=1, num_visual_blocks=2, axes_dims=(8, 12, 12),
        )  # fmt: skip
        for name, parameter in transformer.named_parameters():
            if "modulation" in name:
                torch.nn.init.normal_(parameter, std=0.3)  # 原本是零，那样每一块都不起作用
        text_encoder = Qwen2_5_VLForConditionalGeneration(vl_config(tokenizer))
        text_encoder_2 = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer_2), hidden_size=16, intermediate_size=32,
                num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=77,
                bos_token_id=tokenizer_2.bos_token_id, eos_token_id=tokenizer_2.eos_token_id,
                pad_token_id=tokenizer_2.pad_token_id, initializer_factor=10.0,
            )
        )  # fmt: skip
        # 配置里照真模型留着 shift_factor：谁减了它谁就错了
        vae = random_vae(shift_factor=0.1159)
    Kandinsky5T2IPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def vl_config(tokenizer) -> Qwen2_5_VLConfig:
    """一层大小的 Qwen2.5-VL；视觉部分只为类完整，从不运行。"""
    text = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=1024,
        initializer_range=0.5, bos_token_id=None, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    )  # fmt: skip
    vision = dict(
        depth=1, hidden_size=16, intermediate_size=32, num_heads=2, out_hidden_size=32,
        fullatt_block_indexes=[0],
    )  # fmt: skip
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)


def clip_tokenizer() -> CLIPTokenizer:
    """只有单个字节的 CLIP 词表：什么字都能编，一句话也不用学。"""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77
    )


def to_latents(x: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """stock 管线里的潜变量 -> (B, C, h, w)。"""
    return x[:, 0].permute(0, 3, 1, 2)
