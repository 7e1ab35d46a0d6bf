"""缓存的键：编码器的身份，以及一张图、一句描述的编码由什么决定。"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lorakit.cache.store import FORMAT
from lorakit.cache.whole import settled, whole
from lorakit.data.crops import View, bucket_for
from lorakit.data.record import Record
from lorakit.families.base import Family
from lorakit.files import cache_root, read_words, write_text
from lorakit.hub import absent

PLAIN = View()
Query = tuple[str, Record, View]  # 一句描述、它的图、图的一种样子


def controls_of(record: Record, view: View = PLAIN) -> list[tuple[Record, View]]:
    """一条记录的几张控制图，各自当成一条没有描述的记录；翻转、裁切都跟着目标图。"""
    parts = (record.controls, record.control_sizes, record.control_digests)
    follow = view._replace(place=record.digest)
    return [(Record(path, "", *rest), follow) for path, *rest in zip(*parts, strict=True)]


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
    note = cache_root() / "encoders" / f"{mark}.txt"
    if mark and absent(family.folder, [part]):
        if note.is_file():
            return read_words(note)
        family.model.fetch(part)
    home = family.folder / part
    found = settled(fingerprint(home), whole(home))
    if mark and not note.is_file():
        write_text(note, found)
    return found


def image_fields(
    family: Family, records: Sequence[Record], resolution: int, shown: Sequence[View] = ()
) -> list[dict]:
    """每张图（的一种样子）的潜变量由什么算出：换了其中任何一样，就是另一个缓存文件。"""
    common = {"format": FORMAT, "family": family.name, "dtype": str(family.dtype)}
    common |= {"encoder": identity(family, "vae"), **_clear(family)}
    sizes = [bucket_for(record.size, resolution, family.multiple) for record in records]
    rows = zip(records, sizes, shown or [PLAIN] * len(records), strict=True)
    return [
        {**common, "picture": record.digest, "size": list(size), **view.fields()}
        for record, size, view in rows
    ]


def text_fields(family: Family, queries: Sequence[Query], resolution: int) -> list[dict]:
    """每句描述（编辑还看着控制图的一种样子）的条件由什么算出。"""
    common, rows = _said_by(family), []
    for caption, record, view in queries:
        looks = controls_of(record, view) if family.text_sees else []
        seen: dict = {"controls": [*record.control_digests], **_clear(family)} if looks else {}
        for control, follow in looks:
            seen |= follow.fields()
            if view.crop or family.text_sees == "fitted":  # 裁成桶的宽高比，所以还和桶有关
                size = bucket_for(control.size, resolution, family.multiple)
                seen["size"] = [*seen.get("size", []), *size]
        rows.append({**common, "caption": caption, **seen})
    return rows


def prompt_fields(family: Family, prompts: Sequence[str], seen: Sequence[Sequence[str]]):
    """每句提示词（编辑还看着几张图，seen 是它们像素的哈希）的条件由什么算出；总是单独编码的。"""
    common = _said_by(family)
    pairs = zip(prompts, seen, strict=True)
    return [{**common, "prompt": said, **({"seen": [*one]} if one else {})} for said, one in pairs]


def _clear(family: Family) -> dict:
    """透明的地方留着没有：不留不写，所以以前的缓存仍然有效。"""
    return {"alpha": "keep"} if family.clear else {}


def _said_by(family: Family) -> dict:
    common: dict = {"format": FORMAT, "family": family.name, "dtype": str(family.dtype)}
    common |= {"encoder": [identity(family, part) for part in family.text_parts]}
    # 没压就不写，所以以前的缓存仍然有效
    return common | ({} if family.text_kind == "none" else {"text_kind": family.text_kind})
