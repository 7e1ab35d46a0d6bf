"""判断学会了没有：只看留出集的损失，与没有 LoRA 时同一张图、同一个 t 逐个比，连误差一起说。"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

SURE = 2.0  # 变化要超过几倍标准误，才算不是碰巧
LEAST = 0.005  # 比这还小的变化，就算不是碰巧，画面上也看不出来
BROKEN = 0.05  # 平均好了，却有一个 t 差了这么多：模型多半只会猜个大概了


@dataclass(frozen=True)
class Verdict:
    """一句判断：word 是“学到了”“还没”“过拟合”“没有留出集”之一；best 是留出集损失最低的步数。"""

    word: str
    sentence: str
    best: int | None = None


def judge(metrics: list[dict]) -> Verdict:
    """metrics.jsonl 的记录 -> 判断。

    变化用对数比的平均：每张留出图、每个 t 各算一个 ln(现在 / 以前)，标准误由它们的散布估计；
    8 个 t 的损失相差十倍，用比值才不会只看见最大的那个。
    """
    table = {m["step"]: np.array(m["held_each"]) for m in metrics if m.get("held_each")}
    if len(table) < 2 or 0 not in table:
        return Verdict(
            "没有留出集",
            "没有留出集的损失，看不出学没学会：图要 4 张以上，eval.holdout（例如 0.1）"
            "和 eval.every（例如 50）都不能是 0。",
        )
    steps = sorted(table)
    best, last = min(steps, key=lambda step: table[step].mean()), steps[-1]
    gain, spread = _change(table[0], table[best])
    if best == 0 or gain + SURE * spread >= 0 or gain > -LEAST:
        now = _change(table[0], table[last])
        how = "更差了" if now[0] - SURE * now[1] > 0 else "小得看不出来，或在误差之内"
        said = f"练了 {last} 步，留出集损失变化 {_percent(*now)}，{how}。"
        return Verdict("还没", said + _advice(*now), best)
    learned = f"留出集损失比没有 LoRA 时变化 {_percent(gain, spread)}（第 {best} 步最低）。"
    place, worse, doubt = _worst(table[0], table[best])
    if worse - SURE * doubt > BROKEN:
        said = f"{learned}可是 t = {place:.2f} 时反而差了 {_percent(worse, doubt)}，"
        said += "画面多半是坏的：先看样张，再把学习率除以 3 重练。"
        return Verdict("还没", said, best)
    back, wobble = _change(table[best], table[last])
    if back - SURE * wobble > 0:
        return Verdict(
            "过拟合",
            f"{learned}之后又升了 {_percent(back, wobble)}，开始死记训练图了："
            f"请用第 {best} 步前后的检查点。",
            best,
        )
    return Verdict("学到了", learned, best)


def held_by_step(metrics: list[dict]) -> dict[int, float]:
    """{步数: 留出集的损失}，只有检验过的那些步。"""
    return {m["step"]: m["held"] for m in metrics if m.get("held") is not None}


def best_of(metrics: list[dict], steps: Iterable[int]) -> int | None:
    """这几步里留出集损失最低的一步；都没有检验过就是 None。"""
    held = held_by_step(metrics)
    known = [step for step in steps if step in held]
    return min(known, key=held.get) if known else None


def _change(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """逐个 ln(after / before) 的平均与标准误；负的是变好。"""
    ratio = np.log(after / before).ravel()
    return float(ratio.mean()), float(ratio.std(ddof=1) / np.sqrt(len(ratio)))


def _worst(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """变化最差的一个 t：它是多少、变化与标准误（只有一张留出图时是 0）。"""
    ratio = np.log(after / before)  # (图, t)
    column = int(ratio.mean(0).argmax())
    spread = ratio[:, column].std(ddof=min(1, len(ratio) - 1)) / np.sqrt(len(ratio))
    return (column + 0.5) / ratio.shape[1], float(ratio[:, column].mean()), float(spread)


def _percent(change: float, spread: float) -> str:
    digits = 0 if abs(change) >= 0.02 else 1
    return f"{np.expm1(change):+.{digits}%} ± {np.exp(change) * spread:.{digits}%}"


def _advice(change: float, spread: float) -> str:
    if change - SURE * spread > 0:
        return "越练越差：学习率多半太大，除以 3 再试。"
    return "可以多练几倍的步数，或把学习率乘 3；也看看描述说的是不是图里的东西。"
