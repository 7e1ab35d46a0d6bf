"""编码缓存：图和文字只编码一次；键由内容算出，所以换了图、描述、尺寸或编码器都不会用到旧的。"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from lorakit.checkpoint import write_whole
from lorakit.data import Record, bucket_for, fit, load_records, read_image, split_holdout
from lorakit.errors import ConfigError, DataError
from lorakit.families.base import Cond, Family
from lorakit.sampler import to_pixels

FORMAT = 1  # 预处理或文件格式一变就加 1，旧缓存自然作废


@dataclass(frozen=True)
class Item:
    """一张编码好的图：潜变量后验的均值与标准差 (C, h, w)、有描述与空描述的条件、来处。"""

    mean: torch.Tensor
    std: torch.Tensor
    cond: Cond
    empty: Cond  # 编辑的空描述也带着控制图，所以每张图各有一份
    record: Record

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """图与各张控制图的潜变量形状；全都一样的才能拼成一批。"""
        controls = (value for name, value in self.cond.items() if name.startswith("control_"))
        return (tuple(self.mean.shape), *(tuple(value.shape) for value in controls))


@dataclass(frozen=True)
class Dataset:
    """训练要用的一切：训练的图、留出的图。"""

    train: tuple[Item, ...]
    held: tuple[Item, ...]


def root() -> Path:
    """缓存文件夹：环境变量 LORAKIT_CACHE，或 ~/.cache/lorakit。"""
    return Path(os.environ.get("LORAKIT_CACHE", "~/.cache/lorakit")).expanduser()


def prepare(
    config, family: Family, progress: Callable[[str, int, int], None] | None = None
) -> Dataset:
    """读数据、编码（或取缓存）、留出检验集；编码完就放掉 VAE 与文本编码器。

    Args:
        progress: 函数 (在做什么, 第几个, 共几个)，每编码一批调一次。
    """
    if config.data.folder is None:
        raise ConfigError("data.folder：还没有指定图片文件夹。请加 --set data.folder=我的图片。")
    records = load_records(config.data.folder, config.data.trigger, config.data.control_folder)
    records = _fit_controls(family, records)
    if config.data.resolution % family.multiple:
        low = config.data.resolution // family.multiple * family.multiple
        raise ConfigError(
            f"data.resolution：{config.data.resolution} 不行，"
            f"{family.name} 要 {family.multiple} 的倍数，"
            f"最近的是 {low} 和 {low + family.multiple}。"
        )
    report = progress or (lambda *_: None)
    pictures = [*records, *(one for record in records for one in controls_of(record))]
    latents = iter(_latents(family, pictures, config.data.resolution, report))
    queries = [(record.caption, record) for record in records]
    # 空描述：编辑的要配上各自的控制图，别的家族共用一份
    queries += [("", record) for record in (records if family.controls[1] else records[:1])]
    texts = _texts(family, queries, report)
    family.release("vae", "text")
    targets = [next(latents) for _ in records]
    items = {}
    for i, record in enumerate(records):
        control = family.control_cond([next(latents)[0] for _ in record.controls])
        empty = texts[len(records) + i] if family.controls[1] else texts[-1]
        items[record.path] = Item(
            *targets[i], {**texts[i], **control}, {**empty, **control}, record
        )
    parts = split_holdout(records, config.eval.holdout)
    return Dataset(*(tuple(items[record.path] for record in part) for part in parts))


def _fit_controls(family: Family, records: Sequence[Record]) -> list[Record]:
    """控制图的张数要合家族的胃口：用不到的说一声再去掉，缺的、多的报错。"""
    least, most = family.controls
    if not most:
        if any(record.controls for record in records):
            warnings.warn(f"{family.name} 不看控制图，它们没有起作用。", stacklevel=3)
        return [replace(r, controls=(), control_sizes=(), control_digests=()) for r in records]
    for record in records:
        count = len(record.controls)
        if count < least:
            raise DataError(
                f"{family.name} 要有控制图（改之前的图），{record.path.name} 没有。"
                "把它们放进与 images 并排的 control 文件夹，或用 data.control_folder 指定。"
            )
        if count > most:
            raise DataError(
                f"{record.path.name} 有 {count} 张控制图，这个底模只看 {most} 张。"
                f"请移走多的，或换能看三张的 Qwen/Qwen-Image-Edit-2509。"
            )
    return list(records)


def controls_of(record: Record) -> list[Record]:
    """一条记录的几张控制图，各自当成一条没有描述的记录。"""
    parts = (record.controls, record.control_sizes, record.control_digests)
    return [Record(path, "", size, digest) for path, size, digest in zip(*parts, strict=True)]


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
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def _cached(
    kind: str, all_fields: Sequence[dict], encode: Callable, size: int, report
) -> list[Cond]:
    """逐个取缓存；缺的按 encode(下标列表) 一批批编码，编完立刻写下。"""
    paths = [place(kind, fields) for fields in all_fields]
    found: list[Cond | None] = [_read(path) for path in paths]
    # 同一张图、同一句话（几张目标图常常共用一张控制图）只编码一次
    missing = list({paths[i]: i for i, value in enumerate(found) if value is None}.values())
    fresh: dict[Path, Cond] = {}
    for start in range(0, len(missing), size):
        batch = missing[start : start + size]
        for i, tensors in zip(batch, encode(batch), strict=True):
            fresh[paths[i]] = {name: value.cpu() for name, value in tensors.items()}
            _write(paths[i], fresh[paths[i]], all_fields[i])
        report({"image": "编码图片", "text": "编码描述"}[kind], start + len(batch), len(missing))
    return [value or fresh[path] for path, value in zip(paths, found, strict=True)]


def image_fields(family: Family, records: Sequence[Record], resolution: int) -> list[dict]:
    """每张图的潜变量由什么算出：换了其中任何一样，就是另一个缓存文件。"""
    common = {"format": FORMAT, "family": family.name, "dtype": str(family.dtype)}
    common["encoder"] = fingerprint(family.folder / "vae")
    sizes = [bucket_for(record.size, resolution, family.multiple) for record in records]
    pairs = zip(records, sizes, strict=True)
    return [{**common, "picture": record.digest, "size": list(size)} for record, size in pairs]


def text_fields(family: Family, queries: Sequence[tuple[str, Record]]) -> list[dict]:
    """每句描述（编辑还看着控制图）的条件由什么算出。"""
    common = {"format": FORMAT, "family": family.name, "dtype": str(family.dtype)}
    common["encoder"] = [fingerprint(family.folder / part) for part in family.text_parts]
    seen = [{"controls": list(r.control_digests)} if r.controls else {} for _, r in queries]
    return [{**common, "caption": q[0], **more} for q, more in zip(queries, seen, strict=True)]


def _latents(family: Family, records: Sequence[Record], resolution: int, report):
    fields = image_fields(family, records, resolution)

    def encode(batch: list[int]) -> list[Cond]:
        results = []
        for i in batch:  # 尺寸各不相同，一张张来；编码只做一次，不值得为它分桶
            picture, _ = fit(read_image(records[i].path), tuple(fields[i]["size"]))
            mean, std = family.encode_images(to_pixels(picture))
            results.append({"mean": mean[0].float(), "std": std[0].float()})
        return results

    return [(found["mean"], found["std"]) for found in _cached("image", fields, encode, 1, report)]


def _texts(family: Family, queries: Sequence[tuple[str, Record]], report) -> list[Cond]:
    def encode(batch: list[int]) -> list[Cond]:
        refs = [[read_image(path) for path in queries[i][1].controls] for i in batch]
        return family.encode_prompts([queries[i][0] for i in batch], refs)

    return _cached("text", text_fields(family, queries), encode, 8, report)
