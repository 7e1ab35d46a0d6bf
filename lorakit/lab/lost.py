"""跳着运行、重启过内核：没有的名字，用一句中文说怎么接上，不给一长串英文。"""

import linecache
from traceback import walk_tb

from lorakit.lab.exercises.mishaps import unknown

ABOVE = (
    "跳着运行，或者重启过内核？它多半在前面的格子里：点住这一格，选菜单 Run → "
    "Run All Above Selected Cell（中文界面：运行 → 运行所选单元格上方的所有单元格），"
    "跑完再运行这一格。前面的都跑过了，就是名字写错了。"
)


def say_where():
    """从这里起，NameError 说人话；不在 IPython 里就什么也不做。"""
    from IPython import get_ipython

    shell = get_ipython()
    if shell:
        shell.set_custom_exc((NameError,), _told)


def _told(shell, kind, error, trace, tb_offset=None):
    if not isinstance(error, UnboundLocalError):
        error._render_traceback_ = lambda: [sentence(error, trace)]
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def sentence(error: NameError, trace) -> str:
    """哪一行、没有哪个名字、怎么接上。"""
    frame, line = list(walk_tb(trace))[-1]
    code = linecache.getline(frame.f_code.co_filename, line).strip()
    return f"第 {line} 行 `{code}`：{unknown(error, frame)}。\n{ABOVE}"
