"""挑图的练习：80 张画出来的“照片”，里面有糊的、戴墨镜的、合影、带水印的、同一次拍的；挑 20 张。"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from lorakit.lab.display import show
from lorakit.lab.picture import wall
from lorakit.tiny.world import BACKGROUNDS, SIDES, SIZES, Scene, Thing, render

COUNT, WANTED, ROW, SIDE = 80, 20, 10, 66
SAME = 2  # 同一次拍的最多留几张
PLACES = 5  # 至少几种背景
FAULTS = {  # 毛病 -> (几张, 怎么说)
    "blur": (8, "糊了：它会把糊也学进去，这种一张也不要"),
    "glasses": (6, "戴着墨镜，看不见眼睛：练出来的常常摘不下来"),
    "group": (6, "是合影：网络不知道哪一个才是 ohwx；要用就先裁成一个"),
    "mark": (6, "右下角有水印：画出来的图也会带上它"),
}
SESSION = 14  # 同一次拍的：地方、姿势都一样


@dataclass(frozen=True)
class Photo:
    """一张“照片”：场景与毛病（没有是空的，同一次拍的是 session）。"""

    scene: Scene
    fault: str = ""


@cache
def photos() -> dict[int, Photo]:
    """号码（从 1 起）-> 照片；每次都一样。"""
    rng = np.random.default_rng(4)
    kinds = [kind for kind, (count, _) in FAULTS.items() for _ in range(count)]
    kinds += ["session"] * SESSION
    kinds += [""] * (COUNT - len(kinds))
    order = rng.permutation(kinds)
    return {i + 1: _photo(str(kind), rng) for i, kind in enumerate(order)}


def _photo(kind: str, rng: np.random.Generator) -> Photo:
    seed, places = int(rng.integers(2**31)), list(BACKGROUNDS)
    if kind == "session":
        return Photo(Scene((Thing("ohwx", "white", "center", "big"),), "room", seed=seed), kind)
    place = places[rng.integers(len(places))]
    if kind == "group":
        pair = (Thing("ohwx", "white", "left", "small"), Thing("cat", "brown", "right", "small"))
        return Photo(Scene(pair, place, seed=seed), kind)
    side, size = list(SIDES)[rng.integers(3)], list(SIZES)[rng.integers(2)]
    return Photo(Scene((Thing("ohwx", "white", side, size),), place, seed=seed), kind)


def picture(photo: Photo) -> Image.Image:
    """画出来，再加上它的毛病。"""
    image = render(photo.scene)
    draw = ImageDraw.Draw(image)
    if photo.fault == "blur":
        return image.filter(ImageFilter.GaussianBlur(4))
    if photo.fault == "mark":
        draw.rectangle([70, 108, 126, 124], fill=(255, 255, 255))
        draw.text((74, 110), "(c) PHOTO", fill=(200, 30, 30))
    if photo.fault == "glasses":
        thing = photo.scene.things[0]
        x, big = SIDES[thing.side][2], thing.size == "big"
        x = x if big else 64 + (x - 64) * 1.35
        wide, y = (26, 67) if big else (17, 79)
        for side in (-1, 1):
            a, b = sorted((x + side * 3, x + side * wide))
            draw.ellipse([a, y - wide / 2.4, b, y + wide / 2.4], fill=(12, 12, 16))
        draw.line([x - 4, y, x + 4, y], fill=(12, 12, 16), width=4)
    return image


def album() -> None:
    """摆出 80 张，一行十张：行头加列头就是号码。"""
    images = [picture(photo) for photo in photos().values()]
    rows = [images[i : i + ROW] for i in range(0, COUNT, ROW)]
    heads = [f"{i}+" for i in range(0, COUNT, ROW)]
    show(wall(rows, heads, [str(k + 1) for k in range(ROW)], cell=SIDE))


def few(numbers: set[int]) -> int:
    """里面有几张是同一次拍的。"""
    return sum(photos()[n].fault == "session" for n in numbers)


def places(numbers: set[int]) -> int:
    """一共几种背景。"""
    return len({photos()[n].scene.background for n in numbers})


def sizes(numbers: set[int]) -> int:
    """远近两种都有就是 2。"""
    return len({photos()[n].scene.things[0].size for n in numbers})


def good() -> list[int]:
    """一份合格的选择。"""
    return [n for n, photo in photos().items() if not photo.fault][:WANTED]
