"""另起一个进程训练：面板和线程里的一样，停下先存好，出错与被杀都不伤内核。"""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from itertools import islice

import numpy as np
import pytest

from lorakit import infer, lab
from lorakit.errors import LorakitError
from lorakit.lab import notes, process, runner
from lorakit.results import checkpoint, lock
from lorakit.train import Trainer

PROMPT = "sample.prompts=[剪纸风格，一只大狗在中间]"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(process, "POLL", 0.02)


def test_who_needs_a_process(config, tmp_path):
    assert lab.Run(config()).process is None
    assert lab.Run(config(), process=True).process
    assert lab.Run(config(f"model.path={tmp_path}")).process, "不是随包的，就另起一个进程"


def test_same_losses_and_board_as_in_the_thread(shown, config):
    run = lab.Run(config(PROMPT, "sample.steps=2", "sample.every=2", output="a"), process=True)
    run.start()
    there = Trainer(config(PROMPT, "sample.steps=2", output="b"))
    assert run.board.losses == [step.loss for step in there]
    assert run.step == 4 and run.board.bar.value == 4 and "练完了" in run.board.status.value
    assert [step for step, _ in run.board.held] == [0, 2, 4]
    assert [step for step, _ in run.board.samples] == [0, 2, 4]
    assert [step for step, _ in run.board.by_t] == [0, 2, 4]
    images = infer.generate(run.family, run.pipeline(), *_asked(run))
    pipe = there.family.pipeline(there.transformer.eval())
    here = infer.generate(there.family, pipe, *_asked(run))
    gap = np.asarray(images[0], int) - np.asarray(here[0], int)
    assert abs(gap).max() <= 2, "从文件读回来的 LoRA 画同一张图，只差四舍五入"


def _asked(run):
    return ["剪纸风格，一只大狗在中间"], run.config.sample, (128, 128)


LONG = ["train.steps=500", "eval.every=0"]  # 机器再快，看到头几步时也还远没练完


def _stop_past(run, step: int) -> int:
    while run.step < step:
        time.sleep(0.01)
    run.board.stop_button.click()
    return run.result().step


def test_stop_saves_first_and_continue_equals_unbroken(shown, watched, config):
    run = lab.Run(config(*LONG, output="a"), process=True).start()
    first = _stop_past(run, 2)
    assert 2 <= first < 500 and (run.config.run.output / f"checkpoint-{first}").is_dir()
    run.board.continue_button.click()
    last = _stop_past(run, first + 2)
    plain = islice(Trainer(config(*LONG, output="b")), last)
    assert run.board.losses == [step.loss for step in plain]
    assert first < last and run.board.steps == list(range(1, last + 1))


CLOSING = """
import sys, time
from lorakit import lab
from lorakit.config import load_config
from lorakit.lab import runner
runner.headless = lambda: False
run = lab.Run(load_config(sys.argv[1])).start()
while run.step < 2:
    time.sleep(0.01)
"""


def test_a_kernel_that_closes_saves_the_training_in_its_thread(config):
    """关掉内核：线程里的训练练完手头这一步、存好才走。"""
    chosen = config(*LONG, "train.save_every=500")
    file = chosen.run.output.with_suffix(".yaml")
    file.write_text(chosen.to_yaml(), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", CLOSING, str(file)], timeout=120)
    assert done.returncode == 0
    found = checkpoint.latest(chosen.run.output)
    assert 2 <= checkpoint.step_of(found) < 500
    assert not (chosen.run.output / lock.OWNER).exists()


@pytest.mark.parametrize(
    "error", [LorakitError("坏了"), ValueError("x"), SystemExit(3), MemoryError()]
)
def test_whatever_ends_the_work_reaches_who_waits(shown, config, error):
    """哪怕是 SystemExit：没有交出去，等着的人就一直等。"""

    def work():
        raise error

    run, job = lab.Run(config(*LONG)), Future()
    run._into(job, work)
    assert job.exception(timeout=0) is error and "训练停在第 0 步" in run.board.status.value


def test_its_own_chinese_message_comes_back(shown, watched, wait_for, config, tmp_path):
    run = lab.Run(config(f"data.folder={tmp_path / 'none'}"), process=True).start()
    with pytest.raises(LorakitError, match="没有这个文件夹") as caught:
        run.result()
    assert "Traceback" not in str(caught.value)
    wait_for(lambda: "没有这个文件夹" in run.board.status.value)


def test_killed_by_the_system_leaves_the_kernel_and_can_continue(shown, watched, config):
    run = lab.Run(config(*LONG), process=True)
    show = run.board.show

    def kill_at_three(step):
        show(step)
        if step.step == 3:
            os.kill(run.process.worker.pid, signal.SIGKILL)

    run.board.show = kill_at_three
    run.start()
    with pytest.raises(LorakitError, match=r"SIGKILL.*内存不够"):
        run.result()
    run.board.show = show
    run.go_on()
    assert run.board.steps == list(range(1, _stop_past(run, 8) + 1)), "同一步不记两次"


def test_a_new_kernel_adopts_watches_and_stops_the_run(shown, watched, wait_for, config):
    """内核重启过：先前另起的进程还在练，再运行那一格就接着看它，也停得下它。"""
    chosen = config(*LONG, PROMPT, "sample.steps=2")
    first = lab.Run(chosen, process=True).start()
    wait_for(lambda: first.step >= 2, 60)
    runner.RUNS.clear(), notes.JOBS.clear()  # 新的内核什么也不记得
    again = lab.Run(chosen, process=True)
    again.start()
    wait_for(lambda: again.step >= 3, 60)
    assert again.process.worker is None and again.board.steps[:3] == [1, 2, 3]
    again.board.stop_button.click()
    step = again.result().step
    assert 3 <= step < 500 and (chosen.run.output / f"checkpoint-{step}").is_dir()
    assert first.result().step == step and "停在" in again.board.status.value


def test_what_was_there_before_is_known_by_the_file_not_by_the_clock(config, shown):
    """钟差一天、共用的盘有自己的钟：新写下的照样搬来，先前留下的照样不看。"""
    folder = config().run.output
    (folder / "samples").mkdir(parents=True)
    board = lab.Run(config()).board
    metrics = folder / "metrics.jsonl"
    row = {"lr": 0.1, "loss": 1.0, "grad_norm": 1.0, "t": 0.5, "seconds": 1.0, "held": None}
    metrics.write_text(json.dumps({"step": 1, **row}) + "\n")
    seen = process.Seen(folder, board, 0, process._there(folder))
    seen.look()
    assert seen.step == 0
    new = folder / "new.jsonl"
    new.write_text(json.dumps({"step": 2, **row}) + "\n")
    os.replace(new, metrics)
    os.utime(metrics, (time.time() - 86400,) * 2)
    seen.look()
    assert seen.step == 2
