"""描述的九宫格：三种写法各练几次，再各用三种问法来画，请考官数是不是那只猫；丢描述的比例也比一比。

随包的记录在 assets/recordings；重做一遍（两个核约三分钟）：
python -m lorakit.tiny.matrix 文件夹

教程：notebooks/02_dataset.ipynb 2.6
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from PIL import Image

from lorakit.config import load_config
from lorakit.files import ASSETS, read_json, write_text
from lorakit.infer import generate
from lorakit.results.evidence import Share
from lorakit.tiny import samples
from lorakit.tiny.examiner import agrees, examine
from lorakit.train import Trainer

PLACE, NAME = ASSETS / "recordings", "caption-matrix"
LOOKS = "，白色，左眼有黑斑，右耳橙色，戴红围巾和金铃铛"
SCENES = tuple(
    f"一只{size}ohwx 猫在{side}，背景是{place}"
    for place, (size, side) in product(
        ("草地", "夜空", "雪地", "房间"), (("大", "左边"), ("小", "右边"), ("小", "左边"))
    )
)
WAYS = {  # 怎么写描述：样例的一句 -> 训练用的一句
    "只写触发词": lambda scene: "ohwx 猫",
    "写变化": lambda scene: scene,
    "全写": lambda scene: scene + LOOKS,
}
ASKS = {way: tuple(write(scene) for scene in SCENES) for way, write in WAYS.items()}
SEEDS, SHOWN, CELL = (0, 1), 3, 96  # 训练的种子；记录里每格留几张图、多大
RATES = (0.0, 0.1, 0.9)  # 描述丢弃的比例
SETTINGS = (
    *("train.lr=7e-4", "train.schedule=constant"),  # 记录就是这样练的
    *("train.steps=80", "train.batch_size=6", "eval.every=0", "sample.every=0", "sample.steps=10"),
)
Hits = dict[str, dict[str, dict[int, Share]]]  # 写法 -> 问法 -> 训练的种子 -> 几张对了


@dataclass(frozen=True)
class Matrix:
    """记下来的九宫格：cat[写法][问法][种子] 是那只猫的有几张；dropout[比例][种子] 也是。"""

    cat: Hits
    dropout: dict[str, dict[int, Share]]
    pictures: dict[tuple[str, str], list[Image.Image]]


def write(way: str, folder: Path) -> Path:
    """写出 24 张 ohwx 猫，描述照一种写法。"""
    samples.write("ohwx-cat", folder)
    for file in folder.glob("*.txt"):
        scene = file.read_text("utf-8").strip()
        file.write_text(WAYS[way](scene) + "\n", encoding="utf-8")
    return folder


def settings(folder: Path, output: Path, seed: int, *changes: str):
    """一格的设置。"""
    own = [f"data.folder={folder}", f"run.output={output}", f"train.seed={seed}"]
    return load_config("tiny-qwen-image", [*own, *SETTINGS, *changes])


def teach(config) -> Trainer:
    """照设置练完。"""
    trainer = Trainer(config)
    for _ in trainer:
        pass
    trainer.transformer.eval()
    return trainer


def ask(trainer: Trainer, prompts) -> list[Image.Image]:
    """练好的照几句话各画一张。"""
    config = trainer.config
    pipe = trainer.family.pipeline(trainer.transformer)
    pipe.set_progress_bar_config(disable=True)
    return generate(trainer.family, pipe, prompts, config.sample, (config.data.resolution,) * 2)


def cats(images) -> Share:
    """考官看：是那只猫的有几张。"""
    seen = examine(images)
    return Share.of([agrees(verdict, i, {"character": "ohwx"}) for i, verdict in enumerate(seen)])


def measure(home: Path) -> tuple[dict, Image.Image]:
    """练六次、画九格，再练两种丢弃 -> (记录, 一张大图：一行一种写法，一种问法 SHOWN 张)。"""
    found: dict = {"cat": {way: {name: {} for name in ASKS} for way in WAYS}, "dropout": {}}
    sheet = Image.new("RGB", (CELL * SHOWN * len(ASKS), CELL * len(WAYS)))
    for way, seed in product(WAYS, SEEDS):
        name = f"{list(WAYS).index(way)}-{seed}"
        trainer = teach(settings(write(way, home / f"data-{name}"), home / f"run-{name}", seed))
        for column, (asked, prompts) in enumerate(ASKS.items()):
            images = ask(trainer, prompts)
            found["cat"][way][asked][seed] = bits(cats(images))
            if seed == SEEDS[0]:
                for k, image in enumerate(images[:SHOWN]):
                    place = ((column * SHOWN + k) * CELL, list(WAYS).index(way) * CELL)
                    sheet.paste(image.resize((CELL, CELL)), place)
        print(way, seed, {name: row[seed] for name, row in found["cat"][way].items()}, flush=True)
    for rate, seed in product(RATES, SEEDS):
        row = found["dropout"].setdefault(f"{rate:.0%}", {})
        if rate == 0.1:  # 九宫格里练的就是它
            row[seed] = found["cat"]["写变化"]["写变化"][seed]
            continue
        folder, change = home / f"data-1-{seed}", f"data.caption_dropout={rate}"
        trainer = teach(settings(folder, home / f"drop-{rate}-{seed}", seed, change))
        row[seed] = bits(cats(ask(trainer, ASKS["写变化"])))
        print("丢", rate, seed, row[seed], flush=True)
    return found, sheet


def bits(share: Share) -> str:
    """一张一个字：1 是对了。"""
    return "".join(str(int(hit)) for hit in share.hits)


def recorded(place: Path = PLACE) -> Matrix:
    """随包的记录。"""
    shape = {"cat": dict, "dropout": dict}
    found = read_json(place / f"{NAME}.json", shape)
    sheet = Image.open(place / f"{NAME}.webp").convert("RGB")
    pictures = {}
    for (row, way), (column, asked) in product(enumerate(WAYS), enumerate(ASKS)):
        left = [(column * SHOWN + k) * CELL for k in range(SHOWN)]
        box = [(x, row * CELL, x + CELL, (row + 1) * CELL) for x in left]
        pictures[way, asked] = [sheet.crop(one) for one in box]
    cat = {way: {name: shares(row) for name, row in asks.items()} for way, asks in
           found["cat"].items()}  # fmt: skip
    return Matrix(cat, {rate: shares(row) for rate, row in found["dropout"].items()}, pictures)


def shares(row: Mapping[str, str]) -> dict[int, Share]:
    """记录里的一行（种子 -> 一张一个字）-> 种子 -> 几张对了。"""
    return {int(seed): Share.of([bit == "1" for bit in said]) for seed, said in row.items()}


def pooled(row: Mapping[int, Share]) -> Share:
    """几个种子合在一起。"""
    return Share.of([hit for share in row.values() for hit in share.hits])


def record(prog: str, about: str, name: str, measure: Callable, arguments=None):
    """命令行：重做一遍 measure(空文件夹) -> (数, 图)，写成 文件夹/name.json 与 .webp。"""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=about)
    parser.add_argument("folder", type=Path, help="记录写到哪个文件夹")
    out = parser.parse_args(arguments).folder
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        found, sheet = measure(Path(home))
    write_text(out / f"{name}.json", json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    sheet.save(out / f"{name}.webp", quality=70)


if __name__ == "__main__":
    record("lorakit.tiny.matrix", __doc__, NAME, measure)
