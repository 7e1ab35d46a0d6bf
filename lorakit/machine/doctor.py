"""开练前的体检：这台机器行不行，这份设置放不放得下、要下载多少、要练多久；放不下就说换哪个预设。"""

import importlib.metadata
import math
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
import torch
from packaging.requirements import Requirement

from lorakit.config import Config, load_config, presets
from lorakit.errors import ConfigError
from lorakit.families import open_blank
from lorakit.files import cache_root, user_path
from lorakit.hub.bundled import tiny_models
from lorakit.lora.tensors import LIMIT
from lorakit.machine import bench, estimate
from lorakit.machine.estimate import GIB, Estimate
from lorakit.memory import compiling, devices, encoders, quantize
from lorakit.results.card import licence
from lorakit.results.sameness import version_of
from lorakit.training import preflight

GOOD, WARN, BAD = "绿", "黄", "红"
MARKS = {GOOD: "✔", WARN: "！", BAD: "✘"}
COLOURS = {GOOD: 32, WARN: 33, BAD: 31}  # 终端的颜色号
NAMES = {  # 一项的键 -> 怎么叫它；没有写的（包、网站）键就是名字
    "python": "Python", "packages": "软件包", "gpu": "显卡", "host": "内存", "disk": "磁盘",
    "quantize": "量化", "settings": "设置", "compile": "编译", "model": "模型",
    "download": "下载", "licence": "许可", "site": "模型站", "vram": "显存", "time": "时间",
    "host-need": "要用的内存", "encoder": "文本编码器",
}  # fmt: skip
SOURCES = {"Hugging Face": "https://huggingface.co", "ModelScope": "https://modelscope.cn"}
OPTIONAL = {"bitsandbytes": "nf4 量化与 adamw8bit 要用"}
SECONDS = 3  # 连一个网站最多等几秒
SPEED = 20  # MB/s；估计下载时间用
HOST = 2.0  # Python、PyTorch 与显卡的驱动，GiB
HOST_CPU = 1.0  # 没有显卡时，GiB
# 以下几个数由 assets/bench/measured.json 定出；换了做法，用 tests/measure_cards.py 重新量
# 编译、录成 CUDA 图之后，占理论下限（含重算）的几成；H100 与 H200 上实测
SHARE = {"none": 0.6, "int8": 0.56, "fp8": 0.58, "nf4": 0.58, "fp8-matmul": 0.76}
EAGER = 0.65  # 不编译，再打个折
UPDATE = 0.061  # 全量微调另花的（更新权重等），每十亿个参数几秒；H200 上实测，两张卡切开也合得上
SHARING = 0.1  # 边算边搬时，短的那一样有几成藏不住
# 没有录图时，CPU 每走一块（前向、重算、反向各走一次）要忙几秒：没量化的、量化的、编译过的 nf4
# （它的内核编译不进去）。手快的一台 H100 上实测，有的机器要一倍半
HANDLING = {"none": 0.0049, "quantized": 0.0066, "compiled": 0.0044}
PLAINLY = ("memory.compile=false",)  # 编译不了的机器
SAFE = 0.96  # 推荐一个预设时，预告的显存最多占能用的几成：预告只是训练那一段，别的环节要多一点
BUS = 20.0  # 内存到显卡，GB/s（PCIe 4.0 x16 实际能到的）


@dataclass(frozen=True)
class Check:
    """一项的结论。"""

    level: str
    key: str  # NAMES 的键
    said: str

    @property
    def what(self) -> str:
        """这一项的名字。"""
        return NAMES.get(self.key, self.key)

    def text(self, colour: bool = False) -> str:
        mark = MARKS[self.level]
        if colour:
            mark = f"\033[{COLOURS[self.level]}m{mark}\033[0m"
        return f"{mark} {self.what}：{self.said}"


def examine(
    config: Config | None = None, tier: float | None = None, online=True,
    memory: float | None = None,
) -> list[Check]:  # fmt: skip
    """全部检查；给了设置，就连它放不放得下、要多久也算。

    Args:
        tier: 当作有一块标着这么多 GB 的显卡；不写就看这台机器。
        online: 要不要试着连模型站。
        memory: 当作有这么多字节的内存；不写就看这台机器。
    """
    if tier is not None and not 0 < tier < math.inf:
        raise ConfigError(f"--tier：显存要大于 0 GB，得到 {tier:g}。")
    checks = [_python(), *_packages(), *_gpu(tier), _host(), _disk()]
    if online:
        checks += [_source(name, address) for name, address in SOURCES.items()]
    if config is not None:
        checks += _config(config, tier, online, memory or psutil.virtual_memory().total)
    return checks


def _python() -> Check:
    found = platform.python_version()
    level = GOOD if sys.version_info >= (3, 11) else BAD
    return Check(level, "python", f"{found}（要 3.11 以上）")


def _packages() -> list[Check]:
    """必装的包够不够新；选装的有没有。"""
    wrong, names, mend = [], [], "请运行 pip install -c constraints.txt -e ."
    try:
        lines = importlib.metadata.requires("lorakit") or []
    except importlib.metadata.PackageNotFoundError:
        return [Check(WARN, "packages", f"lorakit 没有安装，无从核对。{mend}")]
    for line in lines:
        need = Requirement(line)
        if need.marker is not None:  # 选装的
            continue
        names.append(need.name)
        found = version_of(need.name)
        if found is None:
            wrong.append(f"{need.name} 没有装（要 {need.specifier}）")
        elif not need.specifier.contains(found, prereleases=True):
            wrong.append(f"{need.name} 是 {found}，要 {need.specifier}")
    checks = [Check(BAD, "packages", f"{'；'.join(wrong)}。{mend}")] if wrong else []
    checks = checks or [Check(GOOD, "packages", f"{len(names)} 个都在，都够新")]
    for name, why in OPTIONAL.items():
        found = version_of(name)
        said = f"{found}（{why}）" if found else f"没有装（{why}）。要用就运行 pip install {name}"
        checks.append(Check(GOOD if found else WARN, name, said))
    return checks


def _gpu(tier: float | None) -> list[Check]:
    if tier is not None:
        return [Check(GOOD, "gpu", f"当作有一块 {tier:g} GB 的")]
    if not torch.cuda.is_available():
        said = "没有找到 NVIDIA 显卡：微型模型照练，真模型练不动"
        return [Check(WARN, "gpu", said)]
    free, total = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    busy = total - free > 2 * GIB
    said = f"{name}，{total / GIB:.1f} GiB，空闲 {free / GIB:.1f} GiB"
    checks = [Check(WARN if busy else GOOD, "gpu", said + ("，别的程序占着一些" if busy else ""))]
    fine = devices.has_bf16(torch.device("cuda"))
    slow = "不支持，会用 fp32：慢一倍、多占一倍显存"
    return [*checks, Check(GOOD if fine else WARN, "bf16", "支持" if fine else slow)]


def _host() -> Check:
    facts = psutil.virtual_memory()
    level = GOOD if facts.available > 8 * GIB else WARN
    return Check(
        level, "host", f"{facts.total / GIB:.1f} GiB，空闲 {facts.available / GIB:.1f} GiB"
    )


def _disk() -> Check:
    place = next(p for p in (cache_root(), *cache_root().parents) if p.exists())
    free = shutil.disk_usage(place).free / GIB
    return Check(GOOD if free > 10 else WARN, "disk", f"{place} 空闲 {free:.0f} GiB")


def _answer(address: str) -> int | None:
    """网站回的状态码；连不上是 None。"""
    try:
        return requests.head(address, timeout=SECONDS, allow_redirects=True).status_code
    except requests.RequestException:
        return None


def _source(name: str, address: str) -> Check:
    if _answer(address) is not None:
        return Check(GOOD, name, f"连得上（{address}）")
    said = f"{SECONDS} 秒内连不上 {address}。已经下载好的模型照用；也可设 HF_ENDPOINT 用镜像"
    return Check(WARN, name, said)


def _config(config: Config, tier: float | None, online: bool, memory: float) -> list[Check]:
    """这份设置：许可、下载、显存、内存、时间。"""
    preflight.refuse(config)
    device = devices.pick_device()
    # 要的库没装、显卡太旧：照样往下算，只记一笔
    able = [
        Check(BAD, "quantize" if rule.field == "model.quantize" else "settings", said)
        for rule, said in preflight.clashes(preflight.Case(config, device=device))
    ]
    kind = quantize.done_as(config.model.quantize, device)
    if kind != config.model.quantize:
        said = quantize.NO_FP8.format(card=devices.name_of(device))
        able.append(Check(WARN, "quantize", said))
        config = load_config(config.to_dict(), [f"model.quantize={kind}"])
    asks = config.memory.compile and torch.cuda.is_available()
    if missing := compiling.cannot_compile(device) if asks else "":
        able.append(Check(WARN, "compile", f"memory.compile 不起作用：{missing}。照常练，慢一些"))
        config = load_config(config.to_dict(), PLAINLY)
    with tempfile.TemporaryDirectory() as folder:
        dtype = _dtype(config, tier)
        family = open_blank(config, Path(folder), torch.device("meta"), dtype)
        asked = estimate.measure(family, config)
        text = encoders.Size.of(estimate.random_encoders(family))
        vae = _bytes(estimate.random_vae(family))
    trains = "全部" if config.lora.kind == "full" else "LoRA"
    size = f"{asked.parameters / 1e9:.3g}B 参数，练 {trains} {asked.trained / 1e6:.3g}M"
    said = f"{config.model.path}，{size}，许可 {licence(family, config.model.path)}"
    checks = [*able, Check(GOOD, "model", said)]
    checks += _download(config, asked, 2 * text.whole, vae, online)
    capacity = _capacity(tier)
    if capacity is None:
        return [*checks, *_on_cpu(config, asked)]
    again, peak = fitting(asked, config, capacity)
    peak = max(peak, asked.largest(config, again, capacity * GIB) / GIB)
    said = f"约 {peak:.1f} GiB（{_ways(again)}），这里能用 {capacity:.1f} GiB"
    if peak > capacity:
        other = nearest(config, capacity, dtype, PLAINLY if missing else ())
        mend = f"请换预设 {other}" if other else "没有放得下的预设；换小一点的模型或大一点的显卡"
        return [*checks, Check(BAD, "vram", f"{said}：放不下。{mend}")]
    checks.append(Check(GOOD, "vram", said))
    kept = encoders.kept_as(text, dtype.itemsize, capacity * GIB, memory)
    if kept in encoders.NUMBER:
        bits = {"int8": 8, "nf4": 4}[kept]
        said = f"压成 {bits} 位，直接读到显卡上：显卡放不下整份，内存又不超过 32 GB"
        checks.append(Check(GOOD, "encoder", said))
    # 编码在训练之前，编完就放掉：随用随搬的文本编码器与训练要的不同时在内存里
    whole = HOST + text.bytes("none", dtype.itemsize) / GIB if kept == "moved" else 0.0
    need = max(host(asked, config), whole)
    return [*checks, _host_need(need), *_time(config, asked, again)]


def _dtype(config: Config, tier: float | None) -> torch.dtype:
    """会用什么精度：当作有一块 tier GB 的卡，就当它支持 bf16。"""
    if tier is None or config.model.precision != "auto":
        return devices.pick_dtype(config.model.precision, devices.pick_device())
    return torch.bfloat16


def _ways(again: float) -> str:
    if again in (0, 1):
        return "每块都重算" if again else "都不重算"
    return f"{again:.0%} 的块重算"


def _bytes(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters()) * 2  # 站上的权重是 bf16


def _download(config: Config, asked: Estimate, text: int, vae: int, online: bool) -> list[Check]:
    path = config.model.path
    if path in tiny_models() or (user_path(path, "model.path") / "model_index.json").is_file():
        return [Check(GOOD, "download", "不用，模型就在本地")]
    size = (2 * asked.parameters + text + vae) / 1e9
    minutes = size * 1000 / SPEED / 60
    said = f"第一次用要下载约 {size:.0f} GB（每秒 {SPEED} MB 时约 {minutes:.0f} 分钟；"
    said += "下载过就不用再下）"
    checks = [Check(GOOD, "download", said)]
    if not online:
        return checks
    address = f"{SOURCES['Hugging Face']}/{config.model.path}/resolve/main/model_index.json"
    if (code := _answer(address)) in (401, 403):
        said = f"{config.model.path} 要先在它的主页上同意许可，再运行 hf auth login 登录"
        checks.append(Check(WARN, "licence", said))
    elif code == 404:
        checks.append(Check(BAD, "site", f"没有 {config.model.path}，请核对 model.path"))
    return checks


def _capacity(tier: float | None) -> float | None:
    """训练能用的显存，GiB；没有显卡是 None。"""
    if tier is not None:
        return estimate.usable(tier)
    if not torch.cuda.is_available():
        return None
    return devices.free_memory(devices.pick_device()) / GIB


def fitting(asked: Estimate, config: Config, capacity: float) -> tuple[float, float]:
    """capacity GiB 显存的卡上 -> (几成的块重算, 一步的显存峰值 GiB)。"""
    again = asked.recomputed(config, capacity * GIB)
    return again, asked.peak(config, again) / GIB


def by_room(names: Iterable[str]) -> list[str]:
    """预设的名字，从最宽裕的（不写显存的）到最省的。"""

    def tier(name: str) -> int:
        found = re.search(r"-(\d+)gb$", name)
        return int(found[1]) if found else 10**6

    return sorted(names, key=tier, reverse=True)


def nearest(config: Config, capacity: float, dtype=torch.bfloat16, changes=()) -> str | None:
    """同一个底模的预设里，放得下的、最宽裕（因而最快）的一个；changes 是这台机器上总要改的设置。"""

    for name in by_room(presets()):
        other = load_config(name, changes)
        alike = ("family", "path")
        if any(getattr(other.model, key) != getattr(config.model, key) for key in alike):
            continue
        if other.lora.kind != config.lora.kind:
            continue
        with tempfile.TemporaryDirectory() as folder:
            family = open_blank(other, Path(folder), torch.device("meta"), dtype)
            if fitting(estimate.measure(family, other), other, capacity)[1] <= SAFE * capacity:
                return name
    return None


def host(asked: Estimate, config: Config) -> float:
    """训练时进程占多少内存，GiB；全量微调存检查点时，一个文件的张量与它的副本在内存里。"""
    if config.lora.kind == "full":
        return HOST + 2 * min(LIMIT, asked.trained * 4) / GIB
    return HOST + asked.moved / GIB


def _host_need(need: float) -> Check:
    free = psutil.virtual_memory().available / GIB
    said = f"约要 {need:.1f} GiB，空闲 {free:.1f} GiB"
    return Check(GOOD if need < free else BAD, "host-need", said)


def _on_cpu(config: Config, asked: Estimate) -> list[Check]:
    need = HOST_CPU + asked.peak(config, 0.0) / GIB
    if asked.parameters > 1e9:
        said = "没有显卡，练不动这么大的模型。先用微型模型学会：lorakit demo；想租，加 --card 4090"
        if torch.version.cuda is None:
            said += "。有 NVIDIA 显卡却这样说，是 torch 装成了 CPU 版：照 pytorch.org 换成 CUDA 版"
        return [Check(BAD, "gpu", said)]
    return [_host_need(need), *_time(config, asked, 0.0)]


def _time(config: Config, asked: Estimate, again: float) -> list[Check]:
    """按实测的矩阵乘法速度与经验效率估计。"""
    device = devices.pick_device()
    dtype = devices.pick_dtype(config.model.precision, device)
    if device.type != "cuda" and asked.parameters > 1e9:
        return []  # 当作有显卡，可是没有卡可量
    ceiling, gpu = bench.gemm_ceiling(device, dtype), device.type == "cuda"
    bus = bench.copy_speed(device) if gpu and asked.moved else BUS
    step = seconds(asked, config, again, ceiling, gpu, bus)
    said = f"每步约 {step:.2g} 秒，{config.train.steps} 步约 {_long(step * config.train.steps)}"
    waits = gpu and step == handling(asked, config, again)
    slow = "，没有录图，看 CPU 快慢，可能要一倍半" if waits else ""
    return [Check(GOOD, "time", f"{said}（估计{slow}；实测用 lorakit bench）")]


def seconds(
    asked: Estimate, config: Config, again: float, ceiling: float, on_gpu: bool, bus: float = BUS
) -> float:
    """一步约几秒。

    Args:
        again: 几成的块重算。
        ceiling: 矩阵乘法实测的 TFLOP/s。
        bus: 内存到显卡的 GB/s。
    """
    share = SHARE[config.model.quantize] if on_gpu else 0.9
    if on_gpu and not config.memory.compile:
        share *= EAGER
    step = asked.work(config, again) / 1e12 / ceiling / share
    if asked.moved:  # 一边算一边搬，看哪一样慢；同时进行，各慢一点
        moving = 2 * asked.moved / 1e9 / bus
        step = max(step, moving) + SHARING * min(step, moving)
    if on_gpu:
        step = max(step, handling(asked, config, again))
    if config.lora.kind == "full" and on_gpu:
        step += asked.trained / 1e9 * UPDATE
    return step


def handling(asked: Estimate, config: Config, again: float) -> float:
    """一步里 CPU 派活要忙几秒；录了图的不用派。"""
    kind, how = config.model.quantize, config.memory.compile
    if how == "graphs" or (how and kind != "nf4"):  # 编译过的，显卡总比 CPU 慢
        return 0.0
    one = HANDLING["compiled" if how else "none" if kind == "none" else "quantized"]
    return (2 + again) * asked.blocks * config.train.grad_accum * one


def _long(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} 秒"
    return f"{seconds / 60:.0f} 分钟" if seconds < 5400 else f"{seconds / 3600:.1f} 小时"
