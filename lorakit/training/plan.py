"""训练的算术：多少张图、多少步、每张图看几遍；开训前打印出来，离谱就提醒。"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorakit.results.verdict import FEW

MANY = 400  # 每张图看这么多遍算太多；少于 FEW 算太少（微型模型与真模型都在这之间）


@dataclass(frozen=True)
class Plan:
    """一次训练的数目；processes 是进程（显卡）数。"""

    pictures: int
    repeats: float  # 几个来源重复次数不同时，是平均
    batch_size: int
    grad_accum: int
    processes: int
    steps: int
    batches_per_epoch: int

    @property
    def per_step(self) -> int:
        """一步最多看几张图。"""
        return self.batch_size * self.grad_accum * self.processes

    @property
    def epochs(self) -> float:
        """一共几轮；一轮里每张图出现 repeats 次。"""
        return self.steps * self.grad_accum * self.processes / self.batches_per_epoch

    @property
    def views(self) -> float:
        """每张图平均看几遍。"""
        return self.epochs * self.repeats

    def steps_for(self, epochs: float) -> int:
        """要练满 epochs 轮，需要多少步。"""
        return math.ceil(epochs * self.batches_per_epoch / (self.grad_accum * self.processes))

    @classmethod
    def of(cls, config, repeats: Sequence[int], batches_per_epoch: int, processes: int = 1):
        """照一份设置算。

        Args:
            repeats: 每张训练图所在来源的重复次数。
        """
        train = config.train
        return cls(
            pictures=len(repeats),
            repeats=config.data.repeats * sum(repeats) / len(repeats),
            batch_size=train.batch_size,
            grad_accum=train.grad_accum,
            processes=processes,
            steps=train.steps,
            batches_per_epoch=batches_per_epoch,
        )

    def text(self) -> str:
        """几行算式；每张图看得太少或太多时，最后一行是提醒。"""
        each = self.pictures * self.repeats  # 一轮里的张数
        rest = "（有的凑不满）" if each < self.batches_per_epoch * self.batch_size else ""
        lines = [
            f"{self.pictures} 张图 × 重复 {self.repeats:.3g}"
            f" = 每轮 {each:.0f} 张，分成 {self.batches_per_epoch} 批{rest}",
            f"每步 {self.batch_size} 张 × 累积 {self.grad_accum} × {self.processes} 个进程"
            f" = {self.per_step} 张",
            f"{self.steps} 步 = {self.epochs:.1f} 轮，每张图看 {self.views:.0f} 遍",
        ]
        if self.views < FEW:
            lines.append(
                f"提醒：每张图只看 {self.views:.1f} 遍，多半学不会；"
                f"看 50 遍需要 {self.steps_for(50 / self.repeats)} 步。"
            )
        elif self.views > MANY:
            lines.append(
                f"提醒：每张图看 {self.views:.0f} 遍，容易死记硬背；"
                f"看 150 遍只需 {self.steps_for(150 / self.repeats)} 步。请留意留出集损失。"
            )
        if self.per_step > each:
            lines.append(
                f"提醒：一步要看 {self.per_step} 张，比一轮的 {each:.0f} 张还多，更新得太少；"
                "把 train.batch_size 或 train.grad_accum 改小。"
            )
        return "\n".join(lines)
