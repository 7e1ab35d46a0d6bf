"""05 的练习：核对钥匙、强度的算式、合适的尺寸、拼两个 LoRA、挑检查点。"""

import random

import torch

from lorakit.lab.exercises.answers import is_number, pair, same
from lorakit.lab.exercises.judge import Exercise

LAYERS = ("blocks.0.to_q", "blocks.1.to_q")


def _file(chance: random.Random) -> tuple[tuple, tuple]:
    """随机的一份名单：有的层在底模里，有的不在。"""
    parts = ("blocks", "single_blocks", "refiner"), ("to_q", "to_k", "ff.net.0.proj")
    every = [f"{a}.{chance.randint(0, 12)}.{b}" for a in parts[0] for b in parts[1]]
    known = chance.sample(every, 5)
    return _named(every), tuple(known)


def _named(layers) -> tuple[str, ...]:
    return tuple(f"transformer.{layer}.lora_{side}.weight" for layer in layers for side in "AB")


NAMES = _named(LAYERS)
ALIKE = ("transformer.single_blocks.0.to_q.lora_A.weight",)
LOST = tuple(name.replace("blocks.1", "block.1") for name in NAMES)

UNKNOWN = Exercise(
    "unknown",
    (
        (
            lambda f: isinstance(f(LOST, LAYERS), (list, tuple, set)),
            "要返回一组名字，不是个数：知道是哪几个，才改得了。",
        ),
        (
            lambda f: len(f(NAMES, LAYERS)) == 0,
            "全对得上的文件也被说成对不上：比之前要先去掉开头的 transformer. 和结尾的 .lora_…。",
        ),
        (lambda f: len(f(LOST, LAYERS)) > 0, "改了名的也放过去了：每一个名字都要到底模里找。"),
        (
            lambda f: sorted(f(LOST, LAYERS)) == sorted(LOST[2:]),
            "返回的要正好是放不上的那两个张量名（A 和 B 各一个），名字要完整。",
        ),
        (lambda f: len(f(NAMES, ())) == 4, "底模里一层也没有时，四个都放不上。"),
        (
            lambda f: len(f(ALIKE, LAYERS)) == 1,
            "single_blocks.0.to_q 里含着 blocks.0.to_q，却是另一层："
            "层名要整个相等，不能只看含不含。",
        ),
    ),
    "名字一个个对过，就不会用上半个 LoRA。",
    (
        "先写怎么从张量名得到层名：去掉开头 transformer.，再从 .lora_ 那里切开。",
        'name.removeprefix("transformer.").split(".lora_")[0] 就是层名。',
        "用列表推导：[name for name in names if 层名 not in layers]。",
    ),
    "def answer(names, layers):\n"
    '    layer = lambda name: name.removeprefix("transformer.").split(".lora_")[0]\n'
    "    return [name for name in names if layer(name) not in layers]",
    _file,
    lambda made, want: sorted(made) == sorted(want),
)


def _matrices():
    """固定的 W (3, 4)、A (2, 4)、B (3, 2)。"""
    drawn = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=drawn) for shape in ((3, 4), (2, 4), (3, 2))]


def _weighs(f, strength: float, want) -> bool:
    w, a, b = _matrices()
    return same(f(w, a, b, strength), want(w, a, b))


def _layer(chance: random.Random, given: tuple[int, int] | None = None) -> list[torch.Tensor]:
    """随机大小的 W、A、B。"""
    out, into = given or (chance.randint(2, 6), chance.randint(2, 6))
    rank, drawn = chance.randint(1, 4), torch.Generator().manual_seed(chance.randrange(10**6))
    return [
        torch.randn(shape, generator=drawn) for shape in ((out, into), (rank, into), (out, rank))
    ]


STRENGTH = Exercise(
    "strength",
    (
        (
            lambda f: getattr(f(*_matrices(), 1.0), "shape", None) == (3, 4),
            "要返回和 W 一样大的矩阵。",
        ),
        (
            lambda f: _weighs(f, 0.0, lambda w, a, b: w),
            "强度 0 应该等于没有 LoRA，也就是 W 自己：强度只乘在改动上，不乘 W。",
        ),
        (lambda f: not _weighs(f, 1.0, lambda w, a, b: w), "强度 1 时没有变化：改动没有加上去。"),
        (lambda f: _weighs(f, 1.0, lambda w, a, b: w + b @ a), "强度 1 应该是 W 加上 B @ A。"),
        (
            lambda f: _weighs(f, 1.5, lambda w, a, b: w + 1.5 * b @ a),
            "强度 1.5 应该多加一半：强度和改动是一次方，A、B 不要各乘一次。",
        ),
    ),
    "强度只乘改动，底模不动：W + 强度 × B·A。",
    (
        "强度 0 时该是什么？强度 1 时呢？",
        "改动是 B @ A（先 A 后 B，写出来 B 在左）。",
        "W + strength * (B @ A)",
    ),
    "def answer(W, A, B, strength):\n    return W + strength * (B @ A)",
    lambda chance: (*_layer(chance), chance.uniform(-1, 2)),
)


def _sides(chance: random.Random) -> tuple[int, int, int]:
    """随机的宽、高和单位；正好在两个倍数中间的不考，往哪边取都说得过去。"""
    unit = chance.choice((8, 16, 32, 64))
    return *(
        unit * chance.randint(0, 90) + chance.choice((1, 3, -2, -3)) + unit for _ in "宽高"
    ), unit


SIZE = Exercise(
    "size",
    (
        (lambda f: pair(f(1000, 740, 16)), "答案是一对数 (宽, 高)，都不加引号。"),
        (
            lambda f: all(side % 16 == 0 for side in f(1001, 740, 16)),
            "宽和高都要是 unit 的倍数。",
        ),
        (
            lambda f: pair(f(1024, 768, 16)) == (1024, 768),
            "本来就合适的不要改；也别把宽和高写反。",
        ),
        (
            lambda f: pair(f(1007, 735, 16)) == (1008, 736),
            "不是最近的：1007 离 1008 只差 1。整除会一律往小里取，要四舍五入。",
        ),
        (
            lambda f: pair(f(994, 741, 16)) == (992, 736),
            "不是最近的：994 离 992 只差 2。一律往大里取也不行，要四舍五入。",
        ),
        (lambda f: min(f(3, 100, 16)) == 16, "太小的变成了 0：至少要一个 unit。"),
    ),
    "先除，四舍五入，再乘回来；最少一个。",
    (
        "1007 里有几个 16？62.9 个，最近的整数是 63。",
        "round(width / unit) * unit",
        "max(unit, round(width / unit) * unit)，宽和高各算一次。",
    ),
    "def answer(width, height, unit):\n"
    "    return tuple(max(unit, round(side / unit) * unit) for side in (width, height))",
    _sides,
)


def _two() -> list[torch.Tensor]:
    """固定的两个 LoRA：A1 (2, 4)、B1 (3, 2)、A2 (1, 4)、B2 (3, 1)，秩不同。"""
    drawn = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=drawn) for shape in ((2, 4), (3, 2), (1, 4), (3, 1))]


def _adds_up(f, w1: float, w2: float) -> bool:
    a1, b1, a2, b2 = _two()
    a, b = f(a1, b1, a2, b2, w1, w2)
    return same(b @ a, w1 * b1 @ a1 + w2 * b2 @ a2)


def _four(chance: random.Random) -> tuple:
    """同一层的两个 LoRA，秩随机，份量也随机。"""
    size = chance.randint(2, 6), chance.randint(2, 6)
    _, a1, b1 = _layer(chance, size)
    _, a2, b2 = _layer(chance, size)
    return a1, b1, a2, b2, chance.uniform(-1, 2), chance.uniform(-1, 2)


def _same_rank(f):
    a1, b1, _, _ = _two()
    return f(a1, b1, -a1, b1, 1.0, 1.0)  # 一正一反，合起来是 0；把 A、B 各自相加也凑巧得 0


COMBINE = Exercise(
    "combine",
    (
        (lambda f: len(_same_rank(f)) == 2, "要返回一对 (A, B)。"),
        (
            lambda f: _same_rank(f)[0].shape == (4, 4),
            "两个秩 2 的拼起来，秩该是 4：A 要上下接，不是相加。"
            "A 和 B 各自相加，乘起来会多出 B1·A2、B2·A1。",
        ),
        (lambda f: _same_rank(f)[1].shape == (3, 4), "B 要左右接（dim=1），行数还是输出那么多。"),
        (lambda f: _adds_up(f, 1.0, 1.0), "份量都是 1 时，B @ A 应该等于两份改动的和。"),
        (
            lambda f: _adds_up(f, 0.7, 1.0),
            "份量没有用对：每份改动乘自己的份量，只乘一次（乘在 B 上，或乘在 A 上，别两边都乘）。",
        ),
    ),
    "A 上下接、B 左右接，秩相加，改动正好是加权的和。",
    (
        "矩阵乘法里，[B1 B2] 乘上下叠着的 A1、A2，正好是 B1·A1 + B2·A2。",
        "A = torch.cat([A1, A2])",
        "B = torch.cat([w1 * B1, w2 * B2], dim=1)",
    ),
    "import torch\n\n\ndef answer(A1, B1, A2, B2, w1, w2):\n"
    "    return torch.cat([A1, A2]), torch.cat([w1 * B1, w2 * B2], dim=1)",
    _four,
    lambda made, want: same(made[1] @ made[0], want[1] @ want[0]),
)


def _log(held: dict[int, float | None]) -> list[dict]:
    """训练损失一路下降的记录。"""
    return [
        {"step": step, "loss": 1 / (i + 1), "held": value}
        for i, (step, value) in enumerate(held.items())
    ]


BEND = _log({0: 3.0, 40: 0.8, 60: None, 80: 0.55, 120: 0.6, 160: 0.7})


def _held(chance: random.Random) -> dict[int, float | None]:
    """一次随机的记录：哪一步最低不一定，有几步没有检验。"""
    steps = sorted(chance.sample(range(0, 400, 10), 7))
    held: dict[int, float | None] = {step: chance.uniform(0.2, 3) for step in steps}
    return held | dict.fromkeys(chance.sample(steps, 2))


PICK = Exercise(
    "pick",
    (
        (
            lambda f: is_number(f(BEND)) and f(BEND) % 1 == 0,
            "要返回步数，是一个整数（记录里的 step）。",
        ),
        (
            lambda f: f(BEND) != 160,
            "第 160 步的训练损失最低，可是留出集已经升了：它在背图。看 held，不看 loss。",
        ),
        (lambda f: f(BEND) != 60, "那一步没有检验过（held 是 None），不能选。"),
        (lambda f: f(BEND) == 80, "留出集损失最低的是第 80 步。"),
        (lambda f: f(_log({0: 3.0, 40: 0.8, 80: 0.6})) == 80, "一直在降，就该选最后一步。"),
        (lambda f: f(_log({40: 0.5, 80: 0.9})) == 40, "一开头就升，就该选最前面的。"),
    ),
    "挑留出集最低的，再用眼睛看一遍。",
    (
        "先去掉没有检验过的行：[row for row in log if row['held'] is not None]。",
        "min 可以按一项来比：min(rows, key=lambda row: row['held'])。",
        "min 得到的是一整行，最后取它的 ['step']。",
    ),
    "def answer(log):\n"
    "    rows = [row for row in log if row['held'] is not None]\n"
    "    return min(rows, key=lambda row: row['held'])['step']",
    lambda chance: (_log(_held(chance)),),
)

EXERCISES = (UNKNOWN, STRENGTH, SIZE, COMBINE, PICK)
