"""考官：一个多头小 CNN，看图说出物体、颜色、背景、位置、大小、画风、是不是 ohwx。

它把“看起来像”变成数字：底模听不听话、LoRA 学没学会画风、有没有忘掉原来的本事。
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from lorakit.files import ASSETS
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
        h = self.body(x)  # (B, 3, 128, 128) -> (B, 5w, 8, 8)
        h = torch.cat([self.neck(h), self.mean(h)], dim=1)
        return {name: head(h) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Verdict:
    """考官对一张图的判断；每一项是名字，如 object="cat"、style="papercut"。"""

    object: str
    color: str
    background: str
    side: str
    size: str
    style: str
    character: str


@lru_cache(maxsize=1)
def load() -> Examiner:
    """载入随包的考官。"""
    model = Examiner()
    model.load_state_dict({k: v.float() for k, v in load_file(WEIGHTS).items()})
    return model.eval()


def to_pixels(images: list[Image.Image]) -> torch.Tensor:
    """PIL 图 -> (B, 3, 128, 128)，取值 [-1, 1]。"""
    arrays = [np.asarray(i.convert("RGB").resize((128, 128), Image.Resampling.BOX)) for i in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def examine(images: list[Image.Image]) -> list[Verdict]:
    """看图 -> 每张图一个 Verdict。"""
    scores = load()(to_pixels(images))
    picks = {name: s.argmax(-1).tolist() for name, s in scores.items()}
    return [
        Verdict(**{name: HEADS[name][picks[name][i]] for name in HEADS}) for i in range(len(images))
    ]


def share(verdicts: list[Verdict], **expected) -> float:
    """判断与期望一致的比例；期望可以是一个值，也可以是逐张的列表。"""
    hits = 0
    for i, verdict in enumerate(verdicts):
        hits += all(
            getattr(verdict, key) == (value[i] if isinstance(value, (list, tuple)) else value)
            for key, value in expected.items()
        )
    return hits / len(verdicts)


def augment(x: torch.Tensor) -> torch.Tensor:
    """训练考官时的干扰：轻微模糊、噪声、亮度，让它也认得生成的图。"""
    n = x.shape[0]
    soft = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear", align_corners=False)
    mix = torch.rand(n, 1, 1, 1, device=x.device) * (torch.rand(n, 1, 1, 1, device=x.device) < 0.5)
    x = x + mix * (soft - x)
    x = x + torch.randn_like(x) * 0.12 * torch.rand(n, 1, 1, 1, device=x.device)
    return x * (1 + 0.1 * torch.randn(n, 1, 1, 1, device=x.device))
