"""机器的毛病，别处没有管到的：只读的文件夹、Ctrl-C、没有 bf16 的显卡、没有 ipywidgets。

磁盘满、NaN：test_train.py、test_cache.py；显存不够：test_optim.py；杀掉：test_kill.py；
断网、要同意许可、站连不上：test_hub.py；没有显卡：test_doctor.py；几个进程里的：test_processes.py。
"""

import errno
import os
import signal
import sys

import pytest
import torch

from lorakit.cli import main
from lorakit.errors import LorakitError, LorakitWarning
from lorakit.machine import doctor
from lorakit.memory import devices
from lorakit.results import checkpoint
from lorakit.train import Trainer
from lorakit.training import preflight
from lorakit.training.objective import Objective

CUDA = torch.device("cuda")
SMALL = ("data.resolution=64", "eval.every=0")


@pytest.mark.parametrize(
    ("number", "said"), [(errno.EROFS, "只读"), (errno.EACCES, "没有写的权限")]
)
def test_a_read_only_folder_is_said_before_encoding(config, monkeypatch, own_cache, number, said):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint.Path, "write_text", refuse)
    with pytest.raises(LorakitError, match=rf"写不进.*run.*{said}.*换个地方"):
        Trainer(config(*SMALL))
    assert not list(own_cache.rglob("*.safetensors")) and not config().run.output.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    config, tmp_path, monkeypatch, capsys, number
):
    real = Objective.draw

    def interrupted(self, number_of_batch, step, share):
        if step == 2:  # 第 3 步算到一半
            os.kill(os.getpid(), number)
        return real(self, number_of_batch, step, share)

    monkeypatch.setattr(Objective, "draw", interrupted)
    settings = config(*SMALL, "train.steps=50", "train.save_every=50")
    file = tmp_path / "x.yaml"
    file.write_text(settings.to_yaml())
    before = signal.getsignal(number)
    assert main(["train", str(file)]) == 130
    assert signal.getsignal(number) is before
    assert "已停在第 3 步并存好。再运行同一条命令就接着练。" in capsys.readouterr().out
    assert checkpoint.latest(settings.run.output).name == "checkpoint-3"
    monkeypatch.setattr(Objective, "draw", real)
    assert main(["train", str(file), "--set", "train.steps=4"]) == 0
    assert "从第 3 步接着练" in capsys.readouterr().out


def test_a_card_without_bf16_works_in_fp32_and_says_so(config, family, monkeypatch):
    """像 T4 那样：PyTorch 说“支持”，其实是模拟的。"""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: (
        including_emulation
    ))  # fmt: skip
    assert devices.pick_dtype("auto", CUDA) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (15 * 2**30, 15 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    (_, told) = doctor._gpu(None)
    assert told.level == doctor.WARN and "会用 fp32" in told.said
    monkeypatch.setattr(family, "device", CUDA)
    with pytest.warns(LorakitWarning, match=r"precision=bf16.*多半很慢；写 auto"):
        preflight.check(config("model.precision=bf16"), family)


def test_without_ipywidgets_the_way_to_install_it_is_said(monkeypatch):
    from lorakit.lab import display

    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(LorakitError, match=r'pip install "lorakit\[notebook\]"，再重启内核'):
        display.widgets()


def test_without_a_card_the_tiny_model_still_trains(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (told,) = doctor._gpu(None)
    assert told.level == doctor.WARN and "微型模型照练" in told.said
