"""训练：一个循环服务所有家族；它产出每一步，画图、出样张、停下都是调用者的普通代码。

    for step in Trainer(config):
        print(step.step, step.loss)

几张显卡用 accelerate launch 启动，每个进程都走这个循环。教程：notebooks/03_train_qwen.ipynb
"""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import numpy as np

from lorakit import lora
from lorakit.memory import apply
from lorakit.results import track
from lorakit.training import objective, optim, processes
from lorakit.training.setup import Prepared


@dataclass(frozen=True)
class Step:
    """一步的记录；held 起的几项只有检验的那些步才有。"""

    step: int
    loss: float
    lr: float
    grad_norm: float
    t: float
    seconds: float
    held: float | None = None  # 留出集的损失
    held_each: list[list[float]] | None = None  # 它的明细：每张图一行、每个 t 一列
    delta: dict[str, float] | None = None  # 每块的权重改了多少：|ΔW|


class Trainer(Prepared):
    """准备好一切（见 training/setup.py）之后，迭代它就是训练；每个 Step 产出时，权重已经更新完。"""

    def __iter__(self) -> Iterator[Step]:
        try:
            yield from self._steps()
        finally:
            self.close()

    # ---- 循环：走一步、记下、该检验就检验、该存就存 ----

    def _steps(self) -> Iterator[Step]:
        train = self.config.train
        if self.step == 0:
            self._note({"step": 0, **self.examine()})
        while self.step < train.steps and not self._asked_to_stop():
            start = time.perf_counter()
            with apply.explaining_full(self.config, self.step + 1):
                loss, t, norm, lr = self._update()
            self.step += 1
            self.average.update(self.step)
            watched = self.examine() if self._watched() else {}
            self._held = watched.get("held")
            done = Step(self.step, loss, lr, norm, t, time.perf_counter() - start, **watched)
            self._note(asdict(done))
            if self._due(train.save_every):
                self.save()
            yield done
        self.save()

    # ---- 一步：攒够梯度，裁剪，换上学习率，更新权重 ----

    def _update(self) -> tuple[float, float, float, float]:
        """更新一次权重，返回损失、时间步、梯度的长度、学习率；损失与时间步是各进程平均的。

        先把一步的活都派给显卡，最后才等它的结果：中途等一次，它就要闲一次。
        """
        if not self.transformer.training:  # 走遍每一层要几毫秒，不必每步都走
            self.model.train()
        used = self._accumulate()
        optim.unscale(self.parameters.values(), self.family.dtype)
        limit = self.config.train.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), limit)
        lr = optim.set_lr(self.optimizer, self.step, self.config.train)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self.graphs is None)
        if self.accelerator.device.type == "cuda":
            self.objective.prefetch(*self._share(self.step + 1, 0))
        used = processes.collect(self.accelerator, [(float(loss), *rest) for loss, *rest in used])
        objective.refuse_nan(self, used, float(norm))
        losses, times, _ = zip(*used, strict=True)
        t = float(np.mean([np.mean(t) for t in times]))
        return float(np.mean(losses)), t, float(norm), lr

    def _accumulate(self) -> list[tuple]:
        """攒够 grad_accum 份梯度，只在最后一份上同步；返回各份的损失（还在设备上）、t、图的名字。

        一步的各份在全部进程里统一编号，所以 2 个进程与 1 个进程累积 2 份，取的图和噪声都一样。
        """
        used, last = [], self.config.train.grad_accum - 1
        for micro in range(last + 1):
            with nullcontext() if micro == last else self.accelerator.no_sync(self.model):
                loss, t, items = self._backward(*self._share(self.step, micro))
            used.append((loss, t.tolist(), [item.record.path.name for item in items]))
        return used

    def _share(self, step: int, micro: int) -> tuple[int, int, int]:
        """第 step 步的第 micro 份，在这个进程里是第几批；后两个数决定它的随机数。"""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        share = micro * world + rank
        return step * self.config.train.grad_accum * world + share, step, share

    def _backward(self, *keys: int) -> tuple:
        if self.graphs is not None:
            return self.graphs.draw(*keys)
        loss, t, items = self.objective.draw(*keys)
        self.accelerator.backward(loss / optim.divisor(self.config.train, self.family.dtype))
        return loss.detach(), t, items

    # ---- 检验、停下、记录 ----

    def examine(self) -> dict:
        """留出集的损失 held 与明细 held_each（没有留出集就是 None），每块改了多少 delta。"""
        self.model.train()  # 检验的是正在练的：训练适配器也加着，画图时（eval）才不加
        with self.average.swapped():
            each = self.objective.evaluate()
            delta = lora.delta_norms(self.parameters, lora.scale(self.config.lora))
        held = float(np.mean(each)) if each else None
        return {"held": held, "held_each": each, "delta": delta or None}

    def evaluate(self) -> float | None:
        """留出集的损失；没有留出集就返回 None。"""
        return self.examine()["held"]

    def stop(self):
        """练完手头这一步、存好，然后停下。"""
        self._stop = True

    def _asked_to_stop(self) -> bool:
        """谁被叫停（Ctrl-C、SIGTERM、STOP 文件）都算，大家停在同一步。"""
        asked = self.accelerator.is_main_process and self.record.asked_to_stop()
        agreed = processes.anyone(self.accelerator, self._stop or asked)
        self._stop = agreed or self._stop  # 商量的时候也可能正好有人按下 Ctrl-C：下一步再一起停
        return agreed

    def _note(self, facts: dict):
        if self.accelerator.is_main_process:
            self.record.append(facts)
        track.log(self.accelerator, facts)

    def _watched(self) -> bool:
        """这一步要不要检验：到了时候，或要存检查点（好挑最好的那个）；0 就都不要。"""
        every = self.config.eval.every
        return self._due(every) or (every > 0 and self._due(self.config.train.save_every))

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.train.steps)
