"""04 的练习：打包、位置编号、时间偏移、两个引导值、从九宫格里挑一个、80 张里挑 20 张。"""

import math
import random
from functools import partial

import torch

from lorakit import flow
from lorakit.lab import practice as album
from lorakit.lab.exercises.answers import is_number, listed, pair, plain
from lorakit.lab.exercises.judge import Exercise


def _numbered(*shape: int) -> torch.Tensor:
    return torch.arange(math.prod(shape)).float().view(shape)


def _same(made, want: torch.Tensor) -> bool:
    return made.shape == want.shape and torch.equal(made.float(), want)


def _pack(x: torch.Tensor) -> torch.Tensor:
    """PyTorch 自己的 2x2 打包，当作标准答案。"""
    return torch.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


X = _numbered(2, 3, 4, 6)  # (B, C, h, w)，宽高不等，写反了就看得出
B, C, H, W = X.shape

PACK = Exercise(
    "pack",
    (
        (lambda f: torch.is_tensor(f(X)), "要返回一个张量：一批图的词元。"),
        (lambda f: f(X).numel() == X.numel(), "数的个数变了：打包只是换个摆法，一个数也不丢。"),
        (lambda f: f(X).dim() == 3, "要三维：(几张图, 几个词元, 每个词元几个数)。"),
        (lambda f: tuple(f(X).shape) != (B, H * W, C), "这是一格一个词元：还要每 2x2 格并成一个。"),
        (
            lambda f: tuple(f(X).shape) == (B, H * W // 4, 4 * C),
            "形状应为 (B, h*w/4, 4*C)：格数少到四分之一，每个词元长到四倍。",
        ),
        (
            lambda f: not _same(f(X), X.reshape(B, H * W // 4, 4 * C)),
            "形状对了，可是直接 reshape 会把不相邻的数并在一起：先拆成 2x2，再用 permute 换次序。",
        ),
        (
            lambda f: _same(f(X), _pack(X)),
            "形状对了，次序不对：词元按行、列数，词元里面先通道，再 2x2 的行、列。",
        ),
    ),
    "和 lorakit 里真正用的那一个分毫不差。",
    (
        "先把 h 拆成 (h//2, 2)，把 w 拆成 (w//2, 2)：reshape 成六维。",
        "再用 permute 换成 (B, h//2, w//2, C, 2, 2)，最后 reshape 成三维。",
        "六维的第 0、2、4、1、3、5 维依次摆好。",
    ),
    """def answer(x):
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(b, h * w // 4, 4 * c)""",
    lambda chance: (
        _numbered(
            *(chance.randint(1, 4) for _ in range(2)), *(2 * chance.randint(1, 6) for _ in range(2))
        ),
    ),
)

IDS_WANT = torch.cartesian_prod(torch.arange(1), torch.arange(2), torch.arange(3)).float()


def _table(rows) -> torch.Tensor:
    """一张表：一行是列表、元组、张量都行。"""
    if isinstance(rows, (list, tuple)):
        rows = [listed(row) for row in rows]
    return torch.as_tensor(rows)


POSITIONS = Exercise(
    "positions",
    (
        (lambda f: _table(f(2, 3)).dim() == 2, "要一张表：一个词元一行，每行三个数。"),
        (lambda f: len(f(2, 3)) == 6, "行数不对：rows 行、cols 列的图，有 rows * cols 个词元。"),
        (
            lambda f: _table(f(2, 3)).shape[1] == 3,
            "每行要三个数：0、行号、列号。第一个数总是 0。",
        ),
        (
            lambda f: not _table(f(2, 3))[:, 0].any(),
            "第一个数总是 0：它是留给别的用处的，图里都不用。",
        ),
        (
            lambda f: _table(f(2, 3))[:, 1].max() == 1,
            "行号和列号写反了，或者不是从 0 数起：行号在前，列号在后。",
        ),
        (
            lambda f: _same(_table(f(2, 3)), IDS_WANT),
            "次序不对：先数完第一行的每一列，再数第二行，和打包的次序一样。",
        ),
    ),
    "词元自己不知道住在哪里，全靠这张表。",
    (
        "2 行 3 列：第一个词元是 [0, 0, 0]，第二个是 [0, 0, 1]。",
        "两层循环：外层数行，里层数列。",
        "[[0, r, c] for r in range(rows) for c in range(cols)]",
    ),
    "def answer(rows, cols):\n    return [[0, r, c] for r in range(rows) for c in range(cols)]",
    lambda chance: (chance.randint(1, 9), chance.randint(1, 9)),
    lambda made, want: _same(_table(made), _table(want).float()),
)


def _near(a: float, b: float) -> bool:
    return math.isclose(float(a), b, abs_tol=1e-6)


SHIFT = Exercise(
    "shift",
    (
        (lambda f: is_number(f(0.5, 3.0)), "要返回一个数：推过以后的 t。"),
        (lambda f: _near(f(0.3, 1.0), 0.3), "shift 是 1 时不推，t 应该不变。"),
        (
            lambda f: f(0.5, 3.0) <= 1 and f(0.9, 3.0) <= 1,
            "超过 1 了：t 是噪声占几成，最多是 1。只乘 shift 不够，还要除一下。",
        ),
        (lambda f: f(0.5, 3.0) > 0.5, "方向反了：shift 大于 1，要往噪声多的一头推。"),
        (lambda f: _near(f(0, 3.0), 0) and _near(f(1, 3.0), 1), "两头不动：0 还是 0，1 还是 1。"),
        (
            lambda f: all(
                _near(f(t, s), float(flow.shift_t(torch.tensor(t), s)))
                for t in (0.1, 0.5, 0.8)
                for s in (0.5, 2.0, 3.0)
            ),
            "中间的值不对：shift = 3 时，0.5 应该变成 0.75。",
        ),
    ),
    "训练抽 t、画图走 t，用的都是这一个式子。",
    (
        "shift = 3 时，0.5 变成 0.75：分子是 3 * 0.5。",
        "分母让 t = 1 时正好还是 1：1 + (shift - 1) * t。",
        "shift * t / (1 + (shift - 1) * t)",
    ),
    "def answer(t, shift):\n    return shift * t / (1 + (shift - 1) * t)",
    lambda chance: (chance.random(), chance.uniform(0.2, 8)),
)

TWO_GUIDANCES = Exercise(
    "two_guidances",
    (
        (pair, "要写两个数：(训练时的, 画图时的)，用圆括号，不加引号。"),
        (lambda two: pair(two) != (3.5, 1), "写反了：训练喂 1，画图才要加强。"),
        (
            lambda two: pair(two)[0] == 1,
            "训练时不是 1：训练图是真实的图，不是“加强过”的图；只有喂 1，题目和答案才对得上。",
        ),
        (lambda two: pair(two)[1] > 1, "画图时也用 1：这样没有加强，画面发灰、不听话。"),
        (lambda two: 2 <= pair(two)[1] <= 5, "画图时太小或太大：FLUX 常用 2 到 5。"),
    ),
    "lorakit 的默认就是这样，两个设置是 train.guidance 和 sample.guidance。",
    (
        "看上面那张图：喂几，底模对真实的图猜得最准？",
        "画图时要的不是“最像平均的真图”，而是更清楚、更听话。",
        "(1.0, 3.5)",
    ),
    "answer = (1.0, 3.5)",
)

NAN = float("nan")
TABLE = {(4, 1e-4): 0.33, (4, 1e-3): 0.25, (16, 1e-3): 0.24, (16, 1e-2): NAN, (64, 1e-3): 0.26}
BROKEN_FIRST = {(64, 1e-2): NAN, (4, 1e-3): 0.25, (16, 1e-3): 0.27}


def _cells(chance: random.Random) -> tuple[dict]:
    """一张随机的表，有几格练坏了，第一格常常就是坏的。"""
    ranks, rates = chance.sample(range(1, 129), 3), chance.sample((1e-5, 1e-4, 1e-3, 1e-2), 3)
    cells = [(rank, rate) for rank in ranks for rate in rates]
    table = {cell: chance.uniform(0.1, 0.9) for cell in cells}
    return (table | dict.fromkeys(chance.sample(cells, 3), NAN),)


BEST_CELL = Exercise(
    "best_cell",
    (
        (
            lambda f: not is_number(f(TABLE)),
            "这是损失：要返回的是哪一格，也就是 (秩, 学习率)。",
        ),
        (
            lambda f: pair(f(TABLE)) in TABLE,
            "要返回表里的一格：(秩, 学习率) 这样的一对。",
        ),
        (
            lambda f: not math.isnan(TABLE[pair(f(TABLE))]),
            "挑中了练坏的那一格（nan）：它要先排除。",
        ),
        (lambda f: TABLE[pair(f(TABLE))] != 0.33, "挑的是留出集损失最大的：越小越好。"),
        (lambda f: pair(f(TABLE)) == (16, 1e-3), "要挑留出集损失最小的那一格，不一定是秩最大的。"),
        (
            lambda f: pair(f(BROKEN_FIRST)) == (4, 1e-3),
            "表的第一格是 nan 时挑错了：和 nan 比大小永远是假，min 会停在它上面，要先排除。",
        ),
    ),
    "先排除坏的，再比好的。",
    (
        "min(table, key=table.get) 会按损失挑出最小的一格，但有 nan 时会挑错，也不报错。",
        "先用 math.isnan 把 nan 去掉，或者利用 nan 不等于它自己。",
        "good = {k: v for k, v in table.items() if v == v}，再 min(good, key=good.get)",
    ),
    "def answer(table):\n"
    "    good = {cell: loss for cell, loss in table.items() if loss == loss}\n"
    "    return min(good, key=good.get)",
    _cells,
    lambda made, want: pair(made) == want,
)


def _numbers(value):
    """一组号码：列表、集合、range、数组都行 -> 集合；别的照原样。"""
    value = listed(value)
    if isinstance(value, (list, tuple, set, frozenset, range)):
        value = [plain(one) for one in value]
    good = isinstance(value, list) and all(map(is_number, value))
    return set(value) if good else value


def _lacks(number: int, chosen: set) -> bool:
    return number not in chosen


ALBUM = Exercise(
    "album",
    (
        (lambda chosen: isinstance(chosen, set), "答案是一组号码，例如 [1, 12, 23]。"),
        (lambda chosen: chosen <= set(album.photos()), f"号码从 1 到 {album.COUNT}。"),
        *(
            (partial(_lacks, number), f"第 {number} 张{album.FAULTS[photo.fault][1]}。")
            for number, photo in album.photos().items()
            if photo.fault in album.FAULTS
        ),
        (
            lambda chosen: album.few(chosen) <= album.SAME,
            f"同一次拍的（房间里、正中间、一样大）超过 {album.SAME} 张：看着多，其实是一张。",
        ),
        (
            lambda chosen: len(chosen) == album.WANTED,
            f"要正好 {album.WANTED} 张，不同的号码。",
        ),
        (
            lambda chosen: album.places(chosen) >= album.PLACES,
            f"背景少于 {album.PLACES} 种：它会以为 ohwx 总在那几个地方。",
        ),
        (lambda chosen: album.sizes(chosen) == 2, "远的近的都要有。"),
    ),
    "清楚、单独一个、各不相同：20 张就够了。",
    (
        "先划掉糊的、戴墨镜的、合影、带水印的，共 26 张。",
        "房间里正中间的大猫有十几张几乎一样，留一两张。",
        "剩下的里面，让背景、远近、左右都有。",
    ),
    f"answer = {album.good()}",
    read=_numbers,
)

EXERCISES = (PACK, POSITIONS, SHIFT, TWO_GUIDANCES, BEST_CELL, ALBUM)
