"""看板上练之前、练之后的两行样张：同一列画的是同一件事，列按数字排，说的时刻是真画了的。"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit import infer
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import LorakitWarning
from lorakit.results import board, shots
from lorakit.results import folder as run_folder
from lorakit.train import Trainer

RUN = Path("run")
SMALL = ["data.resolution=64", "sample.steps=2", "sample.size=64", "eval.every=0", "lora.rank=2",
         "train.warmup=0"]  # fmt: skip


def train(papercut, steps: int, *more: str) -> int:
    sets = [f"data.folder={papercut}", f"run.output={RUN}", f"train.steps={steps}", *SMALL, *more]
    return main(["train", "tiny-qwen-image", *(word for one in sets for word in ("--set", one))])


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """看板排出来的：(几行的名字, 几列的名字, 各行的文件内容)。"""
    monkeypatch.chdir(tmp_path)
    seen, real = [], board.grid

    def grid(rows, names, columns):
        seen.append((names, columns, [[np.asarray(one) for one in row] for row in rows]))
        return real(rows, names, columns)

    monkeypatch.setattr(board, "grid", grid)
    return seen


def test_a_resume_with_other_prompts_shows_the_common_columns(papercut, drawn, capsys):
    assert train(papercut, 2, "sample.prompts=[一只猫,一条狗]") == 0
    assert "第 0、2 步各画一遍，共 4 张" in capsys.readouterr().out
    assert drawn[-1][:2] == (["没有\nLoRA", "第 2\n步"], ["1", "2"])
    assert train(papercut, 3, "sample.prompts=[一棵树,一条狗]") == 0
    assert "第 3 步画一遍，共 2 张" in capsys.readouterr().out
    assert drawn[-1][:2] == (["没有\nLoRA", "第 3\n步"], ["2"])
    np.testing.assert_array_equal(drawn[-1][2][0][0], np.asarray(Image.open("run/samples/0_1.png")))
    assert train(papercut, 4, "sample.prompts=[一座山]") == 0
    assert drawn[-1][:2] == (["第 4\n步"], ["1"]), "没有一样的，就只有最新的一行"
    assert train(papercut, 5, "sample.prompts=[一座山]", "sample.seed=7") == 0
    assert drawn[-1][:2] == (["第 5\n步"], ["1"]), "换了种子，也不是同一件事"
    capsys.readouterr()
    assert train(papercut, 7, "sample.prompts=[一座山]", "sample.seed=7", "sample.every=1") == 0
    assert "第 6、7 步各画一遍，共 2 张" in capsys.readouterr().out
    assert drawn[-1][:2] == (["第 5\n步", "第 7\n步"], ["1"])


def test_fewer_prompts_at_the_same_step_leave_no_old_column(papercut, drawn, capsys):
    assert train(papercut, 2, "sample.prompts=[一只猫,一条狗]") == 0
    assert train(papercut, 2, "sample.prompts=[一只猫]") == 0
    assert "第 2 步画一遍，共 1 张" in capsys.readouterr().out
    assert Path("run/samples/2_1.png").is_file() and drawn[-1][1] == ["1"]


def _paint(step: int, count: int):
    for i in range(count):
        path = RUN / "samples" / f"{step}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (20 * i, step, 0)).save(path)


def test_samples_of_discarded_steps_are_set_aside_as_their_rows_are(papercut, drawn):
    """后面的检查点没了，退回前一个：后来的样张不是这一次练的，挪开，不删。"""
    every = ("sample.prompts=[一只猫]", "sample.every=1", "train.save_every=2")
    assert train(papercut, 4, *every) == 0
    before = Path("run/samples/4_0.png").read_bytes()
    Path("run/samples/mine.png").write_bytes(before)
    shutil.rmtree("run/checkpoint-4")
    with pytest.warns(LorakitWarning, match="从第 2 步接着练。更晚的 2 张样张.*没有删.*discarded"):
        trainer = Trainer(load_config("run/config.yaml"))
    trainer.close()
    assert [row["step"] for row in run_folder.read(RUN)] == [0, 1, 2]
    assert list(shots.rows(RUN)) == [0, 1, 2]
    assert Path("run/samples/discarded/4_0.png").read_bytes() == before
    assert Path("run/samples/mine.png").is_file()
    assert train(papercut, 3, *every) == 0
    assert list(shots.rows(RUN)) == [0, 1, 2, 3]
    assert train(papercut, 4, *every) == 0
    shutil.rmtree("run/checkpoint-4")
    with pytest.warns(LorakitWarning, match="样张是先前画的"):
        Trainer(load_config("run/config.yaml")).close()
    aside = {path.name for path in Path("run/samples/discarded").iterdir()}
    assert aside >= {"4_0.png", "4_0-2.png"}, "又退回一次，先前挪开的也还在"


def test_samples_before_the_first_checkpoint_are_set_aside_too(papercut, drawn):
    assert train(papercut, 2, "sample.prompts=[一只猫]") == 0
    shutil.rmtree("run/checkpoint-2")
    with pytest.warns(LorakitWarning, match="从头练。2 张样张"):
        Trainer(load_config("run/config.yaml")).close()
    assert list(shots.rows(RUN)) == []


def test_many_columns_are_in_the_order_of_numbers(drawn):
    """以前的样张：没有记画的是什么，照位置比。"""
    _paint(0, 12), _paint(4, 11)
    board.plot(RUN)
    names, columns, rows = drawn[-1]
    assert (names, columns) == (["没有\nLoRA", "第 4\n步"], [str(n + 1) for n in range(8)])
    assert [[int(one[0, 0, 0]) // 20 for one in row] for row in rows] == [[*range(8)]] * 2
    (RUN / shots.COLUMNS).write_text("[坏了")
    assert shots.before_and_after(RUN) == ([0, 4], [*range(11)])


def test_an_edit_is_known_by_its_control_picture(tmp_path):
    """改图的：留出的控制图换了，同一句话画的也不是同一件事。"""
    from types import SimpleNamespace as Plain

    config = load_config("tiny-qwen-image-edit", ["sample.prompts=[变成蓝色]"])

    def of(mark: str):
        record = Plain(controls=("a.png",), control_digests=(mark,))
        return infer.columns(config, Plain(edits=True, held=[Plain(record=record)], train=[]))

    assert of("x") == of("x") != of("y")


def test_what_is_recorded_is_plain(papercut, drawn):
    assert train(papercut, 1, "sample.prompts=[一只猫]") == 0
    known = json.loads(Path("run", shots.COLUMNS).read_text())
    assert known["0"] == known["1"] and all(re.fullmatch(r"[0-9a-f]{16}", x) for x in known["0"])


def test_a_column_is_the_same_thing_in_two_steps_or_not(tmp_path):
    image = Image.new("RGB", (8, 8))
    shots.keep(tmp_path, 1, [image, image], ["甲", "乙"])
    shots.keep(tmp_path, 2, [image, image], ["甲", "丙"])
    assert [shots.alike(tmp_path, (1, 2), column) for column in (0, 1)] == [True, False]
    assert shots.alike(tmp_path, (1, 9), 1), "以前的没有记，当作一样"
