"""LoRA 挂在哪些层、怎么挂、改了多少；矩阵运算由 PEFT 完成，存读在 files.py。"""

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MethodType

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F

from lorakit.errors import ConfigError
from lorakit.lora import lokr
from lorakit.memory.quantize import compute_dtype
from lorakit.memory.sharded import whole

ADAPTER = "default"


def match(transformer: nn.Module, family, targets: str | list[str]) -> list[str]:
    """lora.targets -> 模型里对上的线性层全名；列表里每一个是层名的结尾，也可以是预设。

    Raises:
        ConfigError: 有一个一层也没对上；会列出可用的预设和最接近的层名。
    """
    listed, found = not isinstance(targets, str), set()
    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    for one in targets if listed else [targets]:
        wanted = rf"(.*\.)?{re.escape(one)}" if listed else one
        try:
            pattern = re.compile(family.targets.get(one, wanted))
        except re.error as error:
            raise ConfigError(f"lora.targets：“{one}”不是能用的正则表达式（{error}）。") from error
        hits = {name for name in linear if pattern.fullmatch(name)}
        if not hits:
            tails = sorted({re.sub(r".*\.\d+\.", "", name) for name in linear})
            near = difflib.get_close_matches(one, [*family.targets, *tails], n=3, cutoff=0.4)
            hint = f"最接近的有：{'、'.join(near)}。" if near else ""
            presets, said = "、".join(family.targets), one if len(targets) > 1 else targets
            raise ConfigError(
                f"lora.targets：“{said}”在这个模型里一层也没对上。可用的预设：{presets}。{hint}"
            )
        found |= hits
    return [name for name in linear if name in found]


def plan(transformer: nn.Module, family, settings) -> list[str]:
    """要挂 LoRA 的层名；顺便核对秩不超过最小的那一层。只看形状，所以骨架模型也行。"""
    names = match(transformer, family, settings.targets)
    layers = [transformer.get_submodule(name) for name in names]
    smallest = min(min(layer.in_features, layer.out_features) for layer in layers)
    if settings.rank > smallest:
        raise ConfigError(
            f"lora.rank：{settings.rank} 比最小的目标层（{smallest}）还大，没有意义。"
            f"请写 1 到 {smallest}，常用 8 到 32。"
        )
    return names


def attach(transformer: nn.Module, family, settings, seed: int) -> dict[str, nn.Parameter]:
    """按设置挂上 LoRA，返回 {名字: 可训练参数}（fp32）；B 从 0 开始，所以刚挂上时什么也不改变。"""
    names = plan(transformer, family, settings)
    make = lokr.settings_for if settings.variant == "lokr" else _settings_for
    adapter = make(settings, names)
    with torch.random.fork_rng(devices=[]):  # PEFT 在 CPU 上用全局随机数初始化 A：借用，再还原
        torch.manual_seed(seed)
        transformer.add_adapter(adapter, adapter_name=ADAPTER)
    for module in transformer.modules():
        if isinstance(module, BaseTunerLayer):
            # 精度交给 autocast；PEFT 会先把每层的输入抄成 fp32，又慢又占显存
            module.cast_input_dtype_enabled = False
            if settings.variant in ("plain", "rslora"):
                module.forward = MethodType(_forward, module)
    parameters = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    for parameter in parameters.values():
        parameter.data = parameter.data.float()  # 底模可以是 bf16，要学的这点参数一律 fp32
    return parameters


def _forward(self, x: torch.Tensor) -> torch.Tensor:
    """y = W x + s B A x，与 PEFT 的相同；只有一个适配器时不必逐个去问，缩放乘在小的 B 上。"""
    if self.disable_adapters or self.merged or self.active_adapters != [ADAPTER]:
        return type(self).forward(self, x)
    x = x.to(compute_dtype(x))
    a, b = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight * self.scaling[ADAPTER]
    return self.base_layer(x) + F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))


def _settings_for(settings, names: Sequence[str]) -> LoraConfig:
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha or settings.rank,
        target_modules=list(names),
        init_lora_weights=True if settings.init == "default" else settings.init,
        use_rslora=settings.variant == "rslora",
        use_dora=settings.variant == "dora",
    )


def scale(settings) -> float:
    """LoRA 的作用要乘的数：alpha / 秩，rslora 是 alpha / √秩。"""
    rank = settings.rank
    return (settings.alpha or rank) / (rank**0.5 if settings.variant == "rslora" else rank)


def delta_norms(tensors: Mapping[str, torch.Tensor], times: float = 1.0) -> dict[str, float]:
    """LoRA 的张量 -> {块名: 块里各层 times · ΔW 的总长度（Frobenius）}；没有 LoRA 就是空的。

    不必真的乘出大矩阵：|BA|² = tr(AᵀBᵀBA) = Σ (BᵀB)∘(AAᵀ)，只要 r x r 的小矩阵。
    DoRA 只算 B A 这一部分。
    """
    squares: dict[str, float] = defaultdict(float)
    for name, value in tensors.items():
        if ".lora_A." not in name:
            continue
        a = whole(value.detach()).double()
        b = whole(tensors[name.replace(".lora_A.", ".lora_B.")].detach()).double()
        squares[block_of(name)] += float(torch.sum((b.T @ b) * (a @ a.T)))
    for name, parts in lokr.by_layer(tensors).items():
        product = lokr.Product.of({key: whole(value.detach()) for key, value in parts.items()})
        squares[block_of(name)] += product.norm() ** 2
    return {block: times * s**0.5 for block, s in squares.items()}


def block_of(name: str) -> str:
    """层名 -> 属于第几块，例如 transformer_blocks.3.attn.to_q 是 3；不在块里的是第一段名字。"""
    block = re.match(r"(?:transformer\.)?(.*?blocks?\.\d+|[^.]+)", name)[1]
    return block.split("_")[-1].removeprefix("blocks.")


def summary(parameters: Iterable[str]) -> str:
    """要学的参数名 -> 挂在哪些层上，一句话：共几层，每一种各几个。"""
    layers = dict.fromkeys(re.split(r"\.lo(?:ra|kr)_", name)[0] for name in parameters)
    kinds = Counter(re.sub(r".*?blocks?\.\d+\.", "", name) for name in layers)
    return f"{len(layers)} 层：" + "、".join(f"{kind} × {n}" for kind, n in kinds.items())
