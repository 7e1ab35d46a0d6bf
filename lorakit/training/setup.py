"""准备：载入、编码、挂 LoRA、造优化器、交给 accelerate、接上检查点；train.py 的循环从这里开始。"""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path

import torch

from lorakit import cache, lora
from lorakit.config import Config
from lorakit.families import open_family
from lorakit.families.open import device_for
from lorakit.infer import remember_preview, with_own_prompts
from lorakit.lora import full
from lorakit.memory import apply, compiling
from lorakit.results import checkpoint, heldout, track
from lorakit.results.folder import RunFolder
from lorakit.training import adapter, optim, preflight, processes, saving
from lorakit.training.graphs import Graphs
from lorakit.training.objective import Objective
from lorakit.training.peers import Peers
from lorakit.training.plan import Plan
from lorakit.training.rounding import round_updates


def encoded(config: Config, family, progress=None, chosen=None) -> cache.Dataset:
    """编码好的数据（或取缓存）；样张的句子也一起编码好，文本编码器只载入一次。

    Args:
        progress, chosen: 见 `cache.prepare`。
    """
    dataset = cache.prepare(config, family, progress, chosen, keep=("text",))
    remember_preview(family, with_own_prompts(config, dataset), dataset)
    family.release("text")
    return dataset


class Prepared:
    """准备好的一切：family、dataset、transformer、parameters、optimizer、objective、record、peers。

    Args:
        dataset: 编码好的数据；不给就照 data 一组设置读、编码（或取缓存）。
        progress: 编码的进度，见 `cache.prepare`。
        family: 已经打开的家族；不给就照 model 一组设置打开。
    """

    def __init__(
        self,
        config: Config,
        dataset: cache.Dataset | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        family=None,
    ):
        self.config, self.run = config, config.run.output
        on_cpu = device_for(config.model.path).type == "cpu"
        self.accelerator = processes.start(self.run, config.run.tracker, on_cpu)
        self.peers = Peers(self.accelerator, self.run)
        count = self.accelerator.num_processes
        self.record = processes.by_first(self.accelerator, lambda: RunFolder(config, count))
        with ExitStack() as undo, self.peers.explaining():
            undo.callback(self.peers.rest)
            if self.accelerator.is_main_process:
                undo.callback(self.record.abandon)  # 准备到一半失败了，放开文件夹
            self._prepare(dataset, progress, family)
            undo.pop_all()

    def _prepare(self, dataset, progress, family):
        """先各自载入，再交给 accelerate，接上检查点，最后认领文件夹。"""
        config, accelerator = self.config, self.accelerator
        if accelerator.num_processes > 1 and family is None:  # 每台机器只下载一遍，别的进程等它
            processes.by_local_first(accelerator, self._fetch)
        processes.together(accelerator, lambda: self._open(dataset, progress, family))
        pair = (self.transformer, self.optimizer)
        self.model, self.optimizer = processes.prepare(accelerator, *pair)
        self.parameters = processes.trainable(self.transformer)
        self.average = optim.Average(self.parameters, config.train.ema)
        parts = (self.family, self.dataset, self.model, accelerator.device)
        self.objective = Objective(config, *parts)
        self.graphs = self._graphs()
        self.step, self._stop, self._saved, self._held, self._back = 0, False, None, None, None
        found = processes.by_first(accelerator, lambda: saving.newest(self.run))
        self.trained_on = processes.by_first(accelerator, lambda: saving.trained_on(self))
        self.record.held_of = heldout.mark(self.trained_on)
        if found:
            saving.go_on(self, found)
        processes.by_first(accelerator, lambda: self.record.claim(self.config))
        track.start(accelerator, config)

    def _fetch(self):
        open_family(self.config, self.accelerator.device).fetch("vae", "text", "transformer")

    def _open(self, dataset, progress, family):
        """每个进程各自做的准备：核对、编码、载入底模、挂上 LoRA、造优化器。"""
        config = self.config
        self.family = family or open_family(config, self.accelerator.device)
        sharded = self.accelerator.is_fsdp2
        preflight.check(config, self.family, self.accelerator.num_processes, sharded)
        self.family.fetch("transformer")  # 编码完了才发现下不来、放不下，就晚了
        self.dataset = dataset or encoded(config, self.family, progress)
        self.config = config = with_own_prompts(config, self.dataset)
        self.remembered = remember_preview(self.family, config, self.dataset)
        with self.family.on_cpu() if sharded else nullcontext():
            self.transformer = self.family.untouched()
        adapter.put_on(self.transformer, self.family, config.model, self.accelerator.device)
        if config.lora.kind == "full":
            dtype = torch.bfloat16 if config.bf16_weights else torch.float32
            parameters = full.attach(self.transformer, dtype)
        else:
            parameters = lora.attach(self.transformer, self.family, config.lora, config.train.seed)
        how = self._how(sharded)
        masked = self.family.masks_text and config.train.batch_size > 1
        self.shapes = compiling.Shapes()
        self.recompute = apply.prepare(self.transformer, how, self.family, masked, self.shapes)
        self.optimizer = optim.build(parameters.values(), config.train)
        if config.bf16_weights:
            round_updates(self.optimizer, config.train.seed, lambda: self.step)

    def _how(self, sharded: bool):
        """memory 一组里在这里真的用得上的；用不上的，preflight 已经提醒过。"""
        how = self.config.memory
        if how.compile and compiling.cannot_compile(self.family.device):
            how = how.model_copy(update={"compile": False})
        self.compiled = bool(how.compile)
        if sharded and how.checkpointing == "auto":  # 各卡要一起重算：不能看各自还剩多少显存
            how = how.model_copy(update={"checkpointing": "full"})
        return how

    def _graphs(self) -> Graphs | None:
        """memory.compile=graphs 要的 CUDA 图；这里用不了就是 None。"""
        able = compiling.can_replay(self.accelerator.device, self.accelerator.num_processes)
        if self.config.memory.compile != "graphs" or not (self.compiled and able):
            return None
        divisor = optim.divisor(self.config.train, self.family.dtype)
        return Graphs(self.objective, self.recompute, divisor, self.family.streamer)

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

    def pipeline(self):
        """出样张用的 stock 管线，装着正在练的 Transformer；先腾出显存，编码好的不再要编码器。"""
        if self.graphs is not None:
            self.graphs.forget()
        text = None if self.remembered else "load"
        pipe = self.family.pipeline(self.transformer.eval(), text=text)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def close(self):
        """不练了：放开结果文件夹；练完、停下的已经放开了。"""
        if self.accelerator.is_main_process:
            self.record.release()
        self.peers.rest()

    def last_good(self) -> Path | None:
        """最后一个核对无误的检查点。"""
        return checkpoint.latest(self.run)

    def save(self) -> Path:
        """把当前这一步存成检查点（已经存过就不重复）；几个进程要一起调用。"""
        return saving.save(self)
