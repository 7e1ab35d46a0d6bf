"""Hugging Face datasets：把它的对象或 save_to_disk 存下的文件夹，写成普通的“图 + 同名 .txt”。

写成文件夹之后，体检、分桶、缓存都和你自己的图一样；有改之前的图的，写成 images 与 control 并排。
教程：notebooks/02_dataset.ipynb
"""

import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from lorakit.data import limits
from lorakit.data.captions import CAPTION_KEYS, differs
from lorakit.data.color import profile_of, to_rgb
from lorakit.data.conventions import yaml_path
from lorakit.data.read import BROKEN, ORIENTATION, TURNS, one_line
from lorakit.errors import DataError, warn
from lorakit.files import cache_root, user_path, write_whole

SAVED = (("dataset_info.json", "state.json"), ("dataset_dict.json",))  # save_to_disk 留下的
# 各家常用的列名，几个都有就用最前面的
TARGETS = ("edited_image", "target_image", "target_img", "image", "img", "picture")
CONTROLS = ("control_image", "control", "source_image", "source_img", "input_image",
            "original_image", "image")  # fmt: skip
CAPTIONS = (*CAPTION_KEYS, "edit_prompt", "instruction")


def write_dataset(rows: Iterable[Mapping], folder: str | Path) -> Path:
    """datasets 的一份数据（或任何一行一个字典的东西）-> 文件夹；图原样写成 PNG，描述写成 .txt。

    图在 image 一列，描述在 caption、text 或 prompt 一列。编辑数据另有改之前的图，在 control_image
    一列（还有就叫 control_image_2、control_image_3），描述也可以叫 instruction。

    Raises:
        DataError: 没有这些列、图不是图片、文件夹不是空的；哪一行不对会写清楚。
        LorakitError: 写不进；写到一半失败不留半个文件夹。
    """
    folder = user_path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"文件夹“{folder}”不是空的。换一个新的文件夹名，免得混进别的图。")

    def write(temporary: Path):
        temporary.mkdir(parents=True)
        number = 0
        for number, row in enumerate(rows, 1):
            if number == 1:
                columns = _columns(row)
            _write_row(temporary, row, number, *columns)
        if not number:
            raise DataError("这份 datasets 数据里一行也没有。检查是不是选错了 split。")

    return write_whole(folder, write)


def _columns(row: Mapping) -> tuple[str, str, list[str]]:
    """从第一行看出 (目标图, 描述, 几张控制图) 各是哪一列。"""
    here = f"这里有：{'、'.join(map(str, row))}"
    target = next((key for key in TARGETS if key in row), None)
    if target is None:
        mend = "用 rename_column 改列名，或用 cast_column 转成 Image"
        raise DataError(f"datasets 数据里没有图（要有一列叫 image，里面是图片；{here}）。{mend}。")
    caption = next((key for key in CAPTIONS if key in row), None)
    if caption is None:
        wanted = "、".join(CAPTIONS[:3])
        mend = "用 rename_column 改列名"
        raise DataError(f"datasets 数据里没有描述（要有一列叫 {wanted} 之一；{here}）。{mend}。")
    first = next((key for key in CONTROLS if key in row and key != target), None)
    controls = [first] if first else []
    controls += [f"{first}_{n}" for n in range(2, limits.CONTROLS + 1) if f"{first}_{n}" in row]
    others = [key for key in row if _is_picture(row[key]) and key not in (target, *controls)]
    if others:
        pair = f"，改之前的图用 {controls[0]}" if controls else ""
        mend = f"不用就先去掉：数据 = 数据.remove_columns({others})"
        said = f"datasets 数据里 {'、'.join(others)} 也是图，没有用到（训练图用 {target}{pair}）。"
        raise DataError(f"{said}{mend}；要用就用 rename_column 改成认得的列名。")
    return target, caption, controls


def _is_picture(value: object) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, Mapping) and "bytes" in value)


def _write_row(
    folder: Path, row: Mapping, number: int, target: str, caption: str, controls: list[str]
):
    name, place = f"{number:06d}", folder / "images" if controls else folder
    said = row[caption]
    if isinstance(said, str) and (other := differs(row, CAPTIONS, one_line(said))):
        mend = f"用 remove_columns 去掉不用的那一列，例如 数据 = 数据.remove_columns([{other!r}])"
        raise DataError(
            f"datasets 数据的第 {number} 行有两项描述（{caption} 与 {other}），不一样。{mend}。"
        )
    if not isinstance(said, str) or not said.strip():
        raise DataError(f"datasets 数据的第 {number} 行没有描述（{caption} 一列是 {said!r}）。")
    place.mkdir(exist_ok=True)
    _write_picture(row[target], place / f"{name}.png", number, target)
    (place / f"{name}.txt").write_text(said, encoding="utf-8")
    for order, column in enumerate(controls, 1):
        if row[column] is None and order > 1:  # 有的行只有一张
            break
        end = "" if order == 1 else f"_{order}"
        (folder / "control").mkdir(exist_ok=True)
        _write_picture(row[column], folder / "control" / f"{name}{end}.png", number, column)


def _write_picture(picture: object, path: Path, number: int, column: str):
    where = f"datasets 数据的第 {number} 行，{column} 一列"
    if isinstance(picture, Mapping):  # decode=False 时是没解开的字节，或只有路径
        source = picture.get("bytes") or picture.get("path")
        try:
            picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
            picture.load()
        except (*BROKEN, AttributeError, Image.DecompressionBombError) as error:
            raise DataError(f"{where}的图解不开（{error}）。换掉它，或删掉这一行。") from error
    if not isinstance(picture, Image.Image):
        kind = "空的" if picture is None else f"“{str(picture)[:30]}”"
        mend = "用 cast_column 转成 Image，或删掉这一行"
        raise DataError(f"{where}要是图片，得到{kind}。{mend}。")
    turn = TURNS.get(picture.getexif().get(ORIENTATION))
    profile, _ = profile_of(picture)
    if picture.mode not in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):  # PNG 存不下的
        picture, profile = to_rgb(picture, profile)[0], None
    # PNG 里不留 EXIF：转正过的图再带着方向，读的时候会又转一次
    (picture if turn is None else picture.transpose(turn)).save(path, exif=b"", icc_profile=profile)


def unpacked(folder: str | Path) -> Path:
    """普通文件夹原样返回；save_to_disk 存下的，先写成“图 + .txt”放在缓存里，返回那里。

    Raises:
        DataError: 没有装 datasets；里面有几个 split，不知道用哪个。
    """
    folder = user_path(folder)
    if not any(all((folder / name).is_file() for name in names) for names in SAVED):
        return folder
    splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
    if (folder / "dataset_dict.json").is_file():
        if "train" not in splits and len(splits) != 1:
            raise DataError(
                f"“{folder}”里有几份数据：{'、'.join(splits)}。把 data.folder 写到其中一份，"
                f"例如 {folder / splits[0] if splits else folder}。"
            )
        used = "train" if "train" in splits else splits[0]
        if len(splits) > 1:
            # 不算错误：test、validation 本来就是留着不练的，谁写 train 旁边那几份的都这么想
            listed = ", ".join(yaml_path(folder / name) for name in splits)
            warn(f"“{folder}”里只练 {used}；要连别的一起练，就写 data.folder: [{listed}]")
        folder = folder / used
    target = cache_root() / "datasets" / _identity(folder)
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


def _identity(folder: Path) -> str:
    """由每个文件的名字和内容决定：数据变了就另写一份。"""
    sha = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        sha.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()[:16]
