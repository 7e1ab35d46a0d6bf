"""诊断室的门诊：`lab.clinic()` 看有哪些病人，`lab.clinic(3)` 看一份病历，`lab.treat(3, …)` 治一个。

治好了哪几个，只记在这台机器上。
"""

import json
from collections.abc import Callable
from pathlib import Path

from lorakit.errors import LorakitError
from lorakit.files import kept, write_text
from lorakit.inert import in_html
from lorakit.lab.bar import waiting
from lorakit.lab.display import both, pictured, publish, table
from lorakit.lab.hospital.cases import ALL, MOST, Case, prescribed
from lorakit.lab.hospital.chart import ASKED, CELL, board, chart, strip
from lorakit.lab.hospital.handover import Script
from lorakit.lab.hospital.photos import CUPBOARD
from lorakit.lab.hospital.record import SHOWN
from lorakit.lab.hospital.treatment import (
    NAMES,
    Checked,
    checked,
    configured,
    cured,
    drawn,
    gained,
)
from lorakit.lab.lights import COLORS
from lorakit.lab.notes import fresh, notes, workplace
from lorakit.lab.picture import wall
from lorakit.lab.quiz import Guess, page
from lorakit.lab.runner import Run
from lorakit.results.verdict import Verdict

STATES = ("还没看过", "认出了病因", "治好了")
NOBODY = f"未完成：把 ... 换成病人的号码，1 到 {len(ALL)}，再运行。"
BLANK = "未完成：把 ... 换成处方，再运行。"


def clinic(number: int | None = None):
    """不写号码：列出病人和治到哪一步；写号码：摆出病历，请你认病因。还没有填（...）就说一声。

    Raises:
        LorakitError: 没有这一号。
    """
    if number is None:
        return _waiting_room()
    if number is ...:
        return print(NOBODY)
    case = find(number)
    publish(pictured(board(case)))
    publish(_story(number, case))
    asked = Diagnosis(case)
    both(asked.box, page(f"{number} 号。", case.cause))


def find(number: int) -> Case:
    """号码 -> 病人。"""
    if type(number) is not int or not 1 <= number <= len(ALL):
        raise LorakitError(f"没有 {number} 号病人：写 1 到 {len(ALL)}，例如 lab.clinic(3)。")
    return ALL[number - 1]


class Diagnosis(Guess):
    """认病因的那道题；认对了就记下。"""

    def __init__(self, case: Case):
        self.case = case
        super().__init__(case.cause, f"{ALL.index(case) + 1} 号。", "按“揭晓”看对不对。")

    def open(self):
        """揭晓；选对了才算认出。"""
        super().open()
        if self.ask.choice == self.case.cause.right:
            remember(self.case, 1)


def state(case: Case) -> int:
    """治到哪一步：STATES 里的第几项。"""
    found = kept(_place(), {}, {}).get(case.name)
    return found if found in range(len(STATES)) else 0


def remember(case: Case, step: int):
    """记下治到了哪一步；只进不退。"""
    known = {one.name: state(one) for one in ALL}
    write_text(_place(), json.dumps(known | {case.name: max(step, known[case.name])}))


def _place() -> Path:
    return notes() / "clinic.json"


def _waiting_room():
    """候诊室：一览图，和一行一个病人。"""
    publish(pictured(strip()))
    rows = [(str(i), one.complaint, STATES[state(one)]) for i, one in enumerate(ALL, 1)]
    cured = sum(state(one) == 2 for one in ALL)
    tail = f"一共 {len(ALL)} 个，治好了 {cured} 个；只记在这台机器上。看一个：lab.clinic(1)。"
    lines = [f"{number:>2} 号  {said}（{now}）" for number, said, now in rows]
    marked = table((f"{n} 号", in_html(said), now) for n, said, now in rows)
    publish({"text/html": f"{marked}<p>{tail}</p>", "text/plain": "\n".join([*lines, tail])})


def _story(number: int, case: Case) -> dict:
    """主诉、三个灯、单子、日志。"""
    one = chart(case.name)
    verdict, log = one.checked.verdict, "\n".join([*one.facts["log"], *_control(case)])
    cupboard = f"病人的图（图库里另有 {'、'.join(CUPBOARD)}）"
    values = {"data.folder": cupboard, **case.plan.settings}
    sheet = "\n".join(f"{name} = {value}" for name, value in values.items())
    head = f"{number} 号：“{case.complaint}。”预设 {case.plan.preset}。"
    marked = "".join(f"<details><summary>{title}</summary><pre>{in_html(text)}</pre></details>"
                     for title, text in (("单子：设置", sheet), ("日志", log)))  # fmt: skip
    html = f"<p><b>{in_html(head)}</b></p>{_lights(verdict)}{marked}"
    text = "\n".join([head, *map(str, verdict.lights), "单子：", sheet, "日志：", log])
    return {"text/html": html.replace("<details>", "<details open>"), "text/plain": text}


def _control(case: Case) -> list[str]:
    """健康的对照：损失到了哪里，各块改了多大。"""
    facts = chart(case.control).facts
    blocks = "、".join(f"{norm:.3g}" for norm in facts["blocks"].values())
    step, held = facts["held"][-1]
    return [f"健康的对照：第 {step} 步留出集 {held:.3f}，各块改了 {blocks}"]


def _lights(verdict: Verdict) -> str:
    rows = [(f'<span style="color:{COLORS[one.color]}">●</span> {in_html(one.name)}',
             in_html(one.said)) for one in verdict.lights]  # fmt: skip
    return table(rows)


def treat(
    number: int,
    *changes: str | None,
    photos: Callable[[Path], object] | None = None,
    file: Script | None = None,
) -> Checked | None:
    """照处方再练一次（二十秒左右），请法官复查：治好了，还是没治好、往哪里想。

    Args:
        changes: 一句一项“设置=值”，设置是单子上有的；data.folder 写图库里的名字；None 是不改。
        photos: 函数 (图的文件夹)：练之前改图、改描述。
        file: 函数 (结果文件夹, 写到哪里)：练完换一种办法交出文件。

    Raises:
        LorakitError: 没有这一号，处方写错了，或太久。
    """
    changes = tuple(change for change in changes if change is not None)
    if ... in (number, *changes, photos, file) or not (changes or photos or file):
        print(BLANK)
        return None
    case = find(number)
    plan = prescribed(case.plan, changes)
    home = fresh(workplace("clinic") / str(number))
    home.mkdir(parents=True, exist_ok=True)
    config = configured(plan, home, photos)
    if config.train.steps * config.train.batch_size > MOST:
        raise LorakitError(
            f"处方太久：{config.train.steps} 步、每步 {config.train.batch_size} 张，"
            f"一共不能超过 {MOST} 张。真的病人也没有那么多时间。"
        )
    run = Run(config).start().result()
    if run.step < config.train.steps:
        print("停下了，没有练完，不判。")
        return None
    with waiting("法官在看：画几十张没练过的……"):
        found, _ = checked(plan, run, file)
    tell(number, case, found, drawn(config, "asked-0")[:SHOWN])
    return found


def tell(number: int, case: Case, found: Checked, images: list):
    """治之前与治之后：图、几个数、差的区间、一句话。"""
    before = chart(case.name)
    rows = {"治之前": before.rows[ASKED], "治之后": images}
    columns = [str(i + 1) for i in range(SHOWN)]
    publish(pictured(wall(list(rows.values()), list(rows), columns, CELL)))
    lines, numbers = [str(one) for one in found.verdict.lights], [("", "治之前", "治之后")]
    for what, share in found.shares.items():
        earlier = before.checked.shares.get(what, "没有数")
        numbers.append((NAMES[what][0], str(earlier), str(share)))
    end, gain = _conclude(number, case, found, before.checked)
    text = ["  ".join(row) for row in numbers[1:]] + gain
    said = "".join(f"<p>{in_html(one)}</p>" for one in gain)
    html = f"{_lights(found.verdict)}{table([tuple(map(in_html, row)) for row in numbers])}"
    html += f"{said}<p><b>{in_html(end)}</b></p>"
    publish({"text/html": html, "text/plain": "\n".join([*lines, *text, end])})


def _conclude(number: int, case: Case, found: Checked, before: Checked) -> tuple[str, list[str]]:
    """(治好了没有的一句话, 主诉好了多少的一句话)；治好了就记下。"""
    if found.shares.keys() != chart(case.control).checked.shares.keys():
        return f"没治好：这张处方教的，已经不是他要学的了。提示：{case.hint}", []
    said = gained(case.measure, before, found)[2]
    if cured(case, before, found):
        remember(case, 2)
        return f"✓ {number} 号治好了。", [said]
    word = found.verdict.word
    why = "法官满意了，可是主诉还没有好。" if word in case.words else f"法官说“{word}”。"
    return f"没治好：{why}提示：{case.hint}", [said]
