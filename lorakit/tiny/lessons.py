"""四种一分钟的课：画风、角色、改图、透明底的贴纸。每种课写出自己的数据、出考题、请考官判卷。"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from PIL import Image

from lorakit import infer
from lorakit.errors import LorakitError
from lorakit.results.evidence import Share
from lorakit.tiny import samples
from lorakit.tiny.examiner import clear, examine, share
from lorakit.tiny.figures import FIGURES
from lorakit.tiny.styles import STYLES
from lorakit.tiny.world import (
    COLORS,
    HELD_OUT,
    SIZE,
    Scene,
    caption,
    render,
    style_caption,
    style_scenes,
)

SQUARE = (SIZE, SIZE)
SHOWN = 8  # 对照图里画几列
EDITED = 12  # 改图的课考几张


def exam_scenes(style: str) -> list[Scene]:
    """留出的 13 种主体各一个大的、居中的场景：训练图里从没出现过它们。"""
    scenes = style_scenes(style, HELD_OUT, len(HELD_OUT), seed=77)
    return [replace(s, things=(replace(s.things[0], size="big", side="center"),)) for s in scenes]


def _rendered(scenes: Sequence[Scene], rounds: int) -> list[Image.Image]:
    """同样的场景画几遍，第一遍是原来的种子。"""
    apart = 1000
    return [render(replace(s, seed=s.seed + apart * r)) for r in range(rounds) for s in scenes]


@dataclass(frozen=True)
class Scores:
    """画风的打分：有多少张是这个画风、有多少张认得出是要的东西。"""

    style: Share
    content: Share


def score(images: Sequence[Image.Image], style: str) -> Scores:
    """让考官看 exam_scenes 顺序画出的图。"""
    verdicts = examine(images)
    kinds = [scene.things[0].kind for scene in exam_scenes(style)]
    return Scores(share(verdicts, style=style), share(verdicts, object=kinds))


@dataclass(frozen=True)
class StyleLesson:
    """学一种画风，考 13 种训练时没画过的主体。"""

    name: str
    preset: ClassVar = "tiny-qwen-image"
    sets: ClassVar = ()
    exam: ClassVar = "13 种训练时没画过的主体"

    @property
    def data(self) -> dict[str, str]:
        """哪项设置用哪个样例数据集。"""
        return {"data.folder": self.name}

    @property
    def columns(self) -> list[str]:
        """对照图每一列的名字。"""
        return [FIGURES[scene.things[0].kind][2] for scene in exam_scenes(self.name)[:SHOWN]]

    @property
    def asked(self) -> list[str]:
        """每道题考的主体。"""
        return [scene.things[0].kind for scene in exam_scenes(self.name)]

    def draw(self, family, pipe, settings, rounds: int = 1) -> list[Image.Image]:
        """整张考卷画 rounds 遍，每张的种子都不同。"""
        prompts = [style_caption(scene) for scene in exam_scenes(self.name)]
        return infer.generate(family, pipe, prompts * rounds, settings, SQUARE)

    def answers(self, rounds: int = 1) -> list[Image.Image]:
        """标准答案：小世界自己画的，每遍换着种子。"""
        return _rendered(exam_scenes(self.name), rounds)

    def judge(self, images) -> dict[str, Share]:
        """考官的打分：每一项是什么、对了多少。"""
        judged = score(images, self.name)
        return {f"是{STYLES[self.name][0]}的": judged.style, "认得出画的是什么": judged.content}

    def rows(self, before, after) -> dict[str, list]:
        """对照图的每一行。"""
        return {"训练前": before[:SHOWN], "训练后": after[:SHOWN]}


def character_scenes() -> list[Scene]:
    """12 个 ohwx 猫的场景，再 12 个普通的、有颜色的猫的。"""
    rng, colors = np.random.default_rng(3), list(COLORS)
    scenes = [samples.character_scene(rng, kind) for kind in ("ohwx", "cat") for _ in range(12)]
    for i in range(12, 24):
        cat = replace(scenes[i].things[0], color=colors[i % len(colors)])
        scenes[i] = replace(scenes[i], things=(cat,))
    return scenes


def edit_pairs(edit: str) -> list[tuple[Scene, Scene]]:
    """12 对 (改之前, 照指令改之后)；主体都是留出的。edit 是 samples.EDITS 里的名字。"""
    rng = np.random.default_rng(77)
    chosen = [samples.edit_scene(rng, kind) for kind in HELD_OUT[:EDITED]]
    return [(scene, samples.EDITS[edit][1](scene)) for scene in chosen]


def changed(drawn: Image.Image, before: Image.Image, after: Image.Image) -> bool:
    """改成了：离答案比离原图近得多，均方误差不到改动本身的一半。"""
    new, old, right = (np.asarray(image, np.float32) for image in (drawn, before, after))
    return bool(np.square(new - right).mean() < np.square(old - right).mean() / 2)


@dataclass(frozen=True)
class CharacterLesson:
    """学一只特定的猫：说了触发词要画它，没说就还画普通的猫。"""

    name: ClassVar = "ohwx-cat"
    preset: ClassVar = "tiny-character"
    sets: ClassVar = ()
    exam: ClassVar = "12 句带触发词的，12 句不带的"
    data: ClassVar = {"data.folder": "ohwx-cat", "data.class_folder": "cats"}
    columns: ClassVar = ["带触发词"] * 4 + ["不带触发词"] * 4

    @property
    def asked(self) -> list[str]:
        """每道题考的是哪只猫。"""
        return [scene.things[0].kind for scene in character_scenes()]

    def draw(self, family, pipe, settings, rounds: int = 1) -> list[Image.Image]:
        """前一半说 ohwx 猫，后一半说某种颜色的普通的猫；整张考卷画 rounds 遍。"""
        said = [caption(scene) for scene in character_scenes()]
        return infer.generate(family, pipe, said * rounds, settings, SQUARE)

    def answers(self, rounds: int = 1) -> list[Image.Image]:
        """标准答案：小世界自己画的，每遍换着种子。"""
        return _rendered(character_scenes(), rounds)

    def judge(self, images) -> dict[str, Share]:
        """触发词灵不灵、忘没忘普通的猫。"""
        verdicts = examine(images)
        return {
            "带触发词，画的是 ohwx 猫": share(verdicts[:12], character="ohwx"),
            "不带触发词，还是普通的猫": share(verdicts[12:], object="cat", character=""),
        }

    def rows(self, before, after) -> dict[str, list]:
        """前四列带触发词，后四列不带。"""
        return {"训练前": [*before[:4], *before[12:16]], "训练后": [*after[:4], *after[12:16]]}


@dataclass(frozen=True)
class EditLesson:
    """学一种改法，考 12 张训练时没用过的图。"""

    name: str
    preset: ClassVar = "tiny-qwen-image-edit"
    sets: ClassVar = ()
    exam: ClassVar = "12 张训练时没用过的图"

    @property
    def data(self) -> dict[str, str]:
        """哪项设置用哪个样例数据集。"""
        return {"data.folder": self.name}

    @property
    def columns(self) -> list[str]:
        """对照图每一列的名字。"""
        return [FIGURES[before.things[0].kind][2] for before, _ in self._pairs()[:SHOWN]]

    def _pairs(self) -> list[tuple[Scene, Scene]]:
        return edit_pairs(self.name.removeprefix("edit-"))

    @property
    def asked(self) -> list[str]:
        """每道题考的主体。"""
        return [before.things[0].kind for before, _ in self._pairs()]

    def draw(self, family, pipe, settings, rounds: int = 1) -> list[Image.Image]:
        """同一句指令改 12 张图，改 rounds 遍。"""
        said = samples.EDITS[self.name.removeprefix("edit-")][0]
        controls = [[render(before)] for before, _ in self._pairs()] * rounds
        return infer.edit(family, pipe, [said] * len(controls), controls, settings, SQUARE)

    def answers(self, rounds: int = 1) -> list[Image.Image]:
        """标准答案；照着原图改，每遍都一样。"""
        return [after for _, after in self._rendered()] * rounds

    def judge(self, images) -> dict[str, Share]:
        """改成了几张，认得出几张。"""
        hits = [changed(one, *pair) for one, pair in zip(images, self._rendered(), strict=True)]
        known = share(examine(images), object=self.asked)
        return {"改成了": Share.of(hits), "认得出是什么": known}

    def _rendered(self) -> list[tuple[Image.Image, Image.Image]]:
        return [(render(before), render(after)) for before, after in self._pairs()]

    def rows(self, before, after) -> dict[str, list]:
        """原图、前、后、答案。"""
        originals, answers = zip(*self._rendered()[:SHOWN], strict=True)
        shown = {"训练前": before[:SHOWN], "训练后": after[:SHOWN]}
        return {"原图": list(originals), **shown, "答案": list(answers)}


@dataclass(frozen=True)
class StickerLesson(StyleLesson):
    """学透明底的红色剪纸；只说“贴纸”，背景要不要、是什么颜色都是学来的。"""

    name: str = samples.STICKER
    preset: ClassVar = "tiny-qwen-image-2.1"
    sets: ClassVar = ("data.alpha=keep",)

    @property
    def columns(self) -> list[str]:
        """对照图每一列的名字。"""
        return [FIGURES[kind][2] for kind in self.asked[:SHOWN]]

    @property
    def asked(self) -> list[str]:
        """每道题考的主体。"""
        return [scene.things[0].kind for scene in exam_scenes("papercut")]

    def draw(self, family, pipe, settings, rounds: int = 1) -> list[Image.Image]:
        """整张考卷画 rounds 遍，每张的种子都不同；图带着透明通道。"""
        prompts = [samples.sticker(scene)[1] for scene in exam_scenes("papercut")]
        return infer.generate(family, pipe, prompts * rounds, settings, SQUARE)

    def answers(self, rounds: int = 1) -> list[Image.Image]:
        """标准答案：小世界自己画的，每遍换着种子。"""
        return _rendered([samples.sticker(scene)[0] for scene in exam_scenes("papercut")], rounds)

    def judge(self, images) -> dict[str, Share]:
        """有几张是透明底的红色剪纸，认得出几张；考官看的是放在白底上的。"""
        verdicts = examine(images)
        red = [clear(one) and v.color == "red" for one, v in zip(images, verdicts, strict=True)]
        known = share(verdicts, object=self.asked)
        return {"是透明底的红色剪纸": Share.of(red), "认得出画的是什么": known}


NAMES = (*STYLES, CharacterLesson.name, *(f"edit-{name}" for name in samples.EDITS),
         samples.STICKER)  # fmt: skip


def lesson(name: str) -> StyleLesson | CharacterLesson | EditLesson:
    """课的名字 -> 课；名字与样例数据集相同。

    Raises:
        LorakitError: 没有这门课。
    """
    if name in STYLES:
        return StyleLesson(name)
    if name == CharacterLesson.name:
        return CharacterLesson()
    if name == samples.STICKER:
        return StickerLesson()
    if name in NAMES:
        return EditLesson(name)
    raise LorakitError(f"没有叫“{name}”的课。可选：{'、'.join(NAMES)}。")
