"""数据检查的结果：一个问题是什么、在哪个文件、怎么改；整份报告怎么写给人看。"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorakit.errors import DataError

SEVERITIES = {"error": "错误", "warning": "警告", "note": "说明"}
LISTED = 20  # 同一种问题最多列这么多个，三百张图都缺描述时报告仍然读得完
ALIKE = 3  # 原因一字不差的超过这么多个，就并成一条


@dataclass(frozen=True)
class Problem:
    """一个问题：轻重（error、warning、note）、代号、文件（说整个文件夹时是 None）、原因、改法。"""

    severity: str
    code: str
    path: Path | None
    reason: str
    mend: str

    @classmethod
    def error(cls, code: str, path: Path | None, reason: str, mend: str) -> Problem:
        """不改就不能训练的问题。"""
        return cls("error", code, path, reason, mend)

    @classmethod
    def warning(cls, code: str, path: Path | None, reason: str, mend: str) -> Problem:
        """能训练，但多半会影响效果的问题。"""
        return cls("warning", code, path, reason, mend)

    @classmethod
    def note(cls, code: str, reason: str) -> Problem:
        """自动处理好的事，只是告诉你。"""
        return cls("note", code, None, reason, "")

    def line(self, folder: Path) -> str:
        """写成一行：文件名相对于 folder。"""
        mend = f"怎么改：{self.mend}。" if self.mend else ""
        where = f"{relative(self.path, folder)}：" if self.path else ""
        return f"{where}{self.reason}。{mend}"


class Fault(DataError):
    """读一个文件时遇到的错误；problem 是报告里的那一条。"""

    def __init__(self, code: str, path: Path, reason: str, mend: str):
        self.problem = Problem.error(code, path, reason, mend)
        super().__init__(f"{path}：{reason}。怎么改：{mend}。")


@dataclass(frozen=True)
class Report:
    """一个文件夹的检查报告：文件夹、图的总数、可用的张数、所有问题。"""

    folder: Path
    total: int
    usable: int
    problems: tuple[Problem, ...]

    def of(self, severity: str) -> tuple[Problem, ...]:
        """这种轻重的问题。"""
        return tuple(p for p in self.problems if p.severity == severity)

    @property
    def errors(self) -> tuple[Problem, ...]:
        """不改就不能训练的问题。"""
        return self.of("error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """能训练，但多半会影响效果的问题。"""
        return self.of("warning")

    @property
    def notes(self) -> tuple[Problem, ...]:
        """自动处理好的事，只是告诉你。"""
        return self.of("note")

    def plus(self, problems: Sequence[Problem]) -> Report:
        """再加上几个问题的报告。"""
        return replace(self, problems=(*self.problems, *problems))

    def text(self, severities: Sequence[str] = tuple(SEVERITIES)) -> str:
        """整份中文报告：先总数，再错误、警告、说明；同一种超过 20 个只列前 20 个和总数。

        Args:
            severities: 只写这几种轻重；总数那一行总是全的。
        """
        counts = "，".join(f"{name} {len(self.of(key))} 个" for key, name in SEVERITIES.items())
        counts = counts if self.problems else "没有发现问题"
        lines = [f"{self.folder}：共 {self.total} 张图，可用 {self.usable} 张；{counts}。"]
        for severity in severities:
            chosen = self.of(severity)
            if not chosen:
                continue
            lines += ["", f"{SEVERITIES[severity]}（{len(chosen)}）"]
            for code in dict.fromkeys(p.code for p in chosen):
                same = self.gathered([p for p in chosen if p.code == code])
                lines += [f"  · {line}" for line in same[:LISTED]]
                if (left := len(same) - LISTED) > 0:
                    lines.append(f"  …… 同样的问题还有 {left} 个（共 {len(same)} 个）")
        return "\n".join(lines)

    def gathered(self, problems: Sequence[Problem]) -> list[str]:
        """一个问题一行；原因一字不差的多了就并成一条：没有描述，12 张：a、b、c……"""
        lines = []
        for key in dict.fromkeys((p.code, p.reason) for p in problems):
            same = [p for p in problems if (p.code, p.reason) == key]
            paths = [p.path for p in same if p.path]
            if len(paths) <= ALIKE:
                lines += [p.line(self.folder) for p in same]
                continue
            mend = f"怎么改：{same[0].mend}；其余照样。" if same[0].mend else ""
            lines.append(f"{key[1]}，{len(paths)} 张：{names(paths, self.folder)}。{mend}")
        return lines


def relative(path: Path, folder: Path) -> str:
    """相对于 folder 的名字；不在里面（或就是它自己）时原样。"""
    inside = path != folder and path.is_relative_to(folder)
    return path.relative_to(folder).as_posix() if inside else str(path)


def names(paths: Sequence[Path], folder: Path) -> str:
    """几个文件名连成一句；多于 5 个只写前 5 个和总数。"""
    shown = "、".join(relative(path, folder) for path in paths[:5])
    return f"{shown} 等 {len(paths)} 个" if len(paths) > 5 else shown
