"""FLUX.1：先双流、后单流的 Transformer，CLIP 与 T5 两个文本编码器，引导训练在模型里。"""

from functools import cached_property
from typing import ClassVar

import torch

from lorakit.families.base import Family
from lorakit.families.shared import CLIP_L, FLUX_VAE, Cond, KLVae, controls, pack, unpack

# 双流块里图像流与文字流各四个线性层；单流块里两股词元共用，输出并进了 proj_out
QKV = r"to_q|to_k|to_v"
TEXT = r"add_q_proj|add_k_proj|add_v_proj|to_add_out"
SINGLE = rf"single_transformer_blocks\.\d+\.attn\.({QKV})"
BASE = "black-forest-labs/FLUX.1-dev"
DOUBLE, ALONE = "transformer_blocks.{}.", "single_transformer_blocks.{}."
TIME = "time_text_embed."


class Flux(KLVae, Family):
    """black-forest-labs/FLUX.1-dev（12 B）与同结构的微型模型；时间参数是 t，输出就是 v。

    引导是模型的一个输入：训练时喂 train.guidance（一般 1），推理时喂 sample.guidance（一般 3.5）。
    """

    name = "flux"
    called: ClassVar = {"": ("flux-1-dev", "flux1")}
    pipeline_class = "FluxPipeline"
    licences: ClassVar = {
        "tiny-flux": "apache-2.0", "schnell": "apache-2.0", "": "flux-1-dev-non-commercial-license",
    }  # fmt: skip
    workflows: ClassVar = {"": "flux"}
    editions = r"(krea|kontext|fill|canny|depth|schnell)"
    base_files: ClassVar = {"krea": "flux1-krea-dev.safetensors"}
    multiple = 16
    embedded_guidance = True
    said_as: ClassVar = {"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
    masks_text = False
    full_size: ClassVar = {
        "transformer": {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True},
        "vae": FLUX_VAE,
        "text_encoder": CLIP_L,
        "text_encoder_2": {
            "architectures": ["T5EncoderModel"], "model_type": "t5", "d_model": 4096, "d_kv": 64,
            "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128,
            "feed_forward_proj": "gated-gelu",
        },
        "scheduler": {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
        "tokenizer_2": {"model_max_length": 512},
    }  # fmt: skip
    targets: ClassVar = {
        "attention": rf"transformer_blocks\.\d+\.attn\.({QKV}|to_out\.0|{TEXT})|{SINGLE}",
        "image-attention": rf"transformer_blocks\.\d+\.attn\.({QKV}|to_out\.0)|{SINGLE}",
        "all-linear": r"(single_)?transformer_blocks\..*",
    }
    kohya_original = True
    comfyui_prefix = "transformer."  # 并起来再补零，文件大一倍半；ComfyUI 拆开的也认
    read_by: ClassVar = {
        "diffusers": ("diffusers", "ComfyUI", "DiffSynth"),
        "comfyui": ("ComfyUI", "diffusers", "DiffSynth"),
        "kohya": ("sd-scripts", "ComfyUI", "diffusers", "DiffSynth"),
    }
    misses: ClassVar = {
        "sd-scripts": "^(norm_out|proj_out)",
        "kohya diffusers": ".",
        "DiffSynth": ".",
    }
    original: ClassVar = {
        "double_blocks.{}.img_attn.qkv": tuple(f"{DOUBLE}attn.to_{x}" for x in "qkv"),
        "double_blocks.{}.txt_attn.qkv": tuple(f"{DOUBLE}attn.add_{x}_proj" for x in "qkv"),
        "double_blocks.{}.img_attn.proj": (f"{DOUBLE}attn.to_out.0",),
        "double_blocks.{}.txt_attn.proj": (f"{DOUBLE}attn.to_add_out",),
        "double_blocks.{}.img_mlp.0": (f"{DOUBLE}ff.net.0.proj",),
        "double_blocks.{}.img_mlp.2": (f"{DOUBLE}ff.net.2",),
        "double_blocks.{}.txt_mlp.0": (f"{DOUBLE}ff_context.net.0.proj",),
        "double_blocks.{}.txt_mlp.2": (f"{DOUBLE}ff_context.net.2",),
        "double_blocks.{}.img_mod.lin": (f"{DOUBLE}norm1.linear",),
        "double_blocks.{}.txt_mod.lin": (f"{DOUBLE}norm1_context.linear",),
        "single_blocks.{}.linear1": (
            *(f"{ALONE}attn.to_{x}" for x in "qkv"),
            f"{ALONE}proj_mlp",
        ),
        "single_blocks.{}.linear2": (f"{ALONE}proj_out",),
        "single_blocks.{}.modulation.lin": (f"{ALONE}norm.linear",),
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        "time_in.in_layer": (f"{TIME}timestep_embedder.linear_1",),
        "time_in.out_layer": (f"{TIME}timestep_embedder.linear_2",),
        "guidance_in.in_layer": (f"{TIME}guidance_embedder.linear_1",),
        "guidance_in.out_layer": (f"{TIME}guidance_embedder.linear_2",),
        "vector_in.in_layer": (f"{TIME}text_embedder.linear_1",),
        "vector_in.out_layer": (f"{TIME}text_embedder.linear_2",),
        "final_layer.linear": ("proj_out",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear", "norm_out.linear"),
    }
    # dev 本身也蒸馏过，但只是把引导练进了模型，步数没少，照样能练
    distilled: ClassVar = {"schnell": BASE, "turbo": BASE}
    training_adapters: ClassVar = {"schnell": "ostris/FLUX.1-schnell-training-adapter"}
    text_parts: ClassVar = {
        "text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer",
        "text_encoder_2": "T5EncoderModel", "tokenizer_2": "T5TokenizerFast",
    }  # fmt: skip
    caption_tokenizer = "tokenizer_2"  # CLIP 只给一个总的向量，内容都从 T5 来

    @property
    def caption_limit(self) -> int:
        return self.text_length

    @cached_property
    def text_length(self) -> int:
        """T5 补齐到几个词元：FLUX.1-dev 是 512，微型模型是 32。"""
        return self.token_limit("tokenizer_2")

    @cached_property
    def _guided(self) -> bool:
        return self.config_of("transformer").get("guidance_embeds", False)

    @torch.no_grad()
    def encode_prompts(self, captions: list[str], refs=None) -> list[Cond]:
        pipe = self.pipeline(transformer=None, vae=None)
        embeds, pooled, _ = pipe.encode_prompt(
            list(captions), device=self.device, max_sequence_length=self.text_length
        )
        # 补齐的那些词元也留着：FLUX 没有掩码，底模就是看着它们练出来的，切掉等于换了条件
        return [{"text": t, "pooled": p} for t, p in zip(embeds, pooled, strict=True)]

    def text_shapes(self, tokens):
        config = self.config_of("transformer")
        text = (self.text_length, config.get("joint_attention_dim", 4096))
        return {"text": text, "pooled": (config.get("pooled_projection_dim", 768),)}

    def predict_velocity(self, transformer, x_t, t, cond):
        b, _, h, w = x_t.shape
        pictures = [x_t, *controls(cond, x_t)]  # 控制图（Kontext 才有）的词元接在带噪的图后面
        guidance = torch.full((b,), self.guidance, device=x_t.device) if self._guided else None
        out = transformer(
            hidden_states=torch.cat([pack(x) for x in pictures], dim=1),
            encoder_hidden_states=cond["text"],
            pooled_projections=cond["pooled"],
            timestep=t,
            guidance=guidance,
            img_ids=torch.cat([_ids(i, x) for i, x in enumerate(pictures)]),
            txt_ids=torch.zeros(cond["text"].shape[1], 3, device=x_t.device),
            return_dict=False,
        )[0]
        return unpack(out[:, : h * w // 4], h, w)

    def sample_arguments(self, guidance, count):
        return {"guidance_scale": guidance, "max_sequence_length": self.text_length}


def _ids(index: int, x: torch.Tensor) -> torch.Tensor:
    """第 index 张图 (B, C, h, w) 的词元位置 (hw/4, 3)：第几张、行号、列号；0 是目标图。"""
    rows, columns = (torch.arange(n // 2, device=x.device) for n in x.shape[2:])
    # torch.tensor 从内存抄过去，录不进 CUDA 图
    which = torch.full((1,), index, device=x.device)
    return torch.cartesian_prod(which, rows, columns).float()
