"""练过的每一次，一张表：改了什么、留出集、样张、判断；按一下，用某一次的设置再来。"""

import base64
import io
from functools import partial

from PIL import Image

from lorakit.config import differences
from lorakit.config.explain import shown
from lorakit.errors import LorakitError
from lorakit.inert import in_html
from lorakit.lab.display import Placed, both, headless, publish, table, widgets
from lorakit.lab.runner import RUNS, Run
from lorakit.lab.works import tries, words

HEADS = ("第几次", "改了什么", "留出集损失", "样张", "判断")
NONE = "还没有练过：在 03 或 04 的面板上练一次，这里就多一行。"
ONLY = "样例不记每一次；换成自己的照片（01 里的 lab.work()），这里就一次一行。"
TAIL = "用哪一次的设置再来：lab.Run(作品.again(1)).start()；比两次：作品.compare(1, 2)。"
SMALL = 72  # 像素：表里的一张样张


def show(work):
    """练过的每一次，一张表；有人看时带着“用这次的设置再来”。"""
    done = [] if work.sample else tries.all_of(work.home)
    if not done:
        said = ONLY if work.sample else NONE
        publish({"text/html": f"<p>{said}</p>", "text/plain": said})
    elif headless():
        publish(page(done))
    else:
        Table(work, done).display()


class Table(Placed):
    """表，和挑一次、照它的设置再来的按钮；再来的那一次，面板就在表的下面。"""

    def __init__(self, work, done: list[tries.Try]):
        w = widgets()
        self.work, self.run = work, None
        self.rows, self.said = w.HTML(page(done)["text/html"]), w.HTML()
        names = [(f"第 {one.number} 次", one.number) for one in done]
        self.which = w.Dropdown(options=names, value=done[-1].number)
        self.button = w.Button(description="用这次的设置再来", icon="repeat")
        self.button.on_click(lambda button: self.again())
        self._freshen = lambda static: None
        self.box = w.VBox([self.rows, w.HBox([self.which, self.button]), self.said])
        if now := going(work):
            self._watch(now)

    def display(self):
        self._freshen = both(self.box, page(tries.all_of(self.work.home)))

    def again(self):
        """照挑中的那一次再练一次；还有一次在练就先不开始。"""
        try:
            if now := going(self.work):
                self._watch(now)
                which = now.config.run.output.name
                raise LorakitError(f"{which}还在练，面板就在下面：等它练完，或先按“停止”。")
            config = tries.again(self.work, self.which.value)
            folder = in_html(config.run.output.name)
            self.said.value = f"<small>照第 {self.which.value} 次的设置练 {folder}。</small>"
            names = words.titles(config.sample.prompts, self.work.trigger)
            self._watch(Run(config, names=names))
            self.run.start(show=False)
        except LorakitError as error:
            self._refuse(error)

    def _watch(self, run: Run):
        """表的下面摆它的面板；它一停，表就跟着换。"""
        if run is self.run:
            return
        self.run = run
        run.when_done(partial(self.ended, run))
        self.box.children = (*self.box.children[:3], run.board.box)

    def ended(self, run: Run):
        """run 停下了：表里添上它，挑得到它，底下说它停在哪里；说的是它，不是后来换上的那一次。"""
        try:
            done = tries.all_of(self.work.home)
            static = page(done)
        except LorakitError as error:  # 照片、设置正被人动着
            self._refuse(error)
            return
        self.rows.value = static["text/html"]
        chosen, names = self.which.value, [(f"第 {one.number} 次", one.number) for one in done]
        self.which.options = names
        if chosen in dict(names).values():
            self.which.value = chosen
        which = in_html(run.config.run.output.name)
        self.said.value = f"<small>{which}：{in_html(run.board.said)}</small>"
        self._freshen(static)

    def _refuse(self, error: LorakitError):
        self.said.value = f'<span style="color:#c4382c">{in_html(str(error))}</span>'


def going(work) -> Run | None:
    """这件作品正在练的那一次：再摆一遍表，它的面板和停止键还在。"""
    runs = [run for folder, run in RUNS.items() if folder.is_relative_to(work.home)]
    return next((run for run in runs if run.running), None)


def page(done: list[tries.Try]) -> dict:
    """整张表 -> 网页与文字两种写法。"""
    rows, lines = [[f"<b>{head}</b>" for head in HEADS]], []
    for before, one in zip([None, *done], done, strict=False):
        said = [f"{one.number}", changed(before, one), losses(one), one.word()]
        lines.append("　".join([f"第 {said[0]} 次", *said[1:]]))
        pictures = "".join(map(_tiny, one.shots()[:4]))
        which, what, held, word = map(in_html, said)
        rows.append([which, what, held, pictures, word])
    return {"text/html": f"{table(rows)}<p>{TAIL}</p>", "text/plain": "\n".join([*lines, TAIL])}


def changed(before: tries.Try | None, one: tries.Try) -> str:
    """和前一次比，改了哪几项设置。"""
    if before is None:
        return "头一次"
    found = differences(before.config, one.config).items()
    said = [f"{k}：{shown(old)} → {shown(new)}" for k, (old, new) in found if k != "run.output"]
    return "；".join(said) or "什么也没改"


def losses(one: tries.Try) -> str:
    """留出集损失从多少到多少，最低在哪一步。"""
    held = one.held()
    if not held:
        return "没有量"
    last, best = max(held), min(held, key=held.get)
    said = f"{held[min(held)]:.3f} → {held[last]:.3f}"
    return said if best == last else f"{said}（最低 {held[best]:.3f}，第 {best} 步）"


def _tiny(image: Image.Image) -> str:
    file = io.BytesIO()
    image.resize((SMALL, SMALL)).save(file, "JPEG", quality=70)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" style="margin:1px">'
