"""数据在哪儿走：从一夹图到一个 LoRA、再到一张新图，一张地图；五本共用，标出“你在这里”。"""

import difflib

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from lorakit.errors import LorakitError
from lorakit.lab.display import show
from lorakit.lab.picture import GRAY, RED, chart

WIDE, TALL = 1.3, 0.72  # 一格的宽和高，单位是坐标
SOFT = {"data": "#eef2f8", "train": "#e9f4ec", "use": "#fdf3e1"}
STAGES = {  # 名字 -> (写在格子里的字, 中心的 x、y, 哪一段)
    "folder": ("图 + 描述", 0.75, 3.1, "data"),
    "check": ("体检、裁切", 2.35, 3.1, "data"),
    "vae": ("VAE 压小", 3.95, 3.6, "data"),
    "text": ("描述变成数", 3.95, 2.6, "data"),
    "cache": ("缓存", 5.55, 3.1, "data"),
    "noise": ("加噪", 7.15, 3.1, "train"),
    "network": ("Transformer\n+ LoRA", 8.75, 3.1, "train"),
    "loss": ("损失、更新", 10.35, 3.1, "train"),
    "file": ("检查点\nLoRA 文件", 10.35, 1.0, "train"),
    "sample": ("采样：\n一步步走", 7.15, 1.0, "use"),
    "decode": ("VAE 还原", 5.55, 1.0, "use"),
    "image": ("新的图", 3.95, 1.0, "use"),
    "share": ("导出、发布", 8.75, 0.2, "use"),
}
ROADS = (
    *(("folder", "check"), ("check", "vae"), ("check", "text"), ("vae", "cache")),
    *(("text", "cache"), ("cache", "noise"), ("noise", "network"), ("network", "loss")),
    *(("loss", "file"), ("file", "sample"), ("sample", "decode"), ("decode", "image")),
    ("file", "share"),
)
HEADS = (("数据（02）", 0.1), ("训练（01、03、04）", 6.5))
USE = "使用（01、05）：\n写一句提示词，\n从噪声走到图"
DIM = "#6b7685"


def where(*stages: str) -> None:
    """摆出地图，点亮这几处；名字见 STAGES，不写就只是地图。

    Raises:
        LorakitError: 没有这个名字的地方。
    """
    show(drawn(*stages))


def drawn(*stages: str) -> Figure:
    """地图，一张图表。"""
    for one in stages:
        if one not in STAGES:
            near = difflib.get_close_matches(one, STAGES, 1)
            tail = f"是不是想写“{near[0]}”？" if near else f"有的是：{'、'.join(STAGES)}。"
            raise LorakitError(f"地图上没有“{one}”。{tail}")
    figure, axes = chart(height=2.75, width=7.6)
    axes.set(xlim=(0, 11.1), ylim=(-0.35, 4.55))
    axes.axis("off")
    for start, end in ROADS:
        _road(axes, start, end)
    axes.annotate(  # 更新完，回去取下一批
        "", (7.15, 3.52), (10.35, 3.52),
        arrowprops={"arrowstyle": "->", "color": GRAY, "connectionstyle": "arc3,rad=0.22"},
    )  # fmt: skip
    axes.text(8.75, 4.08, "每一步走一圈", ha="center", fontsize=8, color=DIM)
    for name in STAGES:
        _stage(axes, name, name in stages)
    for said, x in HEADS:
        axes.text(x, 4.35, said, fontsize=9.5, color=DIM)
    axes.text(0.1, 0.9, USE, fontsize=9.5, color=DIM, va="center")
    return figure


def _stage(axes: Axes, name: str, here: bool):
    said, x, y, part = STAGES[name]
    look = {
        "boxstyle": "round,pad=0.02,rounding_size=0.12",
        "fc": "#fde8e5" if here else SOFT[part],
    }
    look |= {"ec": RED, "lw": 2.2} if here else {"ec": "#b9c2cf", "lw": 0.9}
    axes.add_patch(FancyBboxPatch((x - WIDE / 2, y - TALL / 2), WIDE, TALL, zorder=2, **look))
    axes.text(x, y, said, ha="center", va="center", fontsize=8.5, zorder=3)
    if here:
        above = name == "vae"  # 它下面紧挨着另一格
        edge = y + TALL / 2 + 0.06 if above else y - TALL / 2 - 0.06
        place = {"ha": "center", "va": "bottom" if above else "top"}
        axes.text(x, edge, "你在这里", fontsize=8.5, color=RED, zorder=4, **place)


def _road(axes: Axes, start: str, end: str):
    (_, x, y, _), (_, u, v, _) = STAGES[start], STAGES[end]
    if abs(u - x) > 0.1:  # 从左右两边出去
        side = WIDE / 2 if u > x else -WIDE / 2
        head, tail = (u - side, v), (x + side, y)
    else:
        head, tail = (u, v + TALL / 2), (x, y - TALL / 2)
    axes.annotate("", head, tail, arrowprops={"arrowstyle": "->", "color": DIM}, zorder=1)
