"""照设置挑好要训练的记录：训练的、留出的、同类的，各用哪张遮罩；不能练的，编码之前就说。"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lorakit.data.batches import split_holdout
from lorakit.data.conventions import beside
from lorakit.data.load import load_prior, load_sources
from lorakit.data.mask import mask_files, read_alpha
from lorakit.data.record import Record
from lorakit.errors import ConfigError, DataError, warn
from lorakit.files import user_path


class Selection(NamedTuple):
    """挑好的记录；masks 是图 -> 从哪个文件读它的遮罩。"""

    train: list[Record]
    held: list[Record]
    prior: list[Record]
    masks: dict[Path, Path]


def select(config, family) -> Selection:
    """按设置读数据、留出检验集、对上底模的要求。

    Args:
        family: 底模的家族；只看它的 name、multiple、controls。

    Raises:
        LorakitError: 数据有错误，或设置与数据、底模对不上。
    """
    data = config.data
    if not data.sources:
        raise ConfigError("data.folder：还没有指定图片文件夹。请加 --set data.folder=我的图片。")
    if data.resolution % family.multiple:
        low = data.resolution // family.multiple * family.multiple
        raise ConfigError(
            f"data.resolution：{data.resolution} 不行，"
            f"{family.name} 要 {family.multiple} 的倍数，"
            f"最近的是 {low} 和 {low + family.multiple}。"
        )
    _refuse_beside(data, family)
    records = fit_controls(family, load_sources(data.sources, data.trigger))
    prior = load_prior(data.class_folder, data.trigger, records)
    prior = fit_controls(family, prior, "data.class_folder：")
    marked = [record for record in records if record.mask]
    if marked and data.mask != "file":
        said = f"{len(marked)} 张图旁边有遮罩（{marked[0].mask.name} 等），没有用到"
        if "mask" not in data.model_fields_set:
            raise DataError(
                f"data.mask：{said}。要用就写 data.mask=file；不用就写 data.mask=none，或移走它们。"
            )
        warn(f"{said}：data.mask 写的是 {data.mask}。")
    if data.clear and not any(read_alpha(record.path) for record in records):
        warn("data.alpha=keep 不起作用：没有一张图有透明的地方，都当作处处不透明。")
    train, held = split_holdout(records, config.eval.holdout)
    return Selection(train, held, prior, mask_files(records, data.mask))


def _refuse_beside(data, family):
    """data.folder 写的是 images，并排放着的遮罩、控制图没有走到：没有写明不用的，不能只说一声。

    不看控制图的底模用不上它们，照 data.folder 的意思只练图，就不算没有用到。
    同类图片（reg）不在其列：用不用它是另一种练法，别处也要另写一项，没写就是不用。

    Raises:
        DataError: 说出在哪、要用写哪一行、不用写哪一行。
    """
    several, (least, most) = isinstance(data.folder, list), family.controls
    for one, source in zip(data.folder if several else [data], data.sources, strict=True):
        alone = "control_folder: null" if several else "data.control_folder=null"
        told = {
            "masks_beside": ("mask" in data.model_fields_set, "；或写 data.mask=none"),
            "control_beside": (
                "control_folder" in one.model_fields_set or not most,
                "" if least else f"；只练图，也可以写 {alone}",
            ),
        }
        for problem in beside(user_path(source.folder), source.control_folder):
            said, line = told.get(problem.code, (True, ""))
            if not said:
                raise DataError(f"data.folder：{problem.reason}。{problem.mend}{line}。")


def fit_controls(family, records: Sequence[Record], where: str = "") -> list[Record]:
    """控制图的张数要合家族的胃口：用不到的、缺的、多的都报错（where 写在最前面）。"""
    least, most = family.controls
    if not most:
        if any(record.controls for record in records):
            mend = (
                "要练编辑，model 一组写编辑的底模；只练图，data.folder 写目标图的文件夹（images），"
            )
            raise DataError(
                f"{where}{family.name} 不看控制图，给它的控制图不会起作用。"
                f"{mend}不写 data.control_folder。"
            )
        return list(records)
    for record in records:
        count = len(record.controls)
        if count < least:
            named = "。" if where else "，或用 data.control_folder 指定。"
            raise DataError(
                f"{where}{family.name} 要有控制图（改之前的图），{record.path.name} 没有。"
                f"把它们放进与 images 并排的 control 文件夹{named}"
            )
        if count > most:
            raise DataError(
                f"{where}{record.path.name} 有 {count} 张控制图，这个底模只看 {most} 张。"
                f"请移走多的，或换能看三张的 Qwen/Qwen-Image-Edit-2509。"
            )
    return list(records)
