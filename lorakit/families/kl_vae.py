"""几个家族共用的 AutoencoderKL：归一化都是 (z - shift) * scale，只有一个标量的均值和标准差。"""

import torch

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
