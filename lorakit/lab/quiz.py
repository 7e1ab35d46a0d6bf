"""先猜后看：`predict` 记下你的猜测，`reveal` 揭晓；前测与后测只存在你自己的电脑上。"""

import json
from dataclasses import dataclass
from html import escape

from lorakit.errors import LorakitError
from lorakit.files import write_text
from lorakit.lab.display import both, publish, widgets
from lorakit.lab.notes import notes

_asked: dict[str, "Question"] = {}


@dataclass
class Question:
    """一个选择题；choice 是猜的下标，没猜是 None。"""

    text: str
    options: tuple[str, ...]
    choice: int | None = None


def _page(question: Question) -> dict:
    lines = [f"{chr(65 + i)}. {option}" for i, option in enumerate(question.options)]
    items = "<br>".join(map(escape, lines))
    page = f"<p><b>你先猜：</b>{escape(question.text)}<br>{items}</p>"
    return {"text/html": page, "text/plain": "\n".join([f"你先猜：{question.text}", *lines])}


def _radio(question: Question, remember):
    w = widgets()
    options = [(f"{chr(65 + i)}. {text}", i) for i, text in enumerate(question.options)]
    radio = w.RadioButtons(options=options, layout={"width": "max-content"})
    radio.index = None
    radio.observe(lambda change: remember(change["new"]), names="index")
    return w.VBox([w.HTML(f"<b>你先猜：</b>{escape(question.text)}"), radio])


def predict(name: str, text: str, *options: str):
    """出一道题，先猜再往下看；猜错没有关系，猜过的记得更牢。"""
    if len(options) < 2:
        raise LorakitError(f"predict“{name}”至少要两个选项，得到 {len(options)} 个。")
    question = _asked[name] = Question(text, options)

    def remember(index: int | None):
        question.choice = index

    both(_radio(question, remember), _page(question))


def reveal(name: str, answer: str, why: str):
    """揭晓：answer 是 A、B、C……，why 说为什么；提到你刚才的猜测。"""
    if name not in _asked:
        raise LorakitError(f"还没有出过“{name}”这道题：请先运行上面带 predict 的格子。")
    question, right = _asked[name], ord(answer) - 65
    if not 0 <= right < len(question.options):
        raise LorakitError(f"“{name}”没有选项 {answer}，只有 {len(question.options)} 个。")
    guess = question.choice
    said = "猜对了！" if guess == right else "没猜中，正好记住它。"
    said = "" if guess is None else f"你猜 {chr(65 + guess)}，{said}"
    text = f"{said}答案是 {answer}：{question.options[right]}。{why}"
    page = (
        '<div style="border-left:4px solid #3c8c5a;padding:2px 12px">'
        f"<b>{escape(said)}答案是 {answer}：{escape(question.options[right])}。</b>"
        f"{escape(why)}</div>"
    )
    publish({"text/html": page, "text/plain": text})


PRETEST = (  # 题目、选项（第几个对）
    ("训练图像模型时，网络每一步学的是什么？",
     ("记住每一张训练图", "从加了噪声的图指出该往哪个方向走", "判断图好不好看"), 1),
    ("训练损失上下乱跳，多半是因为什么？",
     ("每步抽到的噪声多少不一样", "电脑坏了", "学不会"), 0),
    ("LoRA 文件为什么比底模小得多？",
     ("图存得少", "用了压缩软件", "只存两个瘦长矩阵的改动"), 2),
    ("学习率太大会怎样？", ("学得更快更好", "损失停在高处，画面花掉", "显存不够"), 1),
    ("怎么知道模型学到了画风，而不是背下了训练图？",
     ("看训练损失", "看训练图画得像不像", "让它画训练图里没有的东西"), 2),
)  # fmt: skip


def pretest(moment: str = "pre"):
    """五道题，学之前和学之后各答一次，答案只存在本机的缓存文件夹里。"""
    place, picks = notes() / f"quiz_{moment}.json", [None] * len(PRETEST)

    def remember(number: int):
        def keep(index: int | None):
            picks[number] = index
            write_text(place, json.dumps(picks))

        return keep

    questions = [Question(text, options) for text, options, _ in PRETEST]
    parts = [_radio(question, remember(i)) for i, question in enumerate(questions)]
    pages = [_page(question) for question in questions]
    static = {key: "\n".join(page[key] for page in pages) for key in pages[0]}
    both(widgets().VBox(parts), static)


def score(moment: str) -> float | None:
    """答对的比例；没答过是 None。"""
    place = notes() / f"quiz_{moment}.json"
    if not place.is_file():
        return None
    picks = json.loads(place.read_text("utf-8"))
    return sum(p == right for p, (_, _, right) in zip(picks, PRETEST, strict=True)) / len(PRETEST)


def gain() -> float | None:
    """归一化的进步：(后测 - 前测) / (1 - 前测)；缺一次，或前测满分，是 None。"""
    before, after = score("pre"), score("post")
    return None if None in (before, after) or before == 1 else (after - before) / (1 - before)
