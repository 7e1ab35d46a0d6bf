"""重启过内核、跳着运行：一格要用的名字还没有，就先补跑前面造出它的那几格。"""

import ast
import builtins
import dis
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from types import CodeType

from lorakit.files import kept


def _source(value) -> bool:
    """一格的内容：一段文字，或一行行的。"""
    lines = value if isinstance(value, list) else [value]
    return all(isinstance(line, str) for line in lines)


BOOK = {"cells": [{"cell_type": str, "source": _source}]}
SESSION = "JPY_SESSION_NAME"  # JupyterLab 在这里告诉内核，打开的是哪一本
VSCODE = "__vsc_ipynb_file__"  # VS Code 把它放在读者的名字里


def opened(names: dict | None = None) -> str:
    """打开的是哪一本；不知道是空的。"""
    return os.environ.get(SESSION, "") or str((names or {}).get(VSCODE, ""))


def cells_of(book: str) -> list[dict]:
    """一本练习册的格子，照上次存盘的；读不了就是空的。"""
    return kept(Path(book), BOOK, {"cells": []})["cells"] if book.endswith(".ipynb") else []


def code_of(cell: dict) -> str:
    """一格代码；文字的格子、读不懂的格子是空的。"""
    return readable("".join(cell["source"])) if cell["cell_type"] == "code" else ""


def readable(code: str) -> str:
    """代码原样；写到一半的、带 % 的，Python 读不懂，是空的。"""
    try:
        compile(code, "cell", "exec")
    except (SyntaxError, ValueError):  # ValueError：里面有空字符
        return ""
    return code


def names_of(code: str) -> tuple[set[str], set[str]]:
    """一格代码：跑之前就要有的名字、跑完新有的名字。"""
    top = compile(code, "cell", "exec")
    wants, makes = set(), set()
    for step in dis.get_instructions(top):
        if step.opname in ("STORE_NAME", "STORE_GLOBAL"):
            makes.add(step.argval)
        elif step.opname in ("LOAD_NAME", "LOAD_GLOBAL") and step.argval not in makes:
            wants.add(step.argval)
    inner = set().union(*map(_globals, _nested(top)))  # 函数里用到的，叫到它时才要有
    return (wants | inner - makes) - set(dir(builtins)), makes


def changes(code: str) -> set[str]:
    """一格代码里，没有换成新的、却在原处改了的名字：x.update(...)、x[0] = ...。"""
    found = set()
    for node in ast.walk(ast.parse(code)):
        parts = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            parts = [node.value.func]
        found |= {_root(one) for one in parts if isinstance(one, ast.Attribute | ast.Subscript)}
    return found - {""}


def imported(code: str) -> set[str]:
    """一格代码里导入的名字：叫它们的函数，不算改了它们。"""
    nodes = (n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Import | ast.ImportFrom))
    return {(one.asname or one.name).split(".")[0] for node in nodes for one in node.names}


def needed(codes: list[str], at: int, have: Collection[str]) -> list[int]:
    """跑第 at 格之前还差前面哪几格，照先后；have 是已经有的名字。"""
    want, found = names_of(codes[at])[0] - set(have), []
    modules = set().union(*map(imported, codes))
    for number in range(at - 1, -1, -1):
        wants, makes = names_of(codes[number])
        if want & (makes | changes(codes[number]) - modules):
            found.append(number)
            want = (want - makes) | (wants - set(have))
    return found[::-1]


def offer(shell):
    """从这里起，每一格跑之前先看看缺什么，缺的补上。"""
    known = shell.events.callbacks["pre_run_cell"]
    if not any(isinstance(one, CatchUp) for one in known):  # 第一格再运行一次，不补两遍
        shell.events.register("pre_run_cell", CatchUp(shell))


class CatchUp:
    """补跑前面的格子：一条进度条，补完说一句；它们摆出来的东西不再摆一遍。"""

    def __init__(self, shell):
        self.shell = shell

    def __call__(self, info):
        names, asked = self.shell.user_ns, readable(info.raw_cell)
        if not names_of(asked)[0] - set(names):
            return  # 多半什么也不缺，不用去读练习册
        cells = cells_of(opened(names))
        at = _found(cells, info)
        if at is None:
            return
        codes = [*map(code_of, cells[:at]), asked]
        if missing := needed(codes, at, names):
            self._run([codes[number] for number in missing])

    def _run(self, codes: list[str]):
        from IPython.utils.capture import capture_output

        from lorakit.lab.bar import each

        for code in each(codes, "前面有几格还没有跑，先补上"):
            with capture_output():
                error = self.shell.run_cell(code, silent=True).error_in_exec
            if error is not None:
                line = code.strip().splitlines()[0]
                print(f"补跑前面的格子，停在 `{line}` 那一格：{type(error).__name__}：{error}")
                return
        print(f"（前面还没有跑的 {len(codes)} 格，已经替你补跑了。）")


def _found(cells: list[dict], info) -> int | None:
    """要跑的是哪一格：照编号认，前端不说编号就照内容认；认不出是 None。"""
    here = getattr(info, "cell_id", None)
    for number, cell in enumerate(cells):
        if here and cell.get("id") == here:
            return number
    same = (n for n, one in enumerate(cells) if "".join(one["source"]) == info.raw_cell)
    return next(same, None)


def _nested(code: CodeType) -> Iterator[CodeType]:
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield one
            yield from _nested(one)


def _globals(code: CodeType) -> set[str]:
    """一段里面的代码用到的外面的名字。"""
    steps = dis.get_instructions(code)
    return {one.argval for one in steps if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}


def _root(node: ast.AST | None) -> str:
    """x.a[0].b() 的最左边：x。"""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call | ast.Starred):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""
