"""照指令改图：控制图缩放到合适的大小，同样大的拼成一批。"""

from collections.abc import Sequence
from itertools import groupby

from PIL import Image

from lorakit.config.groups import Sample
from lorakit.infer import sampler
from lorakit.infer.checks import check_pictures, check_size
from lorakit.infer.decoding import fit_vae
from lorakit.infer.draw import BATCH
from lorakit.infer.fitting import area, fit, seen


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
    fit_vae(family, area(size))
    jobs = []
    for i, (prompt, pictures) in enumerate(zip(prompts, controls, strict=True)):
        check_pictures(family, pictures)
        fitted = fit(family, pictures, size)
        jobs.append((settings.seed + i, prompt, seen(family, pictures, size), fitted))
    images: list[Image.Image] = []
    for shapes, group in groupby(jobs, key=lambda job: [picture.size for picture in job[3]]):
        same = list(group)  # 控制图一样大的才能拼成一批
        wanted = size if isinstance(size, tuple) else shapes[-1]
        for start in range(0, len(same), BATCH):
            seeds, said, looks, fitted = zip(*same[start : start + BATCH], strict=True)
            how = (settings.steps, settings.guidance)
            images += sampler.sample(
                family, pipe.transformer, said, looks, fitted, seeds, wanted, *how
            )
    return images
