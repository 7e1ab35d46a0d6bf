"""报告：对照图、损失曲线、运行卡；看一眼就知道练得怎样。"""

import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lorakit.config import Config
from lorakit.data.color import on_checker, on_white
from lorakit.errors import ConfigError
from lorakit.files import ASSETS, write_text, write_whole
from lorakit.inert import inert
from lorakit.results import folder as run_folder
from lorakit.results.sameness import data_hash, version_of
from lorakit.results.verdict import held_by_step

FONT = ASSETS / "fonts" / "NotoSansSC-subset.otf"
RED = "#c4382c"
GAP = 6  # 像素；对照图里格子之间的空
LETTERS = 17  # 像素；对照图里名字的字号


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """随包的中文字体（思源黑体的子集，OFL 许可）。"""
    return ImageFont.truetype(str(FONT), size)


def grid(
    rows: Sequence[Sequence[Image.Image]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    cell: int = 160,
    letters: int = LETTERS,
) -> Image.Image:
    """带行名、列名的对照图；每格等大，放大用最近邻以外的平滑方式；透明的地方露出格子。

    letters 是名字的字号，留给它的边跟着变。
    """
    left, top, gap = 76 * letters // LETTERS, 2 * letters, GAP
    width = left + len(column_names) * (cell + gap)
    image = Image.new("RGB", (width, top + len(rows) * (cell + gap)), "white")
    draw = ImageDraw.Draw(image)
    row_names, column_names = list(map(inert, row_names)), list(map(inert, column_names))
    for j, name in enumerate(column_names):
        draw.text(
            (left + j * (cell + gap) + cell / 2, top / 2), name, "black", font(letters), anchor="mm"
        )
    for i, (name, row) in enumerate(zip(row_names, rows, strict=True)):
        y = top + i * (cell + gap)
        place = (left / 2, y + cell / 2)
        draw.text(place, name, "black", font(letters), anchor="mm", align="center")
        for j, picture in enumerate(row):
            tile = on_checker(picture).resize((cell, cell), Image.Resampling.LANCZOS)
            image.paste(tile, (left + j * (cell + gap), y))
    return image


def save_image(image: Image.Image, path: Path) -> Path:
    """原子地写一张图；存不下透明的那几种，透明的地方露出白底。"""
    kind = picture_kind(path)
    image = image if kind in ("png", "webp", "tiff") else on_white(image)
    return write_whole(path, lambda temporary: image.save(temporary, kind))


def picture_kind(path: Path) -> str:
    """文件名 -> 存成哪种图；没有后缀就是 PNG。

    Raises:
        ConfigError: 没有文件名，或这种后缀不是图。
    """
    suffix = path.suffix.lstrip(".").lower()
    kind = {"jpg": "jpeg"}.get(suffix, suffix) or "png"
    if not path.stem.strip(".") or path.name.startswith("."):
        raise ConfigError(f"--out：“{path}”里没有文件名，例如 --out 猫.png。")
    if kind not in ("png", "jpeg", "webp", "bmp", "tiff"):
        raise ConfigError(
            f"--out：不会存 .{suffix} 的图，请用 .png、.jpg 或 .webp（例如 {path.name}.png）。"
        )
    return kind


@lru_cache
def chinese() -> dict:
    """matplotlib 的设置：随包的中文字体；子集里没有的符号由 DejaVu Sans 补，U+2212 就不用。"""
    from matplotlib import font_manager

    font_manager.fontManager.addfont(FONT)
    name = font_manager.FontProperties(fname=FONT).get_name()
    return {"font.family": [name, "DejaVu Sans"], "axes.unicode_minus": False}


@contextmanager
def figure_to(path: Path, **size) -> Iterator:
    """一张空的图表，中文已经设好；画完（离开 with）写进 path。"""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(chinese()):
        figure = Figure(**size, layout="constrained")
        yield figure
        write_whole(path, lambda to: figure.savefig(to, format="png"))


def plot_loss(run: Path) -> Path:
    """画 loss.png：训练损失（细）、滑动平均（粗）、留出集损失与底模的参考线。"""
    with figure_to(run / "loss.png", figsize=(8, 4.2), dpi=110) as figure:
        draw_loss(figure.add_subplot(), run_folder.read(run))
    return run / "loss.png"


def smooth(losses: np.ndarray, window: int = 25) -> np.ndarray:
    """滑动平均：每一步与它前面的，一共 window 步。"""
    return np.array([losses[max(0, i - window + 1) : i + 1].mean() for i in range(len(losses))])


def draw_held(axes, held: Sequence[tuple[int, float]], size: float, label: str, base=None):
    """留出集的线 [(步数, 损失)]，与第一次检验的参考线（base 是它的名字，没有就不写）。"""
    steps, losses = zip(*held, strict=True)
    axes.plot(steps, losses, "o-", color=RED, lw=2, ms=size, label=label)
    axes.axhline(losses[0], color=RED, lw=1, ls=":", label=base)


def draw_loss(axes, metrics: list[dict]):
    """把损失曲线画进一个 matplotlib 坐标轴；字体由调用者设好。"""
    train = [(m["step"], m["loss"]) for m in metrics if m.get("loss") is not None]
    held = list(held_by_step(metrics).items())
    if train:
        steps, losses = map(np.array, zip(*train, strict=True))
        axes.plot(steps, losses, color="#c8d0dc", lw=0.8, label="训练损失（每步换噪声，所以抖）")
        axes.plot(steps, smooth(losses), color="#5078b4", lw=1.6, label="训练损失的滑动平均")
        shown = [*np.quantile(losses, [0.01, 0.98]), *(loss for _, loss in held)]
        axes.set_ylim(max(0, min(shown) * 0.8), max(shown) * 1.15)
    if held:
        base = "没有 LoRA 时的留出集损失" if held[0][0] == 0 else None
        draw_held(axes, held, 5, "留出集损失（固定噪声，看这条）", base)
        best = min(held, key=lambda pair: pair[1])
        if best not in (held[0], held[-1]):
            star = dict(color=RED, ms=14, mec="white", zorder=3)
            axes.plot(*best, "*", **star, label=f"留出集损失最低：第 {best[0]} 步")
    axes.set_xlabel("步数")
    axes.set_ylabel("损失")
    axes.set_title("损失降了没有（学没学会，还要看画面）")
    if train or held:
        axes.legend(fontsize=9, loc="upper right")
    axes.grid(alpha=0.25)


def write_run_card(run: Path, config: Config, dataset, seconds: float, device: str) -> Path:
    """写 run.json：版本、设备、用时、数据的指纹。"""
    packages = ("lorakit", "torch", "diffusers", "transformers", "peft", "accelerate")
    items = (*dataset.train, *dataset.held)
    facts = {
        "data": data_hash(dataset),
        "versions": {
            "python": platform.python_version(),
            **{name: version_of(name) for name in packages},
        },
        "device": device,
        "seconds": round(seconds, 1),
        "pictures": {item.record.path.name: item.record.digest for item in items},
        "controls": {
            i.record.path.name: i.record.control_digests for i in items if i.record.controls
        },
        "held_out": [item.record.path.name for item in dataset.held],
        "seed": config.train.seed,
    }
    return write_text(run / "run.json", json.dumps(facts, ensure_ascii=False, indent=1))
