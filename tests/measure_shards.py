"""两张以上的显卡，把整个真模型切开（FSDP2）练几步：每步几秒、每张卡占多少显存。

    accelerate launch --use_fsdp --num_processes 2 tests/measure_shards.py qwen-image-full \\
        --set train.optimizer=adamw --set train.grad_accum=1

权重是随机的，在显卡上造好、放进各自的内存，再照载入真权重的路切开；不存检查点。
"""

import argparse
import os
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from unittest import mock

import torch

from lorakit.config import load_config
from lorakit.families import open_blank
from lorakit.machine import bench
from lorakit.memory import loading
from lorakit.train import Trainer


def made_on(device: torch.device):
    """`quantize.random_weights` 的替身：在 device 上造，快得多，造完放进内存。"""
    made = loading.random_weights

    def weights(_, dtype: torch.dtype):
        read = made(device, dtype)
        return lambda name, shape: read(name, shape).cpu()

    return weights


def main(name: str, overrides: list[str], place: Path, steps: int = 6):
    rank, gpu = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.is_available()
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    many = steps + 2
    quiet = [f"train.steps={many}", f"train.save_every={many}", "train.warmup=0", "eval.every=0"]
    config = load_config(name, [*overrides, *quiet, f"run.output={place / 'run'}"])
    family = open_blank(config, place / "model", device)
    start = time.time()
    with mock.patch.object(loading, "random_weights", made_on(device)):
        trainer = Trainer(config, bench.made_up(family, config), family=family)
    loaded = time.time() - start
    seconds = [step.seconds for step in islice(trainer, steps + 1)][1:]  # 头一步要编译
    peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else 0.0
    where = trainer.accelerator
    print(
        f"{name}，第 {rank} 张卡，共 {where.num_processes} 张，FSDP2：{where.is_fsdp2}；"
        f"{trainer.describe()}；载入 {loaded:.0f} 秒，一步 {statistics.median(seconds):.3f} 秒，"
        f"显存峰值 {peak:.1f} GiB",
        flush=True,
    )
    if where.num_processes > 1:
        torch.distributed.barrier()


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("config")
    asked.add_argument("--set", action="append", default=[])
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as place:
        main(given.config, given.set, Path(place))
