"""测速：真模型的尺寸、随机的权重，不用下载；先热身，再用显卡自己的时钟计每一步。

比的是同一个进程里的几种走法：lorakit 的训练循环；每步都现编码图和文字的常见写法（seed）；
只用 diffusers 与 PEFT、别的什么也不做的循环（plain）。
"""

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path

import psutil
import torch
from peft import LoraConfig
from torch.nn import functional as F

from lorakit import flow, lora
from lorakit.cache import Dataset, Item
from lorakit.config import Config, load_config
from lorakit.data.record import Record
from lorakit.errors import ConfigError, LorakitError
from lorakit.families import open_blank
from lorakit.files import write_text
from lorakit.machine import estimate
from lorakit.machine.estimate import GIB, TOKENS
from lorakit.machine.trace import Trace, record
from lorakit.memory.attention import set_attention
from lorakit.train import Trainer
from lorakit.training import optim

TEMPLATE = 34  # 每步现编码时，模板另占的词元
SEED_TARGETS = "image-attention"  # 常见写法只在图像一侧的注意力上加 LoRA
WAYS = {
    "ours": "lorakit",
    "seed": "每步现编码（VAE、文本编码器、每块重算）",
    "plain": "只用 diffusers + PEFT 的循环",
}


@dataclass(frozen=True)
class Row:
    """一种走法的结果；放不下就只有 error。"""

    way: str
    step: float = 0.0  # 秒，中位数
    images: float = 0.0  # 每秒几张
    warm: float = 0.0  # 热身（含编译）用了几秒
    allocated: float = 0.0  # GiB，张量占的峰值
    reserved: float = 0.0  # GiB，PyTorch 向显卡要的峰值
    host: float = 0.0  # GiB，进程此刻占的内存
    floor: float = 0.0  # 占理论下限的几成
    error: str = ""
    trace: Trace | None = None  # --trace：时间花在哪


@dataclass(frozen=True)
class Report:
    """一次测速：机器、模型、各种走法。"""

    device: str
    model: str
    parameters: float  # 十亿
    ceiling: float  # 实测的矩阵乘法上限，TFLOP/s
    tera: float  # 一步至少要的浮点运算，TFLOP
    limit: float | None  # --tier：只许用多少 GiB
    rows: tuple[Row, ...]

    def text(self) -> str:
        """一张中文表。"""
        lines = [
            f"{self.device}，矩阵乘法实测 {self.ceiling:.3g} TFLOP/s；"
            f"{self.model}，{self.parameters:.3g}B 参数，随机权重。",
            f"一步至少要 {self.tera:.3g} TFLOP，照上限算 {self.tera / self.ceiling:.3g} 秒。",
        ]
        if self.limit:
            lines.append(f"用 set_per_process_memory_fraction 只许用 {self.limit:.1f} GiB 显存。")
        lines.append("秒/步   张/秒   显存峰值（分配/保留）  内存    达到下限  热身    走法")
        for row in self.rows:
            if row.error:
                lines.append(f"放不下：{WAYS[row.way]}（{row.error.splitlines()[0]}）")
                continue
            peak = f"{row.allocated:.1f} / {row.reserved:.1f} GiB"
            lines.append(
                f"{row.step:<7.3f} {row.images:<7.3g} {peak:<20}  {row.host:.1f} GiB"
                f"  {row.floor:<6.0%}    {row.warm:.1f} 秒  {WAYS[row.way]}"
            )
        done = {row.way: row.step for row in self.rows if not row.error}
        for way in ("seed", "plain"):
            if {"ours", way} <= done.keys():
                lines.append(f"lorakit 的速度是“{WAYS[way]}”的 {done[way] / done['ours']:.2f} 倍。")
        traced = [row for row in self.rows if row.trace]
        lines += [f"\n{WAYS[row.way]}：{row.trace.text()}" for row in traced]
        return "\n".join(lines)

    def save(self, path: Path) -> Path:
        """写成 JSON。"""
        return write_text(path, json.dumps(asdict(self), ensure_ascii=False, indent=1))


def run(
    config: Config, ways=("ours",), steps=10, warm=3, tier: float | None = None, trace=False
) -> Report:
    """按设置测几种走法。

    Args:
        warm: 先走几步不计时（编译、挑内核都在这几步里）。
        tier: 假装是一块标着这么多 GB 的显卡。
        trace: 计时之后多走一步，记下时间花在哪。
    """
    if steps < 1 or warm < 1:
        raise ConfigError(f"--steps 和 --warm 至少是 1，得到 {steps} 和 {warm}。")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        config = load_config(config.to_dict(), _quiet(place, config, steps + warm + trace))
        family = open_blank(config, place / "model")
        _let_go(family.device)
        limit = _limit(tier, family.device)
        asked = estimate.measure(family, config)
        ceiling = gemm_ceiling(family.device, family.dtype)
        _refuse_too_big(asked, config, family)
        tera = asked.floor(config) / 1e12
        rows = []
        for way in ways:
            row = _measured(way, config, family, steps, warm, trace)
            share = 0.0 if row.error else tera / ceiling / row.step
            rows.append(replace(row, floor=share))
            family.release("transformer")
        return Report(
            device=_device_name(family.device),
            model=f"{config.model.path}（{family.name}，{config.data.resolution}²）",
            parameters=asked.parameters / 1e9,
            ceiling=ceiling,
            tera=tera,
            limit=limit,
            rows=tuple(rows),
        )


def _quiet(place: Path, config: Config, steps: int) -> list[str]:
    """测速时不存检查点、不检验、不画图；结果文件夹用完就删。"""
    many = max(steps + 1, config.train.warmup + 1)
    return [f"run.output={place / 'run'}", f"train.steps={many}", f"train.save_every={many}",
            "eval.every=0", "sample.prompts=[]", "sample.every=0",
            "data.class_folder=null", "data.mask=none"]  # fmt: skip


def _refuse_too_big(asked, config: Config, family):
    """权重要放进内存而又放不下时，先说，别等系统来杀。"""
    need = (asked.weights if family.device.type != "cuda" else asked.moved) / GIB
    free = psutil.virtual_memory().available / GIB
    if need > 0.8 * free:
        raise LorakitError(
            f"内存放不下：{config.model.path} 的权重要 {need:.1f} GiB，现在空闲 {free:.1f} GiB。"
            "这里可以先测微型模型：lorakit bench tiny-qwen-image。"
        )


def _limit(tier: float | None, device: torch.device) -> float | None:
    if tier is None:
        if device.type == "cuda":  # 同一个进程里上一次假装过小卡
            torch.cuda.set_per_process_memory_fraction(1.0, device.index)
        return None
    if device.type != "cuda":
        raise ConfigError("--tier：要有 NVIDIA 显卡才能假装成小一点的卡；这里没有。")
    total = torch.cuda.mem_get_info(device)[1]
    limit = estimate.usable(tier)
    if not 0 < limit * GIB <= total:
        raise ConfigError(f"--tier：这块显卡一共 {total / GIB:.0f} GiB，不能当成 {tier:g} GB 的。")
    torch.cuda.set_per_process_memory_fraction(limit * GIB / total, device.index)
    return limit


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU（{torch.get_num_threads()} 线程）"


def gemm_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """大矩阵乘法实测的速度，TFLOP/s：任何模型都不可能比它快。"""
    side, times = (8192, 20) if device.type == "cuda" else (1024, 10)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    a @ b  # 热身
    mark = _clock(device)
    marks = [mark()]
    for _ in range(times):
        a @ b
        marks.append(mark())
    return 2 * side**3 / min(_between(*pair) for pair in pairwise(marks)) / 1e12


def copy_speed(device: torch.device) -> float:
    """从锁住的内存搬到显卡实测的速度，GB/s：memory.offload=blocks 的一步不可能比它快。"""
    here = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    mark = _clock(device)
    marks = [mark()]
    for _ in range(5):
        there.copy_(here, non_blocking=True)
        marks.append(mark())
    return here.nbytes / min(_between(*pair) for pair in pairwise(marks)) / 1e9


def _clock(device: torch.device):
    """现在的时刻：显卡上是它自己队列里的一个事件，CPU 上是墙上的钟。"""

    def mark():
        if device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    return mark


def _between(start, end) -> float:
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000


def _let_go(device: torch.device):
    """上一种走法的模型与编译好的代码都放掉，峰值才只是自己的；显存不够而停下的，也在这里放掉。"""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _measured(way: str, config: Config, family, steps: int, warm: int, trace: bool) -> Row:
    """走 warm + steps 步，只计后面的；显存的峰值两段都算。"""
    gpu = family.device.type == "cuda"
    _let_go(family.device)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    begin = {"ours": _ours, "seed": _seed, "plain": _plain}[way]
    try:
        walk = begin(config, family)
        started = time.perf_counter()
        list(islice(walk, warm))
        warmed = time.perf_counter() - started
        mark = _clock(family.device)
        marks = [mark()]
        for _ in islice(walk, steps):
            marks.append(mark())
        step = statistics.median(_between(a, b) for a, b in pairwise(marks))
        traced = record(lambda: next(walk), family.device) if trace else None
        walk.close()
    except torch.OutOfMemoryError as error:
        return Row(way, error=str(error))
    except LorakitError as error:
        if not isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
        return Row(way, error=str(error))
    return Row(
        way=way,
        step=step,
        images=config.train.batch_size * config.train.grad_accum / step,
        warm=warmed,
        allocated=torch.cuda.max_memory_allocated() / GIB if gpu else 0.0,
        reserved=torch.cuda.max_memory_reserved() / GIB if gpu else 0.0,
        host=psutil.Process().memory_info().rss / GIB,
        trace=traced,
    )


def made_up(family, config: Config) -> Dataset:
    """一批假的、编码好的图：形状与真的一样，不多不少，每一步都是满的一批。"""
    rng = torch.Generator().manual_seed(0)
    side = config.data.resolution
    small = side // family.compression
    items = []
    for _ in range(config.train.batch_size):
        cond = {
            name: torch.randn(shape, generator=rng).to(family.dtype)
            for name, shape in family.cond_shapes(TOKENS, side, config.data.paired).items()
        }
        mean = torch.randn(family.latent_channels, small, small, generator=rng)
        record = Record(Path("随机.png"), "", (side, side), "")
        items.append(Item(mean, torch.zeros_like(mean), cond, cond, record))
    return Dataset(tuple(items), ())


def _ours(config: Config, family) -> Iterator:
    """lorakit 自己的训练循环，一行不改。"""
    return iter(Trainer(config, made_up(family, config), family=family))


def _seed(config: Config, family) -> Iterator:
    """常见的写法：底模不量化，每一步都现编码图和文字，每块都重算，不编译。"""
    side, device = config.data.resolution, family.device
    parts = {"vae": estimate.random_vae(family)}  # stock 的 VAE：常见写法不会把它换快
    family = family.again(quantize="none", offload="none", parts=parts)
    encoders = estimate.random_encoders(family)

    @torch.no_grad()
    def encode() -> torch.Tensor:
        for encoder in encoders:
            most = getattr(encoder.config, "max_position_embeddings", None) or 512
            ids = torch.ones(1, min(TOKENS + TEMPLATE, most), dtype=torch.long, device=device)
            encoder(input_ids=ids, output_hidden_states=True)
        pixels = torch.rand(config.train.batch_size, 3, side, side) * 2 - 1
        return family.encode_images(pixels)[0]

    return _plainly(config, family, encode, SEED_TARGETS, recompute=True)


def _plain(config: Config, family) -> Iterator:
    """同样的模型、同样的 LoRA，已经编码好；循环只用 diffusers、PEFT 与 torch。"""
    items = made_up(family, config).train
    first = torch.stack([item.mean for item in items])
    recompute = config.memory.checkpointing in (True, "full")  # auto 就不重算，两边一样
    return _plainly(config, family, lambda: first, config.lora.targets, recompute)


def _plainly(config: Config, family, encode, targets, recompute: bool) -> Iterator:
    model, train = family.load("transformer"), config.train
    if config.lora.kind == "full":
        learned = list(model.requires_grad_(True).parameters())
        optimizer = optim.build(learned, train)  # 直接更新底模的权重，bf16 的也不随机舍入
    else:
        learned = _with_adapter(model, config.lora, lora.match(model, family, targets))
        optimizer = torch.optim.AdamW(learned, lr=train.lr, weight_decay=train.weight_decay)
    set_attention(model, family, "auto")  # 与我们同一个注意力内核：比的是别处
    if recompute:
        model.enable_gradient_checkpointing()
    device, dtype = family.device, family.dtype
    conds = [item.cond for item in made_up(family, config).train]
    conds = [{name: value.to(device) for name, value in cond.items()} for cond in conds]
    model.train()
    while True:
        for _ in range(train.grad_accum):
            x0 = encode().to(device).float()
            noise = torch.randn_like(x0)
            t = torch.rand(len(x0), device=device)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                x_t = flow.add_noise(x0, noise, t)
                v = family.predict_velocity(model, x_t, t, family.collate(conds))
            loss = F.mse_loss(v.float(), noise - x0)
            (loss / train.grad_accum).backward()
        torch.nn.utils.clip_grad_norm_(learned, train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def _with_adapter(model, settings, names: list[str]) -> list[torch.nn.Parameter]:
    """挂上 PEFT 的 LoRA，返回要学的参数。"""
    rank, alpha = settings.rank, settings.alpha or settings.rank
    model.add_adapter(
        LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=names)
    )
    return [p for p in model.parameters() if p.requires_grad]
