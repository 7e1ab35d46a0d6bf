"""运行文件夹与记录：config.yaml 认领它，metrics.jsonl 一行一步。"""

import json
from pathlib import Path

from lorakit import checkpoint
from lorakit.config import Config, differences, load_config
from lorakit.errors import ConfigError

# 续训时可以改的设置：它们不影响已经练过的那些步
CHANGEABLE = (
    "train.steps", "train.save_every", "train.keep", "sample.", "eval.every", "memory.", "run.",
)  # fmt: skip


class RunFolder:
    """一次训练的结果文件夹：先核对（能写、不是另一份设置的结果），一切就绪才 `claim` 认领。"""

    def __init__(self, config: Config):
        self.path = config.run.output
        self.metrics = self.path / "metrics.jsonl"
        self.known = self.path / "config.yaml"
        if not checkpoint.all_of(self.path):
            self._try_writing()
        elif config.run.resume == "never":
            raise ConfigError(
                f"run.output：“{self.path}”里已经有检查点，而 run.resume 是 never。"
                "换一个 run.output，或改回 auto 接着练。"
            )
        elif self.known.is_file():
            self._compare(load_config(self.known), config)

    def _try_writing(self):
        """真写一次再擦掉：等练完才发现写不进就晚了。"""
        new = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        checkpoint.write_text(self.path / ".try", "").unlink()
        for folder in new:
            folder.rmdir()

    def claim(self, config: Config, step: int):
        """写下设置；检查点之后的记录作废，免得同一步记两次，从头练就清空。"""
        kept = [m for m in read(self.path) if m["step"] <= step] if step else []
        checkpoint.write_text(self.known, config.to_yaml())
        checkpoint.write_text(self.metrics, "".join(json.dumps(m) + "\n" for m in kept))

    def _compare(self, old: Config, new: Config):
        changed = {
            name: pair
            for name, pair in differences(old, new).items()
            if not name.startswith(CHANGEABLE)
        }
        if changed:
            listed = "".join(f"\n  - {n}：原来 {a}，现在 {b}" for n, (a, b) in changed.items())
            raise ConfigError(
                f"run.output：“{self.path}”里是另一份设置的结果：{listed}\n"
                "换一个 run.output，或改回原来的设置接着练。"
            )

    def append(self, facts: dict):
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")


def read(run: Path) -> list[dict]:
    """metrics.jsonl -> 每步一个字典；写到一半的最后一行不算。"""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
