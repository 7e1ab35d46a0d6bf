"""真模型另起一个进程训练：显存不够、甚至被系统杀掉，练习册的内核也不会跟着没了。

进程就是 `python -m lorakit train`，面板读它写下的 metrics.jsonl 与 samples；
停下是放一个 STOP 文件，它练完手头那一步、存好再走。关掉网页或重启内核，训练都还在：
再运行开始训练的那一格，就接着看它、也能停它。
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

import numpy as np

from lorakit.config import Config, load_config
from lorakit.data.read import read_image
from lorakit.errors import LorakitError
from lorakit.files import write_text
from lorakit.lab.board import Board
from lorakit.results import folder as run_folder
from lorakit.results import heldout, lock
from lorakit.train import Step

POLL = 0.5  # 秒；隔多久看一眼它写了什么
TAIL = 2000  # 出错时最多引用它最后说的这么多字
STEP = [field.name for field in fields(Step)]
INTERRUPTED = 130  # 被打断但已经存好
Version = tuple[Path, int, int]  # 哪个文件的哪一份：编号、修改的时刻


class Process:
    """一次训练的进程；follow 跟着它更新面板，直到它结束。"""

    def __init__(self, config: Config):
        self.config, self.folder = config, config.run.output
        self.worker: subprocess.Popen | None = None
        self.step = 0

    def stop(self):
        """请它练完手头这一步、存好，然后停下。"""
        write_text(self.folder / "STOP", "")

    def follow(self, board: Board):
        """开始训练，把它写下的每一步和样张搬到面板上，直到它结束；已经有进程在练就接着看它。

        Raises:
            LorakitError: 它因为出错而结束；消息就是它自己说的那句。
        """
        if owner := lock.busy(self.folder):
            self._adopt(board, owner)
        else:
            self._start(board)

    def _adopt(self, board: Board, owner: dict):
        """内核重启过，先前另起的进程还在练：从头搬来它的记录，看到它结束。"""
        theirs = self.folder / "config.yaml"
        config = load_config(theirs) if theirs.is_file() else self.config
        board.total = board.bar.max = config.train.steps
        board.say(f"训练还在另一个进程（{owner['pid']}）里练，接着看它……")
        seen = Seen(self.folder, board, config.sample.count)
        while lock.busy(self.folder):
            self._look(seen)
        self._look(seen)

    def _look(self, seen: "Seen"):
        seen.look()
        self.step = seen.step
        time.sleep(POLL)

    def _start(self, board: Board):
        with tempfile.TemporaryDirectory(prefix="lorakit-run-") as place:
            file, log = Path(place) / "config.yaml", Path(place) / "log.txt"
            file.write_text(self.config.to_yaml(), encoding="utf-8")
            (self.folder / "STOP").unlink(missing_ok=True)  # 上一次留下的不算
            seen = Seen(self.folder, board, self.config.sample.count, _there(self.folder))
            with log.open("wb") as out:
                self.worker = subprocess.Popen(
                    # 不要它的提醒：说出来的就只有出错的那句话
                    [sys.executable, "-W", "ignore", "-m", "lorakit", "train", str(file)],
                    stdout=subprocess.DEVNULL,
                    stderr=out,
                    start_new_session=True,  # 按中断键时由 STOP 来停，免得它没存好就没了
                    env={**os.environ, "TQDM_DISABLE": "1", "PYTHONIOENCODING": "utf-8"},
                )
            while self.worker.poll() is None:
                self._look(seen)
            self._look(seen)
            self._check_end(log.read_text(encoding="utf-8", errors="replace"))

    def _check_end(self, said: str):
        code = self.worker.returncode
        if code in (0, INTERRUPTED):
            return
        if code < 0:
            name = signal.Signals(-code).name
            raise LorakitError(
                f"训练进程在第 {self.step} 步被系统结束了（{name}），多半是内存不够；"
                "练习册的内核没有事。换小一点的 train.batch_size 或 data.resolution，"
                "再按“继续”从最后的检查点接着练。"
            )
        lines = [line.split("\r")[-1] for line in said.splitlines()]
        kept = [line for line in lines if line.strip()]
        raise LorakitError(
            "\n".join(kept)[-TAIL:] or f"训练进程出错了（退出码 {code}），什么也没有说。"
        )


def _version(file: Path) -> Version:
    facts = file.stat()
    return file, facts.st_ino, facts.st_mtime_ns


def _there(folder: Path) -> set[Version]:
    """先前那一次留下的记录与样张，各是哪一份。"""
    files = [folder / "metrics.jsonl", *(folder / "samples").glob("*.png")]
    return {_version(file) for file in files if file.is_file()}


class Seen:
    """运行文件夹里已经搬到面板上的步与样张；old 是先前留下的那些，不看，换了一份的才看。

    认的是哪一份文件，不看时刻：钟会跳，共用的盘有自己的钟。
    """

    def __init__(self, folder: Path, board: Board, prompts: int, old: Collection[Version] = ()):
        self.folder, self.board, self.prompts, self.old = folder, board, prompts, old
        self.tail = run_folder.Tail(folder)
        self.step = board.steps[-1] if board.steps else 0
        self.started = bool(board.held or board.by_t)
        self.shown = {step for step, _ in board.samples}
        self.batches: dict[str | None, list[dict]] = {}  # 哪一批留出图 -> 检验过的那些行
        self.batch: str | None = None  # 线上的是哪一批

    def look(self):
        """搬来新的记录与样张；早先那一次留下的文件不看（续训会先重写一遍记录）。"""
        metrics = self.folder / "metrics.jsonl"
        for row in self.tail.new() if self._fresh(metrics) else ():
            self._turn(row)
            if row["step"] == 0 and not self.started:
                self.started = True
                self.board.show_start(row.get("held"))
            elif row["step"] <= self.step or row.get("loss") is None:
                continue
            else:
                self.step = row["step"]
                self.board.show(Step(**{name: row.get(name) for name in STEP}))
            if row.get("held_each"):
                self.board.show_by_t(row["step"], np.mean(row["held_each"], axis=0).tolist())
        for step in sorted(self._sample_steps() - self.shown):
            files = [self.folder / "samples" / f"{step}_{i}.png" for i in range(self.prompts)]
            if all(map(self._fresh, files)):
                self.shown.add(step)
                self.board.show_samples(step, [read_image(f, True) for f in files])

    def _turn(self, row: dict):
        """接着练时换过留出图的：轮到另一批了，线上只留那一批的。"""
        if not row.get("held_each"):
            return
        batch = row.get(heldout.MARK)
        before = self.batches.setdefault(batch, [])
        if row["step"]:
            started = self.batch or next(iter(self.batches))
            if batch != started:
                self.board.other_held(before)
            self.batch = batch
        before.append(row)

    def _fresh(self, file: Path) -> bool:
        return file.is_file() and _version(file) not in self.old

    def _sample_steps(self) -> set[int]:
        names = (path.stem.split("_")[0] for path in (self.folder / "samples").glob("*_*.png"))
        return {int(name) for name in names if name.isdigit()}
