"""Windows 的规矩：这里没有 Windows，就照它的脾气来装；真的 Windows 上没有跑过。"""

import os
import shutil
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import psutil
import pytest
import torch

from lorakit import files
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import LorakitWarning
from lorakit.families import open_family
from lorakit.files import write_text
from lorakit.machine import doctor
from lorakit.memory import compiling, devices
from lorakit.results import checkpoint
from lorakit.train import Trainer
from lorakit.training import preflight

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def windows(monkeypatch):
    """文件夹不能当文件打开；只读打开的文件不能刷进盘；改名头一次总被别的程序挡住。"""
    real_open, real_sync, real_replace = os.open, os.fsync, os.replace
    readonly, tried = set(), []

    def open_(path, flags, *mode, **more):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        handle = real_open(path, flags, *mode, **more)
        (readonly.discard if flags & (os.O_WRONLY | os.O_RDWR) else readonly.add)(handle)
        return handle

    def fsync(handle):
        if handle in readonly:
            raise OSError(9, "Bad file descriptor")
        real_sync(handle)

    def replace(old, new):
        tried.append(str(new))
        if tried.count(str(new)) == 1:
            raise PermissionError(13, "Access is denied", str(new))
        real_replace(old, new)

    for name, fake in (("open", open_), ("fsync", fsync), ("replace", replace)):
        monkeypatch.setattr(os, name, fake)
    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)


def test_trains_saves_and_resumes(windows, config, cut_at_three):
    whole, cut = config(output="whole"), config(output="cut")
    list(Trainer(whole))
    cut_at_three(cut)
    ends = [(c.run.output / "checkpoint-4/state/weights.safetensors").read_bytes()
            for c in (whole, cut)]  # fmt: skip
    assert ends[0] == ends[1]


def test_a_file_held_for_long_is_said(windows, tmp_path, monkeypatch):
    def held(old, new):
        raise PermissionError(13, "Access is denied", str(new))

    monkeypatch.setattr(os, "replace", held)
    with pytest.raises(files.LorakitError, match=r"写不进.*没有写的权限"):
        write_text(tmp_path / "x.txt", "x")
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_does_not_hold_its_checkpoint_open(config):
    made = config("train.steps=2")
    list(Trainer(made))
    again = Trainer(config())
    held = {m.path for m in psutil.Process().memory_maps() if str(made.run.output) in m.path}
    assert again.step == 2 and not held


def test_an_old_checkpoint_someone_is_looking_at_is_kept(config, monkeypatch):
    real = shutil.rmtree

    def rmtree(path, ignore_errors=False, **more):
        if ignore_errors:
            return None
        return real(path, **more)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    made = config("train.steps=6", "train.keep=1")
    assert [step.step for step in Trainer(made)][-1] == 6
    assert len(checkpoint.all_of(made.run.output)) == 3


def test_output_in_another_encoding_never_stops_the_command(monkeypatch):
    pipe = TextIOWrapper(BytesIO(), encoding="gbk")
    monkeypatch.setattr(sys, "stdout", pipe)
    assert main(["doctor", "--offline"]) in (0, 1)
    pipe.flush()
    assert "软件包" in pipe.buffer.getvalue().decode("gbk")


def test_without_a_compiler_it_trains_uncompiled_and_says_so(config, monkeypatch):
    from torch._inductor import cpp_builder
    from torch.utils import _triton

    assert compiling.cannot_compile(CPU) == ""

    def missing():
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    settings = config("memory.compile=true", "train.steps=1")
    with pytest.warns(LorakitWarning, match=r"memory\.compile 不起作用：没有 C\+\+ 编译器"):
        preflight.check(settings, open_family(settings, CPU))
    with pytest.warns(LorakitWarning):
        trainer = Trainer(settings)
    assert not trainer.compiled and len(list(trainer)) == 1
    monkeypatch.setattr(_triton, "has_triton", lambda: False)
    assert "triton-windows" in compiling.cannot_compile(CUDA)
    monkeypatch.setattr(_triton, "has_triton", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert "gcc" in compiling.cannot_compile(CUDA)
    monkeypatch.setenv("CC", "cc")
    assert compiling.cannot_compile(CUDA) == ""


def test_doctor_says_what_the_compiler_lacks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "pick_device", lambda path="": CPU)
    monkeypatch.setattr(compiling, "cannot_compile", lambda device: "没有 Triton")
    found = doctor._config(load_config("qwen-image-24gb"), tier=24, online=False, memory=64e9)
    (said,) = [check for check in found if check.what == "编译"]
    assert said.level == doctor.WARN and "不起作用：没有 Triton" in said.said
