"""训练时多练哪些 t、推理时走过哪些 t；画出来比一比。"""

from pathlib import Path

import numpy as np
import torch

from lorakit import flow
from lorakit.config import Config
from lorakit.results.report import figure_to


def plot_density(config: Config, family, path: Path) -> Path:
    """画训练时抽的 t 与推理时走过的 t 各有多密：差得远，画的时候就用着没怎么练过的。"""
    train, draw = train_times(config, family).numpy(), draw_times(config, family)
    with figure_to(path, figsize=(7, 3.6), dpi=110) as figure:
        axes, edges = figure.add_subplot(), np.linspace(0, 1, 11)
        axes.hist(
            train, edges, density=True, color="#5078b4", label=f"训练，平均 {train.mean():.2f}"
        )
        axes.hist(draw, edges, density=True, histtype="step", color="#c4382c", lw=2,
                  label=f"推理，平均 {draw.mean():.2f}")  # fmt: skip
        axes.set(
            xlabel="t（0 是原图，1 是纯噪声）", ylabel="密度", title="练的和用的是不是同样的 t"
        )
        axes.legend(fontsize=9)
    return path


def train_times(config: Config, family, count: int = 4001) -> torch.Tensor:
    """训练时 t 的分布：count 个等概率的分位点，(count,)。"""
    place = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    if config.train.timestep.density == "logit-normal":
        place = torch.sigmoid(torch.special.ndtri(place))
    side, shift = config.data.resolution, config.train.timestep.shift
    return flow.shift_t(place, family.shift(side, side) if shift == "auto" else float(shift))


def draw_times(config: Config, family) -> np.ndarray:
    """推理走过的 t：stock 管线在这个尺寸上的 50 步，每步取中点，(50,)。"""
    side = config.sample.size or config.data.resolution
    ends = np.asarray(family.times(50, side, side))
    return (ends[1:] + ends[:-1]) / 2
