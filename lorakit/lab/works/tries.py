"""一件作品练过的每一次：runs/名字/第 N 次；下一次放哪里、照哪一次重来、拉幕布比两次。"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lorakit.config import Config, load_config
from lorakit.data.read import read_image
from lorakit.errors import LorakitError
from lorakit.lab.notes import elsewhere, training
from lorakit.results import checkpoint, verdict
from lorakit.results import folder as run_folder

NAME = re.compile(r"第 (\d+) 次")
SIDE = 384  # 像素：幕布里的一张
SHOT = re.compile(r"(\d+)_(\d+)\.png")


@dataclass(frozen=True)
class Try:
    """练过的一次：第几次、结果文件夹、设置、记录。"""

    number: int
    folder: Path
    config: Config
    rows: list[dict]

    @property
    def step(self) -> int:
        """练到第几步。"""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def checkpoints(self) -> list[Path]:
        return checkpoint.all_of(self.folder)

    @property
    def stopped(self) -> bool:
        """停在半路、没有在练，而且有检查点可以接着练。"""
        early = self.step < self.config.train.steps
        return early and bool(self.checkpoints) and not training(self.folder)

    def held(self) -> dict[int, float]:
        """{步数: 留出集的损失}。"""
        return verdict.held_by_step(self.rows)

    def word(self) -> str:
        """一个词的判断；没练完的另说。"""
        if training(self.folder):
            return "正在练"
        said = verdict.judge(self.rows).phrase
        planned = self.config.train.steps
        return (
            said if self.step >= planned else f"停在第 {self.step} 步（原定 {planned} 步），{said}"
        )

    def shots(self) -> list[Image.Image]:
        """最后一行样张；没有画过是空的。"""
        found = [SHOT.fullmatch(file.name) for file in (self.folder / "samples").glob("*.png")]
        placed = sorted((int(one[1]), int(one[2]), one[0]) for one in found if one)
        last = [name for step, _, name in placed if step == placed[-1][0]]
        return [read_image(self.folder / "samples" / name, True) for name in last]


def all_of(home: Path) -> list[Try]:
    """练过的每一次，按先后；没练成（连设置都没有写下）的不算。"""
    found = []
    for folder in home.iterdir() if home.is_dir() else ():
        match = NAME.fullmatch(folder.name)
        if match and (folder / "config.yaml").is_file():
            config = load_config(folder / "config.yaml")
            found.append(Try(int(match[1]), folder, config, run_folder.read(folder)))
    return sorted(found, key=lambda one: one.number)


def following(home: Path) -> Path:
    """下一次的文件夹。最后一次还在练，就还是它（另一本练习册在练的不算）；它一步也没存下来，就接着用它的号码。"""
    numbers = [int(m[1]) for f in home.glob("第 * 次") if (m := NAME.fullmatch(f.name))]
    last = home / f"第 {max(numbers, default=0)} 次"
    if numbers and not elsewhere(last) and (training(last) or not checkpoint.all_of(last)):
        return last
    return home / f"第 {max(numbers, default=0) + 1} 次"


def find(work, number: int) -> Try:
    """第 number 次。

    Raises:
        LorakitError: 没有这一次。
    """
    known = {one.number: one for one in all_of(work.home)}
    if number not in known:
        have = "、".join(f"{n}" for n in known) or "还一次也没有练"
        raise LorakitError(f"“{work.name}”没有第 {number} 次。练过的：{have}。")
    return known[number]


def unfinished(work) -> Try:
    """没有练完的最后一次。

    Raises:
        LorakitError: 最后一次练完了，或还没有练过。
    """
    done = [] if work.sample else all_of(work.home)
    if not done or not done[-1].stopped:
        raise LorakitError(
            "没有停在半路的训练。要照某一次的设置重练：lab.Run(作品.again(1)).start()。"
        )
    return done[-1]


def again(work, number: int, changes: Sequence[str] = ()) -> Config:
    """第 number 次的设置，结果放进新的一次。"""
    config = find(work, number).config
    return load_config(config.to_dict(), [f"run.output={following(work.home)}", *changes])


def curtain(work, first: int, second: int):
    """两次最后的样张叠在一起：幕布左边是 first，右边是 second。"""
    from lorakit.lab.explorer import choice, explore, slider
    from lorakit.lab.picture import wall

    left, right = (find(work, number).shots() for number in (first, second))
    count = min(len(left), len(right))
    if not count:
        raise LorakitError(
            f"第 {first} 次或第 {second} 次没有存下样张：训练时写上 sample.prompts，再练一次。"
        )

    def draw(at: int, which: str) -> Image.Image:
        one, other = (side[int(which) - 1].resize((SIDE, SIDE)) for side in (left, right))
        edge = SIDE * at // 100
        other.paste(one.crop((0, 0, edge, SIDE)), (0, 0))
        other.paste("white", (max(0, edge - 1), 0, min(SIDE, edge + 1), SIDE))
        return wall([[other]], [""], [f"左：第 {first} 次，右：第 {second} 次"], SIDE)

    which = choice("第几张", [str(i + 1) for i in range(count)])
    return explore(draw, at=slider("幕布", 0, 100, 2, 50), which=which)
