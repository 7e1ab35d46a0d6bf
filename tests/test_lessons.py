"""一分钟的课：考官给标准答案满分、给没学过的零分；编辑底模会它该会的、不会留给 LoRA 的。"""

import numpy as np
import pytest

from lorakit.config import load_config
from lorakit.errors import LorakitError
from lorakit.families import open_family
from lorakit.tiny import lessons
from lorakit.tiny.samples import NAMES as DATASETS
from lorakit.tiny.samples import character_scene
from lorakit.tiny.world import render


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


def test_lessons_are_sample_sets_and_unknown_ones_are_named():
    assert set(lessons.NAMES) <= set(DATASETS)
    with pytest.raises(LorakitError, match="没有叫“oil”的课。可选：papercut"):
        lessons.lesson("oil")


def test_edit_base_knows_night_but_not_line_drawing(monkeypatch):
    """底模会“变成夜晚”，不会“变成线稿”：后者留给 LoRA 学。"""
    from lorakit import infer

    monkeypatch.setattr(lessons, "EDITED", 3)
    config = load_config("tiny-qwen-image-edit", ["sample.steps=6"])
    family = open_family(config)
    pipe = infer.open_pipeline(family)
    shares = {}
    for name in ("edit-night", "edit-lineart"):
        lesson = lessons.lesson(name)
        shares[name] = lesson.judge(lesson.draw(family, pipe, config.sample))["改成了"]
    assert shares["edit-night"] >= 0.9 and shares["edit-lineart"] == 0
