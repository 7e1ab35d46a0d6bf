"""排练：每个环节真的走一遍，什么也不留下；放不下的说出来，后面还走得了的照样走。"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from test_contract import TINY

from lorakit import cache
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.data.record import Record
from lorakit.data.select import Selection
from lorakit.errors import LorakitError
from lorakit.families import get, imagined, open_family
from lorakit.files import ASSETS
from lorakit.lora import tensors
from lorakit.machine import mixed, rehearse, whole
from lorakit.machine.stages import Meter, Report, Row
from lorakit.training.objective import Objective

CPU = torch.device("cpu")
STAGES = ["check", "encode", "load", "first", "train", "examine", "sample", "after", "save",
          "resume", "generate", "export"]  # fmt: skip
SMALL = ("data.resolution=64", "train.batch_size=1", "sample.steps=2")


def small(name: str, *more: str):
    return load_config(name, [*SMALL, *more])


def test_every_stage_is_walked_and_nothing_is_left(capsys, tmp_path, own_cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = [part for one in SMALL for part in ("--set", one)]
    asked = ["rehearse", "tiny-qwen-image", *sets, "--json", "r.json", "--price", "3"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    found = json.loads(Path("r.json").read_text("utf-8"))
    assert [row["key"] for row in found["rows"]] == STAGES
    assert all(row["seconds"] > 0 and row["host"] > 0 for row in found["rows"])
    assert found["fits"] and found["margin"] is None and not any(r["error"] for r in found["rows"])
    assert "用的是假照片" in said and "从头到尾都走通了" in said
    total = sum(value for key, value in found["whole"].items() if key != "each")
    assert f"{total / 3600 * 3:.2f} 元" in said
    train = next(row for row in found["rows"] if row["key"] == "train")["facts"]
    shapes = train["shapes"]
    assert len(shapes) == len(found["shapes"]) > 1
    assert len(train["steps"]) >= rehearse.STEPS
    assert min(map(len, shapes.values())) >= rehearse.VISITS
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    assert not [*own_cache.rglob("*.safetensors")]


def test_her_own_pictures_and_an_editing_model(tmp_path, papercut):
    mine = small("tiny-qwen-image", f"data.folder={papercut}", "train.batch_size=4")
    report = rehearse.run(mine)
    assert report.fits and report.shapes == ["64x64"] and not any("假" in n for n in report.notes)
    edits = small("tiny-qwen-image-edit", "train.grad_accum=2")
    report = rehearse.run(edits)
    assert report.fits and all("+" in shape for shape in report.shapes)


def test_a_family_that_only_edits_gets_controls(tmp_path):
    folder = TINY["flux-kontext"].build(tmp_path / "model")
    kontext = small("tiny-flux", "model.family=flux-kontext", f"model.path={folder}")
    assert rehearse.run(kontext, mix=True).fits


def test_what_does_not_fit_is_said_and_the_rest_goes_on(monkeypatch, tmp_path):
    real, times = Objective.losses, []

    def losses(self, *given):
        if torch.is_grad_enabled() and (times.append(1) or len(times) > 3):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 72.00 MiB")
        return real(self, *given)

    monkeypatch.setattr(Objective, "losses", losses)
    report = rehearse.run(small("tiny-qwen-image"), keep=tmp_path / "r.json")
    rows = {row.key: row for row in report.rows}
    assert rows["train"].full and "OutOfMemoryError" in rows["train"].trace
    assert "memory.checkpointing=full" in rows["train"].mend in report.text()
    assert rows["resume"].skipped and "after" not in rows
    assert all(rows[key].went for key in ("save", "generate", "export"))
    assert not report.fits and report.whole is None
    assert json.loads((tmp_path / "r.json").read_text("utf-8"))["rows"][4]["trace"]


def test_an_unforeseen_error_is_kept_and_raised(tmp_path):
    report = Report("CPU", "x", None)
    meter = Meter(report.rows, CPU, keep=lambda: report.save(tmp_path / "r.json"))
    with pytest.raises(ZeroDivisionError), meter.watch("load", "载入"):
        raise ZeroDivisionError("除以零")
    (row,) = json.loads((tmp_path / "r.json").read_text("utf-8"))["rows"]
    assert "ZeroDivisionError" in row["trace"] and row["error"] == "除以零" and not row["full"]


def test_margin_and_verdict():
    rows = [Row("load", "载入", need=10.0), Row("train", "训练", need=21.9, allocated=21.5)]
    report = Report("H100", "x", 22.9, ["1024x1024"], rows)
    assert report.margin == pytest.approx(1.0) and "“训练”，显存还剩 1.0 GiB" in report.text()
    rows[1].need = 22.5
    assert "少于 0.7 GiB" in report.text()
    rows[1].full, rows[1].error = True, "显存不够"
    assert "不够" in report.text() and "没有走完" in report.text() and not report.fits


def test_the_whole_training_is_extrapolated():
    config = load_config("tiny-qwen-image", [
        "train.steps=100", "train.grad_accum=2", "train.save_every=30", "eval.every=10",
        "sample.prompts=[甲, 乙]", "sample.every=50", "sample.steps=30"])  # fmt: skip
    rows = {
        "encode": Row("encode", "", 10.0, facts={"each": 0.5}), "load": Row("load", "", 20.0),
        "train": Row("train", "", facts={"steps": [9.0, 5.0, 5.0]}),
        "examine": Row("examine", "", 1.5), "save": Row("save", "", 2.0),
        "sample": Row("sample", "", 6.0, facts={"pace": 0.25, "images": 2}),
    }  # fmt: skip
    counts = whole.Counts({"宽": 3, "窄": 1}, pictures=24, few=4, held=6, few_held=2)
    made = whole.estimate_whole(config, 4, rows, counts, {"宽": 2.0, "窄": 4.0})
    assert made.each == pytest.approx(2 * (3 * 2 + 4) / 4)
    assert made.steps == pytest.approx(500) and made.encode == pytest.approx(10 + 20 * 0.5)
    assert made.prepare == pytest.approx(20 + 19 - 15)
    assert made.evaluate == pytest.approx(11 * 1.5 * 3) and made.save == pytest.approx(4 * 2)
    assert made.sample == pytest.approx((2 + 2) * 2 * (3 + 26 * 0.25))


def test_a_few_pictures_cover_every_shape(tmp_path):
    config = load_config("tiny-qwen-image", ["data.resolution=128", "train.batch_size=2",
                                             "data.repeats=3"])  # fmt: skip
    sizes = [(100, 100)] * 5 + [(100, 200)] * 1 + [(200, 100)] * 2
    records = [
        Record(Path(f"{i}.png"), "长" * i, size, f"{i}", repeats=2) for i, size in enumerate(sizes)
    ]
    shares = mixed.shares(records, config, 16)
    assert list(shares.values()) == [15, 6, 3]  # 一轮 30、12、6 张，两张一批
    family = open_family(config, CPU)
    assert mixed.kinds(records, config, family) == 8  # 描述各不一样长
    same = [replace(one, caption="猫") for one in records]
    assert mixed.kinds(same, config, family) == 3
    flux = open_family(load_config("tiny-flux", ["data.resolution=128"]), CPU)
    assert mixed.kinds(records, config, flux) == 3  # 总补到一样长
    chosen = mixed.few(Selection(records[1:], records[:1], [], {}), config, 16)
    assert sorted(len(r.caption) for r in chosen.train) == [3, 4, 5, 6, 7]
    assert {r.repeats for r in chosen.train} == {1} and len(chosen.held) == 1


@pytest.mark.parametrize("name", ["tiny-qwen-image", "tiny-flux", "tiny-qwen-image-edit"])
def test_files_are_a_whole_model(name, tmp_path, monkeypatch):
    """写出的文件夹：stock 的 from_pretrained 与我们自己都读得全；大的分成几个文件。"""
    monkeypatch.setattr(tensors, "LIMIT", 300_000)
    folder = imagined.write(load_config(name), tmp_path / "model")
    assert (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert (folder / "text_encoder" / "model.safetensors.index.json").is_file()
    config = load_config(name, [f"model.path={folder}"])
    family = open_family(config, CPU)
    ours = family.load("transformer").state_dict()
    assert (
        ours.keys() == open_family(load_config(name), CPU).load("transformer").state_dict().keys()
    )
    assert family.load("vae") and family.load("text")
    if not family.controls[1]:  # 它的处理器要有 torchvision 才能直接打开
        pipe = DiffusionPipeline.from_pretrained(folder)
        assert type(pipe).__name__ == family.pipeline_class
        theirs = pipe.transformer.state_dict()
        assert all(torch.equal(value, ours[key]) for key, value in theirs.items())
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert imagined.write(load_config(name), folder) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    other = "tiny-flux" if name != "tiny-flux" else "tiny-qwen-image"
    with pytest.raises(LorakitError, match="别的东西"):
        imagined.write(load_config(other), folder)


def test_rehearsal_from_files(tmp_path):
    report = rehearse.run(small("tiny-qwen-image"), files=tmp_path / "model")
    assert report.fits and [row.key for row in report.rows] == ["write", *STAGES]


@pytest.mark.parametrize("name", TINY)
def test_a_model_that_is_not_here_is_imagined_whole(name, tmp_path, monkeypatch):
    """本地没有的真模型：设置照 full_size 写，分词器借一份，编码、载入、画图要的都齐。"""
    made, cls = TINY[name].build(tmp_path / "made"), get(name)
    parts = [p for p in made.iterdir() if (p / "config.json").is_file()]
    sizes = {part.name: json.loads((part / "config.json").read_text("utf-8")) for part in parts}
    plain = ("scheduler", "model_index", "processor")
    sizes |= {key: cls.full_size[key] for key in plain if key in cls.full_size}
    sizes |= {part: {"model_max_length": 64} for part in cls.text_parts if part.startswith("token")}
    for part in ("text_encoder", "text_encoder_2"):
        if part in sizes:
            sizes[part].get("text_config", sizes[part])["vocab_size"] = 2000
    monkeypatch.setattr(cls, "full_size", sizes)
    config = load_config("tiny-qwen-image", [f"model.family={name}", "model.path=some/where"])
    family = imagined.open_imagined(config, tmp_path / "blank", CPU)
    refs = [[]] if family.controls[1] else None
    if refs is not None:
        from PIL import Image

        refs = [[Image.new("RGB", (64, 64))]]
    (cond,) = family.encode_prompts(["一只红色的猫"], refs)
    assert all(value.isfinite().all() for value in cond.values())
    mean, std = family.encode_images(torch.rand(1, 3, 64, 64) * 2 - 1)
    assert mean.isfinite().all() and (std > 0).all()
    pipe = family.pipeline(family.load("transformer"))
    assert pipe.transformer is not None and family.decode(mean).isfinite().all()


@pytest.mark.parametrize(("name", "billions"), [
    ("qwen-image", 8.3), ("qwen-image-edit", 8.3), ("flux-dev", 4.9), ("z-image", 4.0),
    ("kandinsky5", 8.4), ("flux2-klein", 4.0), ("flux2-klein-9b", 8.2), ("flux2-dev", 24.0),
    ("qwen-image-2.1", 8.8),
])  # fmt: skip
def test_the_imagined_encoders_are_as_big_as_the_real_ones(name, billions, tmp_path):
    family = imagined.open_imagined(load_config(name), tmp_path / "model", torch.device("meta"))
    shells = [family.shell(part) for part in family.encoders]
    count = sum(p.numel() for shell in shells for p in shell.parameters())
    assert count / 1e9 == pytest.approx(billions, rel=0.05)
    assert family.shell("vae") and family.count_tokens(["一只猫"])[0] > 0
    index = json.loads((family.folder / "model_index.json").read_text("utf-8"))
    parts = {"transformer", "vae", "scheduler", *family.text_parts}
    assert index.keys() >= parts and all((family.folder / part).is_dir() for part in parts)


def test_rehearsal_keeps_out_of_the_real_cache(own_cache):
    assert cache.root() == own_cache
    with rehearse.pretend.own_cache(Path("elsewhere")):
        assert cache.root() == Path("elsewhere")
    assert cache.root() == own_cache and (ASSETS / "presets").is_dir()


def test_steps_that_record_or_compile_are_not_the_usual_ones():
    assert rehearse.usual([(9.0, False), (2.0, False), (1.0, True), (0.4, False)]) == 0.4
    assert rehearse.usual([(9.0, False), (2.0, False), (0.4, False), (1.3, True)]) == 0.4
    assert rehearse.usual([(9.0, False), (2.0, False), (0.5, False), (0.7, False)]) == 0.6
    assert rehearse.usual([(9.0, False), (2.0, False), (1.2, True), (1.3, True)]) == 1.2
