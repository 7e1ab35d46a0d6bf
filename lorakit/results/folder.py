"""运行文件夹与记录：config.yaml 认领它，metrics.jsonl 一行一步。"""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

from lorakit.config import Config
from lorakit.errors import ConfigError
from lorakit.files import write_text
from lorakit.results import checkpoint, sameness
from lorakit.results.lock import Lock


class RunFolder:
    """一次训练的结果文件夹：先占住、核对（能写、不是另一份设置的结果），一切就绪才 `claim`。"""

    def __init__(self, config: Config, processes: int = 1):
        """processes 是这次有几个进程。"""
        self.path, self.processes = config.run.output, processes
        self.metrics = self.path / "metrics.jsonl"
        self.known = self.path / "config.yaml"
        self.new = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.lock = Lock(self.path)
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

    def _refuse_foreign(self):
        """文件夹里有不是训练写的同名文件，就拒绝：不能盖掉别人写的东西。"""
        theirs = [name for name in ("config.yaml", "README.md") if (self.path / name).exists()]
        if theirs and not self.metrics.exists():
            raise ConfigError(
                f"run.output：“{self.path}”里已经有 {'、'.join(theirs)}，不是训练写的，怕盖掉它。"
                "请换一个新的文件夹名。"
            )

    def claim(self, config: Config, step: int):
        """写下设置；检查点之后的记录作废，免得同一步记两次，从头练就清空。"""
        kept = [m for m in read(self.path) if m["step"] <= step] if step else []
        for half in self.path.glob(".checkpoint-*.tmp"):  # 上次被杀时正在写的
            shutil.rmtree(half, ignore_errors=True)
        # 记录在先：写到一半被杀，只剩 config.yaml 的话，下次会当成别人的
        write_text(self.metrics, "".join(json.dumps(m) + "\n" for m in kept))
        write_text(self.known, config.to_yaml())

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
        if not stop.exists():
            return False
        stop.unlink()
        return True

    def append(self, facts: dict):
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")


def read(run: Path) -> list[dict]:
    """metrics.jsonl -> 每步一个字典；写到一半的最后一行不算。"""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = []
    for i, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if i < len(lines) - 1 and line.endswith("}"):
                raise
    return rows
