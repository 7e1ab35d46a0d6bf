"""读别家 LoRA 文件的测试共用的：一个小 FLUX，写文件、读文件、挂上去，看每层实际改了多少。"""

import json
from types import SimpleNamespace

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file
from torch import nn

from lorakit import lora
from lorakit.families.flux import Flux
from lorakit.lora import algebra, foreign
from lorakit.lora import fused as lora_fused
from lorakit.tiny.pretrain import shapes

Q, OUT = "transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_out"
NORM = "norm_out.linear"


def flux() -> FluxTransformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return shapes.flux_transformer(latent_channels=4, layers=1, single_layers=2).eval()


def linear(model) -> dict[str, nn.Linear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}


def pair(model, path, rank=4, seed=0):
    g, layer = torch.Generator().manual_seed(seed), model.get_submodule(path)
    a = torch.randn(rank, layer.in_features, generator=g) * 0.1
    return a, torch.randn(layer.out_features, rank, generator=g) * 0.1


def named(path, a, b, prefix="transformer.", down="lora_A", up="lora_B"):
    return {f"{prefix}{path}.{down}.weight": a, f"{prefix}{path}.{up}.weight": b}


def write(folder, tensors, **header):
    file = folder / "f.safetensors"
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in header.items()}
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, file, text)
    return file


def meaning(file, model):
    return foreign.meaning(file, linear(model), lora_fused.slots(Flux.original, model))


def near(one, other, most=1e-6):
    assert (one - other).norm() <= most * other.norm().clamp(min=1e-9)


def read(file, model):
    found = meaning(file, model)
    assert found.unknown == []
    weights = {path: model.get_submodule(path).weight.detach() for path in found.layers}
    return {path: algebra.delta(layer, weights[path]) for path, layer in found.layers.items()}


def put(file):
    """挂到新的模型上，返回 (管线的替身, 每层实际的 ΔW)。"""
    model = flux()
    before = {n: m.weight.detach().double().clone() for n, m in linear(model).items()}
    pipe = SimpleNamespace(transformer=model)
    lora.put_on(pipe, file, "mine", Flux.original)
    return pipe, before


def moved(model, before):
    """把单位矩阵送过每一层：它现在的权重减去原来的。"""
    changes = {}
    for path, weight in before.items():
        layer = model.get_submodule(path)
        bias = 0 if (b := getattr(layer, "base_layer", layer).bias) is None else b
        with torch.no_grad():
            now = (layer(torch.eye(weight.shape[1])) - bias).T.double()
        if (now - weight).abs().max() > 1e-6:
            changes[path] = now - weight
    return changes
