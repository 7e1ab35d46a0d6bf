"""公开的表：lorakit 与别的训练器在同一种卡上量到的快慢与显存，谁的代码、换掉了什么、哪里不公平。

数都在随包的 `assets/bench`：`measured.json` 是 `lorakit bench` 在卡上写下的，`peers.json` 是并排
量的那几次。
倍数用对方最好的一步，除以这一档里我们的中位数：对我们不利的那一头。
"""

import re
import unicodedata
from dataclasses import asdict, dataclass
from typing import Any

from lorakit.files import ASSETS, read_json

PLACE = ASSETS / "bench"
OURS = "lorakit"
USUAL, PLAIN = "每步现编码", "diffusers+PEFT"
_OTHER_WAYS = {  # lorakit bench --baseline seed 与 --plain 在同一次运行里量的：键 -> (谁, 怎么走)
    "seed": (USUAL, "同一次运行里的常见写法"), "plain": (PLAIN, "同一次运行里的，不重算"),
}  # fmt: skip
WIDE = 100  # 一行最多占几格；一个汉字两格
_NUMBER = (float, type(None))
_MEASURED = [{
    "date": str, "card": str, "preset": str, "command": str, "step": float, "allocated": float,
    "host": _NUMBER, "seed?": float, "seed_allocated?": float, "plain?": float,
    "plain_allocated?": float,
}]  # fmt: skip
_PEERS = {
    "date": str, "card": str, "versions": str, "settings": str, "clock": str,
    "classes": [{"name": str, "key": str, "presets": [str]}],
    "peers": [{"name": str, "repo": str, "commit": str, "own": str, "replaced": str}],
    "rows": [{
        "class": str, "peer": str, "call": int, "settings": str, "best": _NUMBER, "step": float,
        "allocated": float, "reserved": float, "host": _NUMBER, "fits": bool,
    }],
    "unmeasured": [str], "threats": [str],
}  # fmt: skip
# 列：名字、占几格
_COLUMNS = (
    ("训练器", 16), ("日期 卡 次", 12), ("设置", 26), ("最好", 5), ("中位", 5), ("显存", 5),
    ("内存", 5), ("3000步", 6), ("倍", 4),
)  # fmt: skip


_NOTES = (
    "时间是秒，显存（张量占的峰值）与内存是 GiB。lorakit 的行是 `lorakit bench` 后面的那些，加 "
    "--tier 的只给那么多显存；只记中位数，录成图的各次差不到 2%。有“次”的是和别的训练器并排量的。",
    "“倍”是这一行最好的一步（没有就是中位数）除以这一档里 lorakit 头一行的中位数："
    "大于 1 就比它慢。",
    f"{USUAL}：同一次运行里的常见写法，VAE 与文本编码器每步都算，每块重算，不编译"
    "（全量的是 adamw8bit 直接更新 bf16 的权重）。小卡会比这里慢。",
    f"{PLAIN}：同一次运行里只用 diffusers 与 PEFT 的循环，缓存好的输入，不编译，不重算。",
)


@dataclass(frozen=True)
class Line:
    """表里的一行；没有量的是 None。"""

    trainer: str
    date: str
    card: str
    settings: str
    best: float | None  # 秒，最好的一步
    step: float  # 秒，中位数
    allocated: float | None  # GiB，显存峰值
    host: float | None  # GiB，内存
    call: int | None = None  # 第几次并排量的；相同的是同一台机器
    fits: bool = True  # 放得进这一档的卡
    ratio: float = 1.0  # 最好的一步（没有就是中位数）除以这一档里我们的中位数


@dataclass(frozen=True)
class Group:
    """一档：同一个模型、差不多大的卡。"""

    key: str
    name: str
    lines: tuple[Line, ...]

    @property
    def ours(self) -> Line:
        """拿来比的那一行：这一档的预设，本来的样子。"""
        return self.lines[0]

    @property
    def nearest(self) -> Line | None:
        """放得进这一档的别的训练器里，最好的一步最快的；没有别人是 None。"""
        others = [one for one in self.lines if one.best is not None and one.fits]
        return min(others, key=lambda one: one.best, default=None)

    def verdict(self) -> str:
        """谁最近，差多少。"""
        near = self.nearest
        if near is None:
            return ""
        said = (
            f"最近的是 {near.trainer}：最好一步 {near.best:.3f} 秒，{_gib(near.allocated)} GiB；"
            f"lorakit {self.ours.step:.3f} 秒，{_gib(self.ours.allocated)} GiB，"
        )
        card = self.ours.card.replace("NVIDIA ", "")
        where = "" if self.ours.card == near.card else f"（我们的在 {card} 上量的）"
        if near.ratio < 1:
            return f"{said}速度只有它的 {near.ratio:.2f} 倍{where}：这一档还不如它。"
        return f"{said}速度至少是它的 {near.ratio:.2f} 倍{where}。"


@dataclass(frozen=True)
class Table:
    """整张表。"""

    groups: tuple[Group, ...]
    facts: dict[str, Any]  # peers.json 里除了行以外的

    def group(self, key: str) -> Group:
        """按名字取一档，例如 "qwen-24"。"""
        return next(group for group in self.groups if group.key == key)

    def data(self) -> dict[str, Any]:
        """给程序读的样子。"""
        groups = [
            asdict(group)
            | {"nearest": group.nearest and asdict(group.nearest), "verdict": group.verdict()}
            for group in self.groups
        ]
        return {"groups": groups, **self.facts}

    def text(self) -> str:
        """给人看的样子，一行不超过 WIDE 格。"""
        facts = self.facts
        lines = [
            *_fold(facts["settings"] + "。"),
            *(row for note in _NOTES for row in _fold(note)),
        ]  # fmt: skip
        for group in self.groups:
            lines += ["", f"【{group.name}】", _row([name for name, _ in _COLUMNS])]
            lines += [row for line in group.lines for row in _told(line)]
            lines += _fold(group.verdict())
        lines += ["", f"【并排量的那几次】{facts['date']}，{facts['card']}"]
        lines += [*_fold(facts["versions"] + "。"), *_fold(facts["clock"])]
        for peer in facts["peers"]:
            lines += ["", *_fold(f"{peer['name']}（{peer['repo']}，{peer['commit']}）")]
            lines += _fold(f"它自己的：{peer['own']}。", "  ")
            lines += _fold(f"换掉的：{peer['replaced']}。", "  ")
        for title, key in (("没有量成的", "unmeasured"), ("哪里不公平", "threats")):
            lines += ["", f"【{title}】"]
            for i, one in enumerate(facts[key], 1):
                lines += _fold(f"{i}. {one.removesuffix('。')}。", "   ")
        return "\n".join(lines)


def load() -> Table:
    """读随包的两个数据文件，排成表。

    Raises:
        Unreadable: 文件坏了。
    """
    measured = read_json(PLACE / "measured.json", _MEASURED)
    peers = read_json(PLACE / "peers.json", _PEERS)
    homes = {name: one["key"] for one in peers["classes"] for name in one["presets"]}
    names = {one["key"]: one["name"] for one in peers["classes"]}
    found: dict[str, list[Line]] = {key: [] for key in names}
    asis = {(row["preset"], row["card"]) for row in measured if not row["set"]}
    for row in sorted(measured, key=lambda row: bool(row["set"])):  # 每一档里，预设本来的样子在前
        here, lines = homes.get(row["preset"]), _measured(row)
        if here and not row["set"] and (row["preset"], peers["card"]) not in asis:
            found[here][:0] = lines  # 这个预设只在别的卡上量过：还是这一档的头一行
            continue
        if here is None or row["card"] != peers["card"]:  # 别的卡、没有分档的预设，各是一档，在最后
            here = f"{row['preset']}，{row['card']}"
        found.setdefault(here, []).extend(lines)
    for row in peers["rows"]:
        found[row["class"]].append(_beside(row, peers))
    facts = {key: value for key, value in peers.items() if key not in ("rows", "classes")}
    groups = (
        Group(key, names.get(key, key), _compared(lines)) for key, lines in found.items() if lines
    )
    return Table(tuple(groups), facts)


def _measured(row: dict) -> list[Line]:
    """measured.json 的一行 -> 我们的一行，量了常见写法的再加它的一行。"""
    said = re.sub(r" --(baseline seed|plain)", "", row["command"].removeprefix("lorakit bench "))
    when = row["date"], row["card"]
    lines = [Line(OURS, *when, said, None, row["step"], row["allocated"], row["host"])]
    for way, (trainer, how) in _OTHER_WAYS.items():
        if way in row:
            size = row.get(f"{way}_allocated")
            lines.append(Line(trainer, *when, how, None, row[way], size, None))
    return lines


def _beside(row: dict, peers: dict) -> Line:
    told = row["settings"] if row["fits"] else f"{row['settings']}（放不进这一档，不算）"
    return Line(
        row["peer"], peers["date"], peers["card"], told, row["best"], row["step"],
        row["allocated"], row["host"], row["call"], row["fits"],
    )  # fmt: skip


def _compared(lines: list[Line]) -> tuple[Line, ...]:
    """算出倍数；我们的在前，别人的从快到慢。"""
    base = lines[0].step
    done = [Line(**(asdict(line) | {"ratio": (line.best or line.step) / base})) for line in lines]
    mine = [line for line in done if line.best is None]
    return (*mine, *sorted((one for one in done if one.best), key=lambda one: one.best))


# ---- 排版：一个汉字占两格 ----


def width(text: str) -> int:
    """占几格。"""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _cut(text: str, room: int) -> list[str]:
    """折成几行，每行不超过 room 格；先在空格与标点后面断，不得已才断在字中间。"""
    rows = [""]
    for piece in re.findall(r"（?[^\s，；：、。（]*[，；：、。\s]?", text):
        letters = list(piece) if width(piece.rstrip()) > room else [piece]
        for part in letters:
            if width(rows[-1]) + width(part.rstrip()) > room:
                rows.append("")
            rows[-1] += part
    return [row.rstrip() for row in rows]


def _fold(text: str, indent: str = "") -> list[str]:
    """一段话；第二行起缩进。"""
    if not text:
        return []
    first, *rest = _cut(text, WIDE - len(indent))
    return [first if not indent or text[0].isdigit() else indent + first,
            *(indent + row for row in rest)]  # fmt: skip


def _row(cells: list[str]) -> str:
    padded = (
        cell + " " * (room - width(cell)) for cell, (_, room) in zip(cells, _COLUMNS, strict=True)
    )
    return "  ".join(padded).rstrip()


def _told(line: Line) -> list[str]:
    """一行，设置长的折到下面。"""
    first, *rest = _cut(line.settings, _COLUMNS[2][1])
    card = re.search(r"\b[A-Z]?\d{2,4}\b", line.card)
    when = f"{line.date[5:]} {card[0] if card else line.card[:4]} {line.call or ''}"
    best = "" if line.best is None else f"{line.best:.3f}"
    cells = [line.trainer, when, first, best, f"{line.step:.3f}", _gib(line.allocated),
             _gib(line.host), f"{line.step * 50:.0f} 分", f"{line.ratio:.2f}"]  # fmt: skip
    return [_row(cells), *(_row(["", "", more, *[""] * 6]) for more in rest)]


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
