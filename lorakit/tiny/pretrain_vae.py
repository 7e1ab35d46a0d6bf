"""微型 VAE 的训练：L1 + MSE + 梯度损失 + 很小的 KL，先看小块、后看整图。"""

import time
from pathlib import Path
from types import MethodType

import torch
from torch.nn import functional as F

from lorakit.families.qwen_image import single_frame
from lorakit.tiny import corpus, shapes
from lorakit.tiny.clock import Clock, adamw, checked_compile, set_lr, to_device


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


def psnr(vae, images: torch.Tensor) -> float:
    """[-1, 1] 的图 -> 平均 PSNR（dB），经 stock 的 encode / decode。"""
    with torch.no_grad():
        z = vae.encode(images[:, :, None]).latent_dist.mode()
        out = vae.decode(z).sample[:, :, 0].clamp(-1, 1)
    mse = ((out - images) / 2).pow(2).flatten(1).mean(1)
    return float((-10 * torch.log10(mse)).mean())


def _crops(x: torch.Tensor, size: int, generator) -> torch.Tensor:
    """每张图取两个候选小块，留下细节多的那个：平坦的天空学几次就够了。"""
    best, energy = None, None
    for _ in range(2):
        top, left = (
            torch.randint((x.shape[-1] - size) // 8 + 1, (2,), generator=generator, device=x.device)
            * 8
        ).tolist()
        part = x[:, :, top : top + size, left : left + size]
        detail = part.diff(dim=-1).abs().mean((1, 2, 3)) + part.diff(dim=-2).abs().mean((1, 2, 3))
        if best is None:
            best, energy = part, detail
        else:
            best = torch.where((detail > energy)[:, None, None, None], part, best)
    return best.contiguous(memory_format=torch.channels_last)


def train_vae(out, device, steps: int, minutes: float, workers: int | None, size: int = 24_000):
    """训练 VAE 并写进 out/vae；返回步数、秒数、PSNR。"""
    torch.manual_seed(0)
    # 先渲染、后碰 GPU：渲染要开子进程，CUDA 初始化之后再开容易死锁
    pixels = corpus.vae_corpus(int(size * 0.7), int(size * 0.3), workers=workers)
    fresh = corpus.vae_corpus(100, 0, seed=999, workers=workers)
    data, fresh = to_device(pixels, device), to_device(fresh, device).float() / 127.5 - 1
    print(f"VAE 的图：{len(data)} 张", flush=True)
    vae = flatten(shapes.qwen_vae()).to(device).train()
    with torch.no_grad():
        vae.quant_conv.bias[16:] = -6  # 从很小的后验噪声起步，否则潜变量还没学会说话就被噪声盖住
    generator = torch.Generator(device).manual_seed(0)
    optimizer, clock = adamw(vae.parameters()), Clock(steps, minutes)

    def step_loss(x, noise):
        mean, logvar = vae.quant_conv(vae.encoder(x)).chunk(2, dim=1)
        logvar = logvar.clamp(-30, 10)
        y = vae.decoder(vae.post_quant_conv(mean + noise * torch.exp(0.5 * logvar))).float()
        kl = 0.5 * (mean.float() ** 2 + logvar.exp().float() - 1 - logvar.float()).mean()
        error = y - x
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        return error.abs().mean() + 2 * error.pow(2).mean() + edges + 1e-3 * kl

    if device.type == "cuda":
        with torch.autocast(device.type, torch.bfloat16):
            x = _crops(data[:32].float() / 127.5 - 1, 64, generator)
            noise = torch.randn(32, 16, 8, 8, device=device, generator=generator)
            step_loss = checked_compile(step_loss, list(vae.parameters()), x, noise)
    batch = 32 if device.type == "cpu" else 128
    for step in clock:
        set_lr(optimizer, clock.lr(1.5e-3))
        late = clock.progress() > 0.85
        count = batch // 4 if late else batch
        index = torch.randint(len(data), (count,), generator=generator, device=device)
        x = data[index].float() / 127.5 - 1
        x = x.contiguous(memory_format=torch.channels_last) if late else _crops(x, 64, generator)
        side = x.shape[-1] // 8
        noise = torch.randn(count, 16, side, side, device=device, generator=generator)
        with torch.autocast(device.type, torch.bfloat16):
            loss = step_loss(x, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 500 == 0:
            print(f"vae {step} loss {loss.item():.4f} {time.time() - clock.start:.0f}s", flush=True)
    seconds = round(time.time() - clock.start)
    _finish(vae, data[: int(size * 0.7)], generator)
    vae.to(torch.bfloat16).save_pretrained(out / "vae")
    return {"steps": clock.step, "seconds": seconds, "psnr_world": psnr(vae.float(), fresh)}


def _finish(vae, data: torch.Tensor, generator):
    """清掉从未用到的时间切片，量好潜变量的均值与标准差。"""
    restore(vae).eval()
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d) and module.kernel_size[0] == 3:
            module.weight.data[:, :, :-1] = 0
    latents = []
    with torch.no_grad():
        for _ in range(8):
            index = torch.randint(len(data), (64,), generator=generator, device=data.device)
            x = data[index].float() / 127.5 - 1
            latents.append(vae.encode(x[:, :, None]).latent_dist.mode())
    z = torch.cat(latents)
    vae.register_to_config(
        latents_mean=z.mean((0, 2, 3, 4)).tolist(), latents_std=z.std((0, 2, 3, 4)).tolist()
    )
