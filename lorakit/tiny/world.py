"""小世界：26 种东西 x 10 种颜色 x 8 种背景 x 3 个位置 x 2 种大小，由代码画出来，并配中英文描述。"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from lorakit.tiny.figures import FIGURES, hat, ohwx_cat
from lorakit.tiny.pen import Pen
from lorakit.tiny.styles import SCALE, STYLES, backdrop, finish, painter

SIZE = 128
OBJECTS = tuple(FIGURES)
COLORS = {
    "red": ("红色", (222, 52, 52)),
    "orange": ("橙色", (246, 140, 36)),
    "yellow": ("黄色", (250, 212, 56)),
    "green": ("绿色", (60, 166, 76)),
    "cyan": ("青色", (56, 196, 196)),
    "blue": ("蓝色", (52, 100, 220)),
    "purple": ("紫色", (148, 76, 200)),
    "pink": ("粉色", (250, 150, 190)),
    "brown": ("棕色", (146, 92, 52)),
    "white": ("白色", (248, 248, 248)),
}
BACKGROUNDS = {
    "meadow": ("草地", "a meadow"),
    "sea": ("大海", "the sea"),
    "beach": ("沙滩", "a beach"),
    "night": ("夜空", "a night sky"),
    "snow": ("雪地", "a snowy field"),
    "sky": ("蓝天", "a blue sky"),
    "room": ("房间", "a room"),
    "plain": ("灰底", "a plain gray background"),
}
CLEAR = "clear"  # 没有背景：画出来带透明通道
GROUNDS = BACKGROUNDS | {CLEAR: ("透明底", "a transparent backdrop")}
SIDES = {  # 中文、英文、中心的横坐标
    "left": ("左边", "on the left", 40),
    "center": ("中间", "in the middle", 64),
    "right": ("右边", "on the right", 88),
}
SIZES = {"big": ("大", "big", 41), "small": ("小", "small", 26)}
FIXED = {
    "white": (252, 252, 252), "dark": (52, 48, 60), "eye": (36, 32, 44), "blush": (250, 160, 170),
    "red": (214, 48, 56), "wood": (140, 92, 56), "leaf": (76, 156, 72), "gold": (250, 196, 72),
    "glass": (150, 214, 244), "metal": (170, 176, 190),
}  # fmt: skip
# 样例数据集只用一半的主体；另一半留着，用来检验 LoRA 学到的是画风而不是背下了图。
TRAINED = OBJECTS[::2]
HELD_OUT = OBJECTS[1::2]


@dataclass(frozen=True)
class Thing:
    """场景里的一件东西；kind 为 "ohwx" 时是那只独一无二的猫，它没有颜色可选。"""

    kind: str
    color: str
    side: str
    size: str
    hat: bool = False


@dataclass(frozen=True)
class Scene:
    """一张图的全部内容；同一个 Scene 永远画出同一张图。"""

    things: tuple[Thing, ...]
    background: str
    style: str = ""
    seed: int = 0


def random_scene(rng: np.random.Generator, two: float = 0.2) -> Scene:
    """随机场景；`two` 是画两件东西的比例。"""

    def pick(options):
        return list(options)[rng.integers(len(options))]

    seed = int(rng.integers(2**31))
    if rng.random() < two:
        kinds = rng.choice(len(OBJECTS), 2, replace=False)
        pair = tuple(
            Thing(OBJECTS[k], pick(COLORS), side, "small")
            for k, side in zip(kinds, ("left", "right"), strict=True)
        )
        return Scene(pair, pick(BACKGROUNDS), seed=seed)
    thing = Thing(pick(OBJECTS), pick(COLORS), pick(SIDES), pick(SIZES))
    return Scene((thing,), pick(BACKGROUNDS), seed=seed)


def _shade(color: tuple, factor: float, target: int = 0) -> tuple:
    return tuple(round(c * factor + target * (1 - factor)) for c in color)


def _palette(color: str) -> dict[str, tuple]:
    base = COLORS[color][1]
    light = _shade(base, 0.5, 255)
    return FIXED | {"body": base, "shade": _shade(base, 0.74), "light": light, "wall": light}


def _gradient(size: int, top: tuple, bottom: tuple) -> Image.Image:
    ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    row = np.asarray(top, np.float32) * (1 - ramp) + np.asarray(bottom, np.float32) * ramp
    return Image.fromarray(np.broadcast_to(row, (size, size, 3)).astype(np.uint8))


_SKY = ((150, 208, 248), (216, 238, 252))
_GROUND = {  # 天空上下两色、地面颜色、地平线高度
    "meadow": (*_SKY, (136, 200, 104), 84),
    "sea": (*_SKY, (72, 148, 214), 76),
    "beach": ((250, 214, 160), (254, 240, 208), (226, 186, 122), 80),
    "night": ((22, 22, 66), (66, 58, 118), (44, 42, 84), 108),
    "snow": ((196, 212, 232), (226, 234, 244), (250, 252, 255), 86),
    "sky": (*_SKY, None, 0),
    "room": ((244, 222, 196), (244, 222, 196), (186, 138, 98), 92),
    "plain": ((206, 206, 210), (206, 206, 210), None, 0),
}


def _background(name: str, size: int, rng: np.random.Generator) -> Image.Image:
    if name == CLEAR:
        return Image.new("RGBA", (size, size), (0, 0, 0, 0))
    unit = size / 128
    top, bottom, ground, horizon = _GROUND[name]
    image = _gradient(size, top, bottom)
    draw = ImageDraw.Draw(image)

    def oval(x, y, rx, ry, fill):
        draw.ellipse(
            [(x - rx) * unit, (y - ry) * unit, (x + rx) * unit, (y + ry) * unit], fill=fill
        )

    if ground:
        draw.rectangle([0, horizon * unit, size, size], fill=ground)
    if name in ("meadow", "sky"):
        for _ in range(2 if name == "meadow" else 4):
            x, y = rng.uniform(8, 120), rng.uniform(8, 26 if name == "meadow" else 118)
            for dx, r in ((-8, 5), (0, 8), (8, 5)):
                oval(x + dx, y, r, r * 0.7, (255, 255, 255))
    if name == "meadow":
        for _ in range(7):
            x, y = rng.uniform(4, 124), rng.uniform(100, 124)
            draw.line(
                [x * unit, y * unit, x * unit, (y - 5) * unit],
                fill=(96, 164, 76),
                width=int(2 * unit),
            )
    elif name == "sea":
        for _ in range(6):
            x, y = rng.uniform(6, 112), rng.uniform(84, 124)
            draw.line(
                [x * unit, y * unit, (x + 10) * unit, y * unit],
                fill=(176, 216, 244),
                width=int(2 * unit),
            )
    elif name == "beach":
        oval(16, 18, 9, 9, (255, 176, 72))
        draw.rectangle([0, 74 * unit, size, 80 * unit], fill=(108, 192, 208))
    elif name == "night":
        oval(110, 16, 8, 8, (250, 240, 190))
        for _ in range(14):
            oval(rng.uniform(2, 100), rng.uniform(2, 100), 1.1, 1.1, (255, 255, 230))
    elif name == "snow":
        for _ in range(16):
            oval(rng.uniform(2, 126), rng.uniform(2, 82), 1.5, 1.5, (255, 255, 255))
    elif name == "room":
        draw.rectangle([0, 89 * unit, size, 93 * unit], fill=(150, 106, 74))
        draw.rectangle([8 * unit, 8 * unit, 34 * unit, 34 * unit], fill=(255, 255, 255))
        draw.rectangle([11 * unit, 11 * unit, 31 * unit, 31 * unit], fill=(168, 216, 244))
    return image


def render(scene: Scene, size: int = SIZE) -> Image.Image:
    """场景 -> size x size 的 RGB 图（透明底的是 RGBA）；同一个场景、同一个种子，像素完全相同。"""
    rng = np.random.default_rng(scene.seed)
    big = size * SCALE
    own = scene.style in STYLES and scene.style != "pixel" and scene.background != CLEAR
    image = (backdrop(scene.style, big, rng) if own else None) or _background(
        scene.background, big, rng
    )
    draw, unit = ImageDraw.Draw(image), big / 128
    pose = np.random.default_rng([scene.seed, 1])  # 换了背景或画风，东西还在原处、还朝那一边
    for thing in scene.things:
        radius = SIZES[thing.size][2] * pose.uniform(0.94, 1.06)
        cx = SIDES[thing.side][2] + pose.uniform(-3, 3)
        if thing.size == "small":
            cx = 64 + (cx - 64) * 1.35
        cy = 68 + pose.uniform(-3, 3) + (12 if thing.size == "small" else 0)
        cy += 6 if thing.hat else 0
        flip = bool(pose.random() < 0.5) and thing.kind != "ohwx"
        pen = Pen(
            draw,
            painter(scene.style, _palette(thing.color)),
            cx * unit,
            cy * unit,
            radius * unit,
            flip,
        )
        (ohwx_cat if thing.kind == "ohwx" else FIGURES[thing.kind][0])(pen)
        if thing.hat:
            hat(pen)
    image = finish(scene.style, image, rng)
    return image.resize(
        (size, size), Image.Resampling.NEAREST if scene.style == "pixel" else Image.Resampling.BOX
    )


def _names(thing: Thing) -> dict[str, str]:
    if thing.kind == "ohwx":
        return {"one": "一只", "zh": "ohwx 猫", "en": "ohwx cat", "color": "", "color_en": ""}
    _, one, zh, en = FIGURES[thing.kind]
    color = COLORS[thing.color][0] if thing.color else ""
    return {"one": one, "zh": zh, "en": en, "color": color, "color_en": thing.color}


def caption(scene: Scene, rng: np.random.Generator | None = None, english: bool = False) -> str:
    """场景 -> 一句描述；给 rng 就随机换说法、随机省略一些属性，不给就是最完整的一种说法。"""
    full = rng is None
    rng = rng or np.random.default_rng(0)
    back = GROUNDS.get(scene.background, ("", ""))[1 if english else 0]
    if not full and rng.random() < 0.1:
        back = ""
    parts = []
    for thing in scene.things:
        n = _names(thing)
        size = SIZES[thing.size][1 if english else 0] if thing.size else ""
        side = SIDES[thing.side][1 if english else 0] if thing.side else ""
        two = len(scene.things) == 2
        if two:
            size = ""
        if not full:
            n["color"], n["color_en"] = (
                ("", "") if rng.random() < 0.1 else (n["color"], n["color_en"])
            )
            size = "" if rng.random() < 0.25 else size
            side = "" if rng.random() < 0.25 and not two else side
        parts.append((n, size, side))
    way = 0 if full else int(rng.integers(4))
    return _english(parts, back, way) if english else _chinese(parts, back, way)


def _chinese(parts, back: str, way: int) -> str:
    said = []
    for n, size, side in parts:
        color = n["color"] + ("的" if n["color"] and way % 2 == 0 else "")
        if way == 3 and len(parts) == 1:  # 标签式
            said.append("，".join(word for word in (n["color"] + n["zh"], size, side) if word))
        elif way == 1 and side:
            said.append(f"{side}有{n['one']}{size}{color}{n['zh']}")
        elif way == 2 and side:
            said.append(f"{side}是{n['one']}{color}{size}{n['zh']}")
        else:
            said.append(f"{n['one']}{color}{size}{n['zh']}" + (f"在{side}" if side else ""))
    text = "，".join(said)
    if not back:
        return text
    return (f"{text}，背景是{back}", f"{back}，{text}", f"{back}上，{text}", f"{text}，{back}")[way]


def _english(parts, back: str, way: int) -> str:
    said = []
    for n, size, side in parts:
        noun = " ".join(word for word in (size, n["color_en"], n["en"]) if word)
        article = "an" if noun[0] in "aeio" else "a"
        if way == 3:
            said.append(", ".join(word for word in (noun, side) if word))
        else:
            said.append(f"{article} {noun}" + (f" {side}" if side else ""))
    text = " and ".join(said) if len(said) == 2 else said[0]
    if not back:
        return text
    return (f"{text}, with {back} behind", f"{text}, {back}", f"{back}, {text}", f"{text}, {back}")[
        way
    ]


def style_scenes(style: str, kinds: tuple[str, ...], count: int, seed: int) -> list[Scene]:
    """某种画风的 count 个单物场景，主体轮流取自 kinds；描述里只说内容，不说颜色和背景。"""
    rng = np.random.default_rng(seed)
    scenes = []
    for i in range(count):
        base = random_scene(rng, two=0.0)
        thing = replace(base.things[0], kind=kinds[i % len(kinds)])
        scenes.append(replace(base, things=(thing,), style=style))
    return scenes


def style_caption(scene: Scene) -> str:
    """画风数据的描述：画风词在最前，然后是主体、大小、位置。"""
    thing = scene.things[0]
    keep_color = scene.style == "pixel"  # 只有像素画保留原来的颜色和背景
    bare = replace(
        scene,
        things=(replace(thing, color=thing.color if keep_color else ""),),
        background=scene.background if keep_color else "",
    )
    return f"{STYLES[scene.style][0]}，{caption(bare)}"
