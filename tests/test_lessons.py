"""一分钟的课：考官给标准答案满分、给没学过的零分；编辑底模会它该会的、不会留给 LoRA 的。"""

from dataclasses import replace

import numpy as np
import pytest

from lorakit import infer
from lorakit.config import load_config
from lorakit.errors import LorakitError
from lorakit.families import open_family
from lorakit.tiny import lessons, samples
from lorakit.tiny.examiner import clear, examine, share, solid
from lorakit.tiny.samples import NAMES as DATASETS
from lorakit.tiny.samples import character_scene
from lorakit.tiny.world import random_scene, render


def test_style_lesson_judges_answers_and_others():
    lesson = lessons.lesson("inkwash")
    answers = [render(scene) for scene in lessons.exam_scenes("inkwash")]
    others = [render(scene) for scene in lessons.exam_scenes("porcelain")]
    assert min(lesson.judge(answers).values()) == 1
    assert lesson.judge(others)["是水墨风格的"] == 0


def test_character_lesson_judges_answers_and_forgetting():
    lesson, rng = lessons.lesson("ohwx-cat"), np.random.default_rng(0)
    cats = [render(character_scene(rng, kind)) for kind in ("ohwx", "cat") for _ in range(12)]
    assert min(lesson.judge(cats).values()) == 1
    forgot = lesson.judge(cats[:12] * 2)  # 不带触发词也画成了它
    assert list(forgot.values()) == [1, 0]


@pytest.mark.parametrize("name", [name for name in lessons.NAMES if name.startswith("edit-")])
def test_edit_lesson_judges_answers_and_unchanged_pictures(name):
    lesson = lessons.lesson(name)
    before, after = zip(*lesson._rendered(), strict=True)
    assert lesson.judge(after)["改成了"] == 1
    assert lesson.judge(before)["改成了"] == 0


def test_sticker_lesson_wants_red_things_without_a_background():
    lesson = lessons.lesson("sticker")
    assert min(lesson.judge(lesson.answers()).values()) == 1
    framed = [one.convert("RGBA") for one in lessons.lesson("papercut").answers()]
    assert lesson.judge(framed)["是透明底的红色剪纸"] == 0


def test_lessons_are_sample_sets_and_unknown_ones_are_named():
    assert set(lessons.NAMES) <= set(DATASETS)
    with pytest.raises(LorakitError, match="没有叫“oil”的课。可选：papercut"):
        lessons.lesson("oil")


def test_edit_base_knows_night_but_not_line_drawing(monkeypatch):
    """底模会“变成夜晚”，不会“变成线稿”：后者留给 LoRA 学。"""
    monkeypatch.setattr(lessons, "EDITED", 3)
    config = load_config("tiny-qwen-image-edit", ["sample.steps=6"])
    family = open_family(config)
    pipe = infer.open_pipeline(family)
    shares = {}
    for name in ("edit-night", "edit-lineart"):
        lesson = lessons.lesson(name)
        shares[name] = lesson.judge(lesson.draw(family, pipe, config.sample))["改成了"]
    assert shares["edit-night"] >= 0.9 and shares["edit-lineart"] == 0


def test_the_2_1_miniature_draws_edits_and_knows_transparency_but_no_stickers():
    """底模会照描述画、会透明底、会改图；“贴纸”它没见过，留给 LoRA 学。"""
    config = load_config("tiny-qwen-image-2.1", ["data.alpha=keep", "sample.steps=16"])
    family = open_family(config)
    pipe = infer.open_pipeline(family)
    said = [f"一只{one}在中间，背景是{where}" for where in ("透明底", "草地")
            for one in ("红色的大猫", "蓝色的大狗", "绿色的大鱼")]  # fmt: skip
    drawn = infer.generate(family, pipe, said, config.sample, lessons.SQUARE)
    cut, whole = drawn[:3], drawn[3:]
    assert all(map(clear, cut)) and all(map(solid, whole))
    kinds, colors = ["cat", "dog", "fish"] * 2, ["red", "blue", "green"] * 2
    assert share(examine(drawn), object=kinds, color=colors) >= 0.8
    day = random_scene(np.random.default_rng(2), two=0.0)
    day = replace(day, background="meadow")
    (night,) = infer.edit(
        family, pipe, ["变成夜晚"], [[render(day)]], config.sample, lessons.SQUARE
    )
    assert examine([night])[0].background == "night" and solid(night)
    asked = [samples.sticker(scene)[1] for scene in lessons.exam_scenes("papercut")[:3]]
    drawn = infer.generate(family, pipe, asked, config.sample, lessons.SQUARE)
    assert not any(clear(one) for one in drawn) and not any("透明" in one for one in asked)
