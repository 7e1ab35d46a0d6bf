"""故意埋下的毛病：过时的输出、最大值会崩的滑块、后台的错误、缺字、坏掉的判题，nbval 一格不漏。"""

import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from notebook_tools import ROOT

HEAD = "from PIL import Image\nfrom lorakit import lab, load_config"
SHOW = 'lab.show(Image.linear_gradient("L"))'
CRASH = """def draw(t):
    assert t < 1, "最大值会崩"
    return Image.new("RGB", (8, 8))

lab.explore(draw, t=lab.slider("t", 0.0, 1.0, 0.1))"""
THREAD = 'lab.Run(load_config("tiny-qwen-image", ["data.folder=nothing"])).start()'
GLYPH = 'figure, axes = lab.chart()\naxes.set_title("龘")\nlab.show(figure)'
CHECKER = """import sys
from dataclasses import replace
from lorakit.lab.exercises import book_03

easy = replace(book_03.RESCUE, properties=())
sys.modules["lorakit.lab.exercises.judge"].all_exercises = lambda: {"rescue": easy}
lab.check.rescue({"B"})"""


def picture(fingerprint: str):
    data = {"image/png": "AAAA", "text/plain": f"〔图 256x256，指纹 {fingerprint}〕"}
    return new_output("display_data", data)


def said(text: str):
    return new_output("stream", text=text)


CELLS = [  # 格子、提交的输出、该报什么（空的是该通过）
    (HEAD, [], ""),
    ("print('损失 0.52，用了 3.1 秒')", [said("损失 0.52，用了 9.9 秒\n")], ""),
    (SHOW, [picture("0000000fffffffff")], ""),
    ("print('损失 0.53')", [said("损失 0.52\n")], "Cell outputs differ"),
    (SHOW, [picture("ffffffff00000000")], "图变了"),
    (CRASH, [], "最大值会崩"),
    (THREAD, [], "没有这个文件夹"),
    (GLYPH, [], "字体里没有的字“龘”"),
    (CHECKER, [said("未完成：把 ... 换成你的答案再运行。\n")], "Cell outputs differ"),
    ("import warnings\nwarnings.warn('旧写法')", [], "Cell outputs differ"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("planted")
    shutil.copy(ROOT / "notebooks" / "conftest.py", folder)
    notebook = new_notebook()
    for number, (source, outputs, _) in enumerate(CELLS, 1):
        notebook.cells.append(
            new_code_cell(source, outputs=outputs, execution_count=number, id=f"c{number}")
        )
    nbformat.write(notebook, folder / "planted.ipynb")
    rules = ROOT / "tests" / "nbval_sanitize.cfg"
    command = [sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider",
               "--rootdir", str(ROOT), "-o", "addopts=", "--nbval", "--nbval-current-env",
               f"--nbval-sanitize-with={rules}", str(folder / "planted.ipynb")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return done.stdout


@pytest.mark.parametrize("number", range(len(CELLS)))
def test_each_defect_is_caught_and_nothing_else(number, report):
    word = CELLS[number][2]
    state = re.search(rf"::Cell {number} (PASSED|FAILED)", report)
    assert state, report
    assert state[1] == ("FAILED" if word else "PASSED"), report
    if word:
        parts = re.split(r"_+ .*::Cell (\d+) _+", report.split("= FAILURES =")[1])
        assert word in dict(zip(parts[1::2], parts[2::2], strict=True))[str(number)]
