"""损失骗人的那一课（03 的 3.7 节）：练 120 步，在第 12、40、120 步各看红线、样张、三个灯，记下来。

用法：python tests/measure_trap.py
写 lorakit/assets/recordings 里的 trap.json 与 trap.webp；学习率 7e-4，不降，
别的照预设 tiny-qwen-image。
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from lorakit import infer
from lorakit.config import load_config
from lorakit.judge import Judge, eye_for
from lorakit.lab.recordings import CELL, HOME
from lorakit.results import folder as run_folder
from lorakit.results.verdict import held_by_step
from lorakit.tiny import samples
from lorakit.tiny.lessons import exam_scenes
from lorakit.tiny.world import style_caption
from lorakit.train import Trainer

STEPS = (12, 40, 120)
COLUMNS = ("狗", "熊", "鱼", "蝴蝶")
SIDE = (128, 128)


def measure(home: Path, steps=STEPS) -> tuple[dict, list[list[Image.Image]]]:
    """练、看、判 -> (要记下的事实, 一行行样张)；学习率不降，所以第 12 步就是只练 12 步的。"""
    data = samples.write("papercut", home / "data")
    own = [f"data.folder={data}", f"run.output={home / 'run'}", "sample.every=0", "eval.every=4"]
    rate = ["train.lr=7e-4", "train.schedule=constant", f"train.steps={max(steps)}"]
    config = load_config("tiny-qwen-image", [*own, *rate])
    prompts = [style_caption(scene) for scene in exam_scenes("papercut")[: len(COLUMNS)]]
    trainer = Trainer(config)

    def look() -> list[Image.Image]:
        trainer.transformer.eval()
        how = (prompts, config.sample, SIDE)
        return infer.generate(trainer.family, trainer.pipeline(), *how)

    rows = [look()]
    for step in trainer:
        if step.step in steps:
            trainer.save()
            rows.append(look())
    return recorded(config, steps, "python tests/measure_trap.py", COLUMNS), rows


def recorded(config, steps, command: str, columns) -> dict:
    """请考官判这几个检查点 -> 一份记录要记下的事实。"""
    judged = Judge(eye_for(None, config))(config, steps)
    held = held_by_step(run_folder.read(config.run.output))
    return {
        "command": command,
        "columns": list(columns),
        "rows": [0, *steps],
        "held": [[step, round(loss, 4)] for step, loss in held.items()],
        "checkpoints": [
            {"step": step, "word": one.word, "lights": [asdict(light) for light in one.lights]}
            for step, one in judged.verdicts.items()
        ],
    }


def main():
    with tempfile.TemporaryDirectory() as home:
        facts, rows = measure(Path(home))
    write("trap", facts, rows)


def write(name: str, facts: dict, rows: list[list[Image.Image]]):
    """存成 assets/recordings 里的一份记录，印出每个检查点的词和灯。"""
    sheet = Image.new("RGB", (CELL * len(facts["columns"]), CELL * len(rows)))
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet.paste(
                picture.resize((CELL, CELL), Image.Resampling.LANCZOS), (j * CELL, i * CELL)
            )
    HOME.mkdir(exist_ok=True)
    sheet.save(HOME / f"{name}.webp", quality=80)
    text = json.dumps(facts, ensure_ascii=False, indent=1)
    (HOME / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    for one in facts["checkpoints"]:
        print(one["step"], one["word"], *(light["color"] for light in one["lights"]))


if __name__ == "__main__":
    main()
