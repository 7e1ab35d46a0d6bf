"""运行文件夹与记录：config.yaml 认领它，metrics.jsonl 一行一步。"""

import json
import os
import re
import shutil
from contextlib import ExitStack, suppress
from itertools import chain, count
from pathlib import Path

from lorakit.config import Config
from lorakit.errors import ConfigError, LorakitError, plain_reason, warn
from lorakit.files import Unreadable, parse_json, read_small, write_text
from lorakit.results import checkpoint, heldout, sameness
from lorakit.results.lock import Lock

OURS = ("config.yaml", "README.md", "run.json", "loss.png", "board.png", "samples",
        "samples.json")  # fmt: skip  # 我们写的名字
HALF = re.compile(r"\.{1,2}checkpoint-\d+(\.\d+\.tmp)+")  # 写到一半的检查点
SHOT = re.compile(r"(\d+)_\d+\.png")  # samples 里的一张样张：第几步，第几句
ASIDE = "discarded"  # samples 里的文件夹：作废的步画的
BIGGEST = 1e30  # 记录里的数再大就是坏了，图也画不出来
LONGEST = 1 << 30  # 字节；一步三百来个，几百万步也到不了


class RunFolder:
    """一次训练的结果文件夹：先占住、核对（能写、不是另一份设置的结果），一切就绪才 `claim`。"""

    def __init__(self, config: Config, processes: int = 1):
        """processes 是这次有几个进程。"""
        self.path, self.processes = config.run.output, processes
        self.metrics = self.path / "metrics.jsonl"
        self.known = self.path / "config.yaml"
        self.kept: list[dict] = []  # 接着练时，检查点之前的记录
        self.since = -1  # 从第几步接着练；-1 是从头
        self.held_of: str | None = None  # 现在留出的是哪一批
        self.new = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.lock = Lock(self.path)
        self._refuse_place(config)
        with ExitStack() as undo:
            undo.callback(self.abandon)
            with self.lock.take():  # 编码、下载可能要几个小时，不能等到开练才占
                self._check(config)
            undo.pop_all()

    def __getstate__(self) -> dict:
        """发给别的进程的只是一份说明：锁留在占住它的进程里。"""
        return self.__dict__ | {"lock": None}

    def _check(self, config: Config):
        self._refuse_foreign()
        if not checkpoint.all_of(self.path):
            return
        if config.run.resume == "never":
            raise ConfigError(
                f"run.output：“{self.path}”里已经有检查点，而 run.resume 是 never。"
                "换一个 run.output，或改回 auto 接着练。"
            )
        sameness.settings(self.path, config, self.processes)

    def _refuse_place(self, config: Config):
        """不能当结果文件夹的地方：整个盘、家目录、数据里面（样张会被当成训练图）。"""
        here, data = self.path.resolve(), config.data
        sources = [folder for one in data.sources for folder in (one.folder, one.control_folder)]
        pictures = [f.resolve() for f in (*sources, data.class_folder) if f is not None]
        why = ""
        if here == Path(here.anchor):
            why = "是整个盘"
        elif here == Path.home().resolve():
            why = "是你的家目录"
        elif any(here.is_relative_to(folder) for folder in pictures):
            why = "在数据文件夹里面，样张会被当成训练图"
        if why:
            raise ConfigError(
                f"run.output：“{self.path}”{why}。请换一个自己的文件夹，例如 runs/my-lora。"
            )

    def _refuse_foreign(self):
        """文件夹里有不是训练写的同名文件，就拒绝：不能盖掉别人写的东西。"""
        theirs = [name for name in OURS if (self.path / name).exists()]
        mine = [path for path in checkpoint.all_of(self.path) if checkpoint.is_ours(path)]
        theirs += [path.name for path in checkpoint.all_of(self.path) if path not in mine]
        if self.metrics.exists():
            rows, lost = parse(_bytes(self.path))
            theirs = [] if rows or mine or not lost else [self.metrics.name]
        elif mine:  # 只搬来了检查点和设置
            theirs = []
        if theirs:
            raise ConfigError(
                f"run.output：“{self.path}”里已经有 {'、'.join(theirs)}，不是训练写的，怕盖掉它。"
                "请换一个新的文件夹名。"
            )

    def recall(self, step: int):
        """从第 step 步的检查点接着练：它之后的记录作废，免得同一步记两次。"""
        self.since, rows = step, [m for m in read(self.path) if m["step"] <= step]
        self.kept = heldout.recall(self.path, rows)

    def claim(self, config: Config):
        """写下设置；接着练就留下 `recall` 的记录，从头练就清空。"""
        for half in self.path.glob(".*checkpoint-*.tmp"):  # 上次被杀时正在写的
            if HALF.fullmatch(half.name):
                shutil.rmtree(half, ignore_errors=True)
        # 记录在先：写到一半被杀，只剩 config.yaml 的话，下次会当成别人的
        write_text(self.metrics, "".join(json.dumps(m) + "\n" for m in self.kept))
        write_text(self.known, config.to_yaml())
        self._set_aside()

    def _set_aside(self):
        """作废的步画的样张：看着像这一次练出来的，挪到一边；记录能重新写，图不一定画得回来。"""
        home, moved = self.path / "samples", 0
        for shot in home.glob("*.png"):
            found = SHOT.fullmatch(shot.name)
            if found and int(found[1]) > self.since:
                with suppress(OSError):  # Windows 上正开着的挪不动：会重画，就盖掉它
                    (home / ASIDE).mkdir(exist_ok=True)
                    shot.replace(_free(home / ASIDE / shot.name))  # 退回过几次的，都留着
                    moved += 1
        if moved:
            begun = "从头练。" if self.since < 0 else f"从第 {self.since} 步接着练。更晚的 "
            warn(f"{begun}{moved} 张样张是先前画的，不是这一次的：没有删，挪到了“{home / ASIDE}”。")

    def release(self):
        """练完或停下：别的进程可以接着用这个文件夹了。"""
        self.lock.release()

    def abandon(self):
        """没练成：放开文件夹；它本来没有、现在还空着，就一起删掉。"""
        self.release()
        for folder in self.new:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def asked_to_stop(self) -> bool:
        """运行文件夹里出现 STOP 文件就是请它停下；看到就删掉，好让下次接着练。"""
        stop = self.path / "STOP"
        if not stop.exists() or stop.is_dir():
            return False
        with suppress(OSError):  # 删不掉也照样停
            stop.unlink()
        return True

    def append(self, facts: dict):
        """记下一步。

        Raises:
            ConfigError: 文件夹没了，或归了别的机器。
            LorakitError: 写不进；说最后的检查点在哪里。
        """
        self.lock.check()
        if facts.get("held_each"):
            facts = facts | {heldout.MARK: self.held_of}
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(facts) + "\n")
        except OSError as error:
            last = checkpoint.latest(self.path)
            raise LorakitError(
                f"写不进“{self.metrics}”：{plain_reason(error)}。"
                f"最后一个好的检查点：{last or '还没有'}；腾出空间，再运行同一条命令接着练。"
            ) from error


class Tail:
    """只读 metrics.jsonl 新长出来的：面板一秒看两次，不能每次从头读；换了一份就从头。"""

    def __init__(self, run: Path):
        self.path, self._place, self._file = run / "metrics.jsonl", 0, None

    def new(self) -> list[dict]:
        """上次看过之后的记录。"""
        if not self.path.is_file():  # 管道一打开就一直等
            return []
        try:
            with self.path.open("rb") as file:
                facts = self.path.stat()
                if self._file != facts.st_ino or facts.st_size < self._place:
                    self._file, self._place = facts.st_ino, 0
                file.seek(self._place)
                raw = file.read()
        except OSError:
            return []
        whole = raw[: raw.rfind(b"\n") + 1]  # 写到一半的，下次再看
        self._place += len(whole)
        return parse(whole)[0]


def _free(path: Path) -> Path:
    """path；已经有了就添上号码。"""
    named = (path.with_stem(f"{path.stem}-{n}") for n in count(2))
    return next(one for one in chain([path], named) if not one.exists())


def read(run: Path) -> list[dict]:
    """metrics.jsonl -> 每步一个字典；写到一半的最后一行不算，坏了的行跳过并说一声。"""
    rows, lost = parse(_bytes(run))
    if lost:
        shown = "、".join(map(str, lost[:5])) + " 等" * (len(lost) > 5)
        warn(f"“{run / 'metrics.jsonl'}”坏了 {len(lost)} 行，没有算（第 {shown} 行）。")
    return rows


def _bytes(run: Path) -> bytes:
    path = run / "metrics.jsonl"
    if not os.path.lexists(path):
        return b""
    try:
        return read_small(path, LONGEST)
    except Unreadable as error:
        raise LorakitError(f"“{path}”读不出来：{error}。把它移走，再来一次。") from error


def parse(raw: bytes) -> tuple[list[dict], list[int]]:
    """metrics.jsonl 的字节 -> (好的记录, 坏了的是第几行)。"""
    lines = raw.split(b"\n")
    rows, lost, width = [], [], None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, ROW)
            each = row.get("held_each")
            if each and len(each[0]) != (width := width or len(each[0])):
                raise Unreadable("明细的列数变了")  # 有几行由留出几张定，可以变
        except Unreadable:
            if number < len(lines):  # 没有换行的最后一行是写到一半的
                lost.append(number)
        else:
            rows.append(row)
    return rows, lost


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < BIGGEST


def _maybe(value) -> bool:
    return value is None or _number(value)


def _table(value) -> bool:
    """每张留出图一行、每个 t 一列，都是正数。"""
    if value is None or value == []:
        return True
    rows = value if isinstance(value, list) else []
    width = len(rows[0]) if rows and isinstance(rows[0], list) else 0
    fits = (
        isinstance(row, list) and len(row) == width and all(map(_positive, row)) for row in rows
    )
    return bool(width) and all(fits)


def _positive(value) -> bool:
    return _number(value) and value > 0


def _blocks(value) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_number, value.values())))


ROW = {
    "step": lambda step: type(step) is int and 0 <= step < BIGGEST,
    **dict.fromkeys(("loss?", "lr?", "grad_norm?", "t?", "seconds?", "held?"), _maybe),
    "held_each?": _table,
    heldout.MARK + "?": (str, type(None)),
    "delta?": _blocks,
}
