"""真的浏览器里，像读者那样点：先猜、提示、停不下来的答案、后测、进度条、点一下放大；浅色深色都看得清。"""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pytest
from browser_tools import CHROMIUM, FAINT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from notebook_tools import BOOKS, ROOT, code_cells, read
from test_book import TOKEN, free_port
from test_jupyterlab import browser  # noqa: F401

from lorakit.lab import questions

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="没有 Chromium：apt-get install chromium")
TYPO = "def my(x0, noise, t):\n    return x0 + nosie * t\n\n\nlab.check.add_noise(my)"
LOOP = "def my(rows, cols):\n    while rows:\n        pass\n\n\nlab.check.positions(my)"
RIGHT = "lab.check.velocity(lambda x0, noise: noise - x0)"
EACH = "import time\nfor k in lab.each(range(3), '三次训练'):\n    time.sleep(1.5)"
CELLS = ["lab.predict('half')", "lab.source(lab.each)", "lab.reveal('half')", TYPO, LOOP, RIGHT,
         EACH, "from PIL import Image\nlab.show(Image.new('RGB', (300, 120), 'teal'))",
         "lab.pretest('post')", "print(pictrue)"]  # fmt: skip


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """一本小练习册，用 lorakit book 打开。"""
    folder, port = tmp_path_factory.mktemp("room"), free_port()
    cells = [new_code_cell(code_cells(read(BOOKS[0]))[0].source), *map(new_code_cell, CELLS)]
    book = new_notebook(cells=[new_markdown_cell("# 01 试一试"), *cells])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, folder / "01_try.ipynb")
    env = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_CURRENT_TEST")}
    env |= {"JUPYTER_TOKEN": TOKEN, "JUPYTER_CONFIG_DIR": str(folder / "config")}
    env |= {"PYTHONPATH": str(ROOT), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "spaces")}
    env |= {"LORAKIT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "lorakit", "book", "1", "--no-browser", f"--port={port}"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, env=env, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
    for _ in range(240):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={TOKEN}").close()
            break
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    yield port
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(30)


def test_a_learner_with_mouse_and_keyboard(room, browser, tmp_path):  # noqa: F811
    page = browser.new_page(viewport={"width": 1100, "height": 3000})
    page.goto(f"http://127.0.0.1:{room}/lab/tree/01_try.ipynb?token={TOKEN}&reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    page.get_by_text("内核", exact=True).first.wait_for(timeout=60_000)  # 菜单是中文的
    page.get_by_text("ipykernel) | 空闲").wait_for(timeout=120_000)
    page.locator(".jp-CodeCell .cm-content").first.click()
    for _ in range(len(CELLS) + 1):
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(200)
    page.get_by_text("好了，可以往下走").wait_for(timeout=120_000)
    page.get_by_text("没有叫 pictrue 的东西").wait_for(timeout=120_000)
    page.locator(".jp-RenderedImage img").wait_for(timeout=60_000)
    told = page.locator(".jp-Notebook").inner_text()
    assert "第 2 行 `return x0 + nosie * t`" in told and "循环停不下来" in told
    assert "✓ 通过" in told and "三次训练：做好了" in told and "已记下 0 / 12" in told
    assert "Traceback" not in told and "细节没了" not in told, "没选之前看不到答案"

    first, second = page.get_by_role("button", name="揭晓").all()
    assert first.is_disabled() and second.is_disabled(), "先选，才揭晓"
    page.get_by_label("完全认不出").first.check()
    second.click()
    page.get_by_text("你选的是“完全认不出”").first.wait_for()
    assert page.get_by_text("细节没了").count() == 2, "两处摆的是同一道题"
    page.get_by_role("button", name="提示（1 / 3）").first.click()
    page.get_by_text("提示 1：").wait_for()
    post = questions.exam("post")
    for question in post:
        page.get_by_label(question.options[question.right][0]).check()
    page.get_by_text("已记下 12 / 12").wait_for()
    page.get_by_role("button", name="看对错").click()
    page.get_by_text(f"✓ 你选对了：{post[-1].options[post[-1].right][0]}").wait_for()

    picture = page.locator(".jp-RenderedImage img")
    assert picture.evaluate("e => e.clientWidth") == 600, "小图放大一倍，大图到一栏那么宽"
    picture.click()
    large = page.locator("dialog.lorakit-large img")
    assert large.bounding_box()["width"] > 900
    page.screenshot(path=tmp_path / "large.png")
    page.keyboard.press("Escape")
    large.wait_for(state="detached")

    page.screenshot(path=tmp_path / "light.png")
    assert page.evaluate(FAINT) == []
    page.locator(".lm-MenuBar-item", has_text="设置").click()
    page.locator(".lm-Menu-item", has_text="主题").first.hover()
    page.locator(".lm-Menu-item", has_text=re.compile("^JupyterLab 暗色$")).click()
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached", timeout=60_000)
    page.wait_for_timeout(2000)  # 样式表要换上
    page.screenshot(path=tmp_path / "dark.png")
    assert page.evaluate(FAINT) == []
    page.close()
