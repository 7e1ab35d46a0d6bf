"""tiny-flux 的训练：VAE；CLIP、T5 与 Transformer 一起学画；再把引导蒸馏进模型里。"""

from copy import deepcopy
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from lorakit import flow
from lorakit.tiny.pretrain import corpus, shapes, tokenizer_flux
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
from lorakit.tiny.pretrain.vae import fit_vae, latent_sample, pictures, psnr

GUIDANCE = (1.0, 5.0)  # 蒸馏进模型里的引导范围
TEACHER = "teacher"  # 没有蒸馏过的 Transformer 存在这里，蒸馏可以重做；不随模型发布


def train_vae(out: Path, device, steps: int, minutes: float, workers, size: int = 24_000):
    """训练 AutoencoderKL 并写进 out/vae；返回步数、秒数、PSNR。"""
    torch.manual_seed(0)
    data, fresh = pictures(size, device, workers)
    vae = shapes.flux_vae().to(device, memory_format=torch.channels_last).train()
    with torch.no_grad():
        vae.encoder.conv_out.bias[16:] = -6  # 从很小的后验噪声起步
    clock = Clock(steps, minutes)
    fit_vae(lambda x: vae.encoder(x).chunk(2, dim=1), vae.decoder, vae, data, device, clock)
    facts = clock.facts()
    vae.eval()

    def encode(x):
        return vae.encode(x).latent_dist.mode()

    z = latent_sample(encode, data)  # 这个类只有一个标量的均值和标准差
    vae.register_to_config(shift_factor=z.mean().item(), scaling_factor=1 / z.std().item())
    vae.to(torch.bfloat16).save_pretrained(out / "vae")
    vae.float()
    quality = psnr(lambda x: vae.decode(encode(x)).sample, fresh)
    return facts | {"psnr_world": quality}


def tokenize(pipe, texts: list[list[str]]) -> dict[str, torch.Tensor]:
    """每张图的几句描述 -> CLIP 与 T5 的词元，各 (N, K, L)，与 stock 管线补齐得一样。"""
    flat = [text for group in texts for text in group]
    words = {}
    for name, tok in (("clip", pipe.tokenizer), ("t5", pipe.tokenizer_2)):
        options = dict(padding="max_length", truncation=True, max_length=tok.model_max_length)
        chunks = [  # 几十万句一次编码要几个 GB 的内存
            torch.tensor(tok(flat[i : i + 10_000], **options)["input_ids"])
            for i in range(0, len(flat), 10_000)
        ]
        words[name] = torch.cat(chunks).view(len(texts), len(texts[0]), -1)
    return words


def flux_batches(pipe, size: int, device, workers: int | None) -> Batches:
    """底模与蒸馏共用的一批批。"""
    pixels, texts, scenes = corpus.base_corpus(size, workers=workers)
    words, empty = tokenize(pipe, texts), tokenize(pipe, [["", " "]])
    # CLIP 是因果的、只取第一个 eos 处的向量：后面全是补齐，截掉不影响结果，省一半算力
    end = (words["clip"] == pipe.tokenizer.eos_token_id).int().argmax(-1).max().item() + 1
    for table in (words, empty):
        table["clip"] = table["clip"][..., :end]
    vae = pipe.vae.to(device)
    latents = encode_all(
        lambda x: vae.encoder(x).chunk(2, dim=1),
        to_device(pixels, device),
        vae.config.shift_factor,
        1 / vae.config.scaling_factor,
    )
    return Batches(latents, words, {k: v[0] for k, v in empty.items()}, scenes, texts, device)


class FluxModel(nn.Module):
    """两个文本编码器、Transformer 与“说出内容”的头；头看 T5 的最后一个真词元与 CLIP 的句子向量。"""

    def __init__(self, pipe, naming: float):
        super().__init__()
        self.weight = naming  # “说出内容”占多大的份量
        self.clip, self.t5 = pipe.text_encoder, pipe.text_encoder_2
        self.transformer = pipe.transformer
        self.end = pipe.tokenizer_2.eos_token_id
        self.name_clip = Naming(self.clip.config.hidden_size)
        self.name_t5 = Naming(self.t5.config.d_model)
        grid = torch.cartesian_prod(torch.arange(1), torch.arange(8), torch.arange(8)).float()
        # forward 把 t 与引导换成 x_embedder 输出的精度再乘 1000：bf16 会把 3500 变成 3504，
        # 正弦编码就变了样，与 fp32 推理对不上
        self.transformer.x_embedder.register_forward_hook(lambda *call: call[-1].float())
        self.register_buffer("img_ids", grid, persistent=False)
        self.register_buffer("txt_ids", torch.zeros(tokenizer_flux.LENGTH, 3), persistent=False)

    def encode(self, words) -> tuple[torch.Tensor, torch.Tensor]:
        """词元 -> (T5 的隐状态 (B, 32, D), CLIP 的句子向量 (B, D))；与 stock 一样不给掩码。"""
        return self.t5(words["t5"])[0], self.clip(words["clip"]).pooler_output

    def read(self, words, labels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """词元 -> (隐状态, 句子向量, 说出内容的交叉熵)。"""
        text, pooled = self.encode(words)
        last = (words["t5"] == self.end).int().argmax(1)
        sentence = text[torch.arange(len(text), device=text.device), last]
        return text, pooled, self.name_t5(sentence, labels) + self.name_clip(pooled, labels)

    def velocity(self, text, pooled, x_t, t, guidance) -> torch.Tensor:
        return self.transformer(
            hidden_states=x_t,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=t,
            guidance=guidance,
            img_ids=self.img_ids,
            txt_ids=self.txt_ids,
            return_dict=False,
        )[0].float()

    def forward(self, words, labels, x_t, target, t):
        """一步的损失：与真速度的均方误差，加一点“说出内容”；引导总是 1。"""
        text, pooled, named = self.read(words, labels)
        v = self.velocity(text, pooled, x_t, t, torch.ones_like(t))
        return F.mse_loss(v, target) + self.weight * named


def open_parts(out: Path):
    """炼好的 VAE 与分词器、随机权重的其余部分 -> (管线, 存盘的文件夹名 -> 要学的部分)。"""
    from diffusers import AutoencoderKL

    pipe = shapes.flux_pipeline(out, vae=AutoencoderKL.from_pretrained(out / "vae"))
    encoders = {"text_encoder": pipe.text_encoder, "text_encoder_2": pipe.text_encoder_2}
    return pipe, {**encoders, TEACHER: pipe.transformer}


def train_base(
    out: Path, device, steps: int, minutes: float, workers, size=120_000, batch=256, start=None
):
    """CLIP、T5 与 Transformer 一起学 flow matching；写 out 下的整条管线，引导还不起作用。

    Args:
        start: 接着练的文件夹（里面有 text_encoder、text_encoder_2 与 teacher）；不给就从零开始。
    """
    torch.manual_seed(2)
    torch.set_float32_matmul_precision("high")
    tokenizer_flux.train(out)
    pipe, parts = open_parts(out)
    if start:
        for name, part in parts.items():
            load_part(part, start / name)
    mute_guidance(pipe.transformer)
    data = flux_batches(pipe, size, device, workers)
    print(f"底模的图：{size} 张，CLIP 最长 {data.words['clip'].shape[-1]} 个词元", flush=True)
    model = FluxModel(pipe, naming=0.0 if start else 0.1).to(device).train()
    if not start:
        learned = [p for name, p in model.named_parameters() if not name.startswith("transformer")]
        warm_up_text(model.read, learned, data, min(200, steps), batch * 2)

    def save():
        for name, part in parts.items():
            save_part(part, out / name)
        save_part(pipe.transformer, out / "transformer")
        pipe.scheduler.save_pretrained(out / "scheduler")
        pipe.save_config(out)

    clock = Clock(steps, minutes)
    loss = fit(model, lambda: data.batch(batch), clock, device, 1e-3 if start else 1.5e-3, save)
    return clock.facts(batch=batch, pictures=size, loss=loss)


@torch.no_grad()
def mute_guidance(transformer):
    """引导的输入清零、冻住：没有蒸馏之前，喂多少都一样。"""
    embedder = transformer.time_text_embed.guidance_embedder
    for parameter in embedder.linear_2.parameters():
        parameter.zero_()
    embedder.requires_grad_(False)


class Distillation(nn.Module):
    """学生看着引导值 g 直接给出老师的 uncond + g (cond - uncond)；g = 1 就是老师自己。"""

    def __init__(self, base: FluxModel, empty: dict[str, torch.Tensor]):
        super().__init__()
        self.student, self.teacher = base, deepcopy(base).requires_grad_(False).eval()
        for part in (base.clip, base.t5, base.name_clip, base.name_t5):
            part.requires_grad_(False)
        base.transformer.requires_grad_(True)
        with torch.no_grad():
            text, pooled = base.encode({name: table[:1] for name, table in empty.items()})
        self.register_buffer("blank_text", text)
        self.register_buffer("blank_pooled", pooled)

    def forward(self, words, x_t, t, guidance):
        with torch.no_grad():
            text, pooled = self.teacher.encode(words)
            blank = self.blank_text.expand_as(text), self.blank_pooled.expand_as(pooled)
            one = torch.ones_like(t)
            cond = self.teacher.velocity(text, pooled, x_t, t, one)
            uncond = self.teacher.velocity(*blank, x_t, t, one)
            target = flow.guide(cond, uncond, guidance[:, None, None])
        error = flow.loss(self.student.velocity(text, pooled, x_t, t, guidance), target)
        return (error / guidance).mean()  # 引导越大目标越大，不除就没人管 g = 1 了


def draw_guidance(count: int, generator: torch.Generator) -> torch.Tensor:
    """每个样本的引导值，(count,)：两成正好是 1（训练 LoRA 时用它），其余在范围里均匀。"""
    low, high = GUIDANCE
    pick = dict(generator=generator, device=generator.device)
    g = low + (high - low) * torch.rand(count, **pick)
    return torch.where(torch.rand(count, **pick) < 0.2, low, g)


def train_distill(
    out: Path, device, steps: int, minutes: float, workers, size=60_000, batch=256, start=None
):
    """把引导蒸馏进 Transformer：老师是 out/teacher，学生写到 out/transformer。

    Args:
        start: 接着练的学生所在的文件夹；不给就从老师出发。
    """
    torch.manual_seed(3)
    torch.set_float32_matmul_precision("high")
    pipe, parts = open_parts(out)
    for name, part in parts.items():
        load_part(part, out / name)
    data = flux_batches(pipe, size, device, workers)
    model = Distillation(FluxModel(pipe, naming=0.0).to(device), data.empty).to(device)
    if start:
        load_part(pipe.transformer, start / "transformer")

    def draw():
        words, _, x_t, _, t = data.batch(batch)
        return words, x_t, t, draw_guidance(batch, data.generator)

    def save():
        save_part(pipe.transformer, out / "transformer")

    clock = Clock(steps, minutes)
    loss = fit(model, draw, clock, device, 5e-4, save, label="distill")
    return clock.facts(batch=batch, pictures=size, loss=loss)
