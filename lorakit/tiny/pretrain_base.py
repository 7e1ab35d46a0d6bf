"""微型底模的训练：文本编码器与 Transformer 一起，从零学 flow matching。"""

import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lorakit.families.qwen_image import pack
from lorakit.tiny import corpus, shapes, tokenizer
from lorakit.tiny.clock import Clock, adamw, checked_compile, set_lr, to_device
from lorakit.tiny.examiner import HEADS
from lorakit.tiny.figures import FIGURES
from lorakit.tiny.pretrain_vae import flatten, open_vae, restore
from lorakit.tiny.world import BACKGROUNDS, COLORS, SIDES, SIZES

NAMED = ("object", "color", "background", "side", "size")  # 文本编码器要学会说出的内容
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
        pixels, texts, scenes = corpus.base_corpus(size, workers=workers)
        said = [[caption_labels(s, t) for t in row] for s, row in zip(scenes, texts, strict=True)]
        self.labels = torch.tensor(said, device=device)  # (N, 5 句, 5 项)
        self.drop = pipe.prompt_template_encode_start_idx
        template, limit = pipe.prompt_template_encode, self.drop + WORDS
        ids, length = tokenize(pipe.tokenizer, texts, template, limit)
        empty = tokenize(pipe.tokenizer, [["", " "]], template, limit)
        self.ids, self.length = (torch.from_numpy(a).to(device) for a in (ids, length))
        self.empty_ids, self.empty_length = (torch.from_numpy(a[0]).to(device) for a in empty)
        self.mean, self.std = encode_all(vae.to(device), to_device(pixels, device))
        self.generator = torch.Generator(device).manual_seed(0)
        self.device = device

    def _width(self, length: torch.Tensor) -> int:
        """CPU 上只补齐到这一批的最长；GPU 上总补到全集的最长，形状不变，就不必重新编译。"""
        longest = (length if self.device.type == "cpu" else self.length).max()
        return -(-int(longest) // 8) * 8

    def batch(self, size: int):
        pick = dict(generator=self.generator, device=self.device)
        i = torch.randint(len(self.mean), (size,), **pick)
        k = torch.randint(self.ids.shape[1], (size,), **pick)
        blank, which = torch.rand(size, **pick) < 0.1, torch.randint(2, (size,), **pick)
        ids = torch.where(blank[:, None], self.empty_ids[which], self.ids[i, k])
        length = torch.where(blank, self.empty_length[which], self.length[i, k])
        labels = self.labels[i, k].masked_fill(blank[:, None], -100)
        ids = ids[:, : self._width(length)]
        x0 = self.mean[i].float()
        x0 = x0 + self.std[i].float() * torch.randn(x0.shape, **pick)
        noise = torch.randn(x0.shape, **pick)
        t = torch.sigmoid(torch.randn(size, **pick))
        x_t = (1 - t[:, None, None]) * x0 + t[:, None, None] * noise
        return ids, length - self.drop, labels, x_t, noise - x0, t


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


def _optimizers(model: nn.Module):
    """隐藏层的矩阵用 Muon（同样的样本学得更多），其余用 AdamW。"""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        hidden = parameter.dim() == 2 and "transformer_blocks" in name
        (matrices if hidden else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw(others)], [*matrices, *others]


def caption_labels(scene, text: str) -> list[int]:
    """描述里说到的物体、颜色、背景、位置、大小的类别号；没说到或有两件东西的填 -100。"""
    back = BACKGROUNDS[scene.background]
    rest = text.replace(back[0], "").replace(back[1], "")  # “大海”里的“大”不是大小
    found = [-100] * len(NAMED)
    found[2] = list(BACKGROUNDS).index(scene.background) if rest != text else -100
    if len(scene.things) == 2:
        return found
    thing = scene.things[0]
    _, _, *names = FIGURES[thing.kind]
    words = (names, (COLORS[thing.color][0], thing.color), None, SIDES[thing.side][:2])
    values = (thing.kind, thing.color, None, thing.side, thing.size)
    for i, options in enumerate((*words, SIZES[thing.size][:2])):
        if options and any(word in rest for word in options):
            found[i] = list(HEADS[NAMED[i]]).index(values[i])
    return found


class BaseModel(nn.Module):
    """文本编码器、Transformer 与几个只在预训练时用的“说出内容”的线性头。

    只靠画图的损失，颜色与物体要看几百万张才会听话；让文本编码器先在最后一个词元上
    把内容说清楚，Transformer 就有现成的条件可用（多任务，头不随模型发布）。
    """

    def __init__(self, pipe, naming: float):
        super().__init__()
        self.naming = naming  # “说出内容”占多大的份量
        self.language = pipe.text_encoder.model.language_model
        self.transformer = pipe.transformer
        self.drop = pipe.prompt_template_encode_start_idx
        width = self.language.config.hidden_size
        self.heads = nn.ModuleList(nn.Linear(width, len(HEADS[name])) for name in NAMED)

    def read(self, ids, length, labels) -> tuple[torch.Tensor, torch.Tensor]:
        """词元 -> (丢掉模板开头的隐状态 (B, L, D), 说出内容的交叉熵)。"""
        hidden = self.language(input_ids=ids, use_cache=False).last_hidden_state[:, self.drop :]
        last = hidden[torch.arange(len(ids), device=ids.device), length - 1].float()
        scores = [head(last) for head in self.heads]
        losses = [
            F.cross_entropy(score, label, ignore_index=-100, reduction="sum") / len(ids)
            for score, label in zip(scores, labels.unbind(1), strict=True)
        ]
        return hidden, sum(losses)

    def forward(self, ids, length, labels, x_t, target, t):
        """一步的损失：与真速度的均方误差，加一点“说出内容”。"""
        hidden, named = self.read(ids, length, labels)
        mask = torch.arange(hidden.shape[1], device=hidden.device)[None] < length[:, None]
        v = self.transformer(
            hidden_states=x_t,
            encoder_hidden_states=hidden,
            encoder_hidden_states_mask=mask,
            timestep=t,
            img_shapes=[[(1, 8, 8)]] * len(t),
            return_dict=False,
        )[0]
        return F.mse_loss(v.float(), target) + self.naming * named


def warm_up_text(model: BaseModel, data: BaseData, steps: int, batch: int):
    """先单独教文本编码器：读完描述，说出内容。"""
    parameters = [*model.language.parameters(), *model.heads.parameters()]
    optimizer, clock = adamw(parameters), Clock(steps, minutes=3)
    for step in clock:
        set_lr(optimizer, clock.lr(2e-3, 20))
        ids, length, labels, *_ = data.batch(batch)
        with torch.autocast(data.device.type, torch.bfloat16):
            loss = model.read(ids, length, labels)[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"text {step} loss {loss.item():.3f}", flush=True)


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
    if start:
        for part in (pipe.text_encoder, pipe.transformer):
            name = "text_encoder" if part is pipe.text_encoder else "transformer"
            part.load_state_dict(type(part).from_pretrained(start / name).state_dict())
    data = BaseData(pipe, vae, size, device, workers)
    print(f"底模的图：{size} 张，最长描述 {int(data.length.max()) - data.drop} 个词元", flush=True)
    model = BaseModel(pipe, naming=0.0 if start else 0.1).to(device).train()
    if not start:
        warm_up_text(model, data, 200, batch * 2)
    optimizers, parameters = _optimizers(model)
    average = [p.detach().clone() for p in parameters]
    clock, recent, step_loss = Clock(steps, minutes), 1.0, model
    peak = 1e-3 if start else 1.5e-3
    if device.type == "cuda":
        with torch.autocast(device.type, torch.bfloat16):
            step_loss = checked_compile(model, parameters, *data.batch(batch))
    for step in clock:
        set_lr(optimizers[0], clock.lr(2 * peak, 300))
        set_lr(optimizers[1], clock.lr(peak, 300))
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
    # transformers 按 config 里的精度打开、diffusers 默认 fp32；写成 fp32，整条管线才一致
    config = out / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "bfloat16"', '"dtype": "float32"'))
    pipe.scheduler.save_pretrained(out / "scheduler")
    pipe.save_config(out)
    for p, k in zip(parameters, kept, strict=True):
        p.copy_(k)
