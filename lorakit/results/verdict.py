"""判断一次训练：三个灯——损失、画面、抄没抄，各带误差或区间；只有损失好，不算学到了。

损失的灯在这里算，只要 metrics.jsonl；画面与抄没抄要画图、要有眼睛看，由 `lorakit.judge` 亮起。
教程：notebooks/03_train_qwen.ipynb
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from lorakit.files import Unreadable, read_json, write_text
from lorakit.results import checkpoint, heldout

SURE = 2.0  # 变化要超过几倍标准误，才算不是碰巧
LEAST = 0.005  # 比这还小的变化，就算不是碰巧，画面上也看不出来
FEW = 10  # 每张图看的遍数少于它，什么也还学不会
BROKEN = 0.05  # 平均好了，却有一个 t 差了这么多：模型多半只会猜个大概了
GREEN, YELLOW, RED, OFF = "绿", "黄", "红", "灭"
NAMES = ("损失", "画面", "抄没抄")
UNSEEN = "还没有看：运行 lorakit judge 结果文件夹。"
FILE = "judge.json"
LIGHT = {"name": str, "color": str, "said": str, "facts": dict}
SHAPE = {
    "eye": str,
    "take": (int, type(None)),
    "why": str,
    "verdicts": [
        {
            **dict.fromkeys(("word", "sentence", "mark"), str),
            "step": int,
            "best": (int, type(None)),
            "lights": [LIGHT],
        }
    ],
}


@dataclass(frozen=True)
class Light:
    """一个灯：管什么（NAMES 里的）、颜色（绿、黄、红；灭是没看或看不出）、一句话、数。"""

    name: str
    color: str
    said: str
    facts: dict = field(default_factory=dict)

    def __str__(self) -> str:
        return f"[{self.color}] {self.name}：{self.said}"


@dataclass(frozen=True)
class Verdict:
    """一个检查点（或整次训练）的判断。

    word：三个灯都看过的是“学到了”“还早”“画坏了”“开始抄了”“抄了训练图”“看不出”“说不准”之一；
    只有损失的是“损失降了”“还没”“过拟合”“没法比”“没有留出集”之一。best 是留出集损失最低的步数。
    """

    word: str
    sentence: str
    best: int | None = None
    lights: tuple[Light, ...] = ()
    step: int | None = None

    @property
    def phrase(self) -> str:
        """给人看的：词自己就说得清的照旧，“还没”补成一整句。"""
        if self.word != "还没":
            return self.word
        facts = self.lights[0].facts if self.lights else {}
        if not self.lights or self.lights[0].color != RED:
            return "还没学到，损失没有变"
        worse = facts.get("change", 0) - SURE * facts.get("error", 0) > 0
        return "还没学到，损失变差了" if worse else "还没学好，有的 t 损失变差了"

    def text(self) -> str:
        """词和三个灯，一行一个。"""
        return "\n".join([f"{self.phrase}：{self.sentence}", *map(str, self.lights)])


@dataclass(frozen=True)
class Judgement:
    """整个结果文件夹：谁看的、每个检查点的判断、该用哪一个（没有就是 None）、为什么。"""

    eye: str
    verdicts: dict[int, Verdict]
    take: int | None
    why: str


def judge(
    metrics: list[dict],
    step: int | None = None,
    picture: Light | None = None,
    copied: Light | None = None,
    views: float | None = None,
) -> Verdict:
    """metrics.jsonl 的记录（和看过图的两个灯）-> 判断；没给两个灯就只说损失。

    Args:
        step: 判断哪一步的检查点；不写就是最后一次检验的那一步。
        views: 到这一步，每张训练图看了几遍；太少的认不出来是还早，不是坏了。
    """
    word, loss, best = _loss(metrics, step)
    if picture is None or copied is None:
        unseen = tuple(Light(name, OFF, UNSEEN) for name in NAMES[1:])
        said = f"{loss.said}画面和抄没抄{UNSEEN}" if loss.color == GREEN else loss.said
        return Verdict(word, said, best, (loss, *unseen), step)
    word, said = _conclude(word, loss, picture, copied, views)
    return Verdict(word, said, best, (loss, picture, copied), step)


def _conclude(
    word: str, loss: Light, picture: Light, copied: Light, views: float | None
) -> tuple[str, str]:
    """三个灯 -> 一个词、一句话。"""
    if copied.color == RED:
        found, mend = (
            "抄了训练图",
            "画出来的就是训练图：用早一点的检查点，或添些不一样的图",
        )
    elif picture.color == RED and views is not None and views < FEW:
        found, mend = "还早", f"每张图才看了 {views:.0f} 遍，画的还认不出来：多练几倍的步数"
    elif picture.color == RED:
        found, mend = "画坏了", "画的认不出来：换别的检查点；每个都这样，就把学习率除以 3 重练"
    elif picture.color == OFF:
        found, mend = "看不出", "眼睛看不懂这些图：请自己看样张，或换一只眼睛（--eye）"
    elif picture.color == YELLOW:
        found, mend = "还早", "画的还不是要的样子：多练一些；练了很多步还这样，就查触发词和描述"
    elif copied.color == YELLOW:
        found, mend = "开始抄了", "画面对了，可照训练描述画的多半就是训练图：早一点的检查点更好"
    elif copied.color == OFF:
        found, mend = "说不准", "画面对了，抄没抄却看不出：自己拿样张和训练图比一比"
    elif loss.color == RED and word != "过拟合":
        found, mend = "说不准", "画面对了，损失却坏了：自己看样张"
    elif word == "还没":
        found, mend = "说不准", "画面对了，损失却没有变：底模本来就会画？看看没有 LoRA 时的样张"
    else:
        found, mend = "学到了", "画成了要的样子，也没有照抄训练图"
    return found, f"{mend}。"


def _loss(metrics: list[dict], step: int | None) -> tuple[str, Light, int | None]:
    """损失的灯：(只看损失时的词, 灯, 损失最低的一步)。

    变化用对数比的平均：每张留出图、每个 t 各算一个 ln(现在 / 以前)，标准误由它们的散布估计；
    8 个 t 的损失相差十倍，用比值才不会只看见最大的那个。
    """
    rows = heldout.same(metrics, step)
    table = {m["step"]: np.array(m["held_each"]) for m in rows if m.get("held_each")}
    if len(table) < 2 or 0 not in table:
        word, said = _dark(table)
        return word, Light(NAMES[0], OFF, said), None
    steps = sorted(table)
    best = min(steps, key=lambda one: table[one].mean())
    now = steps[-1] if step is None else min(steps, key=lambda one: (abs(one - step), one))
    change, spread = _change(table[0], table[now])
    facts = {"step": now, "change": change, "error": spread, "n": table[0].size, "best": best}
    facts[heldout.MARK] = list(heldout.batch(rows[-1]))  # 别的检查点量的是同一批，才好一起比
    word, color, said = _say_loss(table, now, best)
    return word, Light(NAMES[0], color, said, facts), best


def _dark(table: dict[int, np.ndarray]) -> tuple[str, str]:
    """损失的灯亮不了：(词, 真正的原因与办法)。"""
    if not table:
        return "没有留出集", (
            "没有留出集的损失，这个灯亮不了：图要 4 张以上，eval.holdout（例如 0.1）"
            "和 eval.every（例如 50）都不能是 0。"
        )
    if 0 in table:
        return "没法比", (
            "留出集的损失只有第 0 步（没有 LoRA 时）的，后面还没有检验过，这个灯亮不了："
            "接着练到下一次检验就有了；eval.every（例如 50）不能是 0。"
        )
    return "没法比", (
        "留出集的损失量了，可是记录里没有同一批图在第 0 步（没有 LoRA 时）的，没有东西可比，"
        "这个灯亮不了：多半是 metrics.jsonl 没有一起搬来。把 train.steps 改大接着练，会先补量一遍。"
    )


def _say_loss(table: dict[int, np.ndarray], now: int, best: int) -> tuple[str, str, str]:
    """(只看损失时的词, 颜色, 一句话)。"""
    change = _change(table[0], table[now])
    fell = f"留出集损失比没有 LoRA 时变化 {_percent(*change)}（第 {now} 步）。"
    low = _change(table[0], table[best])
    worse = change[0] - SURE * change[1] > 0
    if best < now and _clear(low):
        back, wobble = _change(table[best], table[now])
        if back - SURE * wobble > 0:
            said = (
                f"{fell}第 {best} 步最低（{_percent(*low)}），之后又升了 {_percent(back, wobble)}："
                f"多半开始死记训练图了，请比一比第 {best} 步前后的检查点。"
            )
            return "过拟合", RED if worse else YELLOW, said
    if worse or not _clear(change):
        how = "更差了" if worse else "小得看不出来，或在误差之内"
        said = f"练了 {now} 步，留出集损失变化 {_percent(*change)}，{how}。"
        return "还没", RED if worse else YELLOW, said + _advice(worse)
    place, up, doubt = _worst(table[0], table[now])
    if up - SURE * doubt > BROKEN:
        said = f"{fell}可是 t = {place:.2f} 时反而差了 {_percent(up, doubt)}，"
        said += "画面多半是坏的：先看样张，再把学习率除以 3 重练。"
        return "还没", RED, said
    return "损失降了", GREEN, fell


def _clear(change: tuple[float, float]) -> bool:
    """降得比误差多，也大得看得出来。"""
    gain, spread = change
    return gain + SURE * spread < 0 and gain <= -LEAST


def held_by_step(metrics: list[dict]) -> dict[int, float]:
    """{步数: 留出集的损失}，只有检验过的、和最后一次量的是同一批图的那些步。"""
    return {m["step"]: m["held"] for m in heldout.same(metrics) if m.get("held") is not None}


def best_of(metrics: list[dict], steps: Iterable[int]) -> int | None:
    """这几步里留出集损失最低的一步；都没有检验过就是 None。"""
    held = held_by_step(metrics)
    known = [step for step in steps if step in held]
    return min(known, key=held.get) if known else None


def _change(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """逐个 ln(after / before) 的平均与标准误；负的是变好。"""
    ratio = np.log(after / before).ravel()
    return float(ratio.mean()), float(ratio.std(ddof=1) / np.sqrt(len(ratio)))


def _worst(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """变化最差的一个 t：它是多少、变化与标准误（只有一张留出图时是 0）。"""
    ratio = np.log(after / before)  # (图, t)
    column = int(ratio.mean(0).argmax())
    spread = ratio[:, column].std(ddof=min(1, len(ratio) - 1)) / np.sqrt(len(ratio))
    return (column + 0.5) / ratio.shape[1], float(ratio[:, column].mean()), float(spread)


def _percent(change: float, spread: float) -> str:
    digits = 0 if abs(change) >= 0.02 else 1
    return f"{np.expm1(change):+.{digits}%} ± {np.exp(change) * spread:.{digits}%}"


def _advice(worse: bool) -> str:
    if worse:
        return "越练越差：学习率多半太大，除以 3 再试。"
    return "可以多练几倍的步数，或把学习率乘 3；也看看描述说的是不是图里的东西。"


def save(run: Path, judgement: Judgement) -> Path:
    """把判断写进结果文件夹的 judge.json；每个检查点记着当时的指纹，换了权重就不作数。"""
    marks = {one: _mark(run, one) for one in judgement.verdicts}
    whole = asdict(judgement)
    whole["verdicts"] = [
        asdict(verdict) | {"step": step, "mark": marks[step]}
        for step, verdict in judgement.verdicts.items()
    ]
    return write_text(run / FILE, json.dumps(whole, ensure_ascii=False, indent=1))


def read(run: Path) -> Judgement | None:
    """judge.json 里还作数的判断；没有、读不懂、检查点都换过了就是 None。"""
    try:
        found = read_json(run / FILE, SHAPE)
    except Unreadable:
        return None
    verdicts = {}
    for one in found["verdicts"]:
        lights = tuple(Light(**{key: light[key] for key in LIGHT}) for light in one["lights"])
        known = Verdict(one["word"], one["sentence"], one["best"], lights, one["step"])
        if one["mark"] and one["mark"] == _mark(run, known.step):
            verdicts[known.step] = known
    if not verdicts:
        return None
    take = found["take"] if found["take"] in verdicts else None
    return Judgement(found["eye"], verdicts, take, found["why"])


def last(run: Path, metrics: list[dict]) -> Verdict:
    """此刻最后一步的判断：看过图的就有三个灯，没看过的只有损失。"""
    return at(run, metrics, last_step(metrics))


def at(run: Path, metrics: list[dict], step: int) -> Verdict:
    """第 step 步的判断，同 `last`。"""
    judged = read(run)
    if judged and step in judged.verdicts:
        return judged.verdicts[step]
    return judge(metrics, None if step == last_step(metrics) else step)


def last_step(metrics: list[dict]) -> int:
    """记录里的最后一步。"""
    return max((m["step"] for m in metrics), default=0)


def _mark(run: Path, step: int) -> str:
    return checkpoint.facts_of(checkpoint.folder_of(run, step)).get(checkpoint.SUM, "")
