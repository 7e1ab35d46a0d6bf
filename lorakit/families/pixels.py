"""图与张量互换；只有这一处，大家用的都是同一种取值范围。"""

import numpy as np
import torch
from PIL import Image


def to_pixels(image: Image.Image) -> torch.Tensor:
    """图 (RGB 或 RGBA) -> (1, 3 或 4, H, W)，[-1, 1]。"""
    values = torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1)
    return values.permute(2, 0, 1)[None]  # (H, W, C) -> (1, C, H, W)


def to_image(pixels: torch.Tensor) -> Image.Image:
    """(3 或 4, H, W)、[-1, 1] -> 图 (RGB 或 RGBA)。"""
    values = (pixels.float().cpu().permute(1, 2, 0) * 127.5 + 127.5).round().clamp(0, 255)
    return Image.fromarray(values.numpy().astype(np.uint8))
