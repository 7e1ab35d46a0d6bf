"""显存与速度：每一招一个函数，用不用由设置决定。"""

import torch
from torch import nn


def prepare(transformer: nn.Module, settings) -> nn.Module:
    """按 memory 一组设置改造 Transformer，就地修改并返回。"""
    if settings.checkpointing:
        transformer.enable_gradient_checkpointing()
    if settings.compile:
        # 只编译重复的块：编译一次，几十块共用，比编译整个模型快得多
        transformer.compile_repeated_blocks(dynamic=False)
    return transformer


def explain_full(config, step: int) -> str:
    """显存不够时的话：先试哪三项设置，各省多少。"""
    train, side = config.train, config.data.resolution
    moves = {  # 怎么改 -> (省多少, 现在用得上吗)
        "memory.checkpointing=true": (
            "中间结果省到几分之一，慢三成左右",
            not config.memory.checkpointing,
        ),
        f"train.batch_size=1 并把 train.grad_accum 乘 {train.batch_size}": (
            f"中间结果省到 1/{train.batch_size}，结果一样",
            train.batch_size > 1,
        ),
        f"data.resolution={side // 128 * 64}": ("中间结果省到四分之一", side >= 128),
        "lora.targets=image-attention": (
            "LoRA 和优化器的状态省一半左右",
            config.lora.targets != "image-attention",
        ),
        "train.optimizer=adamw8bit": ("优化器的状态省四分之三", train.optimizer == "adamw"),
    }
    tips = [f"  - {how}：{saves}" for how, (saves, useful) in moves.items() if useful]
    said = f"第 {step} 步显存不够了。已经存好的检查点都在。依次试试：\n"
    return said + "\n".join(tips[:3])


def pick_device() -> torch.device:
    """有显卡用显卡，没有就用 CPU。"""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """model.precision -> 精度；auto 在支持 bf16 的显卡上用 bf16，别处用 fp32。"""
    names = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if precision != "auto":
        return names[precision]
    modern = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return names["bf16" if modern else "fp32"]
