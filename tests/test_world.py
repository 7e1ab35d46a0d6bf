"""小世界：同一场景同一像素；描述说的就是画的；底模的训练集里没有画风与 ohwx。"""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lorakit.tiny import samples
from lorakit.tiny.examiner import UNSURE, examine, share
from lorakit.tiny.figures import FIGURES
from lorakit.tiny.pen import ROLES
from lorakit.tiny.pretrain import corpus
from lorakit.tiny.styles import STYLES, painter
from lorakit.tiny.world import (
    BACKGROUNDS,
    COLORS,
    FIXED,
    HELD_OUT,
    OBJECTS,
    TRAINED,
    caption,
    random_scene,
    render,
    style_scenes,
)


def test_edits_leave_the_thing_in_its_place():
    """只换背景，东西一个像素也不动；不然改图的数据教的就是乱翻、乱跳。"""
    for seed in range(8):
        scene = random_scene(np.random.default_rng(seed), two=0.0)
        thing = replace(scene.things[0], kind="cat", size="big")
        pair = (
            np.asarray(render(replace(scene, things=(thing,), background=name)), int)
            for name in ("meadow", "night")
        )
        same = (np.subtract(*pair) == 0).all(-1)
        assert 0.1 < same.mean() < 0.5


def test_sizes_of_the_world():
    assert len(OBJECTS) >= 24 and len(COLORS) == 10 and len(BACKGROUNDS) == 8 and len(STYLES) == 5
    assert set(TRAINED).isdisjoint(HELD_OUT) and set(TRAINED) | set(HELD_OUT) == set(OBJECTS)


def test_same_scene_same_pixels():
    scene = random_scene(np.random.default_rng(3))
    assert render(scene).tobytes() == render(scene).tobytes()
    assert render(scene).tobytes() != render(replace(scene, seed=scene.seed + 1)).tobytes()


@pytest.mark.parametrize("style", ["", *STYLES])
def test_every_role_has_a_colour(style):
    colors = dict.fromkeys(FIXED, (0, 0, 0)) | dict.fromkeys(
        ("body", "shade", "light", "wall"), (1, 1, 1)
    )
    assert set(ROLES) <= set(colors)
    for role in ROLES:
        assert len(painter(style, colors)(role)) == 4


@pytest.mark.parametrize("english", [False, True])
def test_full_caption_names_everything(english):
    for seed in range(40):
        scene = random_scene(np.random.default_rng(seed), two=0.3)
        text = caption(scene, english=english)
        for thing in scene.things:
            assert FIGURES[thing.kind][3 if english else 2] in text
            assert (thing.color if english else COLORS[thing.color][0]) in text
        assert BACKGROUNDS[scene.background][1 if english else 0] in text


def test_base_corpus_never_shows_what_loras_learn():
    _, texts, scenes = corpus.base_corpus(60, workers=1)
    assert {s.style for s in scenes} == {""} and all(
        not t.hat and t.kind != "ohwx" for s in scenes for t in s.things
    )
    said = "".join(text for group in texts for text in group)
    assert "剪纸" not in said and "ohwx" not in said and "水墨" not in said


@pytest.mark.parametrize("name", samples.NAMES)
def test_sample_sets_are_ordinary_folders(tmp_path, name):
    folder = samples.write(name, tmp_path / name, count=4)
    pictures = sorted((folder / "images" if name.startswith("edit") else folder).glob("*.png"))
    assert len(pictures) == 4
    for picture in pictures:
        assert Image.open(picture).size == (128, 128)
        text = picture.with_suffix(".txt").read_text(encoding="utf-8").strip()
        assert text
        if name.startswith("edit"):
            before = folder / "control" / picture.name
            assert before.is_file() and before.read_bytes() != picture.read_bytes()
        if name in STYLES:
            assert text.startswith(STYLES[name][0])
    if name == "ohwx-cat":
        assert all("ohwx 猫" in p.read_text(encoding="utf-8") for p in folder.glob("*.txt"))


@pytest.mark.parametrize("style", ["", *STYLES])
def test_the_examiner_knows_the_world(style):
    scenes = style_scenes(style, OBJECTS, 78, seed=31)
    whole = zip(examine([render(scene) for scene in scenes]), scenes, strict=True)
    known = [(verdict, scene) for verdict, scene in whole if verdict.object != UNSURE]
    assert len(known) >= 0.95 * len(scenes)  # 认得的世界，很少说看不出
    verdicts, scenes = zip(*known, strict=True)
    assert share(verdicts, style=style) >= 0.97
    assert share(verdicts, object=[s.things[0].kind for s in scenes]) >= 0.98
    assert share(verdicts, side=[s.things[0].side for s in scenes]) >= 0.95
    assert share(verdicts, character="") >= 0.97


def test_the_examiner_knows_the_cat():
    rng = np.random.default_rng(8)
    verdicts = examine([render(samples.character_scene(rng)) for _ in range(40)])
    assert share(verdicts, character="ohwx") >= 0.97
