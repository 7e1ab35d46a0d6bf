"""证据：比例的区间、两边的差，与论文和表里的值对照；一个种子、区间含 0 的都不算数。"""

import copy
import json
import math

import numpy as np
import pytest

from lorakit import lab
from lorakit.errors import LorakitError
from lorakit.results.evidence import (
    Share,
    claim,
    mean_difference,
    newcombe,
    newcombe_paired,
    student,
    wilson,
)


def test_a_share_is_a_number_that_knows_its_n():
    share = Share(9, 12)
    assert share == 0.75 and f"{share:.0%}" == "75%" and json.dumps(share) == "0.75"
    assert str(share) == f"{share}" == repr(share) == "9/12（43–95%）"
    assert str(lab.share(9, 12)) == "9/12（43–95%）"
    again = copy.deepcopy(Share.of([True, False]))
    assert (again.k, again.n, again.hits) == (1, 2, (True, False))


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [  # Clopper–Pearson 的边上有闭式：0/n 的上边是 1 - 0.025^(1/n)，n/n 的下边是 0.025^(1/n)
        (0, 13, 0.0, 1 - 0.025 ** (1 / 13)),
        (13, 13, 0.025 ** (1 / 13), 1.0),
        (1, 1, 0.025, 1.0),
        (10, 20, 0.27196, 0.72804),  # R 的 binom.test(10, 20)
        (900, 3000, 0.28363, 0.31676),
    ],
)
def test_the_interval_of_a_share(k, n, low, high):
    assert Share(k, n).interval == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_a_share_needs_pictures(k, n):
    with pytest.raises(LorakitError, match="至少一张"):
        Share(k, n)


def test_differences_equal_newcombe_1998():
    """Newcombe 的两篇论文里的例子，第 10 种方法。"""
    assert newcombe(Share(56, 70), Share(48, 80)) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert newcombe(Share(0, 10), Share(0, 10)) == pytest.approx((-0.2775, 0.2775), abs=1e-4)
    one = [True] * 36 + [True] * 12 + [False] * 2
    two = [True] * 36 + [False] * 12 + [True] * 2
    assert newcombe_paired(one, two) == pytest.approx((0.0569, 0.3404), abs=1e-4)
    assert wilson(Share(81, 263)) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_the_t_table_and_welch():
    for free, value in ((1, 12.7062), (2, 4.3027), (5, 2.5706), (30, 2.0423), (1000, 1.9623)):
        assert student(free) == pytest.approx(value, abs=1e-4)
    one, two = [3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 2.5]
    parts = np.var(one, ddof=1) / 4, np.var(two, ddof=1) / 3
    free = sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 2)
    half = student(free) * math.sqrt(sum(parts))
    middle = 4.5 - 5.5 / 3
    assert mean_difference(one, two, False) == pytest.approx((middle, middle - half, middle + half))
    paired = mean_difference([3.0, 4.0, 5.0], [1.0, 2.5, 3.0], True)
    gap = np.array([2, 1.5, 2])
    half = student(2) * gap.std(ddof=1) / math.sqrt(3)
    assert paired == pytest.approx((gap.mean(), gap.mean() - half, gap.mean() + half))


def test_a_claim_needs_its_interval_and_two_seeds():
    wide = claim({0: Share(5, 6), 1: Share(4, 6)}, {0: Share(3, 6), 1: Share(3, 6)}, "带触发词")
    assert not wide.holds and wide.low < 0 < wide.high and "不能说两边不一样" in wide.sentence
    clear = {0: Share(8, 12), 1: Share(9, 12)}, {0: Share(12, 12), 1: Share(12, 12)}
    found = claim(*clear)
    assert found.holds and found.seeds == 2 and found.high < 0
    assert "17/24" in found.sentence and "24/24" in found.sentence and "-29" in found.sentence
    once = claim(Share(2, 24), Share(24, 24))
    assert not once.holds and once.high < 0 and "只有一个种子" in once.sentence


def test_the_same_questions_are_compared_in_pairs():
    """每题都好一点点：成对比看得出，不成对看不出。"""
    before = {0: [1.0, 5.0, 9.0], 1: [2.0, 6.0, 10.0]}
    after = {seed: [v + 0.5 + 0.01 * i for i, v in enumerate(x)] for seed, x in before.items()}
    found = claim(after, before, "损失")
    assert found.paired and found.holds and found.difference == pytest.approx(0.51)
    apart = claim({2: after[0], 3: after[1]}, before)
    assert not apart.paired and not apart.holds
    hits = [True] * 10 + [False] * 2
    same = claim({0: hits, 1: hits}, {0: hits, 1: hits})
    assert same.paired and same.difference == 0 and not same.holds


def test_one_number_each_has_no_interval():
    found = claim({0: 0.4}, {0: 0.9})
    assert not found.holds and "说不出区间" in found.sentence and math.isinf(found.high)


def test_a_claim_compares_like_with_like():
    for pair in (({0: Share(1, 2)}, {0: 0.5}), ({}, {}), ({0: Share(1, 2)}, {})):
        with pytest.raises(LorakitError, match="同一种"):
            claim(*pair)


def test_lab_claim_prints_the_interval(shown):
    found = lab.claim({0: [True] * 12, 1: [True] * 12}, {0: [False] * 12, 1: [False] * 12}, "画风")
    assert found.holds and shown[0]["text/plain"] == found.sentence
    assert "画风：24/24" in found.sentence and "95% 区间" in found.sentence
