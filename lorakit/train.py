"""训练：一个循环服务所有家族；它产出每一步，画图、出样张、停下都是调用者的普通代码。

    for step in Trainer(config):
        print(step.step, step.loss)

教程：notebooks/03_train_qwen.ipynb
"""

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from lorakit import cache, checkpoint, full, lora, memory, optim
from lorakit.arithmetic import Plan
from lorakit.config import Config
from lorakit.config_groups import Data, Lora
from lorakit.errors import LorakitError, LorakitWarning
from lorakit.families import open_family
from lorakit.objective import Objective
from lorakit.record import RunFolder


@dataclass(frozen=True)
class Step:
    """一步的记录；held 是留出集的损失，held_each 是它按图、按 t 的明细，只有检验的那些步才有。"""

    step: int
    loss: float
    lr: float
    grad_norm: float
    t: float
    seconds: float
    held: float | None = None
    held_each: list[list[float]] | None = None


class Trainer:
    """准备好一切之后，迭代它就是训练；每个 Step 产出时，那一步的权重已经更新完。"""

    def __init__(
        self, config: Config, dataset: cache.Dataset | None = None, progress=None, family=None
    ):
        self.config, self.run = config, config.run.output
        self.record = RunFolder(config)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.family = family or open_family(config, self.accelerator.device)
        self._check_choices()
        self.family.fetch("transformer")  # 编码完了才发现下不来、放不下，就晚了
        self.dataset = dataset or cache.prepare(config, self.family, progress)
        self.transformer = self.family.load("transformer")
        if config.lora.kind == "full":
            self.parameters = full.attach(self.transformer)
        else:
            args = (self.transformer, self.family, config.lora, config.train.seed)
            self.parameters = lora.attach(*args)
        memory.prepare(self.transformer, config.memory, self.family)
        self.optimizer = optim.build(self.parameters.values(), config.train)
        self.average = optim.Average(self.parameters, config.train.ema)
        self.model, self.optimizer = self.accelerator.prepare(self.transformer, self.optimizer)
        self.objective = Objective(
            config, self.family, self.dataset, self.model, self.accelerator.device
        )
        self.step, self._stop = 0, False
        found = checkpoint.latest(self.run)
        if found:
            state = (self.parameters, self.optimizer, self.average.values)
            self.step = checkpoint.load(found, *state)
        self.record.claim(config, self.step)

    def plan(self) -> Plan:
        """这次训练的算术：几轮、每张图看几遍。"""
        repeats = [item.record.repeats for item in self.dataset.train]
        world = self.accelerator.num_processes
        return Plan.of(self.config, repeats, self.objective.batches.per_epoch, world)

    def __iter__(self) -> Iterator[Step]:
        train = self.config.train
        if self.step == 0:
            self._note({"step": 0, **self.examine()})
        while self.step < train.steps and not self._stop and not self.record.asked_to_stop():
            start = time.time()
            self.transformer.train()
            loss, t, items = self._step_or_explain()
            norm = self.accelerator.clip_grad_norm_(self.parameters.values(), train.max_grad_norm)
            self._check_finite("梯度", float(norm), t, items)
            lr = self.lr_at(self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            self.average.update(self.step)
            held = self.examine() if self._due(self.config.eval.every) else {}
            done = Step(self.step, loss, lr, float(norm), t, time.time() - start, **held)
            self._note(asdict(done))
            if self._due(train.save_every):
                self.save()
            yield done
        self.save()

    def _step_or_explain(self):
        try:
            return self._accumulate()
        except torch.OutOfMemoryError as error:
            raise LorakitError(memory.explain_full(self.config, self.step + 1)) from error

    def _accumulate(self) -> tuple[float, float, list]:
        """攒够 grad_accum 份梯度，返回平均的损失与时间步、用到的图；只在最后一份上同步各进程。"""
        count, facts, used = self.config.train.grad_accum, [], []
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        for micro in range(count):
            last = micro == count - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                number = (self.step * count + micro) * world + rank
                loss, t, items = self.objective.draw(number, self.step, micro, rank)
                self._check_finite("损失", float(loss.detach()), t.tolist(), items)
                self.accelerator.backward(loss / count)
            facts.append((float(loss.detach()), float(t.mean())))
            used += items
        return *(float(value) for value in np.mean(facts, axis=0)), used

    def evaluate(self) -> float | None:
        """留出集的损失；没有留出集就返回 None。"""
        return self.examine()["held"]

    def examine(self) -> dict:
        """留出集的损失：平均 held 与明细 held_each（每张图一行、每个 t 一列）；没有就是 None。"""
        self.transformer.eval()
        with self.average.swapped():
            each = self.objective.evaluate()
        return {"held": float(np.mean(each)) if each else None, "held_each": each}

    def lr_at(self, step: int) -> float:
        """第 step 步的学习率：先热身，再按 schedule 变化。"""
        train = self.config.train
        warm = min(1.0, (step + 1) / train.warmup) if train.warmup else 1.0
        done = max(0, step - train.warmup) / max(1, train.steps - train.warmup)
        fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + np.cos(np.pi * done))}
        return float(train.lr * warm * fall[train.schedule])

    def stop(self):
        """练完手头这一步、存好，然后停下。"""
        self._stop = True

    def save(self) -> Path:
        """把当前这一步存成检查点（已经有了就不重复存）。"""
        target = self.run / f"checkpoint-{self.step}"
        if self.accelerator.is_main_process and not target.exists():
            state = (self.run, self.step, self.parameters, self.optimizer)
            keep = self.config.train.keep
            checkpoint.save(*state, self._write_weights, keep, self.average.values)
        return target

    def _write_weights(self, folder: Path):
        model = self.config.model
        facts = {"base": model.path, "family": model.family, "steps": str(self.step)}
        facts["trigger"] = self.config.data.trigger
        with self.average.swapped():
            if self.config.lora.kind == "full":
                full.save(folder, self.transformer, self.family)
            else:
                lora.save(folder, self.transformer, self.config.lora, facts)

    def _note(self, facts: dict):
        if self.accelerator.is_main_process:
            self.record.append(facts)

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.train.steps)

    def _check_choices(self):
        """编码和载入之前能发现的都先说：不能练的底模、对不上的目标层、不起作用的设置。"""
        self.family.refuse_distilled(self.config.model.path)
        memory.refuse(self.config, self.accelerator.num_processes)
        if self.config.lora.kind == "full":
            self._check_full()
        else:
            lora.plan(self.family.skeleton(), self.family, self.config.lora)
        if self.config.train.guidance != 1 and not self.family.embedded_guidance:
            warnings.warn(
                f"train.guidance 对 {self.family.name} 不起作用。", LorakitWarning, stacklevel=3
            )
        data, plain = self.config.data, Data()
        if data.class_folder is None and data.class_weight != plain.class_weight:
            warnings.warn(
                "data.class_weight 不起作用：没有写 data.class_folder。",
                LorakitWarning,
                stacklevel=3,
            )
        if data.mask == "none" and data.mask_floor != plain.mask_floor:
            warnings.warn(
                "data.mask_floor 不起作用：data.mask 是 none。", LorakitWarning, stacklevel=3
            )

    def _check_full(self):
        """全量微调时不起作用的设置，和多半是抄错的学习率。"""
        ours, plain = self.config.lora, Lora(kind="full")
        idle = [f"lora.{key}" for key, value in plain if getattr(ours, key) != value]
        if idle:
            said = f"{'、'.join(idle)} 不起作用：lora.kind 是 full，每个权重都练。"
            warnings.warn(said, LorakitWarning, stacklevel=4)
        if self.config.train.lr > full.HIGH_LR:
            warnings.warn(
                f"train.lr 是 {self.config.train.lr:g}，全量微调多半会把底模练坏；常用 1e-5。",
                LorakitWarning,
                stacklevel=4,
            )

    def _check_finite(self, what: str, value: float, t, items):
        if math.isfinite(value):
            return
        last = checkpoint.latest(self.run)
        names = "、".join(item.record.path.name for item in items)
        raise LorakitError(
            f"第 {self.step + 1} 步的{what}变成了 {value}，已停下。这一批：{names}；t = {t}。"
            f"常见原因：学习率太大（现在 {self.config.train.lr}，试试除以 3），"
            f"或 fp16 溢出（改用 bf16）。最后一个好的检查点：{last or '还没有'}。"
        )
