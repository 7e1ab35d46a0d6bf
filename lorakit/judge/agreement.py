"""留出集的损失与画出来的好坏，名次合不合：不同的训练之间，与同一次训练的几个步数之间。

合得上，才能靠损失挑设置、挑检查点。用 Spearman 的等级相关：1 是损失越低画得越好（名次全对上），
0 是没有关系，-1 是损失越低画得越差；区间是把训练有放回地重抽得来的（bootstrap，Efron 1979）。
"""

from collections.abc import Callable, Sequence

import numpy as np

from lorakit.judge import arena

FEW = 6  # 少于几次训练就不算
DRAWS = 2000  # 重抽几回
TAILS = (2.5, 97.5)


def agreement(rows: Sequence[dict], tasks: Sequence[str]) -> list[dict]:
    """每道课题一行：between（各次训练练完时的）与 within（一次训练里各步的平均），各是
    [相关, 下限, 上限, 几次训练]；算不了的是 None。"""
    made = []
    for task in tasks:
        runs = [row for row in rows if row["task"] == task and row["held"]]
        ends = np.array([_end(row) for row in runs]).reshape(-1, 2)
        inside = [_inside(row) for row in runs]
        inside = np.array([one for one in inside if one is not None])
        if len(runs) >= FEW:
            made.append({
                "task": task, "between": _spread(ends, _pairs), "within": _spread(inside, _mean),
            })  # fmt: skip
    return made


def text(made: Sequence[dict]) -> str:
    """中文的几行；一行也算不了就是空的。"""
    if not made:
        return ""
    lines = [
        "",
        "",
        "留出集的损失越低，画得越好吗（等级相关与 95% 区间；1 是名次全对上，-1 是全反）",
    ]
    for one in made:
        parts = (("不同的训练之间", one["between"]), ("同一次训练里", one["within"]))
        said = [f"{word} {_said(found)}" for word, found in parts if found]
        lines.append(f"  {one['task']:<20} {'；'.join(said) or '都一样，算不了'}")
    return "\n".join(lines)


def _said(found: list) -> str:
    value, low, high, count = found
    return f"{value:+.2f}（{low:+.2f} 到 {high:+.2f}，{count} 次）"


def _end(row: dict) -> tuple[float, float]:
    """练完时 (损失, 画得多好)。"""
    return row["held"][max(row["held"], key=int)], arena.merit(row)


def _inside(row: dict) -> float | None:
    """一次训练里，画过的各步的相关；不到三步、或者都一样就是 None。"""
    steps = [step for step in row["looks"] if step in row["held"]]
    if len(steps) < 3:
        return None
    marks = [arena.merit({**row, "looks": {step: row["looks"][step]}}) for step in steps]
    return spearman([row["held"][step] for step in steps], marks, falling=True)


def _pairs(sample: np.ndarray) -> float | None:
    return spearman(sample[:, 0], sample[:, 1], falling=True)


def _mean(sample: np.ndarray) -> float:
    return float(sample.mean())


def _spread(sample: np.ndarray, measure: Callable) -> list | None:
    """一串训练 -> [相关, 下限, 上限, 几次]。"""
    if len(sample) < FEW or (value := measure(sample)) is None:
        return None
    rng = np.random.default_rng(0)
    again = [measure(sample[rng.integers(len(sample), size=len(sample))]) for _ in range(DRAWS)]
    low, high = np.percentile([one for one in again if one is not None], TAILS)
    return [value, float(low), float(high), len(sample)]


def spearman(a, b, falling: bool = False) -> float | None:
    """两串数的等级相关，一样大的取平均名次；falling 是 a 越小越好。有一串全一样就是 None。"""
    one, two = _ranks(a), _ranks(b)
    if one.std() == 0 or two.std() == 0:
        return None
    found = float(np.corrcoef(one, two)[0, 1])
    return -found if falling else found


def _ranks(values) -> np.ndarray:
    _, place, count = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]
