"""LoRA 文件：存下来、找到它、读回来、和模型核对、用到管线上。"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from lorakit.errors import WeightsError
from lorakit.lora import lokr, metadata, steps
from lorakit.lora.attach import ADAPTER, scale
from lorakit.lora.tensors import write_tensors

FILE = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."
FOREIGN = ("lora_unet_", "diffusion_model.")  # kohya、ComfyUI 的写法怎么开头
WRAPPED = ".base_layer"  # 已经挂了一个 LoRA 的层，原来的在这里面；再挂一个时也要认得


def save(
    folder: Path,
    transformer: nn.Module,
    settings,
    facts: dict[str, str],
    values=None,
    about: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """写 pytorch_lora_weights.safetensors：diffusers 名字，不另存 alpha：缩放折进 B（LoKr 是 w1）。

    折进去是因为各家对 alpha 的理解不同：diffusers 读 Qwen 时会丢掉它，ComfyUI 缺了它就当 1。

    Args:
        values: {参数名: 张量}，不写就取 transformer 现在的（EMA 的平均、拼回整个的都从这里给）。
        about: 写给别的软件看的说明（`metadata.describe`）。
    """
    times, tensors = scale(settings), {}
    named = get_peft_model_state_dict(transformer, state_dict=values, adapter_name=ADAPTER)
    for name, value in named.items():
        folded = ".lora_B." in name or name.endswith(lokr.FOLDED)
        tensors[PREFIX + name] = value * times if folded else value
    head = metadata.header(facts, about, settings.rank)
    if settings.variant == "lokr":
        head |= {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "lokr"}'}
    write_tensors(folder / FILE, tensors, head)
    return folder / FILE


def find(path: Path) -> Path:
    """LoRA 文件、检查点或整个运行文件夹 -> 那个 safetensors 文件。"""
    path = Path(path)
    if path.is_dir():
        choices = [path, *reversed(steps.all_of(path))]
        found = next((p / FILE for p in choices if (p / FILE).is_file()), None)
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
