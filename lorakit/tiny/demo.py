"""一分钟看懂 LoRA：画 24 张样例图、训练、在没练过的主体上比较前后。"""

import time
from dataclasses import dataclass
from pathlib import Path

from lorakit import infer, record, report
from lorakit.config import Config, load_config
from lorakit.tiny import samples
from lorakit.tiny.examiner import examine, share
from lorakit.tiny.figures import FIGURES
from lorakit.tiny.styles import STYLES
from lorakit.tiny.world import HELD_OUT, SIZE, style_caption, style_scenes

SHOWN = 8  # 对照图里画几列


@dataclass(frozen=True)
class Scores:
    """考官的打分：有多少张是这个画风、有多少张认得出是要的东西。"""

    style: float
    content: float


def exam_scenes(style: str):
    """留出的 13 种主体各一个大的、居中的场景：训练图里从没出现过它们。"""
    from dataclasses import replace

    scenes = style_scenes(style, HELD_OUT, len(HELD_OUT), seed=77)
    return [replace(s, things=(replace(s.things[0], size="big", side="center"),)) for s in scenes]


def score(images, style: str) -> Scores:
    """让考官看 exam_scenes 顺序画出的图。"""
    verdicts = examine(images)
    kinds = [scene.things[0].kind for scene in exam_scenes(style)]
    return Scores(share(verdicts, style=style), share(verdicts, object=kinds))


def settings(out: Path, style: str, overrides: list[str]) -> Config:
    """demo 的设置：随包的 tiny-qwen-image 预设，数据与结果都放在 out 里。"""
    places = [f"data.folder={out / 'data'}", f"run.output={out / 'run'}"]
    return load_config("tiny-qwen-image", [*places, *overrides])


@dataclass(frozen=True)
class Result:
    """demo 的结果：前后的打分、留出集损失、图的位置、训练用了几秒。"""

    before: Scores
    after: Scores
    held: tuple[float, ...]
    picture: Path
    seconds: float


def run(out: Path, style: str, overrides: list[str], on_step=None, say=print) -> Result:
    """整个演示；on_step(步, 总步数) 每步调一次。"""
    from lorakit.train import Trainer

    folder = out / "data"
    if not folder.exists():
        samples.write(style, folder)
    say(f"数据：{folder}（24 张{STYLES[style][0]}的图，每张一个 .txt 描述；一半的主体故意没画）")
    config = settings(out, style, overrides)
    trainer = Trainer(config)
    pipe = trainer.family.pipeline(trainer.transformer)
    pipe.set_progress_bar_config(disable=True)
    scenes = exam_scenes(style)
    prompts = [style_caption(scene) for scene in scenes]

    def draw():
        trainer.transformer.eval()
        return infer.generate(trainer.family, pipe, prompts, config.sample, (SIZE, SIZE))

    with infer.without_lora(trainer.transformer):
        before = draw()
    start = time.time()
    for step in trainer:
        if on_step:
            on_step(step, config.train.steps)
    seconds = time.time() - start
    held = [m["held"] for m in record.read(config.run.output) if m.get("held") is not None]
    after = draw()
    names = [FIGURES[scene.things[0].kind][2] for scene in scenes[:SHOWN]]
    sheet = report.grid([before[:SHOWN], after[:SHOWN]], ["训练前", "训练后"], names)
    picture = report.save_image(sheet, out / "before_after.png")
    report.plot_loss(config.run.output).replace(out / "loss.png")
    report.write_run_card(
        config.run.output, config, trainer.dataset, seconds, str(trainer.accelerator.device)
    )
    report.write_model_card(config.run.output, config, trainer.dataset, ["../before_after.png"])
    return Result(score(before, style), score(after, style), tuple(held), picture, seconds)
