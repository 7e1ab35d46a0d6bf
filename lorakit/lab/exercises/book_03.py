"""03 的练习：几个词元、挑检查点、省显存；自己写 LoRA 的后三步在 own_lora.py。"""

import random

from lorakit.lab.exercises import own_lora
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
        "128x128 的图，上面的结构图里是 64 个词元。",
        "每条边：先除以 8，再除以 2。",
        "(side // 16) ** 2",
    ),
    "def answer(side):\n    return (side // 16) ** 2",
    lambda chance: (16 * chance.randint(2, 128),),
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

# 一次训练的几个检查点：步数、留出集的损失、做到了几成、抄了训练图几成
ROWS = (
    {"step": 20, "held": 1.10, "right": 0.0, "copied": 0.0},
    {"step": 60, "held": 0.55, "right": 0.80, "copied": 0.05},
    {"step": 120, "held": 0.48, "right": 0.92, "copied": 0.10},
    {"step": 300, "held": 0.47, "right": 0.96, "copied": 0.75},
)
SLOW = tuple(row | {"right": row["right"] / 4} for row in ROWS)


def _rows(*rows: dict) -> list[dict]:
    return list(rows)


TAKE = Exercise(
    "take",
    (
        (lambda f: is_number(f(_rows(*ROWS))), "要返回一个步数；一个合格的也没有，返回 0。"),
        (
            lambda f: f(_rows(*ROWS)) != 300,
            "300 步的损失最低，可是四分之三都是抄的：先去掉 copied 过半的。",
        ),
        (
            lambda f: f(_rows(*ROWS)) != 20,
            "20 步的损失降了一多半，画面一张也没有做到：right 没有过半的不要。",
        ),
        (
            lambda f: f(_rows(*ROWS)) != 60,
            "60 步也合格，可合格的里面 120 步的损失更低：合格的才比损失。",
        ),
        (lambda f: f(_rows(*ROWS)) == 120, "right 要过半、copied 不过半，里面取 held 最低的。"),
        (
            lambda f: f(_rows(*SLOW)) == 0,
            "一个合格的也没有，就返回 0：宁可说没有，别挑一个坏的。",
        ),
        (
            lambda f: f(_rows(*reversed(ROWS))) == 120,
            "记录不一定按步数排：别用第几个来认。",
        ),
    ),
    "先看画面和抄没抄，合格的里面才比损失：lorakit judge 就是这样挑的。",
    (
        "三个数各管一样：right 是画面，copied 是抄没抄，held 是损失。",
        "先留下 right > 0.5 而且 copied <= 0.5 的；一个也没有就返回 0。",
        'min(good, key=lambda row: row["held"])["step"]',
    ),
    "def answer(rows):\n"
    "    good = [row for row in rows if row['right'] > 0.5 and row['copied'] <= 0.5]\n"
    "    return min(good, key=lambda row: row['held'])['step'] if good else 0",
    lambda chance: (_random_rows(chance),),
)


def _random_rows(chance: random.Random) -> list[dict]:
    rows = [
        {
            "step": 10 * step,
            "held": round(chance.uniform(0.3, 3), 3),
            "right": round(chance.random(), 2),
            "copied": round(chance.random(), 2),
        }
        for step in chance.sample(range(1, 50), 5)
    ]
    return rows


EXERCISES = (TOKENS, *own_lora.IN_03, TAKE, RESCUE)
