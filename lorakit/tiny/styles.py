"""五种画风：同一个场景画成剪纸、水墨、像素、线稿、青花。底模从没见过它们，是留给 LoRA 学的。"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SCALE = 4  # 先画 4 倍大再缩小，边缘就平滑了

STYLES = {
    "papercut": ("剪纸风格", "paper-cut style"),
    "inkwash": ("水墨风格", "ink wash style"),
    "pixel": ("像素风格", "pixel art style"),
    "lineart": ("线稿风格", "line drawing style"),
    "porcelain": ("青花风格", "blue-and-white porcelain style"),
}

RED, CREAM = (196, 24, 32), (250, 240, 220)
NAVY, GLAZE = (24, 52, 128), (244, 248, 252)
INK, RICE = (24, 24, 28), (240, 234, 220)


def painter(style: str, colors: dict[str, tuple]):
    """画风 + 本色表 -> paint(role)，返回 (填充色, 描边色, 描边宽, 线条色)。"""
    if style == "papercut":
        cut = {"light", "white", "eye", "glass", "blush"}

        def paint(role):
            color = CREAM if role in cut else RED
            return color, CREAM, SCALE, color
    elif style == "lineart":

        def paint(role):
            return INK if role in {"eye", "dark"} else "white", INK, SCALE + 1, INK
    elif style == "porcelain":
        tone = {"body": (88, 136, 208), "shade": (40, 84, 168), "light": (196, 218, 244)}
        tone |= dict.fromkeys(("white", "glass", "blush", "wall"), (255, 255, 255))
        tone |= dict.fromkeys(("eye", "dark", "wood"), NAVY)

        def paint(role):
            color = tone.get(role, (64, 108, 188))
            return color, NAVY, SCALE, color
    elif style == "inkwash":
        gray = {"body": 142, "shade": 84, "light": 196, "white": 236, "eye": 4, "dark": 16}
        gray |= {"wood": 84, "leaf": 110, "glass": 206, "blush": 196, "red": 60, "wall": 200}

        def paint(role):
            color = (gray.get(role, 164),) * 3
            return color, (30, 30, 34), SCALE + 1, color
    else:
        edge = ((40, 36, 56), 2 * SCALE) if style == "pixel" else (None, 0)

        def paint(role):
            return colors[role], *edge, colors[role]

    return paint


def backdrop(style: str, size: int, rng: np.random.Generator) -> Image.Image:
    """画风自带的底：奶油纸加红框、宣纸远山加印章、白瓷加蓝边、白纸。"""
    unit = size / 128
    if style == "papercut":
        image = Image.new("RGB", (size, size), CREAM)
        draw = ImageDraw.Draw(image)
        draw.rectangle(
            [3 * unit, 3 * unit, 125 * unit, 125 * unit], outline=RED, width=int(2 * unit)
        )
        for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
            cx, cy = (4 + 120 * x) * unit, (4 + 120 * y) * unit
            draw.ellipse([cx - 12 * unit, cy - 12 * unit, cx + 12 * unit, cy + 12 * unit], fill=RED)
            draw.ellipse([cx - 7 * unit, cy - 7 * unit, cx + 7 * unit, cy + 7 * unit], fill=CREAM)
        return image
    if style == "porcelain":
        image = Image.new("RGB", (size, size), GLAZE)
        draw = ImageDraw.Draw(image)
        for y in (4, 124):
            draw.line([0, y * unit, size, y * unit], fill=NAVY, width=int(2 * unit))
            for x in range(4, 128, 12):
                y0 = (y + (6 if y < 64 else -6)) * unit
                draw.ellipse(
                    [(x - 3) * unit, y0 - 3 * unit, (x + 3) * unit, y0 + 3 * unit],
                    fill=(64, 108, 188),
                )
        return image
    if style == "inkwash":
        image = Image.new("RGB", (size, size), RICE)
        draw = ImageDraw.Draw(image)
        xs = np.linspace(0, size, 40)
        ridge = size * 0.42 + size * 0.09 * np.sin(xs / size * 5 + rng.uniform(0, 6))
        draw.polygon(
            [*zip(xs, ridge, strict=True), (size, size * 0.75), (0, size * 0.75)],
            fill=(208, 205, 198),
        )
        draw.rectangle([0, size * 0.66, size, size * 0.76], fill=(224, 220, 210))
        return image.filter(ImageFilter.GaussianBlur(5 * unit))
    return Image.new("RGB", (size, size), "white")


def finish(style: str, image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """画完之后整张图的处理：水墨晕开，像素变成大方块。"""
    if style == "pixel":
        small = image.resize((32, 32), Image.Resampling.BOX)
        small = Image.fromarray(
            (np.asarray(small).astype(np.uint16) // 20 * 20 + 10).clip(0, 255).astype("uint8")
        )
        return small.resize(image.size, Image.Resampling.NEAREST)
    if style == "inkwash":
        return _bleed(image, rng)
    return image


def _bleed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """墨在纸上晕开：边缘抖动、模糊，浓淡不匀，最后盖一枚朱印。"""
    size = image.width
    half = image.resize((size // 2, size // 2), Image.Resampling.BOX)
    soft = np.asarray(half.filter(ImageFilter.GaussianBlur(size / 320)), np.float32)
    wide = np.asarray(half.filter(ImageFilter.GaussianBlur(size / 56)), np.float32)
    noise = Image.fromarray(rng.integers(0, 255, (12, 12), dtype=np.uint8).astype(np.uint8))
    noise = (
        np.asarray(noise.resize(half.size, Image.Resampling.BICUBIC), np.float32)[..., None] / 255
    )
    mixed = np.minimum(soft, 0.7 * soft + 0.3 * wide)  # 向外只变深不变浅，像墨渗进纸里
    paper = np.asarray(RICE, np.float32)
    out = paper - (paper - mixed) * (0.72 + 0.42 * noise)
    image = Image.fromarray(out.clip(0, 255).astype(np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    unit, draw = size / 128, ImageDraw.Draw(image)
    draw.rectangle([113 * unit, 108 * unit, 123 * unit, 122 * unit], fill=(184, 40, 36))
    draw.line([116 * unit, 112 * unit, 120 * unit, 112 * unit], fill=RICE, width=int(1.5 * unit))
    draw.line([118 * unit, 112 * unit, 118 * unit, 119 * unit], fill=RICE, width=int(1.5 * unit))
    return image
