"""训练的算术：多少张图、多少步、每张图看几遍；开训前打印出来，离谱就提醒。"""

import math
from dataclasses import dataclass

FEW, MANY = 10, 400  # 每张图看几遍算太少、太多（微型模型与真模型都在这之间）


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

    def text(self) -> str:
        """几行算式；每张图看得太少或太多时，最后一行是提醒。"""
        lines = [
            f"{self.pictures} 张图 × 重复 {self.repeats:.3g}"
            f" = 每轮 {self.pictures * self.repeats:.0f} 张，分成 {self.batches_per_epoch} 批",
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
        return "\n".join(lines)
