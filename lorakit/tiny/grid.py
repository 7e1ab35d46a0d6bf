"""秩与学习率的九格：每格用两个种子各练一次微型 FLUX，量留出集的损失，请考官数是不是那只猫。

随包的记录在 assets/recordings；重做一遍（两个核约四分钟）：
python -m lorakit.tiny.grid 文件夹

教程：notebooks/04_train_flux.ipynb 4.7
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from lorakit.config import load_config
from lorakit.files import ASSETS, read_json
from lorakit.results.evidence import Share
from lorakit.tiny import samples
from lorakit.tiny.matrix import SCENES, ask, bits, cats, pooled, record, shares, teach
from lorakit.train import Trainer

PLACE, NAME = ASSETS / "recordings", "rank-rate"
RANKS, RATES, SEEDS, SIDE = (2, 8, 32), (1e-4, 1e-3, 1e-2), (0, 1), 96
SETTINGS = (
    "train.schedule=constant",  # 只看学习率定多少，就不让它边练边降
    *("train.steps=50", "train.save_every=1000", "eval.every=0"),
    *("sample.every=0", "sample.steps=12"),
)
Cell = tuple[int, float]


@dataclass(frozen=True)
class Grid:
    """记下来的九格，键是 (秩, 学习率)。

    held[格][种子] 是每张留出图的损失，cat[格][种子] 是 12 张里几张是那只猫；
    pictures[格] 一个种子一张图。
    blank[种子] 是没练时的；量损失的噪声跟着种子走，所以要同一个种子的来比。
    """

    blank: dict[int, list[float]]
    held: dict[Cell, dict[int, list[float]]]
    cat: dict[Cell, dict[int, Share]]
    pictures: dict[Cell, list[Image.Image]]

    def loss(self, cell: Cell) -> float:
        """一格的留出集损失：几个种子、几张留出图的平均。"""
        return float(np.mean(list(self.held[cell].values())))

    def best(self, rank: int | None = None, rate: float | None = None) -> Cell:
        """留出集损失最低的一格；秩或学习率定下来，就只在那一行、那一列里找。"""
        open_to = [c for c in cells() if rank in (None, c[0]) and rate in (None, c[1])]
        return min(open_to, key=self.loss)

    def share(self, cell: Cell) -> Share:
        """一格里几个种子合起来，是那只猫的有几张。"""
        return pooled(self.cat[cell])


def settings(folder: Path, output: Path, cell: Cell, seed: int, *changes: str):
    """一格、一个种子的设置。"""
    rank, rate = cell
    own = [f"data.folder={folder}", f"run.output={output}", f"train.seed={seed}"]
    knobs = [f"lora.rank={rank}", f"train.lr={rate}"]
    return load_config("tiny-flux", [*own, *SETTINGS, *knobs, *changes])


def cells() -> Iterator[Cell]:
    """九格，一行一种秩。"""
    return product(RANKS, RATES)


def name(cell: Cell) -> str:
    """一格的名字，例如“8 0.001”。"""
    return f"{cell[0]} {cell[1]:g}"


def held(trainer: Trainer) -> list[float]:
    """每张留出图的损失，几个 t 平均。"""
    return [round(float(np.mean(row)), 4) for row in trainer.examine()["held_each"]]


def measure(home: Path) -> tuple[dict, Image.Image]:
    """九格、每格 SEEDS 个种子 -> (记录, 一张大图：一行一种秩，一格里一个种子一张)。"""
    folder = samples.write("ohwx-cat", home / "ohwx")
    found: dict = {"blank": {}, "cells": {}}
    sheet = Image.new("RGB", (SIDE * len(SEEDS) * len(RATES), SIDE * len(RANKS)))
    for k, seed in product(range(len(RANKS) * len(RATES)), SEEDS):
        cell = list(cells())[k]
        config = settings(folder, home / f"{k}-{seed}", cell, seed)
        if seed not in found["blank"]:
            fresh = settings(folder, home / f"blank-{seed}", cell, seed)
            found["blank"][seed] = held(Trainer(fresh))
        trainer = teach(config)
        losses, images = held(trainer), ask(trainer, SCENES)
        row = found["cells"].setdefault(name(cell), {"held": {}, "cat": {}})
        row["held"][seed], row["cat"][seed] = losses, bits(cats(images))
        x = (k % len(RATES) * len(SEEDS) + SEEDS.index(seed)) * SIDE
        sheet.paste(images[0].resize((SIDE, SIDE)), (x, k // len(RATES) * SIDE))
        print(name(cell), seed, losses, row["cat"][seed], flush=True)
    return found, sheet


def recorded(place: Path = PLACE) -> Grid:
    """随包的记录。"""
    found = read_json(place / f"{NAME}.json", {"blank": dict, "cells": dict})
    sheet = Image.open(place / f"{NAME}.webp").convert("RGB")
    losses, cat, pictures = {}, {}, {}
    for k, cell in enumerate(cells()):
        row = found["cells"][name(cell)]
        losses[cell] = _by_seed(row["held"])
        cat[cell] = shares(row["cat"])
        top, left = k // len(RATES) * SIDE, k % len(RATES) * len(SEEDS) * SIDE
        boxes = [(left + j * SIDE, top) for j in range(len(SEEDS))]
        pictures[cell] = [sheet.crop((x, y, x + SIDE, y + SIDE)) for x, y in boxes]
    return Grid(_by_seed(found["blank"]), losses, cat, pictures)


def _by_seed(row: dict[str, list[float]]) -> dict[int, list[float]]:
    return {int(seed): values for seed, values in row.items()}


if __name__ == "__main__":
    record("lorakit.tiny.grid", __doc__, NAME, measure)
