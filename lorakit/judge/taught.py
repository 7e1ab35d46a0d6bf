"""判断要用的材料：这次训练练的是什么——设置、描述、训练图的样子、触发词；只读，不编码。"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lorakit.config import Config
from lorakit.data import bucket_for, fit, read_image
from lorakit.data.record import Record
from lorakit.data.select import select
from lorakit.data.trigger import shared_opening, shared_word, without
from lorakit.errors import LorakitError, warn
from lorakit.results import sameness

MOVED = "训练图和练的时候不一样了"
MEND = "要和原来一样地判断，就把图改回来，或用 --set data.folder=原来那份图。"
MOST = 200  # 训练图再多也只看这么多张：够找最像的一张，也放得进内存


@dataclass(frozen=True)
class Picture:
    """一张训练图：描述、裁成训练时那么大的样子、改之前的图（只有编辑才有）。"""

    caption: str
    image: Image.Image
    controls: tuple[Image.Image, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size


@dataclass(frozen=True)
class Taught:
    """练的是什么：训练的、留出的、同类的图；total 是训练图一共几张，太多的没有全读进来。"""

    config: Config
    train: tuple[Picture, ...]
    held: tuple[Picture, ...]
    prior: tuple[Picture, ...]
    total: int
    moved: str = ""  # 训练图和练的时候不一样了，哪里不一样；一样就是空的

    @property
    def captions(self) -> list[str]:
        return [one.caption for one in (*self.train, *self.held)]

    @property
    def trigger(self) -> str:
        """唤出它的词：设置里的，或从描述里看出来的；没有就是空的。"""
        others = [one.caption for one in self.prior]
        return self.config.data.trigger or shared_word(self.captions, others)

    @property
    def opening(self) -> str:
        """每句描述开头共有的几段，如“剪纸风格，”；没有就是空的。"""
        return shared_opening(self.captions)

    def without_trigger(self, caption: str) -> str:
        """去掉共有的开头与触发词。"""
        return without(caption, self.opening, self.trigger)


def taught(config: Config, family) -> Taught:
    """读训练时的那些图；family 只看名字、倍数、要几张控制图。

    检查点记着练的是哪些图：后来添的不算，换了的、少了的说一声。

    Raises:
        LorakitError: 训练图不在原处了，或一张也没有了。
    """
    try:
        chosen = select(config, family)
    except LorakitError as error:
        raise LorakitError(
            f"判断要和训练图比，可是训练图读不了：{error}"
            "图搬了家，就用 --set data.folder=新的地方。"
        ) from error
    train, held, total, moved = _trained(config, chosen)
    unit, side = family.multiple, config.data.resolution
    read = (_pictures(part[:MOST], side, unit) for part in (train, held, chosen.prior))
    return Taught(config, *read, total=total, moved=moved)


def _trained(config: Config, chosen) -> tuple[list[Record], list[Record], int, str]:
    """现在的图里真练过的 -> (训练的, 留出的, 训练图本来有几张, 少了什么)。"""
    run, there = config.run.output, [*chosen.train, *chosen.held]
    known = sameness.trained_pictures(run)
    if not known:
        moved = MOVED if sameness.changed_by_card(run, there) else ""
        if moved:
            warn(f"{moved}：判断里和训练图比的，都是现在的图。{MEND}")
        return chosen.train, chosen.held, len(chosen.train), moved
    told = sameness.pictures_moved(known, there, config.data.mask)
    first = {one.digest for one in chosen.train}  # 添了图，哪些留出也会变：练过的总是练过的
    train = [*chosen.train, *(one for one in chosen.held if one.digest not in first)]
    train = [one for one in train if one.digest in known["train"]]
    held = [o for o in there if o.digest in known["held"].keys() - known["train"].keys()]
    if not train:
        raise LorakitError(f"练过的图一张也没有了（{'；'.join(told)}），没有东西可比。{MEND}")
    if told:
        warn(f"{MOVED}：{'；'.join(told)}。判断只和还在的、练过的图比，后来添的不算。{MEND}")
    gone = known["train"].keys() - {one.digest for one in train}
    moved = f"{MOVED}，{len(known['train'])} 张里少了 {len(gone)} 张" if gone else ""
    return train, held, len(known["train"]) if gone else len(train), moved


def _pictures(records: Sequence[Record], side: int, unit: int) -> tuple[Picture, ...]:
    return tuple(
        Picture(
            record.caption,
            fit(read_image(record.path), bucket_for(record.size, side, unit))[0],
            tuple(read_image(Path(path)) for path in record.controls),
        )
        for record in records
    )
