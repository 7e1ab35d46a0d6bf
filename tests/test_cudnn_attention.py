"""cuDNN 注意力的算子：没有显卡时，用照公式写的内核走一遍接线、排法、编译与反向。"""

import pytest
import torch
from packaging.version import Version
from torch.nn import functional as F

from lorakit.memory import attention, cudnn_attention

SHAPE = (2, 24, 3, 16)  # (B, L, H, D)


def formula(q, k, v):
    """(B, L, H, D) 三份 -> 注意力的权重 (B, H, L, L) 与 logsumexp (B, H, L)。"""
    scores = torch.einsum("blhd,bmhd->bhlm", q, k) / q.shape[-1] ** 0.5
    return scores.softmax(-1), scores.logsumexp(-1)


def forward(q, k, v):
    weights, lse = formula(q, k, v)
    return torch.einsum("bhlm,bmhd->blhd", weights, v).contiguous(), lse


def backward(grad, q, k, v, out, lse):
    """FlashAttention（Dao 等 2022，附录 B）里的反向公式，只用存下的 out 与 lse。"""
    scale = q.shape[-1] ** -0.5
    weights = (torch.einsum("blhd,bmhd->bhlm", q, k) * scale - lse[..., None]).exp()
    through = torch.einsum("blhd,bmhd->bhlm", grad, v)
    scores = weights * (through - (grad * out).sum(-1).transpose(1, 2)[..., None]) * scale
    grads = (
        torch.einsum("bhlm,bmhd->blhd", scores, k),
        torch.einsum("bhlm,blhd->bmhd", scores, q),
        torch.einsum("bhlm,blhd->bmhd", weights, grad),
    )
    return tuple(one.contiguous() for one in grads)


@pytest.fixture
def kernels():
    """CPU 上的内核，用完拿走：别的测试要看到“这里用不了”。"""
    with torch.library._scoped_library("lorakit", "IMPL") as library:
        library.impl("cudnn_attention", forward, "CPU")
        library.impl("cudnn_attention_backward", backward, "CPU")
        yield


def run(attend, given, grad):
    q, k, v = (x.clone().requires_grad_() for x in given)
    out = attend(q, k, v)
    return [out, *torch.autograd.grad(out, (q, k, v), grad)]


def stock(q, k, v):
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@pytest.fixture
def given():
    source = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=source) for _ in range(4)]


def test_the_operator_is_sound(kernels, given):
    """PyTorch 自己的检查：声明的形状与排法、梯度、编译与真的跑起来一致。"""
    qkv = [x.requires_grad_() for x in given[:3]]
    torch.library.opcheck(cudnn_attention.attention, qkv)


@pytest.mark.parametrize("wrap", [lambda f: f, torch.compile])
def test_the_backend_equals_stock_attention(kernels, given, wrap):
    """排法不紧的输入、照别的次序排的梯度也对。"""
    loose = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in given]
    assert not loose[0].is_contiguous()
    attend = wrap(cudnn_attention._attend)
    right, ours = (run(way, loose[:3], loose[3]) for way in (stock, attend))
    torch.testing.assert_close(ours, right)


def test_the_backend_listens_to_autocast(kernels, given):
    with torch.autocast("cpu", torch.bfloat16):
        out = cudnn_attention._attend(*given[:3])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), stock(*given[:3]), rtol=0.02, atol=0.02)


def test_masks_take_the_stock_way(kernels, given, monkeypatch):
    monkeypatch.setattr(cudnn_attention, "_stock", lambda q, k, v, mask, **how: (mask, how))
    mask = torch.ones(2, 1, 1, SHAPE[1], dtype=torch.bool)
    assert cudnn_attention._attend(*given[:3], mask, scale=None) == (mask, {"scale": None})
    assert cudnn_attention._attend(*given[:3], None, scale=0.5) == (None, {"scale": 0.5})


def test_it_is_still_needed():
    """torch 新了：照 cudnn_attention 开头说的再试一次，能删就删。"""
    assert Version(torch.__version__).release < Version(cudnn_attention.RETRY).release


def test_diffusers_uses_it_where_it_works_only():
    from diffusers.models import attention_dispatch

    cudnn_attention.install()
    name = attention_dispatch.AttentionBackendName._NATIVE_CUDNN
    assert attention_dispatch._AttentionBackendRegistry._backends[name] is cudnn_attention._attend
    assert attention.attention_error(name.value, torch.device("cpu"), torch.float32) == float("inf")
