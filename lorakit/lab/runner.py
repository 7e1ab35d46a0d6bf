"""在后台训练，面板实时更新：格子马上返回，出了错由 `result()` 交给你。

随包的微型模型在一个线程里练，真模型另起一个进程（process.py）；用法一样。
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path

import numpy as np

from lorakit import infer
from lorakit.config import Config, differences
from lorakit.errors import LorakitError
from lorakit.families import open_family
from lorakit.hub.bundled import tiny_models
from lorakit.lab.board import Board
from lorakit.lab.display import Placed, headless, waiting
from lorakit.lab.notes import JOBS
from lorakit.lab.process import Process, Seen
from lorakit.results import card, checkpoint, heldout, shots
from lorakit.results import folder as run_folder
from lorakit.train import Trainer

RUNS: dict[Path, "Run"] = {}  # 结果文件夹 -> 在里面练的那一次
WAIT = "正在等它练完。想停：按面板上的“停止”，或工具栏上的方块 ■，都会先存好。"
BEAT = 1.0  # 秒；等的时候隔多久说一次练到哪里：面板多半在屏幕外面


class Run(Placed):
    """一次训练：start 开始并摆出面板，stop 停下（先存好），go_on 继续，result 等它练完。

    没人看时（测试、自动运行）start 会一直练到完。后台线程从不打印。
    """

    def __init__(self, config: Config, names: list[str] | None = None, process: bool | None = None):
        """
        Args:
            names: 样张墙的列名，一句提示词一个。
            process: 要不要另起一个进程；不写就由底模定：随包的微型模型不用，真模型要。
        """
        self.config, self.trainer, self._family = config, None, None
        apart = config.model.path not in tiny_models() if process is None else process
        self.process = Process(config) if apart else None
        sample = config.sample  # 没有写提示词的，编码完才从描述里挑，先占几列
        columns = sample.prompts or [f"样张{i + 1}" for i in range(sample.count)]
        self.board = Board(config.train.steps, columns, names or ())
        self.board.stop_button.on_click(lambda button: self.stop())
        self.board.continue_button.on_click(lambda button: self.go_on())
        self._halt = threading.Event()
        self._job: Future | None = None
        self._hears: list[Callable[[], None]] = []

    def start(self, show: bool = True) -> "Run":
        """开始训练；有人看时马上返回。正在练的，再运行一次就是再摆出它的面板。

        Args:
            show: 要不要摆出面板；别的控件里已经放着它就不用。
        """
        going = RUNS.get(self.config.run.output.resolve())
        if going and going.running:
            return self._join(going)
        quiet = headless()
        if show and not quiet:
            self.board.display()
        self._go()
        if quiet:
            try:
                self.result()
            finally:
                if show:
                    self.board.display()
        return self

    def _join(self, going: "Run") -> "Run":
        """这个文件夹里正有一次在练：从此和它是同一次，摆出它的面板。"""
        if differences(going.config, self.config):
            going.board.remark(
                "设置改过了，可是面板上还是先前那一次：按“停止”，再运行这一格，就照新的设置练。"
            )
        going._hears += self._hears
        self.__dict__ = going.__dict__
        self.board.display()
        return self

    @property
    def running(self) -> bool:
        return self._job is not None and not self._job.done()

    @property
    def step(self) -> int:
        """练完了几步。"""
        worker = self.process or self.trainer
        return worker.step if worker else 0

    def stop(self):
        """练完手头这一步、存好，然后停下。"""
        self._halt.set()
        worker = self.process if self.process and self.running else self.trainer
        if worker:
            worker.stop()
        if self.running:
            self.board.say("正在停下：先把这一步存好……")

    def go_on(self) -> "Run":
        """从最后的检查点接着练；学到的、走到哪一步都和没停过一样。"""
        if self.running:
            raise LorakitError("还没有停下来，不用继续。")
        self._go()
        return self

    def when_done(self, hear: Callable[[], None]):
        """每次停下、练完、出错，都叫一声 hear()。"""
        self._hears.append(hear)

    def result(self) -> "Run":
        """等它练完；训练里出的错在这里抛出。中断（Ctrl-C、方块键）等于停止。"""
        if self._job is None:
            raise LorakitError("还没有开始训练：先运行 run.start()。")
        if headless() or self._job.done():
            self._finish()
        else:
            with waiting(WAIT) as say:
                self._finish(say)
        return self

    def _finish(self, say: Callable[[str], None] | None = None):
        begun = time.monotonic()
        try:
            while say and not wait([self._job], BEAT).done:
                so_far = f"（等了 {time.monotonic() - begun:.0f} 秒）"
                say(f"{WAIT}现在：{self.board.said}{so_far}")
            self._job.result()
        except KeyboardInterrupt:
            self.stop()
            self._job.result()

    def summary(self, digits: int = 2) -> str:
        """一句话：留出集损失从多少到多少；停在半路的，说停在哪一步。"""
        held, done, planned = self.board.held, self.step, self.board.total
        if len(held) == 1:
            said = f"练了 {done} 步，留出集损失只有第 {held[0][0]} 步的：还没有到下一次检验，"
            said += "或 eval.every 是 0"
        elif not held:
            said = f"练了 {done} 步；没有留出集的损失，要 4 张以上的图，eval.every 也不能是 0"
        else:
            (_, before), (last, after) = held[0], held[-1]
            said = f"留出集损失：训练前 {before:.{digits}f}，{last} 步后 {after:.{digits}f}"
        if done < planned:
            said += f"。停在第 {done} 步，原定 {planned} 步：按“继续”练完，再运行这一格"
        return said

    @property
    def family(self):
        """模型家族：读图、读字、还原成图都用它。"""
        if self._family is None:
            self._family = self.trainer.family if self.trainer else open_family(self.config)
        return self._family

    def pipeline(self):
        """练好的模型，一条 stock 管线：在 `lorakit.generate`、`lorakit.compare` 里用。"""
        self.result()
        if self.process:
            return infer.open_pipeline(self.family, self.config.run.output)
        pipe = self.family.pipeline(self.trainer.transformer.eval())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _go(self):
        self._halt.clear()
        self.board.remark("")
        found = checkpoint.latest(self.config.run.output)
        self.board.rewind(checkpoint.step_of(found) if found else 0)
        self.board.running(True)
        self._job = job = Future()
        here = self.config.run.output.resolve()
        JOBS[here], RUNS[here] = job, self
        work = self._follow if self.process else self._train
        # 不用线程池：关内核时它先等活做完才说要走，活就来不及知道该停了
        threading.Thread(target=self._into, args=(job, work), name="train").start()

    def _into(self, job: Future, work: Callable):
        """在线程里做 work，把结局写到面板上，再把结果或错误交给等着的人。"""
        error = None
        try:
            work()
        except BaseException as caught:  # 什么错都要交给等着的人
            error = caught
        try:
            self._ended(error)
        finally:
            job.set_exception(error) if error else job.set_result(None)

    def _ended(self, error: BaseException | None):
        step, here = self.step, self.config.run.output.resolve()
        if error:
            kind = "" if isinstance(error, LorakitError) else f"{type(error).__name__}："
            self.board.say(f"训练停在第 {step} 步：{kind}{error}", bad=True)
        elif step < self.board.total:
            self.board.say(f"停在第 {step} 步，已经存好。按“继续”从这里接着练。")
        else:
            self.board.say(f"练完了，一共 {step} 步。结果在 {self.config.run.output.name}。")
        if not headless():
            self.board.settle()
        JOBS.pop(here, None), RUNS.pop(here, None)  # 练完的不再握着：模型占地方
        self.board.running(False)
        for hear in self._hears:
            hear()

    def _follow(self):
        self.board.say("另起了一个进程，正在载入模型、编码数据……")
        self.process.follow(self.board)
        self.board.bar.value = self.step

    def _train(self):
        self.board.say("正在载入模型、检查图片……")
        self.trainer = trainer = Trainer(self.config, progress=self._preparing)
        try:
            seconds = self._teach(trainer)
            if trainer.step:
                card.keep(trainer, bool(seconds))
        finally:
            trainer.close()  # 第一步之前就出了错的，也放开文件夹

    def _preparing(self, what: str, done: int, total: int):
        self.board.say(f"正在准备：{what}，第 {done} / {total} 个……")

    def _teach(self, trainer: Trainer) -> float:
        """练到完或被叫停，边练边搬到面板上；返回各步一共用了几秒。"""
        board, sample, seconds = self.board, trainer.config.sample, 0.0
        if self._halt.is_set():  # 载入模型的那几秒里就按了停止
            trainer.stop()
        if trainer.step and not board.steps:  # 接着先前的一次练：它的线和样张也摆回来
            Seen(self.config.run.output, board, sample.count).look()
        record = trainer.record
        rows = heldout.of(record.kept, record.held_of)
        if rows and heldout.mixed(record.kept, record.held_of):  # 一行也没有，就没有换上的
            board.other_held(rows)
        if trainer.step == 0:
            self.board.say("正在看训练前画得怎样……")
            self._look(0)
        self.board.say(f"从第 {trainer.step} 步开始练……")
        for step in trainer:
            if not threading.main_thread().is_alive():  # 内核在关：存好就走
                trainer.stop()
            if step.step == 1:  # 训练前的那次检验由 Trainer 记在 metrics.jsonl 里
                board.show_start(run_folder.read(self.config.run.output)[0].get("held"))
            board.show(step)
            seconds += step.seconds
            if sample.every and step.step % sample.every == 0:
                self._look(step.step)
        if not any(step == trainer.step for step, _ in board.by_t or board.samples):
            self._look(trainer.step)
        board.bar.value = trainer.step
        return seconds

    def _look(self, step: int):
        """画样张、量每个时间步的损失；不动训练用的随机数。"""
        trainer, config = self.trainer, self.trainer.config
        trainer.transformer.eval()
        if trainer.dataset.held:
            each = trainer.examine()["held_each"]
            self.board.show_by_t(step, np.mean(each, axis=0).tolist())
        if config.sample.prompts:
            pipe = trainer.pipeline()
            images = infer.preview(trainer.family, pipe, config, trainer.dataset)
            columns = infer.columns(config, trainer.dataset)
            shots.keep(config.run.output, step, images, columns)  # 练过的每一次，以后还看得见
            self.board.show_samples(step, images)
