"""编辑底模的训练：从会画的底模出发，只练 Transformer，学会照着控制图改。

VAE、文本编码器、分词器原样不动，文件与文生图底模逐字节相同：指令里的词（颜色、位置、背景）
文本编码器早已认得，没见过的词（帽子、夜晚）各是一个不同的向量，Transformer 自己会学着读；
控制图的内容由它的潜变量告诉 Transformer，随机的视觉塔给的几个词元只是陪衬。
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from lorakit.families.qwen_image_edit import QwenImageEdit
from lorakit.files import ASSETS
from lorakit.infer.sampler import sample
from lorakit.tiny.edits import EDITS, PHRASES, random_edit
from lorakit.tiny.pretrain.base_qwen import encode_qwen, tokenize
from lorakit.tiny.pretrain.clock import Clock, to_device
from lorakit.tiny.pretrain.corpus import parallel
from lorakit.tiny.pretrain.loop import fit, noised, save_part
from lorakit.tiny.pretrain.shapes import SEEN, make_edit
from lorakit.tiny.world import random_scene, render

BASE = ASSETS / "tiny-qwen-image"
WORDS = 36  # 指令最多几个词元（含看图的词元与模板的结尾）
TOKENS = (SEEN // 28) ** 2  # 一张图在 Qwen2.5-VL 里占几个词元
UNSEEN = "lineart"  # 从不教它的改法，留给 LoRA
SHAPES = [(1, 8, 8), (1, 8, 8)]  # 带噪的图、控制图


def _pair(rng: np.random.Generator):
    _, before, after, said = random_edit(rng)
    picture = render(before)
    small = picture.resize((SEEN, SEEN), Image.Resampling.BICUBIC)
    return np.asarray(picture), np.asarray(render(after)), np.asarray(small), said


def edit_corpus(count: int, seed: int = 5, workers: int | None = None):
    """编辑底模的训练集：改之前、改之后、给视觉塔看的小图，各 (count, H, W, 3)；每对几句指令。"""
    items = parallel(_pair, count, seed, workers)
    return *(np.stack([item[i] for item in items]) for i in range(3)), [item[3] for item in items]


def patches(small: torch.Tensor, processor) -> torch.Tensor:
    """(B, 3, H, W) uint8 -> 视觉塔要的小块 (B hw, 1176)，与 Qwen2VL 的图像处理器相同。"""
    mean, std = (
        torch.tensor(numbers, device=small.device).view(1, 3, 1, 1)
        for numbers in (processor.image_mean, processor.image_std)
    )
    x = (small.float() / 255 - mean) / std
    n, size = len(x), processor.patch_size
    side = x.shape[-1] // (2 * size)
    x = x.view(n, 3, side, 2, size, side, 2, size).permute(0, 2, 5, 3, 6, 1, 4, 7)
    # 静止的图当作两帧一样的视频
    return x.unsqueeze(6).expand(*x.shape[:6], 2, size, size).reshape(n * side * side * 4, -1)


class Reader(nn.Module):
    """冻住的文本编码器：(词元, 看图的词元) -> 隐状态；与 stock 管线的编码相同（有测试）。"""

    def __init__(self, family: QwenImageEdit):
        super().__init__()
        encoder, tokenizer, processor = family.load("text")
        self.model, self.processor = encoder.model, processor.image_processor
        self.tokenizer, self.pad = tokenizer, processor.image_token_id
        pipe = family.pipeline(transformer=None, vae=None)
        self.drop = pipe.prompt_template_encode_start_idx
        # 图占几个词元，模板里就写几个占位的，以后逐个换掉
        self.template = pipe.prompt_template_encode.replace(
            processor.image_token, processor.image_token * TOKENS
        )

    @torch.no_grad()
    def look(self, small: torch.Tensor) -> torch.Tensor:
        """(N, 3, 56, 56) uint8 -> 看图的词元 (N, 4, 128)。"""
        found = []
        for chunk in small.split(256):
            grid = torch.tensor([[1, SEEN // 14, SEEN // 14]] * len(chunk), device=small.device)
            seen = self.model.visual(patches(chunk, self.processor), grid_thw=grid)
            found.append(seen.pooler_output.view(len(chunk), TOKENS, -1))
        return torch.cat(found)

    def tokenize(self, texts: list[list[str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """每对的几句指令 -> 词元 (N, K, L) 与长度 (N, K)。"""
        words = tokenize(self.tokenizer, texts, self.template, self.drop + WORDS)
        return words["ids"], words["length"]

    @torch.no_grad()
    def forward(self, ids: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """(B, L)、(B, 4, 128) -> 丢掉模板开头的隐状态 (B, L - 64, 128)。"""
        words = self.model.language_model.embed_tokens(ids)
        words = words.masked_scatter((ids == self.pad)[..., None], seen.to(words))
        hidden = self.model.language_model(inputs_embeds=words, use_cache=False).last_hidden_state
        return hidden[:, self.drop :]


class EditData:
    """一批批的成对图：潜变量、噪声、t、指令；一对图有几句指令，10% 换成空的（控制图还在）。"""

    def __init__(self, family: QwenImageEdit, size: int, device, workers: int | None):
        before, after, small, texts = edit_corpus(size, workers=workers)
        self.reader = Reader(family).to(device)
        vae = family.load("vae").to(device)
        self.control, _ = encode_qwen(vae, to_device(before, device))
        self.mean, self.std = encode_qwen(vae, to_device(after, device))
        self.seen = self.reader.look(to_device(small, device))
        self.ids, self.length = (x.to(device) for x in self.reader.tokenize(texts))
        empty = self.reader.tokenize([["", " "]])
        self.empty_ids, self.empty_length = (x[0].to(device) for x in empty)
        # 总补到全集的最长：形状不变，就不必重新编译
        self.width = -(-int(self.length.max()) // 8) * 8
        assert int(self.length.max()) < self.reader.drop + WORDS, "有指令被截断了，把 WORDS 调大"
        self.generator = torch.Generator(device).manual_seed(0)
        self.device = device

    def batch(self, size: int):
        """隐状态、掩码、x_t、控制图、真速度、t。"""
        pick = dict(generator=self.generator, device=self.device)
        i = torch.randint(len(self.mean), (size,), **pick)
        k = torch.randint(self.ids.shape[1], (size,), **pick)
        blank, which = torch.rand(size, **pick) < 0.1, torch.randint(2, (size,), **pick)
        ids = torch.where(blank[:, None], self.empty_ids[which], self.ids[i, k])[:, : self.width]
        length = torch.where(blank, self.empty_length[which], self.length[i, k])
        hidden = self.reader(ids, self.seen[i])
        place = torch.arange(hidden.shape[1], device=self.device)
        mask = place[None] < (length - self.reader.drop)[:, None]
        x_t, target, t = noised(self.mean[i].float(), self.std[i].float(), pick)
        return hidden, mask, x_t, self.control[i].float(), target, t


class EditModel(nn.Module):
    """一步的损失：带噪的图与控制图一前一后送进去，只看前一半的预测。"""

    def __init__(self, transformer):
        super().__init__()
        self.transformer = transformer

    def forward(self, hidden, mask, x_t, control, target, t):
        v = self.transformer(
            hidden_states=torch.cat([x_t, control], dim=1),  # 2 x (B, 64, 64) -> (B, 128, 64)
            encoder_hidden_states=hidden,
            encoder_hidden_states_mask=mask,
            timestep=t,
            img_shapes=[SHAPES] * len(t),
            return_dict=False,
        )[0]
        return F.mse_loss(v[:, : x_t.shape[1]].float(), target)


def train_edit(
    out: Path, device, steps: int, minutes: float, workers, size=120_000, batch=256, start=None
) -> dict:
    """编辑底模：写 out 下的整条编辑管线；除了 Transformer，其余文件与 start 相同。

    Args:
        start: 从哪个文件夹出发：随包的文生图底模（不写），或上一次编辑训练的结果。
    """
    torch.manual_seed(3)
    torch.set_float32_matmul_precision("high")
    start = Path(start or BASE)
    for part in ("vae", "text_encoder", "tokenizer", "transformer", "scheduler"):
        if start.resolve() != out.resolve():
            shutil.copytree(start / part, out / part, dirs_exist_ok=True)
    shutil.copy(BASE / "model_index.json", out)
    family = QwenImageEdit(make_edit(out), device, torch.float32)
    transformer = family.load("transformer").requires_grad_(True).train()
    data, model = EditData(family, size, device, workers), EditModel(transformer)
    print(f"成对的图：{size} 对，最长 {data.width} 个词元", flush=True)
    clock = Clock(steps, minutes)

    def save():
        save_part(transformer, out / "transformer")

    loss = fit(model, lambda: data.batch(batch), clock, device, 1e-3, save, "edit")
    return clock.facts(batch=batch, pairs=size, loss=loss)


def _asked(rng: np.random.Generator, name: str, i: int):
    """一道考题：(改之前, 改之后, 指令)；线稿是没教过的，考它是为了知道 LoRA 有没有东西可学。"""
    if name == UNSEEN:
        before = random_scene(rng, two=0.0)
        return before, replace(before, style="lineart"), "把它变成线稿"
    while True:
        _, before, after, said = random_edit(rng, name)
        if len(before.things) == 1:  # 考官只认单物场景
            return before, after, said[i % PHRASES]


def measure_edit(
    folder: Path, device, count=40, steps=20, guidance=3.0, sheet: Path | None = None
) -> dict:
    """编辑底模的成绩：每种改法 count 道题、steps 步，控制图与场景都是没练过的。

    done 是离答案比离原图近得多（均方误差不到一半）的比例；right 是考官把物体、颜色、背景、
    位置、大小、画风全判对的比例；kept 是物体还认得的比例。
    """
    from lorakit.tiny.examiner import examine, share

    family = QwenImageEdit(folder, device, torch.float32)
    transformer, facts, rows = family.load("transformer").eval(), {}, []
    rng = np.random.default_rng(4321)
    for name in (*EDITS, UNSEEN):
        asked = [_asked(rng, name, i) for i in range(count)]
        pictures, answers = ([render(one[k]) for one in asked] for k in (0, 1))
        images = []
        for start in range(0, count, 20):
            part = slice(start, min(start + 20, count))
            controls = [[picture] for picture in pictures[part]]
            said, seeds = [one[2] for one in asked[part]], range(part.start, part.stop)
            size = (128, 128)
            images += sample(
                family, transformer, said, controls, controls, seeds, size, steps, guidance
            )
        drawn, before, after = (
            np.stack([np.asarray(image, np.float32) for image in group])
            for group in (images, pictures, answers)
        )
        away = np.square(drawn - after).mean((1, 2, 3))
        verdicts, scenes = examine(images), [one[1] for one in asked]
        things = [scene.things[0] for scene in scenes]
        facts[name] = {
            "done": float((away < np.square(before - after).mean((1, 2, 3)) / 2).mean()),
            "right": share(verdicts, **expected(scenes)),
            "kept": share(verdicts, object=[thing.kind for thing in things]),
        }
        rows += [np.concatenate(list(group[:12]), 1) for group in (before, drawn, after)]
    if sheet:
        Image.fromarray(np.concatenate(rows).astype(np.uint8)).save(sheet)
    return facts


def expected(scenes: list) -> dict[str, list]:
    """改好之后考官应该判成什么；线稿没有颜色与背景可认。"""
    things = [scene.things[0] for scene in scenes]
    wanted = {"object": [t.kind for t in things], "side": [t.side for t in things]}
    wanted |= {"size": [t.size for t in things], "style": [s.style for s in scenes]}
    if not scenes[0].style:
        wanted |= {"color": [t.color for t in things], "background": [s.background for s in scenes]}
    return wanted
