"""练习册的样子：短、干净、术语先解释、手机上也看得见；跑得通、输出没有过时由 nbval 管。"""

import ast
import builtins
import json
import re
import statistics
import tomllib

import pytest
from notebook_tools import (
    BOOKS,
    ROOT,
    VIEW,
    code_cells,
    minutes,
    pictures,
    prose,
    read,
    said,
    with_apart,
)

from lorakit.lab import exercises, picture, questions
from lorakit.lab.display import widths
from lorakit.lab.glossary import TERMS, sentence

NAMES = [book.stem for book in BOOKS]
SPEAKS = (
    r"lab\.(show|explore|predict|recall|reveal|pretest|upload|form|source|term|hint|check\.\w+)\("
)


@pytest.fixture(params=BOOKS, ids=NAMES, scope="module")
def book(request):
    return request.param


@pytest.fixture(scope="module")
def committed(book):
    return read(book)


def test_nothing_is_said_on_stderr(committed):
    for cell in code_cells(committed):
        for output in cell.outputs:
            assert output.get("name") != "stderr", (cell.execution_count, output.text)


def test_small_enough_and_clean(book, committed):
    text = book.read_text(encoding="utf-8")
    assert len(text.encode()) <= 1_000_000, f"{len(text.encode()) / 1000:.0f} kB"
    assert "widgets" not in committed.metadata and VIEW not in text
    counts = [cell.execution_count for cell in code_cells(committed)]
    assert counts == list(range(1, len(counts) + 1)), "要从头到尾按次序跑过"
    words = re.sub(r'"image/\w+": "[^"]*"', "", text)
    for bad in (r"/(tmp|home|root|work|content|Users)/", r"\bhf_\w{8}", r"0x[0-9a-f]{6}", r"C:\\"):
        assert not re.search(bad, words), bad


def test_pictures_say_how_wide_they_are(committed):
    for cell in code_cells(committed):
        for output in cell.outputs:
            found = widths(output.get("data", {}))
            assert not found or output.metadata == found, cell.source


def test_cells_are_short(committed):
    lengths = [cell.source.count("\n") + 1 for cell in code_cells(committed)]
    assert max(lengths) <= 15 and statistics.median(lengths) <= 8


def test_header_and_sections(book, committed):
    head = committed.cells[0].source
    for word in ("你将能够", "需要", "时间", "显存", "花费", "在 Colab 打开", "最后核对的版本"):
        assert word in head, word
    assert not re.search(r"!\[[^]]*\]\(http|<img[^>]+http", prose(committed)), "离线时图会是坏的"
    sections = re.findall(r"^## (\d)\.(\d+) ", prose(committed), re.M)
    number = int(book.stem[:2])
    assert [int(n) for _, n in sections] == list(range(1, len(sections) + 1))
    assert {int(b) for b, _ in sections} == {number} and len(sections) >= 10


def test_one_repository_address(book, committed):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    address = project["project"]["urls"]["Repository"]
    assert f'仓库 = "{address}"' in code_cells(committed)[0].source
    owner = address.removeprefix("https://github.com/")
    assert f"colab.research.google.com/github/{owner}/blob/main/notebooks/{book.name}" in prose(
        committed
    )


def test_every_guess_is_revealed_and_exercises_are_blank(committed):
    source = "\n".join(cell.source for cell in code_cells(committed))
    asked = re.findall(r'lab\.predict\("(\w+)"\)', source)
    told = re.findall(r'lab\.reveal\("(\w+)"\)', source)
    assert asked == sorted(asked, key=told.index) and set(asked) == set(told) and len(asked) >= 3
    assert set(asked) <= set(questions.bank()) and source.count("lab.predict(") == len(asked)
    used = re.findall(r"lab\.check\.(\w+)\(", source)
    assert len(used) >= 3 and set(used) <= set(exercises.all_exercises())
    assert "lab.hint(" not in source, "提示是检查下面的按钮，一路 Shift+Enter 看不到"
    blank = [said(c) for c in code_cells(committed) if "lab.check." in c.source]
    assert all(text.startswith("未完成") for text in blank)


def test_no_answer_is_in_sight(book):
    text = json.dumps(json.loads(book.read_text(encoding="utf-8")), ensure_ascii=False)
    asked = [*questions.bank().values(), *sum(map(questions.exam, questions.MOMENTS), ())]
    asked += questions.clinic().values()
    for question in (*asked, *sum(questions.recall().values(), ())):
        assert not [said for _, said in question.options if said in text], question.name


def test_every_question_is_asked_once():
    source = "\n".join(cell.source for book in BOOKS for cell in code_cells(read(book)))
    asked = re.findall(r'lab\.predict\("(\w+)"\)', source)
    assert asked == list(questions.bank())


def test_how_to_go_on_after_a_restart_is_told(committed):
    start = next(c.source for c in committed.cells if c.source.startswith("## 0 准备"))
    assert "自己补跑" in start and "NameError" in start and "Run All Above Selected Cell" in start
    assert prose(committed).count("Run All Above") == 1, "每一节都能单独跑，不用再说"


def test_terms_come_from_the_glossary(committed):
    text = prose(committed).removeprefix(committed.cells[0].source)  # 开头的目录先不算
    text = re.sub(r"^#.*$", "", text, flags=re.M)  # 标题也不算
    marked = re.findall(r"\*\*([^*\n]+)\*\*（([A-Za-z][^，）]*)，", text)
    assert len(marked) >= 8
    for name, english in marked:
        assert name in TERMS and TERMS[name][0] == english, name
    for name in TERMS:
        first = text.find(sentence(name))
        plain = re.search(rf"(?<![\u4e00-\u9fff*]){name}(?![\u4e00-\u9fff])", text)
        if first >= 0 and plain:
            assert plain.start() >= first, f"“{name}”先用了，后解释"


def test_every_speaking_cell_has_something_to_see(committed):
    for cell in code_cells(committed):
        if re.search(SPEAKS, cell.source) and "def " not in cell.source:
            assert said(cell).strip(), cell.source
        if re.search(r"lab\.(show|explore)\(|\.start\(\)", cell.source):
            assert pictures(cell), cell.source


def test_every_letter_on_a_picture_has_a_glyph(committed):
    words = [
        node.value
        for cell in code_cells(committed)
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert len(words) > 50
    assert picture.missing("".join(words), fallback=False) == set()


def test_static_page_has_no_blank_widget(book, committed, tmp_path):
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter().from_notebook_node(committed)
    assert len(page.encode()) < 1_200_000, "手机上打开要快"
    assert "widget-view" not in page and "Error displaying widget" not in page
    shown = sum(pictures(cell) for cell in code_cells(committed))
    assert page.count("data:image/") >= shown >= 10
    assert "缺字" not in page and "\ufffd" not in page


@pytest.mark.parametrize("book", BOOKS, ids=[book.stem for book in BOOKS])
def test_an_hour_is_enough(book):
    assert minutes(read(book)) <= 60


@pytest.mark.parametrize("book", BOOKS, ids=[book.stem for book in BOOKS])
def test_what_is_folded_can_be_left_out(book):
    """选读的节真的折着；从它的标题到下一个标题，都从新的一格开始；后面没有用到里面造的名字。"""
    known, inside, folded = set(dir(builtins)), set(), []
    for cell, apart in with_apart(read(book)):
        if cell.cell_type == "markdown":
            titles = re.findall(r"^(#+ .*选读.*)$", cell.source, re.M)
            assert all(cell.source.startswith(title) for title in titles)
            assert bool(titles) == cell.metadata.get("jp-MarkdownHeadingCollapsed", False)
            folded += [cell.id] if titles else []
            continue
        made, used = names_in(cell.source)
        if apart:
            inside |= made
        else:
            known |= made
            assert used <= known, (cell.source[:60], used - known)
    colab = read(book).metadata.get("colab", {})
    assert colab.get("collapsed_sections", []) == folded, "Colab 照这个折"
    assert inside or not folded


def names_in(source: str) -> tuple[set[str], set[str]]:
    """一格代码里造出来的名字（函数里的也算）、用到的名字。"""
    made, used = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler):
            made |= {node.name} - {None}
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            made |= {(a.asname or a.name).split(".")[0] for a in node.names}
    return made, used


def test_docstrings_point_to_books_that_exist():
    for path in (ROOT / "lorakit").rglob("*.py"):
        for name in re.findall(r"教程：notebooks/(0[123]\w+\.ipynb)", path.read_text("utf-8")):
            assert (ROOT / "notebooks" / name).is_file(), path.name
