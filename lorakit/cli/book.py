"""打开练习册的命令：先看看少什么，再用合适的设置打开 JupyterLab。"""

import os
import re
import socket
import subprocess
import sys
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from lorakit.cli.options import DONE, command, option
from lorakit.errors import LorakitError

QUIET = ("--log-level=ERROR", "--LabApp.log_level=ERROR")  # 网址总会印出来
NEEDS = ("jupyterlab", "ipywidgets", "ipykernel")
CHINESE = "jupyterlab-language-pack-zh-CN"
FOLDER = Path(__file__).parents[2] / "notebooks"  # 下载下来的仓库里
INSTALL = 'pip install -c constraints.txt -e ".[notebook]"'


@command(
    "lorakit book 1",
    option("number", nargs="?", help="第几本，1 到 5；不写就列出五本"),
    option("--port", type=int, help="网页的端口，默认挑一个空着的（从 8888 起）"),
    option("--no-browser", action="store_true", help="不自动打开浏览器，只印出网址"),
)
def book(args) -> int:
    """用 JupyterLab 打开一本练习册：中文界面，收得下手机照片。"""
    books = _books()
    if args.number is None:
        print("\n".join(f"lorakit book {n}   {_title(file)}" for n, file in books.items()))
        return DONE
    file = _chosen(args.number, books)
    _check(file, args.port)
    print(f"打开 {file.name}：浏览器没有自己打开，就把下面带 token 的网址复制过去；停下按 Ctrl-C。")
    lab = subprocess.Popen(_command(file, args.port, args.no_browser), env=_environment())
    try:
        return DONE if lab.wait() == 0 else _failed(lab.returncode)
    except KeyboardInterrupt:
        lab.terminate()
        lab.wait()
        return DONE


def _books() -> dict[int, Path]:
    """五本在哪里：先看当前的文件夹，再看仓库里。"""
    for folder in (Path.cwd(), Path.cwd() / "notebooks", FOLDER):
        found = {int(f.name[:2]): f for f in sorted(folder.glob("0[1-5]_*.ipynb"))}
        if found:
            return found
    raise LorakitError(
        "没有找到练习册（notebooks/01_concepts.ipynb 等）：它们在仓库里，不在装好的包里。"
        "先下载整个仓库（git clone，或网页上的 zip），再到它的文件夹里运行 lorakit book 1。"
    )


def _title(file: Path) -> str:
    found = re.search(r'"# (\d\d [^"\\]+)', file.read_text(encoding="utf-8"))
    return f"{found[1]}（{file.name}）" if found else file.name


def _chosen(number: str, books: dict[int, Path]) -> Path:
    digits = re.match(r"0?([1-5])\b", number.replace("_", " "))
    if not digits or int(digits[1]) not in books:
        there = "、".join(map(str, books))
        raise LorakitError(f"没有第“{number}”本：写 {there} 里的一个，例如 lorakit book 1。")
    return books[int(digits[1])]


def _check(file: Path, port: int | None):
    """缺包、存不下、端口占着：现在就说。"""
    missing = [name for name in NEEDS if not there(name)]
    if missing:
        raise LorakitError(
            f"还没有装 {'、'.join(missing)}：在仓库的文件夹里运行\n    {INSTALL}\n"
            f"（用的是 {sys.executable}；装在了别的环境里，就先激活那个环境。）"
        )
    if not there(CHINESE):
        print(f"提醒：没有装 {CHINESE}，界面会是英文。要中文就运行 pip install {CHINESE}")
    if not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)):
        raise LorakitError(
            f"“{file.parent}”里不让写，练习册存不下来：把整个 notebooks 文件夹抄到自己的地方，"
            "在那里运行。"
        )
    if port is not None and not _free(port):
        raise LorakitError(
            f"端口 {port} 已经有程序在用：换一个，例如 --port {port + 1}；不写 --port 就自动挑。"
        )


def there(package: str) -> bool:
    """这个包装了没有。"""
    return find_spec(package.replace("-", "_")) is not None


def _free(port: int) -> bool:
    if not 0 < port < 65536:
        raise LorakitError(f"--port {port}：端口是 1 到 65535 之间的整数，例如 8888。")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _settings() -> Path:
    return Path(str(resources.files("lorakit") / "assets" / "jupyter"))


def _command(file: Path, port: int | None, quiet: bool) -> list[str]:
    chosen = [f"--port={port}", "--ServerApp.port_retries=0"] if port else []
    chosen += ["--no-browser"] if quiet else []
    chosen += ["--allow-root"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    settings = f"--LabApp.app_settings_dir={_settings()}"
    return [sys.executable, "-m", "jupyterlab", str(file), settings, *QUIET, *chosen]


def _environment() -> dict[str, str]:
    """上传的大小等服务器的设置，从这个文件夹里读；读者自己的设置照样有效。"""
    paths = [str(_settings()), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    return {**os.environ, "JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, paths))}


def _failed(code: int) -> int:
    raise LorakitError(f"JupyterLab 没有开起来（退出码 {code}），它说的话在上面。")
