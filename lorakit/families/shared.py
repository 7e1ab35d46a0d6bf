"""几个家族共用的：条件与拼批、2x2 打包、AutoencoderKL、文本编码器的真实尺寸。"""

from itertools import count, takewhile

import torch
from torch import nn

Cond = dict[str, torch.Tensor]  # 一个样本的条件：名字 -> 不含补齐的张量 (L, D)、(D,) 或 (C, h, w)

FLUX_VAE = {  # Z-Image 与 Kandinsky 5 用的也是它
    "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2, "latent_channels": 16, "scaling_factor": 0.3611,
    "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
CLIP_L = {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": 768,
    "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
}  # fmt: skip


class KLVae:
    """给 Family 混入 encode_images 与 decode；不减均值的家族把 `subtract_shift` 设成 False。"""

    subtract_shift = True

    def _scales(self, vae) -> tuple[float, float]:
        shift = vae.config.shift_factor if self.subtract_shift else 0.0
        return shift, vae.config.scaling_factor

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W)、[-1, 1] -> 后验的均值与标准差，各 (B, C, h, w)，已归一化。"""
        vae = self.load("vae")
        posterior = vae.encode(pixels.to(self.device, self.dtype)).latent_dist
        shift, scale = self._scales(vae)
        return (posterior.mean - shift) * scale, posterior.std * scale

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """归一化的潜变量 (B, C, h, w) -> 图 (B, 3, H, W)，[-1, 1]。"""
        vae = self.load("vae")
        shift, scale = self._scales(vae)
        return vae.decode(latents.to(self.device, self.dtype) / scale + shift).sample.clamp(-1, 1)


def latent_scales(vae, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Qwen 的 VAE 每个通道的均值与标准差，各 (1, C, 1, 1)，精度与设备随 like。"""
    config = vae.config
    mean, std = (torch.tensor(x).view(1, -1, 1, 1).to(like) for x in
                 (config.latents_mean, config.latents_std))  # fmt: skip
    return mean, std


QWEN_VL_7B = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "text_config": {
        "model_type": "qwen2_5_vl_text", "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]
        },
    },
    "vision_config": {"model_type": "qwen2_5_vl", "hidden_size": 1280, "out_hidden_size": 3584},
}  # fmt: skip
QWEN3_4B = {
    "architectures": ["Qwen3Model"], "model_type": "qwen3", "hidden_size": 2560,
    "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
}  # fmt: skip


def controls(batch: Cond, like: torch.Tensor) -> list[torch.Tensor]:
    """拼好的一批条件里的几张控制图 (B, C, h, w)，按次序，精度与设备随 like；没有就是空的。"""
    names = takewhile(batch.__contains__, (f"control_{i}" for i in count(1)))
    return [batch[name].to(like) for name in names]


def pack(x: torch.Tensor) -> torch.Tensor:
    """每 2x2 个潜变量像素并成一个词元。"""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(b, h * w // 4, 4 * c)  # (B, C, h, w) -> (B, hw/4, 4C)


def unpack(x: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """pack 的逆。"""
    b, _, d = x.shape
    x = x.reshape(b, h // 2, w // 2, d // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(b, d // 4, h, w)  # (B, hw/4, 4C) -> (B, C, h, w)


def collate(conds: list[Cond]) -> Cond:
    """一批条件 -> 补齐到一样长；长短不一时另给 `名字_mask`（True 是真词元）。"""
    batch: Cond = {}
    for key in conds[0]:
        rows = [cond[key] for cond in conds]
        if rows[0].dim() != 2:  # 不是一串词元：形状本来就一样
            batch[key] = torch.stack(rows)
            continue
        batch[key] = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, L, D)
        lengths = [len(row) for row in rows]
        if min(lengths) < max(lengths):
            place = torch.arange(max(lengths), device=rows[0].device)
            ends = torch.tensor(lengths, device=rows[0].device)
            batch[f"{key}_mask"] = place[None] < ends[:, None]
    return batch
