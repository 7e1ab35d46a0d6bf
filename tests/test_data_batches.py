"""分桶、裁切、留出、分批：不变形、不丢图、由种子决定、从哪一步接着都一样快。"""

import hashlib
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit.data import Batches, Record, bucket_for, buckets, fit, split_holdout
from lorakit.errors import DataError

GOOD = "一只猫"


def picture(size):
    return Image.linear_gradient("L").resize(size).convert("RGB")


# ---- 分桶与裁切 ----


GRIDS = [(32, 16), (48, 16), (64, 16), (96, 16), (128, 8), (256, 16), (512, 32), (1024, 16)]


@pytest.mark.parametrize(("resolution", "multiple"), [*GRIDS, (1328, 16)])
def test_buckets(resolution, multiple):
    sizes = buckets(resolution, multiple)
    assert (resolution, resolution) in sizes and len(set(sizes)) == len(sizes)
    for width, height in sizes:
        assert width % multiple == height % multiple == 0 and (height, width) in sizes
        assert abs(width * height / resolution**2 - 1) < 0.15
        assert 0.5 <= width / height <= 2
        assert bucket_for((width * 3, height * 3), resolution, multiple) == (width, height)
    if resolution >= 16 * multiple:  # 够细：2:1 以内的图最多裁掉一小条
        aspects = sorted(math.log(w / h) for w, h in sizes)
        assert max(b - a for a, b in pairwise(aspects)) < 2 * math.log(1.08)
        assert aspects[-1] > math.log(1.7)
    with pytest.raises(DataError):
        buckets(resolution + 1, multiple)


@pytest.mark.parametrize(
    "size", [(64, 48), (1000, 333), (333, 1000), (4000, 3000), (37, 91), (64, 64)]
)
def test_fit_never_distorts(size):
    for target in buckets(128, 16):
        image, box = fit(picture(size=size), target)
        left, top, right, bottom = box
        assert image.size == target
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
        assert abs((right - left) / (bottom - top) / (target[0] / target[1]) - 1) < 1e-9
        # 只裁一个方向，而且居中
        assert math.isclose(right - left, size[0]) or math.isclose(bottom - top, size[1])
        assert math.isclose(left, size[0] - right) and math.isclose(top, size[1] - bottom)


def test_fit_takes_the_centre():
    image = Image.new("RGB", (300, 100), "blue")
    image.paste("red", (100, 0, 200, 100))
    square, box = fit(image, (64, 64))
    assert box == (100, 0, 200, 100)
    assert np.asarray(square)[:, 4:-4].reshape(-1, 3).min(0).tolist() == [255, 0, 0]


# ---- 留出 ----


def some_records(count: int, start: int = 0) -> list[Record]:
    return [
        Record(Path(f"{i}.png"), GOOD, (64, 64), hashlib.sha256(str(i).encode()).hexdigest())
        for i in range(start, start + count)
    ]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("count", [4, 5, 20, 400])
def test_holdout_sizes(count, fraction):
    for start in range(0, 3000, 1000):
        records = some_records(count, start)
        train, held = split_holdout(records, fraction)
        assert held and train
        assert sorted([*train, *held], key=records.index) == records
        assert [*train] == sorted(train, key=records.index)
        assert len(held) <= max(1, round(2 * fraction * count))
        if count == 400:
            assert abs(len(held) / count - fraction) < 0.08
        assert split_holdout(records, fraction) == (train, held)


def test_holdout_none():
    assert split_holdout(some_records(10), 0) == (some_records(10), [])
    assert split_holdout(some_records(3), 0.5) == (some_records(3), [])
    assert split_holdout([], 0.5) == ([], [])


def test_holdout_is_stable():
    """添一张、换顺序、改名、改描述，别的图都不换边。"""
    records = some_records(40)
    _, held = split_holdout(records, 0.25)
    moved = 0
    for new in some_records(100, 1000):
        _, after = split_holdout([new, *reversed(records)], 0.25)
        moved += {r.digest for r in held} != {r.digest for r in after} - {new.digest}
    assert moved == 0
    renamed = [Record(Path("x") / r.path, "别的", r.size, r.digest) for r in records]
    assert [r.digest for r in split_holdout(renamed, 0.25)[1]] == [r.digest for r in held]


def test_holdout_of_few_pictures_seldom_moves():
    """二十张图添一张：原来留出的偶尔回去训练，训练过的很少变成留出的。"""
    back = leaked = 0
    for start in range(0, 30000, 100):
        records, new = some_records(20, start), some_records(1, 10**6 + start)
        held = {r.digest for r in split_holdout(records, 0.1)[1]}
        after = {r.digest for r in split_holdout([*records, *new], 0.1)[1]}
        back += bool(held - after)
        leaked += bool(after - held - {new[0].digest})
    assert back <= 300 * 0.05 and leaked == 0


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("times", [2, 3])
def test_copies_stay_on_one_side(fraction, times):
    """练过的图不拿来检验：几份内容相同的图不会一份留出、一份训练。"""
    for start in range(0, 20000, 100):
        once = some_records(6, start)
        records = [Record(Path(f"{k}") / r.path, GOOD, r.size, r.digest)
                   for k in range(times) for r in once]  # fmt: skip
        train, held = split_holdout(records, fraction)
        assert held and not {r.digest for r in train} & {r.digest for r in held}
        kept = {r.digest for r in split_holdout(once, fraction)[1]}  # 和只有一份时留出的一样
        assert {r.digest for r in held} == kept and len(train) + len(held) == 6 * times


def test_fewer_than_four_different_pictures_are_all_trained():
    records = [Record(Path(f"{k}.png"), GOOD, (64, 64), "0" * 64) for k in range(9)]
    assert split_holdout(records, 0.5) == (records, [])


# ---- 分批 ----

SHAPES = [(64, 64)] * 7 + [(48, 80)] * 3 + [(80, 48)] * 1 + [(64, 64)] * 2


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_batches_cover_everything_once(size, repeats):
    batches = Batches(SHAPES, size, seed=3, repeats=repeats)
    expected = sum(math.ceil(n * repeats / size) for n in Counter(SHAPES).values())
    assert batches.per_epoch == expected
    for epoch in range(3):
        drawn = [batches.batch(epoch * expected + i) for i in range(expected)]
        assert Counter(i for batch in drawn for i in batch) == dict.fromkeys(
            range(len(SHAPES)), repeats
        )
        for batch in drawn:
            assert 1 <= len(batch) <= size and len({SHAPES[i] for i in batch}) == 1
            assert all(type(i) is int for i in batch)


def test_batches_are_pure():
    """从任何一步开始、按任何顺序问，答案都一样；改动返回值也不影响。"""
    straight = [Batches(SHAPES, 2, 5).batch(k) for k in range(40)]
    one = Batches(SHAPES, 2, 5)
    for k in np.random.default_rng(0).permutation(40):
        batch = one.batch(int(k))
        assert batch == straight[k]
        batch.append(99)
        assert one.batch(int(k)) == straight[k]
    np.random.seed(1)  # 全局随机数与它无关
    assert Batches(SHAPES, 2, 5).batch(10**6) == one.batch(10**6)


def test_resuming_anywhere_shuffles_one_epoch_only(monkeypatch):
    """从第一千万批接着，只洗那一轮的牌，不从头走。"""
    shuffled, shuffle = [], Batches._shuffle
    monkeypatch.setattr(
        Batches, "_shuffle", lambda self, epoch: shuffled.append(epoch) or shuffle(self, epoch)
    )
    batches = Batches(SHAPES, 2, 5)
    place = 10**7
    drawn = [batches.batch(place + i) for i in range(2)]
    assert shuffled == [place // batches.per_epoch] and all(drawn)


def test_batches_shuffle():
    batches = Batches(SHAPES, 2, 5)
    epochs = [
        [batches.batch(e * batches.per_epoch + i) for i in range(batches.per_epoch)]
        for e in range(4)
    ]
    assert len({str(e) for e in epochs}) == 4
    assert str(epochs[0]) != str([Batches(SHAPES, 2, 6).batch(i) for i in range(batches.per_epoch)])
    firsts = {SHAPES[batches.batch(e * batches.per_epoch)[0]] for e in range(30)}
    assert len(firsts) == 3  # 不总是先走完一个桶


@pytest.mark.parametrize("arguments", [([], 1, 0), ([1], 0, 0), ([1], 1, 0, 0)])
def test_batches_refuse(arguments):
    with pytest.raises(DataError):
        Batches(*arguments)
