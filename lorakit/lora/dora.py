"""DoRA：B A 之外，每一行还有自己的长度；有两种算法，除的不是同一个长度。

训练它的（PEFT、diffusers、LyCORIS）    W' = m · (W + BA) / |W + BA|
ComfyUI（它的 dora_scale）              W' = m · (W + BA) / |W|
长度按行算；OneTrainer 与旧版 LyCORIS 默认按列算，那时大家除的都是 |W + BA|。
出处：DoRA，https://arxiv.org/abs/2402.09353 。都是 W' = c · (W + BA)，
c 只要底模的权重就算得出；所以合并、换算、挂上去都经 c，与 PEFT 的结果相同。
"""

from dataclasses import dataclass, replace

import torch
from peft.tuners.lora.layer import LoraVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_bnb_weight
from torch import nn

from lorakit.errors import WeightsError
from lorakit.memory import streaming
from lorakit.memory.quantize import FrozenLinear, decode

MOVED, BASE = "moved", "base"  # 除的是 |W + BA|，还是 |W|


@dataclass(frozen=True)
class Dora:
    """一层 DoRA；缩放已折进 b。"""

    a: torch.Tensor  # (r, 入)
    b: torch.Tensor  # (出, r)
    magnitude: torch.Tensor  # m，(出,)；按列的是 (入,)
    over: str = MOVED
    columns: bool = False

    def ratio(self, weight: torch.Tensor) -> torch.Tensor:
        """c，(出, 1)；按列的是 (1, 入)。weight 是底模的 (出, 入)。"""
        base = weight.double()
        if self.columns or self.over == MOVED:
            base = base + self.b.double().to(base.device) @ self.a.double().to(base.device)
        length = base.norm(dim=0 if self.columns else 1, keepdim=True).clamp(min=1e-30)
        return self.magnitude.double().to(base.device).view_as(length) / length

    def delta(self, weight: torch.Tensor) -> torch.Tensor:
        """ΔW = c (W + BA) - W，(出, 入)。"""
        base = weight.double()
        low = self.b.double().to(base.device) @ self.a.double().to(base.device)
        return self.ratio(weight) * (base + low) - base

    def trained(self, weight: torch.Tensor) -> "Dora":
        """换成训练时的算法，W' 不变：m = c |W + BA|。"""
        if self.over == MOVED:
            return self
        low = self.b.double() @ self.a.double()
        length = (weight.double().cpu() + low).norm(dim=1)
        ratio = self.ratio(weight).flatten().cpu()
        return replace(self, magnitude=(ratio * length).float(), over=MOVED)


def swapped(layer: Dora) -> Dora:
    """长度的前后两半对调，见 fused.py；按列的长度不跟着行走。"""
    if layer.columns:
        return layer
    return replace(layer, magnitude=layer.magnitude.roll(len(layer.magnitude) // 2, 0))


def split(layer: Dora, parts: tuple[tuple[str, int], ...]) -> dict[str, Dora]:
    """原作者的一层 -> diffusers 的几层；长度按行，跟着 B 一起切。"""
    if len(layer.b) != sum(wide for _, wide in parts):  # 形状不对：体检会指出来
        return {parts[0][0]: layer}
    if len(parts) == 2 and parts[0] == parts[1]:  # 前后两半对调，见 fused.py
        return {parts[0][0]: swapped(replace(layer, b=layer.b.roll(len(layer.b) // 2, 0)))}
    if len(parts) == 1:
        return {parts[0][0]: layer}
    if layer.columns:
        raise WeightsError(
            f"{parts[0][0]} 是按列算长度的 DoRA，练的又是原作者并起来的层，拆不开。"
            "请直接在 ComfyUI 里用这个文件。"
        )
    wide = [w for _, w in parts]
    rows = zip(layer.b.split(wide), layer.magnitude.split(wide), strict=True)
    return {
        path: replace(layer, b=b, magnitude=m)
        for (path, _), (b, m) in zip(parts, rows, strict=True)
    }


def weight_of(layer: nn.Module) -> torch.Tensor:
    """一层的权重 (出, 入)；挂着 LoRA 的看里面的，量化过的先解码。"""
    layer = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    if isinstance(layer, FrozenLinear):
        return decode(layer.weight, layer.scale, torch.float32)
    packed = hasattr(layer.weight, "quant_state")  # 只解码，不换掉参数：搬运时要认得它
    return dequantize_bnb_weight(layer.weight) if packed else layer.weight


class Rows(LoraVariant):
    """挂在 PEFT 层上的 DoRA：y = W x + 强度 · ((c - 1) W x + c B A x)，与 ComfyUI 的强度同义。

    PEFT 自己的强度乘在 BA 上，0 时每行的长度还留着，不是底模；强度 1 时两种算法相同。
    """

    def __init__(self, layer: Dora):
        self.layer, self._c = layer, None

    def c(self, module: nn.Module) -> torch.Tensor:
        """(出, 1) 或 (1, 入)；只算一次，底模的权重要在。"""
        if self._c is None:
            self._c = self.layer.ratio(weight_of(module)).float()
        return self._c

    def forward(self, module, active_adapter, x, result, **kwargs):
        ratio, times = self.c(module), module.scaling[active_adapter]
        c = ratio.to(result.device).flatten()
        base, up = module.get_base_layer(), module.lora_B[active_adapter]
        down = module.lora_A[active_adapter]
        bias = 0 if base.bias is None else base.bias.to(result.dtype)
        c, more = c.to(result.dtype), (c - 1).to(result.dtype)  # bf16 里 1.001 - 1 是 0：先减
        if self.layer.columns:
            return result + times * (base(x * more) - bias + up(down(x * c)))
        return result + times * (more * (result - bias) + c * up(down(x)))

    def merge_safe(self, module, active_adapter, orig_weight):
        c, times = self.c(module).to(orig_weight.device), module.scaling[active_adapter]
        base, low = orig_weight.double(), self._low(module, active_adapter)
        return (base + times * (c * (base + low) - base)).to(orig_weight.dtype)

    def merge_unsafe(self, module, active_adapter, orig_weight):
        orig_weight.data = self.merge_safe(module, active_adapter, orig_weight.data)

    def unmerge(self, module, active_adapter, orig_weight):
        c, times = self.c(module).to(orig_weight.device), module.scaling[active_adapter]
        low = self._low(module, active_adapter)
        base = (orig_weight.double() - times * c * low) / (1 + times * (c - 1))
        return base.to(orig_weight.dtype)

    @staticmethod
    def _low(module, active_adapter) -> torch.Tensor:
        a, b = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        return b.double() @ a.double()


def put_rows(module: nn.Module, adapter: str, layer: Dora):
    """把挂好的普通 LoRA 层变成 DoRA；随用随搬的权重不在，c 等第一次前向再算。"""
    rows = module.lora_variant[adapter] = Rows(layer)
    if not streaming.is_away(module.get_base_layer().weight):
        rows.c(module)
