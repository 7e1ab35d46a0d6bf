"""真的 JupyterLab、真的浏览器：全部运行、拖一个滑块、停下再继续训练，控制台没有错误。"""

import re
import shutil
import time

import pytest
from browser_tools import CHROMIUM, Page, server
from notebook_tools import BOOKS

LONG = 1200  # 一本书再慢也该跑完了，秒
MISSING = '没装 {}：pip install -e ".[test]"'
playwright = pytest.importorskip("playwright.sync_api", reason=MISSING.format("playwright"))
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="没有 Chromium：apt-get install chromium")


@pytest.fixture(scope="module")
def lab_url(tmp_path_factory):
    pytest.importorskip("jupyterlab", reason=MISSING.format("jupyterlab"))
    folder = tmp_path_factory.mktemp("lab")
    for book in BOOKS:
        shutil.copy(book, folder)
    with server(folder) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("book", BOOKS, ids=[book.stem for book in BOOKS])
def test_run_all_slide_stop_and_continue(book, lab_url, browser, tmp_path):
    opened = Page(browser, lab_url, book.name)
    page, trains = opened.page, "run.start()" in book.read_text(encoding="utf-8")
    if trains:
        opened.select("run.start()")
        opened.command("notebook:run-all-above")
        time.sleep(2)
        opened.finish(LONG)
        assert opened.failures() == []
        opened.command("notebook:run-cell")
        stop = page.get_by_role("button", name="停止")
        stop.wait_for(timeout=60_000)
        page.get_by_text(re.compile(r"第 \d+ / \d+ 步")).wait_for(timeout=120_000)
        stop.click()
        page.get_by_text(re.compile("停在第 .* 步，已经存好")).wait_for(timeout=60_000)
        page.get_by_role("button", name="继续").click()
        page.get_by_text(re.compile(r"练完了，一共 \d+ 步")).wait_for(timeout=300_000)
        page.screenshot(path=tmp_path / "board.png")
        opened.select("run.result()")
        opened.command("notebook:run-all-below")
    else:
        opened.command("notebook:run-all-cells")
    time.sleep(2)
    opened.finish(LONG)
    assert opened.failures() == []
    opened.select("lab.explore(")
    cells = page.locator(".jp-CodeCell").filter(has_text="lab.explore(")
    area = cells.filter(has=page.locator(".noUi-handle")).first
    slider, picture = area.locator(".noUi-handle").first, area.locator(".widget-image").first
    slider.wait_for(timeout=30_000)
    before = picture.get_attribute("src")
    assert picture.evaluate("e => e.clientWidth <= e.naturalWidth"), "图被拉大了"
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function("([e, b]) => e.src !== b", arg=[picture.element_handle(), before])
    page.screenshot(path=tmp_path / "slider.png")
    assert opened.errors == []
    page.close()
