"""训练：一个循环服务所有家族；它产出每一步，画图、出样张、停下都是调用者的普通代码。

    for step in Trainer(config):
        print(step.step, step.loss)

几张显卡用 accelerate launch 启动同一条命令；每个进程都走这个循环。
教程：notebooks/03_train_qwen.ipynb
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from lorakit import cache, lora
from lorakit.config import Config
from lorakit.errors import LorakitError
from lorakit.families import open_family
from lorakit.families.open import device_for
from lorakit.infer import remember_preview
from lorakit.lora import full
from lorakit.memory import apply, compiling, devices
from lorakit.memory.sharded import Tensors
from lorakit.results import checkpoint, track
from lorakit.results.folder import RunFolder
from lorakit.training import optim, preflight, processes
from lorakit.training.graphs import Graphs
from lorakit.training.objective import Objective, explain_nan
from lorakit.training.plan import Plan
from lorakit.training.rounding import round_updates


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


def _on_cpu(config: Config) -> bool:
    return device_for(config.model.path).type == "cpu"


class Trainer:
    """准备好一切之后，迭代它就是训练；每个 Step 产出时，那一步的权重已经更新完。"""

    def __init__(
        self, config: Config, dataset: cache.Dataset | None = None, progress=None, family=None
    ):
        self.config, self.run = config, config.run.output
        self.accelerator = processes.start(self.run, config.run.tracker, _on_cpu(config))
        count = self.accelerator.num_processes
        self.record = processes.by_first(self.accelerator, lambda: RunFolder(config, count))
        with ExitStack() as undo:
            if self.accelerator.is_main_process:
                undo.callback(self.record.abandon)  # 准备到一半失败了，放开文件夹
            self._get_ready(dataset, progress, family)
            undo.pop_all()

    def _get_ready(self, dataset: cache.Dataset | None, progress, family):
        """载入、编码、交给 accelerate、接上检查点，最后认领文件夹。"""
        config, count = self.config, self.accelerator.num_processes
        if count > 1 and family is None:  # 每台机器只下载一遍，别的进程等它
            parts = ("vae", "text", "transformer")
            fetch = lambda: open_family(config, self.accelerator.device).fetch(*parts)  # noqa: E731
            processes.by_local_first(self.accelerator, fetch)
        processes.together(self.accelerator, lambda: self._open(dataset, progress, family))
        pair = (self.transformer, self.optimizer)
        self.model, self.optimizer = processes.prepare(self.accelerator, *pair)
        self.parameters = processes.trainable(self.transformer)
        self.average = optim.Average(self.parameters, config.train.ema)
        self.objective = Objective(
            config, self.family, self.dataset, self.model, self.accelerator.device
        )
        self.graphs = self._graphs()
        self.step, self._stop, self._saved, self._held = 0, False, None, None
        found = processes.by_first(self.accelerator, self._newest)
        if found:
            processes.together(self.accelerator, lambda: self._restore(found))
        processes.by_first(self.accelerator, lambda: self.record.claim(config, self.step))
        track.start(self.accelerator, config)

    def _open(self, dataset: cache.Dataset | None, progress, family):
        """每个进程各自做的准备：核对、编码、载入底模、挂上 LoRA、造优化器。"""
        config = self.config
        self.family = family or open_family(config, self.accelerator.device)
        sharded = self.accelerator.is_fsdp2
        preflight.check(config, self.family, self.accelerator.num_processes, sharded)
        self.family.fetch("transformer")  # 编码完了才发现下不来、放不下，就晚了
        self.dataset = dataset or cache.prepare(config, self.family, progress)
        self.remembered = remember_preview(self.family, config, self.dataset)
        with self.family.on_cpu() if sharded else nullcontext():
            self.transformer = self.family.untouched()
        if config.lora.kind == "full":
            dtype = torch.bfloat16 if config.bf16_weights else torch.float32
            parameters = full.attach(self.transformer, dtype)
        else:
            args = (self.transformer, self.family, config.lora, config.train.seed)
            parameters = lora.attach(*args)
        how = config.memory
        if how.compile and compiling.cannot_compile(self.family.device):  # choices 说过了
            how = how.model_copy(update={"compile": False})
        self.compiled = bool(how.compile)
        if sharded and how.checkpointing == "auto":  # 各卡要一起重算：不能看各自还剩多少显存
            how = how.model_copy(update={"checkpointing": "full"})
        masked = self.family.masks_text and config.train.batch_size > 1
        self.recompute = apply.prepare(self.transformer, how, self.family, masked)
        self.optimizer = optim.build(parameters.values(), config.train)
        if config.bf16_weights:
            round_updates(self.optimizer, config.train.seed, lambda: self.step)

    def _graphs(self) -> Graphs | None:
        """memory.compile=graphs 要的 CUDA 图；这里用不了就是 None。"""
        able = compiling.can_replay(self.accelerator.device, self.accelerator.num_processes)
        if self.config.memory.compile != "graphs" or not (self.compiled and able):
            return None
        return Graphs(self.objective, self.recompute, self._divisor(), self.family.streamer)

    def plan(self) -> Plan:
        """这次训练的算术：几轮、每张图看几遍。"""
        repeats = [item.record.repeats for item in self.dataset.train]
        world = self.accelerator.num_processes
        return Plan.of(self.config, repeats, self.objective.batches.per_epoch, world)

    def describe(self) -> str:
        """练的是什么：哪些层、多少个参数。"""
        count = sum(value.numel() for value in self.parameters.values())
        if self.config.lora.kind == "full":
            return f"全量微调：{count:,} 个参数都练"
        return f"LoRA 加在 {lora.summary(self.parameters)}；要学的参数 {count:,} 个"

    def last_good(self) -> Path | None:
        """最后一个核对无误的检查点。"""
        return checkpoint.latest(self.run)

    def __iter__(self) -> Iterator[Step]:
        try:
            yield from self._steps()
        finally:
            if self.accelerator.is_main_process:
                self.record.release()

    def _steps(self) -> Iterator[Step]:
        train = self.config.train
        if self.step == 0:
            self._note({"step": 0, **self.examine()})
        while self.step < train.steps and not self._asked_to_stop():
            start = time.time()
            loss, t, norm, lr = self._update_or_explain()
            self.step += 1
            self.average.update(self.step)
            watched = self.examine() if self._watched() else {}
            self._held = watched.get("held")
            done = Step(self.step, loss, lr, norm, t, time.time() - start, **watched)
            self._note(asdict(done))
            if self._due(train.save_every):
                self.save()
            yield done
        self.save()

    def _update_or_explain(self):
        try:
            return self._update()
        except torch.OutOfMemoryError as error:
            raise LorakitError(apply.explain_full(self.config, self.step + 1)) from error

    def _update(self) -> tuple[float, float, float, float]:
        """更新一次权重，返回损失、时间步、梯度的长度、学习率；损失与时间步是各进程平均的。

        先把一步的活都派给显卡，最后才等它的结果：中途等一次，它就要闲一次。
        """
        if not self.transformer.training:  # 走遍每一层要几毫秒，不必每步都走
            self.model.train()
        used = self._accumulate()
        self._unscale()
        norm = self.accelerator.clip_grad_norm_(
            self.parameters.values(), self.config.train.max_grad_norm
        )
        lr = optim.lr_at(self.step, self.config.train)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self.graphs is None)
        if self.accelerator.device.type == "cuda":
            self.objective.prepare(*self._share(self.step + 1, 0))
        used = [(float(loss), *rest) for loss, *rest in used]
        used = processes.collect(self.accelerator, used)
        for loss, *where in used:
            self._refuse_nan("损失", loss, [(loss, *where)])
        self._refuse_nan("梯度", float(norm), used)
        losses, times, _ = zip(*used, strict=True)
        t = float(np.mean([np.mean(t) for t in times]))
        return float(np.mean(losses)), t, float(norm), lr

    def _accumulate(self) -> list[tuple]:
        """攒够 grad_accum 份梯度，只在最后一份上同步；返回各份的损失（还在设备上）、t、图的名字。

        一步的各份在全部进程里统一编号，所以 2 个进程与 1 个进程累积 2 份，取的图和噪声都一样。
        """
        count, used = self.config.train.grad_accum, []
        for micro in range(count):
            last = micro == count - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
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
        self.accelerator.backward(loss / self._divisor())
        return loss.detach(), t, items

    def _divisor(self) -> float:
        """每份的损失先除以几：累积几份就是几；fp16 还要放大。"""
        return self.config.train.grad_accum / devices.loss_scale(self.family.dtype)

    def _unscale(self):
        """把放大过的梯度还原。"""
        scale = devices.loss_scale(self.family.dtype)
        given = [p.grad for p in self.parameters.values() if p.grad is not None]
        if scale != 1 and given:
            torch._foreach_div_(given, scale)

    def pipeline(self):
        """出样张用的 stock 管线，装着正在练的 Transformer；先腾出显存，编码好的不再要编码器。"""
        if self.graphs is not None:
            self.graphs.forget()
        text = None if self.remembered else "load"
        pipe = self.family.pipeline(self.transformer.eval(), text=text)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def evaluate(self) -> float | None:
        """留出集的损失；没有留出集就返回 None。"""
        return self.examine()["held"]

    def examine(self) -> dict:
        """留出集的损失 held 与明细 held_each（没有留出集就是 None），每块改了多少 delta。"""
        self.model.eval()
        with self.average.swapped():
            each = self.objective.evaluate()
            delta = lora.delta_norms(self.parameters, lora.scale(self.config.lora))
        return {
            "held": float(np.mean(each)) if each else None,
            "held_each": each,
            "delta": delta or None,
        }

    def stop(self):
        """练完手头这一步、存好，然后停下。"""
        self._stop = True

    def _asked_to_stop(self) -> bool:
        """谁被叫停（Ctrl-C、SIGTERM、STOP 文件）都算，大家停在同一步。"""
        asked = self.accelerator.is_main_process and self.record.asked_to_stop()
        if processes.anyone(self.accelerator, self._stop or asked):
            self._stop = True  # 只往“停”改：商量的时候也可能正好有人按下 Ctrl-C
            return True
        return False

    def save(self) -> Path:
        """把当前这一步存成检查点（已经存过就不重复）；几个进程要一起调用。"""
        target = self.run / f"checkpoint-{self.step}"
        if self._saved == self.step:
            return target
        live, average = self.parameters, self.average.values
        files, plain = checkpoint.snapshot(live, self.optimizer, average)
        facts = {"optimizer": plain, "processes": self.accelerator.num_processes}
        whole = self.transformer.state_dict() if self.config.lora.kind == "full" else live
        exported = full.files_of({**whole, **average})  # LoRA 自成一个文件，用不着这些名字

        def write(turns):
            others = zip(exported, turns, strict=False)  # 名字用完就停，不会多取一份
            ours = zip(files, turns, strict=False)
            export = lambda folder: self._export(folder, others)  # noqa: E731
            checkpoint.save(self.run, self.step, ours, facts, export, self.config.train.keep)

        parts = [*exported.values(), *files.values()]
        processes.write_in_turn(self.accelerator, parts, write)
        self._saved = self.step
        return target

    def _newest(self) -> Path | None:
        """接着哪个检查点练；有检查点却一个也读不出，就停下，别悄悄从头练。"""
        found = checkpoint.latest(self.run)
        if found is None and (broken := checkpoint.all_of(self.run)):
            raise LorakitError(
                f"“{self.run}”里的 {len(broken)} 个检查点都不完整，接不上（{broken[-1].name} 等）。"
                "要从头练，就换一个 run.output，或把这些检查点挪走。"
            )
        return found

    def _restore(self, found: Path):
        state = (self.parameters, self.optimizer, self.average.values)
        self.step = self._saved = checkpoint.load(found, *state)

    def _export(self, folder: Path, files: Iterable[tuple[str, Tensors]]):
        model = self.config.model
        facts = {"base": model.path, "family": model.family, "steps": str(self.step)}
        facts["trigger"] = self.config.data.trigger
        facts |= {} if self._held is None else {"held": f"{self._held:.6f}"}
        if self.config.lora.kind == "full":
            full.save(folder, self.family, files)
        else:
            values = {name: value for _, part in files for name, value in part.items()}
            lora.save(folder, self.transformer, self.config.lora, facts, values)

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

    def _refuse_nan(self, what: str, value: float, used: list):
        """NaN 或无穷大就停，说出这一批和最后一个好的检查点；各进程看到的一样，所以一起停。"""
        if math.isfinite(value):
            return
        first = self.accelerator.is_main_process
        last = (self.last_good() if first else None) or "还没有"
        said = explain_nan(self.step + 1, what, value, used, self.config.train.lr)
        error = LorakitError(f"{said}最后一个好的检查点：{last}。")
        error.told = not first
        raise error
