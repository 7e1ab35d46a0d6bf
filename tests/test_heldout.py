"""接着练时留出的图换了、记录没有一起搬来：记录都留着，只和同一批图上的比，原因说真话。"""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit.cli import main
from lorakit.config import load_config
from lorakit.data.batches import split_holdout
from lorakit.data.load import load_records
from lorakit.results import board, heldout, verdict
from lorakit.results import folder as run_folder
from lorakit.results.report import plot_loss
from lorakit.train import Trainer

RUN = Path("run")


def add(name: str, seed: int):
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64)).save(f"data/{name}.png")
    Path(f"data/{name}.txt").write_text(f"第 {seed} 样东西", encoding="utf-8")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for number in range(5):
        add(str(number), number)


def sets(steps: int, output: str = "run", *more: str) -> list[str]:
    return ["data.folder=data", f"run.output={output}", "data.resolution=64",
            f"train.steps={steps}", "train.warmup=0", "eval.every=2", "sample.every=0",
            "lora.rank=2", *more]  # fmt: skip


def train(steps: int, output: str = "run", *more: str) -> str:
    """练到第 steps 步，返回说过的提醒。"""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        list(Trainer(load_config("tiny-qwen-image", sets(steps, output, *more))))
    return "\n".join(str(one.message) for one in told)


def held() -> list[str]:
    return [record.path.name for record in split_holdout(load_records("data"), 0.1)[1]]


def rows(output: str = "run") -> list[dict]:
    return [json.loads(line) for line in Path(output, "metrics.jsonl").read_text().splitlines()]


def grown():
    """添图，直到留出的多了一张。"""
    before = len(held())
    for number in range(10, 80):
        add(str(number), number)
        if len(held()) > before:
            return


def other():
    """留出的还是一张，名字也一样，内容换了。"""
    (name,) = held()
    for seed in range(100, 140):
        add(Path(name).stem, seed)
        if held() == [name]:
            return


def retold():
    """留出的图没有变，描述变了：损失也就不是那一个了。"""
    Path("data", held()[0]).with_suffix(".txt").write_text("别的东西", encoding="utf-8")


@pytest.mark.parametrize("change", [grown, other, retold])
def test_a_changed_held_out_set_is_compared_with_its_own_base(change):
    train(4)
    before = rows()
    change()
    assert "不是同一批：没有 LoRA 时的损失在现在这一批上补量一遍" in train(6)
    now = rows()
    assert [row for row in now if row in before] == before, "以前的记录一行也不少"
    train(1, "fresh")
    base = next(row for row in reversed(now) if row["step"] == 0)
    np.testing.assert_allclose(base["held_each"], rows("fresh")[0]["held_each"], rtol=1e-5)
    said = verdict.judge(run_folder.read(RUN))
    ratio = np.log(np.array(now[-1]["held_each"]) / np.array(base["held_each"]))
    facts = said.lights[0].facts
    assert facts["step"] == 6 and facts["change"] == pytest.approx(ratio.mean())
    assert list(verdict.held_by_step(run_folder.read(RUN))) == [0, 6]
    old = verdict.judge(run_folder.read(RUN), 4).lights[0].facts
    assert old["step"] == 4 and old["n"] == 8, "以前的检查点，和它自己那时的比"
    board.plot(RUN), plot_loss(RUN)


def test_each_checkpoint_says_which_set_its_loss_was_measured_on():
    train(4)
    other()
    train(6)
    found = [verdict.judge(run_folder.read(RUN), step).lights[0].facts for step in (2, 4, 6)]
    marks = [facts[heldout.MARK] for facts in found]
    assert marks[0] == marks[1] != marks[2]


def test_nothing_is_lost_at_the_next_resume_and_the_base_is_measured_once(capsys):
    train(4)
    grown()
    train(8)
    before = rows()
    assert "补量" not in train(10)
    assert rows()[: len(before)] == before
    assert [row["step"] for row in rows()] == [0, 0, *range(1, 11)]
    assert main(["audit", "run"]) == 0
    said = capsys.readouterr().out
    assert "没有检验" not in said and "坏了" not in said


def test_audit_says_which_losses_cannot_be_compared(capsys):
    train(4, "run", "train.save_every=2")
    grown()
    train(6, "run", "train.save_every=2")
    assert main(["audit", "run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (four,) = [line for line in lines if line.startswith("checkpoint-4")]
    (six,) = [line for line in lines if line.startswith("checkpoint-6")]
    assert "量的是另一批留出图，和别的不能比" in four and "留出集损失最低" in six


def test_the_old_set_put_back_is_compared_with_the_old_base():
    train(4)
    shutil.copytree("data", "before")
    grown()
    train(6)
    shutil.rmtree("data")
    shutil.move("before", "data")
    assert "补量" not in train(8)
    assert list(verdict.held_by_step(run_folder.read(RUN))) == [0, 2, 4, 8]


def test_the_panel_shows_one_set_in_the_thread_and_beside_a_process(shown):
    from lorakit import lab
    from lorakit.lab.process import Seen

    train(4)
    grown()
    settings = load_config("tiny-qwen-image", sets(6, "run", "sample.prompts=[]"))
    run = lab.Run(settings).start()
    beside = lab.Board(6)
    seen = Seen(RUN, beside, 0)
    seen.look()
    for panel in (run.board, beside):
        assert [step for step, _ in panel.held] == [0, 6] and panel.held[0][1] == rows()[1]["held"]
        assert [step for step, _ in panel.by_t] == [0, 6]


def _forget():
    """以前的记录：没有 held_of。"""
    lines = [{k: v for k, v in row.items() if k != heldout.MARK} for row in rows()]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    Path("run/metrics.jsonl").write_text(text)


@pytest.mark.parametrize("change", [None, other])
def test_rows_without_a_mark_are_known_by_the_checkpoint_after_them(change):
    train(4)
    _forget()
    assert verdict.judge(run_folder.read(RUN)).lights[0].facts["step"] == 4
    if change:
        change()
    assert ("补量" in train(6)) is bool(change)
    kept = [0, 6] if change else [0, 2, 4, 6]
    assert list(verdict.held_by_step(run_folder.read(RUN))) == kept


@pytest.mark.parametrize("more", [(), ("train.ema=0.9", "lora.variant=dora")])
def test_a_run_moved_without_its_record_measures_the_base(more):
    train(4, "run", *more)
    base = rows()[0]
    Path("run/metrics.jsonl").unlink()
    assert "没有 LoRA 时）的损失：补量一遍" in train(6, "run", *more)
    first, *_, last = rows()
    assert first == base and last["step"] == 6
    assert verdict.judge(run_folder.read(RUN)).lights[0].facts["step"] == 6


def test_a_loss_without_a_base_says_the_true_reason():
    """以前的版本接着练出来的：没有第 0 步。照它说的改大 train.steps，就有了。"""
    train(4)
    Path("run/metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows()[1:]))
    said = verdict.judge(run_folder.read(RUN))
    assert said.phrase == "没法比" and "把 train.steps 改大接着练" in said.sentence
    assert "图要 4 张以上" not in said.text()
    board.plot(RUN), plot_loss(RUN)
    train(6)
    assert verdict.judge(run_folder.read(RUN)).lights[0].facts["step"] == 6


def test_only_step_zero_says_it_waits_for_the_next_look():
    train(2, "run", "eval.every=0")
    said = verdict.judge(run_folder.read(RUN))
    assert said.phrase == "没法比" and "eval.every（例如 50）不能是 0" in said.sentence
