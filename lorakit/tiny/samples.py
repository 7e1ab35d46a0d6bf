"""样例数据集：把小世界画成普通的“图 + 同名 .txt”文件夹，和你自己的数据一个样。"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from lorakit.errors import LorakitError, plain_reason
from lorakit.tiny.edits import change
from lorakit.tiny.styles import STYLES
from lorakit.tiny.world import (
    CLEAR,
    TRAINED,
    Scene,
    Thing,
    caption,
    random_scene,
    render,
    style_caption,
    style_scenes,
)

COUNT = 24
CHARACTERS = {"ohwx-cat": "ohwx", "cats": "cat"}  # cats：普通的猫，练 ohwx 猫时当同类图片
EDITS = {  # 名字 -> (指令, 改动前的场景 -> 改动后的场景)
    "hat": ("给它戴上一顶红帽子", lambda s: change(s, hat=True)),
    "lineart": ("把它变成线稿", lambda s: replace(s, style="lineart")),
    "papercut": ("把它变成剪纸", lambda s: replace(s, style="papercut")),
    "night": ("变成夜晚", lambda s: replace(s, background="night")),
    "blue": ("把它变成蓝色", lambda s: change(s, color="blue")),
}
STICKER = "sticker"  # 透明底的剪纸：要 data.alpha=keep，和有透明通道的模型
NAMES = (*STYLES, "ohwx-cat", "cats", *(f"edit-{name}" for name in EDITS), STICKER)


def write(name: str, folder: Path, count: int = COUNT, seed: int = 11) -> Path:
    """写出样例数据集 name；画风与编辑只用一半的主体，另一半留着检验。

    Raises:
        LorakitError: 没有这个名字，或文件夹里已经有别的东西。
    """
    if name not in NAMES:
        raise LorakitError(f"没有叫“{name}”的样例数据集。可选：{'、'.join(NAMES)}。")
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise LorakitError(f"文件夹“{folder}”不是空的。请换一个新的文件夹名，免得混进别的图。")
    try:
        if name in STYLES:
            _write_style(name, folder, count, seed)
        elif name in CHARACTERS:
            _write_character(CHARACTERS[name], folder, count, seed)
        elif name == STICKER:
            _write_stickers(folder, count, seed)
        else:
            _write_edits(name.removeprefix("edit-"), folder, count, seed)
    except OSError as error:
        for file in [*folder.glob("*"), *folder.glob("*/*")]:  # 本来是空的：写了一半的不留下
            file.unlink() if file.is_file() else None
        raise LorakitError(
            f"写不进“{folder}”：{plain_reason(error)}。请换一个能写的文件夹。"
        ) from error
    return folder


def _save(folder: Path, stem: str, scene: Scene, text: str | None = None):
    folder.mkdir(parents=True, exist_ok=True)
    render(scene).save(folder / f"{stem}.png")
    if text is not None:
        (folder / f"{stem}.txt").write_text(text + "\n", encoding="utf-8")


def _write_style(style: str, folder: Path, count: int, seed: int):
    for i, scene in enumerate(style_scenes(style, TRAINED, count, seed)):
        _save(folder, f"{i + 1:02d}_{scene.things[0].kind}", scene, style_caption(scene))


def sticker(scene: Scene) -> tuple[Scene, str]:
    """场景 -> 剪出来的、没有背景的样子，和它的描述：只说“贴纸”，不说“透明底”。"""
    bare = replace(scene, style="papercut", background=CLEAR)
    return bare, style_caption(bare).replace(STYLES["papercut"][0], "贴纸", 1)


def _write_stickers(folder: Path, count: int, seed: int):
    for i, scene in enumerate(style_scenes("papercut", TRAINED, count, seed)):
        _save(folder, f"{i + 1:02d}_{scene.things[0].kind}", *sticker(scene))


def character_scene(rng: np.random.Generator, kind: str = "ohwx") -> Scene:
    """ohwx 猫（或普通的猫）在随机的背景、位置和大小里。"""
    scene = random_scene(rng, two=0.0)
    return replace(scene, things=(replace(scene.things[0], kind=kind),))


def _write_character(kind: str, folder: Path, count: int, seed: int):
    rng = np.random.default_rng(seed)
    for i in range(count):
        scene = character_scene(rng, kind)
        _save(folder, f"{i + 1:02d}_{kind}", scene, caption(scene))


def edit_scene(rng: np.random.Generator, kind: str) -> Scene:
    """改之前的场景：不是蓝的、不在夜里，不然“变蓝”“变成夜晚”就没什么可改。"""
    before = random_scene(rng, two=0.0)
    thing: Thing = replace(before.things[0], kind=kind)
    color = "red" if thing.color == "blue" else thing.color
    background = "meadow" if before.background == "night" else before.background
    return replace(before, things=(replace(thing, color=color),), background=background)


def _write_edits(edit: str, folder: Path, count: int, seed: int):
    instruction, altered = EDITS[edit]
    rng = np.random.default_rng(seed)
    for i in range(count):
        before = edit_scene(rng, TRAINED[i % len(TRAINED)])
        stem = f"{i + 1:02d}_{before.things[0].kind}"
        _save(folder / "control", stem, before)
        _save(folder / "images", stem, altered(before), instruction)
