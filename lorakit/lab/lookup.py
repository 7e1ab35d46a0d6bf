"""在五本里查一件事：哪一本、哪一节、哪一段折着的里讲过。排名是 SQLite 的全文检索（FTS5）算的。"""

import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from lorakit.errors import LorakitError
from lorakit.files import read_json
from lorakit.inert import in_html
from lorakit.lab.display import ROOT, publish
from lorakit.lab.spoken import only_filler, ours

MOST = 6  # 一次列几处
WEIGHTS = "4, 2, 1, 0.7"  # 标题里有的，比正文里有的要紧；各列见 _columns
SHORT = 2  # 问的一截不超过几个字，才一个个字地找：长的，两个两个的已经够了
COMMON = 0.12  # 十段里有一段多都有的词说不出是哪一段；只有这样的词才用它
RECAP = "你学会了什么"  # 一本末尾的小结：讲它的是前面那一节
LONG = 60  # 摘出来的那一句最多几个字
BOOK = 1 << 30  # 字节；一本练习册再大也没有这么大
CELLS = {"cells": [{"cell_type": str, "source": (str, list), "id?": str}]}
HEADING = re.compile(r"#{1,4} +(.+)")
FOLD = re.compile(r"<details><summary>(.*?)</summary>(.*?)</details>", re.DOTALL)
EXAMPLE = re.compile(r"lab\.find\([^)]*\)")
WORD = re.compile(r"[a-z0-9_.]*[a-z0-9]|[\u4e00-\u9fff]+")
DRESS = re.compile(r"<[^>]*>|\*\*|`|（点开看）|（选读）|\]\([^)]*\)|\[")


class Passage(NamedTuple):
    """一段：在哪个文件、哪一格、哪一节下面；折着的还有标题。"""

    file: str
    cell: str  # 那一格的 id
    heading: str
    fold: str
    text: str
    first: bool = True  # 标题底下的正文；表格的行、代码不是，标题合不合与它们无关

    @property
    def place(self) -> str:
        """人话：03 的“3.8 出了毛病”，折着的《主机的内存要多大》。"""
        fold = f"，折着的《{self.fold}》" if self.fold else ""
        return f"{self.file[:2]} 的“{self.heading}”{fold}"

    @property
    def link(self) -> str:
        """JupyterLab 里那一格的网址；照标题的网址里有汉字，它认不出来。"""
        return f"{self.file}#cell-id={self.cell}"


def find(words: str = ""):
    """在五本里查一件事，列出讲得最多的几处，点一下就到那一格；用自己的话写，例如“爆显存 12GB”。"""
    words = "" if words is None else str(words).strip()
    if not words:
        raise LorakitError('要查什么？写在引号里，例如 lab.find("爆显存")。')
    said = words if len(words) <= LONG else f"{words[:LONG]}……"
    if only_filler(words):
        raise LorakitError(f"“{said}”这样的词哪里都有：添上一个要紧的词，例如“触发词怎么用”。")
    found = search(words, passages(_home()))
    if not found:
        raise LorakitError(f"五本里没有找到“{said}”。换一种说法，或只写最要紧的一个词。")
    rows = [(one, _quote(one, words)) for one in found]
    items = "".join(
        f'<p><a href="{in_html(one.link)}">{in_html(one.place)}</a><br>{in_html(said)}</p>'
        for one, said in rows
    )
    text = "\n".join(f"{one.place}\n    {said}" for one, said in rows)
    publish({"text/html": items, "text/plain": text})


def _home() -> Path:
    """五本在哪里：就在练习册运行的文件夹，或仓库里。"""
    for folder in (Path.cwd(), ROOT / "notebooks"):
        if any(folder.glob("0[1-5]_*.ipynb")):
            return folder
    raise LorakitError("没有找到练习册（01_concepts.ipynb 等）：在 notebooks 文件夹里运行。")


def passages(folder: Path) -> Iterator[Passage]:
    """五本切成一段段：一节一段，折着的各自一段，表格一行一段；代码也算在它那一节里。"""
    for file in sorted(folder.glob("0[1-5]_*.ipynb")):
        heading = file.stem
        for cell in read_json(file, CELLS, BOOK, finite=False)["cells"]:
            here = (file.name, cell.get("id", ""))
            source = EXAMPLE.sub("", "".join(cell["source"]))  # 教人怎样查的，不是讲那件事的
            if cell["cell_type"] == "code":
                yield Passage(*here, heading, "", source, False)
                continue
            for part in re.split(r"(?m)^(?=#{1,4} )", FOLD.sub("", source)):
                if named := HEADING.match(part):
                    heading, part = _bare(named[1]), part[named.end() :]
                yield from _pieces(*here, heading, "", part)
            for title, body in FOLD.findall(source):
                yield from _pieces(*here, heading, _bare(title), body)


def _pieces(*place: str) -> Iterator[Passage]:
    *where, text = place
    lines = text.strip().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    yield Passage(*where, "\n".join(line for line in lines if line not in rows))
    yield from (Passage(*where, row, False) for row in rows[2:])


def _bare(text: str) -> str:
    return DRESS.sub("", text).strip(" |-#\n")


def search(words: str, given: Iterable[Passage]) -> list[Passage]:
    """与 words 最合的几段，最合的在前；同一个地方只留最合的一段。"""
    said = ours(words)
    short = " ".join(one for one in WORD.findall(said) if len(one) <= SHORT)
    asked = sorted({*_split(said), *_single(short)})
    if not asked:
        return []
    rows = [(one, title) for one in given for title in _titles(one)]
    with closing(sqlite3.connect(":memory:")) as base:
        base.execute("CREATE VIRTUAL TABLE pages USING fts5(title, near, body, single)")
        base.executemany("INSERT INTO pages VALUES (?, ?, ?, ?)", [_columns(*row) for row in rows])
        base.execute("CREATE VIRTUAL TABLE words USING fts5vocab(pages, row)")
        known = dict(base.execute("SELECT term, doc FROM words"))
        telling = [word for word in asked if 0 < known.get(word, 0) < COMMON * len(rows)]
        ranked = base.execute(
            f"SELECT rowid FROM pages WHERE pages MATCH ? ORDER BY bm25(pages, {WEIGHTS}), rowid",
            [" OR ".join(f'"{word}"' for word in telling or asked)],
        )
        best: dict[str, Passage] = {}
        for (number,) in ranked:
            one, _ = rows[number - 1]
            best.setdefault(one.place, one)
    return [*best.values()][:MOST]


def _titles(one: Passage) -> list[str]:
    """一段自己的标题，一件事一个：折着的常有几问；表格的行是头一格（症状）；代码、小结没有。"""
    if one.first:
        return re.split("[；，]", one.fold) if one.fold else [one.heading]
    row = one.text.startswith("|") and (one.fold or one.heading != RECAP)
    return [one.text.split("|")[1] if row else ""]


def _columns(one: Passage, title: str) -> tuple[str, ...]:
    """一段 -> 一行的各列：标题、它上面的标题、正文、标题里的一个个字。"""
    near = one.heading if one.fold or one.text.startswith("|") else ""
    columns = (_split(title), _split(near), _split(one.text), _single(title))
    return tuple(" ".join(column) for column in columns)


def _single(text: str) -> list[str]:
    """一个个汉字：“图糊”与“开了 LoRA 就糊”只有一个字一样。"""
    return [f"{letter}字" for letter in text if "\u4e00" <= letter <= "\u9fff"]


def _split(text: str) -> list[str]:
    """文字 -> 词：英文一个词一个，带点的还拆开；汉字两个两个地取（显存不够：显存、存不、不够）。"""
    found = []
    for word in WORD.findall(text.lower()):
        if word.isascii():
            parts = [part for part in word.split(".") if part and not part.isdigit()]
            found += dict.fromkeys([word, *parts])
        elif len(word) == 1:
            found.append(word)
        else:
            found += [word[i : i + 2] for i in range(len(word) - 1)]
    return found


def _quote(passage: Passage, words: str) -> str:
    """一段里问到的词最多的那一句；只有标题合的，就是开头的一句。"""
    asked, prose = set(_split(ours(words))), passage.first or passage.text.startswith("|")
    lines = [_bare(one) if prose else one.strip() for one in re.split(r"[。\n]", passage.text)]
    best = max(filter(None, lines), key=lambda line: len(asked & set(_split(line))), default="")
    return best if len(best) <= LONG else f"{best[:LONG]}……"
