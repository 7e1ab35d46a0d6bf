"""Colab 公布的那组版本（ipywidgets 7.7.1 等），没装 lorakit：每本从第一格一路运行到底。

要另造一个虚拟环境、把两本各跑一遍，三分钟左右，所以平时跳过；运行它：make colab
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from notebook_tools import BOOKS, ROOT, code_cells, execute

COLAB = ("ipywidgets==7.7.1", "ipykernel==6.17.1", "ipython==7.34.0")
pytestmark = pytest.mark.skipif(
    not os.environ.get("LORAKIT_COLAB"), reason="要三分钟：运行 make colab"
)


@pytest.fixture(scope="module")
def colab(tmp_path_factory) -> Path:
    """一个虚拟环境：小包是 Colab 的版本，torch 等大包借用现在的环境，没有 lorakit。"""
    folder = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "-q"]
    done = subprocess.run([*pip, *COLAB], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"装不上 Colab 的版本：{done.stderr.strip().splitlines()[-1]}")
    inside = next((folder / "lib").glob("python3*")) / "site-packages"
    (inside / "heavy.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """整个仓库的一份拷贝，像刚下载的那样。"""
    folder = tmp_path_factory.mktemp("repo")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("这里不是 git 仓库，不知道哪些文件是仓库里的")
    for name in listed.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize("book", BOOKS, ids=[book.stem for book in BOOKS])
def test_runs_in_colab(book, colab, copy, tmp_path, monkeypatch):
    spec = colab / "share" / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True, exist_ok=True)
    python = colab / "bin" / "python"
    argv = f'["{python}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
    (spec / "kernel.json").write_text(
        f'{{"argv": {argv}, "display_name": "colab", "language": "python"}}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(colab / "share" / "jupyter"))
    notebook = execute(copy / "notebooks" / book.name, tmp_path / "cache", package=None)
    cells = code_cells(notebook)
    assert all(cell.execution_count for cell in cells)
    where = "import lorakit, ipywidgets; print(lorakit.__file__, ipywidgets.__version__)"
    monkeypatch.delenv("PYTHONPATH", raising=False)
    said = subprocess.run([python, "-c", where], capture_output=True, text=True, cwd=tmp_path)
    assert str(colab) in said.stdout and "7.7.1" in said.stdout
