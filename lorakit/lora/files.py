"""LoRA 文件：存下来、找到它、读回来。"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from lorakit.errors import WeightsError, warn
from lorakit.files import Unreadable, parse_json
from lorakit.inert import inert
from lorakit.lora import lokr, metadata, names, steps
from lorakit.lora.attach import ADAPTER, scale
from lorakit.lora.steps import FILE, STATE
from lorakit.lora.tensors import write_tensors

PEFT_FILE = "adapter_model.safetensors"
PREFIX = "transformer."
SHARD = re.compile(r"\d{5}-of-(?!00001)\d{5}|\.index\.json$")
MOST = 500  # 别人写的话最多留这么多字


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
        value = value.detach().cpu()  # 显存可能正好用满：在内存里乘
        tensors[PREFIX + name] = value * times if folded else value
    head = metadata.header(facts, about, settings.rank)
    if settings.variant == "lokr":
        head |= {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "lokr"}'}
    write_tensors(folder / FILE, tensors, head)
    return folder / FILE


def find(path: Path) -> Path:
    """LoRA 文件、检查点或整个运行文件夹 -> 那个 safetensors 文件；检查点取最新的。"""
    path = Path(path)
    _refuse_state(path if path.is_dir() else path.parent)
    if path.is_dir():
        home = steps.newest(path, lambda folder: (folder / FILE).is_file())
        found = path / PEFT_FILE if home is None else home / FILE
        if not found.is_file():
            there = next(filter(_holds, sorted(path.glob("*.safetensors"))), None)
            more = f"里面有 {inert(there.name)}：要用它就写它的路径。" if there else ""
            raise WeightsError(
                f"文件夹“{path}”里没有 {FILE}。请给出 LoRA 文件，或一次训练的结果文件夹。{more}"
            )
        return found
    if path.suffix.lower() in {".bin", ".pt", ".pth", ".ckpt"}:
        raise WeightsError(
            f"“{path}”是 pickle 格式，打开它可能运行里面藏的代码，所以不读。请换 safetensors 文件。"
        )
    if not path.is_file():
        raise WeightsError(f"没有这个 LoRA 文件：“{path}”。")
    if SHARD.search(path.name):
        raise WeightsError(
            f"“{path}”是拆开存的一份（{SHARD.search(path.name)[0]}），单独一份不是整个 LoRA。"
            "请在训练它的地方存成一个文件。"
        )
    return path


def _refuse_state(folder: Path):
    """检查点里的 state：为接着练存的，强度没有乘进去，当 LoRA 用就强几倍或弱几倍。"""
    if folder.name == STATE and (folder / "state.json").is_file():
        raise WeightsError(
            f"“{folder}”是为接着练存的状态，不是 LoRA 文件。请用 {folder.parent / FILE}。"
        )


def _holds(file: Path) -> bool:
    """看名字是不是整个的 LoRA：叫人用它之前先看。"""
    try:
        with safe_open(find(file), framework="pt") as handle:
            return names.is_lora(handle.keys())
    except (WeightsError, SafetensorError, OSError):
        return False


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """读 LoRA 文件 -> (张量, 我们写在元数据里的卡片)。

    Raises:
        WeightsError: 不是 safetensors、文件头损坏、不是 LoRA、里面有 NaN。
    """
    tensors, header = load(path)
    return tensors, card_of(header)


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """读 LoRA 文件 -> (张量, 文件头里的说明)；张量都是浮点数（alpha 可以是整数），没有 NaN。"""
    path = find(path)
    try:
        with safe_open(path, framework="pt") as handle:
            header, keys = handle.metadata() or {}, list(handle.keys())
        good = names.is_lora(keys)  # 整个模型几十 GB，看名字就够了，不读进来
        tensors = load_file(path) if good else {}
    except (SafetensorError, OSError, KeyError, ValueError, AttributeError) as error:
        what = _what(path) or f"不是完整的 safetensors 文件（{error}）"
        raise WeightsError(f"“{path}”打不开：{what}。请重新下载或换一个。") from error
    if not good:
        kind = names.kind_of(keys)
        said = "它也许是别的东西"
        if kind:
            adapter = kind not in names.WHOLE
            said = f"它是 {kind}，这里读不了" + f"。{names.mend_of(keys, kind)}" * adapter
        raise WeightsError(
            f"“{path}”里没有 LoRA 的权重（应有 lora_A / lora_B，或 lokr_w1 / lokr_w2）。{said}。"
        )
    for name, value in tensors.items():
        _refuse_value(path, name, value)
    return tensors, header


def _refuse_value(path: Path, name: str, value: torch.Tensor):
    kind = str(value.dtype).removeprefix("torch.")
    whole = not (value.is_complex() or value.dtype == torch.bool)
    if not value.is_floating_point() and whole and not _weighs(name):
        return  # 别的部分的位置编号等；读不了的，认名字的时候会说它是什么
    number = value.is_floating_point() and not kind.startswith("float4")  # 4 位的两个挤在一起
    if not number and not (name.endswith(".alpha") and whole):
        raise WeightsError(
            f"“{path}”的 {brief(name)} 存成了 {kind}，不是能直接用的浮点数，也许量化过。"
            "请换没有量化的。"
        )
    if not torch.isfinite(value.float()).all():
        raise WeightsError(
            f"“{path}”的 {brief(name)} 里有 NaN 或无穷大，用了会出黑图。请换一个更早的检查点。"
        )


def _weighs(name: str) -> bool:
    """是不是这里要用的权重。"""
    return names.parse(name) is not None and not names.is_other(name)


KNOWN = {  # 开头的几个字节 -> 它其实是什么
    b"\x80": "它是改了名的 pickle，打开它可能运行里面藏的代码，所以不读",
    b"GGUF": "它是 GGUF，不是 safetensors",
    b"version https://git-lfs": "它只是 Git LFS 的一行地址，权重没有下载下来",
    b"<": "它是一个网页，多半是下载时没有登录",
    b"{": "它是网站回的一段话（JSON），多半是下载时没有登录",
    b"7z\xbc\xaf": "它是压缩包，请先解压",
    b"Rar!": "它是压缩包，请先解压",
    b"\x1f\x8b": "它是压缩包，请先解压",
    b"\x89PNG": "它是一张图",
    b"\xff\xd8\xff": "它是一张图",
    b"\0" * 64: "里面全是零，没有下载完",
}


def _what(path: Path) -> str | None:
    """打不开的文件其实是什么：看开头的几个字节。"""
    try:
        with path.open("rb") as handle:
            start = handle.read(64)
        if not start:
            return "它是空的，多半没有下载完"
        if start.startswith(b"PK\x03\x04"):
            return _zipped(path)
    except OSError:
        return None
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 30:
        return None  # 文件头是 safetensors 的样子，只是后面不完整
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    starts = ((start.startswith(magic) or text.startswith(magic), KNOWN[magic]) for magic in KNOWN)
    return next((said for hit, said in starts if hit), None)


def _zipped(path: Path) -> str:
    """torch.save 写的也是 zip，里面有 data.pkl。"""
    try:
        inside = zipfile.ZipFile(path).namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        inside = ["data.pkl"]  # 不完整，不知道
    pickled = any(name.endswith("data.pkl") for name in inside)
    return KNOWN[b"\x80"] if pickled else "它是压缩包，请先解压"


def card_of(header: dict[str, str]) -> dict[str, str]:
    """文件头 -> 我们写的卡片；坏的、不是一张表的，当作没有。"""
    text = header.get("lorakit")
    if text is None:
        return {}
    try:
        card = parse_json(text)
    except Unreadable:
        warn("文件头里 lorakit 的卡片坏了，当作没有：底模、触发词都不知道，要自己写上。")
        return {}
    simple = {k: v for k, v in card.items() if isinstance(v, str | int | float)}
    return {brief(key): brief(str(value)) for key, value in simple.items()}


def brief(text: str) -> str:
    """别人写的一段话：只占一行，太长就截断，显示出来什么也不会做。"""
    return inert(text[:MOST], line=True)
