"""翻转与裁切：框在图里、比例对、由内容决定；缓存各存一份，只有训练图有；两个进程不打架。"""

import errno
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lorakit import cache
from lorakit.cache import store
from lorakit.cache.store import claim, shares
from lorakit.data import fit
from lorakit.data.crops import SMALLEST, View, box_for, show, views
from lorakit.training.objective import Objective

DIGEST = "0123456789abcdef" * 4


def test_the_first_view_is_the_plain_one():
    assert views(False, 1) == [View()]
    assert views(True, 2) == [View(), View(True), View(False, 1), View(True, 1)]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 200, 3), np.uint8))
    assert show(image, (64, 64), View(), DIGEST) == fit(image, (64, 64))[0]
    mirrored = np.asarray(show(image, (64, 64), View(True), DIGEST))
    assert (mirrored == np.asarray(fit(image, (64, 64))[0])[:, ::-1]).all()


@pytest.mark.parametrize("source", [(200, 90), (90, 200), (128, 128), (33, 4000)])
def test_a_crop_stays_inside_and_keeps_the_shape(source):
    boxes = [box_for(source, (96, 64), View(crop=k), DIGEST) for k in range(1, 9)]
    full = box_for(source, (96, 64), View(), DIGEST)
    assert len(set(boxes)) == 8
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= source[0] and 0 <= top < bottom <= source[1]
        assert (right - left) / (bottom - top) == pytest.approx(1.5)
        assert SMALLEST <= (right - left) / (full[2] - full[0]) <= 1
    assert box_for(source, (96, 64), View(crop=1), DIGEST) == boxes[0]
    assert box_for(source, (96, 64), View(crop=1), "f" * 64) != boxes[0]


@pytest.fixture
def folder(papercut, tmp_path):
    made = tmp_path / "pics"
    made.mkdir()
    for path in sorted(papercut.glob("*.png"))[:6]:
        shutil.copy(path, made)
        (made / f"{path.stem}.txt").write_text("剪纸", encoding="utf-8")
    return made


def test_only_training_pictures_have_variants(config, family, folder):
    counts = {}
    settings = config(f"data.folder={folder}", "data.flip=true", "data.crops=2", "eval.holdout=0.3")
    dataset = cache.prepare(settings, family, lambda what, i, n: counts.update({what: n}))
    train, held = len(dataset.train), len(dataset.held)
    assert held and counts == {"编码图片": 4 * train + held, "编码描述": 2}
    assert all(len(item.variants) == 3 for item in dataset.train)
    assert not any(item.variants for item in dataset.held)
    plain = cache.prepare(
        config(f"data.folder={folder}", "eval.holdout=0.3"), family, lambda *_: pytest.fail()
    )  # 原样那一份不重编
    assert torch.equal(plain.train[0].mean, dataset.train[0].mean)


def test_training_draws_every_variant_and_repeats_itself(config, family, folder):
    settings = config(f"data.folder={folder}", "data.flip=true", "eval.holdout=0", "train.seed=3")
    objective = Objective(
        settings, family, cache.prepare(settings, family), None, torch.device("cpu")
    )
    seen = []
    objective.losses = lambda x0, *_: seen.append(x0) or x0.flatten(1).mean(1)
    first = [float(objective.draw(k, k)[0]) for k in range(9)]
    assert [float(objective.draw(k, k)[0]) for k in range(9)] == first
    flipped = 0
    for k in range(9):
        for x0, i in zip(seen[k], objective.batches.batch(k), strict=True):
            item = objective.dataset.train[i]
            far = [(x0 - one.mean).abs().mean() for one in (item, *item.variants)]
            flipped += int(far[1] < far[0])
    assert 4 <= flipped <= 14


def test_flipping_captions_that_say_left_warns(config, family, folder):
    (next(folder.glob("*.txt"))).write_text("剪纸，一只猫在左边", encoding="utf-8")
    settings = config(f"data.folder={folder}", "data.flip=true", "eval.holdout=0")
    with pytest.warns(UserWarning, match="1 份描述里写了左右"):
        cache.prepare(settings, family)


def test_a_claimed_file_is_left_for_later(tmp_path):
    paths = [tmp_path / f"{i:02x}aa" for i in range(4)]
    with claim(paths[1]) as mine:
        assert mine
        with claim(paths[1]) as again:
            assert not again
        first = next(shares(paths, 3))
    assert first == [paths[0], paths[2], paths[3]]
    assert sorted(p for batch in shares(paths, 2) for p in batch) == paths


def test_without_locks_it_goes_on(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")  # 有的网络盘

    monkeypatch.setattr(store.FileLock, "acquire", refused)
    with claim(tmp_path / "aabb") as mine:
        assert mine
    monkeypatch.undo()
    (tmp_path / "file").write_text("x")
    with claim(tmp_path / "file" / "aabb") as mine:  # 建不了锁文件
        assert mine


RACE = """
import json, sys
from lorakit import cache
from lorakit.config import load_config
from lorakit.families import open_family
config = load_config("tiny-qwen-image", sys.argv[1:])
family = open_family(config)
real, count = family.encode_images, 0
def counted(pixels):
    global count
    count += 1
    return real(pixels)
family.encode_images = counted
print("ready", flush=True)
sys.stdin.readline()
done = cache.prepare(config, family)
print(json.dumps([count, [float(i.mean.double().sum()) for i in done.train]]))
"""


def test_two_processes_share_the_work(folder, own_cache):
    import json

    command = [sys.executable, "-c", RACE, f"data.folder={folder}", "eval.holdout=0"]
    command += ["data.flip=true", "data.crops=2"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [json.loads(process.communicate()[0].splitlines()[-1]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0][1] == answers[1][1]
    assert answers[0][0] + answers[1][0] == 24  # 6 张图 x 4 种样子，没有一张编码两遍
    files = sorted((own_cache / "image").glob("*"))
    assert sum(path.suffix == ".safetensors" for path in files) == 24
    assert not [path for path in files if path.name.endswith(".tmp")]
    assert all(store._read(path) for path in files if path.suffix == ".safetensors")
