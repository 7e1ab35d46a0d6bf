"""真的 JupyterLab、真的浏览器：全部运行、拖一个滑块、停下再继续训练，控制台没有错误。"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from notebook_tools import BOOKS, ROOT

MISSING = '没装 {}：pip install -e ".[test]"'
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
playwright = pytest.importorskip("playwright.sync_api", reason=MISSING.format("playwright"))
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="没有 Chromium：apt-get install chromium")
# 离线时徽章等外部图片取不到，不是练习册的错
QUIET = re.compile(r"favicon|net::ERR_|service-worker|deprecated|ResizeObserver|\.map\b", re.I)


@pytest.fixture(scope="module")
def lab_url(tmp_path_factory):
    pytest.importorskip("jupyterlab", reason=MISSING.format("jupyterlab"))
    folder = tmp_path_factory.mktemp("lab")
    for book in BOOKS:
        shutil.copy(book, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_CURRENT_TEST")}
    env |= {"LORAKIT_CACHE": str(folder / "cache"), "JUPYTER_CONFIG_DIR": str(folder / "config")}
    env |= {"PYTHONPATH": str(ROOT), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "spaces")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
               "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}",
               "--expose-app-in-browser", "--LabApp.news_url="]  # fmt: skip
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
    url = f"http://127.0.0.1:{port}/lab"
    for _ in range(240):
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(url).close()
            break
        time.sleep(0.5)
    yield url
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Page:
    """一本打开的练习册。"""

    def __init__(self, browser, url: str, name: str):
        self.page = browser.new_page(viewport={"width": 1200, "height": 1400})
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._heard)
        self.page.goto(f"{url}/tree/{name}?reset", wait_until="domcontentloaded")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
        self.wait("(p) => p.sessionContext.session?.kernel?.status === 'idle'", 120)

    def _heard(self, message):
        if message.type == "error" and not QUIET.search(message.text + str(message.location)):
            self.errors.append(message.text)

    def script(self, body: str, *arguments):
        """在当前的练习册 p 上运行一段脚本。"""
        return self.page.evaluate(f"(a) => ({body})(window.jupyterapp.shell.currentWidget, a)",
                                  arguments)  # fmt: skip

    def wait(self, body: str, seconds: float):
        deadline = time.monotonic() + seconds
        while not self.script(f"(p, a) => Boolean(({body})(p))"):
            assert time.monotonic() < deadline, f"等了 {seconds} 秒：{body}\n{self.failures()}"
            time.sleep(0.3)

    def command(self, name: str):
        self.script("(p, a) => { window.jupyterapp.commands.execute(a[0]); return true }", name)

    def select(self, text: str) -> int:
        """选中第一个含有这段代码的格子。"""
        return self.script(
            """(p, a) => {
              const i = p.content.widgets.findIndex(
                c => c.model.type === 'code' && c.model.sharedModel.source.includes(a[0]));
              p.content.activeCellIndex = i; p.content.scrollToItem(i); return i }""",
            text,
        )

    def finish(self, seconds: float):
        self.wait(
            """(p) => p.sessionContext.session.kernel.status === 'idle' && p.content.widgets.every(
                c => c.model.type !== 'code' || c.model.executionState !== 'running')""",
            seconds,
        )

    def failures(self) -> list[str]:
        return self.script(
            """(p, a) => p.content.widgets.filter(c => c.model.type === 'code').flatMap(c =>
              c.model.outputs.toJSON().filter(o => o.output_type === 'error').map(
                o => c.model.sharedModel.source.slice(0, 60) + ' -> ' + o.ename + o.evalue))"""
        )


@pytest.mark.parametrize("book", BOOKS, ids=[book.stem for book in BOOKS])
def test_run_all_slide_stop_and_continue(book, lab_url, browser, tmp_path):
    opened = Page(browser, lab_url, book.name)
    page, trains = opened.page, "run.start()" in book.read_text(encoding="utf-8")
    if trains:
        opened.select("run.start()")
        opened.command("notebook:run-all-above")
        time.sleep(2)
        opened.finish(400)
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
    opened.finish(400)
    assert opened.failures() == []
    opened.select("lab.explore(")
    area = page.locator(".jp-CodeCell").filter(has=page.locator(".noUi-handle")).first
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
