"""共用的小装置：随包的微型模型、一份样例数据、各测试自己的缓存。"""

import os
import time
from pathlib import Path

import pytest
import torch

from lorakit.config import load_config
from lorakit.tiny import samples

if "PYTEST_XDIST_WORKER" in os.environ:  # 几个进程各用一个核，才不会互相等
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """每个测试用自己的缓存文件夹，互不影响，也不碰用户的。"""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LORAKIT_CACHE", str(folder))
    for name in ("LORAKIT_NOTES", "LORAKIT_TINY_DEVICE"):  # 练习册会设它们：测完还原
        monkeypatch.setenv(name, "")
    return folder


@pytest.fixture(scope="session")
def papercut(tmp_path_factory) -> Path:
    return samples.write("papercut", tmp_path_factory.mktemp("data") / "papercut")


@pytest.fixture
def config(papercut, tmp_path):
    """训练几步的设置，图也小，好让测试快；用 config("train.steps=3", ...) 改。"""

    def make(*overrides: str, output: str = "run", preset: str = "tiny-qwen-image"):
        base = [f"data.folder={papercut}", f"run.output={tmp_path / output}", "train.steps=4",
                "train.batch_size=2", "train.save_every=2", "eval.every=2",
                "data.resolution=64", "sample.every=0", "train.lr=7e-4",
                "train.schedule=constant"]  # fmt: skip
        return load_config(preset, [*base, *overrides])

    return make


@pytest.fixture
def read(tmp_path):
    """一份设置的文字 -> (读出来的设置, 读的时候说的话)；HERE 换成测试自己的文件夹。"""

    def run(text: str, name: str = "train.yaml", *sets: str):
        path = tmp_path / name
        path.write_text(text.replace("HERE", str(tmp_path)), encoding="utf-8")
        said: list[str] = []
        return load_config(path, sets, say=said.append), "\n".join(said)

    return run


@pytest.fixture(scope="session")
def family():
    from lorakit.families import open_family

    return open_family(load_config("tiny-qwen-image"), torch.device("cpu"))


@pytest.fixture(scope="session")
def dataset(papercut, family, tmp_path_factory):
    """缩到 64 像素、编码好的剪纸：编码一次，大家共用。"""
    from lorakit import cache

    config = load_config("tiny-qwen-image", [f"data.folder={papercut}", "data.resolution=64"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return cache.prepare(config, family)


@pytest.fixture
def shown(monkeypatch):
    """摆出来的每一份输出。"""
    bundles = []
    import IPython.display

    monkeypatch.setattr(IPython.display, "display", lambda data, raw, **_: bundles.append(data))
    return bundles


@pytest.fixture
def watched(monkeypatch):
    """假装有人在看：不是自动运行。"""
    from lorakit.lab import bar, display, explorer, mine, quiz, runner

    for module in (bar, display, explorer, mine, quiz, runner):
        monkeypatch.setattr(module, "headless", lambda: False)


@pytest.fixture
def wait_for():
    """等到 true() 成立；别的线程、别的进程里的事要等一等，太久就是没有做。"""

    def wait(true, seconds: float = 10):
        until = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < until
            time.sleep(0.01)

    return wait


@pytest.fixture
def cut_at_three():
    """练到第 3 步断掉，再接着练完：检查点在第 2 步，第 3 步的功夫丢掉。"""
    from lorakit.train import Trainer

    def train(config):
        for step in Trainer(config):
            if step.step == 3:
                break
        again = Trainer(config)
        assert again.step == 2
        list(again)

    return train


@pytest.fixture(scope="session")
def blank(tmp_path_factory):
    """预设名 -> (设置, 没有权重的家族, 估计)，每个只算一次。"""
    from lorakit.families import open_blank
    from lorakit.machine import estimate

    done = {}

    def make(name: str, *overrides: str):
        key = (name, *overrides)
        if key not in done:
            config = load_config(name, overrides)
            place = (tmp_path_factory.mktemp("blank"), torch.device("meta"), torch.bfloat16)
            family = open_blank(config, *place)
            done[key] = config, family, estimate.measure(family, config)
        return done[key]

    return make
