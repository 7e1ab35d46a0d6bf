"""题库：book_01 到 book_05.yaml 是每一本的题，exam.yaml 是前测与后测。"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

HOME = Path(__file__).parent


@dataclass(frozen=True)
class Question:
    """一道选择题；options 是 (选项, 选了它时说的话)，对的那一项的话说为什么对。"""

    name: str
    text: str
    options: tuple[tuple[str, str], ...]
    right: int  # 第几项对，从 0 数起

    @property
    def why(self) -> str:
        """为什么对。"""
        return self.options[self.right][1]


def _read(file: Path) -> list[Question]:
    rows = yaml.safe_load(file.read_text(encoding="utf-8"))
    return [
        Question(
            name,
            row["ask"],
            tuple(pair for option in row["options"] for pair in option.items()),
            ord(row["answer"]) - ord("A"),
        )
        for name, row in rows.items()
    ]


@cache
def bank() -> dict[str, Question]:
    """五本里全部的题，按书的次序。"""
    return {one.name: one for file in sorted(HOME.glob("book_*.yaml")) for one in _read(file)}


@cache
def exam() -> tuple[Question, ...]:
    """前测与后测的题。"""
    return tuple(_read(HOME / "exam.yaml"))
