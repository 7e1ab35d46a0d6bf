"""手边没有卡：那种卡放不放得下、每步几秒、一共几小时几元；都是估计，写成一个范围。

快慢从 H100、H200 上量过的推算：同一种练法先与那一次校准，再照两张卡的数据表换算（`cards.reach`）。
"""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from lorakit.config import Config, load_config, presets
from lorakit.errors import ConfigError
from lorakit.families import open_blank
from lorakit.machine import cards, doctor, estimate
from lorakit.machine.cards import Card
from lorakit.machine.doctor import BAD, GOOD, WARN, Check
from lorakit.machine.estimate import Estimate
from lorakit.memory.quantize import NO_FP8

HOUR = 3600
HINT = "估计：照数据表从 H100、H200 的实测推算；准数用 lorakit rehearse 在卡上量"
MEASURED = "在这种卡上量过"


@dataclass(frozen=True)
class Plan:
    """一种卡上怎么练、要多久；步数与时间是 (最快, 最慢)。"""

    card: Card
    preset: str | None  # 放得下的、最宽裕的；没有是 None
    steps: int = 0
    step: tuple[float, float] = (0.0, 0.0)  # 秒
    price: float | None = None  # 一小时多少元

    @property
    def hours(self) -> tuple[float, float]:
        low, high = self.step
        return low * self.steps / HOUR, high * self.steps / HOUR

    @property
    def yuan(self) -> tuple[float, float] | None:
        """训练这一段要多少元；下载、编码、出样张不在里面。"""
        return None if self.price is None else tuple(self.price * hour for hour in self.hours)

    @property
    def measured(self) -> bool:
        return self.step[0] == self.step[1]


def examine(
    config: Config, tier: float | None = None, online: bool = True,
    card: Card | None = None, price: float | None = None,
) -> list[Check]:  # fmt: skip
    """doctor 的体检，加上租来的卡上要多久、多少元。

    Args:
        tier: 只知道显存有多少 GB：说这么大的几种卡。
        card: 哪种卡。
        price: 一小时多少元，要与 card 一起。

    Raises:
        ConfigError: 给了价钱，没有说哪种卡；价钱不是正数。
    """
    if price is not None and (card is None or not 0 < price < float("inf")):
        raise ConfigError(f"--price：要大于 0 元，还要写 --card，得到 --price {price:g}。")
    if card is not None:
        tier, wanted, config = card.memory, config, _able(config, card)
    checks = doctor.examine(config, tier, online, memory=math.inf if card else None)
    if card is not None:
        checks = [_there(check, config, card) for check in checks]
        if wanted.model.quantize != config.model.quantize:
            checks.append(Check(WARN, "quantize", NO_FP8.format(card=card.name)))
    fits = any(check.key == "vram" and check.level == GOOD for check in checks)
    if tier is not None and fits:
        asked = _measure(config)
        some = [card] if card else cards.with_memory(tier)
        plans = [_plan(config, asked, one, "", price) for one in some]
        if plans:
            checks.append(Check(GOOD, "time", "；".join(map(_said, plans)) + _tail(plans)))
    return checks


def plans(
    base: str, some: Sequence[Card], prices: Mapping[str, float] | None = None, steps: int = 0
) -> list[Plan]:
    """同一个底模，每种卡各用哪个预设、要多久、多少元。

    Args:
        base: 这个底模的随便哪个预设。
        prices: 卡的名字（"4090" 也行）-> 一小时多少元；没写的不算钱。
        steps: 练几步；0 是预设写的步数。
    """
    price = {cards.find(name).name: yuan for name, yuan in (prices or {}).items()}
    found = []
    for card in some:
        best = next(
            (
                _plan(config, asked, card, name, price.get(card.name), steps)
                for name, config, asked in _siblings(base, card)
                if _fits(config, asked, card)
            ),
            Plan(card, None),
        )
        found.append(best)
    return found


def _siblings(base: str, card: Card) -> Iterator[tuple[str, Config, Estimate]]:
    """同一个底模的预设，从最宽裕的到最省的，改成那种卡上真正会用的样子。"""
    model = load_config(base).model
    for name in doctor.by_room(presets()):
        config = load_config(name)
        alike = (config.model.family, config.model.path) == (model.family, model.path)
        if alike and config.lora.kind == "lora":
            yield name, _able(config, card), _measured(name, *_changes(config, card))


@cache
def _measured(name: str, *changes: str) -> Estimate:
    return _measure(load_config(name, changes))


def _measure(config: Config) -> Estimate:
    dtype = torch.float32 if config.model.precision == "fp32" else torch.bfloat16
    with tempfile.TemporaryDirectory() as folder:
        family = open_blank(config, Path(folder), torch.device("meta"), dtype)
        return estimate.measure(family, config)


def _fits(config: Config, asked: Estimate, card: Card) -> bool:
    room = estimate.usable(card.memory)
    return doctor.fitting(asked, config, room)[1] <= doctor.SAFE * room


def _able(config: Config, card: Card) -> Config:
    """那种卡上真正会用的设置。"""
    changes = _changes(config, card)
    return load_config(config.to_dict(), changes) if changes else config


def _changes(config: Config, card: Card) -> list[str]:
    """没有 bf16 的用 fp32；没有 fp8 矩阵乘法的，只照 fp8 存。"""
    changes = []
    if not card.bf16 and config.model.precision == "auto":
        changes.append("model.precision=fp32")
    if not card.fp8 and config.model.quantize == "fp8-matmul":
        changes.append("model.quantize=fp8")
    return changes


def _plan(config, asked, card, preset="", price=None, steps=0) -> Plan:
    return Plan(card, preset, steps or config.train.steps, pace(config, asked, card), price)


def pace(config: Config, asked: Estimate, card: Card) -> tuple[float, float]:
    """那种卡上一步约几秒 -> (最快, 最慢)；就在那种卡上量过的，两头一样。"""
    exact = cards.measured(config, card)
    if exact and exact["tier"] is None:
        return exact["step"], exact["step"]
    row = card.bf16 and cards.calibration(config)
    tuned = 1.0
    if row:
        again = doctor.fitting(asked, config, estimate.usable(row["tier"] or row["memory"]))[0]
        known = (row["ceiling"], True, row["bus"] or doctor.BUS)
        tuned = row["step"] / doctor.seconds(asked, config, again, *known)
    can, again = (
        cards.reach(card),
        doctor.fitting(asked, config, estimate.usable(card.memory))[0],
    )
    fast, slow = (
        tuned * doctor.seconds(asked, config, again, top, True, can.bus)
        for top in (can.fast, can.slow)
    )
    return fast * can.lighter / (1 if row else cards.ERROR), slow * cards.ERROR


def _there(check: Check, config: Config, card: Card) -> Check:
    """一项的结论，换成租来的机器上的：这台机器少什么不要紧，那一台要有什么。"""
    if check.key == "gpu":
        slow = "" if card.bf16 else "；它没有 bf16 的计算单元，用 fp32：慢很多，多占一倍显存"
        return Check(
            WARN if slow else GOOD, "gpu", f"当作有一块 {card.name}（{card.memory:g} GB）{slow}"
        )
    if check.key == "host-need":
        return Check(GOOD, "host-need", f"租的机器{check.said.partition('，')[0]}")
    if check.key in ("quantize", "settings", "compile") and check.level == BAD:
        return replace(check, level=WARN)
    return check


def _said(plan: Plan) -> str:
    low, high = plan.hours
    said = (
        f"{plan.card.name} 上每步约 {cards.told(*plan.step)} 秒，"
        f"{plan.steps} 步约 {cards.told(low, high)} 小时"
    )
    return said if plan.yuan is None else f"{said}，约 {cards.told(*plan.yuan)} 元"


def _tail(some: Sequence[Plan]) -> str:
    return f"（{MEASURED if all(plan.measured for plan in some) else HINT}）"


def text(base: str, prices: Mapping[str, float] | None = None) -> str:
    """每种卡一行的表。"""
    lines = []
    for plan in plans(base, list(cards.table().values()), prices):
        head = f"{plan.card.name}（{plan.card.memory:g} GB）"
        if plan.preset is None:
            lines.append(f"{head}：没有放得下的预设")
            continue
        note = "" if plan.card.bf16 else "；没有 bf16，用 fp32"
        lines.append(f"{head}：{plan.preset}，{_said(plan).partition('上')[2]}{note}")
    sources = [f"  {card.name}：{card.source}" for card in cards.table().values()]
    return "\n".join([*lines, f"（{HINT}。卡的数来自：", *sources, "）"])
