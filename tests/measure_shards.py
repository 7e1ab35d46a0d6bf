"""几张显卡练真模型：每步几秒、一小时几张、每张卡与内存占多少、通信占几成、比一张卡快几倍。

    python tests/measure_shards.py qwen-image --cards 1,2,4,8 --ways ddp,fsdp,hybrid --out 行.json
    python tests/measure_shards.py qwen-image-full --cards 2,4,8 --ways fsdp \\
        --set train.optimizer=adamw --set train.grad_accum=1 --no-save

ddp 每张卡一份底模；fsdp 切成几份；hybrid 两张卡切一份、几份之间再像 DDP 那样取平均（4 张起）。
权重是随机的，在显卡上造好、放进各自的内存，再照载入真权重的路切开。没有显卡就用 gloo 走一遍，
那里没有 fsdp、hybrid（accelerate 只给显卡开）。
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
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

GIB, STEPS = 2**30, 6
WAYS = ("ddp", "fsdp", "hybrid")
ROW = "{way:7}{cards:3} 张  一步 {step:7.3f} 秒  一小时 {hour:7.0f} 张  每卡 {peak:6.1f} GiB  "
ROW += "内存 {host:6.1f} GiB  载入 {load:5.0f} 秒  存 {save} 秒  通信 {talk}（露在外面 {bare}）  "
ROW += "效率 {gain}"


# ---- 一个进程：练几步，0 号记下一行 ----


def made_on(device: torch.device):
    """`loading.random_weights` 的替身：在 device 上造，快得多，造完放进内存。"""
    made = loading.random_weights

    def weights(_, dtype: torch.dtype):
        read = made(device, dtype)
        return lambda name, shape: read(name, shape).cpu()

    return weights


def work(given, place: Path) -> dict:
    """练 STEPS 步、看一步的时间线、存一次 -> 这一次的数；显存取最大的卡，内存是全部进程的和。"""
    rank, gpu = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.is_available()
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    many = STEPS + 3
    quiet = [f"train.steps={many}", f"train.save_every={many}", "train.warmup=0", "eval.every=0"]
    config = load_config(given.config, [*given.set, *quiet, f"run.output={place / 'run'}"])
    family = open_blank(config, place / f"model-{rank}", device)
    start = time.time()
    with mock.patch.object(loading, "random_weights", made_on(device)):
        trainer = Trainer(config, bench.made_up(family, config), family=family)
    load = time.time() - start
    steps = iter(trainer)
    seconds = [step.seconds for step in islice(steps, STEPS + 1)][1:]  # 头一步要编译
    talk, bare = communication(steps) if gpu else (None, None)
    peak = torch.cuda.max_memory_allocated() / GIB if gpu else 0.0
    start = time.time()
    if not given.no_save:
        trainer.save()
    save, where = time.time() - start, trainer.accelerator
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    numbers = torch.tensor([peak, host], device=where.device)
    peaks, hosts = where.gather(numbers).view(-1, 2).T.tolist()
    train, step = config.train, statistics.median(seconds)
    images = where.num_processes * train.batch_size * train.grad_accum
    return {
        "config": given.config, "set": given.set, "way": given.way, "cards": where.num_processes,
        "sharded": where.is_fsdp2, "learned": trainer.describe(), "step": step,
        "hour": 3600 * images / step, "peak": max(peaks), "host": sum(hosts), "load": load,
        "save": None if given.no_save else save, "talk": talk, "bare": bare,
    }  # fmt: skip


def communication(steps) -> tuple[float, float]:
    """下一步里 NCCL 的内核占几成时间、其中没有别的内核陪着的（露在外面的）占几成。"""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        next(steps)
        torch.cuda.synchronize()
    spans = [(e.time_range.start, e.time_range.end, "nccl" in e.name) for e in seen.events()]
    whole = max(end for _, end, _ in spans) - min(start for start, _, _ in spans)
    talk = covered([(a, b) for a, b, nccl in spans if nccl])
    busy = covered([(a, b) for a, b, nccl in spans if not nccl])
    both = covered([(a, b) for a, b, _ in spans])
    return talk / whole, (both - busy) / whole


def covered(spans: list[tuple[float, float]]) -> float:
    """几段时间并起来有多长。"""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


# ---- 一次次地起进程，排成一张表 ----


def launch(way: str, cards: int, port: int = 29571) -> list[str]:
    """accelerate launch 的开头；一张卡不用启动器。"""
    if cards == 1:
        return [sys.executable]
    head = [sys.executable, "-m", "accelerate.commands.launch", f"--num_processes={cards}",
            f"--main_process_port={port}", "--num_machines=1", "--mixed_precision=no",
            "--dynamo_backend=no"]  # fmt: skip
    if way == "ddp":
        return [*head, "--multi_gpu"]
    split = ["--use_fsdp", "--fsdp_version=2"]
    if way == "hybrid":
        sizes = f"--parallelism_config_dp_replicate_size={cards // 2}"
        split += ["--use_parallelism_config", sizes, "--parallelism_config_dp_shard_size=2"]
    return [*head, *split]


def sweep(given) -> list[dict]:
    """每种切法、每个张数各练一次；放不下、起不来的，写下最后一句话。"""
    rows = []
    for way in given.ways.split(","):
        least = {"ddp": 1, "fsdp": 2, "hybrid": 4}[way]
        for cards in (n for n in map(int, given.cards.split(",")) if n >= least):
            with tempfile.TemporaryDirectory() as place:
                row = Path(place) / "row.json"
                own = [str(Path(__file__)), given.config, "--worker", place, "--way", way]
                own += [part for one in given.set for part in ("--set", one)]
                own += ["--no-save"] * given.no_save
                done = subprocess.run(
                    [*launch(way, cards), *own], stderr=subprocess.PIPE, text=True
                )
                if row.exists():
                    rows.append(json.loads(row.read_text(encoding="utf-8")))
                else:
                    last = (done.stderr.strip().splitlines() or ["没有说原因"])[-1]
                    rows.append({"way": way, "cards": cards, "failed": last})
            print(line(rows[-1], rows), flush=True)
            if given.out:
                given.out.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    return rows


def line(row: dict, rows: list[dict]) -> str:
    """表里的一行；效率是和第一行（最少的卡）比，每张卡一小时画的图还剩几成。"""
    if "failed" in row:
        return f"{row['way']:7}{row['cards']:3} 张  没有练成：{row['failed']}"
    first = next(one for one in rows if "failed" not in one)
    gain = (row["hour"] / row["cards"]) / (first["hour"] / first["cards"])
    shares = {key: "—" if row[key] is None else f"{row[key]:.0%}" for key in ("talk", "bare")}
    save = "—" if row["save"] is None else f"{row['save']:.1f}"
    return ROW.format(**{**row, **shares, "save": save, "gain": f"{gain:.0%}"})


def main():
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("config")
    asked.add_argument("--set", action="append", default=[])
    asked.add_argument("--cards", default="1,2,4,8")
    asked.add_argument("--ways", default="ddp,fsdp")
    asked.add_argument("--out", type=Path)
    asked.add_argument("--no-save", action="store_true")
    asked.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    asked.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.worker is None:
        sweep(given)
        return
    row = work(given, given.worker)
    if int(os.environ.get("RANK", 0)) == 0:
        text = json.dumps(row, ensure_ascii=False)
        (given.worker / "row.json").write_text(text, encoding="utf-8")
    if row["cards"] > 1:
        torch.distributed.barrier()


if __name__ == "__main__":
    main()
