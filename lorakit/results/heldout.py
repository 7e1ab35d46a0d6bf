"""留出集的损失只和同一批留出图上的比：每一行记着量的是哪一批（held_of）。

接着练时留出的图可能换了（添了图，改了图、描述）：以前的行都留着，只是不再和后来的一起比。
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorakit.results import checkpoint
from lorakit.results.sameness import KEY, WHAT

MARK = "held_of"
LENGTH = 16  # 指纹取几个字
SEEN = ("picture", *(name for name in WHAT if name != "repeats"))  # 改了它，损失就不是那一个了


def mark(trained_on: object) -> str | None:
    """sameness.facts 记的 -> 这一批留出图的指纹；没有就是 None。次序也算：噪声跟着它。"""
    data = trained_on.get("data") if isinstance(trained_on, Mapping) else None
    rows = data.get("held") if isinstance(data, Mapping) else None
    if not rows or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return None
    seen = json.dumps([[row.get(name) for name in SEEN] for row in rows])
    return hashlib.sha256(seen.encode()).hexdigest()[:LENGTH]


def measured(metrics: Sequence[dict]) -> list[dict]:
    """检验过的那些行。"""
    return [m for m in metrics if m.get("held") is not None or m.get("held_each")]


def same(metrics: Sequence[dict], step: int | None = None) -> list[dict]:
    """检验过、量的是同一批留出图的那些行，按步数排。

    Args:
        step: 看哪一步量的那一批（没有正好那一步的，用最近的）；不写就是最后一次检验的那一批。
    """
    rows = measured(metrics)
    if not rows:
        return []
    anchor = rows[-1]
    if step is not None:  # 同一步量过两批的，听后一次的
        anchor = min(reversed(rows), key=lambda m: (abs(m["step"] - step), m["step"]))
    return sorted((m for m in rows if batch(m) == batch(anchor)), key=lambda m: m["step"])


def batch(row: dict) -> tuple:
    """量的是哪一批；以前的行没有记，只知道有几张。"""
    return row.get(MARK), len(row.get("held_each") or ())


def of(metrics: Sequence[dict], now: str | None) -> list[dict]:
    """量的是 now 这一批的那些行。"""
    return [m for m in measured(metrics) if m.get(MARK) == now]


def mixed(metrics: Sequence[dict], now: str | None) -> bool:
    """有没有量的是别的一批的行。"""
    return any(m.get(MARK) != now for m in measured(metrics))


def recall(run: Path, metrics: Sequence[dict]) -> list[dict]:
    """以前的行没有记是哪一批：它后面最近的检查点记着用的哪些图，照它补上；张数对不上的不补。"""
    known = {}
    for path in checkpoint.all_of(run):
        trained_on = checkpoint.facts_of(path).get(KEY)
        if found := mark(trained_on):
            known[checkpoint.step_of(path)] = found, len(trained_on["data"]["held"])
    rows = []
    for row in metrics:
        after = min((step for step in known if step >= row["step"]), default=None)
        if row.get("held_each") and MARK not in row and after is not None:
            found, count = known[after]
            row = row | ({MARK: found} if len(row["held_each"]) == count else {})
        rows.append(row)
    return rows
