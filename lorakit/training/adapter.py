"""训练适配器：一份别人练好的 LoRA，只在训练时加在冻住的底模上；画图时不加，也不存进结果。

步数蒸馏过的底模几步就出图，直接练会先丢掉这个本事。适配器把底模变回没有蒸馏过的样子，要学的 LoRA
就只学要学的；画的时候没有它，底模还是几步出图的那个。别的训练器叫它 assistant LoRA。

它是旁边的一条支路，不合进权重：W 量化过、放在内存里也不要紧，画图时用的 W 一个比特也没有变。
"""

from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from lorakit import hub, lora
from lorakit.errors import ConfigError, WeightsError
from lorakit.lora import convert
from lorakit.lora.put import understood

FIELD = "model.training_adapter"
RANK = 64  # 随机权重的底模（排练、测速）配的适配器


class Branch:
    """一层的支路：训练时（train 模式）y = W x + B A x，画图时（eval 模式）还是 W x。"""

    def __init__(self, a: torch.Tensor, b: torch.Tensor):
        self.a, self.b = a, b  # (r, 入)、(出, r)，强度已乘进去

    def __call__(self, layer: nn.Module, given: tuple, out: torch.Tensor) -> torch.Tensor:
        if not layer.training:
            return out
        x = given[0].to(out.dtype)
        return out + F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype))


def find(settings) -> Path:
    """model.training_adapter -> 本地的 LoRA 文件；站上的就下载这一个。"""
    return lora.find(hub.single(settings.training_adapter, settings.source, FIELD))


def check(settings, family):
    """载入底模之前核对：找得到、读得了、每一层都对得上。没有写就什么也不做。

    Raises:
        LorakitError: 找不到，或用不了。
    """
    if settings.training_adapter and not family.random_weights:
        _layers(find(settings), family)


def put_on(transformer: nn.Module, family, settings, device: torch.device):
    """把支路挂到还没有挂 LoRA 的 transformer 上；没有写适配器就什么也不做。"""
    if not settings.training_adapter:
        return
    blank = family.random_weights
    made = imagined(family, device) if blank else _layers(find(settings), family)
    for path, pair in made.items():
        a, b = (part.to(device, family.dtype) for part in pair)
        transformer.get_submodule(path).register_forward_hook(Branch(a, b))
    transformer.assisted = True  # 不再是没有动过的底模：下一次训练要重新载入


def imagined(family, device: torch.device | str) -> convert.Layers:
    """真适配器的样子：全部线性层，秩 RANK；排练、测速、估计显存用，都是零。"""
    shell = family.skeleton()
    make = partial(torch.zeros, device=device, dtype=family.dtype)
    layers = {path: shell.get_submodule(path) for path in lora.match(shell, family, "all-linear")}
    return {
        path: (make(RANK, layer.in_features), make(layer.out_features, RANK))
        for path, layer in layers.items()
    }


def _layers(file: Path, family) -> convert.Layers:
    """文件 -> 各层的 (A, B)；LoKr 也写成这样。"""
    try:
        found = understood(file, family.skeleton(), family.original).layers
        layers = {path: convert.plain(path, layer) for path, layer in found.items()}
    except WeightsError as error:
        raise ConfigError(f"{FIELD}：{error}") from error
    if dora := next((p for p, layer in layers.items() if isinstance(layer, convert.Dora)), None):
        raise ConfigError(
            f"{FIELD}：“{file}”的 {dora} 是 DoRA，它还改每行的长度，不是加在旁边的一份。"
            "请换普通的 LoRA。"
        )
    return layers
