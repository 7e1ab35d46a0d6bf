"""没有标签的检查点（05 的大作业）：八张剪纸练 400 步，六个检查点画样张、判好、记下来。

用法：python tests/measure_lineup.py
写 lorakit/assets/recordings 里的 lineup.json 与 lineup.webp；设置同 05 的 5.7 节，图多一倍。
"""

import tempfile
from pathlib import Path

from measure_trap import COLUMNS, SIDE, recorded, write
from PIL import Image

from lorakit import infer
from lorakit.config import load_config
from lorakit.tiny import samples
from lorakit.tiny.lessons import exam_scenes
from lorakit.tiny.world import style_caption
from lorakit.train import Trainer

STEPS = (12, 40, 70, 110, 200, 400)
SEED = 9  # 不是训练时出样张的那一个：抄了的，换了种子还是那一张


def measure(home: Path, steps=STEPS) -> tuple[dict, list[list[Image.Image]]]:
    """练、看、判 -> (要记下的事实, 一行行样张)；第一行是训练图，前四格空着。"""
    data = samples.write("papercut", home / "data", count=16)
    own = [f"data.folder={data}", f"run.output={home / 'run'}", "sample.every=0", "eval.every=4"]
    few = ["eval.holdout=0.5", "train.batch_size=4", "train.lr=1e-3", "train.schedule=constant"]
    few += [f"train.steps={max(steps)}", "sample.steps=12"]
    config = load_config("tiny-qwen-image", [*own, *few])
    trainer = Trainer(config)
    records = [item.record for item in trainer.dataset.train][: len(COLUMNS)]
    prompts = [style_caption(scene) for scene in exam_scenes("papercut")[: len(COLUMNS)]]
    prompts += [record.caption for record in records]
    blank = [Image.new("RGB", SIDE, "white")] * len(COLUMNS)
    rows = [[*blank, *(Image.open(record.path).convert("RGB") for record in records)]]
    how = config.sample.model_copy(update={"seed": SEED})
    for step in trainer:
        if step.step in steps:
            trainer.save()
            trainer.transformer.eval()
            rows.append(infer.generate(trainer.family, trainer.pipeline(), prompts, how, SIDE))
    columns = [*COLUMNS, *(f"练过 {i + 1}" for i in range(len(records)))]
    return recorded(config, steps, "python tests/measure_lineup.py", columns), rows


def main():
    with tempfile.TemporaryDirectory() as home:
        write("lineup", *measure(Path(home)))


if __name__ == "__main__":
    main()
