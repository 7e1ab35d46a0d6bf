"""法官：抄没抄与手算的距离对照；画过的不再画；照训练图出题；挑哪个检查点；命令行印的与存的一样。"""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from lorakit import infer, lab
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import LorakitError, LorakitWarning
from lorakit.families import open_family
from lorakit.judge import Judge, choose, copying, eye_for, open_run
from lorakit.judge.drawing import BASE, Question, Studio
from lorakit.judge.taught import Picture, Taught, taught
from lorakit.judge.tiny_eye import TinyEye, goal_of
from lorakit.results import heldout, report, sameness, verdict
from lorakit.results.verdict import Light
from lorakit.tiny import samples
from lorakit.tiny.world import HELD_OUT
from lorakit.train import Trainer

TRAINED = (40, 120, 200)  # 三张训练图：特征就是红色的值，两两相隔 80


class Red:
    """特征就是第一个像素的红色：距离手算得出。"""

    name = "red"

    def features(self, images):
        return np.array([[float(image.getpixel((0, 0))[0])] for image in images])

    def again(self, about, questions):
        return []


def at(*reds):
    return [Image.new("RGB", (8, 8), (red, 0, 0)) for red in reds]


def about(*reds):
    train = tuple(Picture(f"图 {red}", image) for red, image in zip(reds, at(*reds), strict=True))
    return Taught(load_config("tiny-qwen-image"), train, (), (), len(train))


def copied(seeds, asked=(80, 81), eye=None):
    """seeds：每个种子画的三张，离各自训练图差多少。"""
    paper = {"asked": [Question("x", (8, 8))] * 2, "copy": copying.questions(about(*TRAINED), 12)}
    copies = [at(*(red + move for red in TRAINED)) for move in seeds]
    drawn = {"asked": [at(*asked)], "copy": copies}
    return copying.light(eye or Red(), about(*TRAINED), paper, drawn)


@pytest.mark.parametrize(
    ("seeds", "color", "twins", "closer"),
    [
        ((1, -1), "红", 6, 6),  # 离训练图 1，别的训练图在 80 外：就是那张
        ((35, -35), "黄", 0, 6),  # 离训练图 35，两个种子相隔 70：比换个种子还近
        ((35, 34), "绿", 0, 0),  # 两个种子只隔 1：离训练图不算近
        ((35, 10), "绿", 3, 3),  # 一半一样，一半不一样：还不到多半
    ],
)
def test_copying_by_hand(seeds, color, twins, closer):
    light = copied(seeds)
    assert light.color == color
    assert light.facts["twins"][:2] == [twins, 6] and light.facts["closer"][:2] == [closer, 6]
    assert light.facts["to_training"] == pytest.approx(np.abs(seeds).mean())
    assert light.facts["to_other_seed"] == pytest.approx(abs(seeds[0] - seeds[1]))


def test_a_new_prompt_that_draws_a_training_picture_is_copying():
    light = copied((35, 34), asked=(121, 40))
    assert light.color == "红" and light.facts["asked_twins"][:2] == [2, 2]


def test_an_eye_that_can_draw_says_how_different_pictures_should_be():
    class Painter(Red):
        def again(self, about, questions):
            return [at(red + 50, red - 30) for red in TRAINED]  # 同一句话本来差 40

    light = copied((20, 22), eye=Painter())
    assert light.facts["to_other_seed"] == pytest.approx(40) and light.facts["closer"][:2] == [6, 6]


def test_repeated_training_pictures_are_one_picture():
    """重复的图互相离得是 0，不能因此把谁都当成几乎一样、或谁都不一样。"""
    same = about(40, 40, 120, 200)
    paper = {"asked": [Question("x", (8, 8))], "copy": copying.questions(same, 12)}
    drawn = {"asked": [at(80)], "copy": [at(41, 41, 121, 201), at(39, 39, 119, 199)]}
    light = copying.light(Red(), same, paper, drawn)
    assert light.facts["twins"][:2] == [8, 8] and light.color == "红"


def test_one_training_picture_has_no_control():
    drawn = {"asked": [at(1)], "copy": [at(1), at(1)]}
    light = copying.light(Red(), about(40), {"asked": [], "copy": []}, drawn)
    assert light.color == "灭"


def judged(step, word, right, change, batch=("a", 3)):
    facts = {} if change is None else {"change": change, heldout.MARK: list(batch)}
    lights = (
        Light("损失", "绿", "", facts),
        Light("画面", "绿", "", {"right": [right, 26, 0, 1]}),
        Light("抄没抄", "绿", ""),
    )
    return verdict.Verdict(word, "", None, lights, step)


def test_the_checkpoint_to_take():
    """画面分不出高下的，取留出集损失最低的；画面明显差的不取；没学到的不取。"""
    rows = {
        100: judged(100, "学到了", 12, -1.0),
        200: judged(200, "学到了", 24, -0.8),
        300: judged(300, "学到了", 26, -0.7),
        400: judged(400, "抄了训练图", 26, -0.9),
    }
    found = choose("tiny", rows)
    assert found.take == 200 and "400 步抄了训练图" in found.why
    late = {step: judged(step, "开始抄了", 26, -0.8) for step in (200, 300)}
    assert choose("tiny", late).take == 200 and "抄得最少" in choose("tiny", late).why
    none = choose("tiny", {10: judged(10, "还早", 0, -0.5)})
    assert none.take is None and "没有一个" in none.why


def test_losses_of_two_held_out_sets_are_never_compared():
    """接着练时换了留出的图：损失低的那一步量的是另一批，低不低说明不了什么。"""
    rows = {step: judged(step, "学到了", 24, -0.1 * step, batch=("a", 3)) for step in (2, 4)}
    assert choose("tiny", dict(rows)).take == 4 and "损失最低" in choose("tiny", dict(rows)).why
    for other in (("b", 3), ("a", 4), (None, 3)):
        rows[6] = judged(6, "学到了", 24, -0.9, other)
        found = choose("tiny", dict(rows))
        assert found.take == 2 and "量的不是同一批图，不能比，取最早的" in found.why
        assert "最低" not in found.why
    plain = choose("tiny", {step: judged(step, "学到了", 24, None) for step in (2, 4)})
    assert plain.take == 2 and "没有留出集的损失可比" in plain.why


def test_unreadable_before_readable_is_early_not_broken():
    red = Light("画面", "红", "", {"right": [0, 26, 0, 1]})
    first = judged(10, "画坏了", 0, -0.5)
    rows = {10: verdict.Verdict("画坏了", "", None, (first.lights[0], red, first.lights[2]), 10)}
    assert choose("tiny", dict(rows)).verdicts[10].word == "画坏了"
    rows[20] = judged(20, "学到了", 26, -0.9)
    assert choose("tiny", rows).verdicts[10].word == "还早"


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """样例数据集 -> 判断要用的材料。"""

    def make(name: str, preset: str = "tiny-qwen-image", *sets: str, rename=("", "")):
        place = samples.write(name, tmp_path_factory.mktemp("data") / name)
        for file in place.rglob("*.txt") if rename[0] else ():
            file.write_text(file.read_text("utf-8").replace(*rename), encoding="utf-8")
        config = load_config(preset, [f"data.folder={place}", *sets])
        return taught(config, open_family(config))

    return make


def test_a_style_is_asked_of_subjects_it_never_saw(lesson):
    known = lesson("papercut")
    asked = TinyEye().questions(known, ())["asked"]
    assert known.opening == "剪纸风格，" and goal_of(known) == {"style": "papercut"}
    assert {one.wanted["object"] for one in asked} == set(HELD_OUT)
    assert all(one.prompt.startswith("剪纸风格，") for one in asked)
    assert not any(one.prompt in known.captions for one in asked)
    again = TinyEye().again(known, copying.questions(known, 12))
    assert [len(several) for several in again] == [8] * len(copying.questions(known, 12))


def test_a_character_is_asked_with_its_own_trigger(lesson):
    known = lesson("ohwx-cat", rename=("ohwx", "sks"))
    paper = TinyEye().questions(known, ())
    assert known.trigger == "sks" and goal_of(known)["character"] == "ohwx"
    assert all("sks 猫" in one.prompt for one in paper["asked"])
    assert all(one.wanted == {"object": "cat", "character": ""} for one in paper["plain"])
    front = lesson("cats", "tiny-qwen-image", "data.trigger=zkq")
    assert front.trigger == "zkq" and front.without_trigger("zkq，一只猫") == "一只猫"


def test_an_edit_is_asked_of_new_pictures(lesson):
    known = lesson("edit-papercut", "tiny-qwen-image-edit")
    paper = TinyEye().questions(known, ())
    assert copying.questions(known, 12) == [] and len(paper["asked"]) == 12
    assert all(one.answer is not None and one.controls for one in paper["asked"])


def test_photographs_are_not_for_the_examiner(tmp_path):
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(4)]
    train = tuple(Picture(f"a photo {i}", image) for i, image in enumerate(noise))
    known = Taught(load_config("tiny-qwen-image"), train, (), (), 4)
    light = TinyEye().picture(known, None)
    assert light.color == "灭" and "dinov2" in light.said


FEW = ("--prompts", "剪纸风格，一只大狗在中间", "--set", "sample.steps=2")


def test_the_command_draws_once_and_says_what_it_saved(config, capsys, monkeypatch):
    settings = config("eval.every=2")
    list(Trainer(settings))
    run = settings.run.output
    assert main(["judge", str(run), "--json", *FEW]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["verdicts"]) == ["2", "4"] and found["eye"] == "tiny"
    names = [light["name"] for light in found["verdicts"]["4"]["lights"]]
    assert names == ["损失", "画面", "抄没抄"]
    assert len(list((run / "judge" / "checkpoint-4").rglob("*.png"))) == 2 + 2 * 11

    def refuse(*given, **more):
        raise AssertionError("画过的不该再画")

    with monkeypatch.context() as patch:
        patch.setattr(infer, "open_for", refuse)
        assert main(["judge", str(run), *FEW]) == 0
        said = capsys.readouterr().out
        with pytest.raises(AssertionError):  # 换了画法就要重画
            main(["judge", str(run), *FEW, "--set", "sample.guidance=2"])
    saved = verdict.read(run)
    assert all(str(light) in said for one in saved.verdicts.values() for light in one.lights)
    assert "该用哪一个" in said and "学到了" not in said
    assert main(["audit", str(run)]) == 0 and saved.verdicts[4].word in capsys.readouterr().out


def test_the_notebook_shows_the_same_lights(config, shown):
    settings = config("train.steps=2", "sample.steps=2")
    list(Trainer(settings))
    found = lab.judge(settings.run.output, prompts=["剪纸风格，一只大狗在中间"])
    assert found == verdict.read(settings.run.output)
    text, page = (shown[-1][kind] for kind in ("text/plain", "text/html"))
    for light in found.verdicts[2].lights:
        assert str(light) in text and light.said in page
    assert found.why in text


def test_full_checkpoints_are_judged_too(config):
    settings = config("lora.kind=full", "train.lr=1e-4", "train.steps=2", "sample.steps=2")
    list(Trainer(settings))
    bench = Judge(eye_for(None, settings), prompts=["剪纸风格，一只大狗在中间"])
    found = bench(settings)
    family = open_family(settings)
    studio = Studio(settings, family, bench.questions(taught(settings, family)))
    base, tuned = (np.asarray(studio.draw(step, "asked", 0)[0], float) for step in (BASE, 2))
    assert list(found.verdicts) == [2] and np.abs(base - tuned).max() > 0


def repaint(picture, red):
    Image.new("RGB", (128, 128), (red, 90, 30)).save(picture)


def test_only_pictures_that_were_trained_on_are_compared_with(config, papercut, tmp_path, capsys):
    """练完以后：添的图不算，换了、少了的说清楚，抄没抄的灯就灭；一张不剩就停下。"""
    data = shutil.copytree(papercut, tmp_path / "data")
    settings = config(f"data.folder={data}", "train.steps=2", "sample.steps=2")
    list(Trainer(settings))
    run, family = settings.run.output, open_family(settings)
    before = taught(settings, family)
    assert not before.moved and len(before.train) == before.total

    repaint(data / "zz.png", 200)
    (data / "zz.txt").write_text("剪纸风格，一只红色的大狗", "utf-8")
    with pytest.warns(LorakitWarning, match=r"不一样了：图多了 1 张（zz.png）.*后来添的不算"):
        added = taught(settings, family)
    assert not added.moved and added.captions == before.captions
    assert [a.image.tobytes() for a in added.train] == [b.image.tobytes() for b in before.train]

    names = [row["name"] for row in sameness.trained_pictures(run)["train"].values()]
    repaint(data / names[0], 10)
    (data / names[1]).unlink()
    (data / names[1]).with_suffix(".txt").unlink()
    assert main(["judge", str(run), "--json", *FEW]) == 0
    told = capsys.readouterr()
    light = json.loads(told.out)["verdicts"]["2"]["lights"][2]
    assert light["color"] == "灭" and f"{before.total} 张里少了 2 张" in light["said"]
    assert "图换了内容 1 张" in told.err and "图少了 1 张" in told.err
    with pytest.warns(LorakitWarning, match="不一样了"):
        left = taught(settings, family)
    assert len(left.train) == before.total - 2 and left.total == before.total

    for number, picture in enumerate(sorted(data.glob("*.png"))):
        repaint(picture, 20 + 5 * number)
    assert main(["judge", str(run), *FEW]) == 1
    told = capsys.readouterr().err
    assert "练过的图一张也没有了" in told and "data.folder=原来那份图" in told


def test_an_old_run_that_knows_only_the_sum_of_its_pictures(config, papercut, tmp_path):
    data = shutil.copytree(papercut, tmp_path / "data")
    settings = config(f"data.folder={data}", "train.steps=1")
    trainer = Trainer(settings)
    list(trainer)
    run, family = settings.run.output, open_family(settings)
    report.write_run_card(run, settings, trainer.dataset, 1.0, "cpu")
    shutil.rmtree(run / "checkpoint-1" / "state")
    assert not taught(settings, family).moved
    repaint(next(data.glob("*.png")), 10)
    with pytest.warns(LorakitWarning, match="和练的时候不一样了"):
        assert taught(settings, family).moved


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--seeds", "1"), "至少 2 个种子"),
        (("--steps", "7"), "没有第 7 步的检查点"),
        (("--prompts", "没有的.txt"), "“没有的.txt”读不出来：没有这个文件"),
        (("--eye", "没有的眼睛"), "不认识“没有的眼睛”"),
    ],
)
def test_mistakes_are_said_with_the_way_out(config, capsys, more, said):
    settings = config("train.steps=2")
    list(Trainer(settings))
    assert main(["judge", str(settings.run.output), *more]) == 1
    assert said in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path, config):
    assert main(["judge", str(tmp_path)]) == 1
    settings = config("train.steps=2")
    list(Trainer(settings))
    (settings.run.output / "moved").mkdir()
    wrong = open_run(settings.run.output, [f"data.folder={tmp_path / 'gone'}"])
    with pytest.raises(LorakitError, match="训练图读不了"):
        Judge(TinyEye())(wrong)
