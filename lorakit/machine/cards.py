"""显卡的表：手边没有卡，也能照数据表把量到的快慢推到别的卡上；推的是一个范围，不是实测。

数在随包的 `assets/bench/cards.json`，每张卡写着来处：显存 GB，bf16（稠密、fp32 累加）与 fp32 的
TFLOP/s，带宽与 PCIe 的 GB/s。同一个预设在 H100 上量过的，就拿那一次校准（`measured.json`）。
"""

import difflib
import re
from dataclasses import dataclass
from functools import cache

from lorakit.config import Config, load_config
from lorakit.errors import ConfigError
from lorakit.files import ASSETS, read_json

PLACE = ASSETS / "bench"
REACHED = 0.80  # H100 上量到的矩阵乘法（measured.json 的 ceiling）占数据表的几成
BUS = 0.87  # 同一台上量到的搬运（bus）占 PCIe 数据表的几成
ELEMENTWISE = 0.16  # H100 上一步里逐元素的占几成（lorakit bench --trace）：它看带宽，不看算力
ERROR = 1.15  # 预告与实测的差不超过这么多（tests/test_bench.py）
BASE = "H100"
CALIBRATED = (BASE, "H200")  # 拿哪种卡上量过的校准，先看前面的
_ROWS = [{
    "name": str, "memory": float, "bf16": (float, type(None)), "fp32": float, "fp8": bool,
    "bandwidth": float, "pcie": float, "source": str,
}]  # fmt: skip
_ALIKE = (  # 这些都一样，才算量过的那一种练法
    ("model", "path"), ("model", "quantize"), ("memory", "offload"), ("memory", "compile"),
    ("memory", "checkpointing"), ("data", "resolution"), ("train", "batch_size"), ("lora", "kind"),
    ("train", "grad_accum"), ("lora", "variant"),
)  # fmt: skip


@dataclass(frozen=True)
class Card:
    """一种显卡，数据表上的数。"""

    name: str
    memory: float  # GB
    bf16: float | None  # TFLOP/s；没有 bf16 的计算单元是 None
    fp32: float  # TFLOP/s
    fp8: bool  # 有没有 fp8 的计算单元
    bandwidth: float  # 显存带宽，GB/s
    pcie: float  # 到内存，GB/s
    source: str

    @property
    def peak(self) -> float:
        """练的时候用的那种精度的 TFLOP/s：没有 bf16 就是 fp32。"""
        return self.bf16 or self.fp32


@dataclass(frozen=True)
class Reach:
    """一张卡最慢、最快各当多大的矩阵乘法（TFLOP/s），搬运多快（GB/s），最快时再乘多少。"""

    slow: float
    fast: float
    bus: float
    lighter: float  # 带宽比算力富余，逐元素的那一份就短


@cache
def table() -> dict[str, Card]:
    """全部显卡，名字 -> 卡。"""
    return {row["name"]: Card(**row) for row in read_json(PLACE / "cards.json", _ROWS)}


def find(name: str) -> Card:
    """ "4090"、"rtx4090"、"RTX 4090" -> 卡。

    Raises:
        ConfigError: 表里没有；会说有哪些。
    """
    short = {_short(key): key for key in table()}
    asked = _short(str(name))
    if asked in short:
        return table()[short[asked]]
    near = difflib.get_close_matches(asked, short, 1)
    hint = f"是不是想写“{short[near[0]]}”？" if near else ""
    raise ConfigError(
        f"--card：表里没有叫“{name}”的显卡。{hint}有的是：{'、'.join(table())}。"
        "别的卡可以用 --tier 写显存有多少 GB，只算放不放得下。"
    )


def _short(name: str) -> str:
    return re.sub(r"nvidia|geforce|rtx|[\s_-]", "", name.lower())


def with_memory(tier: float) -> list[Card]:
    """标着 tier GB 的卡里最慢与最快的；一张也没有，就看比它大的里面最小的。"""
    large = [card for card in table().values() if card.memory >= tier and card.bf16]
    same = [card for card in large if card.memory == min(one.memory for one in large)]
    same.sort(key=lambda card: card.peak)
    return same[:1] + same[1:][-1:]


def reach(card: Card) -> Reach:
    """数据表的数 -> 实际多半能到多少：慢的一头与 H100 一样打八折，快的一头不打折。"""
    base = table()[BASE]
    known = card.bf16 == base.bf16  # 同一种计算单元：量过，就是八成
    compute, width = base.peak / card.peak, base.bandwidth / card.bandwidth
    lighter = 1 - ELEMENTWISE + ELEMENTWISE * min(1.0, width / compute)
    fast = REACHED if known else 1.0
    return Reach(REACHED * card.peak, fast * card.peak, BUS * card.pcie, lighter)


@cache
def _measured() -> tuple[tuple[dict, Config], ...]:
    rows = read_json(PLACE / "measured.json", [dict])
    return tuple((row, load_config(row["preset"], row["set"])) for row in rows)


def measured(config: Config, card: Card) -> dict | None:
    """这种练法在这种卡上量过的那一次；没有是 None。"""
    for row, one in _measured():
        alike = all(
            getattr(getattr(one, g), k) == getattr(getattr(config, g), k) for g, k in _ALIKE
        )
        if alike and card.name in row["card"].split():
            return row
    return None


def calibration(config: Config) -> dict | None:
    """这种练法在 CALIBRATED 里哪种卡上量过，就是那一次；都没有是 None。"""
    tried = (measured(config, table()[name]) for name in CALIBRATED)
    return next((row for row in tried if row), None)


def told(low: float, high: float) -> str:
    """一个范围怎么说：两头差不多就说一个数。"""
    a, b = f"{low:.2g}", f"{high:.2g}"
    return a if a == b else f"{a} 到 {b}"
