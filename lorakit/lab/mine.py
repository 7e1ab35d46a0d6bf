"""你自己的图：在 01 里设一次，后面每一本都用它。"""

from pathlib import Path

from PIL import Image

from lorakit.data.crops import fit
from lorakit.data.read import read_image
from lorakit.errors import LorakitError
from lorakit.files import user_path, write_whole
from lorakit.inert import in_html
from lorakit.lab.display import both, frame, headless, put, widgets
from lorakit.lab.notes import notes
from lorakit.results.report import save_image
from lorakit.tiny.world import Scene, Thing, render

# 有的系统不认得苹果手机照片是图，要把后缀也写上
ACCEPT = "image/*,.heic,.heif,.hif,.avif"
HEAVY = "不是用 lorakit book 打开的，10 MB 以上的照片收不下，会断线：用下一格写路径。"
SIDE = 256  # 存下来的边长；再大对微型模型没有用


def _place() -> Path:
    return notes() / "my_picture.png"


def _keep(image: Image.Image) -> Image.Image:
    square, _ = fit(image, (SIDE, SIDE))
    _place().parent.mkdir(parents=True, exist_ok=True)
    save_image(square, _place())
    return square


def my_picture(path: str | Path | None = None) -> Image.Image:
    """你的图，256x256：给了路径就换成它并记住；没给过就是小世界里的一只猫。

    Raises:
        DataError: 打不开这张图；会说为什么。
    """
    if path is not None:
        return _keep(read_image(user_path(path)))
    if _place().is_file() and not headless():
        return read_image(_place())
    return render(Scene((Thing("cat", "orange", "center", "big"),), "meadow", seed=7), SIDE)


def upload():
    """一个上传按钮：选一张图，就成了“你的图”；也可以直接用 my_picture("路径")。"""
    w = widgets()
    button = w.FileUpload(accept=ACCEPT, multiple=False, description="换成我的图")
    shown, said = frame(width=128), w.HTML(f"<small>{HEAVY}</small>")
    shown.layout.display = "none"

    def take(change):
        content = uploaded(button.value)
        if content is None:
            return
        file = _place().with_suffix(".upload")
        try:
            write_whole(file, lambda to: to.write_bytes(content))
            picture = my_picture(file)
        except LorakitError as error:
            said.value = in_html(str(error).replace(str(file), "你选的那张图"))
            return
        finally:
            file.unlink(missing_ok=True)
        put(shown, picture)
        shown.layout.display = ""
        said.value = "记住了。从 my_picture() 那一格起重新运行，就用你的图。"

    button.observe(take, names="value")
    static = {"text/plain": "〔上传按钮：在 Jupyter 里运行这一格才会出现〕"}
    static["text/html"] = f"<p><small>{static['text/plain']}</small></p>"
    both(w.VBox([button, shown, said]), static)


def uploaded(value) -> bytes | None:
    """FileUpload 的值 -> 字节：ipywidgets 7 是 {名字: {...}}，8 是 ({...},)。"""
    files = list(value.values()) if isinstance(value, dict) else list(value)
    return bytes(files[-1]["content"]) if files else None
