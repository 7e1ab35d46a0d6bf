"""图的大小的界限；还不知道用哪个底模时，照着它们裁切、配对的几个数。"""

from pathlib import Path

from lorakit.data.report import Problem

MIN_SIDE = 32  # 像素；再小就没有可学的细节
LARGE = 40_000_000  # 像素；能用，但每次解码都慢
MAX_RATIO = 4  # 桶最多到 2:1，比 4:1 还长的图会被裁掉一半以上

# 家族各自的数写在家族里；体检文件夹时还没有选家族（也不等 torch），有测试对着每个家族核对这三个
MULTIPLE = 16  # 文生图家族的宽高都要是它的倍数
PAIRED = 32  # 能改图的家族里最大的
CONTROLS = 6  # 最多看几张控制图：FLUX.2 dev；别的少些，选好底模再核对


def check_size(path: Path, size: tuple[int, int]) -> list[Problem]:
    """太小、太细长、太大。"""
    width, height = size
    shape, ratio = f"{width}x{height}", max(size) / min(size)
    problems = []
    if min(size) < MIN_SIDE:
        reason = f"太小（{shape}），短边至少要 {MIN_SIDE} 像素"
        mend = "换一张大的；放大小图不会多出细节"
        problems.append(Problem.error("picture_small", path, reason, mend))
    elif ratio > MAX_RATIO:
        reason = f"太细长（{shape}，{ratio:.1f}:1），训练时会从中间裁掉一大半"
        problems.append(Problem.warning("ratio", path, reason, "自己裁成几张 2:1 以内的图"))
    if width * height > LARGE:
        reason = f"很大（{shape}，{width * height / 1e6:.0f} 百万像素），读得慢，也不会学得更好"
        problems.append(Problem.warning("picture_large", path, reason, "缩小到长边 4000 像素以内"))
    return problems
