"""问一次“你的作品”：名字、触发词、照片；建好以后，它说现在有几张、能不能练。"""

import os
import unicodedata
from contextlib import nullcontext
from pathlib import Path, PurePath

from PIL import Image

from lorakit import data
from lorakit.data.folder import IMAGE_SUFFIXES
from lorakit.data.read import AGAIN, Progress, read_image
from lorakit.data.report import Report
from lorakit.data.trigger import known_word
from lorakit.errors import LorakitError
from lorakit.files import write_whole
from lorakit.inert import in_html
from lorakit.lab.bar import waiting
from lorakit.lab.display import Placed, both, frame, put, widgets
from lorakit.lab.mine import ACCEPT
from lorakit.lab.picture import wall
from lorakit.lab.works import checkup, shelf

SHEET, MOST = 12, 3  # 墙上最多摆几张、错误最多说几条
TILE = 110  # 像素：墙上的一张
NAME = 180  # 字节：照片的名字最长这么多，再长有的盘存不下（旁边还要放同名的 .txt）
# 网页收不下时会断线，什么也收不到，也什么都不说
HEAVY = (
    "照片先整批传过来，再一张张收；十几张一百多 MB，传十来秒。等了几分钟还是一张也没有，"
    "就是网页收不下，断线了（不是用 lorakit book 打开的，一次只收 10 MB）："
    "把照片拖进左边的文件栏，放到{}，再按“看看照片”。"
)
# 传的时候内核什么也听不到，要全传完才知道：这一段由网页自己摆，按了“传照片”就看得见它在动
SENDING = """<style>
.lorakit-sending { display: none }
.lorakit-second:has(.lorakit-upload:focus) ~ * .lorakit-sending { display: block }
.lorakit-sending i { display: inline-block; width: 160px; height: 6px; margin-right: 8px;
  background: linear-gradient(90deg, #9aa4b255 40%, #3f6fb5 50%, #9aa4b255 60%) 0 0 / 200% 100%;
  animation: lorakit-sending 1.2s linear infinite }
@keyframes lorakit-sending { from { background-position: 200% 0 } to { background-position: 0 0 } }
</style>
<div class="lorakit-sending">
<i></i>选好了就正在传，传完这里会说收到几张；没有选，点一下别处。</div>"""


def static(made, report: Report | None = None) -> dict:
    """没有内核时看见的：现在是哪件作品、照片能不能练，怎么换。"""
    lines = [made.text(), *remarks(made), *([checkup.verdict(report)] if report else [])]
    lines += ["在 Jupyter 里，这一格能填名字、传照片，换成自己的作品。"]
    page = "".join(f"<p>{in_html(line)}</p>" for line in lines)
    return {"text/html": page, "text/plain": "\n".join(lines)}


def remarks(made: shelf.Work) -> list[str]:
    """名字和触发词还有什么要说的；没有是空的。"""
    return [] if made.sample else list(filter(None, [known_word(made.trigger)]))


class Panel(Placed):
    """填名字、触发词、传照片；填好的就地改进 made，后面几格用的就是它。"""

    def __init__(self, made: shelf.Work):
        w = widgets()
        self.work = made
        looks = {"style": {"description_width": "5em"}, "layout": w.Layout(width="min(420px, 95%)")}
        self.name = w.Text("" if made.sample else made.name, description="作品名", **looks)
        self.trigger = w.Text(made.trigger, description="触发词", **looks)
        self.name.placeholder, self.trigger.placeholder = "例如 小橘", "例如 ohwx；画风可以不写"
        self.set = w.Button(description="用自己的照片", icon="check")
        self.back = w.Button(description="用样例")
        self.upload = w.FileUpload(accept=ACCEPT, multiple=True, description="传照片")
        self.look = w.Button(description="看看照片", icon="refresh")
        self.said, self.sheet = w.HTML(), frame(format="jpeg")
        self.set.on_click(lambda button: self.make())
        self.back.on_click(lambda button: self.take(shelf.use_sample()))
        self.look.on_click(lambda button: self.refresh())
        self.upload.observe(lambda change: self.receive(change["new"]), names="value")
        self.second = w.HBox([self.upload, self.look])
        self.upload.add_class("lorakit-upload")
        self.second.add_class("lorakit-second")
        parts = [self.name, self.trigger, w.HBox([self.set, self.back])]
        self.box = w.VBox([*parts, self.second, w.HTML(SENDING), self.said, self.sheet])
        self._freshen, self.report = lambda static: None, None
        self._fold()

    def display(self):
        """先摆出来，再看照片：十几张手机照片要看好几秒。"""
        self._freshen = both(self.box, static(self.work))
        with waiting("正在看照片") if self.work.pictures() else nullcontext():
            self.refresh()

    def make(self):
        """照填的建一件作品。"""
        try:
            made = shelf.keep(self.name.value, None, self.trigger.value)
        except LorakitError as error:
            self.say(str(error), bad=True)
            return
        self.take(made)

    def take(self, made: shelf.Work):
        """换成这件作品：拿着 self.work 的人看到的也换了。"""
        vars(self.work).update(vars(made))
        self.refresh()

    def receive(self, value):
        """收下传来的照片，原样存进作品的照片文件夹。"""
        got = files(value)
        if not got:
            return
        if self.work.sample:
            self.say("先填作品名，按“用自己的照片”，再传。", bad=True)
            return
        self.upload.disabled = True  # 它不再是选中的，“正在传”就收起来
        self.say(f"传到了，一共 {len(got)} 张。")
        try:
            kept, refused = [], []
            for number, (name, content) in enumerate(got, 1):
                self.say(f"正在收第 {number} / {len(got)} 张……")
                try:
                    kept.append(store(self.work.photos, name, content))
                except LorakitError as error:
                    refused.append(str(error))
            self.upload.value = type(self.upload.value)()  # 收下了就不在网页里再留一份
            self.refresh([f"收下了 {len(kept)} 张。", *refused])
        finally:
            self.upload.disabled = False

    def refresh(self, news: list[str] | None = None):
        """再看一遍照片文件夹：几张、长什么样、能不能练。"""
        made, self.report = self.work, None
        self._fold()
        lines = [*(news or []), made.text(), *remarks(made)]
        if pictures := made.pictures():
            self.say(f"正在看 {len(pictures)} 张照片……")
            self.report = report = data.inspect(made.photos, made.trigger, None, self._at)[1]
            lines += [checkup.verdict(report), *report.gathered(report.errors)[:MOST]]
            if report.errors:
                lines.append("描述不用一个个建文件：在 02 里运行 作品.captions()，一张张写。")
            put(self.sheet, contact(pictures[:SHEET], self._at))
            self.sheet.layout.display = ""
        elif not made.sample:
            lines.append(HEAVY.format(f"“{shelf.near(made.photos)}”"))
        self.say("\n".join(lines))
        self._freshen(static(made, self.report))

    def _fold(self):
        """样例不用传照片；墙先收着。"""
        self.second.layout.display = "none" if self.work.sample else ""
        self.sheet.layout.display = "none"

    def _at(self, what: str, done: int, total: int):
        self.say(f"正在{what}，第 {done} / {total} 张……")

    def say(self, text: str, bad: bool = False):
        """底下的几行话；bad 用红字。"""
        look = f"white-space:pre-wrap;line-height:1.5;color:{'#c4382c' if bad else 'inherit'}"
        self.said.value = f'<div style="{look}">{in_html(text)}</div>'


def files(value) -> list[tuple[str, bytes]]:
    """FileUpload 的值 -> [(名字, 字节)]：ipywidgets 7 是 {名字: {...}}，8 是 ({...},)。"""
    if isinstance(value, dict):
        return [(name, bytes(one["content"])) for name, one in value.items()]
    return [(one["name"], bytes(one["content"])) for one in value]


def store(folder: Path, name: str, content: bytes) -> Path:
    """一张传来的照片 -> 照片文件夹里的一个文件：名字照旧（中文也行，太长的截短），打不开的不收。

    Raises:
        LorakitError: 不是图片，或解不开。
    """
    plain = PurePath(name.replace("\\", "/")).name
    stem, suffix = PurePath(plain).stem, PurePath(plain).suffix
    if suffix.lower() not in IMAGE_SUFFIXES:
        kinds = "、".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        raise LorakitError(f"“{plain}”不是认得的图片（只认 {kinds}），没有收。")
    while len(os.fsencode(stem)) > NAME:
        stem = stem[:-1]
    number, path = 1, folder / f"{stem}{suffix}"
    while _taken(path, content):  # 另一张同名的：两张都留
        number += 1
        path = folder / f"{stem}_{number}{suffix}"
    write_whole(path, lambda temporary: temporary.write_bytes(content))
    try:
        read_image(path)
    except LorakitError as error:
        path.unlink()
        said = str(error).replace(str(path), f"“{plain}”").replace(AGAIN, AGAIN.split("；")[0])
        raise LorakitError(f"没有收{said}") from error
    return path


def _taken(path: Path, content: bytes) -> bool:
    """有没有另一张叫这个名字；后缀不同的也算：它们会共用一份描述。"""
    if path.is_file() and path.read_bytes() == content:
        return False
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    pictures = [one.stem for one in beside if one.suffix.lower() in IMAGE_SUFFIXES]
    return path.exists() or _alike(path.stem) in map(_alike, pictures)


def _alike(stem: str) -> str:
    """有的盘分不出大小写，也分不出同一个字的两种编码：只差这些的名字当作一个。"""
    return unicodedata.normalize("NFC", stem).casefold()


def contact(pictures: list[Path], progress: Progress = lambda *at: None) -> Image.Image:
    """一墙小图，打不开的留白；每摆一张说一声。"""
    tiles = []
    for number, path in enumerate(pictures, 1):
        progress("摆小图", number, len(pictures))
        try:
            tiles.append(read_image(path))
            tiles[-1].thumbnail((2 * TILE, 2 * TILE))  # 大照片不一起放在内存里
        except LorakitError:
            tiles.append(Image.new("RGB", (8, 8), "white"))
    across = min(6, len(tiles))
    rows = [tiles[i : i + across] for i in range(0, len(tiles), across)]
    rows[-1] += [Image.new("RGB", (8, 8), "white")] * (across - len(rows[-1]))
    return wall(rows, [""] * len(rows), [""] * across, TILE)
