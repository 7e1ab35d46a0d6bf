"""显存与速度：每一招一个函数，用不用由设置决定。"""

import logging
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from functools import wraps
from itertools import chain

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorakit.bundled import tiny_models
from lorakit.errors import ConfigError
from lorakit.quantize import blocks

TINY_DEVICE = "LORAKIT_TINY_DEVICE"  # 环境变量：随包的微型模型用什么设备；练习册里是 cpu
VARIANTS = 64  # 一种块最多编几份，PyTorch 原来是 8
FASTEST = ("cudnn", "flash", "efficient", "native")  # 注意力的内核，H100 上由快到慢
SHREDS = 0.15  # 留着的中间结果越多，切碎了用不上的显存越多：Qwen-Image-Edit 1024² 留 33 GiB、碎 5.3
ATTENTION_ERROR = 0.03  # bf16 的注意力与 fp32 参考的相对误差，正常不到 0.01


def refuse(config, processes: int = 1):
    """合不来的选择，载入之前就说清楚为什么。

    Raises:
        ConfigError: 两项设置合不来。
    """
    model, how, lora = config.model, config.memory, config.lora
    off = how.checkpointing in (False, "off", "selective")
    moves = how.offload != "none"
    clashes = {  # 为什么不行、怎么改 -> 是不是这样
        f"model.quantize：{model.quantize} 的底模只能冻住，不能全量微调：一小步的改动比量化的一格"
        "还小，加上去等于没加。请写 lora.kind=lora，或 model.quantize=none。": (
            model.quantize != "none" and lora.kind == "full"
        ),
        f"lora.variant：dora 要随时算出底模每一行的长度，{model.quantize} 的底模做不到。"
        "请写 lora.variant=plain 或 rslora，或 model.quantize=none。": (
            model.quantize != "none" and lora.variant == "dora"
        ),
        "lora.variant：lokr 要知道底模每一层的形状，nf4 把它打包了。"
        "请写 model.quantize=fp8 或 int8，或 lora.variant=plain。": (
            model.quantize == "nf4" and lora.variant == "lokr"
        ),
        "lora.variant：dora 要一开始就看得到底模的权重，memory.offload 搬走的不在显卡上。"
        "请写 lora.variant=plain 或 rslora。": (
            moves and lora.variant == "dora" and model.quantize == "none"
        ),
        "memory.offload：只能搬冻住的权重，全量微调的权重每步都在变。"
        "请写 memory.offload=none，或 lora.kind=lora。": (moves and lora.kind == "full"),
        "memory.offload：训练时，反向传播要把每一块再搬来一次，所以每块都得重算。"
        "请写 memory.checkpointing=full。": moves and off,
        f"memory.offload：边算边搬只能在一个进程里用，现在有 {processes} 个。": (
            moves and processes > 1
        ),
    }
    if said := [why for why, wrong in clashes.items() if wrong]:
        raise ConfigError("\n".join(said))


def prepare(transformer: nn.Module, settings, family, masked: bool = False) -> "Recompute":
    """按 memory 一组设置就地改造 Transformer；返回管重算的那个，masked 见 set_attention。"""
    set_attention(transformer, family, settings.attention, masked)
    how = {True: "full", False: "off"}.get(settings.checkpointing, settings.checkpointing)
    if how == "auto" and settings.offload != "none":
        how = "full"  # 没轮到的块不在显卡上，反向时只能重算
    if how == "auto" and family.device.type != "cuda":
        how = "off"  # 内存一般够大，重算只会更慢
    members = blocks(transformer).values()
    context = getattr(transformer, "recompute_context", None)
    recompute = Recompute(how, members, family.device, context)
    if how != "off":
        transformer.enable_gradient_checkpointing(recompute)
    if settings.compile:
        # 只编译重复的块：编译一次，几十块共用，比编译整个模型快得多。描述长短不一，
        # 第二种长度起编译器自己改用不定长的代码，不会每种长度编译一遍
        # 位置编码是复数，编译器原样叫一次内核就好，不必警告
        warnings.filterwarnings("ignore", "Torchinductor does not support code gen", UserWarning)
        # 同一种块要编几份：描述定长与不定长、带不带掩码、检验时不带梯度；超过上限就悄悄不编了
        torch._dynamo.config.cache_size_limit = VARIANTS  # 新名 recompile_limit，2.6 还没有
        for block in members:
            # 只编 forward，不编 __call__：搬权重、切权重的钩子在外面照常跑
            block.forward = _compiled(block.forward)
    return recompute


def cannot_compile(device: torch.device) -> str:
    """torch.compile 在这台机器上为什么用不了；能用就是空的。只看缺什么，不真的编译。"""
    if device.type != "cuda":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except RuntimeError:
            return "没有 C++ 编译器，装上 g++ 就能用"
        return ""
    from torch.utils._triton import has_triton

    if not has_triton():
        return (
            "没有 Triton（Windows 上要另装与 torch 配套的 triton-windows），或显卡比 RTX 20 系还老"
        )
    named = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return "" if named or os.name == "nt" else "Triton 要 C 编译器，装上 gcc 就能用"


def _compiled(forward: Callable) -> Callable:
    """编译一块的 forward；先把输入弄成一个样，否则编译器会为头一块单独再编一份。"""
    fast = torch.compile(forward)

    @wraps(forward)
    def run(*args, **kwargs):
        return fast(*map(_alike, args), **{key: _alike(value) for key, value in kwargs.items()})

    return run


def _alike(value):
    """词元 (B, L, D)：不是别的张量的视图，训练时都带梯度，像上一块的输出那样；其余原样。"""
    if not (isinstance(value, torch.Tensor) and value.dim() == 3 and value.is_floating_point()):
        return value
    learns = value.requires_grad or not torch.is_grad_enabled()
    if learns and value._base is None:
        return value
    return value.clone() if learns else value.clone().requires_grad_()


def can_replay(device: torch.device, processes: int) -> bool:
    """一步能不能录成 CUDA 图：几个进程要在步里通信，录不了。"""
    return device.type == "cuda" and processes == 1


class Recompute:
    """前向走到每一块时决定：留下中间结果，还是反向时重算这一块（梯度检查点，Chen 等 2016）。"""

    def __init__(self, how: str, members: Iterable[nn.Module], device: torch.device, context=None):
        self.how, self.device = how, device
        self.more = {"context_fn": context} if context else {}  # 重算时要还原的（见 Kandinsky）
        self.places = {id(block): i for i, block in enumerate(members)}
        self.costs: dict[tuple, int] = {}  # 哪种块、什么形状 -> 留下一块的中间结果要多少字节
        self.most: int | None = None  # 张量一共最多占多少字节；None 就现问显卡
        self.start = 0  # 走到头一块时，张量占了多少字节

    def __call__(self, block: nn.Module, *args):
        if self.how == "selective" and self.places[id(block)] % 2:
            return block(*args)
        if self.how != "auto":
            return self._again(block, args)
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        kind = (type(block), *(value.shape for value in tensors))
        before = torch.cuda.memory_allocated(self.device)
        if self.places[id(block)] == 0:
            self.start = before
        if kind in self.costs:
            left = len(self.places) - self.places[id(block)]
            # 留出：后面每块都重算时要存的输入、反向时重算的那一块与它的梯度、切碎了用不上的
            spare = left * sum(value.nbytes for value in tensors) + 3 * max(self.costs.values())
            cost = self.costs[kind]
            spare += int(SHREDS * (before - self.start + cost))
            return block(*args) if cost + spare < self._free() else self._again(block, args)
        out = block(*args)  # 这种块头一次见：留下它，量一量
        self.costs[kind] = torch.cuda.memory_allocated(self.device) - before
        return out

    @contextmanager
    def within(self, free: int):
        """暂时不问显卡：从现在起还能再用 free 字节。"""
        self.most = torch.cuda.memory_allocated(self.device) + free
        try:
            yield
        finally:
            self.most = None

    def _free(self) -> int:
        if self.most is None:
            return free_memory(self.device)
        return self.most - torch.cuda.memory_allocated(self.device)

    def _again(self, block: nn.Module, args: tuple):
        # 块里没有随机数，不用存随机数发生器的状态
        how = {"use_reentrant": False, "preserve_rng_state": False, **self.more}
        return checkpoint(block, *args, **how)


def free_memory(device: torch.device) -> int:
    """显卡上还能再用多少字节：没分出去的，加上 PyTorch 攒着没用的；给进程设过上限就按上限算。"""
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    if hasattr(torch.cuda, "get_per_process_memory_fraction"):  # torch 2.8 起
        limit = int(total * torch.cuda.get_per_process_memory_fraction(device.index))
        free = min(free, limit - reserved)
    return free + reserved - torch.cuda.memory_allocated(device)


def set_attention(transformer: nn.Module, family, name: str, masked: bool = False):
    """选注意力的内核，先和参考算法对一遍；auto 挑第一个算得对的。

    Args:
        masked: 成批的描述长短不一，注意力带着掩码。

    Raises:
        ConfigError: 指定的这一种在这里用不了，或算得不对。
    """
    gpu = family.device.type == "cuda"
    if name == "native" or (name == "auto" and not gpu):
        return  # diffusers 本来就用它
    if name == "cudnn" and not gpu:
        raise ConfigError("memory.attention：cudnn 要有 NVIDIA 显卡；这里请写 auto。")
    if name == "flash" and family.masks_text:
        raise ConfigError(
            f"memory.attention：{family.name} 成批时注意力要用掩码，flash 没有掩码。请写 auto。"
        )
    errors = {}
    sizes = transformer.config  # 每头的维数就是位置编码各轴的维数之和
    head = sum(sizes.get("axes_dims_rope") or sizes["axes_dims"])
    maskless = {"flash"} if family.masks_text else set()
    for kind in [k for k in FASTEST if k not in maskless] if name == "auto" else [name]:
        backend = kind if kind == "native" else f"_native_{kind}"
        errors[kind] = attention_error(backend, family.device, family.dtype, masked, head)
        if errors[kind] < ATTENTION_ERROR:
            _use_attention(transformer, backend)
            return
    said = "、".join(f"{kind} 差 {error:.2g}" for kind, error in errors.items())
    raise ConfigError(
        f"memory.attention：{name} 在这里用不了（与参考算法比，{said}）。请写 native。"
    )


def _use_attention(transformer: nn.Module, backend: str):
    """只改这一个模型；diffusers 顺手还会改全局的默认，别的模型就跟着变了，所以用完还原。"""
    from diffusers.models.attention_dispatch import attention_backend

    logger = logging.getLogger("diffusers.models.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # 它每次都说一句“还在试验”
    with attention_backend("native"):
        transformer.set_attention_backend(backend)
    logger.setLevel(level)


def attention_error(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    masked: bool = False,
    head_dim: int = 128,
) -> float:
    """一种内核的输出与梯度，和 fp32 参考算法的最大相对误差；跑不起来就是无穷大，出了 NaN 就是 NaN。

    长度取 64 除以 128 的余数：带掩码时 cuDNN 在这样的长度上算出过 NaN 的梯度（pytorch#196678）。
    """
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    from lorakit import cudnn_attention  # 它要导入 diffusers，很慢

    cudnn_attention.install()
    source = torch.Generator(device).manual_seed(0)
    shape = (2, 320, 2, head_dim)  # (B, L, 头数, 每头的维数)
    q, k, v, grad = (torch.randn(shape, generator=source, device=device) for _ in range(4))
    seen = torch.ones(2, 1, 1, shape[1], dtype=torch.bool, device=device)
    seen[1, ..., -100:] = False
    masks = [None, seen] if masked else [None]  # 碰巧一样长的一批没有掩码

    def run(attend, kind: torch.dtype) -> list[torch.Tensor]:
        given = [x.to(kind).requires_grad_() for x in (q, k, v)]
        outs = [attend(*given, mask) for mask in masks]
        grads = [torch.autograd.grad(out, given, grad.to(kind)) for out in outs]
        return [*(out.detach() for out in outs), *chain.from_iterable(grads)]

    def reference(q, k, v, mask):
        scores = torch.einsum("blhd,bmhd->bhlm", q, k) / math.sqrt(shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), v)

    def tried(q, k, v, mask):
        return dispatch_attention_fn(q, k, v, attn_mask=mask, backend=backend)

    try:
        got = run(tried, dtype)
    except (RuntimeError, ValueError):  # PyTorch 说没有能用的内核
        return math.inf
    pairs = zip(got, run(reference, torch.float32), strict=True)
    errors = torch.stack([(a.float() - b).norm() / b.norm() for a, b in pairs])
    return float(errors.max())  # 有一个是 NaN，最大值就是 NaN


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
    said = f"第 {step} 步显存不够了。已经存好的检查点都在。依次试试：\n"
    return said + "\n".join(tips[:3])


def pick_device(path: str = "") -> torch.device:
    """有显卡用显卡，没有就用 CPU；练习册里随包的微型模型（path）总用 CPU，见 lab/models.py。"""
    if path in tiny_models() and os.environ.get(TINY_DEVICE) == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """model.precision -> 精度；auto 在支持 bf16 的显卡上用 bf16，别处用 fp32。"""
    names = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if precision != "auto":
        return names[precision]
    return names["bf16" if has_bf16(device) else "fp32"]


def loss_scale(dtype: torch.dtype) -> float:
    """反向之前损失先乘多少：fp16 最小只到 6e-8，大图的梯度会变成 0；更新之前再除回来。"""
    return 4096.0 if dtype == torch.float16 else 1.0


def has_bf16(device: torch.device) -> bool:
    """显卡真有 bf16 的计算单元；T4 那样由 PyTorch 模拟的不算。"""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
