"""练习册里的三个灯：给一次训练的几个检查点，摆成一张表。"""

from collections.abc import Sequence
from pathlib import Path

from lorakit.inert import in_html
from lorakit.judge import Judge, eye_for, open_run, scope
from lorakit.lab.bar import waiting
from lorakit.lab.display import publish, table
from lorakit.lab.picture import GREEN, RED
from lorakit.results.verdict import Judgement

# 黄与灰比图里的深些：在浅色、深色界面上都要看得清
COLORS = {"绿": GREEN, "黄": "#c27a1a", "红": RED, "灭": "#7f8997"}


def judge(
    run: str | Path,
    steps: Sequence[int] = (),
    prompts: Sequence[str] = (),
    seeds: int = 2,
    eye: str | None = None,
) -> Judgement:
    """看结果文件夹里的检查点（steps 不写就全看），摆出三个灯，返回 Judgement。

    run 也可以是里面的一个 checkpoint-N，就只看它。
    画过的图留在结果文件夹的 judge 里，再看一遍很快。
    """
    home, steps = scope(Path(run), steps)
    config = open_run(home)
    with waiting("考官在看：每个检查点画几十张"):
        found = Judge(eye_for(eye, config), seeds, prompts)(config, steps)
    rows, lines = [], []
    for step, one in found.verdicts.items():
        for number, light in enumerate(one.lights):  # 一个灯一行，判断只写在头一行
            dot = f'<span style="color:{COLORS[light.color]}">●</span> {in_html(light.name)}'
            dot = f'<span style="white-space:nowrap">{dot}</span>'
            head = ("", "") if number else (f"第 {step} 步", f"<b>{in_html(one.word)}</b>")
            rows.append((*head, dot, in_html(light.said)))
        lines.append(f"第 {step} 步 {one.text()}")
    taken = "没有" if found.take is None else f"第 {found.take} 步"
    tail = f"该用哪一个：{taken}。{found.why}"
    page = f"{table(rows)}<p>{in_html(tail)}</p>"
    publish({"text/html": page, "text/plain": "\n".join([*lines, tail])})
    return found
