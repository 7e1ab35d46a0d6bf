"""静态的检查要用的小函数；改了练习册以后，用它从头跑一遍、更新提交的输出：

python tests/notebook_tools.py notebooks/01_concepts.ipynb
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
VIEW = "application/vnd.jupyter.widget-view+json"


def read(book: Path):
    return nbformat.read(book, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def execute(book: Path, cache: Path, package: Path | None = ROOT):
    """从头到尾跑一遍，没人看的方式；任何一格出错就抛出。用 package 里的 lorakit，None 是不借用。"""
    from nbclient import NotebookClient

    notebook = read(book)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    env = {**os.environ, "LORAKIT_HEADLESS": "1", "LORAKIT_CACHE": str(cache)}
    paths = [str(package), env.get("PYTHONPATH", "")] if package else []
    env["PYTHONPATH"] = os.pathsep.join(paths)
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": book.parent}}
    )
    client.execute(env=env)
    return notebook


def minutes(notebook) -> float:
    """照实读一遍要几分钟：一分钟 300 个汉字，一行代码 6 秒，一道题 20 秒，一道练习 3 分钟。

    折起来的（<details>、选读的节）和另算时间的大作业不算；准备的第一格只要按一下，也不算。
    """
    return sum(_minutes(cell) for cell, apart in with_apart(notebook) if not apart)


def _minutes(cell) -> float:
    if cell.cell_type == "markdown":
        text = re.sub(r"<details>.*?</details>", "", cell.source, flags=re.S)
        return len(re.findall(r"[\u4e00-\u9fff]", text)) / 300
    if "find_spec" in cell.source:
        return 0.0
    asked = cell.source.count("lab.predict(") + 3 * cell.source.count("lab.recall(")
    return (cell.source.count("\n") + 1) / 10 + 3 * cell.source.count("lab.check.") + asked / 3


def with_apart(notebook) -> Iterator[tuple]:
    """一格格，各带它是不是在选读、大作业里：从那个标题起，到下一个同级或更高的标题为止。"""
    level = 0
    for cell in notebook.cells:
        heading = re.match(r"(#+) (.*)", cell.source) if cell.cell_type == "markdown" else None
        if heading and len(heading[1]) <= (level or 9):
            level = len(heading[1]) if re.search("选读|大作业|另算", heading[2]) else 0
        yield cell, bool(level)


def computing(notebook, whole: bool = False) -> float:
    """刚跑完的练习册算了几秒：一格从开始到答完；不连选读、大作业，whole 才连。"""
    total = 0.0
    for cell, apart in with_apart(notebook):
        told = cell.metadata.get("execution", {})
        if told and (whole or not apart):
            ends = [told["iopub.execute_input"], told["shell.execute_reply"]]
            begun, done = (datetime.fromisoformat(one.replace("Z", "+00:00")) for one in ends)
            total += (done - begun).total_seconds()
    return total


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


def refresh(book: Path):
    """重新运行并写回：控件的动态视图和状态只在活的内核里有用，不提交。"""
    with tempfile.TemporaryDirectory() as cache:
        notebook = execute(book, Path(cache))
    print(f"{book.name}：纯计算 {computing(notebook):.0f} 秒，", end="")
    print(f"连选读、大作业 {computing(notebook, True):.0f} 秒")
    for cell in code_cells(notebook):
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            output.get("data", {}).pop(VIEW, None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, book)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        refresh(Path(name))
