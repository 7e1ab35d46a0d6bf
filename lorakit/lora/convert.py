"""LoRA 文件：各家写法读成同一种样子，再写成别家的；体检、合并、缩秩。每次转换都当场核对。

各家的写法（路径都是 diffusers 的层名）：
  diffusers   transformer.<路径>.lora_A.weight / lora_B.weight
  PEFT        base_model.model.<路径>.lora_A[.default].weight
  DiffSynth   <路径>.lora_A.default.weight
  ComfyUI     diffusion_model.<路径>.lora_A.weight
  kohya       lora_unet_<路径，点换成下划线>.lora_down / lora_up.weight 加 .alpha
  LyCORIS     lycoris_<路径，点换成下划线>.lokr_w1 / lokr_w2 加 .alpha（LoKr，见 lokr.py）
FLUX 在 ComfyUI 与 kohya 里用原作者的路径，q、k、v 并在一起（lora_fused.py）。
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from lorakit.errors import ConfigError, WeightsError
from lorakit.files import write_whole
from lorakit.lora import files as lora_files
from lorakit.lora import fused as lora_fused
from lorakit.lora import lokr
from lorakit.lora.tensors import write_tensors
from lorakit.memory.quantize import is_quantized

Pair = lora_fused.Pair  # A (r, 入), B (出, r)，缩放已折进 B
Layers = dict[str, Pair | lokr.Product]  # 层名 -> 它的 ΔW
TENSOR = re.compile(
    r"(.+?)\.(?:lora[._](A|B|down|up)(?:\.\w+)?\.weight|(alpha)|lokr_(w[12](?:_[ab])?))"
)
PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.", "model.diffusion_model.")
FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")  # kohya 一系：点换成了下划线
FORMATS = ("diffusers", "comfyui", "kohya")
SAME = 1e-6  # 转换前后 ΔW 的相对误差不能超过它


def read(
    file: Path, modules: Iterable[str], places: lora_fused.Slots = MappingProxyType({})
) -> tuple[Layers, list[str]]:
    """任何一种写法的文件 -> (层, 没有地方放的张量名)；modules 是底模里线性层的全名。

    places 是原作者的层名（见 lora_fused.slots），没有就只认 diffusers 的。

    Raises:
        WeightsError: 不是 LoRA、成对的缺一个、是 DoRA 等只能由原来的工具读的变体。
    """
    tensors, _ = lora_files.read(file)
    known = {name: name for name in (*modules, *places)}
    flat = {name.replace(".", "_"): name for name in known}
    parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    unknown = []
    for key, value in tensors.items():
        found = TENSOR.fullmatch(key)
        if found is None:
            raise WeightsError(
                f"“{file}”里的 {key} 不是 LoRA 或 LoKr 的张量（也许是 DoRA），转换不了；"
                "请用训练它的工具，或先合并进底模。"
            )
        path = _path(found[1], known, flat)
        if path is None:
            unknown.append(key)
            continue
        kind = {"down": "A", "up": "B"}.get(found[2], found[2]) or found[3] or found[4]
        parts[path][kind] = value.float()
    layers = {}
    for path, part in parts.items():
        product = lokr.Product.of(part)
        if product is not None:
            layers |= _unfused(product, path, places)
            continue
        if not {"A", "B"} <= part.keys():
            raise WeightsError(f"“{file}”里 {path} 只有一半（{'、'.join(part)}），文件不完整。")
        rank = part["A"].shape[0]
        scale = float(part["alpha"]) / rank if "alpha" in part else 1.0
        pair = (part["A"], part["B"] * scale)
        layers |= lora_fused.split(*pair, places[path]) if path in places else {path: pair}
    return layers, unknown


def _unfused(product: lokr.Product, path: str, places: lora_fused.Slots) -> Layers:
    """克罗内克积拆不开；原作者并在一起的层要先写成普通 LoRA。"""
    if path not in places:
        return {path: product}
    return lora_fused.split(*plain(path, product), places[path])


def plain(path: str, layer: Pair | lokr.Product) -> Pair:
    """一层写成普通 LoRA，ΔW 不变。

    Raises:
        WeightsError: LoKr 的这一层要的秩太大。
    """
    if not isinstance(layer, lokr.Product):
        return layer
    if layer.rank > lokr.PLAIN_RANK:
        raise WeightsError(
            f"{path} 是 LoKr，写成普通 LoRA 要秩 {layer.rank}，最多 {lokr.PLAIN_RANK}。"
            "请直接用原来的文件（diffusers 和 ComfyUI 都能读），或加 --merge 合并进底模。"
        )
    return layer.pair()


def _path(name: str, known: Mapping[str, str], flat: Mapping[str, str]) -> str | None:
    for prefix in FLAT:
        if name.startswith(prefix):
            return flat.get(name.removeprefix(prefix))
    for prefix in ("", *PREFIXES):
        if name.startswith(prefix) and name.removeprefix(prefix) in known:
            return name.removeprefix(prefix)
    return None


def write(
    layers: Layers,
    form: str,
    file: Path,
    card: Mapping[str, str],
    places: lora_fused.Slots = MappingProxyType({}),
) -> Path:
    """按 form 的写法写一个文件（LoKr 写成普通 LoRA），写完重读一遍，核对每一层的 ΔW 没有变。"""
    layers = {path: plain(path, layer) for path, layer in layers.items()}
    ranks, tensors = [len(a) for a, _ in layers.values()], {}
    theirs = layers if form == "diffusers" else lora_fused.join(layers, places)
    for path, (a, b) in theirs.items():
        prefix = {"diffusers": "transformer.", "comfyui": "diffusion_model."}
        stem = f"lora_unet_{path.replace('.', '_')}" if form == "kohya" else prefix[form] + path
        # diffusers 只在见到 lora_down 时才认得原作者的层名；ComfyUI 两种都认
        old = form == "kohya" or path in places
        down, up = ("lora_down", "lora_up") if old else ("lora_A", "lora_B")
        tensors |= {f"{stem}.{down}.weight": a, f"{stem}.{up}.weight": b}
        if form == "kohya":
            tensors[f"{stem}.alpha"] = torch.tensor(float(len(a)))  # 等于秩：乘 1
    card = {**card, "alpha": "folded", "rank": str(max(ranks))}
    facts = {"format": "pt", "lorakit": json.dumps(card, ensure_ascii=False)}

    def checked(temporary: Path):
        write_tensors(temporary, tensors, facts)
        again, unknown = read(temporary, layers, places)
        assert not unknown and again.keys() <= layers.keys()
        for path, pair in layers.items():  # 全是零的层，并了再拆就不在了
            same = not pair[1].any() if path not in again else _distance(pair, again[path]) <= SAME
            assert same, path

    return write_whole(named(file), checked)


def named(file: Path) -> Path:
    """补上 .safetensors；“style-0.5”里的点是名字的一部分，不是后缀。

    Raises:
        ConfigError: 只有文件夹，没有文件名。
    """
    if not file.name:
        raise ConfigError(f"--out：“{file}”里没有文件名，例如 --out 我的画风.safetensors。")
    return file if file.suffix == ".safetensors" else file.with_name(f"{file.name}.safetensors")


def delta(layer: Pair | lokr.Product) -> torch.Tensor:
    """这一层的权重改了多少：ΔW = B A（LoKr 是 w1 ⊗ w2），(出, 入)。"""
    if isinstance(layer, lokr.Product):
        return layer.delta()
    a, b = layer
    return b.double() @ a.double()


def _distance(one: Pair, other: Pair) -> float:
    """两个 ΔW 的相对误差；从小矩阵算，不必展开成整个权重。"""
    (a, b), (c, d) = one, other
    apart = torch.cat([a, c]), torch.cat([b, -d], dim=1)
    return float(spectrum_of(apart).norm() / spectrum_of(one).norm().clamp(min=1e-30))


def shape_of(layer: Pair | lokr.Product) -> tuple[int, int]:
    return layer.shape if isinstance(layer, lokr.Product) else (len(layer[1]), layer[0].shape[1])


def spectrum_of(layer: Pair | lokr.Product) -> torch.Tensor:
    return layer.spectrum() if isinstance(layer, lokr.Product) else _core(*layer)[1]


def _core(a: torch.Tensor, b: torch.Tensor):
    """ΔW = B A 的奇异值分解；经两次 QR 只分解 r x r 的小矩阵。"""
    qb, rb = torch.linalg.qr(b.double())
    qa, ra = torch.linalg.qr(a.double().T)
    u, s, vh = torch.linalg.svd(rb @ ra.T)
    return qb @ u, s, vh @ qa.T


def resize(layers: Layers, rank: int) -> tuple[Layers, float]:
    """用奇异值分解把每层缩到 rank -> (新的层, 保住的能量，0 到 1)。"""
    small, kept, whole = {}, 0.0, 0.0
    for path, layer in layers.items():
        u, s, vh = _core(*plain(path, layer))
        root = s[:rank].sqrt()
        small[path] = ((root[:, None] * vh[:rank]).float(), (u[:, :rank] * root).float())
        kept, whole = kept + float(s[:rank].square().sum()), whole + float(s.square().sum())
    return small, kept / whole if whole else 1.0


def combine(several: Sequence[tuple[Layers, float]]) -> Layers:
    """几个 LoRA 按份量叠成一个：A 上下接、B 左右接，秩相加，ΔW 正好是加权和。"""
    joined: dict[str, list[Pair]] = defaultdict(list)
    for layers, weight in several:
        for path, layer in layers.items():
            a, b = plain(path, layer)
            joined[path].append((a, b * weight))
    return {
        path: (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1))
        for path, pairs in joined.items()
    }


@torch.no_grad()
def merge(layers: Layers, transformer: nn.Module):
    """把 ΔW 加进底模的权重，就地修改。

    Raises:
        WeightsError: 底模量化过；加进去的 ΔW 多半比量化的一格还小，会被舍入吃掉。
    """
    if any(is_quantized(transformer.get_submodule(path)) for path in layers):
        raise WeightsError(
            "量化过的底模不能合并：ΔW 比量化的一格还小，加进去就被舍入掉了。"
            "请用没有量化的底模合并（model.quantize=none），合并完再量化。"
        )
    for path, pair in layers.items():
        weight = transformer.get_submodule(path).weight
        weight.copy_((weight.double() + delta(pair).to(weight.device)).to(weight.dtype))
