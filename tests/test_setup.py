"""练习册的第一格：只装缺的，已有的不动，太旧的说清楚。"""

import tomllib
from pathlib import Path

import pytest
from notebook_tools import BOOKS, ROOT, code_cells, read

from lorakit import lab
from lorakit.errors import LorakitError
from lorakit.lab import setup

NEEDS = ["torch>=2.6", "Pillow>=10.1", 'ipywidgets>=7.7; extra == "notebook"',
         'jupyterlab>=4.2; extra == "notebook"', 'pytest>=8; extra == "test"']  # fmt: skip


@pytest.fixture
def machine(monkeypatch):
    """假装装了这些包；返回 (设定已有的, 装过的)。"""
    asked: list[str] = []
    monkeypatch.setattr(setup.metadata, "requires", lambda name: NEEDS)
    monkeypatch.setattr(setup, "install", asked.extend)

    def has(**versions):
        monkeypatch.setattr(setup, "installed", lambda: versions)

    return has, asked


def test_all_there_says_that_it_is_ready(machine, capsys):
    has, asked = machine
    has(torch="2.6.0+cu124", pillow="13.0", ipywidgets="7.7.1")
    lab.ready()
    assert asked == [] and capsys.readouterr().out.startswith("好了，可以往下走")


def test_only_what_is_missing_is_installed(machine, capsys):
    has, asked = machine
    has(torch="2.13.0", ipywidgets="8.1")
    lab.ready()
    assert asked == ["Pillow>=10.1"] and "不用重启" in capsys.readouterr().out


def test_too_old_is_never_touched(machine):
    has, asked = machine
    has(torch="2.10.1", pillow="9.5.0", ipywidgets="7.6.5")
    with pytest.raises(LorakitError) as caught:
        lab.ready()
    said = str(caught.value)
    assert asked == [] and "Pillow 9.5.0（要 10.1 以上）" in said and "torch" not in said
    assert '%pip install -U "Pillow>=10.1" "ipywidgets>=7.7"' in said and "重启" in said


def test_installing_pins_everything_that_is_there(monkeypatch):
    seen = {}

    def run(command, **options):
        seen["keep"] = Path(command[command.index("-c") + 1]).read_text(encoding="utf-8")
        return setup.subprocess.CompletedProcess(command, 1, "", "ERROR: 没有网络\n")

    monkeypatch.setattr(setup.subprocess, "run", run)
    with pytest.raises(LorakitError, match="没有网络"):
        setup.install(["nothing>=1"])
    assert "torch==" in seen["keep"] and "pytest==" in seen["keep"]


def test_every_requirement_is_a_lower_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["notebook"]
    assert all(setup.WANTED.match(line) for line in wanted)
    missing, old = setup.lacking(wanted, setup.installed())
    assert (missing, old) == ([], [])


def test_first_cell_is_the_same_everywhere():
    first = {code_cells(read(book))[0].source for book in BOOKS}
    assert len(first) == 1 and "lab.ready()" in first.pop()


def test_without_an_address_the_first_cell_says_one_sentence(monkeypatch, tmp_path):
    """像在 Colab 里只打开了一本：没有 lorakit，旁边也没有仓库，地址还是占位置的。"""
    from IPython.core.error import UsageError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    asked = []
    failed = setup.subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(setup.subprocess, "run", lambda *call, **o: asked.append(call) or failed)
    source = code_cells(read(BOOKS[0]))[0].source
    with pytest.raises(UsageError, match="先下载整个仓库"):
        exec(source, {})
    assert asked == [], "占位置的地址不去连"
    with pytest.raises(UsageError, match="装不上 git"):
        exec(source.replace("OWNER/", "someone/", 1), {})
    assert len(asked) == 1
