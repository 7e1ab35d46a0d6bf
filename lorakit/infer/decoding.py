"""VAE 解码很占显存：放得下就整张来，放不下就一小片一小片地来。"""

import torch

from lorakit.infer.pipeline import scarce
from lorakit.memory import devices

TILE = 512  # VAE 分片解码时一片的边长，像素
DECODING = 4500  # bf16 的 VAE 解码一个像素另要几字节；Qwen-Image 的 1024² 在 H100 上实测 4.1 GiB


def fit_vae(family, pixels: int):
    """解码很占显存：一张张来；一张也放不下，就一小片一小片地来，接缝处稍有不同。

    先量一量够不够；量的时候够、轮到解码时显存已经零碎得不够，就在那时改成一小片一小片的。
    """
    if not scarce(family):
        return
    vae = family.load("vae")
    torch.cuda.empty_cache()
    vae.enable_slicing()
    tight = devices.free_memory(family.device) < DECODING * family.dtype.itemsize / 2 * pixels
    (vae.enable_tiling if tight else vae.disable_tiling)()
    if hasattr(vae, "tile_latent_min_size"):  # 原来的一片和训练时的图一样大：1024² 就不分了
        vae.tile_sample_min_size = TILE
        vae.tile_latent_min_size = TILE >> (len(vae.config.block_out_channels) - 1)
    decode_anyway(vae)


def decode_anyway(vae):
    """整张解码时显存不够，就清一清，一小片一小片地再来；已经分了片的，照样报出来。"""

    def decode(latents, *given, **named):
        try:
            return type(vae).decode(vae, latents, *given, **named)
        except torch.OutOfMemoryError:
            if vae.use_tiling:
                raise
        torch.cuda.empty_cache()  # 出了 except，刚才那些中间结果才放得掉
        vae.enable_tiling()
        return type(vae).decode(vae, latents, *given, **named)

    vae.decode = decode
