"""题库：book_01 到 book_05 是每一本的题，exam 是前测与后测，recall 是每本开头的回想。"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

HOME = Path(__file__).parent
MOMENTS = ("pre", "post")  # 前测、后测


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


def _question(name: str, row: Mapping) -> Question:
    options = tuple(pair for option in row["options"] for pair in option.items())
    return Question(name, row["ask"], options, ord(row["answer"]) - ord("A"))


def _read(file: str) -> dict:
    return yaml.safe_load((HOME / file).read_text(encoding="utf-8"))


@cache
def bank() -> dict[str, Question]:
    """五本里全部先猜后看的题，按书的次序。"""
    files = sorted(file.name for file in HOME.glob("book_*.yaml"))
    return {name: _question(name, row) for file in files for name, row in _read(file).items()}


@cache
def exam(moment: str) -> tuple[Question, ...]:
    """前测（pre）或后测（post）的题：两次一题对一题，考的是同一件事。"""
    return tuple(_question(name, pair[moment]) for name, pair in _read("exam.yaml").items())


@cache
def recall() -> dict[str, tuple[Question, ...]]:
    """一本（"02" 到 "05"）开头回想的题，都是前几本的。"""
    return {
        book: tuple(_question(name, row) for name, row in rows.items())
        for book, rows in _read("recall.yaml").items()
    }


@cache
def clinic() -> dict[str, Question]:
    """诊断室的题：一个病人一道，病因是哪一个。"""
    return {name: _question(name, row) for name, row in _read("clinic.yaml").items()}
