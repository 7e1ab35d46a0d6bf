"""学什么：从缓存取一批、加噪、求损失；留出集用固定的噪声与时间步，前后可比。"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils import _pytree as pytree

from lorakit import flow
from lorakit.cache import Dataset, Item
from lorakit.config import Config
from lorakit.data.batches import Batches
from lorakit.errors import LorakitError
from lorakit.flow import EVAL_T

EVAL_DRAW = 2**31  # 检验的随机数与训练的分开


def generator(*keys: int) -> torch.Generator:
    """由 (种子, 步数, ...) 决定的随机数发生器；不动全局的，所以中途出样张不会打乱训练。"""
    state = np.random.SeedSequence(keys).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def refuse_nan(trainer, used: list[tuple], norm: float):
    """NaN 或无穷大就停，说出这一批和最后一个好的检查点；各进程看到的一样，所以一起停。

    Args:
        used: 各份的 (损失, [t], [图名])。
        norm: 梯度的长度。

    Raises:
        LorakitError: 有一个不是有限的数。
    """
    values = [("损失", loss, [(loss, *where)]) for loss, *where in used] + [("梯度", norm, used)]
    for what, value, batch in values:
        if math.isfinite(value):
            continue
        first = trainer.accelerator.is_main_process
        last = (trainer.last_good() if first else None) or "还没有"
        half = trainer.family.dtype == torch.float16
        said = _explain_nan(trainer.step + 1, what, value, batch, trainer.config.train.lr, half)
        error = LorakitError(f"{said}最后一个好的检查点：{last}。")
        error.told = not first
        raise error


def _explain_nan(step: int, what: str, value: float, used: list[tuple], lr, half: bool) -> str:
    """NaN 或无穷大时的话：哪一步、哪些图、什么 t、多半为什么（half：用 fp16 练的）；used 同上。"""
    names = "、".join(name for _, _, names in used for name in names)
    times = [round(t, 3) for _, ts, _ in used for t in ts]
    rate = f"学习率太大（现在 {lr}，试试除以 3）"
    why = f"fp16 溢出（改用 bf16；T4 这样不会 bf16 的显卡用 fp32），或{rate}" if half else ""
    return (
        f"第 {step} 步的{what}变成了 {value}，已停下。这一批：{names}；t = {times}。"
        f"常见原因：{why or f'{rate}，或 fp16 溢出（改用 bf16）'}。"
    )


def _any_view(item: Item, rng: torch.Generator) -> Item:
    """几种样子里随机取一种；只有一种就不抽，免得打乱后面的随机数。"""
    if not item.variants:
        return item
    return (item, *item.variants)[int(torch.randint(1 + len(item.variants), (), generator=rng))]


@dataclass(frozen=True)
class Batch:
    """抽好的一批。"""

    parts: list  # 训练图一份，有同类图片再一份：(losses 要的几项, 各图的份量 (B,))
    t: torch.Tensor  # 各图的时间步，在 CPU 上
    items: list[Item]


class Objective:
    """一份数据上的训练目标；`model` 是 accelerate 准备好的 Transformer。"""

    def __init__(self, config: Config, family, dataset: Dataset, model, device: torch.device):
        self.config, self.family, self.dataset = config, family, dataset
        self.model, self.device = model, device
        shapes = [item.shapes for item in dataset.train]
        train, side = config.train, config.data.resolution
        repeats = [config.data.repeats * item.record.repeats for item in dataset.train]
        self.batches = Batches(shapes, train.batch_size, train.seed, repeats)
        auto = train.timestep.shift == "auto"
        # 换一个种子：同样多的图时，也不会总是同一张陪同一张
        prior = [item.shapes for item in dataset.prior]
        self.prior = Batches(prior, train.batch_size, train.seed + 1) if prior else None
        self.shift = family.shift(side, side) if auto else float(train.timestep.shift)
        self._ahead: tuple = (None, None)  # 先抽好的一批：(它的号码, 它)

    def draw(self, number: int, *keys: int) -> tuple[torch.Tensor, torch.Tensor, list[Item]]:
        """第 number 批的损失 (标量)、时间步 (B,)、用到的图；一切随机都由 (种子, *keys) 决定。"""
        batch = self.batch(number, *keys)
        return self.total(batch.parts), batch.t, batch.items

    def batch(self, number: int, *keys: int) -> "Batch":
        """抽第 number 批：图、噪声、时间步都定好，张量已在设备上。

        有同类图片时另取一批，损失乘 data.class_weight 加上去（DreamBooth，Ruiz 等 2022 式 (2)）。
        """
        if (number, keys) == self._ahead[0]:
            return self._ahead[1]
        rng = generator(self.config.train.seed, *keys)
        chosen = [(self.dataset.train, self.batches, 1.0)]
        if self.prior is not None:
            chosen.append((self.dataset.prior, self.prior, self.config.data.class_weight))
        parts, times, used = [], [], []
        for pictures, order, share in chosen:
            items = [pictures[i] for i in order.batch(number)]
            given, t = self._noisy(items, rng)
            parts.append((given, share * flow.weight(t, self.config.train.weighting)))
            times.append(t)
            used += items
        parts = pytree.tree_map_only(torch.Tensor, self._on_device, parts)
        return Batch(parts, torch.cat(times), used)

    def prefetch(self, number: int, *keys: int):
        """趁显卡忙着，先把下一批抽好、搬过去；`batch` 要的正是它，就直接拿走。"""
        self._ahead = (number, keys), self.batch(number, *keys)

    def total(self, parts: list) -> torch.Tensor:
        """一批（parts 见 Batch）的损失，标量。"""
        return sum((self.losses(*given) * share).mean() for given, share in parts)

    def _noisy(self, items: list[Item], rng) -> tuple[tuple, torch.Tensor]:
        """抽样子（翻转、裁切）、噪声与时间步，返回 `losses` 要的几项和 t (B,)。"""
        items = [_any_view(item, rng) for item in items]
        mean = torch.stack([item.mean for item in items])
        std = torch.stack([item.std for item in items])
        x0 = mean + std * torch.randn(mean.shape, generator=rng)  # 每步从后验里重新取样
        noise = torch.randn(x0.shape, generator=rng)
        t = flow.sample_t(len(items), self.config.train.timestep.density, self.shift, rng)
        dropped = torch.rand(len(items), generator=rng) < self.config.data.caption_dropout
        pairs = zip(dropped, items, strict=True)
        conds = [item.empty if drop else item.cond for drop, item in pairs]
        return (x0, noise, t, self.family.collate(conds), self._weight(items)), t

    def _on_device(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.device, non_blocking=True)

    def _weight(self, items: list[Item]) -> torch.Tensor | None:
        """遮罩 -> 损失的权重 (B, 1, h, w)；没有遮罩的图处处是 1，都没有就是 None。"""
        if all(item.mask is None for item in items):
            return None
        floor, (_, *sides) = self.config.data.mask_floor, items[0].mean.shape
        masks = [torch.ones(1, *sides) if i.mask is None else i.mask for i in items]
        return floor + (1 - floor) * torch.stack(masks)

    def losses(self, x0, noise, t, cond, weight=None) -> torch.Tensor:
        """加噪、预测速度、与真速度比；每张图一个损失，(B,)。cond 是拼好的一批，都已在设备上。"""
        dtype = self.family.dtype
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            x_t = flow.add_noise(x0, noise, t)
            v = self.family.predict_velocity(self.model, x_t, t, cond)
        return flow.loss(v, flow.velocity(x0, noise), weight)

    @torch.no_grad()
    def evaluate(self, most: int | None = None) -> list[list[float]] | None:
        """留出集（前 most 张）的损失，一张图一行、8 个定好的 t 一列，噪声也一样；没有就是 None。"""
        losses = []
        # 显卡上别超过训练时的批次，免得显存不够；CPU 上的微型模型一次算完更快
        size = len(EVAL_T) if self.device.type == "cpu" else self.config.train.batch_size
        for index, item in enumerate(self.dataset.held[:most]):
            rng = generator(self.config.train.seed, index, EVAL_DRAW)
            noise = torch.randn(item.mean.shape, generator=rng)
            for start in range(0, len(EVAL_T), size):
                t = torch.tensor(EVAL_T[start : start + size])
                x0, eps = (x.expand(len(t), *x.shape) for x in (item.mean, noise))
                cond = self.family.collate([item.cond] * len(t))
                given = (x0, eps, t, cond, self._weight([item] * len(t)))
                given = pytree.tree_map_only(torch.Tensor, self._on_device, given)
                losses.append(self.losses(*given))
        return torch.cat(losses).view(-1, len(EVAL_T)).tolist() if losses else None
