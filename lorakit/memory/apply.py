"""按 memory 一组设置就地改造 Transformer；显存不够时给建议。"""

import warnings
from contextlib import contextmanager

import torch
from torch import nn

from lorakit.errors import LorakitError
from lorakit.memory.attention import set_attention
from lorakit.memory.compiling import VARIANTS, Shapes, compiled, keep_compiled
from lorakit.memory.loading import blocks
from lorakit.memory.recompute import Recompute


def prepare(
    transformer: nn.Module, settings, family, masked: bool = False, shapes: Shapes | None = None
) -> Recompute:
    """按 memory 一组设置就地改造 Transformer；返回管重算的那个，masked 见 set_attention。

    Args:
        shapes: 编译时哪几维写成不定长；不给就由编译器自己遇到了再说。
    """
    set_attention(transformer, family, settings.attention, masked)
    how = {True: "full", False: "off"}.get(settings.checkpointing, settings.checkpointing)
    if how == "auto" and settings.offload != "none":
        how = "full"  # 没轮到的块不在显卡上，反向时只能重算
    if how == "auto" and family.device.type != "cuda":
        how = "off"  # 内存一般够大，重算只会更慢
    members = blocks(transformer).values()
    recompute = Recompute(how, members, family.device, family.recompute_context(transformer))
    if how != "off":
        transformer.enable_gradient_checkpointing(recompute)
    if settings.compile:
        # 只编译重复的块：编译一次，几十块共用，比编译整个模型快得多
        # 位置编码是复数，编译器原样叫一次内核就好，不必警告
        warnings.filterwarnings("ignore", "Torchinductor does not support code gen", UserWarning)
        # 同一种块要编几份：定长与不定长、带不带掩码、检验时不带梯度；超过上限就悄悄不编了
        keep_compiled()
        torch._dynamo.config.cache_size_limit = VARIANTS  # 新名 recompile_limit，2.6 还没有
        shapes = shapes or Shapes()
        for block in members:
            # 只编 forward，不编 __call__：搬权重、切权重的钩子在外面照常跑
            block.forward = compiled(block.forward, shapes)
    return recompute


@contextmanager
def explaining_full(config, step: int):
    """显存不够时，说出第 step 步发生了什么、先试哪几项设置。

    Raises:
        LorakitError: 显存不够。
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise LorakitError(explain_full(config, step)) from error


def explain_full(config, step: int) -> str:
    """显存不够时的话：先试哪三项设置，各省多少。"""
    train, side = config.train, config.data.resolution
    moves = {  # 怎么改 -> (省多少, 现在用得上吗)
        "memory.checkpointing=full": (
            "中间结果省到几分之一，慢四五成",
            config.memory.checkpointing in (False, "off", "selective"),
        ),
        f"train.batch_size=1 并把 train.grad_accum 乘 {train.batch_size}": (
            f"中间结果省到 1/{train.batch_size}，结果一样",
            train.batch_size > 1,
        ),
        "model.quantize=fp8": (
            "底模的权重省一半；还不够写 nf4，再不够加 memory.offload=blocks",
            config.model.quantize == "none" and config.lora.kind == "lora",
        ),
        f"data.resolution={side // 128 * 64}": ("中间结果省到四分之一", side >= 128),
        "lora.targets=image-attention": (
            "LoRA 和优化器的状态省一半左右",
            config.lora.targets != "image-attention",
        ),
        "train.optimizer=adamw8bit": ("优化器的状态省四分之三", train.optimizer == "adamw"),
    }
    tips = [f"  - {how}：{saves}" for how, (saves, useful) in moves.items() if useful]
    said = f"第 {step} 步显存不够了。已经存好的检查点都在。\n依次试试：\n"
    return said + "\n".join(tips[:3])
