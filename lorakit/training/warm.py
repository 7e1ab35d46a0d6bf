"""编译在头一步之前做完：数据里的每种形状先走一遍，进度条说清楚；不更新权重，也不动随机数。"""

from collections.abc import Callable

import torch

from lorakit.memory import apply
from lorakit.training import optim

LOOKS = 8  # 不编译先看几种形状：图的大小、描述的长短；只走前向，很快


def warm(trainer, say: Callable[[str, int, int], None] = lambda *_: None) -> int:
    """编译好训练要用的代码，返回走了几种形状；不编译、已经练完的，什么也不做。

    Args:
        say: 函数 (在做什么, 第几样, 共几样)；检验是最后一样。
    """
    if not trainer.compiled or trainer.step >= trainer.config.train.steps:
        return 0
    numbers, held = first_of_each(trainer), len(trainer.dataset.held[:1])
    count = optim.divisor(trainer.config.train, trainer.family.dtype)
    trainer.model.train()
    look_around(trainer)
    for done, number in enumerate(numbers, 1):
        with apply.explaining_full(trainer.config, trainer.step + 1):
            if trainer.graphs is not None:  # 它记着哪些尺寸热过身
                trainer.graphs.draw(number, trainer.step, 0)
            else:
                loss, _, _ = trainer.objective.draw(number, trainer.step, 0)
                trainer.accelerator.backward(loss / count)
        say("编译", done, len(numbers) + held)
    if held:
        with apply.explaining_full(trainer.config, trainer.step + 1):
            trainer.objective.evaluate(most=1)  # 检验不带梯度，另编一份
        say("编译", len(numbers) + 1, len(numbers) + 1)
    trainer.optimizer.zero_grad(set_to_none=trainer.graphs is None)
    return len(numbers)


def look_around(trainer):
    """看一看块的输入哪几维会变，编译时就一份代码管住它们。几张显卡的照旧，各卡要走得一样。"""
    sizes, words = first_of_each(trainer), first_of_each(trainer, words=True)
    numbers = list(dict.fromkeys([*sizes, *words]))[:LOOKS]  # 图的大小先看全
    if len(numbers) == 1 or trainer.accelerator.num_processes > 1:
        return
    with torch.no_grad(), trainer.shapes.look():
        for number in numbers:
            with apply.explaining_full(trainer.config, trainer.step + 1):
                trainer.objective.draw(number, trainer.step, 0)


def first_of_each(trainer, words: bool = False) -> list[int]:
    """每种形状头一次出现在第几批，按先后；一轮里一定都有。words 是描述的长短也算。"""
    batches, items = trainer.objective.batches, trainer.dataset.train
    first: dict = {}
    for number in range(batches.per_epoch):
        chosen = [items[i] for i in batches.batch(number)]
        said = [value.shape for item in chosen for value in item.cond.values()] if words else []
        first.setdefault((len(chosen), chosen[0].shapes, *said), number)
    return list(first.values())
