"""样张的一卷：训练途中每隔几步画的几张，拖一拖步数，看它怎样长出来。"""

import base64
import io
from collections.abc import Sequence

from PIL import Image

from lorakit.lab.display import frame, put, widgets
from lorakit.lab.picture import wall

ROWS = 5  # 样张墙最多几行：再多就从头到尾挑几行，免得一墙比屏幕还高
CELL, SMALL = 150, 108  # 像素：拖着看的一行里、样张墙里，一张图的边长
PAUSE, LAST = 500, 1800  # 毫秒：动图里一行停多久、最后一行停多久


class Film:
    """几行样张，一行一个步数；box 是步数滑块和那一行大图。"""

    def __init__(self, names: Sequence[str]):
        w = widgets()
        self.names, self.rows = list(names), []  # 列名、(步数, 几张图)
        self.slider = w.SelectionSlider(
            options=[("训练前", 0)],
            description="拖一拖步数",
            continuous_update=True,
            style={"description_width": "6em"},
            layout=w.Layout(width="min(520px, 95%)"),
        )
        self.image = frame(format="jpeg")
        self.box = w.VBox([self.slider, self.image], layout=w.Layout(display="none"))
        self._drawing = False
        self.slider.observe(self._moved, names="value")

    def add(self, step: int, images: Sequence[Image.Image]):
        """添一行；同一步画了第二次（停下又接着练）就换掉。滑块停在末尾的，跟着走到新的末尾。"""
        follows = not self.rows or self.slider.value == len(self.rows) - 1
        rows = [row for row in self.rows if row[0] != step] + [(step, list(images))]
        self.rows = sorted(rows, key=lambda row: row[0])
        self._offer(len(self.rows) - 1 if follows else self.slider.value)
        self.box.layout.display = "" if len(self.rows) > 1 else "none"

    def rewind(self, step: int):
        """第 step 步之后的不要了。"""
        self.rows = [row for row in self.rows if row[0] <= step]
        self._offer(max(0, len(self.rows) - 1))

    def wall(self) -> Image.Image:
        """样张墙：一行一个步数，太多就从头到尾匀着挑几行。"""
        last = len(self.rows) - 1
        picked = sorted({round(i * last / (ROWS - 1)) for i in range(ROWS)}) if last else [0]
        rows = [self.rows[i] for i in picked]
        pictures, names = [images for _, images in rows], [title(step) for step, _ in rows]
        return wall(pictures, names, self.names, SMALL)

    def row(self, at: int) -> Image.Image:
        """其中一行，大一些。"""
        step, images = self.rows[at]
        cell = min(CELL, 640 // max(1, len(images)))
        return wall([images], [title(step)], self.names, cell)

    def animation(self) -> str:
        """整卷连成动图，WebP 的 base64：没有内核时也看得见它怎样长出来。"""
        frames, file = [self.row(at) for at in range(len(self.rows))], io.BytesIO()
        pauses = [PAUSE] * (len(frames) - 1) + [LAST]
        options = {"duration": pauses, "loop": 0, "quality": 60}
        frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], **options)
        return base64.b64encode(file.getvalue()).decode()

    def _offer(self, at: int):
        self._drawing = True  # 换选项时滑块自己会跳一下，那一下不画
        options = [(title(step), i) for i, (step, _) in enumerate(self.rows)]
        self.slider.options = options or [("训练前", 0)]
        self.slider.value = at
        self._drawing = False
        self._moved()

    def _moved(self, change=None):
        if self.rows and not self._drawing:
            put(self.image, self.row(self.slider.value))


def title(step: int) -> str:
    """一行的名字。"""
    return "训练前" if step == 0 else f"{step} 步"
