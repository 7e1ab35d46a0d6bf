"""检查点的文件夹 checkpoint-N：名字与步数互换、属于哪次训练、用哪一个，只在这里。"""

import re
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lorakit.errors import WeightsError

STATE = "state"  # 检查点里放优化器等的文件夹
FILE = "pytorch_lora_weights.safetensors"
# 给别人用的：LoRA，或全量微调的（太大就分成几个文件）
FULL = ("transformer/config.json", "transformer/diffusion_pytorch_model*.safetensors")


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


def newest(path: Path, holds: Callable[[Path], bool]) -> Path | None:
    """path 自己，或里面最新的检查点，要 holds 看得到权重；没有就是 None。

    Raises:
        WeightsError: 最新的那个丢了权重：不悄悄退回前一个。
    """
    inside = all_of(path)
    last = inside[-1] if inside else path
    if whole(path) or whole(last):
        return next((p for p in (path, last) if holds(p)), None)
    older = next((p for p in reversed(inside) if holds(p)), None)
    if older or (step_of(last) is not None and (last / STATE).is_dir()):
        raise WeightsError(f"“{last}”里的权重不见了（{'、'.join(lost(last))}）。{way_out(last)}")
    return None


def whole(path: Path) -> bool:
    """里面有没有给别人用的权重。"""
    return any((path / name).is_file() for name in (FILE, FULL[0]))


def lost(path: Path) -> list[str]:
    """检查点 path 里给别人用的文件，哪些不见了；练的是 LoRA 还是全部权重，看 state 里存的名字。"""
    names = FULL if _trains_all(path / STATE) else (FILE,)
    return [name.replace("*", "") for name in names if not any(path.glob(name))]


def _trains_all(state: Path) -> bool:
    try:
        with safe_open(next(state.glob("weights*.safetensors")), framework="np") as handle:
            names = handle.keys()
            return not any("lora_" in name or "lokr_" in name for name in names)
    except (StopIteration, SafetensorError, OSError):  # 看不出来：接不上的，多半是 LoRA
        return False


def way_out(lost: Path) -> str:
    """检查点 lost 的权重没了、坏了，怎么办：从它的 state 重新写一份，或用别的检查点。"""
    around = all_of(lost.parent)
    others = [one for one in around if one.name != lost.name and whole(one)]
    ways = [f"写明用别的检查点，例如 {one}" for one in others[-1:]]
    if (lost / STATE).is_dir() and around and around[-1].name == lost.name:
        again = "练完了的会从存着的状态重新写好它，没练完的就接着练、存新的"
        ways.insert(0, f"再运行一遍训练的那条命令，{again}")
    return f"{'；或'.join(ways) or '这次训练没有别的检查点了，请重新练'}。"


def settings_of(path: Path) -> Path | None:
    """LoRA 文件、检查点或结果文件夹 -> 那次训练的 config.yaml；单独的文件就是 None。"""
    folder = path if path.is_dir() else path.parent
    around = [folder] * path.is_dir() + [folder.parent] * (step_of(folder) is not None)
    return next((p / "config.yaml" for p in around if (p / "config.yaml").is_file()), None)
