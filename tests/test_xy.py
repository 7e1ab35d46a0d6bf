"""XY 网格：每一格都与单独 generate 的一样；底模只载入一次；坏输入在载入之前就说清楚。"""

import numpy as np
import pytest
import torch

from lorakit import infer
from lorakit.cli import main
from lorakit.infer import xy
from lorakit.train import Trainer

PROMPT, SIDE = "一只猫", 64


@pytest.fixture(scope="module")
def run(papercut, tmp_path_factory):
    from lorakit.config import load_config

    folder = tmp_path_factory.mktemp("xy") / "run"
    sets = [f"data.folder={papercut}", f"run.output={folder}", "train.steps=4", "eval.every=0",
            "train.batch_size=2", "train.save_every=2", "train.lr=2e-2", "train.warmup=0",
            "lora.rank=4", "sample.steps=2", "sample.size=64"]  # fmt: skip
    config = load_config("tiny-qwen-image", sets)
    list(Trainer(config))
    return folder, config


def family_of(config):
    from lorakit.families import open_family

    return open_family(config, torch.device("cpu"))


def capture(monkeypatch):
    seen = {}

    def grid(rows, row_names, column_names):
        seen.update(rows=rows, names=(list(row_names), list(column_names)))
        return rows[0][0]

    monkeypatch.setattr("lorakit.results.report.grid", grid)
    return seen


def test_cells_equal_generate(run, monkeypatch):
    folder, config = run
    family, seen = family_of(config), capture(monkeypatch)
    pipe = infer.open_pipeline(family, folder)
    base = pipe.transformer
    x, y = xy.axes(folder, "0,1", "3,4", None)
    xy.xy_grid(family, pipe, PROMPT, config.sample, (SIDE, SIDE), x, y)
    assert pipe.transformer is base
    assert seen["names"] == (["种子\n3", "种子\n4"], ["强度 0", "强度 1"])
    for i, seed in enumerate((3, 4)):
        how = config.sample.model_copy(update={"seed": seed})
        with_lora = infer.generate(family, pipe, [PROMPT], how, (SIDE, SIDE))[0]
        with infer.without_lora(pipe.transformer):
            without = infer.generate(family, pipe, [PROMPT], how, (SIDE, SIDE))[0]
        assert np.array_equal(seen["rows"][i][1], with_lora)
        assert np.array_equal(seen["rows"][i][0], without)
        assert not np.array_equal(with_lora, without)


def test_checkpoints_equal_opening_each(run, monkeypatch):
    folder, config = run
    seen = capture(monkeypatch)
    family = family_of(config)
    pipe = infer.open_pipeline(family, folder)
    axes = xy.axes(folder, None, None, "all")
    xy.xy_grid(family, pipe, PROMPT, config.sample, (SIDE, SIDE), *axes)
    assert seen["names"][1] == ["第 2 步", "第 4 步"]
    for cell, step in zip(seen["rows"][0], (2, 4), strict=True):
        family = family_of(config)
        alone = infer.open_pipeline(family, folder / f"checkpoint-{step}")
        (want,) = infer.generate(family, alone, [PROMPT], config.sample, (SIDE, SIDE))
        assert np.array_equal(cell, want)


def test_command_line_draws_one_sheet(run, tmp_path, capsys):
    folder, _ = run
    out = tmp_path / "xy.png"
    argv = ["compare", str(folder), "--prompt", PROMPT, "--out", str(out)]
    assert main([*argv, "--strengths", "0，1", "--checkpoints", "2,4"]) == 0
    assert out.is_file() and "横是强度，纵是检查点" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--strengths", "0,强"], "“强”不行"),
        (["--seeds", "1.5"], "整数"),
        (["--seeds", ""], "整数"),
        (["--strengths", "nan"], "“nan”不行"),
        (["--checkpoints", "3"], "没有第 3 步的检查点。有的是：2、4"),
        (["--strengths", "1", "--seeds", "1", "--checkpoints", "all"], "最多写两样"),
        (["--seeds", "1", "--prompt", "另一句"], "一次只画一句"),
    ],
)
def test_bad_input_stops_before_loading(run, monkeypatch, capsys, words, said):
    def never(*_):
        raise AssertionError("不该载入模型")

    monkeypatch.setattr("lorakit.infer.open_pipeline", never)
    assert main(["compare", str(run[0]), "--prompt", PROMPT, *words]) == 1
    assert said in capsys.readouterr().err
