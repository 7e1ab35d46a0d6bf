"""全量微调：Transformer 的每个权重都练；存成 diffusers 的 transformer 文件夹，别处直接打开。"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from lorakit.errors import WeightsError
from lorakit.lora.steps import newest
from lorakit.lora.tensors import sharded, write_tensors
from lorakit.memory.loading import WEIGHTS

FOLDER = "transformer"
HIGH_LR = 1e-4  # 全量微调常用 1e-5；到了这里，多半是把 LoRA 的学习率抄过来了


def attach(transformer: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    """让每个权重都能学，返回 {名字: 参数}。

    Args:
        dtype: fp32，或 bf16：那时一小步加上去等于没加，要配 rounding。
    """
    for parameter in transformer.parameters():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(True)
    return dict(transformer.named_parameters())


def save(folder: Path, family, files: Iterable[tuple[str, Mapping[str, torch.Tensor]]]) -> Path:
    """写 folder/transformer：配置与权重，精度和底模推理时的一样；一个个文件写，内存里只有一个的。

    Args:
        files: 一个个文件名与其中的张量，`files_of` 给的。
    """
    home, places, total = folder / FOLDER, {}, 0
    for old in home.glob(f"{WEIGHTS.removesuffix('.safetensors')}*"):  # 上一次分的几份、目录
        old.unlink()
    family.skeleton().save_config(home)
    for name, tensors in files:
        values = {key: value.detach().to("cpu", family.dtype) for key, value in tensors.items()}
        write_tensors(home / name, values, {"format": "pt"})
        places |= dict.fromkeys(values, name)
        total += sum(value.nbytes for value in values.values())
    if len(set(places.values())) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        text = json.dumps(index, indent=1)
        (home / f"{WEIGHTS}.index.json").write_text(text, encoding="utf-8")
    return home


def files_of(weights: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """{名字: 张量} -> {文件名: 那个文件里的}，照 diffusers 的名字分。"""
    return sharded(WEIGHTS.removesuffix(".safetensors"), weights)


def find(path: Path) -> Path | None:
    """检查点或整个运行文件夹 -> 里面的 transformer 文件夹；不是全量微调的结果就是 None。"""
    home = newest(Path(path), lambda p: _ours(p) and (p / FOLDER / "config.json").is_file())
    return home and home / FOLDER


def _ours(folder: Path) -> bool:
    """底模自己也有 transformer 文件夹，但它旁边还有 model_index.json。"""
    return not (folder / "model_index.json").is_file()


def check_fits(path: Path, family):
    """核对全量微调的权重与底模：名字与形状都要一样；只看文件头，不读权重。

    Raises:
        WeightsError: 文件坏了，或是给别的底模练的。
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as handle:
                names = handle.keys()
                shapes |= {name: tuple(handle.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"“{file}”打不开：文件不完整（{error}）。请换一个检查点。"
            ) from error
    base = {name: tuple(value.shape) for name, value in family.skeleton().state_dict().items()}
    wrong = [name for name in base.keys() | shapes.keys() if base.get(name) != shapes.get(name)]
    if wrong:
        raise WeightsError(
            f"“{path}”与这个底模对不上：有 {len(wrong)} 个权重的名字或形状不同，例如 {min(wrong)}。"
            "它多半是在别的底模上练的，请用它自己的 model.path。"
        )
