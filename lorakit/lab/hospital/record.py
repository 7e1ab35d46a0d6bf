"""把病人真的练一遍，记成一份病历：曲线、图、日志、三个灯；健康的对照也一样记。

python -m lorakit.lab.hospital 文件夹 [名字……]

一个 CPU 核上一份约一分钟；练过的留在 文件夹/runs 里，断了再运行就接着做。
"""

import json
from pathlib import Path

from PIL import Image

from lorakit import data
from lorakit.data import read_image
from lorakit.files import write_text
from lorakit.lab.hospital.cases import CASES, CONTROLS, Plan
from lorakit.lab.hospital.handover import GIVEN
from lorakit.lab.hospital.treatment import Checked, checked, configured, drawn
from lorakit.lab.runner import Run
from lorakit.lora.audit import Audit

CELL, SHOWN, QUALITY = 80, 6, 62  # 像素：病历里一张图的边长；一行几张；WebP 的质量


def main(out: Path, names: list[str]):
    """练、判、记下每一个病人和每一个对照；names 空着就是全部。"""
    plans = {**CONTROLS, **{name: case.plan for name, case in CASES.items()}}
    for name in names or plans:
        record(name, plans[name], out)


def record(name: str, plan: Plan, out: Path) -> Checked:
    """一份病历：out 里的 名字.json 与 名字.webp。"""
    home = out / "runs" / name
    home.mkdir(parents=True, exist_ok=True)
    run = Run(configured(plan, home)).start(show=False).result()
    found, file = checked(plan, run)
    rows, board = pictures(run), run.board
    ends = (board.by_t[0], board.by_t[-1])  # 接着做的，中间每次检验的也在
    facts = {
        "losses": [round(loss, 3) for loss in board.losses],
        "held": [[step, round(loss, 3)] for step, loss in board.held],
        "by_t": [[step, [round(x, 3) for x in row]] for step, row in ends],
        "log": [line.replace(f"{home}/", "") for line in diary(plan, run, file)],
        "rows": [[title, len(images)] for title, images in rows],
        "word": found.verdict.word,
        "sentence": found.verdict.sentence,
        "lights": [[light.name, light.color, light.said] for light in found.verdict.lights],
        "shares": {what: [share.k, share.n] for what, share in found.shares.items()},
        "measured": {what: [round(x, 4) for x in row] for what, row in found.losses.items()},
        "blocks": {block: round(norm, 3) for block, (norm, _) in file.blocks.items()},
    }
    write_text(out / f"{name}.json", json.dumps(facts, ensure_ascii=False, indent=1) + "\n")
    sheet([images for _, images in rows]).save(out / f"{name}.webp", quality=QUALITY, method=6)
    print(name, found.verdict.word, found.shares, flush=True)
    return found


def pictures(run: Run) -> list[tuple[str, list[Image.Image]]]:
    """病历里的几行图：训练图、照它们的描述画的、训练前后的样张、没练过的题。"""
    dataset, config = run.trainer.dataset, run.config
    chosen = spread([item.record for item in dataset.train])
    if chosen[0].controls:
        rows = [
            ("改之前", [read_image(Path(one.controls[0])) for one in chosen]),
            ("改之后", [read_image(one.path) for one in chosen]),
        ]
    else:
        rows = [
            ("训练图", [read_image(one.path) for one in chosen]),
            ("照描述画", spread(drawn(config, "copy-0"))),
        ]
    before, after = run.board.samples[0][1], run.board.samples[-1][1]
    rows.append(("样张", [*before[:3], *after[:3]]))
    rows.append(("没练过的", drawn(config, "asked-0")[:SHOWN]))
    if plain := drawn(config, "plain-0"):
        rows.append(("普通的猫", plain[:SHOWN]))
    return rows


def spread(items: list) -> list:
    """从头到尾匀着挑 SHOWN 个；不够就全要。"""
    return items[:: -(-len(items) // SHOWN)][:SHOWN]


def diary(plan: Plan, run: Run, file: Audit) -> list[str]:
    """日志：体检、描述、算术、损失、交出去的文件。"""
    config, trainer = run.config, run.trainer
    report = data.inspect(config.data.sources[0].folder, config.data.trigger)[1]
    lines = [
        f"体检：{report.total} 张图，{report.usable} 张能练",
        *report.gathered(report.warnings),
    ]
    said = [item.record.caption for item in trainer.dataset.train[:4]]
    lines += ["描述（前四句）：", *(f"  {one}" for one in said)]
    lines += trainer.plan().text().splitlines()
    for step, held in run.board.held:
        loss = f"损失 {run.board.losses[step - 1]:.3f}，" if step else ""
        lines.append(f"第 {step} 步：{loss}留出集 {held:.3f}")
    lines.append(f"样张的提示词：{'；'.join(trainer.config.sample.prompts)}")
    if plan.script:
        lines.append(f"练完用一段抄来的脚本换成 kohya 的写法，交给别的软件：{GIVEN}")
    lines.append(f"lorakit audit {GIVEN if plan.script else 'checkpoint'}：")
    return lines + [f"  {line}" for line in file.text().splitlines()]


def sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """几行图拼成一张：一格 CELL 见方，不留空。"""
    page = Image.new("RGB", (SHOWN * CELL, len(rows) * CELL), "white")
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            page.paste(image.convert("RGB").resize((CELL, CELL)), (j * CELL, i * CELL))
    return page
