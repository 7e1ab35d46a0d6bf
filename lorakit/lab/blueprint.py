"""网络的结构图：照真正的设置搭一个没有权重的骨架，读它，画出来；微型的和真的是同一张图纸。"""

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import nn

from lorakit.config import load_config
from lorakit.errors import LorakitError
from lorakit.families import open_blank
from lorakit.lab.display import show
from lorakit.lab.picture import BLUE, ORANGE, chart

IMAGE, TEXT, BOTH, SIDE = "#dfe9f7", "#fbe3e0", "#e9f4ec", "#fdf3e1"
INPUTS = {"图": ("img_in", "x_embedder"), "文字": ("txt_in", "context_embedder")}
GLOBAL = {"guidance_embedder": "引导", "text_embedder": "整句话"}  # 随 t 一起送进每一块的


@dataclass(frozen=True)
class Facts:
    """从骨架里读出来的：几块、多宽、进去多宽、除了 t 还有什么管着每一块。"""

    name: str
    parameters: int
    double: int
    single: int
    width: int
    heads: int
    inputs: dict[str, int]
    tokens: int
    told: tuple[str, ...]


@cache
def facts(preset: str) -> Facts:
    """预设的名字 -> 它的 Transformer 的样子；只按形状，不下载、不占内存。

    Raises:
        LorakitError: 这个家族不是双流、单流块搭的。
    """
    config = load_config(preset)
    with tempfile.TemporaryDirectory() as folder:
        family = open_blank(config, Path(folder), torch.device("meta"), torch.bfloat16)
        net = family.skeleton()
    inputs = {what: _input(net, names) for what, names in INPUTS.items()}
    if not hasattr(net, "transformer_blocks") or None in inputs.values():
        raise LorakitError(
            f"结构图只会画双流、单流块搭成的网络（Qwen-Image、FLUX）；{preset} 不是这样搭的。"
        )
    inside = [name for name, _ in net.time_text_embed.named_children()]
    return Facts(
        preset,
        sum(p.numel() for p in net.parameters()),
        len(net.transformer_blocks),
        len(getattr(net, "single_transformer_blocks", ())),
        net.config.num_attention_heads * net.config.attention_head_dim,
        net.config.num_attention_heads,
        inputs,
        (config.data.resolution // 16) ** 2,
        tuple(said for name, said in GLOBAL.items() if name in inside),
    )


def _input(net: nn.Module, names: tuple[str, ...]) -> int | None:
    found = (getattr(net, name, None) for name in names)
    return next((layer.in_features for layer in found if isinstance(layer, nn.Linear)), None)


def blueprint(*presets: str) -> None:
    """摆出一个或几个预设的网络结构图，例如 blueprint("tiny-qwen-image", "qwen-image")。"""
    show(drawn(*presets))


def drawn(*presets: str) -> Figure:
    """结构图，一张图表。"""
    figure, axes = chart(len(presets), height=3.5, width=3.7 * len(presets), squeeze=False)
    for axis, preset in zip(axes[0], presets, strict=True):
        _draw(axis, facts(preset))
    return figure


def _draw(axes: Axes, net: Facts):
    """从下往上：进来的词元 -> 双流块 -> 单流块 -> 速度；左边是管着每一块的 t。"""
    axes.set(xlim=(0, 10), ylim=(0, 9.9), title=f"{net.name}：{_count(net.parameters)}参数")
    axes.axis("off")
    _box(axes, 2.2, 0.2, 3.6, 1.1, f"文字词元\n{net.inputs['文字']} 个数一个", TEXT)
    _box(axes, 6.2, 0.2, 3.6, 1.1, f"图的词元 {net.tokens} 个\n{net.inputs['图']} 个数一个", IMAGE)
    _arrow(axes, 4.0, 1.35, 2.0), _arrow(axes, 8.0, 1.35, 2.0)
    top = 6.6
    _stack(axes, 2.0)
    for y in (2.3, 4.7):
        _box(axes, 2.4, y, 3.2, 0.9, "文字的权重", TEXT)
        _box(axes, 6.4, y, 3.2, 0.9, "图的权重", IMAGE)
    _box(axes, 2.4, 3.5, 7.2, 0.9, "注意力：两边互相看", BOTH)
    said = {"ha": "center", "va": "center", "fontsize": 9.5, "color": BLUE}
    axes.text(6.0, 6.05, f"双流块 × {net.double}", **said)
    if net.single:
        _arrow(axes, 6.0, top, top + 0.4)
        _box(axes, 2.2, top + 0.4, 7.6, 1.0, f"单流块 × {net.single}：排成一队，共用权重", BOTH)
        top += 1.4
    _arrow(axes, 8.0, top, top + 0.55)
    _box(axes, 6.2, top + 0.6, 3.6, 1.0, "速度（只留图的）", IMAGE)
    wide = f"每个词元 {net.width:,} 个数\n注意力 {net.heads} 个头"
    axes.text(2.2, top + 1.1, wide, va="center", fontsize=8.5)
    told = "\n".join(["时间步 t", *net.told])
    tall = 0.9 + 0.55 * len(net.told)
    _box(axes, 0.0, 3.95 - tall / 2, 1.6, tall, told, SIDE)
    axes.annotate("", (2.05, 3.95), (1.65, 3.95), arrowprops={"arrowstyle": "->", "color": ORANGE})


def _stack(axes: Axes, bottom: float):
    """叠着的几块：后面露出两个角，最前面的一块打开看。"""
    for back in (0.3, 0.15, 0.0):
        corner = (2.1 + back, bottom + back)
        axes.add_patch(Rectangle(corner, 7.6, 4.5, fc="white", ec=BLUE, lw=0.9))


def _box(axes: Axes, x: float, y: float, wide: float, tall: float, said: str, color: str):
    shape = {"boxstyle": "round,pad=0,rounding_size=0.2", "fc": color, "ec": "#b9c2cf", "lw": 0.8}
    axes.add_patch(FancyBboxPatch((x, y), wide, tall, zorder=3, **shape))
    axes.text(x + wide / 2, y + tall / 2, said, ha="center", va="center", fontsize=8.5, zorder=4)


def _arrow(axes: Axes, x: float, start: float, end: float):
    axes.annotate("", (x, end), (x, start), arrowprops={"arrowstyle": "->", "color": "#6b7685"})


def _count(n: int) -> str:
    return f"{n / 1e8:,.0f} 亿" if n >= 1e8 else f"{n / 1e4:,.0f} 万"
