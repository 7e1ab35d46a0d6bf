"""把权重一层层读进空壳里，边读边量化；不读整个文件进内存。"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from lorakit.errors import LorakitError, WeightsError
from lorakit.files import WEIGHT_MAP, Unreadable, read_json
from lorakit.memory.quantize import Fp8Linear, FrozenLinear, done_as, nf4_class

SLACK = 1_000_000
WEIGHTS = "diffusion_pytorch_model.safetensors"
Read = Callable[[str, nn.Parameter], torch.Tensor]  # (参数名, 它在骨架里的样子) -> 权重


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """重复的那些块 {名字: 模块}，按书写顺序；块外的（进出口、时间）很小，又最怕误差，一律不动。"""
    for way in ("_repeated_blocks", "_no_split_modules"):  # diffusers、transformers 的记法
        if names := set(getattr(model, way, None) or ()):
            break
    return {name: m for name, m in model.named_modules() if type(m).__name__ in names}


def empty(cls: type, config: dict) -> nn.Module:
    """没有权重（meta）的模型；位置编码那样算出来的表不是权重，照常在 CPU 上。"""
    from accelerate import init_empty_weights
    from diffusers.models.modeling_utils import no_init_weights

    with no_init_weights(), init_empty_weights():
        return cls.from_config(config)


def build(
    model: nn.Module, read: Read, kind: str, device, dtype, finished=None, shown: bool = True
) -> nn.Module:
    """一层层读进没有权重的模型：放到设备上、换成目标精度，块里的线性层随即量化。

    Args:
        finished: 函数 (块) -> None，一块读完就调用；streaming 靠它把块收进内存。
        shown: 模型大时要不要进度条。
    """
    from tqdm import tqdm

    kind = done_as(kind, torch.device(device))
    makers = {"nf4": nf4_class, "fp8-matmul": lambda: Fp8Linear, "none": lambda: None}
    make = makers.get(kind, lambda: FrozenLinear)()
    precise = set(model._keep_in_fp32_modules or ())  # diffusers 规定一直用 fp32 的模块
    whole = blocks(model)
    inside = tuple(f"{name}." for name in whole)
    paths = [path for path, _ in model.named_modules()]  # 只记名字：换下来的层要马上放掉
    last = {}  # 块里最后一个模块 -> 块
    for name, block in whole.items():
        last[[path for path in paths if path.startswith(f"{name}.")][-1]] = block
    shown = shown and sum(p.numel() for p in model.parameters()) > 1e8  # 小模型一眨眼就好
    for path in tqdm(paths, desc="载入底模", unit="层", disable=not shown):
        module = model.get_submodule(path)
        keep = not precise.isdisjoint(path.split("."))
        for name, shape in list(module.named_parameters(recurse=False)):
            value = read(f"{path}.{name}".strip("."), shape)
            value = value.to(device, torch.float32 if keep else dtype)
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
        for name, value in list(module.named_buffers(recurse=False)):
            module._buffers[name] = value.to(device)  # 位置编码的表
        if make and not keep and isinstance(module, nn.Linear) and path.startswith(inside):
            if kind == "fp8-matmul" and any(side % 16 for side in module.weight.shape):
                small = FrozenLinear(module.weight.data, module.bias, "fp8")  # 内核要 16 的倍数
            else:
                small = make(module.weight.data, module.bias, kind)
            model.set_submodule(path, small)
        if finished and path in last:
            finished(last[path])
    if kind == "nf4":
        model.is_loaded_in_4bit = True  # PEFT 靠它认出 4 位的层
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()  # 量化途中的临时张量还给显卡，免得碎片留到训练里
    return model.eval()


def fill(model: nn.Module, read: Read, device) -> nn.Module:
    """给还没有的权重（meta）读进来，放到设备上；不量化、不挑精度，read 给什么就是什么。"""
    for path, module in model.named_modules():
        for name, shape in list(module.named_parameters(recurse=False)):
            if not shape.is_meta:
                continue
            value = read(f"{path}.{name}".strip("."), shape).to(device)
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
        for name, value in list(module.named_buffers(recurse=False)):
            module._buffers[name] = value.to(device)  # 位置编码的表
    if hasattr(model, "tie_weights"):  # transformers：共用的两份词表只有一份
        model.tie_weights()
    return model


# 别家的库读坏了的文件，什么都抛得出来
BROKEN = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError,
    ImportError, AssertionError, SafetensorError,
)  # fmt: skip


@contextmanager
def explaining(place: Path) -> Iterator[None]:
    """用 diffusers、transformers 载入 place 时出的错，说成一句话；显存不够的照旧。

    Raises:
        WeightsError: 文件缺了、坏了、和设置对不上。
    """
    try:
        yield
    except (LorakitError, torch.OutOfMemoryError):
        raise
    except BROKEN as error:
        why = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise WeightsError(
            f"“{place}”读不出来：文件不全、坏了，或与它的设置不是一套。请删掉它重新下载。"
            f"（{type(error).__name__}：{why[:200]}）"
        ) from error


def whole_from(cls: type, folder: Path, part: str, **options) -> nn.Module:
    """from_pretrained，只读本地的 safetensors；缺一个权重就报错，不许用随机数补上。

    Raises:
        WeightsError: 读不出来，或权重不全。
    """
    with explaining(folder / part):
        _refuse_bigger(cls, folder / part)
        made, info = cls.from_pretrained(
            folder, subfolder=part, use_safetensors=True, local_files_only=True,
            output_loading_info=True, **options,
        )  # fmt: skip
        lacking = [*info["missing_keys"], *(info.get("mismatched_keys") or ())]
        if lacking:
            raise WeightsError(
                f"“{folder / part}”的权重不全：缺 {len(lacking)} 个，例如 {lacking[0]}。"
                "请重新下载。"
            )
    return made


def _refuse_bigger(cls: type, place: Path):
    """设置说的模型比文件里的权重大得多：多出来的会造成随机数，几十 GB 的内存也装不下。"""
    with torch.device("meta"):
        if hasattr(cls, "config_class"):  # transformers 的
            shell = cls(cls.config_class.from_pretrained(place, local_files_only=True))
        else:
            shell = cls.from_config(cls.load_config(place, local_files_only=True))
    wanted, there = sum(p.numel() for p in shell.parameters()), 0
    for file in place.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            shapes = [handle.get_slice(name).get_shape() for name in handle.keys()]  # noqa: SIM118
        there += sum(math.prod(shape) for shape in shapes)
    if wanted > 2 * there + SLACK:  # 共用的两份词表，文件里只有一份
        raise WeightsError(
            f"“{place}”的设置要 {wanted:,} 个数，权重文件里只有 {there:,} 个：不是一套，或不完整。"
            "请删掉它重新下载。"
        )


class Shards:
    """diffusers 文件夹里的权重：按名字读一个张量。

    每个张量都重新打开分片：文件是映射进内存的，一直开着，读过的页就一直占着，最后占满整个分片。
    """

    def __init__(self, folder: Path):
        index = folder / f"{WEIGHTS}.index.json"
        self.folder = folder
        if index.is_file():
            try:
                self.places = read_json(index, WEIGHT_MAP)["weight_map"]
            except Unreadable as error:
                raise WeightsError(f"{error}请重新下载。") from error
        else:
            with self._open(WEIGHTS) as handle:
                self.places = dict.fromkeys(handle.keys(), WEIGHTS)

    def _open(self, file: str):
        if "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise WeightsError(
                f"“{self.folder}”的目录指到 {file}：不是这个文件夹里的 safetensors。请重新下载。"
            )
        try:
            return safe_open(self.folder / file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"“{self.folder / file}”打不开：没有这个文件，或不完整（{error}）。请重新下载。"
            ) from error

    def __call__(self, name: str, shape: nn.Parameter) -> torch.Tensor:
        if name not in self.places:
            raise WeightsError(f"“{self.folder}”里没有 {name}：权重不全，请重新下载。")
        with self._open(self.places[name]) as handle:
            value = handle.get_tensor(name)
        if value.shape != shape.shape:
            raise WeightsError(
                f"“{self.folder}”的 {name} 是 {tuple(value.shape)}，"
                f"照 config.json 应为 {tuple(shape.shape)}：权重与设置不是一套。"
            )
        return value


def random_weights(device: torch.device, dtype: torch.dtype) -> Read:
    """随机的权重，直接造在设备上：不用下载，就能知道一个模型练不练得动。"""
    source = torch.Generator(device).manual_seed(0)
    make = partial(torch.empty, device=device, dtype=dtype)

    def read(name: str, shape: nn.Parameter) -> torch.Tensor:
        if shape.dim() < 2:  # 偏置是 0，归一化的系数是 1
            return make(shape.shape).fill_(0.0 if name.endswith("bias") else 1.0)
        return make(shape.shape).normal_(std=0.02, generator=source)

    return read
