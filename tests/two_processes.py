"""在一台机器的 CPU 上起几个训练进程（gloo）：先载入一次库再分出来，每次只要一秒。

真的 accelerate launch 另有一个测试；这里的环境变量与它设的相同。
"""

import multiprocessing
import os
import re
import signal
import socket
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["lorakit.cli", "lorakit.train", "lorakit.infer", "lorakit.results.board",
     "diffusers.models.transformers.transformer_qwenimage",
     "diffusers.pipelines.qwenimage.pipeline_qwenimage"]
)  # fmt: skip
LONGEST = 120  # 秒；到了还没结束就是卡住了
# 启动器的 --use_fsdp 默认设的就是这些
SHARDING = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
CRASHED = {-signal.SIGABRT, -signal.SIGSEGV}  # 写坏了内存的退出码


class Ranks:
    """几个进程；out(i) 是第 i 个说的话。"""

    def __init__(self, folder: Path, work, *args, count: int = 2, environ=()):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                  "LORAKIT_CACHE": os.environ["LORAKIT_CACHE"], **dict(environ)}  # fmt: skip
        self.all = []
        for rank in range(count):
            own = {**shared, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
            job = (folder / f"out.{rank}", {k: str(v) for k, v in own.items()}, work, args)
            if count == 1:
                job[1].clear()
                job[1]["LORAKIT_CACHE"] = os.environ["LORAKIT_CACHE"]
            self.all.append(CONTEXT.Process(target=child, args=job, daemon=True))
            self.all[-1].start()

    def out(self, rank: int) -> str:
        file = self.folder / f"out.{rank}"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        return re.sub(r"\[transformers\].*\n", "", text)  # 预先载入时就握住了 stderr 的那几句

    def wait(self) -> list[int]:
        """等全部结束，返回各自的退出码。"""
        for process in self.all:
            process.join(LONGEST)
            if process.is_alive():
                self.kill()
                said = "\n".join(map(self.out, range(len(self.all))))
                raise AssertionError(f"卡住了：{said}")
        return [process.exitcode for process in self.all]

    def kill(self):
        for process in self.all:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        for process in self.all:
            process.join()

    def wait_for(self, path: Path):
        """等一个文件出现。"""
        end = time.time() + LONGEST
        while not path.exists() and time.time() < end and any(p.is_alive() for p in self.all):
            time.sleep(0.01)
        assert path.exists(), self.out(0)


def finish(folder: Path, work, *args, count: int = 2):
    """起几个进程，等它们都好好地结束。

    CPU 上切开练（FSDP2 经过 gloo，只有测试这样做），torch 2.13 的几百次里有一次进程被信号杀掉，
    倒在 gloo 的线程申请内存的时候，原因没有查明。只有这一种再来一次，留下的检查点会接着练；
    别的失败、再崩一次，都是失败。
    """
    ranks = Ranks(folder, work, *args, count=count)
    codes = ranks.wait()
    if work in (sharded, hybrid) and CRASHED & {*codes}:
        warnings.warn(f"切开的进程崩了，退出码 {codes}，再来一次：{ranks.out(0)}", stacklevel=2)
        ranks = Ranks(folder, work, *args, count=count)
        codes = ranks.wait()
    assert codes == [0] * count, (codes, *map(ranks.out, range(count)))


def child(out: Path, environ: dict, work, args):
    handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", 1, encoding="utf-8") for fd in (1, 2))
    os.environ.update(environ)
    torch.set_num_threads(1)
    sys.exit(work(*args))  # 出错由 multiprocessing 写下经过，退出码是 1


def command(argv: list[str]) -> int:
    from lorakit.cli import main

    return main(argv)


def iterate(file: Path):
    from lorakit.config import load_config
    from lorakit.train import Trainer

    list(Trainer(load_config(file)))


def each_rank(config, folder: Path, limit: int | None = None):
    """训练，每个进程写下自己的权重与每一步自己看的图；limit：检查点的一个文件最多多少字节。"""
    from lorakit.lora import tensors as lora_tensors
    from lorakit.memory.sharded import whole
    from lorakit.train import Trainer

    lora_tensors.LIMIT = limit or lora_tensors.LIMIT
    trainer, seen = Trainer(config), []
    real = trainer.objective.draw

    def draw(*args):
        loss, t, items = real(*args)
        seen.extend(item.record.path.name for item in items)
        return loss, t, items

    trainer.objective.draw = draw
    list(trainer)
    rank = trainer.accelerator.process_index
    weights = {name: whole(p.detach()) for name, p in trainer.parameters.items()}
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / f"{rank}.safetensors")
    (folder / f"{rank}.txt").write_text("\n".join(seen))


def sharded(work, *args):
    """走 accelerate 的 FSDP2：它自己只给显卡开，这里在 CPU 上替它打开，别的一行不改。"""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType
    from transformers.integrations import is_fsdp_enabled

    from lorakit.training import processes

    plain = processes.start

    def start(*where):
        plain(*where)  # 先用 gloo 建好进程组
        os.environ.update(SHARDING)
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState().fsdp_plugin = processes.shard_plugin()
        accelerator = plain(*where)
        assert accelerator.is_fsdp2 and not is_fsdp_enabled()
        return accelerator

    processes.start = start
    torch.compile = partial(torch.compile, backend="eager")  # 只要编译器怎样看待切开的块
    return work(*args)


def hybrid(work, *args):
    """两个一组切开，组与组之间取平均：启动器的 --use_parallelism_config 设的就是这些。"""
    SHARDING.update(ACCELERATE_USE_PARALLELISM_CONFIG="true")
    SHARDING.update({f"PARALLELISM_CONFIG_DP_{way}_SIZE": "2" for way in ("REPLICATE", "SHARD")})
    return sharded(work, *args)


def failing(config, how: str):
    """1 号进程在第 3 步出事；how 是 deaf 时别的进程像 NCCL 那样，一直等它，不报错。"""
    from lorakit.cli import main
    from lorakit.training.objective import Objective

    real = Objective.draw

    def draw(self, number, step, share):
        if step == 2 and share == 1:
            if how == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory")
            if how in ("killed", "deaf"):
                os.kill(os.getpid(), signal.SIGKILL)
        if how == "deaf" and step == 2:
            time.sleep(LONGEST)
        loss, t, items = real(self, number, step, share)
        return loss * (float("nan") if how == "nan" and (step, share) == (2, 1) else 1), t, items

    Objective.draw = draw
    return main(["train", str(config)])
