"""体检：放得下的放行，放不下的说换哪个；要多少显存、内存、下载都照真的算。"""

import re

import pytest
import torch
from notebook_tools import BOOKS, prose, read

from lorakit import config
from lorakit.cli import main
from lorakit.config import load_config, presets
from lorakit.errors import ConfigError
from lorakit.machine import doctor, estimate
from lorakit.memory import compiling, devices, quantize
from lorakit.results import card


def test_saving_a_full_model_takes_two_files_of_host_memory(blank):
    config, _, asked = blank("qwen-image-full")
    assert doctor.host(asked, config) == pytest.approx(doctor.HOST + 4)
    config, _, asked = blank("tiny-qwen-image-full")  # 比一个文件还小
    assert doctor.host(asked, config) < doctor.HOST + 0.1


def levels(checks) -> dict:
    return {check.what: check.level for check in checks}


def test_doctor_accepts_the_tiny_model():
    checks = doctor.examine(load_config("tiny-qwen-image"), online=False)
    assert doctor.BAD not in levels(checks).values()
    assert {"Python", "软件包", "内存", "磁盘", "模型", "下载", "时间"} <= levels(checks).keys()


def test_doctor_looks_on_where_lorakit_is_not_installed(monkeypatch):
    """在源码的文件夹里 python -m lorakit：没有 pip 的记录，别的照样查。"""

    def requires(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "requires", requires)
    checks = doctor.examine(online=False)
    (packages,) = [check for check in checks if check.what == "软件包"]
    assert packages.level == doctor.WARN and "pip install" in packages.said
    assert "内存" in levels(checks)


def test_doctor_refuses_what_cannot_fit_and_names_a_preset(monkeypatch):
    names = ["qwen-image", "qwen-image-16gb", "flux-dev-12gb", "qwen-image-full"]
    monkeypatch.setattr(config, "presets", lambda: names)  # 不必把每个预设都算一遍
    checks = doctor.examine(load_config("qwen-image"), tier=16, online=False)
    (bad,) = [c for c in checks if c.level == doctor.BAD and c.what == "显存"]
    assert "qwen-image-16gb" in bad.said
    checks = doctor.examine(load_config("qwen-image-16gb"), tier=2, online=False)
    assert "没有放得下的预设" in next(c.said for c in checks if c.what == "显存")
    assert any("58 GB" in check.said for check in checks if check.what == "下载")


@pytest.mark.parametrize("name", [p for p in presets() if p.endswith("gb")])
def test_every_tier_preset_fits_its_card(blank, name):
    config, _, asked = blank(name)
    tier = float(name.rpartition("-")[2].removesuffix("gb"))
    assert doctor.fitting(asked, config, estimate.usable(tier))[1] <= estimate.usable(tier)


def test_encoder_and_base_are_never_in_the_host_memory_together():
    """12 GB 的卡：编码时内存里是文本编码器，训练时是底模；途中要出样张，句子也先编码好。"""
    said = {}
    for prompts in ("[]", "[一只猫]"):
        config = load_config("qwen-image-12gb", [f"sample.prompts={prompts}"])
        checks = doctor._config(config, tier=12, online=False, memory=64e9)
        (said[prompts],) = [c.said for c in checks if c.what == "要用的内存"]
    for one in said.values():
        assert float(one.split()[1]) == pytest.approx(doctor.HOST + 16.6e9 / estimate.GIB, rel=0.03)


def test_a_card_without_bf16_needs_twice_the_activations(blank, monkeypatch):
    """T4 那样的卡用 fp32：没有量化的权重、中间结果与文本编码器都加倍，体检要照这个算。"""
    config, family, asked = blank("z-image-12gb", "memory.compile=false", "sample.every=0")
    monkeypatch.setattr(devices, "pick_device", lambda path="": torch.device("cuda"))
    monkeypatch.setattr(devices, "has_bf16", lambda device: False)
    monkeypatch.setattr(compiling, "cannot_compile", lambda device: "")
    monkeypatch.setattr(quantize, "lacks", lambda *a: None)
    monkeypatch.setattr(doctor, "_time", lambda *a: [])
    monkeypatch.setattr(doctor, "_capacity", lambda tier: estimate.usable(tier or 16))
    said = {}
    for tier in (None, 12):
        checks = doctor._config(config, tier, online=False, memory=64e9)
        said[tier] = {c.what: float(c.said.split()[1]) for c in checks if "GiB" in c.said}
    text = sum(doctor._bytes(one) for one in estimate.random_encoders(family)) / estimate.GIB
    assert said[12]["要用的内存"] == doctor.HOST  # bf16 的编码器放得进显卡
    assert said[None]["要用的内存"] == pytest.approx(doctor.HOST + 2 * text, rel=0.02)
    moves = blank("z-image-12gb", "memory.offload=blocks", "memory.compile=false")[2]
    outside = moves.weights - moves.moved  # 块以外的没有量化
    more = (outside + asked.inputs + 2 * asked.one) / estimate.GIB
    assert said[None]["显存"] - said[12]["显存"] == pytest.approx(more, abs=0.3)


def test_doctor_says_what_is_unreachable_and_what_needs_consent(monkeypatch):
    replies = {"https://huggingface.co": 200, "https://modelscope.cn": None}
    monkeypatch.setattr(doctor, "_answer", lambda address: replies.get(address, 403))
    found = [doctor._source(*pair) for pair in doctor.SOURCES.items()]
    assert [check.level for check in found] == [doctor.GOOD, doctor.WARN]
    config = load_config("flux-dev")
    asked = estimate.Estimate(12_000_000_000, *[1] * 10)
    checks = doctor._download(config, asked, 10_000_000_000, 0, online=True)
    assert "34 GB" in checks[0].said and "同意许可" in checks[1].said


def test_doctor_on_the_command_line(capsys):
    assert main(["doctor", "tiny-qwen-image", "--offline"]) == 0
    assert "可以练。" in capsys.readouterr().out
    assert main(["doctor", "flux-dev", "--offline"]) == 1  # 没有显卡
    said = capsys.readouterr().out
    assert "lorakit demo" in said and ("CUDA 版" in said) == (torch.version.cuda is None)
    for bad, said in ((["--tier", "-1"], "--tier"), (["--set", "lora.rank=9999"], "lora.rank")):
        assert main(["doctor", "tiny-qwen-image", "--offline", *bad]) == 1
        assert said in capsys.readouterr().err


def test_tier_must_be_positive():
    with pytest.raises(ConfigError, match="大于 0 GB"):
        doctor.examine(tier=0, online=False)


ROW = re.compile(r"^\| `([\w.-]+)` \| (\d+) 亿 \| (\d+) GB \| (\S+) \| 12 GB \|", re.M)


def test_the_table_of_models_in_the_books_is_what_doctor_says(blank):
    rows = ROW.findall(prose(read(next(book for book in BOOKS if book.stem.startswith("05")))))
    bases = [one for one in presets() if not re.search(r"^tiny-|gb$|-full$", one)]
    assert sorted(name for name, *_ in rows) == bases
    for name, size, download, licence in rows:
        assert f"{name}-12gb" in presets()
        config, family, asked = blank(name)
        assert round(asked.parameters / 1e8) == int(size)
        assert card.licence(family, config.model.path) == licence
        parts = [*estimate.random_encoders(family), estimate.random_vae(family)]
        rest = sum(doctor._bytes(one) for one in parts)
        assert f"约 {download} GB" in doctor._download(config, asked, rest, 0, False)[0].said
