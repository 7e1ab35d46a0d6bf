"""显存与速度：每一招一个函数，用不用由设置决定。"""

from torch import nn


def prepare(transformer: nn.Module, settings) -> nn.Module:
    """按 memory 一组设置改造 Transformer，就地修改并返回。"""
    if settings.checkpointing:
        transformer.enable_gradient_checkpointing()
    if settings.compile:
        # 只编译重复的块：编译一次，几十块共用，比编译整个模型快得多
        transformer.compile_repeated_blocks(dynamic=False)
    return transformer
