"""量化的底模：冻住的权重只占一个字节（fp8、int8）或半个字节（nf4）；边读边量化。

读一层、放到设备上、量化、再读下一层，所以显卡和内存里都不会有整份 bf16 的权重。
反向传播时重新解码，不留解码后的权重：不开梯度检查点也真的省显存。
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import nn
from torch.nn import functional as F

from lorakit.errors import ConfigError
from lorakit.memory import fp8_matmul
from lorakit.memory.fp8_matmul import FP8, MOST

INT8_MOST = 127.0  # 能表示的最大的数
NF4_BYTES = 0.516  # 4 位加每 64 个数的缩放（缩放自己也压成 8 位），每个数几字节
NF4_WORST = 0.15  # 一层压成 4 位后误差超过这么多（正态分布的权重是 0.09），就改存 int8
FEW_ROWS = 2  # 不多于这么多行，fp8 的矩阵乘法不划算：解码再乘，编译后并成一遍


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """这一层该用什么精度算：autocast 里听它的，否则和输入一样；与 nn.Linear 一致。"""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def encode(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(出, 入) -> 一个字节的编码 (出, 入) 与每行的缩放 (出, 1)：每行最大的数正好用满。"""
    most = INT8_MOST if kind == "int8" else MOST
    weight = weight.float().contiguous()  # 转置来的也要按行排好，fp8 的内核只认这种
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / most
    scaled = weight / scale
    if kind == "int8":
        return scaled.round().to(torch.int8), scale
    # 存成 uint8：PEFT 会把适配器换成底层权重的浮点精度，fp8 的适配器什么也学不了
    return scaled.to(FP8).view(torch.uint8), scale


def decode(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """encode 的逆，精度是 dtype。"""
    values = codes.view(FP8) if codes.dtype == torch.uint8 else codes
    return values.to(dtype) * scale.to(dtype)


class _Decoded(torch.autograd.Function):
    """y = x W^T + b，W 现解码；反向再解码一次，不保存解码后的 W。"""

    @staticmethod
    def forward(ctx, x, codes, scale, bias):
        ctx.save_for_backward(codes, scale)
        if x.numel() // x.shape[-1] > FEW_ROWS or not torch.compiler.is_compiling():
            return F.linear(x, decode(codes, scale, x.dtype), bias)
        # 只有一两行：编译器把解码与乘加并成一遍，不把解码后的 W 写出来再读回去
        weight = decode(codes, scale, torch.float32)
        out = (x.float().unsqueeze(-2) * weight).sum(-1).to(x.dtype)
        return out if bias is None else out + bias

    @staticmethod
    def backward(ctx, grad):
        return grad @ decode(*ctx.saved_tensors, grad.dtype), None, None, None


class FrozenLinear(nn.Linear):
    """权重一个字节一个数、不训练的线性层；PEFT 把它当普通的 nn.Linear 挂 LoRA。"""

    def __init__(self, weight: torch.Tensor, bias: nn.Parameter | None, kind: str):
        nn.Module.__init__(self)  # 跳过 nn.Linear 的：它会先造一份用不着的权重
        self.out_features, self.in_features = weight.shape
        self.kind, self.bias = kind, bias
        self._keep(*encode(weight, kind))

    @classmethod
    def of_int8(cls, codes: torch.Tensor, most: torch.Tensor, bias) -> "FrozenLinear":
        """现成的 8 位编码 (出, 入) 与每行最大的数 (出,)，bitsandbytes 的样子；不复制编码。"""
        made = cls(codes.new_empty(codes.shape, device="meta"), bias, "int8")
        made._keep(codes, most.float()[:, None] / INT8_MOST)
        return made

    def _keep(self, codes: torch.Tensor, scale: torch.Tensor):
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = compute_dtype(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Decoded.apply(x.to(dtype), self.weight, self.scale, bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kind={self.kind}"


class Fp8Linear(FrozenLinear):
    """连矩阵乘法也用 fp8：比 bf16 快，权重也只占一半。"""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() // x.shape[-1] <= FEW_ROWS:
            return super().forward(x)
        x = x.to(compute_dtype(x))
        out = fp8_matmul.Matmul.apply(x, self.weight, self.scale)
        return out if self.bias is None else out + self.bias.to(out.dtype)


LACKS = {  # 哪一种 -> (为什么用不了, 怎么改)
    "nf4": (
        "nf4 要用 {package}，还没有装。",
        "请运行 pip install {package}，或改用 fp8、int8（不用另装东西，显存多一倍）。",
    ),
}
NO_FP8 = (
    "model.quantize=fp8-matmul：{card} 没有 fp8 的矩阵乘法（RTX 40 系、H100 以后才有），"
    "照 fp8 存、解码了再算：一样省显存，慢一些。"
)


@cache
def nf4_class():
    import bitsandbytes as bnb

    class Nf4Linear(bnb.nn.Linear4bit):
        """bitsandbytes 的 4 位线性层；前向自己写：原来的不听 autocast，在 CPU 上还会重排权重。"""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.to(compute_dtype(x))
            bias = None if self.bias is None else self.bias.to(x.dtype)
            state = self.weight.quant_state
            return bnb.matmul_4bit(x, self.weight.t(), bias=bias, quant_state=state)

    def make(weight: torch.Tensor, bias: nn.Parameter | None, kind: str) -> nn.Module:
        made = Nf4Linear(*weight.shape[::-1], bias=False, quant_type=kind, device="meta")
        made.compute_dtype, made.bias = weight.dtype, bias
        codes = bnb.nn.Params4bit(weight, requires_grad=False, quant_type=kind, module=made)
        made.weight = codes.to(weight.device)  # 搬到设备上的那一刻量化
        again = bnb.functional.dequantize_4bit(made.weight.data, made.weight.quant_state)
        if (again - weight).norm() > NF4_WORST * weight.norm():
            return FrozenLinear(weight, bias, "int8")
        return made

    return make


def lacks(kind: str, device: torch.device) -> dict[str, str] | None:
    """这种量化在这台机器上缺什么（LACKS 里那句话要填的）；不缺就是 None。"""
    missing = kind == "nf4" and find_spec("bitsandbytes") is None
    return {"package": "bitsandbytes"} if missing else None


def done_as(kind: str, device: torch.device) -> str:
    """在这块卡上真正用的：没有 fp8 矩阵乘法的，fp8-matmul 就是 fp8（存成的样子本来就一样）。"""
    on_gpu = kind == "fp8-matmul" and device.type == "cuda"
    old = on_gpu and torch.cuda.get_device_capability(device) < (8, 9)
    return "fp8" if old else kind


def check(kind: str, device: torch.device):
    """这种量化在这台机器上能不能用；要的库没装，在载入之前说。

    Raises:
        ConfigError: 用不了。
    """
    if found := lacks(kind, device):
        raise ConfigError("model.quantize：" + "".join(LACKS[kind]).format(**found))


def is_quantized(module: nn.Module) -> bool:
    """这一层的权重是不是量化过的。"""
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Linear) and weight is not None and not weight.is_floating_point()
