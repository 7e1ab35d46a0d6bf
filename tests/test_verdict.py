"""判断与看板：只看损失最多说“损失降了”，三个灯都好才是学到了；看板什么时候都画得出来。"""

import json
import math

import numpy as np
import pytest
from PIL import Image

from lorakit import lora
from lorakit.results import board, checkpoint
from lorakit.results import folder as run_folder
from lorakit.results.verdict import FEW, Judgement, Light, judge, last, read, save
from lorakit.train import Trainer

BASE = np.linspace(3.0, 0.5, 8)  # 8 个 t 的损失


def metrics(**factors: float) -> list[dict]:
    """step_N=倍数 -> 记录；每张图、每个 t 都乘同一个倍数，外加一点固定的起伏。"""
    wave = 1 + 0.02 * np.tile([1, -1], 8).reshape(2, 8)
    rows = []
    for name, factor in factors.items():
        step = int(name.removeprefix("step_"))
        each = np.stack([BASE, BASE]) * factor * (wave if step else 1)
        rows.append({"step": step, "held": float(each.mean()), "held_each": each.tolist()})
    return rows


@pytest.mark.parametrize(
    ("factors", "word", "best"),
    [
        (dict(step_0=1, step_10=0.7, step_20=0.5), "损失降了", 20),
        (dict(step_0=1, step_10=0.5, step_20=0.8), "过拟合", 10),
        (dict(step_0=1, step_10=0.995, step_20=0.994), "还没", 20),
        (dict(step_0=1, step_10=1.3, step_20=1.5), "还没", 0),
        (dict(step_0=1, step_10=0.97), "损失降了", 10),
        (dict(step_10=1.3), "没法比", None),  # 量了，只是没有第 0 步的
    ],
)
def test_verdicts(factors, word, best):
    verdict = judge(metrics(**factors))
    assert (verdict.word, verdict.best) == (word, best)
    more = "损失变差了" if factors.get("step_20", 1) > 1 else "损失没有变"
    assert verdict.phrase == (f"还没学到，{more}" if word == "还没" else word)


def test_the_change_and_its_error_by_hand():
    rows = [
        {"step": 0, "held": 2.0, "held_each": [[1.0, 2.0], [2.0, 3.0]]},
        {"step": 5, "held": 1.0, "held_each": [[0.5, 1.0], [1.0, 1.2]]},
    ]
    ratios = [math.log(0.5)] * 3 + [math.log(0.4)]
    mean, error = np.mean(ratios), np.std(ratios, ddof=1) / 2
    said = f"{math.exp(mean) - 1:+.0%} ± {math.exp(mean) * error:.0%}"
    assert said in judge(rows).sentence and judge(rows).word == "损失降了"


def test_a_sure_but_invisible_change_is_not_learning():
    each = np.stack([BASE, BASE])
    rows = [
        {"step": s, "held": 1, "held_each": (each * f).tolist()} for s, f in ((0, 1), (9, 0.999))
    ]
    verdict = judge(rows)
    assert verdict.word == "还没" and "-0.1% ± 0.0%，小得看不出来" in verdict.sentence


def test_better_on_average_but_broken_at_one_t_is_not_learning():
    """学习率太大时，模型会忘掉输入、只猜平均：平均的损失可以比以前低，画出来却是一片花。"""
    rows = metrics(step_0=1, step_10=0.7)
    each = np.array(rows[1]["held_each"])
    each[:, -1] *= 1.9
    rows[1] |= {"held": each.mean(), "held_each": each.tolist()}
    verdict = judge(rows)
    assert verdict.word == "还没" and verdict.phrase == "还没学好，有的 t 损失变差了"
    assert "t = 0.94 时反而差了 +30%" in verdict.sentence and "除以 3" in verdict.sentence


def test_loss_alone_never_says_it_learned():
    """光是损失降，不算学到了；画面与抄没抄的灯没看过，是灭的。"""
    for factors in (dict(step_0=1, step_10=0.2), dict(step_0=1, step_10=0.5, step_20=0.8), {}):
        verdict = judge(metrics(**factors) if factors else [])
        assert "学到" not in verdict.text()
        assert [light.color for light in verdict.lights[1:]] == ["灭", "灭"]
    assert "lorakit judge" in judge(metrics(step_0=1, step_10=0.2)).sentence


def lights(picture: str, copied: str):
    return Light("画面", picture, "画。"), Light("抄没抄", copied, "抄。")


@pytest.mark.parametrize(
    ("factor", "picture", "copied", "views", "word"),
    [
        (0.5, "绿", "绿", 50, "学到了"),
        (0.5, "黄", "绿", 50, "还早"),
        (0.5, "红", "绿", 50, "画坏了"),
        (0.5, "红", "绿", FEW - 1, "还早"),  # 没看几遍就认不出来：不是坏了
        (0.5, "绿", "黄", 50, "开始抄了"),
        (0.5, "绿", "红", 50, "抄了训练图"),
        (0.5, "黄", "红", 50, "抄了训练图"),
        (0.5, "灭", "绿", 50, "看不出"),
        (0.5, "绿", "灭", 50, "说不准"),  # 没看抄没抄，就不说没有照抄
        (1.5, "绿", "绿", 50, "说不准"),
        (1.0, "绿", "绿", 50, "说不准"),
    ],
)
def test_three_lights_make_one_word(factor, picture, copied, views, word):
    rows = metrics(step_0=1, step_10=factor)
    verdict = judge(rows, 10, *lights(picture, copied), views)
    assert verdict.word == word and [light.name for light in verdict.lights] == [
        "损失",
        "画面",
        "抄没抄",
    ]
    assert all(str(light) in verdict.text() for light in verdict.lights)


def test_each_checkpoint_is_judged_by_its_own_loss():
    rows = metrics(step_0=1, step_10=0.5, step_20=0.8, step_30=1.4)
    colors = [judge(rows, step).lights[0].color for step in (10, 20, 30)]
    assert colors == ["绿", "黄", "红"]
    assert judge(rows, 12).lights[0].facts["step"] == 10  # 没有正好那一步的检验，用最近的
    assert judge([], 10, *lights("绿", "绿")).word == "学到了"  # 没有留出集，看过图也能说


def test_a_judgement_is_kept_until_the_weights_change(config):
    settings = config("eval.every=2")
    list(Trainer(settings))
    run, rows = settings.run.output, run_folder.read(settings.run.output)
    assert read(run) is None and last(run, rows).lights[1].color == "灭"
    verdicts = {step: judge(rows, step, *lights("绿", "绿"), 50) for step in (2, 4)}
    save(run, Judgement("tiny", verdicts, 2, "因为"))
    assert read(run) == Judgement("tiny", verdicts, 2, "因为")
    assert last(run, rows) == verdicts[4]
    facts = run / "checkpoint-4" / "state" / "state.json"
    facts.write_text(facts.read_text().replace('"checksum": "', '"checksum": "0'))
    assert list(read(run).verdicts) == [2] and last(run, rows).lights[1].color == "灭"
    (run / "judge.json").write_text("[]")
    assert read(run) is None


def test_worse_and_not_enough_get_different_advice():
    assert "除以 3" in judge(metrics(step_0=1, step_10=1.5)).sentence
    assert "乘 3" in judge(metrics(step_0=1, step_10=1.0)).sentence


def test_board_at_every_stage(config, tmp_path):
    assert Image.open(board.plot(tmp_path / "nothing")).width == 1200
    settings = config("eval.every=2")
    list(Trainer(settings))
    run = settings.run.output
    plain = Image.open(board.plot(run)).size
    (run / "samples").mkdir()
    for step in (0, 4):
        Image.new("RGB", (64, 64), "red").save(run / "samples" / f"{step}_0.png")
    assert Image.open(board.plot(run)).height > plain[1]
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert np.mean(first["held_each"]) == pytest.approx(first["held"])


def test_block_norms_equal_the_multiplied_out_matrices(config):
    settings = config("lora.alpha=8", "lora.variant=rslora")
    list(Trainer(settings))
    file = checkpoint.latest(settings.run.output) / lora.FILE
    tensors, _ = lora.read(file)
    norms = lora.delta_norms(tensors)
    assert list(norms) == ["0", "1", "2", "3"]
    assert norms == pytest.approx(run_folder.read(settings.run.output)[-1]["delta"])
    total = sum(
        (tensors[name.replace("lora_A", "lora_B")] @ a).pow(2).sum().item()
        for name, a in tensors.items()
        if "lora_A" in name
    )
    assert sum(n * n for n in norms.values()) == pytest.approx(total, rel=1e-4)
