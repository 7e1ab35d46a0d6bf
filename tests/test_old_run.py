"""以前的版本练到一半的结果文件夹（tests/old_run）：接着练、打开它的 LoRA，都和那时一样。"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorakit.cli import main

OLD = Path(__file__).parent / "old_run"


@pytest.fixture
def old(tmp_path, monkeypatch):
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")


def test_an_old_run_goes_on_as_it_would_have(old, capsys):
    """那时的程序自己从第 2 步练到第 4 步，得到的是 after_step_4。"""
    assert main(["train", "run/config.yaml", "--set", "train.steps=4"]) == 0
    assert "从第 2 步接着练" in capsys.readouterr().out
    ours = load_file("run/checkpoint-4/pytorch_lora_weights.safetensors")
    then = load_file("after_step_4.safetensors")
    assert ours.keys() == then.keys()
    for name, value in then.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-6)


def test_an_old_lora_file_opens(old, capsys):
    assert main(["audit", "after_step_4.safetensors", "--model", "tiny-qwen-image"]) == 0
    assert main(["export", "run", "--to", "comfyui", "--out", "x.safetensors"]) == 0
