"""别人的文字不起作用：终端、网页、模型卡、图、复制去运行的命令、练习册里摆出来的每一样。

要更多随机的文字就设 LORAKIT_INPUTS=2000。
"""

import ast
import json
import os
import re
import shlex
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import mistune
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from PIL import Image

from lorakit.cli import main
from lorakit.data.report import Problem, Report
from lorakit.errors import DataError, LorakitWarning, warn
from lorakit.inert import in_figure, in_html, in_markdown, inert, visible_line
from lorakit.results import card

EVIL = "\x1b[2J\x1b]0;x\x07\u202egnp.exe\u2066\x9b31m"
ROOT = Path(__file__).parent.parent
many = settings(
    max_examples=int(os.environ.get("LORAKIT_INPUTS", "150")), deadline=None, database=None,
    derandomize=True, suppress_health_check=list(HealthCheck),
)  # fmt: skip
MARK = '![x](http://evil) <img src=x onerror=1> `rm` [a](b) | "; rm -rf $HOME; "'


def test_nothing_active_is_left():
    assert inert(EVIL).isprintable() and "\\x1b[2J" in inert(EVIL)
    assert inert("一只猫\n👨‍👩‍👧 é\t") == "一只猫\n👨‍👩‍👧 é\t"
    assert inert("a\nb", line=True) == "a\\nb"
    assert inert("半个\ud800") == "半个\\ud800"


def test_errors_and_warnings_are_inert():
    assert str(DataError(f"“{EVIL}”")).isprintable()
    assert DataError(EVIL)._render_traceback_()[0].isprintable()
    with pytest.warns(LorakitWarning) as caught:
        warn(EVIL)
    assert str(caught[0].message).isprintable()


@pytest.mark.parametrize("command", [[], ["--fix"], ["--html", "out.html"]])
def test_hostile_names_and_captions_are_shown_only(tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    for number in range(2):
        name = f"{number}{EVIL}<b>".replace("/", "")
        Image.new("RGB", (80 + number, 90), "red").save(data / f"{name}.png")
        (data / f"{name}.txt").write_text(f"{EVIL}<script>alert(1)</script>")
    (data / f"broken{EVIL}.png").write_bytes(b"x")
    main(["check", str(data), *command])
    said = "".join(capsys.readouterr())
    assert said and said == inert(said) and "\\x1b" in said
    if "--html" in command:
        page = (tmp_path / "out.html").read_text()
        assert page == inert(page) and "<script>alert" not in page and "<b>.png" not in page


def test_markdown_of_others_does_nothing():
    said = in_markdown(MARK + EVIL + "\n# 标题")
    assert "\n" not in said and said == inert(said)
    for active in ("](", "<img", "`rm`"):
        assert active not in said.replace("\\" + active[0], "")
    shots = card.shots([("samples/1_0.png", MARK)])
    assert shots.count("](samples/1_0.png)") == 1 and "](http" not in shots.replace("\\]", "")
    assert in_html("<b>\u202e") == "&lt;b&gt;\\u202e"


def test_hints_can_be_pasted(tmp_path, capsys):
    folder = tmp_path / "我的 图; rm x"
    assert main(["sample-data", "papercut", str(folder)]) == 0
    hint = capsys.readouterr().out.split("再试 ")[1].strip()
    assert shlex.split(hint) == ["lorakit", "check", str(folder)]


# ---- 随机的文字，四种地方 ----

PIECES = st.sampled_from(
    ["\x1b[31m", "\x1b]8;;http://evil\x07", "\x9b2J", "\r", "\x08", "\u202e", "\u2066", "\u200b",
     "\ufeff", "\u2028", "\x85", "\ud800", "\U000e0041", "\n", "\n\n", "\t", "<script>", "</style>",
     "<img src=x onerror=1>", "&lt;b&gt;", "&#60;", '"', "'", "$x^2$", "$", "\\$", "\\", "`", "```",
     "](", "[a](javascript:x)", "![a](http://e)", "<http://e>", "http://evil.com", "www.evil.com",
     "a@evil.com", "| a |", "|---|", "# ", "- ", "+ ", "1. ", "2) ", "> ", "* ", "***", "__init__",
     "~~x~~", "===", "---", "猫", "ohwx", " ", "é", "👩‍👧", "{", "}", "%s", "$$x$$"]
)  # fmt: skip
nasty = st.lists(PIECES | st.text(max_size=4), max_size=7).map("".join)


class Tags(HTMLParser):
    """一页里的标签与文字。"""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.words = [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data):
        self.words += data


# 归在“格式”里、画得出来的：阿拉伯、叙利亚、婆罗米、埃及文的数字记号
PRINTED = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD,
           *range(0x13430, 0x13440)}  # fmt: skip


def still(text: str, tab: bool = True) -> bool:
    """屏幕上什么也不会做：没有控制符，没有左右颠倒、看不见的字。"""
    kept = "\n\t\u200c\u200d" if tab else "\u200c\u200d"
    return all(
        one in kept
        or ord(one) in PRINTED
        or unicodedata.category(one) not in ("Cc", "Cs", "Zl", "Zp", "Cf")
        for one in text
    )


@many
@given(nasty)
def test_anything_on_a_screen(text):
    assert inert(inert(text)) == inert(text) and still(inert(text))
    line = inert(text, line=True)
    assert still(line, tab=False) and len(line.splitlines()) <= 1
    assert visible_line(text) <= (line == text)


@many
@given(nasty)
def test_anything_in_a_page(text):
    page = Tags(f'<p title="{in_html(text)}">{in_html(text)}</p>')
    assert page.tags == [("p", ("title",))] and page.words == inert(text)


MARKDOWN = mistune.create_markdown(
    renderer=None, plugins=["url", "table", "strikethrough", "math", "footnotes", "mark", "spoiler"]
)


def kinds_of(tokens) -> set[str]:
    """一份 Markdown 里有哪些种东西。"""
    found = {token["type"] for token in tokens}
    return found.union(*(kinds_of(token["children"]) for token in tokens if "children" in token))


@many
@given(nasty)
def test_anything_in_markdown(text):
    said = in_markdown(text)
    bare = {"heading", "list", "list_item", "paragraph", "text", "block_text", "blank_line"}
    cells = {"table", "table_head", "table_body", "table_row", "table_cell"}
    for page in (f"# {said}\n", f"- 例：{said}\n", f"- {said}\n"):
        assert kinds_of(MARKDOWN(page)) <= bare, page
    found = MARKDOWN(f"| 项目 | 值 |\n|---|---|\n| 甲 | {said} |\n\n末尾\n")
    assert kinds_of(found) <= bare | cells and said.count("\n") == 0
    words = [token for token in found if token["type"] == "paragraph"]
    assert words[0]["children"] == [{"type": "text", "raw": "末尾"}]


@many
@given(nasty)
def test_anything_in_a_figure(text):
    said = in_figure(text)
    assert not is_math_text(said) and still(said)
    words = Figure().text(0, 0, said)
    assert words._preprocess_math(said) == (inert(text), False)


def test_a_formula_in_a_caption_is_drawn_as_it_is():
    figure = Figure()
    figure.suptitle(in_figure("$\\frac{$ 与 $5，$6"))  # 当作公式画，就是一串英文的错
    figure.canvas.draw()


# ---- 我们写的每一样东西 ----


@many
@given(nasty, nasty)
def test_anything_in_the_code_of_a_card(text, path):
    """代码块里的值：还是那个值，读得出来；围栏关不上，看不见的字现了形。"""
    for value in (text, path):
        said = card._literal(value)
        assert still(said, tab=False) and "\n" not in said
        if "\ud800" not in value:
            assert ast.literal_eval(said) == value


def test_a_card_made_of_hostile_text(config, tmp_path, monkeypatch):
    """整份模型卡：头是合格的 YAML，正文里没有多出来的链接、图、HTML、代码块。"""
    from types import SimpleNamespace

    from lorakit.families import open_family
    from lorakit.results.verdict import Light, Verdict

    said = f"{MARK} $x$ www.evil.com http://evil.com ``` {EVIL}\n---\n# 标题"
    run = tmp_path / f"结果 {MARK.replace('/', '')}"
    run.mkdir()
    facts = {"data": said, "versions": {"torch": said}, "device": said, "seconds": 1.0}
    (run / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    settings = config("data.trigger=ohwx <b>", "sample.prompts=[]")
    judged = Verdict(said, said, lights=(Light(said, "绿", said),))
    monkeypatch.setattr(card, "at", lambda *_: judged)
    item = SimpleNamespace(record=SimpleNamespace(caption=said))
    dataset = SimpleNamespace(train=[item] * 3, held=[], edits=False)
    card.write(run, settings, open_family(settings), dataset, ["samples/1_0.png"])
    text = (run / "README.md").read_text(encoding="utf-8")
    assert still(text)
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head)["widget"][0]["text"] == inert(said)
    tokens = MARKDOWN(body)
    found = kinds_of(tokens)
    assert not found & {"block_html", "inline_html", "inline_math", "block_math", "thematic_break"}
    assert "link" not in found and len(re.findall("'type': 'image'", str(tokens))) == 1
    assert len([one for one in tokens if one["type"] == "block_code"]) == 2
    assert [one["children"][0]["raw"] for one in tokens if one["type"] == "heading"][1:] == [
        "训练描述的例子", "怎么用", "怎么练的",
    ]  # fmt: skip


@many
@given(nasty, nasty)
def test_anything_in_the_books(text, name):
    """练习册里摆出来的：体检、作品的面板、描述的表、面板的状态。"""
    from lorakit.lab.works import checkup, panel, shelf

    problem = Problem.error("x", Path("猫.png"), text, name)
    report = Report(Path("/图"), 1, 0, [problem])
    work = shelf.Work(name=name, trigger=text, photos=Path("/没有"), home=Path("/没有"))
    for page in (checkup.page(report), panel.static(work)):
        tags = Tags(page["text/html"])
        assert {tag for tag, _ in tags.tags} <= {"p", "b", "ul", "li"} and still(page["text/html"])


def test_plain_outputs_are_inert(shown):
    from lorakit.lab.display import publish

    publish({"text/plain": EVIL})
    assert still(shown[0]["text/plain"])


def test_labels_of_pictures_are_inert():
    from lorakit.results.report import grid

    image = Image.new("RGB", (8, 8))
    a, b = (grid([[image]], [EVIL], [one], 60).tobytes() for one in (EVIL, inert(EVIL)))
    assert a == b


def test_a_board_with_formulas_is_drawn(tmp_path):
    from lorakit.results import board

    row = {"step": 1, "loss": 1.0, "grad_norm": 1.0, "delta": {"$\\frac{$": 1.0, EVIL: 2.0}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert board.plot(tmp_path).stat().st_size > 0


def test_one_function_a_place():
    """网页只经过 in_html：别处不再自己 escape。"""
    for path in (ROOT / "lorakit").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "inert.py":
            assert "html import escape" not in text and "html.escape" not in text, path


@pytest.mark.parametrize("book", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_committed_outputs_are_inert(book):
    cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        for whole in ("".join(cell["source"]), *map(str, _texts(cell.get("outputs", [])))):
            assert whole == inert(whole)


def _texts(value):
    """一份输出里的每一段文字。"""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)
