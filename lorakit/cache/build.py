"""编码缓存：图和文字只编码一次；键由内容算出，所以换了图、描述、尺寸或编码器都不会用到旧的。"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from lorakit.cache import masks as cache_masks
from lorakit.cache.keys import PLAIN, Query, controls_of, image_fields, text_fields
from lorakit.cache.store import FORMAT, cached
from lorakit.data.crops import View, bucket_for, cut, show, views
from lorakit.data.read import read_image
from lorakit.data.record import Record
from lorakit.data.select import Selection, select
from lorakit.errors import warn
from lorakit.families.base import Family
from lorakit.families.pixels import to_pixels
from lorakit.families.shared import Cond

SIDES = re.compile(r"左|右|\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """一张编码好的图：潜变量后验的均值与标准差 (C, h, w)、有描述与空描述的条件、来处。"""

    mean: torch.Tensor
    std: torch.Tensor
    cond: Cond
    empty: Cond  # 编辑的空描述也带着控制图，所以每张图各有一份
    record: Record
    mask: torch.Tensor | None = None  # (1, h, w)，1 是要学的地方
    variants: tuple["Item", ...] = ()  # 翻转、裁切出来的其余样子

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """图与各张控制图的潜变量形状；全都一样的才能拼成一批。"""
        controls = (value for name, value in self.cond.items() if name.startswith("control_"))
        return (tuple(self.mean.shape), *(tuple(value.shape) for value in controls))


@dataclass(frozen=True)
class Dataset:
    """训练要用的一切：训练的图、留出的图、同类的图。"""

    train: tuple[Item, ...]
    held: tuple[Item, ...]
    prior: tuple[Item, ...] = ()

    @property
    def edits(self) -> bool:
        """练的是改图：训练的图配着控制图。"""
        return any(item.record.controls for item in self.train)


def prepare(
    config,
    family: Family,
    progress: Callable[[str, int, int], None] | None = None,
    chosen: Selection | None = None,
    keep: Sequence[str] = (),
) -> Dataset:
    """读数据、编码（或取缓存）、留出检验集；编码完就放掉 VAE 与文本编码器。

    Args:
        progress: 函数 (在做什么, 第几个, 共几个)，每编码一批调一次。
        chosen: 已经挑好的记录；不给就照设置挑。
        keep: 先不放掉的部分（"vae"、"text"），接着还要用。
    """
    data = config.data
    train, held, prior, masks = chosen or select(config, family)
    report = progress or (lambda *_: None)
    shown = _shown(data, train, held, prior)
    pictures = [*shown, *(one for pair in shown for one in controls_of(*pair))]
    latents = _latents(family, pictures, data.resolution, report)
    conds = _conditions(family, shown, latents[len(shown) :], data.resolution, report)
    family.release(*({"vae", "text"} - set(keep)))
    sizes = [mean.shape[:0:-1] for mean, _ in latents[: len(shown)]]  # (C, h, w) -> (w, h)
    small = _masks(shown, sizes, masks, data.mask, report)
    items = defaultdict(list)
    rows = zip(shown, latents, conds, small, strict=False)  # latents 后面还有控制图的
    for (record, _), pair, both, mask in rows:
        items[record.path].append(Item(*pair, *both, record, mask))
    whole = {path: replace(first, variants=tuple(rest)) for path, (first, *rest) in items.items()}
    return Dataset(*(tuple(whole[record.path] for record in part) for part in (train, held, prior)))


def _shown(data, train, held, prior) -> list[tuple[Record, View]]:
    """要编码的每张图的每种样子；留出的图与同类图只要原样。"""
    marked = [r for r in train if data.flip and SIDES.search(r.caption)]
    if marked:
        warn(
            f"data.flip 会左右翻转，可是 {len(marked)} 份描述里写了左右，翻过来就说反了，"
            f"例如“{marked[0].caption[:20]}”（{marked[0].path.name}）。关掉它，或删掉左右。"
        )
    several = [(record, view) for record in train for view in views(data.flip, data.crops)]
    return several + [(record, PLAIN) for record in (*held, *prior)]


def _conditions(
    family: Family, shown, controls, resolution: int, report
) -> list[tuple[Cond, Cond]]:
    """每种样子的 (有描述的条件, 空描述的条件)；controls 是各张控制图的潜变量，按 shown 的次序。"""
    said = [(record.caption, record, view) for record, view in shown]
    # 空描述：编辑的要配上各自的控制图，别的家族的键都一样，只会编码一份
    texts = _texts(family, said + [("", *pair) for pair in shown], resolution, report)
    rest, conds = iter(controls), []
    for (record, _), full, empty in zip(shown, texts, texts[len(shown) :], strict=False):
        control = family.control_cond([next(rest)[0] for _ in record.controls])
        conds.append(({**full, **control}, {**empty, **control}))
    return conds


def _latents(family: Family, shown: Sequence[tuple[Record, View]], resolution: int, report):
    records, looks = [record for record, _ in shown], [view for _, view in shown]
    fields = image_fields(family, records, resolution, looks)

    def encode(batch: list[int]) -> list[Cond]:
        results = []
        for i in batch:  # 尺寸各不相同，一张张来；编码只做一次，不值得为它分桶
            size, digest = tuple(fields[i]["size"]), records[i].digest
            picture = show(read_image(records[i].path, family.clear), size, looks[i], digest)
            mean, std = family.encode_images(to_pixels(picture))
            results.append({"mean": mean[0].float(), "std": std[0].float()})
        return results

    return [(found["mean"], found["std"]) for found in cached("image", fields, encode, 1, report)]


def _texts(family: Family, queries: Sequence[Query], resolution: int, report) -> list[Cond]:
    def look_at(record: Record, view: View):
        size = bucket_for(record.size, resolution, family.multiple)
        look = show if family.text_sees == "fitted" else cut
        return look(read_image(record.path, family.clear), size, view, record.digest)

    def encode(batch: list[int]) -> list[Cond]:
        seen = [controls_of(*queries[i][1:]) if family.text_sees else [] for i in batch]
        refs = [[look_at(*one) for one in some] for some in seen]
        return family.encode_prompts([queries[i][0] for i in batch], refs)

    return cached("text", text_fields(family, queries, resolution), encode, 8, report)


def _masks(shown, sizes, masks, kind: str, report) -> list[torch.Tensor | None]:
    """每种样子的遮罩 (1, h, w)，没有就是 None。"""
    chosen, fields, encode = cache_masks.plan(shown, sizes, masks, kind)
    found = cached("mask", [{"format": FORMAT, **one} for one in fields], encode, 1, report)
    ready = {i: one["mask"] for i, one in zip(chosen, found, strict=True)}
    return [ready.get(i) for i in range(len(shown))]
