"""FLUX.2 klein：双流加单流的 Transformer，Qwen3 的三层隐状态当文字条件；画图、改图是同一个模型。"""

import math
from functools import cached_property
from typing import ClassVar

import torch
from torch.nn import functional as F

from lorakit.families.base import Family
from lorakit.families.elsewhere import Elsewhere
from lorakit.families.shared import QWEN3_4B, Cond, controls
from lorakit.files import read_json

# 双流块里图像流与文字流各自的层；单流块把 q、k、v 与前馈并成了一层
IMAGE = r"to_q|to_k|to_v|to_out\.0"
TEXT = r"add_q_proj|add_k_proj|add_v_proj|to_add_out"
SINGLE = r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
BASE = "black-forest-labs/FLUX.2-klein-base-{}"
DOUBLE, ALONE = "transformer_blocks.{}.", "single_transformer_blocks.{}.attn."
TIME = "time_guidance_embed.timestep_embedder."
MODULATIONS = ("double_stream_modulation_img", "double_stream_modulation_txt",
               "single_stream_modulation")  # fmt: skip
APART = 10  # stock 管线里相邻两张图的时间编号差多少


class Flux2Klein(Family):
    """FLUX.2 klein base（4 B、9 B）；时间参数是 t，输出就是 v，没有内嵌引导。

    VAE 自带归一化统计量；缩 8 倍后每 2x2 并成一个点再归一化，所以 x 是 (B, 128, H/16, W/16)。
    """

    name = "flux2-klein"
    called: ClassVar = {
        "9b": ("Flux.2-klein-9b", "flux_2_klein_9b"),
        "": ("Flux.2-klein-4b", "flux_2_klein_4b"),
    }
    pipeline_class = "Flux2KleinPipeline"
    text_parts: ClassVar = {"text_encoder": "Qwen3ForCausalLM", "tokenizer": "Qwen2Tokenizer"}
    licences: ClassVar = {"9b": "flux-non-commercial-license", "": "apache-2.0"}
    workflows: ClassVar = {"9b": "flux2-klein-9b", "": "flux2-klein"}
    multiple = 16
    controls = (0, 4)
    masks_text = False
    full_size: ClassVar = {
        "transformer": {
            "_class_name": "Flux2Transformer2DModel", "guidance_embeds": False, "num_layers": 5,
            "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
        },
        "vae": {"_class_name": "AutoencoderKLFlux2", "latent_channels": 32},
        "text_encoder": {
            **QWEN3_4B, "architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True,
        },
        "scheduler": {"use_dynamic_shifting": True, "shift": 3.0},
        "tokenizer": {"model_max_length": 512},
    }  # fmt: skip
    other_sizes: ClassVar = {
        "9b": {
            "transformer": full_size["transformer"] | {
                "num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32,
                "joint_attention_dim": 12288,
            },
            "text_encoder": full_size["text_encoder"] | {  # Qwen3 8B
                "hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False,
            },
        },
    }  # fmt: skip
    compression = 16
    targets: ClassVar = {
        "attention": rf"transformer_blocks\.\d+\.attn\.({IMAGE}|{TEXT})|{SINGLE}",
        "image-attention": rf"transformer_blocks\.\d+\.attn\.({IMAGE})|{SINGLE}",
        "all-linear": r"(single_)?transformer_blocks\..*",
    }
    kohya_original = True
    comfyui_prefix = ""  # 并起来再补零，文件大一倍半；DiffSynth 不认 transformer.
    read_by: ClassVar = {**Elsewhere.read_by, "comfyui": ("ComfyUI", "DiffSynth")}
    misses: ClassVar = {
        "musubi": ".",
        "kohya ComfyUI": "^$",
        "ComfyUI": "stream_modulation|time_guidance_embed",
        "kohya diffusers": "stream_modulation|norm_out",
    }
    original: ClassVar = {
        "double_blocks.{}.img_attn.qkv": tuple(f"{DOUBLE}attn.to_{x}" for x in "qkv"),
        "double_blocks.{}.txt_attn.qkv": tuple(f"{DOUBLE}attn.add_{x}_proj" for x in "qkv"),
        "double_blocks.{}.img_attn.proj": (f"{DOUBLE}attn.to_out.0",),
        "double_blocks.{}.txt_attn.proj": (f"{DOUBLE}attn.to_add_out",),
        "double_blocks.{}.img_mlp.0": (f"{DOUBLE}ff.linear_in",),
        "double_blocks.{}.img_mlp.2": (f"{DOUBLE}ff.linear_out",),
        "double_blocks.{}.txt_mlp.0": (f"{DOUBLE}ff_context.linear_in",),
        "double_blocks.{}.txt_mlp.2": (f"{DOUBLE}ff_context.linear_out",),
        "single_blocks.{}.linear1": (f"{ALONE}to_qkv_mlp_proj",),
        "single_blocks.{}.linear2": (f"{ALONE}to_out",),
        **{f"{name}.lin": (f"{name}.linear",) for name in MODULATIONS},
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        "time_in.in_layer": (f"{TIME}linear_1",),
        "time_in.out_layer": (f"{TIME}linear_2",),
        "final_layer.linear": ("proj_out",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear", "norm_out.linear"),
    }
    distilled: ClassVar = {f"klein-{size}": BASE.format(size) for size in ("4B", "9B")}

    @cached_property
    def text_length(self) -> int:
        """文字补齐到几个词元；stock 的默认值是 512。"""
        return self.token_limit("tokenizer")

    @classmethod
    def undistilled(cls, path, folder=None):
        """名字看不出来时，还有 model_index.json 里的 is_distilled。"""
        index = folder and folder / "model_index.json"
        said = index is not None and index.is_file() and read_json(index).get("is_distilled")
        return super().undistilled(path) or (" 或 ".join(cls.distilled.values()) if said else "")

    def _scales(self, vae) -> tuple[torch.Tensor, torch.Tensor]:
        std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
        return vae.bn.running_mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    @torch.no_grad()
    def encode_images(self, pixels):
        vae = self.load("vae")
        posterior = vae.encode(pixels.to(self.device, self.dtype)).latent_dist
        mean, std = self._scales(vae)
        return (
            # (B, 32, h, w) -> (B, 128, h/2, w/2)
            (F.pixel_unshuffle(posterior.mean, 2) - mean) / std,
            F.pixel_unshuffle(posterior.std, 2) / std,
        )

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """归一化的潜变量 (B, C, h, w) -> 图 (B, 3, H, W)，[-1, 1]。"""
        vae = self.load("vae")
        mean, std = self._scales(vae)
        latents = latents.to(self.device, self.dtype) * std + mean
        return vae.decode(F.pixel_shuffle(latents, 2)).sample.clamp(-1, 1)

    @torch.no_grad()
    def encode_prompts(self, captions: list[str], refs=None) -> list[Cond]:
        pipe = self.pipeline(transformer=None, vae=None)
        embeds, _ = pipe.encode_prompt(
            list(captions), device=self.device, max_sequence_length=self.text_length
        )
        # 与 FLUX.1 一样没有掩码：补齐的词元也是条件的一部分
        return [{"text": row} for row in embeds]

    @property
    def latent_channels(self) -> int:
        return 4 * super().latent_channels  # 每 2x2 并成一个点

    def text_shapes(self, tokens):
        return {"text": (self.text_length, self.config_of("transformer")["joint_attention_dim"])}

    def predict_velocity(self, transformer, x_t, t, cond):
        b, _, h, w = x_t.shape
        pictures = [x_t, *controls(cond, x_t)]  # 参考图的词元接在带噪的图后面
        tokens = [x.flatten(2).transpose(1, 2) for x in pictures]  # (B, C, h, w) -> (B, hw, C)
        places = [_ids((1, *x.shape[2:], 1), x.device, APART * i) for i, x in enumerate(pictures)]
        guided = self.embedded_guidance
        out = transformer(
            hidden_states=torch.cat(tokens, dim=1),
            encoder_hidden_states=cond["text"],
            timestep=t,
            guidance=torch.full((b,), self.guidance, device=x_t.device) if guided else None,
            img_ids=torch.cat(places),
            txt_ids=_ids((1, 1, 1, cond["text"].shape[1]), x_t.device),
            return_dict=False,
        )[0]
        return out[:, : h * w].transpose(1, 2).reshape(b, -1, h, w)  # (B, hw, C) -> (B, C, h, w)

    def sample_arguments(self, guidance, count):
        # 负面提示词固定是空的，与训练时丢掉描述一致；不引导也要明说，它的默认值是 4
        return {"guidance_scale": max(1.0, guidance), "max_sequence_length": self.text_length}

    @staticmethod
    def _shift_of(config, width, height, steps):
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        return math.exp(compute_empirical_mu((width // 16) * (height // 16), steps))


def _ids(sides: tuple[int, ...], device, time: int = 0) -> torch.Tensor:
    """词元的四维位置 (时间, 行, 列, 文字序号)，(L, 4)；第 i 张参考图的时间是 APART * i。"""
    places = torch.cartesian_prod(*(torch.arange(n, device=device) for n in sides))
    places[:, 0] += time
    return places
