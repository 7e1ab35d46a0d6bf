"""考官说“看不出”：外来的图不硬猜，小世界的图很少误拒；门槛是量出来的，误判写在它自己的文件里。"""

import json
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from lorakit.tiny.examiner import (
    CALIBRATION,
    HEADS,
    UNSURE,
    calibration,
    examine,
    load,
    share,
    to_pixels,
)
from lorakit.tiny.pretrain import corpus
from lorakit.tiny.world import render


def worlds(count: int, seed: int = 99):
    rng = np.random.default_rng(seed)
    return [render(corpus.any_scene(rng)) for _ in range(count)]


def outside(count: int):
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (count, 128, 128, 3), np.uint8)
    corners = rng.integers(0, 256, (count, 2, 2, 3), np.uint8)
    flat = [Image.new("RGB", (128, 128), tuple(map(int, c[0, 0]))) for c in corners]
    ramps = [Image.fromarray(c).resize((128, 128), Image.Resampling.BILINEAR) for c in corners]
    return [*map(Image.fromarray, noise), *flat, *ramps]


def test_strangers_are_not_named():
    seen = examine(outside(20))
    assert share(seen, object=UNSURE) > 0.95
    assert share(seen, style=UNSURE) > 0.9  # 不再把噪声说成青花、把纯色说成像素


def test_the_tiny_world_is_still_known():
    seen = examine(worlds(100))
    assert share(seen, object=UNSURE) <= 0.05


def test_unsure_is_one_of_two_thresholds():
    """离得太远，七项都说看不出；只是没有把握，就只有那一项。"""
    images = worlds(8)
    free = replace(calibration(), least=dict.fromkeys(HEADS, 0.0), farthest=1e9)
    assert not any(UNSURE in vars(v).values() for v in examine(images, free))
    near = replace(free, farthest=0.0)
    assert all(set(vars(v).values()) == {UNSURE} for v in examine(images, near))
    strict = replace(free, least=free.least | {"color": 1.1})
    assert all(v.color == UNSURE != v.object for v in examine(images, strict))


def test_the_distance_is_mahalanobis():
    limits = calibration()
    with torch.no_grad():
        features = load().look(to_pixels(worlds(6)))[1]
    precision = limits.whiten.double() @ limits.whiten.double().T
    away = (features - limits.mean).double()
    wanted = (away @ precision * away).sum(1).sqrt()
    torch.testing.assert_close(limits.distance(features).double(), wanted, rtol=1e-3, atol=1e-3)


def test_the_file_says_how_often_it_is_wrong():
    with safe_open(CALIBRATION, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    rates = facts["rates"]
    assert {"小世界的图，主体说看不出", "底模画的图，主体说看不出", "噪声，却说出了主体"} <= set(
        rates
    )
    assert all("/" in said and "%" in said for said in rates.values())
