"""把东西摆到读者面前：同一份输出里既有可以动的控件，也有静态的图，手机和 GitHub 也看得见。"""

import base64
import inspect
import os
import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from lorakit.errors import LorakitError
from lorakit.lab.picture import Picture, encode, fingerprint, render

ROOT = Path(__file__).parents[2]
VIEW = "application/vnd.jupyter.widget-view+json"


def headless() -> bool:
    """有没有人在看：测试和自动运行（LORAKIT_HEADLESS、CI、pytest）时没有。"""
    return any(os.environ.get(name) for name in ("LORAKIT_HEADLESS", "CI", "PYTEST_CURRENT_TEST"))


def widgets():
    """ipywidgets；没装就说怎么装。"""
    try:
        import ipywidgets
    except ImportError as error:
        raise LorakitError(
            '这里要用 ipywidgets，还没有装。请运行 pip install "lorakit[notebook]"，再重启内核。'
        ) from error
    return ipywidgets


def frame(**options):
    """放图的控件，按图本来的大小显示；不这样写会被拉满整行。"""
    w = widgets()
    return w.Image(layout=w.Layout(align_self="flex-start", max_width="100%"), **options)


def put(image, picture: Picture):
    """给放图的控件换一张图。"""
    kind, content = encode(picture)
    image.format, image.value = kind.split("/")[1], content


class Placed:
    """自己已经摆出来的东西：格子末尾不用再摆一次。"""

    def _ipython_display_(self): ...


def publish(bundle: dict):
    """把一份多格式的输出交给前端，由它挑自己会画的。"""
    from IPython.display import display

    display(bundle, raw=True)


def pictured(picture: Picture) -> dict:
    """一张图的输出：图本身，和一行可以核对的文字（大小与内容的指纹）。"""
    kind, content = encode(picture)
    size = "{}x{}".format(*render(picture).size)
    data = base64.b64encode(content).decode()
    return {kind: data, "text/plain": f"〔图 {size}，指纹 {fingerprint(picture)}〕"}


def show(picture: Picture, *more: Picture):
    """摆出一张或几张图：PIL 图、[-1, 1] 的张量，或 `chart` 画的图表。"""
    for one in (picture, *more):
        if not isinstance(one, (Image.Image, Figure)) and not hasattr(one, "detach"):
            raise LorakitError(f"show 只会摆图：得到 {type(one).__name__}，应为图、张量或图表。")
        publish(pictured(one))


def table(rows: Iterable[Sequence[str]]) -> str:
    """一行行 HTML -> 靠左的表格；JupyterLab 的默认靠右。"""
    left = 'style="text-align:left"'
    lines = ("".join(f"<td {left}>{cell}</td>" for cell in row) for row in rows)
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def both(widget, static: dict):
    """控件和它的静态版本放进同一份输出。"""
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    publish({VIEW: view, **static})


def source(thing):
    """打开真正的代码看看：函数或类的全文，和它在哪个文件里。"""
    try:
        code, file = inspect.getsource(thing), inspect.getsourcefile(thing)
    except (TypeError, OSError) as error:
        raise LorakitError(
            f"看不了 {thing!r} 的代码：source 要一个 Python 函数或类，例如 source(flow.add_noise)。"
        ) from error
    path = Path(file)
    where = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    code = textwrap.dedent(code).rstrip()
    look = "font-family:monospace;background:#f6f6f4;color:#222222;padding:6px 10px"
    page = f'<p><code>{where}</code></p><pre style="{look}">{escape(code)}</pre>'
    publish({"text/html": page, "text/plain": f"# {where}\n{code}"})
