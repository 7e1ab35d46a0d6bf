"""诊断室的训练图：样例数据集，和几份各藏着一种毛病的。"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lorakit.errors import LorakitError
from lorakit.tiny import samples
from lorakit.tiny.edits import change
from lorakit.tiny.styles import STYLES
from lorakit.tiny.world import TRAINED, Scene, caption, render, style_caption, style_scenes

SEED = 11  # 与样例数据集一样
FEW, BURST = 4, 6  # 只有四张；每一张存了六遍
CUPBOARD = ("papercut", "ohwx-cat", "edit-papercut")  # 图库：处方里可以换上的


def _put(folder: Path, scenes: list[Scene], said: list[str]):
    folder.mkdir(parents=True)
    for i, (scene, text) in enumerate(zip(scenes, said, strict=True)):
        stem = folder / f"{i + 1:02d}_{scene.things[0].kind}"
        render(scene).save(stem.with_suffix(".png"))
        stem.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")


def _styled(count: int) -> list[Scene]:
    return style_scenes("papercut", TRAINED, count, SEED)


def _few(folder: Path):
    """只有四张。"""
    scenes = _styled(FEW)
    _put(folder, scenes, [style_caption(scene) for scene in scenes])


def _burst(folder: Path):
    """四张各存了六遍：亮一点点、换一种压缩，就算又一张。"""
    folder.mkdir(parents=True)
    for i, scene in enumerate(_styled(FEW)):
        for k in range(BURST):
            file = folder / f"{i * BURST + k + 1:02d}_{scene.things[0].kind}.jpg"
            render(scene).point(lambda v, k=k: min(255, v + k)).save(file, quality=96 - 4 * k)
            file.with_suffix(".txt").write_text(style_caption(scene) + "\n", encoding="utf-8")


def _one_caption(folder: Path):
    """二十四张，一句描述。"""
    scenes = _styled(samples.COUNT)
    _put(folder, scenes, [f"{STYLES['papercut'][0]}，一张图"] * len(scenes))


def _cats() -> list[Scene]:
    rng = np.random.default_rng(SEED)
    return [samples.character_scene(rng) for _ in range(samples.COUNT)]


def _hats(folder: Path):
    """张张戴着帽子，描述里一句没提。"""
    scenes = _cats()
    _put(folder, [change(one, hat=True) for one in scenes], [caption(one) for one in scenes])


def _swapped(folder: Path):
    """控制图和目标图放反了。"""
    samples.write("edit-papercut", folder)
    swap(folder)


def swap(folder: Path):
    """images 与 control 对调；描述总跟着 images。"""
    images, control, aside = folder / "images", folder / "control", folder / "aside"
    for file in images.glob("*.txt"):
        file.rename(control / file.name)
    images.rename(aside)
    control.rename(images)
    aside.rename(control)


SICK: dict[str, Callable[[Path], object]] = {
    "few": _few,
    "burst": _burst,
    "one-caption": _one_caption,
    "hats": _hats,
    "swapped": _swapped,
}


def write(name: str, folder: Path) -> Path:
    """把叫 name 的图写到 folder（有了就先清空），返回它。

    Raises:
        LorakitError: 没有这份图。
    """
    shutil.rmtree(folder, ignore_errors=True)
    if name in SICK:
        SICK[name](folder)
    elif name in samples.NAMES:
        samples.write(name, folder)
    else:
        raise LorakitError(f"data.folder：图库里没有“{name}”。可以换上的是 {'、'.join(CUPBOARD)}。")
    return folder
