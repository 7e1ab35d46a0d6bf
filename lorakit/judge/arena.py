"""擂台：一份配方、一道课题、一个学习率、一个种子是一格；练完画题、请考官判，一格一行写下来。

同一个 out 可以有几个进程一起跑：每格先用文件锁占住，写好的不再跑，所以断了再跑就接着来。
"""

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lorakit import infer
from lorakit.errors import ConfigError
from lorakit.families import open_family
from lorakit.families.pixels import to_image, to_pixels
from lorakit.files import Unreadable, parse_json
from lorakit.judge import copying, recipes
from lorakit.judge.recipes import GRID, HIGHEST, Recipe, Task
from lorakit.judge.taught import taught
from lorakit.judge.tiny_eye import TinyEye
from lorakit.results import folder as run_folder
from lorakit.results import verdict
from lorakit.results.evidence import Share
from lorakit.tiny import lessons

FILE = "cells.jsonl"
STEPS = (60, 120, 300)  # 练到这几步各画一遍
LEAST = 60  # 一格至少画几张
CEILING = ("render", "vae", "base")  # 小世界自己画的、它过一遍 VAE、没有 LoRA 的底模
_LOOK = {"learned": [int], "kept": [int]}
SHAPE = {
    "task": str, "recipe": str, "lr": float, "seed": int, "seconds": float, "device": str,
    "looks": {str: _LOOK}, "held": {str: float}, "copied": {str: [int]}, "missed": {str: int},
}  # fmt: skip
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Cell:
    """一格；recipe 是 CEILING 里的名字时，是这道课题的上限，没有学习率与种子。"""

    task: Task
    recipe: Recipe | str
    lr: float = 0.0
    seed: int = 0

    @property
    def key(self) -> tuple[str, str, float, int]:
        name = self.recipe if isinstance(self.recipe, str) else self.recipe.name
        return self.task.name, name, self.lr, self.seed

    @property
    def name(self) -> str:
        """文件名里也能用的样子。"""
        task, recipe, lr, seed = self.key
        return f"{task}-{recipe}" + (f"-{lr:g}-{seed}" if lr else "")


def key_of(row: dict) -> tuple[str, str, float, int]:
    """写下的一行是哪一格。"""
    return row["task"], row["recipe"], row["lr"], row["seed"]


def read(out: Path) -> list[dict]:
    """写好的格子；没写完的最后一行不算。

    Raises:
        ConfigError: 有一行不是这里写的。
    """
    file = out / FILE
    if not file.is_file():
        return []
    rows = []
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        try:
            rows.append(parse_json(line, SHAPE))
        except Unreadable as error:
            raise ConfigError(
                f"“{file}”的第 {number} 行读不懂：{error}删掉这一行再来，会重跑那一格。"
            ) from error
    return rows


def plan(
    rows: Sequence[dict], chosen: Sequence[Recipe], tasks: Sequence[Task], seeds: int
) -> Iterator[Cell]:
    """照写好的格子，接下来要跑的：先上限，再各配方照原样，再在格子上调学习率，最后补种子。"""
    done = {key_of(row): row for row in rows}
    cells: list[Cell] = [Cell(task, what) for task in tasks for what in CEILING]
    pairs = [(task, recipe) for task in tasks for recipe in chosen]
    cells += [Cell(t, r, recipes.published_rate(t, r), seed) for seed in range(seeds)
              for t, r in pairs]  # fmt: skip
    cells += [Cell(t, r, lr) for t, r in pairs for lr in GRID]
    for task, recipe in pairs:
        tried = {lr: done.get(Cell(task, recipe, lr).key) for lr in GRID}
        if None in tried.values():
            continue
        lr = best(tried)
        while lr == max(tried) and lr * 2 <= HIGHEST:  # 在边上：再高一格看看
            more = done.get(Cell(task, recipe, lr * 2).key)
            if more is None:
                cells.append(Cell(task, recipe, lr * 2))
                break
            tried[lr * 2] = more
            lr = best(tried)
        else:
            cells += [Cell(task, recipe, lr, seed) for seed in range(1, seeds)]
    seen = set(done)
    for cell in cells:
        if cell.key not in seen:
            seen.add(cell.key)
            yield cell


def best(tried: dict[float, dict]) -> float:
    """练完时学会与没忘加起来最高的学习率；一样高就取小的。"""
    return max(sorted(tried), key=lambda lr: merit(tried[lr]))


def merit(row: dict) -> float:
    """练完时，学会的与没忘的比例的平均。"""
    last = row["looks"][max(row["looks"], key=int)]
    return sum(k / n for k, n in (last["learned"], last["kept"])) / 2


def run(
    out: Path,
    ask: Callable[[list[dict]], Iterable[Cell]],
    until: float = math.inf,
    steps: Sequence[int] = STEPS,
    extra: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> bool:
    """一格一格地跑，写进 out；都跑完是 True，到了 until（monotonic 的钟）或剩下的别人在跑是 False。

    Args:
        ask: 写好的格子 -> 接下来要跑的。
        extra: 每格都盖上的设置。
    """
    (out / "locks").mkdir(parents=True, exist_ok=True)
    slowest = 0.0
    while True:
        left, began = 0, False
        for cell in ask(read(out)):
            left += 1
            if time.monotonic() + slowest > until:
                return False
            lock = FileLock(out / "locks" / f"{cell.name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            with lock:
                if cell.key in map(key_of, read(out)):
                    continue
                started = time.monotonic()
                row = walk(cell, out / "data", steps, extra)
                _append(out, row)
                slowest = max(slowest, time.monotonic() - started)
                say(line(row))
            began = True
            break
        if not began:
            return left == 0


def _append(out: Path, row: dict):
    with FileLock(out / "locks" / "cells.lock"), (out / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def line(row: dict) -> str:
    """一格的一句话。"""
    last = row["looks"][max(row["looks"], key=int)]
    learned, kept = (Share(*last[name]) for name in ("learned", "kept"))
    rate = f"，学习率 {row['lr']:g}，种子 {row['seed']}" if row["lr"] else ""
    said = f"学会 {learned}，没忘 {kept}，{row['seconds']:.0f} 秒"
    return f"{row['task']}，{row['recipe']}{rate}：{said}"


def walk(cell: Cell, data: Path, steps: Sequence[int], extra: Sequence[str]) -> dict:
    """跑一格，返回要写下的一行。"""
    with FileLock(data.with_name("data.lock")):  # 样例图只画一份
        cell.task.data(data)
    if isinstance(cell.recipe, str):
        return _ceiling(cell, data, extra)
    return _train(cell, data, sorted(steps), extra)


def _train(cell: Cell, data: Path, steps: Sequence[int], extra: Sequence[str]) -> dict:
    from lorakit.train import Trainer

    lesson, rounds = lessons.lesson(cell.task.lesson), _rounds(cell.task)
    looks, seconds = {}, 0.0
    with tempfile.TemporaryDirectory() as home:
        own = [f"train.steps={steps[-1]}", f"train.lr={cell.lr}", f"train.seed={cell.seed}",
               f"train.save_every={steps[-1]}", f"eval.every={math.gcd(*steps)}",
               f"run.output={home}/run", *extra]  # fmt: skip
        config = recipes.settings(cell.task, cell.recipe, own, data)
        trainer = Trainer(config)
        pipe = trainer.family.pipeline(trainer.transformer)
        pipe.set_progress_bar_config(disable=True)
        for step in trainer:
            seconds += step.seconds
            if step.step not in steps:
                continue
            trainer.transformer.eval()
            with trainer.average.swapped():
                images = lesson.draw(trainer.family, pipe, config.sample, rounds)
                looks[str(step.step)], missed = marks(lesson, images)
                if step.step == steps[-1]:
                    copied = _copied(config, trainer.family, pipe, images, rounds)
        held = verdict.held_by_step(run_folder.read(config.run.output))
    return _row(
        cell, seconds, str(trainer.accelerator.device), looks, missed,
        held={str(step): round(loss, 5) for step, loss in held.items()}, copied=copied,
    )  # fmt: skip


def _row(cell: Cell, seconds: float, device: str, looks, missed, held=None, copied=None) -> dict:
    task, recipe, lr, seed = cell.key
    return {
        "task": task, "recipe": recipe, "lr": lr, "seed": seed, "seconds": round(seconds, 2),
        "device": device, "looks": looks, "held": held or {}, "copied": copied or {},
        "missed": missed,
    }  # fmt: skip


def _rounds(task: Task) -> int:
    """整张考卷画几遍才够 LEAST 张；角色的一半是没忘，两半各要够。"""
    lesson = lessons.lesson(task.lesson)
    each = len(lesson.asked) // (2 if isinstance(lesson, lessons.CharacterLesson) else 1)
    return -(-LEAST // each)


def marks(lesson, images) -> tuple[dict[str, list[int]], dict[str, int]]:
    """画的（整张考卷几遍）-> 学会与没忘各 [几张, 共几张]，和每种主体没认出的张数。"""
    size = len(lesson.asked)
    parts = [list(lesson.judge(images[i : i + size]).values()) for i in range(0, len(images), size)]
    learned, kept = (Share.of([hit for part in parts for hit in part[i].hits]) for i in (0, 1))
    missed: dict[str, int] = {}
    asked = lesson.asked[-len(parts[0][1].hits) :]
    for part in parts:
        for kind, hit in zip(asked, part[1].hits, strict=True):
            missed[kind] = missed.get(kind, 0) + (not hit)
    found = {"learned": [learned.k, learned.n], "kept": [kept.k, kept.n]}
    return found, {kind: count for kind, count in missed.items() if count}


def _copied(config, family, pipe, images, rounds: int) -> dict[str, list[int]]:
    """抄没抄：没练过的题里几乎就是训练图的；照训练描述画的，比换个种子还近的、几乎一样的。"""
    eye, about = TinyEye(), taught(config, family)
    size = len(images) // rounds
    drawn: dict[str, Any] = {"asked": [images[i : i + size] for i in range(0, len(images), size)]}
    paper = {}
    if asked := copying.questions(about, eye.copies):
        turns = []
        for turn in range(2):
            seeded = config.sample.model_copy(update={"seed": 1000 * (turn + 1)})
            said = [one.prompt for one in asked]
            turns.append(infer.generate(family, pipe, said, seeded, asked[0].size))
        paper, drawn[copying.NAME] = {copying.NAME: asked}, turns
    facts = copying.light(eye, about, paper, drawn).facts
    return {name: facts[name][:2] for name in ("asked_twins", "closer", "twins") if name in facts}


def _ceiling(cell: Cell, data: Path, extra: Sequence[str]) -> dict:
    """没有哪个 LoRA 到得了的地方：真图、真图过一遍 VAE、底模自己，请同一个考官判。"""
    started = time.monotonic()
    lesson, rounds = lessons.lesson(cell.task.lesson), _rounds(cell.task)
    empty = Recipe(name=str(cell.recipe), about="上限")
    config = recipes.settings(cell.task, empty, extra, data)
    family = open_family(config)
    if cell.recipe == "base":
        pipe = infer.open_pipeline(family)
        images = lesson.draw(family, pipe, config.sample, rounds)
    else:
        images = lesson.answers(rounds)
    if cell.recipe == "vae":
        images = [one for image in images for one in _round_trip(family, image)]
    found, missed = marks(lesson, images)
    return _row(cell, time.monotonic() - started, str(family.device), {"0": found}, missed)


def _round_trip(family, image) -> list:
    mean, _ = family.encode_images(to_pixels(image))
    return [to_image(pixels) for pixels in family.decode(mean)]
