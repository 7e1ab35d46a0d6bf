"""大作业：从一个空格子写出训练。读者的函数练一遍，正式的训练器练一遍，比底模动没动、学到多少。"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from lorakit import load_config, open_family, prepare
from lorakit.config import Config
from lorakit.inert import inert
from lorakit.lab.bar import waiting
from lorakit.lab.exercises.answers import Blank, Broke, Fresh, Nothing
from lorakit.lab.exercises.mishaps import explain
from lorakit.lab.notes import best, fresh, workplace
from lorakit.results.verdict import LEAST
from lorakit.tiny import samples
from lorakit.train import Trainer
from lorakit.training.objective import Objective

STEPS, COUNT = 40, 24
ENOUGH = 0.8  # 留出集降得有训练器的几成，才算写对了：随机数不同，不会正好一样
WRAPPED = ("", "base_layer.", "base.")  # 挂上 LoRA 以后，原来的层叫什么：没挂、PEFT、自己写的
BLANK = "未完成：写一个函数，收一份设置，返回练好的网络；再把它的名字写在括号里。"


def from_scratch(train: Callable[[Config], nn.Module] = ...) -> None:
    """判一次：train(设置) 返回练好的网络；说它动没动底模、学到训练器的几成，记下本机最好的。"""
    if train is ...:
        print(BLANK)
        return
    config = _task(workplace("from-scratch"))
    net = _run(train, config)
    if net is None:
        return
    if wrong := _touched(net, open_family(config).load("transformer")):
        print(wrong)
        return
    with waiting("正式的训练器也练一遍"):
        start, mine, theirs = measure(net, config)
    share = (start - mine) / (start - theirs)
    print(f"留出集损失：没练 {start:.3f}，你的 {mine:.3f}，训练器 {theirs:.3f}。")
    print(verdict(start - mine, share))
    if share >= ENOUGH:
        scores = best("from_scratch.json", float(share), _share)
        print("本机最好的：", "、".join(f"{one:.0%}" for one in scores))


def verdict(gain: float, share: float) -> str:
    """留出集降了 gain，是训练器的 share 成：一句话，不够的说先查哪里。"""
    if gain < -LEAST:
        return (
            "还差一点：越练越差。先查速度的方向（从图到噪声是 noise - x0）、学习率，"
            "再查每一步有没有把梯度清零。"
        )
    if gain < LEAST:
        return (
            "还差一点：什么也没学到。先查优化器拿到的是不是 LoRA 的参数，"
            "再查 backward、step 有没有每步都做。"
        )
    if share < ENOUGH:
        return (
            f"还差一点：只学到训练器的 {share:.0%}，要 {ENOUGH:.0%}。先查步数、每批几张，"
            "再查 t 是怎么抽的（flow.sample_t 与偏移）、学习率有没有照设置。"
        )
    return f"✓ 通过：学到的是训练器的 {share:.0%}，底模一个数也没有动。"


def measure(net: nn.Module, config: Config) -> tuple[float, float, float]:
    """留出集损失：没练的、读者的、正式训练器的（当场照同一份设置练）。"""
    family = open_family(config)
    data = prepare(config, family)

    def held(one: nn.Module) -> float:
        return float(np.mean(Objective(config, family, data, one.eval(), family.device).evaluate()))

    start = held(family.load("transformer"))
    output = fresh(Path(config.run.output).with_name("trainer"))
    trainer = Trainer(
        config.model_copy(update={"run": config.run.model_copy(update={"output": output})})
    )
    for _ in trainer:
        pass
    return start, held(net), held(trainer.transformer)


def _task(home: Path) -> Config:
    """题目：COUNT 张剪纸，练 STEPS 步。"""
    data = fresh(home / "papercut")
    samples.write("papercut", data, COUNT)
    own = [f"data.folder={data}", f"run.output={fresh(home / 'mine')}", f"train.steps={STEPS}"]
    quiet = ["eval.every=0", "sample.every=0", f"train.save_every={STEPS}"]
    return load_config("tiny-qwen-image", [*own, *quiet])


def _run(train: Callable, config: Config) -> nn.Module | None:
    """跑读者的函数；出了错、没有返回网络，就说出来。"""
    try:
        with waiting("在跑你写的训练"):
            net = Fresh(train)(config)
    except Blank:
        print(BLANK)
    except Nothing as nothing:
        print(inert(str(nothing)))
    except Broke as broke:
        if isinstance(broke.__cause__, KeyboardInterrupt):
            print("照你说的停下了。")
        else:
            print(inert(f"{explain(broke.__cause__, train)}。先让它能跑起来，再看对不对。"))
    else:
        if isinstance(net, nn.Module):
            return net
        print("要返回练好的网络（挂着 LoRA 的 transformer）：最后一行写 return。")
    return None


def _touched(net: nn.Module, base: nn.Module) -> str:
    """底模的权重少了、变了：说哪一个；都没动是空的。"""
    there = dict(net.named_parameters())
    for name, want in base.named_parameters():
        home, _, last = name.rpartition(".")
        names = [f"{home}.{wrap}{last}".lstrip(".") for wrap in WRAPPED]
        found = next((there[one] for one in names if one in there), None)
        if found is None:
            return f"还差一点：返回的网络里找不到 {name}：要返回挂着 LoRA 的整个 transformer。"
        if found.shape != want.shape or not bool((found.detach() == want).all()):
            return (
                f"还差一点：底模的 {name} 变了。先 requires_grad_(False) 冻住，"
                "只把 LoRA 的参数交给优化器。"
            )
    return ""


def _share(value: object) -> bool:
    return type(value) is float and 0 <= value < 100
