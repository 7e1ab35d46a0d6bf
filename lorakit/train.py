"""训练：一个循环服务所有家族；它产出每一步，画图、出样张、停下都是调用者的普通代码。

    for step in Trainer(config):
        print(step.number, step.loss)

教程：notebooks/03_train_qwen.ipynb
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from lorakit import cache, checkpoint, flow, hub, lora, memory
from lorakit.config import Config
from lorakit.data import Batches
from lorakit.errors import LorakitError
from lorakit.families import get
from lorakit.record import RunFolder

EVAL_T = tuple((i + 0.5) / 8 for i in range(8))  # 检验时用的 8 个固定时间步


@dataclass(frozen=True)
class Step:
    """一步的记录；held 是留出集的损失，只有检验的那些步才有。"""

    step: int
    loss: float
    lr: float
    grad_norm: float
    t: float
    seconds: float
    held: float | None = None


def generator(*keys: int) -> torch.Generator:
    """由 (种子, 步数, ...) 决定的随机数发生器；不动全局的，所以中途出样张不会打乱训练。"""
    state = np.random.SeedSequence(keys).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """model.precision -> 精度；auto 在支持 bf16 的显卡上用 bf16，别处用 fp32。"""
    names = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if precision != "auto":
        return names[precision]
    return (
        torch.bfloat16
        if device.type == "cuda" and torch.cuda.is_bf16_supported()
        else torch.float32
    )


def open_family(config: Config, device: torch.device | None = None):
    """按设置打开家族（还不载入任何权重）。"""
    device = device or pick_device()
    dtype = pick_dtype(config.model.precision, device)
    return get(config.model.family)(hub.locate(config.model.path), device, dtype)


class Trainer:
    """准备好一切之后，迭代它就是训练；每个 Step 产出时，那一步的权重已经更新完。"""

    def __init__(self, config: Config, dataset: cache.Dataset | None = None, progress=None):
        self.config, self.run = config, config.run.output
        self.record = RunFolder(config)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.family = open_family(config, self.accelerator.device)
        self.dataset = dataset or cache.prepare(config, self.family, progress)
        self.family.guidance = config.train.guidance
        self._check_choices()
        self.transformer = self.family.load("transformer")
        self.parameters = lora.attach(self.transformer, self.family, config.lora, config.train.seed)
        memory.prepare(self.transformer, config.memory)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.train.lr,
            weight_decay=config.train.weight_decay,
            fused=True,
        )
        self.model, self.optimizer = self.accelerator.prepare(self.transformer, self.optimizer)
        shapes = [item.shape for item in self.dataset.train]
        self.batches = Batches(
            shapes, config.train.batch_size, config.train.seed, config.data.repeats
        )
        self.shift = self._shift()
        self.step, self._stop = 0, False
        found = checkpoint.latest(self.run) if config.run.resume == "auto" else None
        if found:
            self.step = checkpoint.load(found, self.parameters, self.optimizer)
        self.record.claim(config, self.step)

    def __iter__(self) -> Iterator[Step]:
        train = self.config.train
        self.transformer.train()
        if self.step == 0:
            self._note({"step": 0, "held": self.evaluate()})
        while self.step < train.steps and not self._stop:
            start, lr = time.time(), self.lr_at(self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            losses, times = [], []
            for micro in range(train.grad_accum):
                with self._sync(last=micro == train.grad_accum - 1):
                    loss, t, items = self.loss_of(self.step, micro)
                    self._check_finite(loss, t, items)
                    self.accelerator.backward(loss / train.grad_accum)
                losses.append(float(loss.detach()))
                times.append(float(t.mean()))
            norm = self.accelerator.clip_grad_norm_(self.parameters.values(), train.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            held = self.evaluate() if self._due(self.config.eval.every) else None
            seconds = time.time() - start
            done = Step(
                self.step,
                float(np.mean(losses)),
                lr,
                float(norm),
                float(np.mean(times)),
                seconds,
                held,
            )
            self._note(asdict(done))
            if self._due(train.save_every) or self._stop:
                self.save()
            yield done
        self.save()

    def loss_of(self, step: int, micro: int):
        """第 step 步第 micro 份的损失；一切随机都由 (种子, 步数, 份, 进程号) 决定。"""
        config, world, rank = (
            self.config,
            self.accelerator.num_processes,
            self.accelerator.process_index,
        )
        number = (step * config.train.grad_accum + micro) * world + rank
        items = [self.dataset.train[i] for i in self.batches.batch(number)]
        draw = generator(config.train.seed, step, micro, rank)
        mean, std = (torch.stack([getattr(item, key) for item in items]) for key in ("mean", "std"))
        x0 = mean + std * torch.randn(mean.shape, generator=draw)  # 每步从后验里重新取样
        noise = torch.randn(x0.shape, generator=draw)
        t = flow.sample_t(len(items), config.train.timestep.density, self.shift, draw)
        dropped = torch.rand(len(items), generator=draw) < config.data.caption_dropout
        conds = [
            self.dataset.empty if drop else item.cond
            for drop, item in zip(dropped, items, strict=True)
        ]
        loss = self._velocity_loss(x0, noise, t, conds).mean()
        return loss, t, items

    def _velocity_loss(self, x0, noise, t, conds) -> torch.Tensor:
        family, device = self.family, self.accelerator.device
        x0, noise, t = x0.to(device), noise.to(device), t.to(device)
        cond = family.collate(
            [{k: v.to(device, non_blocking=True) for k, v in c.items()} for c in conds]
        )
        with torch.autocast(device.type, family.dtype, enabled=family.dtype != torch.float32):
            v = family.predict_velocity(self.model, flow.add_noise(x0, noise, t), t, cond)
        return flow.loss(v, flow.velocity(x0, noise))

    @torch.no_grad()
    def evaluate(self) -> float | None:
        """留出集的损失：固定的噪声、固定的 8 个 t，所以前后可比；没有留出集就返回 None。"""
        if not self.dataset.held:
            return None
        self.transformer.eval()
        losses, size = [], self.config.train.batch_size
        for index, item in enumerate(self.dataset.held):
            noise = torch.randn(
                item.shape, generator=generator(self.config.train.seed, index, 2**31)
            )
            for start in range(0, len(EVAL_T), size):
                t = torch.tensor(EVAL_T[start : start + size])
                x0, eps = (x.expand(len(t), *x.shape) for x in (item.mean, noise))
                losses.append(self._velocity_loss(x0, eps, t, [item.cond] * len(t)))
        self.transformer.train()
        return float(torch.cat(losses).mean())

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
            checkpoint.save(
                self.run,
                self.step,
                self.parameters,
                self.optimizer,
                self._write_weights,
                self.config.train.keep,
            )
        return target

    def _write_weights(self, folder: Path):
        model = self.config.model
        facts = {"base": model.path, "family": model.family, "steps": str(self.step)}
        facts["trigger"] = self.config.data.trigger
        lora.save(folder, self.transformer, self.config.lora, facts)

    def _note(self, facts: dict):
        if self.accelerator.is_main_process:
            self.record.append(facts)

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.train.steps)

    def _sync(self, last: bool):
        """攒梯度时只在最后一份上同步各进程。"""
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def _shift(self) -> float:
        side = self.config.data.resolution
        shift = self.config.train.timestep.shift
        return self.family.shift(side, side) if shift == "auto" else float(shift)

    def _check_choices(self):
        """不能练的底模直接说；不起作用的设置给一句提醒。"""
        path, family = self.config.model.path, self.family
        for word, instead in family.distilled.items():
            if word.lower() in path.lower():
                raise LorakitError(
                    f"model.path：“{path}”是蒸馏过的底模，直接练会丢掉它几步出图的本事，画面发糊。"
                    f"请在 {instead} 上训练，练好的 LoRA 再拿到它上面用。"
                )
        if self.config.train.guidance != 1 and not family.embedded_guidance:
            warnings.warn(f"train.guidance 对 {family.name} 不起作用。", stacklevel=3)

    def _check_finite(self, loss: torch.Tensor, t: torch.Tensor, items):
        if torch.isfinite(loss):
            return
        last = checkpoint.latest(self.run)
        names = "、".join(item.record.path.name for item in items)
        raise LorakitError(
            f"第 {self.step + 1} 步的损失变成了 {float(loss.detach())}，已停下。"
            f"这一批：{names}；t = {t.tolist()}。"
            f"常见原因：学习率太大（现在 {self.config.train.lr}，试试除以 3），"
            f"或 fp16 溢出（改用 bf16）。最后一个好的检查点：{last or '还没有'}。"
        )
