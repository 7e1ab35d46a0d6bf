"""编辑底模要会的改法：戴帽子、换背景（夜晚最多）、换颜色、挪位置、变大小；中英文多种说法。

线稿和别的画风不在里面：那是留给 LoRA 学的。
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lorakit.tiny.world import BACKGROUNDS, CLEAR, COLORS, SIDES, SIZES, Scene, random_scene

PHRASES = 4  # 每一对图说几遍，换着说法：三句中文、一句英文


def change(scene: Scene, **changes) -> Scene:
    """改场景里的第一件东西。"""
    return replace(scene, things=(replace(scene.things[0], **changes), *scene.things[1:]))


def _other(rng: np.random.Generator, options, now: str) -> str:
    left = [name for name in options if name != now]
    return left[rng.integers(len(left))]


def _hat(scene: Scene, rng: np.random.Generator):
    chinese = ("给它戴上一顶红帽子", "戴上红帽子", "给它加一顶帽子")
    return change(scene, hat=True), chinese, ("put a red hat on it", "add a hat")


def _background(scene: Scene, rng: np.random.Generator, name: str = ""):
    name = name or _other(rng, BACKGROUNDS, scene.background)
    chinese, english = BACKGROUNDS[name]
    said = (f"把背景换成{chinese}", f"背景变成{chinese}", f"换到{chinese}")
    return (
        replace(scene, background=name),
        said,
        (f"change the background to {english}", f"{english} behind it"),
    )


def _night(scene: Scene, rng: np.random.Generator):
    after, *_ = _background(scene, rng, "night")
    return after, ("变成夜晚", "让它变成夜晚", "把背景换成夜空"), ("make it night",)


def _color(scene: Scene, rng: np.random.Generator):
    name = _other(rng, COLORS, scene.things[0].color)
    chinese = COLORS[name][0]
    said = (f"把它变成{chinese}", f"改成{chinese}", f"把颜色改成{chinese}")
    return change(scene, color=name), said, (f"make it {name}", f"turn it {name}")


def _side(scene: Scene, rng: np.random.Generator):
    name = _other(rng, SIDES, scene.things[0].side)
    chinese, english, _ = SIDES[name]
    said = (f"把它移到{chinese}", f"移到{chinese}", f"让它到{chinese}去")
    return change(scene, side=name), said, (f"move it, {english}", f"put it {english}")


def _size(scene: Scene, rng: np.random.Generator):
    name = _other(rng, SIZES, scene.things[0].size)
    chinese, english, _ = SIZES[name]
    said = (f"把它变{chinese}", f"变{chinese}一点", f"让它更{chinese}")
    return change(scene, size=name), said, (f"make it {english}", f"make it {english} instead")


EDITS: dict[str, tuple[float, Callable]] = {  # 名字 -> (占多少, 改法)
    "hat": (0.2, _hat),
    "night": (0.1, _night),
    "background": (0.2, _background),
    "color": (0.25, _color),
    "side": (0.125, _side),
    "size": (0.125, _size),
}


def random_edit(rng: np.random.Generator, name: str = "") -> tuple[str, Scene, Scene, list[str]]:
    """随机的一对：改法的名字、改之前、改之后、PHRASES 句指令。

    Args:
        name: 只要这一种改法；不写就按占比抽。
    """
    shares = [share for share, _ in EDITS.values()]
    name = name or list(EDITS)[rng.choice(len(EDITS), p=shares)]
    before = random_scene(rng, two=0.15 if name in ("night", "background") else 0.0)
    if name == "night" and before.background == "night":
        before = replace(before, background="meadow")
    after, chinese, english = EDITS[name][1](before, rng)
    said = [chinese[rng.integers(len(chinese))] for _ in range(PHRASES - 1)]
    return name, before, after, [*said, english[rng.integers(len(english))]]


def cutout(rng: np.random.Generator) -> tuple[str, Scene, Scene, list[str]]:
    """抠图的一对，样子与 random_edit 给的相同：改之后没有背景；只有认得透明的底模学它。"""
    before = random_scene(rng, two=0.15)
    chinese = ("去掉背景", "把背景变成透明", "把它抠出来")
    english = ("remove the background", "make the background transparent")
    said = [chinese[rng.integers(len(chinese))] for _ in range(PHRASES - 1)]
    said.append(english[rng.integers(len(english))])
    return CLEAR, before, replace(before, background=CLEAR), said
