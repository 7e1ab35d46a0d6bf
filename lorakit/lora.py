"""LoRA：挂上去、存下来、读回来、核对；矩阵运算由 PEFT 完成。"""

import difflib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MethodType

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from lorakit import lokr
from lorakit.checkpoint import write_tensors
from lorakit.errors import ConfigError, WeightsError
from lorakit.processes import whole
from lorakit.quantize import compute_dtype

FILE = "pytorch_lora_weights.safetensors"
ADAPTER = "default"
PREFIX = "transformer."
FOREIGN = ("lora_unet_", "diffusion_model.")  # kohya、ComfyUI 的写法怎么开头
WRAPPED = ".base_layer"  # 已经挂了一个 LoRA 的层，原来的在这里面；再挂一个时也要认得


def match(transformer: nn.Module, family, targets: str | list[str]) -> list[str]:
    """lora.targets -> 模型里对上的线性层全名。

    Raises:
        ConfigError: 一层也没对上；会列出可用的预设和最接近的层名。
    """
    wanted = family.targets.get(targets, targets) if isinstance(targets, str) else targets
    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    if isinstance(wanted, str):
        try:
            pattern = re.compile(wanted)
        except re.error as error:
            raise ConfigError(
                f"lora.targets：“{wanted}”不是能用的正则表达式（{error}）。"
            ) from error
        found = [name for name in linear if pattern.fullmatch(name)]
    else:
        found = [
            name for name in linear if any(name == w or name.endswith(f".{w}") for w in wanted)
        ]
    if found:
        return found
    tails = sorted({re.sub(r".*\.\d+\.", "", name) for name in linear})
    said = wanted if isinstance(wanted, str) else wanted[0]
    near = difflib.get_close_matches(said, [*family.targets, *tails], n=3, cutoff=0.4)
    hint = f"最接近的有：{'、'.join(near)}。" if near else ""
    raise ConfigError(
        f"lora.targets：“{targets}”在这个模型里一层也没对上。可用的预设：{'、'.join(family.targets)}。{hint}"
    )


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


def save(
    folder: Path, transformer: nn.Module, settings, facts: dict[str, str], values=None
) -> Path:
    """写 pytorch_lora_weights.safetensors：diffusers 名字，不另存 alpha：缩放折进 B（LoKr 是 w1）。

    折进去是因为各家对 alpha 的理解不同：diffusers 读 Qwen 时会丢掉它，ComfyUI 缺了它就当 1。

    Args:
        values: {参数名: 张量}，不写就取 transformer 现在的（EMA 的平均、拼回整个的都从这里给）。
    """
    times, tensors = scale(settings), {}
    named = get_peft_model_state_dict(transformer, state_dict=values, adapter_name=ADAPTER)
    for name, value in named.items():
        folded = ".lora_B." in name or name.endswith(lokr.FOLDED)
        tensors[PREFIX + name] = value * times if folded else value
    card = {"rank": str(settings.rank), "alpha": "folded", **facts}
    write_tensors(
        folder / FILE, tensors, {"format": "pt", "lorakit": json.dumps(card, ensure_ascii=False)}
    )
    return folder / FILE


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


def find(path: Path) -> Path:
    """LoRA 文件、检查点或整个运行文件夹 -> 那个 safetensors 文件。"""
    path = Path(path)
    if path.is_dir():
        numbered = sorted(
            path.glob(f"checkpoint-*/{FILE}"), key=lambda p: int(p.parent.name.split("-")[-1])
        )
        choices = [path / FILE, *reversed(numbered)]
        found = next((p for p in choices if p.is_file()), None)
        if found is None:
            raise WeightsError(
                f"文件夹“{path}”里没有 {FILE}。请给出 LoRA 文件，或一次训练的结果文件夹。"
            )
        return found
    if path.suffix in {".bin", ".pt", ".pth", ".ckpt"}:
        raise WeightsError(
            f"“{path}”是 pickle 格式，打开它可能运行里面藏的代码，所以不读。请换 safetensors 文件。"
        )
    if not path.is_file():
        raise WeightsError(f"没有这个 LoRA 文件：“{path}”。")
    return path


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """读 LoRA 文件 -> (张量, 我们写在元数据里的卡片)。

    Raises:
        WeightsError: 不是 safetensors、文件头损坏、不是 LoRA、里面有 NaN。
    """
    path = find(path)
    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"“{path}”打不开：不是完整的 safetensors 文件（{error}）。请重新下载或换一个。"
        ) from error
    if not any(re.search(r"\.lora[._](A|down)\.|\.lokr_w1", name) for name in tensors):
        raise WeightsError(
            f"“{path}”里没有 LoRA 的权重（应有 lora_A / lora_B，或 lokr_w1 / lokr_w2）。"
            "它也许是整个模型。"
        )
    bad = next((name for name, value in tensors.items() if not torch.isfinite(value).all()), None)
    if bad:
        raise WeightsError(
            f"“{path}”的 {bad} 里有 NaN 或无穷大，用了会出黑图。请换一个更早的检查点。"
        )
    return tensors, json.loads(metadata.get("lorakit", "{}"))


def check_fits(path: Path, transformer: nn.Module) -> dict[str, str]:
    """核对 LoRA 与底模：每一对矩阵都要有地方放、形状对得上；返回它的卡片。"""
    tensors, card = read(path)
    linear = [(n, m) for n, m in transformer.named_modules() if isinstance(m, nn.Linear)]
    # 4 位的权重是打包过的，形状要问层自己
    shapes = {n.removesuffix(WRAPPED): (m.out_features, m.in_features) for n, m in linear}
    products = lokr.by_layer(tensors)
    wrong = [
        name
        for name, parts in products.items()
        if (product := lokr.Product.of(parts)) is None
        or product.shape != shapes.get(name.removeprefix(PREFIX))
    ]
    for name in [name for name in tensors if not lokr.NAME.fullmatch(name)]:
        layer, _, kind = name.removeprefix(PREFIX).rpartition(".lora_")
        shape = shapes.get(layer)
        side = 1 if kind.startswith(("A", "down")) else 0  # A 接输入；B 与 DoRA 的长度接输出
        if shape is None or tensors[name].shape[side] != shape[side]:
            wrong.append(name)
    if wrong and any(name.startswith(FOREIGN) for name in wrong):
        raise WeightsError(
            f"“{path}”是 kohya 或 ComfyUI 的写法，这里用 diffusers 的。请先换回来：\n"
            f"  lorakit export {path} --model 它的底模 --to diffusers --out 换好的.safetensors"
        )
    if wrong:
        raise WeightsError(
            f"“{path}”与这个底模对不上："
            f"{len(tensors)} 个张量里有 {len(wrong)} 个没有地方放，例如 {wrong[0]}。"
            f"它多半是给别的底模训练的（文件里写的是 {card.get('base', '未注明')}）。"
        )
    return card


def put_on(pipe, file: Path, name: str | None = None):
    """用 diffusers 自己的方法把文件挂到管线上；name 是以后开关它用的名字。

    LoKr 只有 Z-Image 与 FLUX.2 的管线肯收，模型自己的 load_lora_adapter 则全都收。

    Raises:
        WeightsError: 名字前没有 transformer. 之类，diffusers 会一声不响地一层也不挂。
    """
    if any(".lokr_" in key for key in read(file)[0]):
        loader = pipe.transformer.load_lora_adapter
    else:
        loader = pipe.load_lora_weights
    before = set(getattr(pipe.transformer, "peft_config", {}))
    loader(file.parent, weight_name=file.name, adapter_name=name)
    if before == set(getattr(pipe.transformer, "peft_config", {})):
        raise WeightsError(
            f"“{file}”的写法 diffusers 不认，一层也没挂上。先转一下："
            f"lorakit export {file} --to diffusers --out 新文件 --model 底模的预设。"
        )
