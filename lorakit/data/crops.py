"""图要裁成多大、裁在哪里：分桶、居中裁切，以及翻转与随机裁切这几种样子。"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lorakit.data.record import Record
from lorakit.data.report import Problem, names
from lorakit.errors import DataError

Box = tuple[float, float, float, float]  # 左、上、右、下，原图的像素
ENLARGED = 1.5  # 放大到这么多倍以上，看得出模糊


def buckets(resolution: int, multiple: int) -> list[tuple[int, int]]:
    """分桶用的 (宽, 高)：面积约为 resolution²，宽高比 1:2 到 2:1，都是 multiple 的倍数，含正方形。

    Raises:
        DataError: resolution 不是 multiple 的倍数。
    """
    if resolution <= 0 or resolution % multiple:
        low = max(resolution // multiple, 1) * multiple
        near = f"最近的是 {low} 和 {low + multiple}"
        raise DataError(f"分辨率要是 {multiple} 的倍数，得到 {resolution}；{near}。")
    # 步子约为边长的 1/16：桶再多，每桶只剩一两张图，一批就凑不满；最多多裁 7%
    step = max(multiple, round(resolution / 16 / multiple) * multiple)
    sizes = {(resolution, resolution)}
    for width in range(resolution, int(resolution * math.sqrt(2)) + 1, step):
        height = round(resolution**2 / width / multiple) * multiple
        if height and width <= 2 * height and abs(width * height / resolution**2 - 1) < 0.15:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def bucket_for(size: tuple[int, int], resolution: int, multiple: int) -> tuple[int, int]:
    """宽高比最接近 size 的桶（按比值的对数，横竖一样对待）。"""
    aspect = math.log(size[0] / size[1])
    return min(
        buckets(resolution, multiple), key=lambda b: (abs(math.log(b[0] / b[1]) - aspect), b)
    )


def fit(image: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, Box]:
    """从中间裁出 size 的宽高比、缩放一次到 size（像素），不变形。

    Returns:
        (图, 裁切框)；框是原图坐标 (左, 上, 右, 下)，可以有小数。
    """
    box = crop_box(image.size, size)
    return image.resize(size, Image.Resampling.LANCZOS, box=box), box


def framing(
    records: Sequence[Record], resolution: int, multiple: int, folder: Path
) -> list[Problem]:
    """按这个分辨率训练时，各桶有几张、裁得最多的是哪张；要放大才够大的图是警告。"""
    if not records:
        return []
    boxes = {r.path: bucket_for(r.size, resolution, multiple) for r in records}
    kept, grown = {}, {}
    for record in records:
        size, box = record.size, crop_box(record.size, boxes[record.path])
        kept[record.path] = (box[2] - box[0]) * (box[3] - box[1]) / (size[0] * size[1])
        grown[record.path] = boxes[record.path][0] / (box[2] - box[0])
    counts = Counter(boxes.values()).most_common()
    shown = "、".join(f"{width}x{height} {count} 张" for (width, height), count in counts[:5])
    more = f" 等 {len(counts)} 种" if len(counts) > 5 else ""
    most = min(kept, key=kept.get)
    lost = f"；裁掉最多的是 {most.name}，裁掉 {1 - kept[most]:.0%}（网页报告里画着红框）"
    lost = lost if kept[most] < 0.995 else ""
    reason = f"按分辨率 {resolution} 训练时的尺寸（宽x高）：{shown}{more}{lost}"
    problems = [Problem.note("buckets", reason)]
    blurred = [path for path, times in grown.items() if times > ENLARGED]
    if blurred:
        times = max(grown.values())
        reason = f"{len(blurred)} 张图比训练尺寸小，要放大（最多 {times:.1f} 倍），会学到模糊的样子"
        reason += f"：{names(blurred, folder)}"
        mend = "换成大一点的原图，或把 data.resolution 改小"
        problems.append(Problem.warning("enlarged", None, reason, mend))
    return problems


def crop_box(source: tuple[int, int], size: tuple[int, int]) -> Box:
    """从 source 大小的图中间裁出 size 的宽高比：最大的那个框 (左, 上, 右, 下)。"""
    width, height = source
    if width * size[1] > height * size[0]:  # 太宽，裁左右
        inner, outer = height * size[0] / size[1], float(height)
    else:
        inner, outer = float(width), width * size[1] / size[0]
    left, top = max(0.0, (width - inner) / 2), max(0.0, (height - outer) / 2)
    return left, top, min(left + inner, float(width)), min(top + outer, float(height))


SMALLEST = 0.8  # 随机裁切的边长最小是最大框的这么多倍：再小，描述里说的东西可能就裁没了


class View(NamedTuple):
    """一种样子：翻不翻转、第几种裁切（0 是正中间最大的）。"""

    flip: bool = False
    crop: int = 0
    place: str = ""  # 裁在哪里由这个内容哈希决定；空的就用自己的（控制图用目标图的，才裁在同一处）

    def fields(self) -> dict:
        """写进缓存键的字段；原样不写，所以以前的缓存仍然有效。"""
        flip = {"flip": True} if self.flip else {}
        crop = {"crop": self.crop} if self.crop else {}
        return flip | crop | ({"place": self.place} if self.crop and self.place else {})


def views(flip: bool, crops: int) -> list[View]:
    """要编码的全部样子；第一种总是正中间、不翻转。"""
    return [View(turned, crop) for crop in range(crops) for turned in (False, True)[: 1 + flip]]


def box_for(source: tuple[int, int], size: tuple[int, int], view: View, digest: str) -> Box:
    """这种样子在原图（宽, 高）上的裁切框 (左, 上, 右, 下)，宽高比与 size 相同。"""
    left, top, right, bottom = crop_box(source, size)
    if not view.crop:
        return left, top, right, bottom
    rng = np.random.default_rng([view.crop, int((view.place or digest)[:12], 16)])
    scale, x, y = rng.uniform(SMALLEST, 1), rng.random(), rng.random()
    width, height = (right - left) * scale, (bottom - top) * scale
    left, top = x * (source[0] - width), y * (source[1] - height)
    return left, top, min(left + width, source[0]), min(top + height, source[1])


def show(
    image: Image.Image, size: tuple[int, int], view: View, digest: str,
    filter: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:  # fmt: skip
    """裁切、缩放一次到 size，需要时翻转。"""
    shown = image.resize(size, filter, box=box_for(image.size, size, view, digest))
    return _turned(shown, view)


def cut(image: Image.Image, size: tuple[int, int], view: View, digest: str) -> Image.Image:
    """文本编码器看到的控制图：和 show 裁在同一处、一样翻转，但不缩放；没有另外裁切就是整张。"""
    if view.crop:
        image = image.crop([round(edge) for edge in box_for(image.size, size, view, digest)])
    return _turned(image, view)


def _turned(image: Image.Image, view: View) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else image
