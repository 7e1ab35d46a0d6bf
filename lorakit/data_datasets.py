"""Hugging Face datasets：把它的对象或 save_to_disk 存下的文件夹，写成普通的“图 + 同名 .txt”。

写成文件夹之后，体检、分桶、缓存都和你自己的图一样。
教程：notebooks/02_dataset.ipynb
"""

import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from lorakit.data_read import BROKEN
from lorakit.data_sources import CAPTION_KEYS, FIELDS
from lorakit.errors import DataError

SAVED = (("dataset_info.json", "state.json"), ("dataset_dict.json",))  # save_to_disk 留下的
PICTURE_KEYS = ("image", "img", "picture")


def write_dataset(rows: Iterable[Mapping], folder: str | Path) -> Path:
    """datasets 的一份数据（或任何一行一个字典的东西）-> 文件夹；图原样写成 PNG，描述写成 .txt。

    图在 image 一列，描述在 caption、text 或 prompt 一列。

    Raises:
        DataError: 没有这两列、图不是图片、文件夹不是空的；哪一行不对会写清楚。
        LorakitError: 写不进；写到一半失败不留半个文件夹。
    """
    from lorakit.checkpoint import write_whole  # 它要 torch；只体检时不必等它载入

    folder = Path(folder).expanduser()
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"文件夹“{folder}”不是空的。换一个新的文件夹名，免得混进别的图。")

    def write(temporary: Path):
        temporary.mkdir(parents=True)
        number = 0
        for number, row in enumerate(rows, 1):
            _write_row(temporary / f"{number:06d}", row, number)
        if not number:
            raise DataError("这份 datasets 数据里一行也没有。检查是不是选错了 split。")

    return write_whole(folder, write)


def _write_row(stem: Path, row: Mapping, number: int):
    picture = next((row[key] for key in PICTURE_KEYS if row.get(key) is not None), None)
    if isinstance(picture, Mapping) and picture.get("bytes"):  # decode=False 时是没解开的字节
        try:
            picture = Image.open(io.BytesIO(picture["bytes"]))
            picture.load()
        except BROKEN as error:
            raise DataError(f"datasets 数据的第 {number} 行，图解不开（{error}）。") from error
    if not isinstance(picture, Image.Image):
        columns = "、".join(map(str, row))
        raise DataError(
            f"datasets 数据的第 {number} 行没有图（要有一列叫 image，里面是图片；"
            f"这里有：{columns}）。用 rename_column 改列名，或用 cast_column 转成 Image。"
        )
    caption = next((row[key] for key in CAPTION_KEYS if row.get(key) is not None), None)
    if not isinstance(caption, str) or not caption.strip():
        columns = "、".join(map(str, row))
        raise DataError(
            f"datasets 数据的第 {number} 行没有描述（要有一列叫 {FIELDS}；这里有：{columns}）。"
        )
    keep = picture.mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")
    (picture if keep else picture.convert("RGB")).save(stem.with_suffix(".png"))
    stem.with_suffix(".txt").write_text(caption, encoding="utf-8")


def unpacked(folder: str | Path) -> Path:
    """普通文件夹原样返回；save_to_disk 存下的，先写成“图 + .txt”放在缓存里，返回那里。

    Raises:
        DataError: 没有装 datasets；里面有几个 split，不知道用哪个。
    """
    folder = Path(folder).expanduser()
    if not any(all((folder / name).is_file() for name in names) for names in SAVED):
        return folder
    splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
    if (folder / "dataset_dict.json").is_file():
        if "train" not in splits and len(splits) != 1:
            raise DataError(
                f"“{folder}”里有几份数据：{'、'.join(splits)}。把 data.folder 写到其中一份，"
                f"例如 {folder / splits[0] if splits else folder}。"
            )
        folder = folder / ("train" if "train" in splits else splits[0])
    target = _root() / _identity(folder)
    if not target.is_dir():
        try:
            from datasets import load_from_disk
        except ImportError:
            raise DataError(
                f"“{folder}”是 datasets 存下的数据，读它要装那个库：pip install datasets。"
                "也可以自己存成“图 + 同名 .txt”的文件夹。"
            ) from None
        write_dataset(load_from_disk(str(folder)), target)
    return target


def _root() -> Path:
    return Path(os.environ.get("LORAKIT_CACHE", "~/.cache/lorakit")).expanduser() / "datasets"


def _identity(folder: Path) -> str:
    """由每个文件的名字和内容决定：数据变了就另写一份。"""
    sha = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        sha.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()[:16]
