"""tiny-qwen-image 底模的训练：文本编码器与 Transformer 一起，从零学 flow matching。"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lorakit.tiny.pretrain import corpus, shapes, tokenizer
from lorakit.tiny.pretrain.clock import Clock, to_device
from lorakit.tiny.pretrain.loop import (
    Batches,
    Naming,
    encode_all,
    fit,
    load_part,
    save_part,
    warm_up_text,
)
from lorakit.tiny.pretrain.vae import flatten, open_vae, restore

WORDS = 48  # 描述最多几个词元（含模板的结尾）


def tokenize(tok, texts: list[list[str]], template: str, limit: int) -> dict[str, torch.Tensor]:
    """每张图的几句描述 -> 词元 ids (N, K, limit) 与 length (N, K)。"""
    flat = [template.format(text) for group in texts for text in group]
    table = np.full((len(flat), limit), tok.pad_token_id, np.int64)
    length = np.empty(len(flat), np.int64)
    for i, row in enumerate(tok(flat)["input_ids"]):
        length[i] = min(len(row), limit)
        table[i, : length[i]] = row[:limit]
    shape = (len(texts), len(texts[0]))
    return {
        "ids": torch.from_numpy(table).view(*shape, limit),
        "length": torch.from_numpy(length).view(shape),
    }


class BaseData(Batches):
    """Qwen 的一批批：描述套好模板，补齐到够用的宽度。"""

    def __init__(self, pipe, vae, size: int, device, workers: int | None):
        pixels, texts, scenes = corpus.base_corpus(size, workers=workers)
        template = pipe.prompt_template_encode
        limit = pipe.prompt_template_encode_start_idx + WORDS
        words = tokenize(pipe.tokenizer, texts, template, limit)
        empty = tokenize(pipe.tokenizer, [["", " "]], template, limit)
        latents = encode_qwen(vae.to(device), to_device(pixels, device))
        super().__init__(latents, words, {k: v[0] for k, v in empty.items()}, scenes, texts, device)

    def batch(self, size: int):
        words, *rest = super().batch(size)
        # CPU 上只补齐到这一批的最长；GPU 上总补到全集的最长，形状不变，就不必重新编译
        length = (words if self.device.type == "cpu" else self.words)["length"]
        width = -(-int(length.max()) // 8) * 8
        return {**words, "ids": words["ids"][:, :width]}, *rest


def encode_qwen(vae, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """全部图 -> 归一化、打包好的潜变量均值与标准差。"""
    shift, scale = (
        torch.tensor(numbers, device=pixels.device).view(1, -1, 1, 1)
        for numbers in (vae.config.latents_mean, vae.config.latents_std)
    )
    flatten(vae)
    latents = encode_all(lambda x: vae.quant_conv(vae.encoder(x)).chunk(2, 1), pixels, shift, scale)
    restore(vae)
    return latents


class BaseModel(nn.Module):
    """文本编码器、Transformer 与“说出内容”的头；头看的是描述的最后一个词元。"""

    def __init__(self, pipe, naming: float):
        super().__init__()
        self.weight = naming  # “说出内容”占多大的份量
        self.language = pipe.text_encoder.model.language_model
        self.transformer = pipe.transformer
        self.drop = pipe.prompt_template_encode_start_idx
        self.naming = Naming(self.language.config.hidden_size)

    def read(self, words, labels) -> tuple[torch.Tensor, torch.Tensor]:
        """词元 -> (丢掉模板开头的隐状态 (B, L, D), 说出内容的交叉熵)。"""
        ids, last = words["ids"], words["length"] - self.drop - 1
        hidden = self.language(input_ids=ids, use_cache=False).last_hidden_state[:, self.drop :]
        return hidden, self.naming(hidden[torch.arange(len(ids), device=ids.device), last], labels)

    def forward(self, words, labels, x_t, target, t):
        """一步的损失：与真速度的均方误差，加一点“说出内容”。"""
        hidden, named = self.read(words, labels)
        place = torch.arange(hidden.shape[1], device=hidden.device)
        v = self.transformer(
            hidden_states=x_t,
            encoder_hidden_states=hidden,
            encoder_hidden_states_mask=place[None] < words["length"][:, None] - self.drop,
            timestep=t,
            img_shapes=[[(1, 8, 8)]] * len(t),
            return_dict=False,
        )[0]
        return F.mse_loss(v.float(), target) + self.weight * named


def train_base(
    out: Path, device, steps: int, minutes: float, workers, size=120_000, batch=256, start=None
):
    """文生图底模：文本编码器与 Transformer 一起学 flow matching；写 out 下的整条管线。

    Args:
        start: 接着练的文件夹（里面有 text_encoder 与 transformer）；不给就从零开始。
    """
    torch.manual_seed(2)
    torch.set_float32_matmul_precision("high")
    tokenizer.train(out / "tokenizer")
    vae = open_vae(out, torch.device("cpu"))
    pipe = shapes.qwen_pipeline(out / "tokenizer", vae=vae)
    parts = {"text_encoder": pipe.text_encoder, "transformer": pipe.transformer}
    if start:
        for name, part in parts.items():
            load_part(part, start / name)
    data = BaseData(pipe, vae, size, device, workers)
    print(f"底模的图：{size} 张，最长描述 {int(data.words['length'].max())} 个词元", flush=True)
    model = BaseModel(pipe, naming=0.0 if start else 0.1).to(device).train()
    if not start:
        learned = [*model.language.parameters(), *model.naming.parameters()]
        warm_up_text(model.read, learned, data, min(200, steps), batch * 2)

    def save():
        for name, part in parts.items():
            save_part(part, out / name)
        pipe.scheduler.save_pretrained(out / "scheduler")
        pipe.save_config(out)

    clock = Clock(steps, minutes)
    loss = fit(model, lambda: data.batch(batch), clock, device, 1e-3 if start else 1.5e-3, save)
    return clock.facts(batch=batch, pictures=size, loss=loss)
