"""LoRA 文件的体检：每层的秩、强度、有没有坏数，看着不对就拒绝。"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from lorakit.errors import WeightsError, warn
from lorakit.lora import dora, names
from lorakit.lora import fused as lora_fused
from lorakit.lora.algebra import shape_of, spectrum_of
from lorakit.lora.files import inert
from lorakit.lora.foreign import Meaning, meaning

# 文件里记着的几项 -> 给人看的名字；记着的值 -> 给人看的说法
CARD = {"rank": "秩", "base": "底模", "family": "家族", "steps": "步数", "trigger": "触发词",
        "held": "留出集损失", "made": "由什么做成"}  # fmt: skip
SAID = {"folded": "已经乘进权重", "": "没有"}


@dataclass(frozen=True)
class Audit:
    """一个文件配一个底模的体检结果。"""

    layers: int  # 放得上的层
    unknown: tuple[str, ...]  # 没有地方放的张量
    misfit: tuple[str, ...]  # 形状不对的层
    silent: tuple[str, ...]  # B 全是零、什么也没改的层
    blocks: Mapping[str, tuple[float, float]]  # 块 -> (|ΔW|, 有效秩的平均)
    card: Mapping[str, str]
    form: str = ""  # 认出来的写法
    strength: str = ""  # 每层乘了几、听谁的
    left: tuple[str, ...] = ()  # 文本编码器等别的部分的张量，用不上
    model: str | None = None  # 一层也放不上：像是给什么模型练的
    doubt: str = ""  # 文件头写的与张量对不上的地方

    @property
    def good(self) -> bool:
        return bool(self.layers) and not self.unknown and not self.misfit

    def text(self) -> str:
        """一张中文表。"""
        lines = [f"放得上的层 {self.layers} 个；{'全部对得上' if self.good else '有问题：'}"]
        tell = {"没有地方放": self.unknown, "形状不对": self.misfit, "什么也没改": self.silent,
                "用不上（文本编码器等别的部分）": self.left}  # fmt: skip
        for what, some in tell.items():
            if some:
                lines.append(f"  {what}：{len(some)} 个，例如 {some[0]}")
        lines += [f"  看层名，像是给 {self.model} 练的"] if self.model else []
        lines += [f"  写法：{self.form}", f"  强度：{self.strength}"] if self.layers else []
        lines += [f"  对不上：{self.doubt}；用的是上面的强度"] if self.doubt else []
        lines += [
            f"  {CARD.get(key, key)}：{SAID.get(value, value)}" for key, value in self.card.items()
        ]
        lines.append("块  改了多大（|ΔW|）  真正用上的秩")
        lines += [f"{k}  {norm:.4g}  {rank:.1f}" for k, (norm, rank) in self.blocks.items()]
        return "\n".join(lines)


def audit(
    file: Path, transformer: nn.Module, places: lora_fused.Slots = MappingProxyType({})
) -> Audit:
    """LoRA 文件与底模（骨架就够）逐层核对；只对上一半的文件也会在这里现形。"""
    shapes = {
        n: (m.out_features, m.in_features)
        for n, m in transformer.named_modules()
        if isinstance(m, nn.Linear)
    }
    found = meaning(file, shapes, places)
    misfit = [path for path, layer in found.layers.items() if shape_of(layer) != shapes[path]]
    spectra = {p: spectrum_of(layer) for p, layer in found.layers.items() if p not in misfit}
    silent = [path for path, values in spectra.items() if _silent(found.layers[path], values)]
    groups = defaultdict(list)
    for path, values in spectra.items():
        groups[re.match(r"(.*?blocks?\.\d+|[^.]+)", path)[1]].append(values)
    blocks = {
        name: (
            float(sum(v.square().sum() for v in group).sqrt()),
            sum(_effective_rank(v) for v in group) / len(group),
        )
        for name, group in groups.items()
    }
    lists = (tuple(map(inert, some)) for some in (found.unknown, misfit, silent))
    left = tuple(map(inert, found.left))
    model = None if found.layers else names.model_of(found.unknown)
    told = found.card, found.form, strength_of(found), left, model, found.doubt
    return Audit(len(found.layers), *lists, blocks, *told)


def _silent(layer, values: torch.Tensor) -> bool:
    """ΔW 是零的层；DoRA 没有 B A 也还有每行的长度。"""
    return not isinstance(layer, dora.Dora) and not values.any()


def changes_nothing(found: Meaning) -> bool:
    """每一层的 ΔW 都是零。"""
    return not any(
        isinstance(one, dora.Dora) or (one[1].any() if isinstance(one, tuple) else one.norm())
        for one in found.layers.values()
    )


def strength_of(found: Meaning) -> str:
    scales = sorted(found.scales.values())
    if not scales:
        return ""
    low, high = f"{scales[0]:.4g}", f"{scales[-1]:.4g}"
    said = f"{low if low == high else f'{low} 到 {high}'}（{found.said}）"
    doras = [layer for layer in found.layers.values() if isinstance(layer, dora.Dora)]
    if doras:
        said += f"；DoRA 另有每{'列' if doras[0].columns else '行'}的长度，下表只算 B A"
    return said


def _effective_rank(s: torch.Tensor) -> float:
    """奇异值分布的熵取指数（Roy 与 Vetterli 2007）：全等时是秩，只有一个不为零时是 1。"""
    p = s / s.sum().clamp(min=1e-30)
    return float(torch.exp(-(p * p.clamp(min=1e-30).log()).sum()))


def refuse(result: Audit, file: Path):
    """体检不合格就拒绝：只对上一半的文件，用起来比没有还坏；用不上的部分说一声。

    Raises:
        WeightsError: 有张量没有地方放，或形状不对。
    """
    if not result.good:
        wrong = [*result.unknown, *result.misfit, "（一层也没有）"]
        other = "用 lorakit audit 看全部，或换 --model"
        if result.model:
            other = f"看层名，它像是给 {result.model} 练的，请换 --model"
        elif result.left and not result.layers:
            other = "它只练了文本编码器，这里用不上"
        raise WeightsError(
            f"“{file}”与这个底模对不上：放得上 {result.layers - len(result.misfit)} 层，"
            f"放不上 {len(wrong) - 1} 个，例如 {wrong[0]}。{other}。"
        )
    tell(result.left, result.doubt, result.strength, file, len(result.silent) == result.layers)


def tell(left: Sequence[str], doubt: str, strength: str, file: Path, nothing: bool):
    """文件里用不上的部分、说法对不上的地方、什么也没改（nothing）：照样用，但要说。"""
    if nothing:
        warn(f"“{file}”什么也没改：每一层的 ΔW 都是零，用不用它一样。")
    if doubt:
        warn(f"“{file}”里说法对不上：{doubt}。用的强度是 {strength}；不对就问写它的人要对的文件。")
    if left:
        warn(f"“{file}”里有 {len(left)} 个张量属于文本编码器等别的部分，这里用不上，没有管它们。")
