"""tiny-qwen-image-2.1 的训练：一个模型，画图、改图、认得透明；VAE 与底模可以两个进程同时炼。

底模先渲染、教文本编码器、编译，都不用 VAE；VAE 在另一个进程里炼好了，再编码、开练。
"""

import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from lorakit.data.color import on_checker
from lorakit.errors import LorakitError
from lorakit.files import ASSETS, write_whole
from lorakit.infer.sampler import sample
from lorakit.tiny.edits import EDITS, PHRASES, cutout, random_edit
from lorakit.tiny.pretrain import corpus, shapes
from lorakit.tiny.pretrain.base_edit import expected, patches
from lorakit.tiny.pretrain.base_qwen import tokenize
from lorakit.tiny.pretrain.block_causal import SIDE, FastQwenImage21, Rows
from lorakit.tiny.pretrain.clock import Clock, to_device
from lorakit.tiny.pretrain.loop import (
    Batches,
    Naming,
    compiled,
    fit,
    load_part,
    noised,
    save_part,
    warm_up_text,
)
from lorakit.tiny.pretrain.vae import fit_vae, latent_sample
from lorakit.tiny.world import CLEAR, SIZE, caption, random_scene, render, replace

TOKENIZER = ASSETS / "tiny-qwen-image" / "tokenizer"
CHANNELS, COMPRESSION = 64, 16
PAD = "<|image_pad|>"
SLOTS = SIDE * SIDE // 4  # 一张图在文字里占几个位置
WORDS = {"draw": 56, "edit": 80}  # 丢掉模板开头之后最多几个词元
CLEARED = 0.15  # 透明底占多少；抠图也占成对的这么多


def _rgba(scene) -> np.ndarray:
    return np.asarray(render(scene).convert("RGBA"))


def _drawn(rng: np.random.Generator):
    scene = random_scene(rng)
    if rng.random() < CLEARED:
        scene = replace(scene, background=CLEAR)
    return _rgba(scene), [caption(scene, rng, english=i >= 3) for i in range(5)], scene


def _pair(rng: np.random.Generator):
    _, before, after, said = cutout(rng) if rng.random() < CLEARED else random_edit(rng)
    return _rgba(before), _rgba(after), said


def white(x: torch.Tensor) -> torch.Tensor:
    """(B, 4, H, W)、[-1, 1] -> 透明处露出白底的 (B, 3, H, W)。"""
    return 1 - (1 - x[:, :3]) * (x[:, 3:] + 1) / 2


def train_vae(out: Path, device, steps: int, minutes: float, workers, size=24_000) -> dict:
    """认得透明的 VAE：写 out/vae；返回步数、秒数、白底上的 PSNR 与透明通道的平均误差。"""
    torch.manual_seed(5)
    seen = corpus.clear_corpus(int(size * 0.7), size - int(size * 0.7), workers=workers)
    fresh = corpus.clear_corpus(min(100, size), 0, seed=999, workers=workers)
    data, fresh = to_device(seen, device), to_device(fresh, device).float() / 127.5 - 1
    vae = shapes.qwen_2_1_vae().to(device).train()
    with torch.no_grad():
        vae.quant_conv.bias[CHANNELS:] = -6  # 从很小的后验噪声起步
    clock = Clock(steps, minutes)

    def posterior(x):
        return vae.quant_conv(vae.encoder(x.unsqueeze(2)))[:, :, 0].chunk(2, dim=1)

    def decode(z):
        return vae.decoder(vae.post_quant_conv(z.unsqueeze(2)))[:, :, 0]

    fit_vae(posterior, decode, vae, data, device, clock, (CHANNELS, COMPRESSION))
    facts = clock.facts()
    vae.eval()
    with torch.no_grad():
        z = latent_sample(lambda x: posterior(x)[0], data)
        drawn = torch.cat([decode(posterior(x)[0]) for x in fresh.split(32)]).clamp(-1, 1)
    vae.register_to_config(
        latents_mean=z.mean((0, 2, 3)).tolist(), latents_std=z.std((0, 2, 3)).tolist()
    )
    error = (white(drawn) - white(fresh)).square().flatten(1).mean(1) / 4
    quality = float((-10 * torch.log10(error)).mean())
    vae.to(torch.bfloat16)
    write_whole(out / "vae", lambda to: vae.save_pretrained(to))  # 整个写好才出现：底模等着它
    alpha = float((drawn[:, 3] - fresh[:, 3]).abs().mean() / 2)
    return facts | {"psnr_world": quality, "alpha_error": alpha}


def open_vae(out: Path, device, minutes: float):
    """out/vae；还在炼就等它，最多等 minutes 分钟。"""
    from diffusers import AutoencoderKLQwenImage21

    end = time.time() + minutes * 60
    while not (out / "vae").is_dir():
        if time.time() > end:
            raise LorakitError(f"等了 {minutes:g} 分钟，“{out / 'vae'}”还没有炼好：--part vae。")
        time.sleep(1)
    return AutoencoderKLQwenImage21.from_pretrained(out / "vae").to(device)


@torch.no_grad()
def encode(vae, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 4, 128, 128) uint8 -> 归一化的潜变量均值与标准差，各 (N, 64, 64) bf16。"""
    shift, scale = (
        torch.tensor(numbers, device=pixels.device).view(1, -1, 1, 1)
        for numbers in (vae.config.latents_mean, vae.config.latents_std)
    )
    means, stds = [], []
    for chunk in pixels.split(256):
        x = (chunk.float() / 127.5 - 1).unsqueeze(2)
        with torch.autocast(pixels.device.type, torch.bfloat16):
            found = vae.quant_conv(vae.encoder(x))[:, :, 0].float()
        mean, logvar = found.chunk(2, dim=1)
        std = torch.exp(0.5 * logvar.clamp(-30, 20)) / scale
        for kept, value in ((means, (mean - shift) / scale), (stds, std)):
            kept.append(value.flatten(2).transpose(1, 2).bfloat16())  # (B, C, h, w) -> (B, hw, C)
    return torch.cat(means), torch.cat(stds)


class Reader(nn.Module):
    """文本编码器的快路：词元（与看图的词元）-> 归一化之前的隐状态，与 stock 相同（有测试）。"""

    def __init__(self, pipe):
        super().__init__()
        self.model, self.processor = pipe.text_encoder.model, pipe.processor.image_processor
        self.tokenizer, self.pad = pipe.processor.tokenizer, pipe._img_token_id
        self.drop = pipe._drop_idx
        self.templates = {
            "draw": pipe.prompt_template_t2i,
            "edit": pipe.prompt_template_ti2i.replace(PAD, PAD * SLOTS),
        }
        ids = self.tokenizer(self.templates["edit"].format("猫"))["input_ids"]
        first = ids.index(self.pad)
        self.before = first - self.drop  # 控制图前面有几个文字词元
        side = SIDE // 2
        grid = torch.cartesian_prod(torch.arange(side), torch.arange(side)).T + first
        frame = torch.full((1, SLOTS), first)
        tail = torch.arange(self.drop + WORDS["edit"] - first - SLOTS) + first + side
        places = [torch.arange(first).expand(3, -1), torch.cat([frame, grid]), tail.expand(3, -1)]
        self.register_buffer("places", torch.cat(places, 1), persistent=False)  # 三维位置 (3, L)

    def tokenize(self, texts: list[list[str]], kind: str) -> dict[str, torch.Tensor]:
        """每张图的几句 -> 词元 ids (N, K, L) 与 length (N, K)，补齐到 8 的倍数。"""
        words = tokenize(self.tokenizer, texts, self.templates[kind], self.drop + WORDS[kind])
        assert int(words["length"].max()) < self.drop + WORDS[kind], "有描述被截断了，把 WORDS 调大"
        return words

    @torch.no_grad()
    def look(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, 128, 128) uint8 -> 看图的词元 (N, 16, 128)。"""
        found = []
        for chunk in pixels.split(512):
            grid = torch.tensor([[1, SIDE, SIDE]] * len(chunk), device=pixels.device)
            seen = self.model.visual(patches(chunk, self.processor), grid_thw=grid)
            found.append(seen.pooler_output.view(len(chunk), SLOTS, -1).bfloat16())
        return torch.cat(found)

    def forward(self, ids: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        """(B, L)、(B, 16, D) -> 丢掉模板开头的隐状态 (B, L - drop, D)。"""
        language, places = self.model.language_model, None
        words = language.embed_tokens(ids)
        if seen is not None:
            words = words.masked_scatter((ids == self.pad)[..., None], seen.to(words.dtype))
            places = self.places[:, None, : ids.shape[1]].expand(-1, len(ids), -1)
        norm, language.norm.forward = language.norm.forward, lambda hidden: hidden
        try:  # stock 管线也绕过最后的归一化
            hidden = language(inputs_embeds=words, position_ids=places, use_cache=False)
        finally:
            language.norm.forward = norm
        return hidden.last_hidden_state[:, self.drop :]


class Data:
    """一步要的两批：照描述画的、照指令改的；潜变量等 VAE 炼好才有。"""

    def __init__(self, reader: Reader, size: int, device, workers: int | None):
        drawn = corpus.parallel(_drawn, size, 11, workers)
        pairs = corpus.parallel(_pair, max(1, size // 2), 12, workers)
        self.pixels = [np.stack([one[0] for one in drawn])]
        self.pixels += [np.stack([one[i] for one in pairs]) for i in range(2)]
        self.reader, self.device = reader, device
        texts, scenes = [one[1] for one in drawn], [one[2] for one in drawn]
        empty = {k: v[0] for k, v in reader.tokenize([[" ", " "]], "draw").items()}
        # 等 VAE 的时候先编译、核对梯度：全是 0 的潜变量会让一半的梯度也是 0，核对就看不见那一半
        shape = len(drawn), SIDE * SIDE, CHANNELS
        made_up = torch.randn(shape, device=device, dtype=torch.bfloat16)
        words = _trimmed(reader.tokenize(texts, "draw"))
        empty["ids"] = empty["ids"][:, : words["ids"].shape[-1]]
        self.drawing = Batches((made_up, made_up), words, empty, scenes, texts, device)
        self.edits = _trimmed(reader.tokenize([one[2] for one in pairs], "edit"))
        blank = reader.tokenize([[" "]], "edit")
        self.blank_ids = blank["ids"][0, 0, : self.edits["ids"].shape[-1]].to(device)
        self.blank_length = int(blank["length"])
        self.edits = {name: table.to(device) for name, table in self.edits.items()}
        solid = to_device(self.pixels[1], device)
        self.seen = reader.look(_on_white(solid))
        self.mean = self.std = self.control = made_up[: len(pairs)]

    def encode(self, vae):
        """VAE 炼好了：换上真的潜变量，不再留着图。"""
        drawn, before, after = (encode(vae, to_device(one, self.device)) for one in self.pixels)
        self.drawing.mean, self.drawing.std = drawn
        self.control, (self.mean, self.std) = before[0], after
        self.pixels = []

    def batch(self, size: int, some: int) -> tuple:
        """(画图的一批 size 张, 改图的一批 some 对)。"""
        pick = dict(generator=self.drawing.generator, device=self.device)
        i = torch.randint(len(self.mean), (some,), **pick)
        k = torch.randint(PHRASES, (some,), **pick)
        blank = torch.rand(some, **pick) < 0.1
        ids = torch.where(blank[:, None], self.blank_ids, self.edits["ids"][i, k])
        length = torch.where(blank, self.blank_length, self.edits["length"][i, k])
        x_t, target, t = noised(self.mean[i].float(), self.std[i].float(), pick)
        edit = (ids, length, self.seen[i], self.control[i].float(), x_t, target, t)
        return self.drawing.batch(size), edit


def _trimmed(words: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """补齐只留到全集的最长（8 的倍数）。"""
    width = -(-int(words["length"].max()) // 8) * 8
    return {**words, "ids": words["ids"][..., :width]}


def _on_white(pixels: torch.Tensor) -> torch.Tensor:
    """(N, 4, H, W) uint8 -> 白底上的 (N, 3, H, W) uint8。"""
    parts = []
    for chunk in pixels.split(2048):
        parts.append((white(chunk.float() / 127.5 - 1) * 127.5 + 127.5).round().byte())
    return torch.cat(parts)


class Model(nn.Module):
    """一步的损失：画图、改图的均方误差，加一点“说出内容”。"""

    def __init__(self, pipe, reader: Reader, naming: float):
        super().__init__()
        self.weight, self.reader, self.rows = naming, reader, Rows(pipe.transformer)
        self.naming = Naming(pipe.text_encoder.config.text_config.hidden_size)
        reader.model.visual.requires_grad_(False)  # 图的内容由潜变量告诉它，视觉塔只是陪衬
        reader.model.language_model.norm.requires_grad_(False)  # 管线绕过它

    def read(self, words, labels) -> tuple[torch.Tensor, torch.Tensor]:
        """词元 -> (丢掉模板开头的隐状态 (B, L, D), 说出内容的交叉熵)。"""
        hidden, last = self.reader(words["ids"]), words["length"] - self.reader.drop - 1
        end = hidden[torch.arange(len(hidden), device=last.device), last]
        return hidden, self.naming(end, labels)

    def forward(self, drawing, editing):
        words, labels, x_t, target, t = drawing
        hidden, named = self.read(words, labels)
        v = self.rows(hidden, words["length"] - self.reader.drop, x_t, t)
        drawn = F.mse_loss(v.float(), target)
        ids, length, seen, control, x_t, target, t = editing
        layout = self.reader.before, SLOTS
        hidden = self.reader(ids, seen)
        v = self.rows(hidden, length - self.reader.drop, x_t, t, control, layout)
        edited = F.mse_loss(v.float(), target)
        shares = len(labels), len(ids)  # 每张图一样重
        both = (shares[0] * drawn + shares[1] * edited) / sum(shares)
        return both + self.weight * named


def train_base(
    out: Path, device, steps: int, minutes: float, workers, size=80_000, batch=512, start=None
) -> dict:
    """底模：文本编码器与 Transformer 一起学画与改；写 out 下的整条管线。

    Args:
        start: 接着练的文件夹（里面有 text_encoder 与 transformer）；不给就从零开始。
            从零开始画图是改图的两倍，接着练反过来：画图学得快，改图学得慢。
    """
    torch.manual_seed(6)
    torch.set_float32_matmul_precision("high")
    pipe = shapes.qwen_2_1_pipeline(TOKENIZER, SIZE)
    parts = {"text_encoder": pipe.text_encoder, "transformer": pipe.transformer}
    if start:
        for name, part in parts.items():
            load_part(part, Path(start) / name)
    reader = Reader(pipe).to(device)
    data = Data(reader, size, device, workers)
    print(f"底模的图：{size} 张，{size // 2} 对", flush=True)
    model = Model(pipe, reader, 0.0 if start else 0.1).to(device).train()
    if not start:
        learned = [p for p in reader.model.language_model.parameters() if p.requires_grad]
        learned += model.naming.parameters()
        warm_up_text(model.read, learned, data.drawing, min(200, steps), batch * 2)

    shares = (batch // 2, batch) if start else (batch, batch // 2)

    def draw():
        return data.batch(*(max(1, share) for share in shares))

    step_loss = compiled(model, draw, device)  # 等 VAE 的时候先编译：形状都知道了
    vae = open_vae(out, device, 30)
    data.encode(vae)

    def save():
        for name, part in parts.items():
            save_part(part, out / name)
        pipe.scheduler.save_pretrained(out / "scheduler")
        pipe.processor.save_pretrained(out / "processor")
        pipe.register_modules(vae=vae)
        pipe.save_config(out)

    clock = Clock(steps, minutes)
    peak = 2e-4 if start else 1.5e-3
    loss = fit(model, draw, clock, device, peak, save, step_loss=step_loss)
    return clock.facts(batch=batch, pictures=size, loss=loss)


def measure(
    folder: Path, device, count: int = 200, sheet: Path | None = None, steps: int = 20
) -> dict:
    """成绩：照描述画、每种改法、透明底与抠图各答对多少，由考官判（透明的放在灰底上看）。

    clear 是画面四边都透明、东西又不透明的比例；solid 是不该透明的处处不透明的比例。
    """
    from lorakit.tiny.examiner import clear, examine, share, solid

    family = FastQwenImage21(folder, device, torch.float32, clear=True)
    rng, facts, rows = np.random.default_rng(4321), {}, []

    def drawn(prompts, pictures=None):
        images, size = [], (SIZE, SIZE)
        for start in range(0, len(prompts), 50):
            part = slice(start, start + 50)
            looks = [[one] for one in pictures[part]] if pictures else [[]] * len(prompts[part])
            seeds = range(start, start + len(looks))
            how = (family, family.load("transformer").eval(), prompts[part], looks, looks)
            images += sample(*how, seeds, size, steps, 3.0)
        rows.append(images[:12])
        return images

    def judged(images, scenes, **more) -> dict:
        plain = Image.new("RGBA", (SIZE, SIZE), (206, 206, 210, 255))
        shown = [Image.alpha_composite(plain, one.convert("RGBA")) for one in images]
        verdicts, wanted = examine(shown), expected(scenes)
        return {name: share(verdicts, **{name: said}) for name, said in wanted.items()} | more

    scenes = [random_scene(rng, two=0.0) for _ in range(count)]
    images = drawn([caption(one, english=i % 3 == 2) for i, one in enumerate(scenes)])
    facts["draw"] = judged(images, scenes, solid=_share(images, solid))
    bare = [replace(one, background=CLEAR) for one in scenes[: max(1, count // 4)]]
    images = drawn([caption(one, english=i % 3 == 2) for i, one in enumerate(bare)])
    grey = [replace(one, background="plain") for one in bare]
    facts[CLEAR] = judged(images, grey, clear=_share(images, clear))
    few = max(1, count // 8)
    for name in EDITS:
        asked = [random_edit(rng, name) for _ in range(few)]
        asked = [one if len(one[1].things) == 1 else random_edit(rng, "hat") for one in asked]
        images = drawn([one[3][0] for one in asked], [render(one[1]) for one in asked])
        facts[name] = judged(images, [one[2] for one in asked])
    asked = [cutout(rng) for _ in range(few)]
    images = drawn([one[3][0] for one in asked], [render(one[1]) for one in asked])
    facts["cutout"] = {"clear": _share(images, clear)}
    if sheet:
        shown = [[np.asarray(on_checker(one)) for one in (row * 12)[:12]] for row in rows]
        Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in shown])).save(sheet)
    return facts


def _share(images, test) -> float:
    return float(np.mean([test(image) for image in images]))
