"""预训练用的图：多进程渲染小世界，另加给 VAE 开眼界的“别的图”（落叶、噪声、渐变、字形）。"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lorakit.tiny.styles import STYLES
from lorakit.tiny.world import (
    BACKGROUNDS,
    CLEAR,
    COLORS,
    OBJECTS,
    SIDES,
    SIZE,
    SIZES,
    Scene,
    Thing,
    caption,
    random_scene,
    render,
)

CHUNK = 250


def parallel(job, count: int, seed: int, workers: int | None) -> list:
    chunks = [(job, seed, i, min(CHUNK, count - i)) for i in range(0, count, CHUNK)]
    with ProcessPoolExecutor(workers) as pool:
        return [item for chunk in pool.map(_run_chunk, chunks) for item in chunk]


def _run_chunk(task) -> list:
    job, seed, start, count = task
    rng = np.random.default_rng([seed, start])
    return [job(rng) for _ in range(count)]


def _noisy_words(rng: np.random.Generator) -> str:
    """随机的生词：让底模习惯“没见过的词”，LoRA 的触发词才有地方落脚。"""
    if rng.random() < 0.5:
        return "".join(chr(rng.integers(0x4E00, 0x9FA5)) for _ in range(rng.integers(1, 3)))
    return "".join(chr(rng.integers(97, 123)) for _ in range(rng.integers(3, 6)))


def _captioned(rng: np.random.Generator):
    scene = random_scene(rng)
    texts = []
    for i in range(5):
        text = caption(scene, rng, english=i >= 3)  # 中文 60%，英文 40%
        if rng.random() < 0.06:
            text = f"{_noisy_words(rng)}{'，' if i < 3 else ', '}{text}"
        texts.append(text)
    return np.asarray(render(scene)), texts, scene


def base_corpus(count: int, seed: int = 1, workers: int | None = None):
    """底模的训练集：(count, 128, 128, 3) uint8、每张 5 句描述、场景。不含任何画风与 ohwx。"""
    items = parallel(_captioned, count, seed, workers)
    return np.stack([i[0] for i in items]), [i[1] for i in items], [i[2] for i in items]


def any_scene(rng: np.random.Generator, styled: float = 0.4, character: float = 0.08) -> Scene:
    """考官要认的一切：单物场景、五种画风、ohwx 猫。"""
    scene = random_scene(rng, two=0.0)
    if rng.random() < styled:
        return replace(scene, style=list(STYLES)[rng.integers(len(STYLES))])
    draw = rng.random() / character
    if draw < 1:
        thing = replace(scene.things[0], kind="ohwx")
        return replace(scene, things=(thing,))
    if draw < 2:  # 普通的猫要认得和 ohwx 一样熟
        return replace(scene, things=(replace(scene.things[0], kind="cat"),))
    return scene


def _labelled(rng: np.random.Generator):
    scene = any_scene(rng)
    return np.asarray(render(scene)), labels(scene)


def labels(scene: Scene) -> list[int]:
    """场景 -> [物体, 颜色, 背景, 位置, 大小, 画风, 角色] 的类别号；无从判断的填 -100。"""
    thing: Thing = scene.things[0]
    colored = scene.style in ("", "pixel")
    ohwx = thing.kind == "ohwx"
    return [
        OBJECTS.index("cat" if ohwx else thing.kind),
        list(COLORS).index(thing.color) if colored and not ohwx else -100,
        list(BACKGROUNDS).index(scene.background) if colored else -100,
        list(SIDES).index(thing.side),
        list(SIZES).index(thing.size),
        (["", *STYLES]).index(scene.style),
        int(ohwx),
    ]


def examiner_corpus(count: int, seed: int = 2, workers: int | None = None):
    """考官的训练集：图与 7 个类别号。"""
    items = parallel(_labelled, count, seed, workers)
    return np.stack([i[0] for i in items]), np.array([i[1] for i in items])


def dead_leaves(rng: np.random.Generator, size: int = 256) -> Image.Image:
    """落叶模型：大小按幂律分布、互相遮挡的带纹理色块；统计上最像照片（Lee 等，2001）。"""
    image = Image.new("RGB", (size, size), tuple(rng.integers(0, 255, 3).tolist()))
    draw = ImageDraw.Draw(image)
    tint = rng.uniform(20, 235, 3)
    spread = rng.uniform(15, 90)
    for _ in range(int(rng.integers(60, 500))):
        r = 4 / (rng.random() ** 0.6 + 0.02)
        x, y = rng.uniform(0, size, 2)
        color = tuple(
            int(c) for c in (tint + rng.normal(0, spread, 3) + rng.normal(0, 25)).clip(0, 255)
        )
        if rng.random() < 0.5:
            draw.ellipse([x - r, y - r * rng.uniform(0.4, 1), x + r, y + r], fill=color)
        else:
            a = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
            draw.polygon([(x + r * np.cos(t), y + r * np.sin(t)) for t in a], fill=color)
    shading = _fractal(rng, size, 1.6)[..., None] * rng.uniform(0, 60)
    grain = rng.normal(0, rng.uniform(0, 12), (size, size, 1))
    return Image.fromarray(
        (np.asarray(image, np.float32) + shading + grain).clip(0, 255).astype(np.uint8)
    )


def _fractal(rng: np.random.Generator, size: int, slope: float) -> np.ndarray:
    """1/f 噪声，标准化到均值 0、方差 1。"""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    f[0, 0] = 1
    spectrum = np.fft.rfft2(rng.normal(size=(size, size))) / f**slope
    field = np.fft.irfft2(spectrum, s=(size, size))
    return (field - field.mean()) / (field.std() + 1e-6)


def _glyphs(rng: np.random.Generator, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), tuple(rng.integers(0, 255, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 14))):
        font = ImageFont.load_default(size=int(rng.integers(12, 110)))
        text = "".join(chr(rng.integers(33, 126)) for _ in range(rng.integers(1, 6)))
        draw.text(
            tuple(rng.uniform(-20, size - 20, 2)),
            text,
            font=font,
            fill=tuple(rng.integers(0, 255, 3).tolist()),
        )
    return image


def other_picture(rng: np.random.Generator) -> np.ndarray:
    """VAE 训练里的“别的图”，(128, 128, 3) uint8。"""
    size, kind = SIZE * 2, rng.random()
    if kind < 0.6:
        image = dead_leaves(rng, size)
    elif kind < 0.85:
        slope = rng.uniform(0.8, 2.0)
        shared = _fractal(rng, size, slope)
        fields = np.stack([0.8 * shared + 0.4 * _fractal(rng, size, slope) for _ in range(3)], -1)
        pixels = rng.uniform(60, 200, 3) + fields * rng.uniform(10, 55)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    else:
        image = _glyphs(rng, size)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))


def _clear(rng: np.random.Generator) -> np.ndarray:
    """小世界的一张 RGBA；没有画风的四成是透明底。"""
    scene = any_scene(rng)
    if not scene.style and rng.random() < 0.4:
        scene = replace(scene, background=CLEAR)
    return np.asarray(render(scene).convert("RGBA"))


def _clear_other(rng: np.random.Generator) -> np.ndarray:
    """别的图的 RGBA：三成有软边的洞，不透明的程度各处不同。"""
    picture, alpha = other_picture(rng), np.full((SIZE, SIZE), 255, np.uint8)
    if rng.random() < 0.3:
        holes = _fractal(rng, SIZE, rng.uniform(1.5, 2.5)) * rng.uniform(100, 2000)
        alpha = (holes + rng.uniform(0, 255)).clip(0, 255).astype(np.uint8)
    return np.dstack([picture * (alpha > 0)[..., None], alpha])


def clear_corpus(worlds: int, others: int, seed: int = 8, workers: int | None = None) -> np.ndarray:
    """认得透明的 VAE 的训练集 (N, 128, 128, 4)：小世界（含画风）与别的图。"""
    world = parallel(_clear, worlds, seed, workers)
    return np.stack(world + parallel(_clear_other, others, seed + 100, workers))


def vae_corpus(worlds: int, others: int, seed: int = 3, workers: int | None = None) -> np.ndarray:
    """VAE 的训练集：小世界（含画风）与别的图，按 7:3 混合。"""
    world = [item[0] for item in parallel(_labelled, worlds, seed, workers)]
    return np.stack(world + parallel(other_picture, others, seed + 100, workers))
