"""微型 VAE 的训练：L1 + MSE + 梯度损失 + 很小的 KL，先看小块、后看整图。"""

import time
from pathlib import Path
from types import MethodType

import torch
from torch.nn import functional as F

from lorakit.families.qwen_image import single_frame
from lorakit.tiny.pretrain import corpus, shapes
from lorakit.tiny.pretrain.clock import Clock, adamw, checked_compile, set_lr, to_device


def _conv(self, x, cache_x=None):
    pad = (self._padding[2], self._padding[0])
    return F.conv2d(x, self.weight[:, :, -1], self.bias, self.stride[1:], pad)


def _norm(self, x):
    scale = (x.float().pow(2).mean(1, keepdim=True) + 1e-12).rsqrt().to(x.dtype)
    return x * scale * self.gamma.view(1, -1, 1, 1).to(x.dtype)


def _resample(self, x, *_, **__):
    return self.resample(x)


def _attention(self, x):
    return type(self).forward(self, x.unsqueeze(2)).squeeze(2)


def flatten(vae):
    """把只看单张图的 AutoencoderKLQwenImage 就地改成 4-D 运算：同一份权重，训练快三倍。

    encoder / decoder 此后收 (B, C, H, W)；`restore` 改回来。时间切片只用最后一片，结果不变。
    """
    from diffusers.models.autoencoders import autoencoder_kl_qwenimage as module

    inner = [m.norm for m in vae.modules() if isinstance(m, module.QwenImageAttentionBlock)]
    swap = {
        module.QwenImageCausalConv3d: _conv,
        module.QwenImageRMS_norm: _norm,
        module.QwenImageResample: _resample,
        module.QwenImageAttentionBlock: _attention,
    }
    for m in vae.modules():
        if type(m) in swap and not any(
            m is norm for norm in inner
        ):  # 注意力块里的归一化本来就是 4-D
            m.forward = MethodType(swap[type(m)], m)
    return vae


def restore(vae):
    for m in vae.modules():
        m.__dict__.pop("forward", None)
    return vae


def open_vae(out: Path, device):
    """打开 out/vae，单帧快路，供推理用。"""
    from diffusers import AutoencoderKLQwenImage

    return single_frame(AutoencoderKLQwenImage.from_pretrained(out / "vae")).to(device)


@torch.no_grad()
def psnr(there_and_back, images: torch.Tensor) -> float:
    """[-1, 1] 的图 -> 编码再解码后的平均 PSNR（dB）。"""
    out = torch.cat([there_and_back(part) for part in images.split(32)]).clamp(-1, 1)
    mse = ((out - images) / 2).pow(2).flatten(1).mean(1)
    return float((-10 * torch.log10(mse)).mean())


def _crops(x: torch.Tensor, size: int, places: torch.Generator) -> torch.Tensor:
    """每张图取两个候选小块，留下细节多的那个：平坦的天空学几次就够了。

    Args:
        places: CPU 上的，抽小块在哪里：在显卡上抽，每步都要停下来等它。
    """
    best, energy = None, None
    for _ in range(2):
        most = (x.shape[-1] - size) // 8 + 1
        top, left = (torch.randint(most, (2,), generator=places) * 8).tolist()
        part = x[:, :, top : top + size, left : left + size]
        detail = part.diff(dim=-1).abs().mean((1, 2, 3)) + part.diff(dim=-2).abs().mean((1, 2, 3))
        if best is None:
            best, energy = part, detail
        else:
            best = torch.where((detail > energy)[:, None, None, None], part, best)
    return best.contiguous(memory_format=torch.channels_last)


def pictures(size: int, device, workers: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """训练用的图 uint8（前七成是小世界）与没见过的 100 张（不多于 size）小世界 [-1, 1]。"""
    # 先渲染、后碰 GPU：渲染要开子进程，CUDA 初始化之后再开容易死锁
    seen = corpus.vae_corpus(int(size * 0.7), size - int(size * 0.7), workers=workers)
    fresh = corpus.vae_corpus(min(100, size), 0, seed=999, workers=workers)
    return to_device(seen, device), to_device(fresh, device).float() / 127.5 - 1


def reconstruction_loss(x: torch.Tensor, y: torch.Tensor, mean, logvar) -> torch.Tensor:
    """L1 + 2 MSE + 边缘 + 很小的 KL；有透明通道的，越透明的地方颜色越不要紧。"""
    kl = 0.5 * (mean.float() ** 2 + logvar.exp().float() - 1 - logvar.float()).mean()
    error = y.float() - x
    if x.shape[1] == 4:
        seen = (x[:, 3:] / 2 + 0.52).clamp(max=1)  # 全透明的还留一点，颜色才有个归处
        error = error * torch.cat([seen.expand(-1, 3, -1, -1), torch.ones_like(seen)], dim=1)
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * error.pow(2).mean() + edges + 1e-3 * kl


def fit_vae(encode, decode, vae, data: torch.Tensor, device, clock: Clock, latent=(16, 8)):
    """练 VAE：先看 64x64 的小块，最后 15% 看整图。

    Args:
        encode: (B, 3 或 4, H, W) -> 后验的均值与对数方差，各 (B, C, h, w)。
        decode: (B, C, h, w) -> 图。
        latent: 潜变量有几个通道，每边缩小几倍。
    """
    channels, compression = latent
    parameters = list(vae.parameters())
    generator = torch.Generator(device).manual_seed(0)
    places = torch.Generator().manual_seed(0)
    optimizer = adamw(parameters)

    def step_loss(x, noise):
        mean, logvar = encode(x)
        logvar = logvar.clamp(-30, 10)
        return reconstruction_loss(x, decode(mean + noise * torch.exp(0.5 * logvar)), mean, logvar)

    if device.type == "cuda":
        with torch.autocast(device.type, torch.bfloat16):
            x = _crops(data[:32].float() / 127.5 - 1, 64, places)
            side = 64 // compression
            noise = torch.randn(32, channels, side, side, device=device, generator=generator)
            step_loss = checked_compile(step_loss, parameters, x, noise)
    batch = 32 if device.type == "cpu" else 128
    for step in clock:
        set_lr(optimizer, clock.lr(1.5e-3))
        late = clock.progress() > 0.85
        count = batch // 4 if late else batch
        index = torch.randint(len(data), (count,), generator=generator, device=device)
        x = data[index].float() / 127.5 - 1
        x = x.contiguous(memory_format=torch.channels_last) if late else _crops(x, 64, places)
        side = x.shape[-1] // compression
        noise = torch.randn(count, channels, side, side, device=device, generator=generator)
        with torch.autocast(device.type, torch.bfloat16):
            loss = step_loss(x, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 500 == 0:
            print(f"vae {step} loss {loss.item():.4f} {time.time() - clock.start:.0f}s", flush=True)


@torch.no_grad()
def latent_sample(encode, data: torch.Tensor) -> torch.Tensor:
    """随机（至多 512 张）小世界的后验均值，(N, 16, 16, 16)；用来量归一化的统计量。"""
    worlds = int(len(data) * 0.7)
    generator = torch.Generator(data.device).manual_seed(1)
    index = torch.randperm(worlds, generator=generator, device=data.device)[:512]
    return torch.cat([encode(data[i].float() / 127.5 - 1) for i in index.split(64)])


def train_vae(out, device, steps: int, minutes: float, workers: int | None, size: int = 24_000):
    """训练 Qwen 的 VAE 并写进 out/vae；返回步数、秒数、PSNR。"""
    torch.manual_seed(0)
    data, fresh = pictures(size, device, workers)
    print(f"VAE 的图：{len(data)} 张", flush=True)
    vae = flatten(shapes.qwen_vae()).to(device).train()
    with torch.no_grad():
        vae.quant_conv.bias[16:] = -6  # 从很小的后验噪声起步，否则潜变量还没学会说话就被噪声盖住
    clock = Clock(steps, minutes)
    fit_vae(
        lambda x: vae.quant_conv(vae.encoder(x)).chunk(2, dim=1),
        lambda z: vae.decoder(vae.post_quant_conv(z)),
        vae, data, device, clock,
    )  # fmt: skip
    facts = clock.facts()
    restore(vae).eval()
    with torch.no_grad():  # 清掉从未用到的时间切片
        for module in vae.modules():
            if isinstance(module, torch.nn.Conv3d) and module.kernel_size[0] == 3:
                module.weight[:, :, :-1] = 0

    def encode(x):
        return vae.encode(x[:, :, None]).latent_dist.mode()

    z = latent_sample(encode, data)
    vae.register_to_config(
        latents_mean=z.mean((0, 2, 3, 4)).tolist(), latents_std=z.std((0, 2, 3, 4)).tolist()
    )
    vae.to(torch.bfloat16).save_pretrained(out / "vae")
    vae.float()
    quality = psnr(lambda x: vae.decode(encode(x)).sample[:, :, 0], fresh)
    return facts | {"psnr_world": quality}
