"""各个微型底模共用的训练：一批批图与描述、说出内容的头、一个循环、bf16 存盘。"""

import json
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from lorakit import flow
from lorakit.families.shared import pack
from lorakit.tiny.examiner import HEADS
from lorakit.tiny.figures import FIGURES
from lorakit.tiny.pretrain.clock import Clock, adamw, checked_compile, set_lr
from lorakit.tiny.world import BACKGROUNDS, COLORS, GROUNDS, SIDES, SIZES

NAMED = ("object", "color", "background", "side", "size")  # 文本编码器要学会说出的内容
Words = dict[str, torch.Tensor]  # 描述的词元：名字 -> (B, ...)


def caption_labels(scene, text: str) -> list[int]:
    """描述里说到的物体、颜色、背景、位置、大小的类别号；没说到或有两件东西的填 -100。"""
    back = GROUNDS[scene.background]
    rest = text.replace(back[0], "").replace(back[1], "")  # “大海”里的“大”不是大小
    found = [-100] * len(NAMED)
    if rest != text and scene.background in BACKGROUNDS:  # 透明底没有这一类
        found[2] = list(BACKGROUNDS).index(scene.background)
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


class Batches:
    """底模训练的一批批：潜变量、噪声、t、词元；一张图有几句描述，10% 换成空描述。

    Args:
        latents: 归一化、打包好的均值与标准差，各 (N, 词元数, 通道)。
        words: 每张图的几句描述，名字 -> (N, K, ...)；empty 是空描述的两种写法，(2, ...)。
    """

    def __init__(self, latents, words: Words, empty: Words, scenes, texts, device):
        self.mean, self.std = latents
        self.words = {name: table.to(device) for name, table in words.items()}
        self.empty = {name: table.to(device) for name, table in empty.items()}
        said = [[caption_labels(s, t) for t in row] for s, row in zip(scenes, texts, strict=True)]
        self.labels = torch.tensor(said, device=device)  # (N, K, 5 项)
        self.generator = torch.Generator(device).manual_seed(0)
        self.device = device

    def batch(self, size: int) -> tuple[Words, torch.Tensor, ...]:
        """词元、说到的内容、x_t、真速度、t。"""
        pick = dict(generator=self.generator, device=self.device)
        i = torch.randint(len(self.mean), (size,), **pick)
        k = torch.randint(self.labels.shape[1], (size,), **pick)
        blank, which = torch.rand(size, **pick) < 0.1, torch.randint(2, (size,), **pick)
        words = {}
        for name, table in self.words.items():
            said, nothing = table[i, k], self.empty[name][which]
            words[name] = torch.where(blank.view(-1, *[1] * (said.dim() - 1)), nothing, said)
        labels = self.labels[i, k].masked_fill(blank[:, None], -100)
        x_t, target, t = noised(self.mean[i].float(), self.std[i].float(), pick)
        return words, labels, x_t, target, t


def noised(mean: torch.Tensor, std: torch.Tensor, pick: dict) -> tuple[torch.Tensor, ...]:
    """后验的均值与标准差 (B, 词元数, 通道) -> 抽一次的 x_t、真速度、t；pick 是随机数从哪来。"""
    x0 = mean + std * torch.randn(mean.shape, **pick)
    noise = torch.randn(mean.shape, **pick)
    t = torch.sigmoid(torch.randn(len(mean), **pick))
    return flow.add_noise(x0, noise, t), flow.velocity(x0, noise), t


@torch.no_grad()
def encode_all(encode, pixels: torch.Tensor, shift, scale) -> tuple[torch.Tensor, torch.Tensor]:
    """全部图 -> 归一化、打包好的潜变量均值与标准差，各 (N, 64, 64) bf16。

    Args:
        encode: (B, 3, H, W) -> 后验的均值与对数方差；归一化是 (z - shift) / scale。
    """
    means, stds = [], []
    for chunk in pixels.split(32):
        x = (chunk.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(pixels.device.type, torch.bfloat16):
            mean, logvar = (part.float() for part in encode(x))
        means.append(pack((mean - shift) / scale).bfloat16())
        stds.append(pack(torch.exp(0.5 * logvar) / scale).bfloat16())
    return torch.cat(means), torch.cat(stds)


class Naming(nn.Module):
    """几个只在预训练时用的线性头：从句子的向量说出内容。

    只靠画图的损失，颜色与物体要看几百万张才会听话；让文本编码器先把内容说清楚，
    Transformer 就有现成的条件可用（多任务，头不随模型发布）。
    """

    def __init__(self, width: int):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, len(HEADS[name])) for name in NAMED)

    def forward(self, sentence: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B, width)、(B, 5) -> 交叉熵，标量。"""
        losses = [
            F.cross_entropy(head(sentence.float()), label, ignore_index=-100, reduction="sum")
            for head, label in zip(self.heads, labels.unbind(1), strict=True)
        ]
        return sum(losses) / len(sentence)


def warm_up_text(read, parameters: list, data: Batches, steps: int, batch: int):
    """先单独教文本编码器读完描述、说出内容；read(词元, 说到的内容) 的最后一项是损失。"""
    optimizer, clock = adamw(parameters), Clock(steps, minutes=3)
    for step in clock:
        set_lr(optimizer, clock.lr(2e-3, 20))
        words, labels, *_ = data.batch(batch)
        with torch.autocast(data.device.type, torch.bfloat16):
            loss = read(words, labels)[-1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"text {step} loss {loss.item():.3f}", flush=True)


def _optimizers(model: nn.Module):
    """隐藏层的矩阵用 Muon（同样的样本学得更多），其余用 AdamW；冻住的不管。"""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            hidden = parameter.dim() == 2 and "transformer_blocks" in name
            (matrices if hidden else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw(others)], [*matrices, *others]


def compiled(model: nn.Module, draw, device):
    """显卡上编译好、核对过的一步；CPU 上就是它自己。"""
    if device.type != "cuda":
        return model
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.autocast(device.type, torch.bfloat16):
        return checked_compile(model, parameters, *draw())


def fit(
    model, draw, clock: Clock, device, peak: float, save, label: str = "base", step_loss=None
) -> float:
    """练到时间用完：model(*draw()) 是一步的损失；存盘用滑动平均的权重。返回最后的平均损失。

    Args:
        step_loss: 事先 `compiled` 好的一步；不给就现编译。
    """
    optimizers, parameters = _optimizers(model)
    average = [p.detach().clone() for p in parameters]
    recent = None
    if step_loss is None:  # 编译过的模块没有真假，不能用 or
        step_loss = compiled(model, draw, device)
    for step in clock:
        set_lr(optimizers[0], clock.lr(2 * peak, 300))
        set_lr(optimizers[1], clock.lr(peak, 300))
        with torch.autocast(device.type, torch.bfloat16):
            loss = step_loss(*draw())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - min(0.999, (step + 1) / (step + 10)))
        recent = loss.detach() if recent is None else recent + (loss.detach() - recent) * 0.01
        if step % 200 == 0:
            seconds = time.time() - clock.start
            print(f"{label} {step} loss {float(recent):.4f} {seconds:.0f}s", flush=True)
            if not recent.isfinite():
                raise FloatingPointError(f"{label} 第 {step} 步之前损失成了 NaN 或无穷大")
        if step % 1000 == 999:
            with swapped(parameters, average):
                save()
    with swapped(parameters, average):
        save()
    return float(recent)


@contextmanager
def swapped(parameters: list, values: list):
    """暂时换上另一组权重，离开时换回。"""
    kept = [p.data for p in parameters]
    for p, value in zip(parameters, values, strict=True):
        p.data = value
    try:
        yield
    finally:
        for p, value in zip(parameters, kept, strict=True):
            p.data = value


def save_part(part: nn.Module, folder: Path):
    """以 bf16 写成 diffusers 布局；训练中的权重不动。"""
    parameters = list(part.parameters())
    with swapped(parameters, [p.data.bfloat16() for p in parameters]):
        part.save_pretrained(folder)
    # transformers 按 config 里的精度打开、diffusers 默认 fp32；写成 fp32，整条管线才一致
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config.pop("_name_or_path", None)  # 这台机器上的路径，不该随模型发布
    config |= {"dtype": "float32"} if "dtype" in config else {}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def load_part(part: nn.Module, folder: Path):
    """只读权重进来：整个换成 from_pretrained 的，存盘时就会把这台机器上的路径写进 config。"""
    part.load_state_dict(type(part).from_pretrained(folder).state_dict())
