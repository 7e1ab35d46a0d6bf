"""浅色、深色的界面里都看得清：行内样式的颜色，算出对比度；有底色的一定也有字色。"""

import re

import pytest
from notebook_tools import BOOKS, code_cells, read

from lorakit import flow, lab
from lorakit.lab import exercises, explorer, lights, questions, quiz

LIGHT, DARK = "#ffffff", "#111111"  # JupyterLab 两个主题里输出区的底色
ENOUGH, BARELY = 4.5, 3.0  # WCAG：自带底色的正文；跟着主题走的重点字
STYLE = re.compile(r"""style\s*=\s*("[^"]*"|'[^']*')""")
NAMED = {"white": "#ffffff", "black": "#000000", "gray": "#808080", "red": "#ff0000"}


def luminance(color: str) -> float:
    color = NAMED.get(color, color).lstrip("#")
    color = "".join(c * 2 for c in color) if len(color) == 3 else color
    parts = [int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def styles(page: str) -> list[dict[str, str]]:
    found = []
    for text in STYLE.findall(page):
        pairs = [part.split(":", 1) for part in text[1:-1].split(";") if ":" in part]
        found.append({key.strip().lower(): value.strip() for key, value in pairs})
    return found


def check(page: str):
    for style in styles(page):
        back = style.get("background") or style.get("background-color")
        fore = style.get("color")
        if back and back not in ("none", "transparent", "inherit"):
            assert fore, f"有底色，没有字色，深色界面里看不清：{style}"
            if not (back + fore).count("var("):
                assert contrast(back, fore) >= ENOUGH, style
        elif fore and fore != "inherit" and "var(" not in fore:
            for theme in (LIGHT, DARK):
                assert contrast(theme, fore) >= BARELY, (theme, style)


def test_the_measure_itself():
    assert contrast("#fff", "#000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    for bad in ('<p style="background:#f6f6f4">', '<p style="background:#eee;color:#ccc">',
                '<p style="color:#fefefe">', "<b style='color:#101010'>"):  # fmt: skip
        with pytest.raises(AssertionError):
            check(bad)


@pytest.mark.parametrize("book", BOOKS, ids=[book.stem for book in BOOKS])
def test_committed_pages(book):
    for cell in code_cells(read(book)):
        for output in cell.outputs:
            check(output.get("data", {}).get("text/html", ""))


def _htmls(box) -> list[str]:
    """一个控件里所有 HTML 的字。"""
    inner = [page for child in getattr(box, "children", ()) for page in _htmls(child)]
    return inner + ([box.value] if type(box).__name__ == "HTML" else [])


def test_everything_the_lab_shows(shown, watched, monkeypatch):
    lab.source(flow.add_noise)
    lab.source(explorer.Control)
    lab.term("底模")
    lab.report_card({"画风": 1.0})
    lab.hint("velocity")
    lab.form()
    lab.upload()
    lab.pretest()
    live = []
    for question in questions.bank().values():
        lab.predict(question.name)
        guess = quiz._asked[question.name]
        guess.ask.radio.value = 0
        guess.open()
        live += _htmls(guess.box)
    test = quiz.Test("post")
    test.tell()
    tips = exercises.Hints(exercises.all_exercises()["velocity"])
    for _ in range(4):
        tips.more()
    bad = lab.form()
    bad.set("train.steps", "很多")
    board = lab.Board(10)
    board.say("训练停在第 3 步：出错了", bad=True)
    panel = explorer.explore(lambda t: 1 / 0 if t else flow_picture(), t=lab.slider("t", 0, 1, 1))
    panel.boxes["t"].value = 1
    for box in (test.box, tips.box, bad.box, board.box, panel.box):
        live += _htmls(box)
    pages = [bundle.get("text/html", "") for bundle in shown] + live
    assert len(pages) > 50 and sum(len(styles(page)) for page in pages) > 20
    for page in pages:
        check(page)


@pytest.mark.parametrize("color", lights.COLORS.values())
def test_every_light_is_seen_in_both_themes(color):
    check(f'<span style="color:{color}">●</span>')


def flow_picture():
    from PIL import Image

    return Image.new("RGB", (8, 8))
