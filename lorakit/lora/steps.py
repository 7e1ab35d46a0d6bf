"""检查点的文件夹 checkpoint-N：名字与步数互换、属于哪次训练，只在这里。"""

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


def settings_of(path: Path) -> Path | None:
    """LoRA 文件、检查点或结果文件夹 -> 那次训练的 config.yaml；单独的文件就是 None。"""
    folder = path if path.is_dir() else path.parent
    around = [folder.parent] if step_of(folder) is not None else [folder] if path.is_dir() else []
    return next((p / "config.yaml" for p in around if (p / "config.yaml").is_file()), None)
