"""别人的文字不起作用：终端、网页、模型卡、复制去运行的命令。"""

import shlex

import pytest
from PIL import Image

from lorakit.cli import main
from lorakit.data.html import escape
from lorakit.errors import DataError, LorakitWarning, inert, warn
from lorakit.results import card

EVIL = "\x1b[2J\x1b]0;x\x07\u202egnp.exe\u2066\x9b31m"
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
    said = card.plain(MARK + EVIL + "\n# 标题")
    assert "\n" not in said and said == inert(said)
    for active in ("](", "<img", "`rm`"):
        assert active not in said.replace("\\" + active[0], "")
    shots = card.shots([("samples/1_0.png", MARK)])
    assert shots.count("](samples/1_0.png)") == 1 and "](http" not in shots.replace("\\]", "")
    assert escape("<b>\u202e") == "&lt;b&gt;\\u202e"


def test_hints_can_be_pasted(tmp_path, capsys):
    folder = tmp_path / "我的 图; rm x"
    assert main(["sample-data", "papercut", str(folder)]) == 0
    hint = capsys.readouterr().out.split("再试 ")[1].strip()
    assert shlex.split(hint) == ["lorakit", "check", str(folder)]
