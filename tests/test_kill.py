"""kill -9 在任意时刻，包括正在存检查点的时候：接着练完，与没断过的逐比特相同。

平时每种设置杀 2 次；全部十次：LORAKIT_KILLS=10 pytest tests/test_kill.py
"""

import os
import random
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file
from two_processes import LONGEST, Ranks, iterate

from lorakit.config import load_config
from lorakit.results import folder as run_folder

STEPS, KILLS = 20, int(os.environ.get("LORAKIT_KILLS", "2"))
SETTINGS = {  # 名字 -> (进程数, 设置)
    "adamw": (1, []),
    "adafactor": (1, ["train.optimizer=adafactor"]),
    "prodigy": (1, ["train.optimizer=prodigy", "train.lr=1"]),
    "lokr": (1, ["lora.variant=lokr"]),
    "ema, accumulation": (
        1,
        ["train.ema=0.9", "train.grad_accum=2", "train.batch_size=2", "train.schedule=cosine"],
    ),
    "full": (1, ["lora.kind=full", "lora.rank=16", "lora.targets=attention", "train.lr=1e-5"]),
    "two-processes": (2, ["train.ema=0.9"]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(autouse=True)
def one_cache(place, own_cache, monkeypatch):
    """这里的图都一样，编码一次就够。"""
    monkeypatch.setenv("LORAKIT_CACHE", str(place / "cache"))


def start(config, count: int) -> Ranks:
    file = config.run.output.with_suffix(".yaml")
    file.write_text(config.to_yaml())
    return Ranks(config.run.output.with_suffix(".out"), iterate, file, count=count)


def result(run):
    """最后的检查点里的每个张量，和记下的每个数。"""
    files = sorted((run / f"checkpoint-{STEPS}").rglob("*.safetensors"))
    tensors = {f"{file.name}|{k}": v for file in files for k, v in load_file(file).items()}
    keys = ("step", "loss", "lr", "grad_norm", "t", "held", "held_each", "delta")
    return tensors, [[row.get(key) for key in keys] for row in run_folder.read(run)]


def kill_somewhere(ranks: Ranks, run, dice: random.Random, saving: bool) -> bool:
    """saving：等到某一次存检查点写到一半；否则在随机的一步、步里随机的时刻。

    返回杀的时候它是不是还活着：机器打个盹，它就可能先练完了。
    """
    step, end = dice.randint(1, STEPS - 2), time.time() + LONGEST
    while time.time() < end and all(process.is_alive() for process in ranks.all):
        rows = run_folder.read(run)
        half = rows and [  # 有记录之前，文件夹会为了试写建一下又删掉
            p
            for p in run.glob(".checkpoint-*.tmp")
            if int(p.name.split("-")[1].split(".")[0]) >= step
        ]
        if half if saving else rows and rows[-1]["step"] >= step:
            break
        time.sleep(0.003)
    assert rows, ranks.out(0)
    # 步里随机的时刻：照一步现在要多久来等，机器再快也不会等到练完
    time.sleep(dice.random() * (0.02 if saving else rows[-1]["seconds"]))
    alive = any(process.is_alive() for process in ranks.all)
    ranks.kill()
    return alive


@pytest.mark.parametrize("name", SETTINGS)
def test_killed_at_any_instant_equals_uninterrupted(papercut, place, name):
    count, extra = SETTINGS[name]

    def config(output: str):
        base = [f"data.folder={papercut}", f"run.output={place / name / output}",
                "data.resolution=64", f"train.steps={STEPS}", "train.batch_size=1",
                "train.save_every=4", "train.keep=3", "eval.every=10",
                "eval.holdout=0.05"]  # fmt: skip
        return load_config("tiny-qwen-image", [*base, *extra])

    (place / name).mkdir()
    whole = config("whole")
    ranks = start(whole, count)
    assert set(ranks.wait()) == {0}, ranks.out(0)
    tensors, rows = result(whole.run.output)
    assert len(rows) == STEPS + 1
    for number in range(KILLS):
        cut, dice = config(f"cut{number}"), random.Random(f"{name}{number}")
        for _ in range(5):
            if kill_somewhere(start(cut, count), cut.run.output, dice, saving=number % 2 == 1):
                break
            shutil.rmtree(cut.run.output)  # 先练完了：从头再来一次
        else:
            raise AssertionError("五次都没有杀在练完之前")
        left = [p.name for p in cut.run.output.glob("*checkpoint*")]
        ranks = start(cut, count)
        assert set(ranks.wait()) == {0}, ranks.out(0)
        again, lines = result(cut.run.output)
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[key], tensors[key]) for key in tensors), (number, left)
        assert lines == rows, (number, left)
        assert not list(cut.run.output.glob(".checkpoint*"))  # 写到一半的也收走了
        print(f"{name} {number}: {sorted(left)} -> {len(tensors)} tensors, {len(rows)} rows equal")
