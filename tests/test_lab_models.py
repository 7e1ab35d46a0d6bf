"""练习册开头的一格：换哪个模型、用哪块设备；你的图和成绩不随缓存走。"""

import re

import pytest
import torch
from PIL import Image

from lorakit import lab
from lorakit.errors import LorakitError
from lorakit.families.open import device_for
from lorakit.files import cache_root
from lorakit.lab import exercises
from lorakit.machine import doctor, estimate
from lorakit.memory import compiling, devices, quantize


def test_open_model_refuses_what_cannot_fit(capsys, monkeypatch):
    assert lab.open_model("tiny-qwen-image").model.path == "tiny-qwen-image"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("还没答应就联网了"))
    for name in ("qwen-image-24gb", "Qwen/Qwen-Image"):  # 预设的名字、底模的名字都认
        with pytest.raises(LorakitError, match=r"放不下，没有开始，也没有下载.*约 \d+ GiB.*tiny-"):
            lab.open_model(name)
        assert re.search(r"下载：.*约 58 GB（每秒 20 MB 时约 48 分钟", capsys.readouterr().out)
    with pytest.raises(LorakitError, match="是不是想写“qwen-image”"):
        lab.open_model("qwen-imgae")
    for name in ("别的", "tiny-flx", "", None):
        with pytest.raises(LorakitError, match=r"不认识模型.*tiny-flux.*qwen-image-24gb"):
            lab.open_model(name)


def test_a_card_of_each_size_gets_its_preset(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(doctor, "_gpu", lambda tier: [])
    monkeypatch.setattr(doctor, "_time", lambda *a: [])
    monkeypatch.setattr(quantize, "lacks", lambda *a: None)
    monkeypatch.setattr(quantize, "done_as", lambda kind, device: kind)
    monkeypatch.setattr(compiling, "cannot_compile", lambda device: "没有 Triton")
    monkeypatch.setattr(devices, "has_bf16", lambda device: True)
    monkeypatch.setattr(doctor, "_capacity", lambda tier: estimate.usable(24))
    assert lab.open_model("qwen-image-24gb").model.quantize == "fp8-matmul"
    said = capsys.readouterr().out
    assert "显存：约 21.5" in said and "编译：memory.compile 不起作用：没有 Triton" in said
    with pytest.raises(LorakitError, match=r"放不下。请换预设 qwen-image-24gb"):
        lab.open_model("qwen-image")


def test_tiny_models_stay_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert device_for("tiny-flux").type == "cpu"
    assert device_for("Qwen/Qwen-Image").type == devices.pick_device().type == "cuda"
    monkeypatch.setenv("LORAKIT_TINY_DEVICE", "cuda")
    assert device_for("tiny-flux").type == "cuda", "要在显卡上试，说一声就行"


def test_fresh_clears_only_what_is_temporary(tmp_path, monkeypatch):
    mine, folder = tmp_path / "runs", tmp_path / "tmp" / "run"
    for one in (mine, folder):
        (one / "checkpoint-3").mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert lab.fresh(folder) == folder.resolve() and not folder.exists()
    assert lab.fresh(folder) and lab.fresh(mine) == mine.resolve()
    assert (mine / "checkpoint-3").is_dir()  # 你自己的结果不动


def test_fresh_cache_keeps_what_the_learner_did(own_cache, tmp_path, capsys, shown, watched):
    Image.new("RGB", (300, 300), "purple").save(tmp_path / "我.png")
    lab.my_picture(tmp_path / "我.png")
    for folder in ("a", "b"):  # 换两次也还是老地方
        lab.fresh_cache(tmp_path / folder)
        assert cache_root() == tmp_path / folder
    assert lab.my_picture().getpixel((5, 5)) == (128, 0, 128)
    lab.check.rescue({"A", "C"})
    assert exercises.passed() == ["rescue"] and (own_cache / "exercises.json").is_file()


def test_a_refusal_in_a_cell_is_one_sentence_without_a_traceback():
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_notebook

    cell = new_code_cell("from lorakit import lab\nlab.open_model('别的')")
    NotebookClient(new_notebook(cells=[cell]), kernel_name="python3", allow_errors=True).execute()
    (error,) = cell.outputs
    assert error.traceback[0].startswith("练习册不认识模型“别的”") and len(error.traceback) == 1
