"""01 的练习：加噪、速度、一步采样；自己写 LoRA 的头两步在 own_lora.py。"""

import random

import torch

from lorakit.lab.exercises import own_lora
from lorakit.lab.exercises.answers import same
from lorakit.lab.exercises.judge import Exercise

X0 = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
NOISE = torch.tensor([[0.5, -1.0], [2.0, 0.0]])


def _grid(chance: random.Random, count: int) -> list[torch.Tensor]:
    """几块一样大的随机数，大小也随机。"""
    shape = chance.randint(1, 4), chance.randint(2, 5)
    return [torch.tensor([[chance.gauss(0, 2) for _ in range(shape[1])] for _ in range(shape[0])])
            for _ in range(count)]  # fmt: skip


def _mix(t: float) -> torch.Tensor:
    return (1 - t) * X0 + t * NOISE


ADD_NOISE = Exercise(
    "add_noise",
    (
        (lambda f: torch.is_tensor(f(X0, NOISE, 0.25)), "要返回一个和 x0 一样大的张量。"),
        (lambda f: not same(f(X0, NOISE, 0.0), NOISE), "方向反了：t = 0 应该是原图，不是噪声。"),
        (lambda f: same(f(X0, NOISE, 0.0), X0), "t = 0 时应该一点噪声也没有，正好是 x0。"),
        (lambda f: same(f(X0, NOISE, 1.0), NOISE), "t = 1 时应该一点图也不剩，正好是噪声。"),
        (
            lambda f: same(f(X0, NOISE, 0.5), _mix(0.5)),
            "两头对了，中间不对：沿直线走，两个分量加起来总是 1（这里不用平方根）。",
        ),
        (lambda f: same(f(X0, NOISE, 0.3), _mix(0.3)), "t = 0.3 时应该是七成图、三成噪声。"),
    ),
    "这就是 flow.add_noise 的全部：一条从图到噪声的直线。",
    (
        "t 是噪声占几成，那么图占几成？",
        "图占 1 - t，噪声占 t，加起来。",
        "(1 - t) * x0 + t * noise",
    ),
    "def answer(x0, noise, t):\n    return (1 - t) * x0 + t * noise",
    lambda chance: (*_grid(chance, 2), chance.random()),
)

VELOCITY = Exercise(
    "velocity",
    (
        (lambda f: torch.is_tensor(f(X0, NOISE)), "要返回一个张量。"),
        (
            lambda f: not same(f(X0, NOISE), X0 - NOISE),
            "正负号反了：速度从图指向噪声（t 变大的方向），是“终点减起点”。",
        ),
        (
            lambda f: not same(f(X0, NOISE), NOISE),
            "你给的是噪声本身；速度是从图走到噪声要走的路，还要减去图。",
        ),
        (
            lambda f: same(X0 + f(X0, NOISE), NOISE),
            "从 x0 出发走满一个速度（t 从 0 到 1），应该正好到噪声。",
        ),
        (
            lambda f: same(_mix(0.7) - 0.7 * f(X0, NOISE), X0),
            "从 x_t 往回走 t 倍的速度，应该正好回到原图。",
        ),
    ),
    "速度处处一样，所以知道了它，一步就能跳回原图。",
    ("一秒钟从 x0 走到 noise，速度是多少？", "速度 = 终点 - 起点。", "noise - x0"),
    "def answer(x0, noise):\n    return noise - x0",
    lambda chance: tuple(_grid(chance, 2)),
)


def _step(f):
    return f(_mix(0.8), NOISE - X0, 0.8, 0.6)


EULER = Exercise(
    "euler",
    (
        (lambda f: torch.is_tensor(_step(f)), "要返回一个张量：走完一步之后的 x。"),
        (
            lambda f: not same(_step(f), _mix(1.0)),
            "走反了，噪声更多了：这一步的时间是 t_next - t，它是负数，别取绝对值。",
        ),
        (
            lambda f: not same(_step(f), _mix(0.8) - (NOISE - X0)),
            "一步走完了整条路：速度还要乘上这一步走了多少时间。",
        ),
        (
            lambda f: not same(_step(f), _mix(0.8) + (NOISE - X0)),
            "速度没有乘时间，还走反了：这一步的时间是 t_next - t，很短，而且是负的。",
        ),
        (
            lambda f: not same(_step(f), (0.6 - 0.8) * (NOISE - X0)),
            "这是这一步走的路程，忘了从哪里出发：还要加上 x。",
        ),
        (
            lambda f: not same(_step(f), _mix(0.8) + 0.6 * (NOISE - X0)),
            "时间用成了 t_next：它是到站的时刻；走了多久，是 t_next 减去 t。",
        ),
        (
            lambda f: not same(_step(f), _mix(0.8) - 0.8 * (NOISE - X0)),
            "时间用成了 t，一步走到了头：走了多久，是 t_next 减去 t。",
        ),
        (lambda f: same(_step(f), _mix(0.6)), "从 t=0.8 走到 0.6，应该落在 x_0.6 上。"),
        (
            lambda f: same(f(NOISE, NOISE - X0, 1.0, 0.0), X0),
            "速度处处一样时，一步从 t=1 走到 0，应该正好是原图。",
        ),
    ),
    "采样就是把这一步重复二十次。",
    (
        "路程 = 速度 × 时间。",
        "这一步的时间是 t_next - t（负的，因为在往回走）。",
        "x + (t_next - t) * v",
    ),
    "def answer(x, v, t, t_next):\n    return x + (t_next - t) * v",
    lambda chance: (*_grid(chance, 2), chance.uniform(0.5, 1), chance.uniform(0, 0.5)),
)

EXERCISES = (ADD_NOISE, VELOCITY, EULER, *own_lora.IN_01)
