"""跑练习册、和提交的输出比：字要一样，数差一点可以，图按内容认；还有静态的检查要用的小函数。"""

import os
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
VIEW = "application/vnd.jupyter.widget-view+json"
PRINT = re.compile(r"指纹 ([0-9a-f]{16})")
HASH = re.compile(r"（[0-9a-f]{12}…）")  # 缓存文件名：编码器的权重一变就变
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?%?")
BITS = 8  # 64 位里差这么多以内，还是同一张图
RELATIVE, ABSOLUTE, PERCENT = 0.05, 0.03, 15  # 训练的结果在不同机器上会差一点


def read(book: Path):
    return nbformat.read(book, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def execute(book: Path, cache: Path):
    """从头到尾跑一遍，没人看的方式；任何一格出错就抛出。"""
    from nbclient import NotebookClient

    notebook = read(book)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    env = {**os.environ, "LORAKIT_HEADLESS": "1", "LORAKIT_CACHE": str(cache)}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": book.parent}}
    )
    client.execute(env=env)
    return notebook


def said(cell) -> str:
    """一格的全部文字输出；图用它的那行指纹代表。"""
    parts = []
    for output in cell.outputs:
        data = output.get("data", {})
        parts.append(output.get("text", "") + data.get("text/plain", ""))
        assert output.output_type != "error", output
    return "".join(part if part.endswith("\n") else part + "\n" for part in parts if part)


def pictures(cell) -> int:
    return sum(any(k.startswith("image/") for k in o.get("data", {})) for o in cell.outputs)


def differences(old: str, new: str) -> list[str]:
    """两份输出哪里不同；数在误差以内、图差几位都不算。"""
    skeletons, values = [], []
    for text in (old, new):
        text = HASH.sub("（哈希）", text)
        values.append((PRINT.findall(text), NUMBER.findall(PRINT.sub("指纹", text))))
        skeletons.append(NUMBER.sub("#", PRINT.sub("指纹", text)))
    if skeletons[0] != skeletons[1]:
        return [f"文字不同：提交的是 {old!r}，现在是 {new!r}"]
    found = []
    for a, b in zip(values[0][0], values[1][0], strict=True):
        if bin(int(a, 16) ^ int(b, 16)).count("1") > BITS:
            found.append(f"图变了：{a} -> {b}")
    for a, b in zip(values[0][1], values[1][1], strict=True):
        if not _close(a, b):
            found.append(f"数变了：{a} -> {b}")
    return found


def _close(a: str, b: str) -> bool:
    x, y = (float(value.replace(",", "").rstrip("%")) for value in (a, b))
    if a.endswith("%"):
        return abs(x - y) <= PERCENT
    exact = "." not in a and "." not in b and abs(x) < 1000 and abs(y) < 1000
    return x == y if exact else abs(x - y) <= max(ABSOLUTE, RELATIVE * abs(x))
