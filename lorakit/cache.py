"""编码缓存：图和文字只编码一次；键由内容算出，所以换了图、描述、尺寸或编码器都不会用到旧的。"""

import hashlib
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from lorakit import cache_masks
from lorakit.cache_lock import shares
from lorakit.cache_root import root
from lorakit.checkpoint import write_text, write_whole
from lorakit.data import Record, bucket_for, read_image
from lorakit.data_select import select
from lorakit.data_views import View, cut, show, views
from lorakit.errors import LorakitError, LorakitWarning
from lorakit.families.base import Cond, Family
from lorakit.hub import absent
from lorakit.sampler import to_pixels

FORMAT = 1  # 预处理或文件格式一变就加 1，旧缓存自然作废
KINDS = {"image": "编码图片", "text": "编码描述", "mask": "缩小遮罩"}
PLAIN = View()
Query = tuple[str, Record, View]  # 一句描述、它的图、图的一种样子
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


def prepare(
    config, family: Family, progress: Callable[[str, int, int], None] | None = None
) -> Dataset:
    """读数据、编码（或取缓存）、留出检验集；编码完就放掉 VAE 与文本编码器。

    Args:
        progress: 函数 (在做什么, 第几个, 共几个)，每编码一批调一次。
    """
    data = config.data
    train, held, prior, masks = select(config, family)
    report = progress or (lambda *_: None)
    shown = _shown(data, train, held, prior)
    pictures = [*shown, *(one for pair in shown for one in controls_of(*pair))]
    latents = _latents(family, pictures, data.resolution, report)
    conds = _conditions(family, shown, latents[len(shown) :], data.resolution, report)
    family.release("vae", "text")
    sizes = [mean.shape[:0:-1] for mean, _ in latents[: len(shown)]]  # (C, h, w) -> (w, h)
    small = _masks(shown, sizes, masks, data.mask, report)
    items = defaultdict(list)
    rows = zip(shown, latents, conds, small, strict=False)  # latents 后面还有控制图的
    for (record, _), pair, both, mask in rows:
        items[record.path].append(Item(*pair, *both, record, mask))
    whole = {path: replace(first, variants=tuple(rest)) for path, (first, *rest) in items.items()}
    return Dataset(*(tuple(whole[record.path] for record in part) for part in (train, held, prior)))


def controls_of(record: Record, view: View = PLAIN) -> list[tuple[Record, View]]:
    """一条记录的几张控制图，各自当成一条没有描述的记录；翻转、裁切都跟着目标图。"""
    parts = (record.controls, record.control_sizes, record.control_digests)
    follow = view._replace(place=record.digest)
    return [(Record(path, "", *rest), follow) for path, *rest in zip(*parts, strict=True)]


def _shown(data, train, held, prior) -> list[tuple[Record, View]]:
    """要编码的每张图的每种样子；留出的图与同类图只要原样。"""
    marked = [r for r in train if data.flip and SIDES.search(r.caption)]
    if marked:
        warnings.warn(
            f"data.flip 会左右翻转，可是 {len(marked)} 份描述里写了左右，翻过来就说反了，"
            f"例如“{marked[0].caption[:20]}”（{marked[0].path.name}）。关掉它，或删掉左右。",
            LorakitWarning,
            stacklevel=4,
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


def fingerprint(folder: Path) -> str:
    """编码器的身份：配置全文，加每个权重文件的大小与均匀抽取的内容（整读 16 GB 太慢）。"""
    sha = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size
        sha.update(f"{path.relative_to(folder)}:{size}".encode())
        with path.open("rb") as file:
            if size <= 4 << 20:
                sha.update(file.read())
                continue
            for place in np.linspace(0, size - (64 << 10), 64):
                file.seek(int(place))
                sha.update(file.read(64 << 10))
    return sha.hexdigest()


def identity(family: Family, part: str) -> str:
    """一个编码器的身份；权重不在本地时用以前记下的，所以都编码过就不必再下载它。"""
    mark = family.model.mark(part) if family.model else ""
    note = root() / "encoders" / f"{mark}.txt"
    if mark and absent(family.folder, [part]):
        if note.is_file():
            return note.read_text("utf-8")
        family.model.fetch(part)
    found = fingerprint(family.folder / part)
    if mark and not note.is_file():
        write_text(note, found)
    return found


def place(kind: str, fields: dict) -> Path:
    """这些东西算出来的缓存文件在哪里。"""
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
    return root() / kind / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"


def _checksum(tensors: Cond, fields: str) -> str:
    sha = hashlib.sha256(fields.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        sha.update(value.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _pack(tensors: Cond, fields: str) -> bytes:
    """张量与“由什么算出”-> 文件的全部字节；元数据只有一项，所以同样的内容总是同样的字节。"""
    facts = json.dumps({"sha256": _checksum(tensors, fields), "fields": fields}, ensure_ascii=False)
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return save(whole, {"lorakit": facts})


def fields_of(path: Path) -> dict | None:
    """缓存文件里写着的“由什么算出”；读不出来就是 None。"""
    try:
        with safe_open(path, framework="pt") as handle:
            return json.loads(json.loads((handle.metadata() or {})["lorakit"])["fields"])
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return None


def _read(path: Path) -> Cond | None:
    """缓存里的张量；没有或哪怕坏了一个字节，都返回 None（重新编码）。"""
    fields = fields_of(path)
    if fields is None:
        return None
    try:
        content = path.read_bytes()
        tensors = load(content)
    except (FileNotFoundError, SafetensorError):
        return None
    return tensors if _pack(tensors, json.dumps(fields, ensure_ascii=False)) == content else None


def _write(path: Path, tensors: Cond, fields: dict):
    content = _pack(tensors, json.dumps(fields, ensure_ascii=False))
    try:
        write_whole(path, lambda temporary: temporary.write_bytes(content))
    except LorakitError as error:
        hint = "缓存的位置由环境变量 LORAKIT_CACHE 决定；旧的可以用 lorakit cache clean 清掉。"
        raise LorakitError(f"{error}{hint}") from error


def _cached(
    kind: str, all_fields: Sequence[dict], encode: Callable, size: int, report
) -> list[Cond]:
    """逐个取缓存；缺的按 encode(下标列表) 一批批编码，编完立刻写下。"""
    paths = [place(kind, fields) for fields in all_fields]
    index = {path: i for i, path in enumerate(paths)}  # 同样的描述只编码一次
    found = {path: _read(path) for path in index}
    missing = [path for path, value in found.items() if value is None]
    done = 0
    for mine in shares(missing, size):
        for path in mine:  # 等的时候，别的进程可能已经编码好了
            found[path] = _read(path)
        batch = [index[path] for path in mine if found[path] is None]
        for i, tensors in zip(batch, encode(batch) if batch else (), strict=True):
            found[paths[i]] = {name: value.cpu() for name, value in tensors.items()}
            _write(paths[i], found[paths[i]], all_fields[i])
        done += len(mine)
        report(KINDS[kind], done, len(missing))
    return [found[path] for path in paths]


def image_fields(
    family: Family, records: Sequence[Record], resolution: int, shown: Sequence[View] = ()
) -> list[dict]:
    """每张图（的一种样子）的潜变量由什么算出：换了其中任何一样，就是另一个缓存文件。"""
    common = {"format": FORMAT, "family": family.name, "dtype": str(family.dtype)}
    common["encoder"] = identity(family, "vae")
    sizes = [bucket_for(record.size, resolution, family.multiple) for record in records]
    rows = zip(records, sizes, shown or [PLAIN] * len(records), strict=True)
    return [
        {**common, "picture": record.digest, "size": list(size), **view.fields()}
        for record, size, view in rows
    ]


def text_fields(family: Family, queries: Sequence[Query], resolution: int) -> list[dict]:
    """每句描述（编辑还看着控制图的一种样子）的条件由什么算出。"""
    common = {"format": FORMAT, "family": family.name, "dtype": str(family.dtype)}
    common["encoder"] = [identity(family, part) for part in family.text_parts]
    rows = []
    for caption, record, view in queries:
        seen: dict = {"controls": list(record.control_digests)} if record.controls else {}
        for control, follow in controls_of(record, view):
            seen |= follow.fields()
            if view.crop:  # 裁成桶的宽高比，所以还和桶有关
                size = bucket_for(control.size, resolution, family.multiple)
                seen["size"] = [*seen.get("size", []), *size]
        rows.append({**common, "caption": caption, **seen})
    return rows


def _latents(family: Family, shown: Sequence[tuple[Record, View]], resolution: int, report):
    records, looks = [record for record, _ in shown], [view for _, view in shown]
    fields = image_fields(family, records, resolution, looks)

    def encode(batch: list[int]) -> list[Cond]:
        results = []
        for i in batch:  # 尺寸各不相同，一张张来；编码只做一次，不值得为它分桶
            size, digest = tuple(fields[i]["size"]), records[i].digest
            picture = show(read_image(records[i].path), size, looks[i], digest)
            mean, std = family.encode_images(to_pixels(picture))
            results.append({"mean": mean[0].float(), "std": std[0].float()})
        return results

    return [(found["mean"], found["std"]) for found in _cached("image", fields, encode, 1, report)]


def _texts(family: Family, queries: Sequence[Query], resolution: int, report) -> list[Cond]:
    def look_at(record: Record, view: View):
        size = bucket_for(record.size, resolution, family.multiple)
        return cut(read_image(record.path), size, view, record.digest)

    def encode(batch: list[int]) -> list[Cond]:
        refs = [[look_at(*one) for one in controls_of(*queries[i][1:])] for i in batch]
        return family.encode_prompts([queries[i][0] for i in batch], refs)

    return _cached("text", text_fields(family, queries, resolution), encode, 8, report)


def _masks(shown, sizes, masks, kind: str, report) -> list[torch.Tensor | None]:
    """每种样子的遮罩 (1, h, w)，没有就是 None。"""
    chosen, fields, encode = cache_masks.plan(shown, sizes, masks, kind)
    found = _cached("mask", [{"format": FORMAT, **one} for one in fields], encode, 1, report)
    ready = {i: one["mask"] for i, one in zip(chosen, found, strict=True)}
    return [ready.get(i) for i in range(len(shown))]
