"""跳着运行、重启过内核：没有的名字，用一句中文说在哪一节、怎么接上，不给一长串英文。"""

import linecache
import re
from traceback import walk_tb

from lorakit.lab import catchup, pulse, typos
from lorakit.lab.exercises.mishaps import unknown

ABOVE = (
    "跳着运行，或者重启过内核？{}点住这一格，选菜单 Run → "
    "Run All Above Selected Cell（中文界面：运行 → 运行选中单元格上方的所有单元格），"
    "跑完再运行这一格。前面的都跑过了，就是名字写错了。"
)


def say_where():
    """从这里起，缺的格子先补跑，算得久的说一声，NameError 和写法上的错说人话；要在 IPython 里。"""
    from IPython import get_ipython

    shell = get_ipython()
    if shell:
        shell.set_custom_exc((NameError,), _told)
        catchup.offer(shell)
        pulse.offer(shell)
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
    home = home_of(error.name or "", catchup.opened())
    where = f"它在“{home}”那一节的格子里。" if home else "它多半在前面的格子里。"
    return f"第 {line} 行 `{code}`：{unknown(error, frame)}。\n{ABOVE.format(where)}"


def home_of(name: str, book: str) -> str:
    """一个名字最先在打开的这一本的哪一节里有；找不到是空的。"""
    heading = ""
    for cell in catchup.cells_of(book):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^#+ (.+)$", text, re.M) or [heading])[-1]
        elif name in catchup.names_of(catchup.code_of(cell))[1]:
            return heading
    return ""
