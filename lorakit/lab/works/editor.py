"""描述编辑器：一张张看照片，边写边看哪里不妥、裁成什么样、VAE 还原得怎样；回车存下，换下一张。"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from PIL import Image, ImageDraw

from lorakit import data
from lorakit.config import Config
from lorakit.data import lint
from lorakit.data.caption import KINDS, Captioner
from lorakit.data.captions import SIDECARS, read_sidecar
from lorakit.data.color import on_checker
from lorakit.data.read import read_image
from lorakit.data.trigger import apply_trigger, has_trigger, looks_like
from lorakit.errors import LorakitError
from lorakit.files import write_text
from lorakit.inert import in_html
from lorakit.lab.bar import waiting
from lorakit.lab.display import Placed, both, frame, publish, put, widgets
from lorakit.lab.picture import to_image, to_tensor
from lorakit.lab.works import checkup

HINT = "这张图里有什么，例如：ohwx 猫趴在窗台上，背景是雨天"
HELP = (
    "<small>回车：存好，换下一张。点一下滑块，用 ← → 翻照片。"
    "蓝框是训练时看得见的部分；右边上图是裁出来的，下图是 VAE 还原的。</small>"
)
BIG, SMALL = 380, 190  # 像素：大图、裁出来与还原的
BOX = "#3f6fb5"
_hands = ThreadPoolExecutor(1, thread_name_prefix="editor")


def open_editor(work, config: Config | None, family, describe) -> "Editor | None":
    """摆出 work 的描述编辑器；样例、没有照片时说一句怎么办。"""
    pictures = work.pictures()
    if not pictures:
        said = "样例的描述都写好了。" if work.sample else f"还没有照片：放进 {work.photos}。"
        said += "有了自己的照片（01 里的 lab.work()），这里就能一张张写描述。"
        publish({"text/html": f"<p>{in_html(said)}</p>", "text/plain": said})
        return None
    with waiting("正在打开照片"):
        editor = Editor(work, pictures, config, family, describe or installed())
    editor.display()
    return editor


def installed() -> Callable[[Image.Image], str] | None:
    """下载过的看图说话的模型；一个也没有是 None，什么也不下载。"""
    for name, kind in reversed(KINDS.items()):  # 会写中文的先
        if isinstance(try_to_load_from_cache(kind.repository, "config.json"), str):
            return Captioner(name, length="short")
    return None


class Editor(Placed):
    """一件作品的描述编辑器；每张照片一个同名 .txt，存一张是一张，要么整个写好要么不动。"""

    def __init__(self, work, pictures: list[Path], config: Config | None, family, describe):
        w = widgets()
        self.work, self.pictures, self.describe = work, pictures, describe
        self._how, self._ahead = (config, family), (None, None)  # 备好的下一张：(照片, 三张图)
        self.at, self._busy, self._shown = 0, False, ""  # _shown：框里一开始放着的话
        line = w.Layout(width="min(640px, 98%)")
        self.slider = w.IntSlider(1, min=1, max=len(pictures), description="第几张", layout=line)
        self.text = w.Text(layout=line, placeholder=HINT)
        self.verdict, self.saved = w.HTML(), w.HTML()
        self.image, self.cut, self.back = (frame(format="jpeg") for _ in range(3))
        previous = w.Button(description="上一张", icon="arrow-left")
        keep = w.Button(description="存好，下一张", icon="check")
        propose = w.Button(description="让模型先写", icon="magic")
        propose.layout.display = "" if describe else "none"
        previous.on_click(lambda button: self.go(self.at - 1))
        keep.on_click(lambda button: self.next())
        propose.on_click(lambda button: self.propose())
        self.text.on_msg(self._entered)
        self.text.observe(lambda change: self._judge(), names="value")
        self.slider.observe(self._slid, names="value")
        side = w.VBox([self.cut, self.back])
        parts = [self.slider, w.HBox([self.image, side]), self.text, self.verdict]
        parts += [w.HBox([previous, keep, propose]), self.saved, w.HTML(HELP)]
        self.box = w.VBox(parts)
        self._freshen = lambda static: None
        self.go(self._first_empty())

    def display(self):
        self._freshen = both(self.box, self._static())

    @property
    def path(self) -> Path:
        """现在这张照片。"""
        return self.pictures[self.at]

    def go(self, at: int):
        """翻到第 at 张（从 0 数）；写了没存的先存下，存不了就不翻，写的还在。"""
        at = max(0, min(at, len(self.pictures) - 1))
        said = self.text.value.strip()
        wrote = said not in ("", self.work.trigger, self._shown, self.written())
        if at != self.at and wrote and not self.save():
            self._busy, self.slider.value, self._busy = True, self.at + 1, False
            return
        self._busy = True
        self.at, self.slider.value = at, at + 1
        self._show()
        start = f"{self.work.trigger} " if self.work.trigger else ""
        self._shown = self.written()  # 没有动过就不存：别的练习册也许正在写同一张
        self.text.value = self._shown or start
        self._busy = False
        self._judge()

    def next(self):
        """存好这张，换下一张。"""
        if self.save():
            self.go(self.at + 1)

    def save(self) -> bool:
        """写下这张的 .txt；空的、只有触发词的不写。"""
        caption = self.text.value.strip()
        if caption in ("", self.work.trigger):
            self.saved.value = "<small>还没有写，没有存。</small>"
            return False
        try:
            write_text(self.path.with_suffix(".txt"), caption + "\n")
        except LorakitError as error:
            self.saved.value = f'<span style="color:#c4382c">{in_html(str(error))}</span>'
            return False
        left = sum(not said_of(path) for path in self.pictures)
        rest = f"还有 {left} 张没有写。" if left else self._ready()
        self.saved.value = f"<small>存好了 {in_html(self.path.stem)}.txt。{rest}</small>"
        self._freshen(self._static())
        return True

    def propose(self):
        """让看图说话的模型先写一句，放进框里由人改。"""
        self.saved.value = "<small>模型正在看图……（头一次要先载入）</small>"
        try:
            said = self.describe(read_image(self.path))
        except LorakitError as error:
            self.saved.value = f'<span style="color:#c4382c">{in_html(str(error))}</span>'
            return
        self.text.value = apply_trigger(said, self.work.trigger) if said else self.text.value
        self.saved.value = "<small>模型写的，改好再存：它会看错，也会把固定的长相写进去。</small>"

    def written(self) -> str:
        """这张照片已经存下的描述。"""
        return said_of(self.path)

    def _ready(self) -> str:
        found = data.inspect(self.work.photos, self.work.trigger, None, self._checking)[1]
        return in_html(checkup.verdict(found))

    def _checking(self, what: str, done: int, total: int):
        self.saved.value = f"<small>都写好了，正在体检：第 {done} / {total} 张……</small>"

    def _first_empty(self) -> int:
        return next((i for i, path in enumerate(self.pictures) if not said_of(path)), 0)

    def _slid(self, change):
        if not self._busy:
            self.go(change["new"] - 1)

    def _entered(self, widget, content, buffers):
        if content.get("event") == "submit":
            self.next()

    def _judge(self):
        if not self._busy:
            words = judged(self.text.value, self.work.trigger, self.path)
            color = "#3c8c5a" if not words else "#c4382c"
            said = "<br>".join(map(in_html, words)) or "写得好。"
            self.verdict.value = f'<div style="color:{color};line-height:1.5">{said}</div>'

    def _show(self):
        """大图（画着裁切框）、训练时看见的、VAE 还原的；人在写的时候，先备好下一张的。"""
        path, job = self._ahead
        try:
            found = job.result() if path == self.path else looks(self.path, *self._how)
        except LorakitError as error:
            self.saved.value = f'<span style="color:#c4382c">{in_html(str(error))}</span>'
            found = [Image.new("RGB", (SMALL, SMALL), "white")] * 2
        for box, picture in zip((self.image, self.cut, self.back), found, strict=False):
            put(box, picture)
        self.back.layout.display = "" if len(found) == 3 else "none"
        if job:
            job.cancel()  # 跳着翻的，备好的用不上
        self._ahead = None, None
        if self.at + 1 < len(self.pictures):
            later = self.pictures[self.at + 1]
            self._ahead = later, _hands.submit(looks, later, *self._how)

    def _static(self) -> dict:
        lines = [f"{path.name}：{said_of(path) or '（还没有写）'}" for path in self.pictures]
        page = "<br>".join(map(in_html, lines))
        return {"text/html": f"<p>{page}</p>", "text/plain": "\n".join(lines)}


def said_of(path: Path) -> str:
    """照片旁边存着的描述；没有、读不懂是空的。"""
    for suffix in SIDECARS:
        beside = path.with_suffix(suffix)
        if beside.is_file():
            try:
                return read_sidecar(beside) or ""
            except LorakitError:
                return ""
    return ""


def judged(caption: str, trigger: str, path: Path) -> list[str]:
    """一句描述哪里不妥，一条一句；没有毛病是空的。"""
    caption = caption.strip()
    if caption in ("", trigger):
        return ["还没有写图里有什么。"]
    found = []
    if trigger and not has_trigger(caption, trigger):
        alike = looks_like(caption, trigger)
        found.append(
            f"触发词要一字不差地写成 {trigger}：大小写、全角半角都要一样。"
            if alike
            else f"没有触发词 {trigger}：写在最前面。"
        )
    record = data.Record(path, caption, (1, 1), "")
    return found + [one.line(path.parent) for one in lint.lint([record], trigger, path.parent)]


def looks(path: Path, config: Config | None, family) -> list[Image.Image]:
    """一张照片摆出来的样子：画着裁切框的、裁出来的、VAE 还原的（没有 family 就没有）。

    Raises:
        LorakitError: 照片打不开。
    """
    picture = read_image(path)
    side = config.data.resolution if config else 1024
    multiple = family.multiple if family else 16
    cut, box = data.fit(picture, data.bucket_for(picture.size, side, multiple))
    found = [outlined(picture, box), fitted(cut, SMALL)]
    if family:
        x = to_tensor(cut)  # (1, 3, H, W)
        again = family.decode(family.encode_images(x)[0])
        found.append(fitted(to_image(again), SMALL))
    return found


def outlined(picture: Image.Image, box) -> Image.Image:
    """缩小的照片，蓝框是训练时看得见的部分。"""
    small = fitted(picture, BIG)
    scale = small.width / picture.width
    line = [round(v * scale) for v in box]
    right, low = min(line[2], small.width) - 1, min(line[3], small.height) - 1
    line = [line[0], line[1], max(line[0], right), max(line[1], low)]  # 很扁的，缩小后只剩一条线
    ImageDraw.Draw(small).rectangle(line, outline=BOX, width=4)
    return small


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """最长的一边缩放到 side。"""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return on_checker(picture).resize(size)
