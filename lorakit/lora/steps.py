"""检查点的文件夹 checkpoint-N：名字与步数互换，只在这里。"""

import re
from pathlib import Path


def folder_of(run: Path, step: int) -> Path:
    """第 step 步的检查点在哪里（不一定存了）。"""
    return run / f"checkpoint-{step}"


def step_of(path: Path) -> int | None:
    """检查点的文件夹 -> 第几步；不是检查点就是 None。"""
    found = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(found[1]) if found else None


def all_of(run: Path) -> list[Path]:
    """run 里的检查点，从旧到新。"""
    return sorted((p for p in run.glob("checkpoint-*") if step_of(p) is not None), key=step_of)
