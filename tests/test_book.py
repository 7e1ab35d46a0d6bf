"""lorakit book：先看少什么，再用合适的设置打开 JupyterLab；真的开一个，问它几句。"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from notebook_tools import BOOKS, ROOT, read

from lorakit.cli import book
from lorakit.cli.main import main

TOKEN = "only-for-this-test"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _ask(port: int, path: str):
    url = f"http://127.0.0.1:{port}{path}"
    asked = urllib.request.Request(url, headers={"Authorization": f"token {TOKEN}"})
    with urllib.request.urlopen(asked, timeout=20) as answer:
        return json.loads(answer.read())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    for needed in (*book.NEEDS, book.CHINESE):
        assert book.there(needed), f'没装 {needed}：pip install -e ".[test]"'
    folder, port = tmp_path_factory.mktemp("book"), free_port()
    env = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_CURRENT_TEST")}
    env |= {"JUPYTER_TOKEN": TOKEN, "JUPYTER_CONFIG_DIR": str(folder / "config")}
    env |= {"PYTHONPATH": str(ROOT), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "spaces")}
    command = [sys.executable, "-m", "lorakit", "book", "1", "--no-browser", f"--port={port}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=env, stdout=log, stderr=log, cwd=ROOT, start_new_session=True,
            # 在后台跑的测试里 Ctrl-C 是不理的，子进程会跟着不理
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    for _ in range(240):
        assert process.poll() is None, (folder / "log").read_text()
        try:
            _ask(port, "/api/status")
            break
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    yield port
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 0, "按 Ctrl-C 是好好地停下"


def test_the_book_is_there(server):
    listed = _ask(server, "/api/contents/")
    assert "01_concepts.ipynb" in [file["name"] for file in listed["content"]]


def test_it_is_chinese_and_shows_no_news(server):
    words = json.dumps(_ask(server, "/lab/api/translations/zh_CN")["data"], ensure_ascii=False)
    assert "运行选中单元格上方的所有单元格" in words, "练习册里写的就是菜单上的字"
    start = next(c.source for c in read(BOOKS[0]).cells if c.source.startswith("## 0 准备"))
    assert "运行选中单元格上方的所有单元格" in start
    plugin = _ask(server, "/lab/api/settings/@jupyterlab/translation-extension:plugin")
    assert plugin["schema"]["properties"]["locale"]["default"] == "zh_CN"
    news = _ask(server, "/lab/api/settings/@jupyterlab/apputils-extension:notification")
    assert news["schema"]["properties"]["fetchNews"]["default"] == "false"
    assert news["schema"]["properties"]["checkForUpdates"]["default"] is False


def test_photos_of_a_telephone_fit():
    done = subprocess.run(
        [sys.executable, "-m", "jupyterlab", "--show-config-json"],
        env=book._environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    chosen = json.loads(done.stdout)["ServerApp"]
    assert chosen["tornado_settings"]["websocket_max_message_size"] >= 100 << 20
    assert chosen["max_body_size"] >= 1 << 29 and chosen["max_buffer_size"] >= 1 << 29


def test_no_number_lists_the_books(capsys):
    assert main(["book"]) == 0
    said = capsys.readouterr().out
    assert said.count("lorakit book") == 5 and "04 训练 FLUX" in said


@pytest.mark.parametrize("number", ["9", "0", "一", "6_more"])
def test_a_wrong_number_is_told(number, capsys):
    assert main(["book", number]) == 1
    assert f"没有第“{number}”本" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["1", "01", "01_concepts.ipynb"])
def test_ways_to_say_the_first(number):
    assert book._chosen(number, book._books()).name == "01_concepts.ipynb"


def test_what_is_missing_is_told(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(book, "there", lambda name: name != "jupyterlab")
    assert main(["book", "1"]) == 1
    said = capsys.readouterr().err
    assert "还没有装 jupyterlab" in said and book.INSTALL in said and sys.executable in said
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(book, "FOLDER", tmp_path / "none")
    assert main(["book", "1"]) == 1
    said = capsys.readouterr().err
    assert "没有找到练习册" in said and "下载整个仓库" in said


def test_a_busy_port_is_told(capsys):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert main(["book", "1", "--port", str(port)]) == 1
    assert f"端口 {port} 已经有程序在用" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["99999", "0", "-1"])
def test_a_port_that_cannot_be_is_told(port, capsys, monkeypatch):
    monkeypatch.setattr(book.subprocess, "Popen", None)  # 说了就不再打开
    assert main(["book", "1", f"--port={port}"]) == 1
    assert "1 到 65535" in capsys.readouterr().err
