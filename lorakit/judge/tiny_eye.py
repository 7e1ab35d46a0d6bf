"""小世界的眼睛：考官。它认得出画风、主体、ohwx 猫；认不准的就说看不出，不硬猜。"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from lorakit.data.color import on_white
from lorakit.judge.drawing import Question
from lorakit.judge.looking import Seen, off
from lorakit.judge.taught import Taught
from lorakit.results.evidence import Share
from lorakit.results.verdict import GREEN, NAMES, RED, YELLOW, Light
from lorakit.tiny import lessons, samples
from lorakit.tiny.examiner import UNSURE, Verdict, agrees, examine, share
from lorakit.tiny.figures import FIGURES
from lorakit.tiny.styles import STYLES
from lorakit.tiny.world import (
    BACKGROUNDS,
    COLORS,
    SIDES,
    SIZES,
    Scene,
    Thing,
    caption,
    render,
    style_caption,
)

MOSTLY = 0.8  # 训练图里这么多都是一种画风（或那只猫），才算在教它
GOOD, LEAST = 0.75, 0.5  # 画面绿：做到的不少于 GOOD，区间的下边也过 LEAST；红：区间的上边不到 LEAST
GRID, AGAIN = 16, 8  # 缩到几格见方；同一句话再画几张


class TinyEye:
    """考官这只眼睛：看训练图就知道在教什么，再照着出题、判卷。"""

    name = "tiny"
    copies = 12
    against_base = False

    def questions(self, taught: Taught, prompts: Sequence[str]) -> dict[str, list[Question]]:
        """asked：没练过的主体（或场景、图）；plain：普通的猫，看教猫的忘没忘。"""
        size = (taught.config.sample.size or taught.config.data.resolution,) * 2
        goal = goal_of(taught)
        if taught.train[0].controls:
            return {"asked": _edits(taught, size, prompts), "plain": []}
        if prompts:
            return {"asked": [_read(said, size, goal) for said in prompts], "plain": []}
        if "style" in goal:
            scenes = lessons.exam_scenes(goal["style"])
            kinds = [scene.things[0].kind for scene in scenes]
            said = [_styled(taught, scene) for scene in scenes]
            asked = [
                Question(one, size, wanted={**goal, "object": kind})
                for one, kind in zip(said, kinds, strict=True)
            ]
            return {"asked": asked, "plain": []}
        if "character" in goal:
            scenes = lessons.character_scenes()
            half = len(scenes) // 2
            named = [_named(taught, caption(scene)) for scene in scenes[:half]]
            plain = {"object": "cat", "character": ""}
            return {
                "asked": [Question(one, size, wanted=goal) for one in named],
                "plain": [Question(caption(one), size, wanted=plain) for one in scenes[half:]],
            }
        own = [*taught.held, *taught.train][: lessons.EDITED]
        return {"asked": [_read(one.caption, size, goal) for one in own], "plain": []}

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """缩小后的颜色 (N, GRID² x 3)，0 到 1：看的是不是同一幅，不管细处。"""
        box = Image.Resampling.BOX
        small = [on_white(image).resize((GRID, GRID), box) for image in images]
        return np.stack([np.asarray(one, np.float32).ravel() for one in small]) / 255

    def again(self, taught: Taught, questions: Sequence[Question]) -> list[list[Image.Image]]:
        """小世界自己画得出：照描述再画几张，换着种子。"""
        goal = goal_of(taught)
        scenes = [_scene(one.prompt, goal) for one in questions]
        if None in scenes or not _understood(taught):
            return []
        return [[render(replace(one, seed=1000 + k)) for k in range(AGAIN)] for one in scenes]

    def picture(self, taught: Taught, seen: Seen) -> Light:
        """做到了几张：画风、主体、那只猫、改法，题里要什么就看什么。"""
        if not _understood(taught):
            return off(NAMES[1], "训练图不是小世界里的，考官看不出；真照片请用 --eye dinov2")
        asked = seen.paper["asked"]
        right, content = [], []
        for images in seen.drawn["asked"]:
            verdicts = examine(images)
            for question, image, verdict in zip(asked, images, verdicts, strict=True):
                right.append(_right(question, image, verdict))
                content.append(_recognised(question, verdict))
        whole, known = Share.of(right), Share.of(content)
        turns = len(seen.drawn["asked"])
        facts = {"right": _count(whole), "content": _count(known), "seeds": turns}
        said = f"做到了 {whole}，认得出画的是什么 {known}"
        if asked[0].wanted.get("style"):
            verdicts = [one for images in seen.drawn["asked"] for one in examine(images)]
            styled = share(verdicts, style=asked[0].wanted["style"])
            facts["style"] = _count(styled)
            said += f"，是{STYLES[asked[0].wanted['style']][0]} {styled}"
        said += f"（{len(asked)} 题，每题 {turns} 个种子）。"
        said += _forgot(seen, facts)
        return Light(NAMES[1], _color(whole, known), said, facts)


def goal_of(taught: Taught) -> dict[str, str]:
    """训练图在教什么：{"style": 画风}、{"character": "ohwx", "object": "cat"}；都不是就是空的。"""
    seen = examine([one.image for one in taught.train])
    for style in STYLES:
        if share(seen, style=style) >= MOSTLY:
            return {"style": style}
    if share(seen, character="ohwx") >= MOSTLY:
        return {"character": "ohwx", "object": "cat"}
    return {}


def _understood(taught: Taught) -> bool:
    """训练图多半认得出。"""
    seen = examine([one.image for one in taught.train])
    return Share.of([bool(one.object != UNSURE) for one in seen]) >= MOSTLY


def _styled(taught: Taught, scene: Scene) -> str:
    """这次训练的说法：共有的开头，加没练过的主体。"""
    return taught.opening + style_caption(scene).partition("，")[2]


def _named(taught: Taught, said: str) -> str:
    """把 ohwx 换成这次训练的触发词；触发词写在开头的，就写在开头。"""
    word = taught.trigger
    if word and taught.opening.strip("，, ") == word:
        return taught.opening + said.replace("ohwx ", "")
    return said.replace("ohwx", word) if word else said.replace("ohwx ", "")


def _scene(said: str, goal: Mapping[str, str]) -> Scene | None:
    """一句描述 -> 场景；没说的颜色与背景随便取一样。读不出主体就是 None。"""
    kind = "ohwx" if "character" in goal else _subject(said)
    if not kind:
        return None

    def named(options: Mapping, usual: str) -> str:
        words = {name: facts[:2] for name, facts in options.items()}
        return next((n for n, (zh, en) in words.items() if zh in said or en in said), usual)

    colors = {name: (zh, name) for name, (zh, _) in COLORS.items()}
    size, side = named(SIZES, "big"), named(SIDES, "center")
    thing = Thing(kind, named(colors, "red"), side, size)
    return Scene((thing,), named(BACKGROUNDS, "plain"), goal.get("style", ""))


def _subject(said: str) -> str:
    """描述里说的主体；几个名字都在里面，取最长的。"""
    lower = f" {said.lower()}"
    found = [k for k, (*_, zh, en) in FIGURES.items() if zh in said or f" {en.lower()}" in lower]
    return max(found, key=lambda kind: len(FIGURES[kind][2]), default="")


def _read(said: str, size, goal: Mapping[str, str]) -> Question:
    """一句提示词 -> 题：里面说到的主体要认得出，教的东西要在。"""
    kind = _subject(said)
    return Question(said, size, wanted=({"object": kind} if kind else {}) | dict(goal))


def _edits(taught: Taught, size, prompts: Sequence[str]) -> list[Question]:
    """改图的题：认得的指令用 12 张没练过的图，不认得的用留出的图自己。"""
    said = prompts[0] if prompts else taught.train[0].caption
    known = {text: name for name, (text, _) in samples.EDITS.items()}
    if name := known.get(taught.train[0].caption):
        return [
            Question(
                said, size, (render(before),), {"object": before.things[0].kind}, render(after)
            )
            for before, after in lessons.edit_pairs(name)
        ]
    own = taught.held or taught.train
    return [Question(prompts[0] if prompts else one.caption, size, one.controls, {}, one.image)
            for one in own[: lessons.EDITED]]  # fmt: skip


def _right(question: Question, image: Image.Image, verdict: Verdict) -> bool:
    if question.answer is not None:
        before, after = (
            on_white(one).resize(image.size, Image.Resampling.LANCZOS)
            for one in (question.controls[-1], question.answer)
        )
        return lessons.changed(image, before, after) and _recognised(question, verdict)
    return agrees(verdict, 0, question.wanted) and verdict.object != UNSURE


def _recognised(question: Question, verdict: Verdict) -> bool:
    """认得出，而且是题里说的东西。"""
    if "object" in question.wanted:
        return verdict.object == question.wanted["object"]
    return verdict.object != UNSURE


def _forgot(seen: Seen, facts: dict) -> str:
    plain = seen.paper.get("plain") or []
    if not plain:
        return ""
    hits = [
        agrees(verdict, 0, question.wanted)
        for images in seen.drawn["plain"]
        for question, verdict in zip(plain, examine(images), strict=True)
    ]
    kept = Share.of(hits)
    facts["kept"] = _count(kept)
    return f"不说触发词，还是普通的猫 {kept}。"


def _color(right: Share, content: Share) -> str:
    if content.interval[1] < LEAST:
        return RED
    return GREEN if right >= GOOD and right.interval[0] > LEAST else YELLOW


def _count(found: Share) -> list:
    return [found.k, found.n, *found.interval]
