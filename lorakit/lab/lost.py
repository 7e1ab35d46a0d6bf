"""跳着运行、重启过内核：没有的名字，用一句中文说在哪一节、怎么接上，不给一长串英文。"""

import ast
import linecache
import os
import re
from pathlib import Path
from traceback import walk_tb

from lorakit.files import kept
from lorakit.lab import typos
from lorakit.lab.exercises.mishaps import unknown

ABOVE = (
    "跳着运行，或者重启过内核？{}点住这一格，选菜单 Run → "
    "Run All Above Selected Cell（中文界面：运行 → 运行选中单元格上方的所有单元格），"
    "跑完再运行这一格。前面的都跑过了，就是名字写错了。"
)


def _source(value) -> bool:
    """一格的内容：一段文字，或一行行的。"""
    lines = value if isinstance(value, list) else [value]
    return all(isinstance(line, str) for line in lines)


BOOK = {"cells": [{"cell_type": str, "source": _source}]}
SESSION = "JPY_SESSION_NAME"  # JupyterLab 在这里告诉内核，打开的是哪一本


def say_where():
    """从这里起，NameError 和写法上的错说人话；不在 IPython 里就什么也不做。"""
    from IPython import get_ipython

    shell = get_ipython()
    if shell:
        shell.set_custom_exc((NameError,), _told)
        if typos.tell not in shell.events.callbacks["post_run_cell"]:  # 第一格再运行一次，不说两遍
            shell.events.register("post_run_cell", typos.tell)


def _told(shell, kind, error, trace, tb_offset=None):
    if not isinstance(error, UnboundLocalError):
        error._render_traceback_ = lambda: [sentence(error, trace)]
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def sentence(error: NameError, trace) -> str:
    """哪一行、没有哪个名字、它在哪一节、怎么接上。"""
    frame, line = list(walk_tb(trace))[-1]
    code = linecache.getline(frame.f_code.co_filename, line).strip()
    home = home_of(error.name or "", os.environ.get(SESSION, ""))
    where = f"它在“{home}”那一节的格子里。" if home else "它多半在前面的格子里。"
    return f"第 {line} 行 `{code}`：{unknown(error, frame)}。\n{ABOVE.format(where)}"


def home_of(name: str, book: str) -> str:
    """一个名字最先在打开的这一本的哪一节里有；找不到是空的。"""
    heading, blank = "", {"cells": []}
    for cell in kept(Path(book), BOOK, blank)["cells"] if book.endswith(".ipynb") else ():
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^#+ (.+)$", text, re.M) or [heading])[-1]
        elif cell["cell_type"] == "code" and name in text and name in _made(text):
            return heading
    return ""


def _made(code: str) -> set[str]:
    """一格代码里新有的名字：赋值、函数、类、导入。"""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError:  # 读者改到一半的格子
        return set()
    made = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    made |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    imports = [a for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names]
    return made | {(a.asname or a.name).split(".")[0] for a in imports}
