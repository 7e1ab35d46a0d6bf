"""训练的算术：与手算的值比，也与真正的批次比。"""

import pytest

from lorakit.data import Batches
from lorakit.training.plan import Plan


def plan(**changes) -> Plan:
    facts = dict(pictures=24, repeats=1, batch_size=8, grad_accum=1, processes=1, steps=300)
    return Plan(**facts | {"batches_per_epoch": 3} | changes)


def test_by_hand():
    assert plan().epochs == 100 and plan().views == 100 and plan().per_step == 8
    assert plan(grad_accum=2, processes=2).epochs == 400
    assert plan(repeats=2, batches_per_epoch=6).views == 100
    assert plan().steps_for(10) == 30 and plan(grad_accum=4).steps_for(10) == 8


@pytest.mark.parametrize(("steps", "word"), [(9, "学不会"), (300, ""), (3000, "死记硬背")])
def test_warns_when_far_from_usual(steps, word):
    text = plan(steps=steps).text()
    assert ("提醒" in text) == bool(word) and word in text


def test_small_batches_and_huge_steps_are_told():
    assert "凑不满" not in plan().text() and "提醒" not in plan(grad_accum=3, steps=100).text()
    assert "每轮 24 张，分成 4 批（有的凑不满）" in plan(batches_per_epoch=4).text()
    said = plan(grad_accum=4, steps=75).text()
    assert "提醒：一步要看 32 张，比一轮的 24 张还多" in said and "train.grad_accum" in said


def test_agrees_with_the_real_batches():
    batches = Batches(["a"] * 10 + ["b"] * 3, batch_size=4, seed=0, repeats=2)
    facts = plan(
        pictures=13, repeats=2, batch_size=4, steps=21, batches_per_epoch=batches.per_epoch
    )
    seen = sum(len(batches.batch(k)) for k in range(facts.steps_for(3)))
    assert seen == 13 * 2 * 3
