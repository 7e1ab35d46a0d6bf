"""照指令改图：控制图缩放到合适的大小，同样大的拼成一批。"""

import math
from collections.abc import Sequence
from itertools import groupby

from PIL import Image

from lorakit.config.groups import Sample
from lorakit.infer import sampler
from lorakit.infer.checks import check_pictures, check_size
from lorakit.infer.draw import BATCH
from lorakit.infer.pipeline import fit_vae

LANCZOS = Image.Resampling.LANCZOS


def edit(
    family,
    pipe,
    prompts: Sequence[str],
    controls: Sequence[Sequence[Image.Image]],
    settings: Sample,
    size: tuple[int, int] | int,
) -> list[Image.Image]:
    """照每句指令改图：controls[i] 是第 i 句的一到三张控制图；第 i 张的种子是 settings.seed + i。

    stock 编辑管线总把图放大到一百万像素，微型模型受不了，所以这里自己走欧拉步；
    时间、引导与 stock 的相同（有测试逐张对照）。

    Args:
        size: (宽, 高)，像素，必须是 family.multiple 的倍数；一个数就是面积的边长，形状随最后一张
            控制图。控制图缩放到一样的面积。
    """
    check_size(family, size if isinstance(size, tuple) else (size, size))
    area = math.prod(size) if isinstance(size, tuple) else size**2
    fit_vae(family, area)
    side, unit = round(math.sqrt(area) / family.multiple) * family.multiple, family.multiple
    jobs = []
    for i, (prompt, pictures) in enumerate(zip(prompts, controls, strict=True)):
        check_pictures(family, pictures)
        fitted = [p.resize(near_shape(p.size, side, unit), LANCZOS) for p in pictures]
        jobs.append((settings.seed + i, prompt, pictures, fitted))
    images: list[Image.Image] = []
    for shapes, group in groupby(jobs, key=lambda job: [picture.size for picture in job[3]]):
        same = list(group)  # 控制图一样大的才能拼成一批
        wanted = size if isinstance(size, tuple) else shapes[-1]
        for start in range(0, len(same), BATCH):
            seeds, said, seen, fitted = zip(*same[start : start + BATCH], strict=True)
            how = (settings.steps, settings.guidance)
            images += sampler.sample(
                family, pipe.transformer, said, seen, fitted, seeds, wanted, *how
            )
    return images


def near_shape(size: tuple[int, int], side: int, unit: int) -> tuple[int, int]:
    """与 size 形状最接近、面积约 side²、两边都是 unit 倍数的 (宽, 高)；与 stock 编辑管线相同。"""
    width = math.sqrt(side**2 * size[0] / size[1])
    height = width * size[1] / size[0]
    return tuple(max(unit, round(edge / unit) * unit) for edge in (width, height))
