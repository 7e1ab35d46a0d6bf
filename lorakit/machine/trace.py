"""一步的时间花在哪：把每个内核的时间归成几类，再加上设备闲着的时间。"""

import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KINDS = {  # 类 -> 内核名字里的字样；从上往下，先对上的算
    "搬运": r"^mem(cpy|set)",
    "注意力": r"flash|fmha|sdpa|attention",
    "优化器": r"adam|multi_tensor|foreach|lpnorm",
    "逐元素（编译器写的）": r"^triton",
    "矩阵乘法": r"gemm|cutlass|cublas|nvjet|xmma|scaled_mm|splitk|addmm|::mm$|bmm",
}
OTHER, IDLE = "其余", "闲着"


@dataclass(frozen=True)
class Share:
    """一类（或一个）内核：毫秒、次数。"""

    name: str
    milliseconds: float
    count: int


@dataclass(frozen=True)
class Trace:
    """一步：总共多少毫秒，各类各占多少，最慢的几个内核。"""

    milliseconds: float
    kinds: tuple[Share, ...]
    slowest: tuple[Share, ...]

    def text(self) -> str:
        """一张中文表。"""
        lines = [f"一步 {self.milliseconds:.0f} 毫秒（带着记录，比平时慢一点），花在："]
        for share in self.kinds:
            part = share.milliseconds / self.milliseconds
            lines.append(f"  {part:>4.0%}  {share.milliseconds:8.1f} 毫秒  {share.name}")
        lines.append("最慢的内核：")
        for share in self.slowest:
            name = share.name if len(share.name) <= 90 else f"{share.name[:87]}..."
            lines.append(f"  {share.milliseconds:8.1f} 毫秒  {share.count:>5} 次  {name}")
        return "\n".join(lines)


def kind_of(name: str) -> str:
    """内核的名字 -> 它是哪一类。"""
    found = (kind for kind, words in KINDS.items() if re.search(words, name, re.IGNORECASE))
    return next(found, OTHER)


def record(step: Callable[[], object], device: torch.device, most: int = 15) -> Trace:
    """走一步，记下每个内核；显卡上闲着的时间是没有任何内核在跑的时间。"""
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities, acc_events=True) as seen:
        start = time.perf_counter()
        step()
        if gpu:
            torch.cuda.synchronize(device)
        total = 1000 * (time.perf_counter() - start)
    runs, busy = (_on_gpu if gpu else _on_cpu)(seen.events())
    kernels: dict[str, list[float]] = defaultdict(list)
    for name, microseconds in runs:
        kernels[name].append(microseconds / 1000)
    each = [Share(name, sum(times), len(times)) for name, times in kernels.items()]
    grouped: dict[str, list[Share]] = defaultdict(list)
    for share in each:
        grouped[kind_of(share.name)].append(share)
    kinds = [
        Share(name, sum(s.milliseconds for s in shares), sum(s.count for s in shares))
        for name, shares in grouped.items()
    ]
    kinds.append(Share(IDLE, max(0.0, total - busy / 1000), 0))
    slow = lambda share: -share.milliseconds  # noqa: E731
    return Trace(total, tuple(sorted(kinds, key=slow)), tuple(sorted(each, key=slow)[:most]))


def _on_gpu(events) -> tuple[list[tuple[str, float]], float]:
    """显卡上跑过的 [(名字, 微秒)]，以及至少有一个在跑的时间：重叠的段只算一遍。"""
    ran = [event for event in events if event.device_type == DeviceType.CUDA]
    spans = sorted((event.time_range.start, event.time_range.end) for event in ran)
    busy, reached = 0.0, float("-inf")
    for begin, end in spans:
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return [(event.name, event.time_range.elapsed_us()) for event in ran], busy


def _on_cpu(events) -> tuple[list[tuple[str, float]], float]:
    """CPU 上的算子 [(名字, 微秒)]，不含它叫来的别的算子；以及它们一共多久。"""
    ran = [(event.name, event.self_cpu_time_total) for event in events]
    return ran, sum(time for _, time in ran)
