"""一分钟看懂 LoRA：画 24 张样例图、训练、在没练过的题目上比较前后。"""

import time
from dataclasses import dataclass
from pathlib import Path

from lorakit import infer
from lorakit.config import Config, load_config
from lorakit.errors import LorakitError
from lorakit.files import read_words, write_text
from lorakit.results import card, report, verdict
from lorakit.results import folder as run_folder
from lorakit.results.evidence import Share
from lorakit.tiny import samples
from lorakit.tiny.lessons import lesson

FIRST = "papercut"  # 不写 --lesson 时上的课


@dataclass(frozen=True)
class Result:
    """demo 的结果：前后的打分、留出集损失、图的位置、训练用了几秒。"""

    exam: str
    before: dict[str, Share]
    after: dict[str, Share]
    held: tuple[float, ...]
    picture: Path
    seconds: float


def settings(out: Path, chosen, preset: str | None, overrides: list[str]) -> Config:
    """demo 的设置：这门课的预设（或另给的），数据与结果都放在 out 里。"""
    places = [f"{key}={out / name}" for key, name in folders(chosen).items()]
    preset = preset or chosen.preset
    return load_config(preset, [*places, *chosen.sets, f"run.output={out / 'run'}", *overrides])


def place(name: str, preset: str | None) -> Path:
    """没有指定时结果放哪里：每一课、每个预设各一个文件夹，免得混在一起。"""
    parts = ["demo", *([name] if name != FIRST else []), *([Path(preset).stem] if preset else [])]
    return Path("runs") / "-".join(parts)


def _claim(out: Path, name: str):
    """记下这个文件夹上的是哪一课。

    Raises:
        LorakitError: 里面已经有另一课的图和结果，接着练就张冠李戴了。
    """
    mark = out / "lesson.txt"
    was = read_words(mark).strip() if mark.is_file() else ""
    if was != name and (out / "data").exists():
        held = f"“{was}”那一课" if was else "别的东西"
        raise LorakitError(
            f"“{out}”里已经有{held}，再上“{name}”会混在一起。请用 --out 换一个文件夹。"
        )
    write_text(mark, name)


def folders(chosen) -> dict[str, str]:
    """哪项设置用 out 里的哪个文件夹；训练图总叫 data。"""
    return {key: "data" if key == "data.folder" else name for key, name in chosen.data.items()}


def run(
    out: Path, name: str, overrides: list[str], on_step=None, say=print, preset: str | None = None
) -> Result:
    """整个演示；name 是课的名字，on_step(步, 总步数) 每步调一次；preset 换掉这门课的预设。"""
    from lorakit.train import Trainer

    chosen = lesson(name)
    _claim(out, name)
    for key, folder in folders(chosen).items():
        if not (out / folder).exists():
            samples.write(chosen.data[key], out / folder)
    say(f"数据：{out / 'data'}（{samples.COUNT} 张，描述在同名的 .txt 里；考题里的都没练过）")
    config = settings(out, chosen, preset, overrides)
    trainer = Trainer(config)
    say(trainer.plan().text())
    pipe = trainer.family.pipeline(trainer.transformer)
    pipe.set_progress_bar_config(disable=True)

    def draw():
        trainer.transformer.eval()
        return chosen.draw(trainer.family, pipe, config.sample)

    with infer.without_lora(trainer.transformer):
        before = draw()
    start = time.perf_counter()
    for step in trainer:
        if on_step:
            on_step(step, config.train.steps)
    seconds = time.perf_counter() - start
    held = verdict.held_by_step(run_folder.read(config.run.output)).values()
    after = draw()
    rows = chosen.rows(before, after)
    sheet = report.grid(list(rows.values()), list(rows), chosen.columns)
    picture = report.save_image(sheet, out / "before_after.png")
    report.plot_loss(config.run.output).replace(out / "loss.png")
    report.write_run_card(
        config.run.output, config, trainer.dataset, seconds, str(trainer.accelerator.device)
    )
    shot = report.save_image(sheet, config.run.output / "samples" / "before_after.png")
    named = [str(shot.relative_to(config.run.output))]
    card.write(config.run.output, config, trainer.family, trainer.dataset, named)
    judged = chosen.judge(before), chosen.judge(after)
    return Result(chosen.exam, *judged, tuple(held), picture, seconds)
