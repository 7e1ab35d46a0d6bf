"""cuDNN 的注意力，包成编译器不拆开的一个算子；install() 以后，diffusers 的 cuDNN 后端就是它。

PyTorch 自带的走法，单独调用没事；torch 2.11 编译以后训练 FLUX（一步 4608 个词元），却非法访问显存，
多半是输出在显存里的排法与编译器以为的不同。这里进出都是紧排的 (B, L, H, D)，不用猜，没有再出过事，
还省下换排法的三次拷贝。同一次运行里（H100，FLUX.1-dev 1024²），一步 0.35 秒，flash 0.42 秒。

什么时候删：torch 到了 RETRY，就跳过 install()，在 H100 上重跑 `lorakit bench flux-dev`（它编译）；
不再非法访问、也不比这里慢，就整个文件删掉；否则把 RETRY 往后挪。
"""

from functools import wraps

import torch
from diffusers.models import attention_dispatch
from torch import Tensor

from lorakit.memory.quantize import compute_dtype

RETRY = "2.14"  # 到了这一版的 torch，有一个测试会提醒
_aten = torch.ops.aten
_backends = attention_dispatch._AttentionBackendRegistry._backends
_name = attention_dispatch.AttentionBackendName._NATIVE_CUDNN
_stock = _backends[_name]


def _swap(x: Tensor) -> Tensor:
    """(B, L, H, D) 与 (B, H, L, D) 互换；只换看法，不拷贝。"""
    return x.transpose(1, 2)


@torch.library.custom_op("lorakit::cudnn_attention", mutates_args=(), device_types="cuda")
def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L, H, D) 三份 -> 输出 (B, L, H, D)，与反向要用的 logsumexp (B, H, L)。

    Raises:
        RuntimeError: 不是 NVIDIA 显卡，或 cuDNN 没有这种形状、精度的内核。
    """
    heads = [_swap(x.contiguous()) for x in (q, k, v)]
    out, lse, *_ = _aten._scaled_dot_product_cudnn_attention(*heads, None, True)
    return _swap(out).contiguous(), lse.flatten(2).contiguous()


@attention.register_fake
def _(q, k, v):
    b, length, h, _ = q.shape
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(
        b, h, length, dtype=torch.float32
    )


@torch.library.custom_op("lorakit::cudnn_attention_backward", mutates_args=(), device_types="cuda")
def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """输出的梯度 (B, L, H, D) -> q、k、v 各自的梯度，都是 (B, L, H, D)。"""
    heads = [_swap(x.contiguous()) for x in (grad, q, k, v, out)]
    seed = lse.new_zeros((), dtype=torch.long)  # 没有 dropout，不用随机数
    lengths = (None, None, q.shape[1], k.shape[1])
    grads = _aten._scaled_dot_product_cudnn_attention_backward(
        *heads, lse.unsqueeze(-1), seed, seed, None, *lengths, 0.0, False
    )
    return tuple(_swap(one).contiguous() for one in grads)


@attention_backward.register_fake
def _(grad, q, k, v, out, lse):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


attention.register_autograd(
    lambda ctx, grad, _: attention_backward(grad, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, *output),
)


@wraps(_stock)
def _attend(query, key, value, attn_mask=None, **how):
    if attn_mask is not None or any(how.values()):  # 掩码、dropout 等等：原来的走法
        return _stock(query, key, value, attn_mask, **how)
    kind = compute_dtype(query)  # 自己的算子，autocast 不认得
    return attention(*(x.to(kind) for x in (query, key, value)))[0]


def install():
    """让 diffusers 的 _native_cudnn 走这个算子；带掩码、dropout 等等的仍走原来的。"""
    _backends[_name] = _attend
