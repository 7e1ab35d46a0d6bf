"""真的 JupyterLab、真的浏览器：起一个服务、打开一本练习册、像人一样按键和点鼠标。"""

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
from collections.abc import Iterator
from pathlib import Path

from notebook_tools import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
# 离线时徽章等外部图片取不到，不是练习册的错
QUIET = re.compile(r"favicon|net::ERR_|service-worker|deprecated|ResizeObserver|\.map\b", re.I)


@contextlib.contextmanager
def server(folder: Path, *options: str) -> Iterator[str]:
    """在 folder 里起一个 JupyterLab，给出地址；离开时连内核一起关掉。"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_CURRENT_TEST")}
    env |= {"LORAKIT_CACHE": str(folder / "cache"), "JUPYTER_CONFIG_DIR": str(folder / "config")}
    env |= {"PYTHONPATH": str(ROOT), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "spaces")}
    env |= {"JUPYTER_CONFIG_PATH": str(ROOT / "lorakit" / "assets" / "jupyter")}  # 收得下大照片
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
               "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}",
               "--expose-app-in-browser", "--LabApp.news_url=", *options]  # fmt: skip
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
    try:
        url = f"http://127.0.0.1:{port}/lab"
        for _ in range(240):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(url).close()
                break
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(30)


class Page:
    """一本打开的练习册。"""

    def __init__(self, browser, url: str, name: str, kernel: bool = True):
        """kernel=False：不等内核，像第二天打开、什么都还没运行。"""
        self.page = browser.new_page(viewport={"width": 1200, "height": 1400})
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._heard)
        self.page.goto(f"{url}/tree/{name}?reset", wait_until="domcontentloaded")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
        if kernel:
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

    def run(self, text: str):
        """运行第一个含有这段代码的格子，不等它。"""
        self.select(text)
        self.command("notebook:run-cell")

    def finish(self, seconds: float):
        self.wait(
            """(p) => p.sessionContext.session.kernel.status === 'idle' && p.content.widgets.every(
                c => c.model.type !== 'code' || c.model.executionState !== 'running')""",
            seconds,
        )

    def save(self):
        """存盘，像自动保存那样。"""
        self.command("docmanager:save")
        self.wait("(p) => !p.context.model.dirty", 20)

    def failures(self) -> list[str]:
        return self.script(
            """(p, a) => p.content.widgets.filter(c => c.model.type === 'code').flatMap(c =>
              c.model.outputs.toJSON().filter(o => o.output_type === 'error').map(
                o => c.model.sharedModel.source.slice(0, 60) + ' -> ' + o.ename + o.evalue))"""
        )
