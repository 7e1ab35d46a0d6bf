"""Z-Image：单流 Transformer、Qwen3 文本编码器；变长的样本一张张排成列表送进模型。"""

from typing import ClassVar

import torch

from lorakit.families.base import Family
from lorakit.families.shared import FLUX_VAE, QWEN3_4B, Cond, KLVae

ATTENTION = r"attention\.(to_q|to_k|to_v|to_out\.0)"
LINEAR = rf"({ATTENTION}|feed_forward\.w[123]|adaLN_modulation\.0)"
IMAGE_BLOCKS = r"(layers|noise_refiner)\.\d+"  # 图像词元经过的块；context_refiner 只见文字
BLOCKS = r"(layers|noise_refiner|context_refiner)\.\d+"


class ZImage(KLVae, Family):
    """Tongyi-MAI/Z-Image（6 B）；时间参数是 1 - t，输出是 -v，没有内嵌引导。"""

    name = "z-image"
    called: ClassVar = {"": ("Z-Image", "z_image")}
    pipeline_class = "ZImagePipeline"
    text_parts: ClassVar = {"text_encoder": "Qwen3Model", "tokenizer": "Qwen2Tokenizer"}
    licences: ClassVar = {"": "apache-2.0"}
    workflows: ClassVar = {"": "z-image"}
    editions = r"(turbo|omni|edit)"
    base_files: ClassVar = {"turbo": "z_image_turbo_bf16.safetensors"}  # Comfy-Org 的
    quick: ClassVar = {"turbo": {"steps": 8, "guidance": 1.0}}
    multiple = 16
    targets: ClassVar = {
        "attention": rf"{BLOCKS}\.{ATTENTION}",
        "image-attention": rf"{IMAGE_BLOCKS}\.{ATTENTION}",
        "all-linear": rf"{BLOCKS}\.{LINEAR}",
    }
    read_by: ClassVar = {
        "diffusers": ("diffusers", "ComfyUI"),
        "comfyui": ("ComfyUI", "diffusers", "DiffSynth"),
        "kohya": ("musubi", "diffusers"),  # ComfyUI 的 lora_unet_ 只认并起来的 qkv
    }
    # 只用来读：原作者的文件（也是 ComfyUI 自己的）把 q、k、v 并成一层；别的层名字相同
    original: ClassVar = {
        **{
            name: parts
            for block in ("layers.{}", "noise_refiner.{}", "context_refiner.{}")
            for name, parts in {
                f"{block}.attention.qkv": tuple(f"{block}.attention.to_{x}" for x in "qkv"),
                f"{block}.attention.out": (f"{block}.attention.to_out.0",),
            }.items()
        },
        "x_embedder": ("all_x_embedder.2-1",),
        "final_layer.linear": ("all_final_layer.2-1.linear",),
        "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
    }
    distilled: ClassVar = {"Turbo": "Tongyi-MAI/Z-Image"}
    training_adapters: ClassVar = {
        "turbo": "ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors"
    }

    full_size: ClassVar = {
        "transformer": {"_class_name": "ZImageTransformer2DModel"},
        "vae": FLUX_VAE,
        "text_encoder": QWEN3_4B,
        "scheduler": {"shift": 3.0},
    }  # fmt: skip

    @torch.no_grad()
    def encode_prompts(self, captions: list[str], refs=None) -> list[Cond]:
        pipe = self.pipeline(transformer=None, vae=None)
        # 必须给它一份副本：stock 的 encode_prompt 会就地把列表里的描述换成套好模板的
        embeds, _ = pipe.encode_prompt(
            list(captions), device=self.device, do_classifier_free_guidance=False
        )
        return [{"text": row} for row in embeds]

    def text_shapes(self, tokens):
        return {"text": (tokens, self.config_of("transformer").get("cap_feat_dim", 2560))}

    def predict_velocity(self, transformer, x_t, t, cond):
        text, mask = cond["text"], cond.get("text_mask")
        rows = list(text) if mask is None else [r[keep] for r, keep in zip(text, mask, strict=True)]
        out = transformer(
            list(x_t.unsqueeze(2)),  # (B, C, h, w) -> B 个 (C, 1, h, w)
            1 - t,
            rows,
            return_dict=False,
        )[0]
        return -torch.stack(out).squeeze(2)  # B 个 (C, 1, h, w) -> (B, C, h, w)

    def prompt_arguments(self, conds, prefix=""):
        return {f"{prefix}prompt_embeds": [cond["text"] for cond in conds]}  # 长短不一，不补齐

    def sample_arguments(self, guidance, count):
        # stock 算的是 cond + s (cond - uncond)，s 比通行的 CFG 少 1：我们的 5 是它的 4。
        # 不引导也要明说，它的默认值是 5；负面提示词不给就是空的，与训练时丢掉描述一致
        return {"guidance_scale": max(0.0, guidance - 1)}
