"""考官的训练：在渲染图及其 VAE 重建上学认东西。"""

import time
from pathlib import Path

import torch
from torch.nn import functional as F

from lorakit.tiny.examiner import HEADS, Examiner, augment
from lorakit.tiny.pretrain import corpus
from lorakit.tiny.pretrain.clock import Clock, adamw, set_lr, to_device
from lorakit.tiny.pretrain.vae import flatten, open_vae


def train_examiner(
    out: Path, device, steps: int, minutes: float, workers: int | None, size: int = 30_000
):
    """考官：在渲染图及其 VAE 重建上学认东西；写 out/examiner.safetensors。"""
    from safetensors.torch import save_file

    torch.manual_seed(1)
    pixels, labels = corpus.examiner_corpus(size, workers=workers)
    unseen, truth = corpus.examiner_corpus(3000, seed=12345, workers=workers)
    data, labels = to_device(pixels, device), torch.from_numpy(labels).to(device)
    if (out / "vae").exists():  # 生成的图都要过 VAE，考官应当见过 VAE 的手笔
        _reconstruct(data[: size // 8], open_vae(out, device))
    model = Examiner().to(device, memory_format=torch.channels_last)
    generator = torch.Generator(device).manual_seed(0)
    optimizer, clock = adamw(model.parameters()), Clock(steps, minutes)
    for step in clock:
        set_lr(optimizer, clock.lr(3e-3, 50))
        index = torch.randint(len(data), (128,), generator=generator, device=device)
        x = augment(data[index].float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            scores = {name: score.float() for name, score in model(x).items()}
        loss = sum(
            F.cross_entropy(scores[name], labels[index, i], label_smoothing=0.02)
            for i, name in enumerate(HEADS)
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 200 == 0:
            print(
                f"examiner {step} loss {loss.item():.3f} {time.time() - clock.start:.0f}s",
                flush=True,
            )
    facts = clock.facts()
    save_file(
        {k: v.half().contiguous() for k, v in model.state_dict().items()},
        out / "examiner.safetensors",
    )
    accuracy = _accuracy(
        model.half().float().eval(), to_device(unseen, device), torch.from_numpy(truth).to(device)
    )
    return facts | {"accuracy": accuracy}


@torch.no_grad()
def _accuracy(model: Examiner, pixels: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    parts = [model(chunk.float() / 127.5 - 1) for chunk in pixels.split(250)]
    facts = {}
    for i, name in enumerate(HEADS):
        picked, known = torch.cat([p[name] for p in parts]).argmax(-1), truth[:, i] != -100
        facts[name] = float((picked == truth[:, i])[known].float().mean())
    return facts


@torch.no_grad()
def _reconstruct(data: torch.Tensor, vae):
    """把 uint8 图就地换成它的 VAE 重建。"""
    flatten(vae)
    for chunk in data.split(32):
        x = (chunk.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(data.device.type, torch.bfloat16):
            mean = vae.quant_conv(vae.encoder(x)).chunk(2, dim=1)[0]
            y = vae.decoder(vae.post_quant_conv(mean)).float()
        chunk.copy_(((y.clamp(-1, 1) + 1) * 127.5).round().byte())
