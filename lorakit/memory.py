"""显存与速度：每一招一个函数，用不用由设置决定。"""

import torch
from torch import nn

from lorakit.errors import ConfigError


def refuse(config, processes: int = 1):
    """合不来的选择，载入之前就说清楚为什么。

    Raises:
        ConfigError: 两项设置合不来。
    """
    model, how, lora = config.model, config.memory, config.lora
    off = how.checkpointing in (False, "off", "selective")
    clashes = {  # 为什么不行、怎么改 -> 是不是这样
        f"model.quantize：{model.quantize} 的底模只能冻住，不能全量微调：一小步的改动比量化的一格"
        "还小，加上去等于没加。请写 lora.kind=lora，或 model.quantize=none。": (
            model.quantize != "none" and lora.kind == "full"
        ),
        f"lora.variant：dora 要随时算出底模每一行的长度，{model.quantize} 的底模做不到。"
        "请写 lora.variant=plain 或 rslora，或 model.quantize=none。": (
            model.quantize != "none" and lora.variant == "dora"
        ),
        "memory.offload：blocks 只能搬冻住的权重，全量微调的权重每步都在变。"
        "请写 memory.offload=none，或 lora.kind=lora。": (
            how.offload == "blocks" and lora.kind == "full"
        ),
        "memory.offload：blocks 训练时，反向传播要把每一块再搬来一次，所以每块都得重算。"
        "请写 memory.checkpointing=full。": how.offload == "blocks" and off,
        f"memory.offload：blocks 只能在一个进程里用，现在有 {processes} 个。": (
            how.offload == "blocks" and processes > 1
        ),
    }
    if said := [why for why, wrong in clashes.items() if wrong]:
        raise ConfigError("\n".join(said))


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
