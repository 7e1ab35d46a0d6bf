"""一件作品：叫什么、照片在哪里、触发词、练过几次；记在一个小文件里，五本练习册都认它。"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from lorakit import data
from lorakit.config import Config
from lorakit.data.folder import walk
from lorakit.errors import LorakitError, plain_reason
from lorakit.files import read_json, user_path, write_text
from lorakit.inert import visible_line
from lorakit.lab.display import Placed
from lorakit.lab.notes import fresh, notes
from lorakit.lab.works import words

SAMPLE = "样例"  # 没有自己的照片时，用随包的图
PHOTOS = "照片"  # 作品的文件夹里，照片放在这里
SHAPE = {"now": str, "works": [{"name": str, "home": str, "photos": str, "trigger": str}]}
UNFIT = re.compile(r'[\\/:*?"<>|\0\n]')  # 这些字在有的系统上写不进名字
DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # Windows 留给自己的名字
APART = re.compile(r'[,，、;；"“”\\]')  # 描述里用来断句、设置里有别的意思，触发词里不能有
LONGEST = 40


@dataclass
class Work(Placed):
    """一件作品；没有自己的照片时是样例，处处照随包的图来。"""

    name: str = SAMPLE
    home: Path = field(default_factory=lambda: Path("runs", SAMPLE).resolve())
    photos: Path | None = None
    trigger: str = ""

    @property
    def sample(self) -> bool:
        """是不是样例：还没有自己的照片。"""
        return self.photos is None

    def pictures(self) -> list[Path]:
        """照片，按名字排好。"""
        return walk(self.photos).pictures if self.photos else []

    def folder(self, sample: Path) -> Path:
        """拿来训练的文件夹：自己的照片，没有就是给的样例。"""
        return sample if self.sample else self.photos

    def word(self, sample: str = "") -> str:
        """触发词；样例用给的那个。"""
        return sample if self.sample else self.trigger

    def records(self) -> list[data.Record]:
        """自己的照片里已经能练的（打得开、有描述）。"""
        return [] if self.sample else data.inspect(self.photos, self.trigger)[0]

    def prompts(self, sample: list[str]) -> list[str]:
        """样张画什么：自己的作品从描述里拼没练过的搭配，样例用给的那几句。"""
        return sample if self.sample else words.prompts(self.records(), self.trigger) or sample

    def titles(self, sample: list[str]) -> list[str]:
        """样张的列名，和 prompts 一样多。"""
        if self.sample:
            return sample
        asked = words.prompts(self.records(), self.trigger)
        return words.titles(asked, self.trigger) if asked else sample

    def output(self, scratch: str | Path, keep: bool = False) -> Path:
        """这次训练的结果放哪里：下一个“第 N 次”；样例是清空的临时文件夹。

        Args:
            keep: 样例的结果也留下，例如真模型练的。
        """
        from lorakit.lab.works import tries

        return fresh(scratch) if self.sample and not keep else tries.following(self.home)

    def check(self):
        """体检照片，把报告分门别类摆出来；样例没有什么要查的。"""
        from lorakit.lab.works import checkup

        checkup.show(self)

    def clean(self, undo: bool = False):
        """能放心自动改的替你改好：转正、文字编码、坏图移开；原件留着，undo=True 全改回去。"""
        from lorakit.lab.works import checkup

        checkup.clean(self, undo)

    def captions(self, config: Config | None = None, family=None, describe=None):
        """描述编辑器，见 editor.Editor；样例看一句怎么换成自己的照片。"""
        from lorakit.lab.works import editor

        return editor.open_editor(self, config, family, describe)

    def tries(self):
        """练过的每一次，一张表：改了什么、留出集、样张、判断。"""
        from lorakit.lab.works import table

        table.show(self)

    def compare(self, first: int, second: int):
        """两次的样张叠在一起，拉幕布看差别。"""
        from lorakit.lab.works import tries

        return tries.curtain(self, first, second)

    def again(self, number: int, *changes: str) -> Config:
        """第 number 次的设置，结果放进新的一次；changes 像 --set 那样改几项。"""
        from lorakit.lab.works import tries

        return tries.again(self, number, changes)

    def resume(self) -> Config:
        """没有练完的最后一次，接着练它用的设置：lab.Run(作品.resume()).start()。"""
        from lorakit.lab.works import tries

        return tries.unfinished(self).config

    def lora(self, sample: Path | None = None) -> Path | None:
        """练好的 LoRA 的结果文件夹：最近练出检查点的一次；还没有就是给的样例。"""
        from lorakit.lab.works import tries

        done = [] if self.sample else tries.all_of(self.home)
        return next((one.folder for one in reversed(done) if one.checkpoints), sample)

    def text(self) -> str:
        """一句话：现在是哪件作品。"""
        if self.sample:
            return "现在用的是样例（随包的图）。"
        from lorakit.lab.works import tries

        count, done = len(self.pictures()), tries.all_of(self.home)
        word = f"触发词 {self.trigger}" if self.trigger else "没有触发词"
        said = f"现在的作品是“{self.name}”：{count} 张照片，{word}，练过 {len(done)} 次。"
        if done and done[-1].stopped:
            said += f"第 {done[-1].number} 次停在第 {done[-1].step} 步，"
            said += "接着练它：lab.Run(作品.resume()).start()。"
        if not self.photos.is_dir():
            word = f'lab.work("{self.name}", photos="新的地方")'
            return f"{said}照片的文件夹 {self.photos} 不见了：放回去，或运行 {word}。"
        return said if count else f"{said}还没有照片：放进 {near(self.photos)}。"


def current() -> Work:
    """记着的那一件；没有、或记坏了，是样例。"""
    known = _read()
    return next((_made(row) for row in known["works"] if row["name"] == known["now"]), Work())


def keep(name: str, photos: str | Path | None = None, trigger: str = "") -> Work:
    """建一件作品（同名的就更新写了的那几项），记下，从此用它。"""
    name, known = _fit(name), _read()
    old = next((row for row in known["works"] if row["name"] == name), {})
    home = Path(old.get("home") or Path("runs", name).resolve())
    place = user_path(photos).resolve() if photos else Path(old.get("photos") or home / PHOTOS)
    if photos and not place.is_dir():
        raise LorakitError(
            f"没有这个文件夹：“{photos}”。检查路径（Windows 写成 D:/我的图）；"
            f"不写 photos，就把照片放进 {home / PHOTOS}。"
        )
    trigger = _word(trigger)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LorakitError(
            f"建不了照片的文件夹“{place}”：{plain_reason(error)}。"
            "把整个 notebooks 文件夹抄到自己的地方，在那里打开练习册。"
        ) from error
    row = {"name": name, "home": str(home), "photos": str(place)}
    row["trigger"] = trigger or old.get("trigger", "")
    rest = [one for one in known["works"] if one["name"] != name]
    _write({"now": name, "works": [*rest, row]})
    return _made(row)


def use_sample() -> Work:
    """改用样例；建过的作品都还记着，lab.work("名字") 就换回去。"""
    _write({**_read(), "now": ""})
    return Work()


def near(folder: Path) -> str:
    """照片文件夹，写成左边文件栏里找得到的样子。"""
    here = Path.cwd()
    return folder.relative_to(here).as_posix() if folder.is_relative_to(here) else str(folder)


def names() -> list[str]:
    """建过的作品。"""
    return [row["name"] for row in _read()["works"]]


def _made(row: dict) -> Work:
    return Work(row["name"], Path(row["home"]), Path(row["photos"]), row["trigger"])


def _fit(name: str) -> str:
    name = str(name).strip()
    odd = not visible_line(name) or UNFIT.search(name) or DEVICE.fullmatch(name)
    odd = odd or name.startswith(".") or name.endswith(".")
    if odd or name == SAMPLE or len(name) > LONGEST:
        raise LorakitError(
            f"“{name}”当不了作品的名字：要有字，不超过 {LONGEST} 个，"
            f'不用 \\ / : * ? " < > | 和头尾的点，也不叫“{SAMPLE}”、CON。例如 lab.work("小橘")。'
        )
    return name


def _word(trigger: str) -> str:
    trigger = trigger.strip()
    odd = trigger and not visible_line(trigger)
    if odd or APART.search(trigger) or len(trigger) > LONGEST:
        raise LorakitError(
            f"触发词要是看得见的一个词，不超过 {LONGEST} 个字，里面没有逗号、分号、引号、反斜杠，"
            f"得到 {trigger!r}：删掉重打，例如 ohwx。"
        )
    return trigger


def _place() -> Path:
    return notes() / "work.json"


def _read() -> dict:
    if not _place().is_file():
        return {"now": "", "works": []}
    return read_json(_place(), SHAPE)


def _write(facts: dict):
    write_text(_place(), json.dumps(facts, ensure_ascii=False))
