"""先猜后看：`predict` 出题，`reveal` 在看过结果的地方再摆出同一道题；选了（或跳过）才揭晓。

每本开头的 `recall` 是三道前几本的题，当场揭晓。答案和解释在 lorakit/lab/questions 里，
练习册的代码和存下来的输出里都没有。前测与后测只存在你自己的电脑上。
"""

import difflib
import json
import random
import secrets
from collections.abc import Callable
from pathlib import Path

from lorakit.errors import LorakitError
from lorakit.files import kept, write_text
from lorakit.inert import in_html
from lorakit.lab.display import both, headless, widgets
from lorakit.lab.notes import notes
from lorakit.lab.questions import MOMENTS, Question, bank, exam
from lorakit.lab.questions import recall as recalled

_asked: dict[str, "Guess"] = {}
BOX = "border-left:4px solid #3c8c5a;padding:2px 12px;margin:4px 0"
GUESS, LATER_ON = "你先猜：", "记下了。先往下跑，看过结果再揭晓。"
LATER = "〔揭晓“{}”：在 Jupyter 里运行这一格，选好再按“揭晓”〕"


def _order(question: Question) -> list[int]:
    """选项怎么排：每个读者一种，记住不变；没人看时照题库里的次序。"""
    order = list(range(len(question.options)))
    if not headless():
        random.Random(f"{_reader()} {question.name}").shuffle(order)
    return order


def _reader() -> str:
    place = notes() / "reader.json"
    if not (reader := kept(place, str, "")):
        reader = secrets.token_hex(8)
        write_text(place, json.dumps(reader))
    return reader


def page(title: str, question: Question) -> dict:
    """没有内核时看到的：题目与选项，没有答案。"""
    lines = [f"{chr(65 + k)}. {question.options[i][0]}" for k, i in enumerate(_order(question))]
    items = "<br>".join(map(in_html, lines))
    page = f"<p><b>{title}</b>{in_html(question.text)}<br>{items}</p>"
    return {"text/html": page, "text/plain": "\n".join([title + question.text, *lines])}


class Ask:
    """一道题的单选框；choice 是选了第几项（照题库的次序），没选是 None。"""

    def __init__(self, title: str, question: Question, chosen: Callable[[int], None]):
        w, order = widgets(), _order(question)
        self.question = question
        options = [(f"{chr(65 + k)}. {question.options[i][0]}", i) for k, i in enumerate(order)]
        self.radio = w.RadioButtons(options=options, layout={"width": "max-content"})
        self.radio.index = None
        self.radio.observe(lambda change: chosen(change["new"]), names="value")
        self.page = w.HTML()
        self.parts = [w.HTML(f"<b>{title}</b>{in_html(question.text)}"), self.radio]

    @property
    def choice(self) -> int | None:
        return self.radio.value

    def tell(self):
        """说对错：选错的先说错在哪，再说答案和为什么；以后不能再改。"""
        question, pick = self.question, self.choice
        right = in_html(question.options[question.right][0])
        said = ""
        if pick is not None and pick != question.right:
            option, reply = map(in_html, question.options[pick])
            said = f"<p>✗ 你选的是“{option}”。{reply}</p>"
        mark = "✓ 你选对了：" if pick == question.right else "答案："
        said += f"<p><b>{mark}{right}。</b>{in_html(question.why)}</p>"
        self.page.value = f'<div style="{BOX}">{said}</div>'
        self.radio.disabled = True


class Guess:
    """一道先猜后看的题：选一个再揭晓，或者跳过。"""

    def __init__(self, question: Question, title: str = GUESS, kept: str = LATER_ON):
        """
        Args:
            kept: 选好以后说的话。
        """
        w = widgets()
        self.kept = kept
        self.ask = Ask(title, question, lambda pick: self._chosen())
        self.reveal = w.Button(description="揭晓", icon="eye", disabled=True)
        self.skip = w.Button(description="跳过，直接看", icon="forward")
        self.note = w.HTML("<small>先选一个，再揭晓；不想猜就跳过。</small>")
        self.reveal.on_click(lambda button: self.open())
        self.skip.on_click(lambda button: self.open())
        self.buttons = w.HBox([self.reveal, self.skip, self.note])
        self.box = w.VBox([*self.ask.parts, self.buttons, self.ask.page])

    def _chosen(self):
        self.reveal.disabled = False
        self.note.value = f"<small>{self.kept}</small>"

    def open(self):
        """揭晓。"""
        self.ask.tell()
        self.buttons.layout.display = "none"


def _find(name: str) -> Question:
    known = bank()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        tail = f"是不是想写“{near[0]}”？" if near else f"有的是：{'、'.join(known)}。"
        raise LorakitError(f"没有叫“{name}”的题。{tail}")
    return known[name]


def predict(name: str):
    """出一道题，先猜再往下看；猜错没有关系，猜过的记得更牢。再运行一遍，选过的还在，揭晓过的重来。"""
    question = _find(name)
    guess, before = Guess(question), _asked.get(name)
    if before and not before.ask.radio.disabled:
        guess.ask.radio.value = before.ask.choice
    _asked[name] = guess
    both(guess.box, page(GUESS, question))


def reveal(name: str):
    """看过结果了，再摆出同一道题：选过的还在，按“揭晓”看答案。"""
    question = _find(name)
    guess = _asked.setdefault(name, Guess(question))
    text = LATER.format(question.text)
    both(guess.box, {"text/html": f"<p><small>{in_html(text)}</small></p>", "text/plain": text})


def recall(book: str):
    """一本开头的三道题，都是前几本学过的：先想一想，再揭晓；想不起来的，它说回哪一节看。

    Args:
        book: "02" 到 "05"。
    """
    known = recalled()
    if book not in known:
        raise LorakitError(f"没有“{book}”的回想题。有的是：{'、'.join(known)}。")
    titles = [f"回想 {k}：" for k in range(1, len(known[book]) + 1)]
    asked = list(zip(titles, known[book], strict=True))
    guesses = [Guess(question, title, "按“揭晓”看对不对。") for title, question in asked]
    both(widgets().VBox([guess.box for guess in guesses]), _pages(asked))


def _pages(asked: list[tuple[str, Question]]) -> dict:
    """几道题连着摆的静态样子。"""
    pages = [page(title, question) for title, question in asked]
    return {key: "\n".join(page[key] for page in pages) for key in pages[0]}


def _place(moment: str) -> Path:
    return notes() / f"quiz_{moment}.json"


def picks(moment: str) -> list[int | None]:
    """前测（pre）或后测（post）每一题选了第几项，没答的是 None。"""
    said = kept(_place(moment), {}, {})  # 旧的前测只有五道别的题，名字对不上，不算
    return [_pick(question, said.get(question.name)) for question in exam(moment)]


def _pick(question: Question, value: object) -> int | None:
    """一题的答案：第几项；没答、记坏了是 None。"""
    fits = type(value) is int and 0 <= value < len(question.options)
    return value if fits else None


class Test:
    """前测或后测：答过的还在，每选一题就记下；后测答完可以看对错。"""

    def __init__(self, moment: str):
        w = widgets()
        self.moment, self.picks, self.said = moment, picks(moment), w.HTML()
        self.asks = [
            Ask(f"第 {k + 1} 题：", question, lambda pick, k=k: self._keep(k, pick))
            for k, question in enumerate(exam(moment))
        ]
        self.show = w.Button(description="看对错", icon="check")
        self.show.on_click(lambda button: self.tell())
        for ask, pick in zip(self.asks, self.picks, strict=True):
            ask.radio.value = pick
        rows = [part for ask in self.asks for part in (*ask.parts, ask.page)]
        self.box = w.VBox([*rows, self.said, self.show])
        self._count()

    def _keep(self, number: int, pick: int | None):
        if self.picks[number] != pick:
            self.picks[number] = pick
            said = zip((ask.question.name for ask in self.asks), self.picks, strict=True)
            write_text(_place(self.moment), json.dumps(dict(said)))
        self._count()

    def _count(self):
        done, total = sum(pick is not None for pick in self.picks), len(self.picks)
        tail = "，都答完了；只存在你自己的电脑上。" if done == total else "，不会的可以空着。"
        self.said.value = f"<b>已记下 {done} / {total}</b>{tail}"
        ready = self.moment == "post" and done == total
        self.show.layout.display = "" if ready else "none"

    def tell(self):
        """每一题的对错和为什么。"""
        for ask in self.asks:
            ask.tell()


def pretest(moment: str = "pre"):
    """十二道题，学之前（pre）和学之后（post）各答一次，题不同、考的是同样的事。

    答案只存在本机的缓存文件夹里；再运行一遍，答过的还在。
    """
    if moment not in MOMENTS:
        raise LorakitError(f"lab.pretest：写 {' 或 '.join(MOMENTS)}（前测或后测），得到 {moment}。")
    asked = [(f"第 {k} 题：", question) for k, question in enumerate(exam(moment), 1)]
    both(Test(moment).box, _pages(asked))


def score(moment: str) -> float | None:
    """答对的比例；没答过是 None。"""
    if not any(pick is not None for pick in picks(moment)):
        return None
    marks = [pick == one.right for pick, one in zip(picks(moment), exam(moment), strict=True)]
    return sum(marks) / len(marks)


def gain() -> float | None:
    """归一化的进步：(后测 - 前测) / (1 - 前测)；缺一次，或前测满分，是 None。"""
    before, after = score("pre"), score("post")
    return None if None in (before, after) or before == 1 else (after - before) / (1 - before)
