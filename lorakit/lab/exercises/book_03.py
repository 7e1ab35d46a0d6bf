"""03 的练习：几个词元、LoRA 多大、怎么热身、怎么省显存、一步看几张。"""

import math

from lorakit.lab.exercises.answers import is_number
from lorakit.lab.exercises.judge import Exercise, picked

TOKENS = Exercise(
    "tokens",
    (
        (lambda f: is_number(f(1024)), "要返回一个数：词元的个数。"),
        (lambda f: f(1024) != 1024 * 1024, "这是像素的个数：先要被 VAE 缩小，再并成词元。"),
        (lambda f: f(1024) != (1024 / 8) ** 2, "这是潜变量的格数：还要每 2x2 格并成一个词元。"),
        (lambda f: f(1024) > 1024, "你只算了一条边：图是正方形，两条边都要算。"),
        (lambda f: f(1024) == 4 * f(512), "边长翻倍，两个方向都翻倍，词元应该是四倍。"),
        (lambda f: f(1024) == 4096 and f(128) == 64, "每边缩小 8 倍，再并 2x2 格：每边除以 16。"),
    ),
    "每边除以 16，再平方：1024 的图有 4096 个词元。所以分辨率翻倍，计算量至少四倍。",
    (
        "128x128 的图，上面的窃听器报出 64 个词元。",
        "每条边：先除以 8，再除以 2。",
        "(side // 16) ** 2",
    ),
    "def answer(side):\n    return (side // 16) ** 2",
    lambda chance: (16 * chance.randint(2, 128),),
)

LORA_TOTAL = Exercise(
    "lora_total",
    (
        (lambda f: is_number(f(480, 3072, 16)), "要返回一个数：参数的个数。"),
        (
            lambda f: f(480, 3072, 16) != 480 * 3072 * 3072,
            "这是原来那些大矩阵的大小：LoRA 只有两个瘦长的小矩阵。",
        ),
        (lambda f: f(480, 3072, 16) != 480 * 3072 * 16, "只数了一个矩阵：A 和 B 都要学，是两个。"),
        (lambda f: f(2, 10, 3) == 2 * f(1, 10, 3), "层数翻倍，参数也该翻倍：每一层都挂了一份。"),
        (lambda f: f(1, 10, 6) == 2 * f(1, 10, 3), "秩翻倍，参数也该翻倍。"),
        (lambda f: f(480, 3072, 16) == 47_185_920, "每层：A 是 秩 x d，B 是 d x 秩。"),
    ),
    "480 层是 47,185,920 个，正是体检说的 47.2M。",
    (
        "A 有几个数？它把 d 个数压成 rank 个。",
        "B 把 rank 个数放大回 d 个。两个加起来，再乘层数。",
        "layers * rank * (d + d)",
    ),
    "def answer(layers, d, rank):\n    return layers * rank * (d + d)",
    lambda chance: (chance.randint(1, 600), chance.randint(8, 4096), chance.randint(1, 128)),
)

WARMUP = Exercise(
    "warmup",
    (
        (lambda f: is_number(f(0, 1.0, 10)), "要返回一个数：这一步的学习率。"),
        (
            lambda f: f(0, 1.0, 10) > 0,
            "第一步的学习率是 0，这一步就白练了：step 从 0 数起，要加 1。",
        ),
        (lambda f: f(0, 1.0, 10) < 1, "没有热身：第一步就用了全部的学习率。"),
        (lambda f: f(50, 1.0, 10) <= 1, "升过头了：热身完就该停在 lr，用 min 拦住。"),
        (lambda f: f(4, 2.0, 10) == 2 * f(4, 1.0, 10), "lr 翻倍，每一步也该翻倍。"),
        (
            lambda f: (
                all(
                    math.isclose(f(k, 3.0, 10), 3.0 * (k + 1) / 10, rel_tol=1e-9) for k in range(10)
                )
                and math.isclose(f(50, 3.0, 10), 3.0)
            ),
            "要一级一级地升：第 k 步是 lr 的 (k + 1) / warmup，升满以后不变。",
        ),
    ),
    "和训练循环里那一行一样。",
    (
        "第 0 步是 lr 的十分之一，第 9 步正好是 lr（warmup = 10）。",
        "比例是 (step + 1) / warmup，超过 1 就取 1。",
        "lr * min(1, (step + 1) / warmup)",
    ),
    "def answer(step, lr, warmup):\n    return lr * min(1, (step + 1) / warmup)",
    lambda chance: (chance.randint(0, 40), chance.uniform(1e-5, 1e-2), chance.randint(1, 30)),
)

RESCUE = Exercise(
    name="rescue",
    **picked(
        wrong={
            "B": "学习率只是一个乘数：每一步改得多少，和占多少显存没有关系。",
            "D": "步数只管练多久：每一步用完的显存都会还回来，练 10 步和 1000 步占的一样多。",
        },
        right={
            "A": "梯度检查点不留中间结果，省得最多，结果一样。",
            "C": "批大小减半，中间结果就减半；累积加倍，一步看的图还是一样多。",
        },
    ),
    praise="两招都只省中间结果，学到的东西不变。",
    hints=(
        "问自己：这个设置变了，显存里的哪一样东西变小了？",
        "显存里有权重、中间结果、要学的参数、优化器的状态。",
        "A 和 C。",
    ),
    solution='answer = {"A", "C"}',
)

GLOBAL_BATCH = Exercise(
    "global_batch",
    (
        (lambda f: is_number(f(2, 3, 5)), "要返回一个数：一步看几张图。"),
        (lambda f: f(2, 3, 10) != f(2, 3, 5), "显卡没有用上：每块卡看的是不同的图，要乘上去。"),
        (
            lambda f: f(2, 6, 5) != f(2, 3, 5),
            "累积没有用上：攒几批才更新一次，这几批的图都算在一步里。",
        ),
        (
            lambda f: f(2, 3, 10) > f(2, 3, 5) and f(2, 6, 5) > f(2, 3, 5),
            "方向反了：卡越多、攒得越多，一步看的图越多。",
        ),
        (lambda f: f(2, 3, 5) == 30, "三个数都是“几倍”：2 张、3 批、5 块卡，一共 30 张。"),
    ),
    "卡多一倍，一步看的图多一倍；想让每张图看的遍数不变，步数就减半。",
    (
        "一块卡、攒一批，看 batch 张。",
        "攒 accum 批，就是 accum 倍；cards 块卡，又是 cards 倍。",
        "batch * accum * cards",
    ),
    "def answer(batch, accum, cards):\n    return batch * accum * cards",
    lambda chance: tuple(chance.randint(1, 16) for _ in range(3)),
)

EXERCISES = (TOKENS, LORA_TOTAL, WARMUP, RESCUE, GLOBAL_BATCH)
