"""三个灯在十一种训练上：记下的每一种都亮了该亮的颜色；其中最会骗人的一种当场再练一遍。"""

import json

import pytest
from measure_lights import CASES, RECORDED, measure

DONE = json.loads(RECORDED.read_text("utf-8"))


@pytest.mark.parametrize("name", CASES)
def test_each_case_shows_the_lights_it_must(name):
    case, found = CASES[name], DONE[name]
    assert found["step"] == case.step and found["word"] == case.word
    for color, allowed in zip(found["lights"], case.lights, strict=True):
        assert color in allowed, (name, found["said"])


def test_the_recorded_cases_are_these_cases():
    assert list(DONE) == list(CASES) and len(CASES) == 11


def test_twelve_steps_fool_the_loss_and_not_the_judge(tmp_path):
    """练 12 步：损失降了一半多，画面还是一锅粥；判断要说还早，不能说学到了。"""
    found = measure("12 步", tmp_path)
    assert found["word"] == "还早" and found["lights"][0] == "绿"
    assert found["facts"][0]["change"] < -0.5  # 留出集损失降了四成以上
    k, n, *_ = found["facts"][1]["right"]
    assert k / n < 0.2 and n == 26
