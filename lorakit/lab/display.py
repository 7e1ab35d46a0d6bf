"""把东西摆到读者面前：可以动的控件，和它静态的样子；没有内核、在手机和 GitHub 上也看得见。"""

import base64
import inspect
import os
import re
import textwrap
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.errors import LorakitError
from lorakit.inert import in_html, inert

if TYPE_CHECKING:  # picture 要载入 torch，好几秒：有图可画时才载入，第一格的进度条才马上摆得出来
    from lorakit.lab.picture import Picture

ROOT = Path(__file__).parents[2]
VIEW = "application/vnd.jupyter.widget-view+json"
STILL, LIVE = "lorakit-still", "lorakit-live"  # 静态的那一份、活着的控件：样式表靠它们认
AGAIN = "运行这一格，就能再动它。"
CHILD = ".jp-OutputArea-child"  # JupyterLab 里，一份输出是一个这样的框
# 控件活着，就藏起静态的那一份；没有内核了（隔天打开、刚刚重启过），就藏起动不了的控件
ALIVE = f".{LIVE}:not(.jupyter-widgets-disconnected)"
STYLE = (
    f"<style>{CHILD}:has(.{STILL}):has(+ {CHILD} {ALIVE}),"
    f"{CHILD}:has(.{STILL}) + {CHILD}:not(:has({ALIVE})) {{ display: none }}</style>"
)
WAITING: list[str] = []  # 正摆着的“在等什么”
COLUMN, TALLEST = 850, 700  # 像素：一栏多宽；图再放大，也不高过一屏
SIZE = re.compile(r"〔图 (\d+)x(\d+)，")
# 点一下图，放到整屏大；再点一下、按 Esc 就收起
ENLARGE = """<style>.jp-OutputArea-output img { cursor: zoom-in }
dialog.lorakit-large { border: 0; padding: 0; background: none; cursor: zoom-out }
dialog.lorakit-large::backdrop { background: #000b }
dialog.lorakit-large img { max-width: 96vw; max-height: 94vh; width: 96vw; object-fit: contain }
</style><script>
if (!window.lorakitEnlarge) {
  window.lorakitEnlarge = true;
  document.addEventListener("click", event => {
    const image = event.target.closest && event.target.closest(".jp-OutputArea-output img");
    if (!image) return;
    const page = document.createElement("dialog"), large = document.createElement("img");
    page.className = "lorakit-large";
    large.src = image.src;
    page.append(large);
    page.addEventListener("click", () => page.close());
    page.addEventListener("close", () => page.remove());
    document.body.append(page);
    page.showModal();
  });
}
</script>"""
# 这些前端一份输出一个框，样式表够不着隔壁：控件和静态的放进同一份，由它挑
ONE_FRAME = ("COLAB_RELEASE_TAG", "VSCODE_PID", "VSCODE_CWD")


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


def put(image, picture: "Picture"):
    """给放图的控件换一张图。"""
    from lorakit.lab.picture import encode

    kind, content = encode(picture)
    image.format, image.value = kind.split("/")[1], content


class Placed:
    """自己已经摆出来的东西：格子末尾不用再摆一次。"""

    def _ipython_display_(self): ...


def publish(bundle: dict, **options):
    """把一份多格式的输出交给前端，由它挑自己会画的；options 见 IPython 的 display。"""
    from IPython.display import display

    if "text/plain" in bundle:  # Jupyter 会照终端的办法画颜色、挪光标
        bundle = bundle | {"text/plain": inert(bundle["text/plain"])}
    display(bundle, raw=True, metadata=widths(bundle), **options)


def widths(bundle: dict) -> dict:
    """图摆多宽：到一栏那么宽，最多放大一倍，也不高过一屏；写在输出的 metadata 里，文件不变大。"""
    size = SIZE.match(bundle.get("text/plain", ""))
    kinds = [kind for kind in bundle if kind.startswith("image/")]
    if not size or not kinds:
        return {}
    wide, tall = map(int, size.groups())
    most = max(wide, wide * TALLEST // tall)
    return {kind: {"width": min(COLUMN, 2 * wide, most)} for kind in kinds}


def enlarging():
    """从这里起，点一下图就放大；没人看时不用。"""
    if not headless():
        publish({"text/html": ENLARGE, "text/plain": ""})


def pictured(picture: "Picture") -> dict:
    """一张图的输出：图本身，和一行可以核对的文字（大小与内容的指纹）。"""
    from lorakit.lab.picture import encode, fingerprint, render

    kind, content = encode(picture)
    size = "{}x{}".format(*render(picture).size)
    data = base64.b64encode(content).decode()
    return {kind: data, "text/plain": f"〔图 {size}，指纹 {fingerprint(picture)}〕"}


def show(picture: "Picture", *more: "Picture"):
    """摆出一张或几张图：PIL 图、[-1, 1] 的张量，或 `chart` 画的图表。"""
    from matplotlib.figure import Figure
    from PIL import Image

    for one in (picture, *more):
        if not isinstance(one, (Image.Image, Figure)) and not hasattr(one, "detach"):
            raise LorakitError(f"show 只会摆图：得到 {type(one).__name__}，应为图、张量或图表。")
        publish(pictured(one))


def table(rows: Iterable[Sequence[str]]) -> str:
    """一行行 HTML -> 靠左的表格；JupyterLab 的默认靠右。"""
    left = 'style="text-align:left"'
    lines = ("".join(f"<td {left}>{cell}</td>" for cell in row) for row in rows)
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def both(widget, static: dict, again: str = AGAIN) -> Callable[[dict], None]:
    """摆出控件和它的静态版本；返回的函数换上新的静态版本，隔天打开看见的就是最后那样。

    again 是静态的那一份底下的一句：怎么让它再动起来。

    有人看时是两份输出：没有内核，浏览器只会画静态的那份，另一份写着 Error 的藏起来；
    没人看时（练习册提交的输出）只有静态的有用，并成一份。
    """
    view = {VIEW: {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}}
    if headless() or any(map(os.environ.get, ONE_FRAME)):
        publish(view | static)
        return lambda static: None
    name = uuid.uuid4().hex
    widget.add_class(LIVE)
    publish(still(static, again), display_id=name)
    publish(view)
    return lambda static: publish(still(static, again), display_id=name, update=True)


def still(static: dict, again: str = AGAIN) -> dict:
    """静态的那一份：图或文字，加一句怎么让它再动起来（没有就不加）。"""
    images = [f'<img src="data:{kind};base64,{data}" style="max-width:100%"><br>'
              for kind, data in static.items() if kind.startswith("image/")]  # fmt: skip
    words = f"<pre>{in_html(static['text/plain'])}</pre>"
    page = "".join(images) or static.get("text/html", words)
    tail = f"<p><small>{again}</small></p>" if again else ""
    page = f'{STYLE}<div class="{STILL}">{page}{tail}</div>'
    return {"text/html": page, "text/plain": f"{static['text/plain']}\n{again}".rstrip()}


@contextmanager
def waiting(text: str):
    """格子要等一件事：先写出在等什么、怎么停，等完了擦掉；同一格里别的输出不动。

    交出一个函数，拿新的一句去叫它，就换掉这一句。
    """
    name = uuid.uuid4().hex

    def say(text: str, **options):
        page = {"text/html": f"<i>{in_html(text)}</i>", "text/plain": text}
        publish(page, display_id=name, **options)

    say(text)
    WAITING.append(name)
    try:
        yield lambda text: say(text, update=True)
    finally:
        WAITING.remove(name)
        publish({"text/html": "", "text/plain": ""}, display_id=name, update=True)


def reachable(widget):
    """格子占着内核时，这个控件也按得动。

    JupyterLab 把控件的消息送到旁路（subshell），可是 ipykernel 7.4 会改送到造出控件的那条路上，
    排在正等着的格子后面；这里让它照送来的路走。没有旁路的前端不受影响。
    """
    if widget.comm is not None:
        widget.comm._reply_subshell_for = lambda data, sent_to: sent_to


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
    page = f'<p><code>{where}</code></p><pre style="{look}">{in_html(code)}</pre>'
    publish({"text/html": page, "text/plain": f"# {where}\n{code}"})
