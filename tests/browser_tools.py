"""真的 JupyterLab、真的浏览器：起一个服务、打开一本练习册、像人一样按键和点鼠标；手机里的照片。"""

import contextlib
import io
import json
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

import numpy as np
from notebook_tools import ROOT
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
# 离线时徽章等外部图片取不到，不是练习册的错
QUIET = re.compile(r"favicon|net::ERR_|service-worker|deprecated|ResizeObserver|\.map\b", re.I)
# 输出里每一段看得见的字，和它真正的底色的对比度；返回不够的
FAINT = """() => {
  const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = c => [0, 1, 2].map(i => c[i] / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const faint = [];
  for (const e of document.querySelectorAll('.jp-OutputArea-output *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.offsetParent || e.closest('button, [disabled]')) continue;
    let under = e, back = [0, 0, 0, 0];
    while (under && !(back = rgb(getComputedStyle(under).backgroundColor))[2] && back[3] === 0)
      under = under.parentElement;
    const pair = [light(rgb(getComputedStyle(e).color)), light(back)].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 3) faint.push(e.textContent.slice(0, 40) + ' ' + ratio.toFixed(2));
  }
  return faint }"""
VISIBLE = """what => [...document.querySelectorAll(what)].filter(e => e.offsetParent)
  .map(e => e.innerText)"""
# 格子在跑时，最久多少秒没有一样东西出现或改变（输出、控件），是在哪一格
LIFE = """(p, a) => {
  const shown = ['stream', 'display_data', 'execute_result', 'update_display_data', 'error'];
  const life = window.lorakitLife = {worst: 0, where: '', code: '', last: null};
  p.sessionContext.iopubMessage.connect((_, message) => {
    const now = performance.now() / 1000, kind = message.header.msg_type;
    const asked = (message.parent_header.msg_type || '') === 'execute_request';
    if (kind === 'execute_input') { life.code = message.content.code; life.last = now; }
    const over = kind === 'status' && asked && message.content.execution_state === 'idle';
    if (life.last === null || !(over || kind === 'comm_msg' || shown.includes(kind))) return;
    if (now - life.last > life.worst) {
      life.worst = now - life.last;
      life.where = life.code.slice(0, 80);
    }
    life.last = over ? null : now;
  });
  return true }"""


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
            self.script(LIFE)

    def silence(self) -> tuple[float, str]:
        """格子在跑时，最久多少秒没有动静，在哪一格。"""
        life = self.page.evaluate("window.lorakitLife")
        return life["worst"], life["where"]

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

    def find(self, text: str) -> int:
        """第一个含有这段代码的格子是第几格。"""
        at = self.script(
            """(p, a) => p.content.widgets.findIndex(
                c => c.model.type === 'code' && c.model.sharedModel.source.includes(a[0]))""",
            text,
        )
        assert at >= 0, f"没有这一格：{text}"
        return at

    def active(self) -> int:
        return self.script("(p, a) => p.content.activeCellIndex")

    def select(self, text: str):
        """选中第一个含有这段代码的格子，用鼠标点进去。"""
        self.script(
            "(p, a) => { p.content.activeCellIndex = a[0]; return p.content.scrollToItem(a[0]) }",
            self.find(text),
        )
        self.page.locator(".jp-Notebook-cell.jp-mod-active .cm-content").click()

    def run(self, text: str):
        """运行第一个含有这段代码的格子，不等它。"""
        self.select(text)
        self.page.keyboard.press("Control+Enter")

    def press_on(self, text: str = ""):
        """从现在这一格起，一路按 Shift+Enter，到含有这段代码的格子为止；不写就到最后一格。"""
        goal = self.find(text) if text else self.script("(p, a) => p.content.widgets.length - 1")
        while (now := self.active()) < goal:
            self.page.keyboard.press("Shift+Enter")
            self.wait(f"(p) => p.content.activeCellIndex > {now}", 30)

    def answer(self, text: str, code: str) -> str:
        """把含有 text 的格子整个换成 code，运行，等它；返回它说的。"""
        self.select(text)
        at = self.active()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(code)
        self.page.keyboard.press("Control+Enter")
        self.finish(120)
        return self.said(at)

    def said(self, *numbers: int) -> str:
        """这几格的输出，不写就是每一格的；图也在里面。"""
        outputs = self.script("(p, a) => p.content.widgets.map(c => c.model.outputs?.toJSON())")
        chosen = [outputs[at] for at in numbers] if numbers else outputs
        return json.dumps(chosen, ensure_ascii=False)

    def finish(self, seconds: float):
        self.wait(
            """(p) => p.sessionContext.session.kernel.status === 'idle' && p.content.widgets.every(
                c => c.model.type !== 'code' || c.model.executionState !== 'running')""",
            seconds,
        )

    def theme(self, name: str):
        """换成浅色（Light）或深色（Dark）。"""
        self.page.evaluate(
            """name => window.jupyterapp.commands.execute(
                 'apputils:change-theme', {theme: 'JupyterLab ' + name})""",
            name,
        )
        light = str(name == "Light").lower()
        self.page.wait_for_function(f"document.body.dataset.jpThemeLight === '{light}'")
        time.sleep(1.5)  # 颜色是渐渐换过去的

    def screens(self) -> Iterator:
        """从头到尾一屏一屏地翻，每一屏给出网页。"""
        move = """(p, a) => {
          const pane = p.content.node.querySelector('.jp-WindowedPanel-outer');
          const before = pane.scrollTop;
          pane.scrollTop = a[0] ? before + pane.clientHeight * 0.8 : 0;
          return pane.scrollTop > before }"""
        more = self.script(move, False) or True
        while more:
            time.sleep(0.3)  # 翻到的格子才画出来
            yield self.page
            more = self.script(move, True)

    def shut_down(self):
        """关掉内核：像关了电脑。"""
        self.script("(p, a) => p.sessionContext.shutdown().then(() => true)")

    def save(self):
        """存盘，像自动保存那样。拖过的滑块，图会晚一点才画好，那时又有了没存的：再存一次。"""
        self.finish(120)
        for _ in range(6):
            self.script("(p, a) => p.context.save().then(() => true)")
            time.sleep(3)
            if not self.script("(p, a) => p.context.model.dirty"):
                return
        raise AssertionError("存了六次，还有没存的：有控件一直在变")

    def failures(self) -> list[str]:
        return self.script(
            """(p, a) => p.content.widgets.filter(c => c.model.type === 'code').flatMap(c =>
              c.model.outputs.toJSON().filter(o => o.output_type === 'error').map(
                o => c.model.sharedModel.source.slice(0, 60) + ' -> ' + o.ename + o.evalue))"""
        )


def photos(count: int = 12) -> Iterator[dict]:
    """手机里的照片：中文名字、躺着的、HEIC、一张 18 MB 的；竖着拍的，转正以后高比宽大。"""
    import pillow_heif

    from lorakit.tiny.world import Scene, Thing, render

    pillow_heif.register_heif_opener()
    places, marks = ("meadow", "sea", "snow", "night"), Image.Exif()
    marks[274] = 6  # 拍摄方向：要转 90 度才正
    for number in range(count):
        thing = Thing("ohwx", "white", ("left", "center", "right")[number % 3], "big")
        scene = render(Scene((thing,), places[number % 4], seed=number), 256)
        upright = scene.crop((32, 0, 224, 256)).resize((3024, 4032) if number == 1 else (480, 640))
        lying, file = upright.rotate(90, expand=True), io.BytesIO()
        if number == 0:
            lying.save(file, "HEIF", quality=95, exif=marks.tobytes())
            yield {"name": "IMG_0001.HEIC", "mimeType": "image/heic", "buffer": file.getvalue()}
            continue
        if number == 1:  # 一千二百万像素，满是夜里的噪点
            grain = np.random.default_rng(0).integers(-40, 41, (3024, 4032, 3), dtype=np.int16)
            lying = Image.fromarray((np.asarray(lying) + grain).clip(0, 255).astype(np.uint8))
        lying.save(file, "JPEG", quality=95, subsampling=0, exif=marks)
        name = f"小橘 在窗台 {number:02}.jpg"
        yield {"name": name, "mimeType": "image/jpeg", "buffer": file.getvalue()}
