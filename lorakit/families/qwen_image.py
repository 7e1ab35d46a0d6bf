"""Qwen-Image：双流 Transformer、Qwen2.5-VL 文本编码器、视频 VAE 当图片用。"""

from functools import cache
from types import MethodType
from typing import ClassVar

import torch
from torch.nn import functional as F

from lorakit import flow
from lorakit.families.base import Family
from lorakit.families.shared import QWEN_VL_7B, Cond, controls, latent_scales, pack, unpack

# 注意力里图像流与文字流各自的四个线性层
IMAGE = r"to_q|to_k|to_v|to_out\.0"
TEXT = "add_q_proj|add_k_proj|add_v_proj|to_add_out"


class QwenImage(Family):
    """Qwen/Qwen-Image（20 B）与同结构的微型模型；时间参数是 t，输出就是 v，没有内嵌引导。"""

    name = "qwen-image"
    called: ClassVar = {"": ("Qwen-Image", "qwen_image")}
    read_by: ClassVar = {
        "diffusers": ("diffusers", "ComfyUI"),
        "comfyui": ("ComfyUI", "diffusers", "DiffSynth"),
        "kohya": ("musubi", "ComfyUI", "diffusers"),
    }
    licences: ClassVar = {"": "apache-2.0"}
    workflows: ClassVar = {"": "qwen-image"}
    editions = r"(?:image|edit)[-_ ]?(\d{4}|\d\.\d)(?!\d)"
    base_files: ClassVar = {"2512": "qwen_image_2512_fp8_e4m3fn.safetensors"}  # Comfy-Org 的
    multiple = 16
    pipeline_class = "QwenImagePipeline"
    text_parts: ClassVar = {
        "text_encoder": "Qwen2_5_VLForConditionalGeneration",
        "tokenizer": "Qwen2Tokenizer",
    }
    caption_limit = 1024
    blank = " "  # 官方示例用一个空格
    full_size: ClassVar = {
        "transformer": {"_class_name": "QwenImageTransformer2DModel"},
        "vae": {"_class_name": "AutoencoderKLQwenImage", "z_dim": 16},
        "text_encoder": QWEN_VL_7B,
        "scheduler": {
            "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9,
            "max_image_seq_len": 8192, "shift_terminal": 0.02,
        },
    }  # fmt: skip
    distilled: ClassVar = dict.fromkeys(
        ("Lightning", "Turbo"), "Qwen/Qwen-Image 或 Qwen/Qwen-Image-2512"
    )
    targets: ClassVar = {
        "image-attention": rf".*\.attn\.({IMAGE})",
        "attention": rf".*\.attn\.({IMAGE}|{TEXT})",
        "all-linear": rf"transformer_blocks\..*\.({IMAGE}|{TEXT}|net\.0\.proj|net\.2|\w+_mod\.1)",
    }

    def _load_vae(self):
        return single_frame(super()._load_vae())

    def _load_transformer(self):
        fuse_rope()
        keep_mask()
        return super()._load_transformer()

    @torch.no_grad()
    def encode_images(self, pixels):
        pixels = pixels.to(self.device, self.dtype)
        posterior = self.load("vae").encode(pixels[:, :, None]).latent_dist
        mean, std = latent_scales(self.load("vae"), posterior.mean)
        return (posterior.mean[:, :, 0] - mean) / std, posterior.std[:, :, 0] / std

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """归一化的潜变量 (B, C, h, w) -> 图 (B, 3, H, W)，[-1, 1]。"""
        latents = latents.to(self.device, self.dtype)
        mean, std = latent_scales(self.load("vae"), latents)
        return (
            self.load("vae").decode((latents * std + mean)[:, :, None]).sample[:, :, 0].clamp(-1, 1)
        )

    @torch.no_grad()
    def encode_prompts(self, captions, refs=None) -> list[Cond]:
        pipe = self.pipeline(transformer=None, vae=None)
        # stock 管线自己的 encode_prompt：模板、截断、丢掉前 34 个词元都与推理时一致
        embeds, mask = pipe.encode_prompt(list(captions), device=self.device)
        if mask is None:
            return [{"text": row} for row in embeds]
        return [{"text": row[keep.bool()]} for row, keep in zip(embeds, mask, strict=True)]

    def text_shapes(self, tokens):
        return {"text": (tokens, self.config_of("transformer").get("joint_attention_dim", 3584))}

    def predict_velocity(self, transformer, x_t, t, cond):
        b, _, h, w = x_t.shape
        pictures = [x_t, *controls(cond, x_t)]  # 控制图（编辑才有）的词元接在带噪的图后面
        out = transformer(
            hidden_states=torch.cat([pack(x) for x in pictures], dim=1),
            encoder_hidden_states=cond["text"],
            encoder_hidden_states_mask=cond.get("text_mask"),
            timestep=t.to(x_t.dtype),
            img_shapes=[[(1, x.shape[2] // 2, x.shape[3] // 2) for x in pictures]] * b,
            return_dict=False,
        )[0]
        return unpack(out[:, : h * w // 4], h, w)

    def guide(self, v, empty, scale):
        # stock 管线在引导之后把每个词元缩回原来的长度，CFG 再大也不会过曝
        own, mixed = pack(v), pack(flow.guide(v, empty, scale))
        mixed = mixed * (own.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True))
        return unpack(mixed, *v.shape[2:])

    def prompt_arguments(self, conds, prefix=""):
        batch = self.collate(conds)
        all_real = torch.ones(batch["text"].shape[:2], dtype=torch.bool, device=self.device)
        batch.setdefault("text_mask", all_real)  # stock 管线一定要掩码
        return {
            f"{prefix}prompt_embeds": batch["text"],
            f"{prefix}prompt_embeds_mask": batch["text_mask"],
        }

    def sample_arguments(self, guidance, count):
        # 没有负面提示词管线就不做引导
        negative = {"negative_prompt": [self.blank] * count} if guidance > 1 else {}
        # 编码时最多 1024 个词元，画图时默认却只看 512 个
        longest = {"max_sequence_length": self.caption_limit}
        return {"true_cfg_scale": guidance, **negative, **longest}


def fuse_rope():
    """编译时，旋转位置编码改用实数算：编译器不会融合复数，每块要多读写好几遍 q 和 k。

    结果与 stock 相同；没有编译时仍走它的复数，那里复数更快。
    """
    from diffusers.models.transformers import transformer_qwenimage as stock

    stock.apply_rotary_emb_qwen = _rotation()


@cache  # 只造一次：再装一次也不会自己套自己
def _rotation():
    from diffusers.models.transformers import transformer_qwenimage as stock

    plain = stock.apply_rotary_emb_qwen

    def rotate(x: torch.Tensor, freqs_cis: torch.Tensor, use_real: bool = True, **options):
        """(B, S, H, D) 的 q 或 k 与 (S, D/2) 的复数 e^{iθ} -> 转过 θ 的 (B, S, H, D)。"""
        if use_real or not torch.compiler.is_compiling():
            return plain(x, freqs_cis, use_real, **options)
        cos, sin = torch.view_as_real(freqs_cis).unsqueeze(1).unbind(-1)  # 各 (S, 1, D/2)
        real, imag = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # 各 (B, S, H, D/2)
        turned = torch.stack([real * cos - imag * sin, real * sin + imag * cos], dim=-1)
        return turned.flatten(3).type_as(x)

    return rotate


def keep_mask():
    """有掩码时，stock 还算一个没人用的长度，要从 CPU 抄一个数，录 CUDA 图时不许；不算它。"""
    from diffusers.models.transformers import transformer_qwenimage as stock

    def length_and_mask(text: torch.Tensor, mask: torch.Tensor | None):
        return text.shape[1], None, None if mask is None else mask.bool()

    stock.compute_text_seq_len_from_mask = length_and_mask


def _last_tap(self, x: torch.Tensor, cache_x=None) -> torch.Tensor:
    if x.shape[2] > 1 or cache_x is not None or self._padding[4] != self.kernel_size[0] - 1:
        return type(self).forward(self, x, cache_x)
    weight = self.weight[:, :, -1]  # 因果卷积补的零落在前面的时间片上，单张图只剩最后一片
    pad = (self._padding[2], self._padding[0])
    return F.conv2d(x[:, :, 0], weight, self.bias, self.stride[1:], pad).unsqueeze(2)


def single_frame(vae):
    """单张图时，视频 VAE 的 3-D 因果卷积等价于 2-D 卷积；就地换成 2-D，省三分之二的乘法。

    结果与原来相同（浮点误差内）；多帧输入仍走原来的路。
    """
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

    for module in vae.modules():
        if isinstance(module, QwenImageCausalConv3d):
            module.forward = MethodType(_last_tap, module)
    return vae
