"""重启过内核、跳着运行：缺的格子自己补跑，而且只补要用的；一节单独跑，和整本跑说的一样。"""

import json
import os
import re

import pytest
from notebook_tools import BOOKS, ROOT, code_cells, read, said

from lorakit.lab import catchup, lost

CELLS = {
    "set": "import math\nbase = 2",
    "slow": "unused = base ** 10\nprint('不该跑')",
    "list": "found = []",
    "fill": "found.append(base)\nprint('摆出来的东西')",
    "more": "if base > 9:\n    base = 3\ndef add(x):\n    return x + base",
    "math": "math.pi",
    "use": "total = add(sum(found))",
    "half": "x = (1,",
    "bad": "broken = nothing_here + 1",
    "late": "broken += 1",
}


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """一本小练习册，刚重启过的内核：第一格（装上补跑）跑过了。"""
    from IPython.core.interactiveshell import InteractiveShell

    book = tmp_path / "try.ipynb"
    cells = [{"cell_type": "code", "id": k, "source": v} for k, v in CELLS.items()]
    cells.insert(0, {"cell_type": "markdown", "id": "head", "source": ["# base = 1\n"]})
    book.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    monkeypatch.setenv(catchup.SESSION, str(book))
    made = InteractiveShell.instance()
    lost.say_where()
    lost.say_where()  # 第一格运行了两次
    yield made
    InteractiveShell.clear_instance()


def test_only_what_is_needed_runs_and_says_one_line(shell, capsys):
    assert shell.run_cell(CELLS["use"], cell_id="use").error_in_exec is None
    names, told = shell.user_ns, capsys.readouterr().out
    assert names["total"] == 4 and names["found"] == [2] and "unused" not in names
    assert "math" in names and told == "（前面还没有跑的 4 格，已经替你补跑了。）\n"
    shell.run_cell(CELLS["use"], cell_id="use")
    assert names["found"] == [2] and capsys.readouterr().out == "", "都在，就什么也不补"


def test_the_cell_is_run_as_the_reader_wrote_it(shell, capsys):
    """编号认得出改过的格子；没有编号照内容认；不是这一本的、写到一半的，不补。"""
    assert shell.run_cell("total = base * 5", cell_id="use").error_in_exec is None
    assert shell.user_ns["total"] == 10 and "found" not in shell.user_ns
    shell.user_ns.pop("base")
    assert shell.run_cell(CELLS["list"] + "\nbase").error_in_exec is not None
    assert shell.run_cell(CELLS["more"]).error_in_exec is None, "没有编号，内容一样"
    assert shell.user_ns["base"] == 2
    assert shell.run_cell(CELLS["half"], cell_id="half").error_before_exec is not None


def test_a_cell_that_fails_on_the_way_is_named(shell, capsys):
    done = shell.run_cell(CELLS["late"], cell_id="late")
    assert isinstance(done.error_in_exec, NameError)
    told = capsys.readouterr().out
    assert "停在 `broken = nothing_here + 1` 那一格：NameError" in told


def test_a_name_no_cell_makes_is_left_to_the_error(shell, capsys):
    done = shell.run_cell("nothing_here", cell_id="use")
    assert isinstance(done.error_in_exec, NameError) and "补跑" not in capsys.readouterr().out


def test_vs_code_says_which_book_in_its_own_way(monkeypatch):
    monkeypatch.delenv(catchup.SESSION, raising=False)
    assert catchup.opened() == "" and catchup.cells_of("") == []
    assert catchup.opened({catchup.VSCODE: str(BOOKS[0])}) == str(BOOKS[0])


@pytest.mark.parametrize(
    ("code", "wants", "makes"),
    [
        ("x = y\ny = 1", {"y"}, {"x", "y"}),
        ("x = 1\nprint(x)", set(), {"x"}),
        ("x = f(x)", {"f", "x"}, {"x"}),
        ("def f(a):\n    return a + b + f(1)", {"b"}, {"f"}),
        ("b = 1\ndef f(): return b", set(), {"b", "f"}),
        ("z = [a + k for a in rows]", {"k", "rows"}, {"z"}),
        ("for a, b in pairs:\n    c = a", {"pairs"}, {"a", "b", "c"}),
        ("import a.b, c as d\nfrom e import g", set(), {"a", "d", "g"}),
        ("with open(p) as f:\n    t = f.read()", {"p"}, {"f", "t"}),
    ],
)
def test_what_a_cell_wants_and_makes(code, wants, makes):
    found = catchup.names_of(code)
    assert (found[0], found[1] & makes) == (wants, makes)


@pytest.mark.parametrize("book", BOOKS, ids=[book.stem for book in BOOKS])
def test_each_section_can_be_reached_from_the_first_cell(book):
    """只跑过第一格，再一格格跑这一节：每一格用到的名字，都补得出来。"""
    cells = read(book).cells
    codes = [catchup.code_of(cell) for cell in cells]
    first = next(number for number, code in enumerate(codes) if code)
    have = set()
    for number, cell in enumerate(cells):
        if cell.cell_type == "markdown" and re.search(r"^## ", cell.source, re.M):
            have = set(catchup.names_of(codes[first])[1])
        if number > first and codes[number]:
            for missing in catchup.needed(codes, number, have):
                have |= catchup.names_of(codes[missing])[1]
            lacking = catchup.names_of(codes[number])[0] - have
            assert not lacking, (cell.source[:60], lacking)
            have |= catchup.names_of(codes[number])[1]


def test_a_section_alone_says_what_the_whole_book_says(tmp_path):
    """04 的 4.3 节要用 4.2 节听来的东西：新的内核里只跑第一格和它。"""
    from nbclient import NotebookClient

    book = BOOKS[3]
    cells = code_cells(read(book))
    start = next(n for n, cell in enumerate(cells) if cell.source.startswith("small = torch"))
    chosen = [0, *range(start, start + 6)]
    alone = read(book)
    alone.cells = [code_cells(alone)[number] for number in chosen]
    env = {**os.environ, "LORAKIT_HEADLESS": "1", "LORAKIT_CACHE": str(tmp_path)}
    env |= {"PYTHONPATH": str(ROOT), catchup.SESSION: str(book)}
    where = {"metadata": {"path": book.parent}}
    NotebookClient(alone, timeout=300, kernel_name="python3", resources=where).execute(env=env)
    for number, cell in list(zip(chosen, alone.cells, strict=True))[1:]:
        told = re.sub(r"（前面还没有跑的 \d+ 格，已经替你补跑了。）\n", "", said(cell))
        assert told == said(cells[number]), cell.source
    assert alone.cells[-1].execution_count == len(chosen), "补跑的不占编号"
