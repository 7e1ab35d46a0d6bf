"""注意力的内核：先和参考算法对一遍，挑最快而算得对的。"""

import logging
import math
from itertools import chain

import torch
from torch import nn

from lorakit.errors import ConfigError

FASTEST = ("cudnn", "flash", "efficient", "native")  # 注意力的内核，H100 上由快到慢
WRONG = ("{name} 在这里用不了（与参考算法比，{errors}）。", "请写 native。")
ATTENTION_ERROR = 0.03  # bf16 的注意力与 fp32 参考的相对误差，正常不到 0.01


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
    kind, errors = choose(family, transformer.config, name, masked)
    if kind is None:
        raise ConfigError("memory.attention：" + "".join(WRONG).format(name=name, errors=errors))
    _use_attention(transformer, _backend(kind))


def choose(family, sizes, name: str, masked: bool) -> tuple[str | None, str]:
    """(头一个算得对的内核，没有就是 None；试过的各差多少)；sizes 是 Transformer 的 config。"""
    errors = {}
    head = sum(sizes.get("axes_dims_rope") or sizes["axes_dims"])  # 每头的维数是各轴之和
    maskless = {"flash"} if family.masks_text else set()
    for kind in [k for k in FASTEST if k not in maskless] if name == "auto" else [name]:
        errors[kind] = attention_error(_backend(kind), family.device, family.dtype, masked, head)
        if errors[kind] < ATTENTION_ERROR:
            return kind, ""
    return None, "、".join(f"{kind} 差 {error:.2g}" for kind, error in errors.items())


def _backend(kind: str) -> str:
    return kind if kind == "native" else f"_native_{kind}"


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

    from lorakit.memory import cudnn_attention  # 它要导入 diffusers，很慢

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
