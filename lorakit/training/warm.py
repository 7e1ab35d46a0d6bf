"""编译在头一步之前做完：数据里的每种形状先走一遍，进度条说清楚；不更新权重，也不动随机数。"""

from collections.abc import Callable

from lorakit.memory import apply
from lorakit.training import optim


def warm(trainer, say: Callable[[str, int, int], None] = lambda *_: None) -> int:
    """编译好训练要用的代码，返回走了几种形状；不编译、已经练完的，什么也不做。

    Args:
        say: 函数 (在做什么, 第几种, 共几种)。
    """
    if not trainer.compiled or trainer.step >= trainer.config.train.steps:
        return 0
    numbers = first_of_each(trainer)
    count = optim.divisor(trainer.config.train, trainer.family.dtype)
    trainer.model.train()
    for done, number in enumerate(numbers, 1):
        with apply.explaining_full(trainer.config, trainer.step + 1):
            loss, _, _ = trainer.objective.draw(number, trainer.step, 0)
            trainer.accelerator.backward(loss / count)
        say("编译", done, len(numbers))
    trainer.optimizer.zero_grad(set_to_none=trainer.graphs is None)
    return len(numbers)


def first_of_each(trainer) -> list[int]:
    """每种形状头一次出现在第几批，按先后；一轮里一定都有。"""
    batches, items = trainer.objective.batches, trainer.dataset.train
    first: dict = {}
    for number in range(batches.per_epoch):
        chosen = batches.batch(number)
        first.setdefault((len(chosen), items[chosen[0]].shapes), number)
    return list(first.values())
