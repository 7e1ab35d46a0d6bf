"""微型底模的训练：文本编码器与 Transformer 一起，从零学 flow matching。"""

import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from lorakit.families.qwen_image import pack
from lorakit.tiny import corpus, shapes, tokenizer
from lorakit.tiny.clock import Clock, adamw, checked_compile, set_lr, to_device
from lorakit.tiny.pretrain_vae import flatten, open_vae, restore

WORDS = 48  # 描述最多几个词元（含模板的结尾）


def tokenize(
    tok, texts: list[list[str]], template: str, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """每张图的几句描述 -> 词元 (N, K, limit) 与长度 (N, K)。"""
    flat = [template.format(text) for group in texts for text in group]
    table = np.full((len(flat), limit), tok.pad_token_id, np.int64)
    length = np.empty(len(flat), np.int64)
    for i, row in enumerate(tok(flat)["input_ids"]):
        length[i] = min(len(row), limit)
        table[i, : length[i]] = row[:limit]
    width = len(texts[0])
    return table.reshape(-1, width, limit), length.reshape(-1, width)


class BaseData:
    """底模训练的一批批：潜变量、噪声、t、词元；一张图有 5 句描述，10% 换成空描述。"""

    def __init__(self, pipe, vae, size: int, device, workers: int | None):
        pixels, texts, _ = corpus.base_corpus(size, workers=workers)
        self.drop = pipe.prompt_template_encode_start_idx
        template, limit = pipe.prompt_template_encode, self.drop + WORDS
        ids, length = tokenize(pipe.tokenizer, texts, template, limit)
        empty = tokenize(pipe.tokenizer, [["", " "]], template, limit)
        self.ids, self.length = (torch.from_numpy(a).to(device) for a in (ids, length))
        self.empty_ids, self.empty_length = (torch.from_numpy(a[0]).to(device) for a in empty)
        self.mean, self.std = encode_all(vae.to(device), to_device(pixels, device))
        self.generator = torch.Generator(device).manual_seed(0)
        self.device = device

    def batch(self, size: int):
        pick = dict(generator=self.generator, device=self.device)
        i = torch.randint(len(self.mean), (size,), **pick)
        k = torch.randint(self.ids.shape[1], (size,), **pick)
        blank, which = torch.rand(size, **pick) < 0.1, torch.randint(2, (size,), **pick)
        ids = torch.where(blank[:, None], self.empty_ids[which], self.ids[i, k])
        length = torch.where(blank, self.empty_length[which], self.length[i, k])
        ids = ids[:, : -(-int(length.max()) // 8) * 8]  # 只补齐到这一批的最长，取 8 的倍数
        x0 = self.mean[i].float()
        x0 = x0 + self.std[i].float() * torch.randn(x0.shape, **pick)
        noise = torch.randn(x0.shape, **pick)
        t = torch.sigmoid(torch.randn(size, **pick))
        x_t = (1 - t[:, None, None]) * x0 + t[:, None, None] * noise
        return ids, length - self.drop, x_t, noise - x0, t


@torch.no_grad()
def encode_all(vae, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """全部图 -> 归一化、打包好的潜变量均值与标准差，各 (N, 64, 64) bf16。"""
    shift = torch.tensor(vae.config.latents_mean, device=pixels.device).view(1, -1, 1, 1)
    scale = torch.tensor(vae.config.latents_std, device=pixels.device).view(1, -1, 1, 1)
    means, stds = [], []
    flatten(vae)
    for chunk in pixels.split(32):
        x = (chunk.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(pixels.device.type, torch.bfloat16):
            mean, logvar = vae.quant_conv(vae.encoder(x)).float().chunk(2, dim=1)
        means.append(pack((mean - shift) / scale).bfloat16())
        stds.append(pack(torch.exp(0.5 * logvar) / scale).bfloat16())
    restore(vae)
    return torch.cat(means), torch.cat(stds)


def _optimizers(text_encoder, transformer):
    """隐藏层的矩阵用 Muon（同样的样本学得更多），其余用 AdamW。"""
    matrices, others = [], [*text_encoder.model.language_model.parameters()]
    for name, parameter in transformer.named_parameters():
        hidden = parameter.dim() == 2 and name.startswith("transformer_blocks")
        (matrices if hidden else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw(others)], [*matrices, *others]


def flow_loss(pipe, drop: int):
    """一步的损失：词元 -> 文本编码器 -> Transformer -> 与真速度的均方误差。"""

    def loss(ids, length, x_t, target, t):
        model = pipe.text_encoder.model.language_model
        hidden = model(input_ids=ids, use_cache=False).last_hidden_state
        hidden = hidden[:, drop:]  # 丢掉模板的开头，与管线一致
        mask = torch.arange(hidden.shape[1], device=hidden.device)[None] < length[:, None]
        v = pipe.transformer(
            hidden_states=x_t,
            encoder_hidden_states=hidden,
            encoder_hidden_states_mask=mask,
            timestep=t,
            img_shapes=[[(1, 8, 8)]] * len(t),
            return_dict=False,
        )[0]
        return F.mse_loss(v.float(), target)

    return loss


def train_base(out: Path, device, steps: int, minutes: float, workers, size=120_000, batch=256):
    """文生图底模：文本编码器与 Transformer 一起，从零学 flow matching；写 out 下的整条管线。"""
    torch.manual_seed(2)
    torch.set_float32_matmul_precision("high")
    tokenizer.train(out / "tokenizer")
    vae = open_vae(out, torch.device("cpu"))
    pipe = shapes.qwen_pipeline(out / "tokenizer", vae=vae)
    data = BaseData(pipe, vae, size, device, workers)
    print(f"底模的图：{size} 张，最长描述 {int(data.length.max()) - data.drop} 个词元", flush=True)
    pipe.text_encoder.to(device).train()
    pipe.transformer.to(device).train()
    optimizers, parameters = _optimizers(pipe.text_encoder, pipe.transformer)
    average = [p.detach().clone() for p in parameters]
    clock, recent, step_loss = Clock(steps, minutes), 1.0, flow_loss(pipe, data.drop)
    if device.type == "cuda":
        with torch.autocast(device.type, torch.bfloat16):
            step_loss = checked_compile(step_loss, parameters, *data.batch(batch))
    for step in clock:
        set_lr(optimizers[0], clock.lr(3e-3, 300))
        set_lr(optimizers[1], clock.lr(1.5e-3, 300))
        with torch.autocast(device.type, torch.bfloat16):
            loss = step_loss(*data.batch(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        torch._foreach_lerp_(average, parameters, 1 - min(0.999, (step + 1) / (step + 10)))
        recent += (loss.detach() - recent) * 0.01
        if step % 200 == 0:
            seconds = time.time() - clock.start
            print(f"base {step} loss {float(recent):.4f} {seconds:.0f}s", flush=True)
        if step % 1000 == 999:
            _save_base(pipe, parameters, average, out)
    _save_base(pipe, parameters, average, out)
    facts = {"steps": clock.step, "batch": batch, "pictures": size, "loss": float(recent)}
    return facts | {"seconds": round(time.time() - clock.start)}


@torch.no_grad()
def _save_base(pipe, parameters, average, out: Path):
    """把滑动平均的权重以 bf16 写成 diffusers 布局；训练中的权重不动。"""
    kept = [p.detach().clone() for p in parameters]
    for p, a in zip(parameters, average, strict=True):
        p.copy_(a)
    for part in (pipe.text_encoder, pipe.transformer):
        whole = [p.data for p in part.parameters()]
        for p in part.parameters():
            p.data = p.data.bfloat16()
        part.save_pretrained(out / ("text_encoder" if part is pipe.text_encoder else "transformer"))
        for p, data in zip(part.parameters(), whole, strict=True):
            p.data = data
    pipe.scheduler.save_pretrained(out / "scheduler")
    pipe.save_config(out)
    for p, k in zip(parameters, kept, strict=True):
        p.copy_(k)
