"""考官：一个多头小 CNN，看图说出物体、颜色、背景、位置、大小、画风、是不是 ohwx。

它把“看起来像”变成数字：底模听不听话、LoRA 学没学会画风、有没有忘掉原来的本事。
认不准的、不是小世界里的，它说“看不出”，不硬猜；门槛在没练过的图上定（pretrain/calibrate.py）。
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from lorakit.data.color import on_white
from lorakit.files import ASSETS
from lorakit.results.evidence import Share
from lorakit.tiny.styles import STYLES
from lorakit.tiny.world import BACKGROUNDS, COLORS, OBJECTS, SIDES, SIZES

HEADS = {
    "object": OBJECTS,
    "color": tuple(COLORS),
    "background": tuple(BACKGROUNDS),
    "side": tuple(SIDES),
    "size": tuple(SIZES),
    "style": ("", *STYLES),
    "character": ("", "ohwx"),
}
WEIGHTS = ASSETS / "examiner.safetensors"
CALIBRATION = ASSETS / "examiner-calibration.safetensors"
UNSURE = "看不出"


class Examiner(nn.Module):
    """(B, 3, 128, 128)、取值 [-1, 1] -> 每个头的得分；约 23 万参数。"""

    def __init__(self, width: int = 24):
        super().__init__()
        w = width
        plan = [(3, w, 2), (w, 2 * w, 2), (2 * w, 3 * w, 2), (3 * w, 4 * w, 2), (4 * w, 5 * w, 1)]
        layers = []
        for cin, cout, stride in plan:
            layers += [nn.Conv2d(cin, cout, 3, stride, 1), nn.GroupNorm(4, cout), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        # 位置要靠坐标判断，所以不做全局平均，只把 8x8 压到 4x4 再展平
        self.neck = nn.Sequential(nn.Conv2d(5 * w, 16, 1), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.heads = nn.ModuleDict(
            {name: nn.Linear(16 * 16 + 5 * w, len(options)) for name, options in HEADS.items()}
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.look(x)[0]

    def look(self, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """每个头的得分，与平均过的特征 (B, 5w)。"""
        h = self.body(x)  # (B, 3, 128, 128) -> (B, 5w, 8, 8)
        mean = self.mean(h)
        h = torch.cat([self.neck(h), mean], dim=1)
        return {name: head(h) for name, head in self.heads.items()}, mean


@dataclass(frozen=True)
class Verdict:
    """考官对一张图的判断；每一项是名字，如 object="cat"、style="papercut"，或 UNSURE。"""

    object: str
    color: str
    background: str
    side: str
    size: str
    style: str
    character: str


@lru_cache(maxsize=1)
def load(weights: Path = WEIGHTS) -> Examiner:
    """载入随包的考官（或别处的一个）。"""
    model = Examiner()
    model.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    return model.eval()


@dataclass(frozen=True)
class Calibration:
    """定好的门槛：每个头的温度与至少要有的把握；特征离小世界多远算不是它。"""

    temperature: dict[str, float]
    least: dict[str, float]
    mean: torch.Tensor  # (5w,)
    whiten: torch.Tensor  # (5w, 5w)：乘上它，小世界的特征就各个方向一样宽
    farthest: float

    def distance(self, features: torch.Tensor) -> torch.Tensor:
        """特征 (B, 5w) 离小世界多远 (B,)（马氏距离）。"""
        return ((features - self.mean) @ self.whiten).norm(dim=1)


@lru_cache(maxsize=1)
def calibration() -> Calibration:
    """随包的门槛。"""
    with safe_open(CALIBRATION, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        parts = {name: file.get_tensor(name) for name in ("mean", "whiten")}
    return Calibration(facts["temperature"], facts["least"], **parts, farthest=facts["farthest"])


def to_pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """PIL 图 -> (B, 3, 128, 128)，取值 [-1, 1]。"""
    arrays = [np.asarray(on_white(i).resize((128, 128), Image.Resampling.BOX)) for i in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def examine(
    images: Sequence[Image.Image],
    limits: Calibration | None = None,
    model: Examiner | None = None,
) -> list[Verdict]:
    """看图 -> 每张图一个 Verdict；没有把握的项、不是小世界的图，写 UNSURE。"""
    limits = limits or calibration()
    scores, features = (model or load()).look(to_pixels(images))
    strange = limits.distance(features) > limits.farthest
    picks = {}
    for name, score in scores.items():
        sure, pick = (score / limits.temperature[name]).softmax(-1).max(-1)
        unsure = (strange | (sure < limits.least[name])).tolist()
        named = [HEADS[name][i] for i in pick.tolist()]
        picks[name] = [UNSURE if u else one for u, one in zip(unsure, named, strict=True)]
    return [Verdict(*row) for row in zip(*(picks[name] for name in HEADS), strict=True)]


def share(verdicts: Sequence[Verdict], **expected) -> Share:
    """判断与期望一致的有几张，带区间；期望可以是一个值，也可以是逐张的列表。看不出的不算一致。"""
    return Share.of([agrees(verdict, i, expected) for i, verdict in enumerate(verdicts)])


def agrees(verdict: Verdict, i: int, expected: Mapping) -> bool:
    """第 i 张的判断与期望的每一项都一致。"""
    return all(
        getattr(verdict, key) == (value[i] if isinstance(value, (list, tuple)) else value)
        for key, value in expected.items()
    )


def augment(x: torch.Tensor) -> torch.Tensor:
    """训练考官时的干扰：轻微模糊、噪声、亮度，让它也认得生成的图。"""
    n = x.shape[0]
    soft = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear", align_corners=False)
    mix = torch.rand(n, 1, 1, 1, device=x.device) * (torch.rand(n, 1, 1, 1, device=x.device) < 0.5)
    x = x + mix * (soft - x)
    x = x + torch.randn_like(x) * 0.12 * torch.rand(n, 1, 1, 1, device=x.device)
    return x * (1 + 0.1 * torch.randn(n, 1, 1, 1, device=x.device))


def clear(image: Image.Image) -> bool:
    """RGBA 的图：四角都透明，东西（最不透明的那一成不到）不透明。"""
    alpha = np.asarray(image)[..., 3]
    corners = [alpha[:8, :8], alpha[:8, -8:], alpha[-8:, :8], alpha[-8:, -8:]]
    return bool(max(one.mean() for one in corners) < 26 and np.quantile(alpha, 0.93) > 230)


def solid(image: Image.Image) -> bool:
    """RGBA 的图：处处不透明。"""
    return bool(np.quantile(np.asarray(image)[..., 3], 0.02) > 230)
