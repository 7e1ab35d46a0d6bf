"""一步的时间花在哪：把每个内核的时间归成几类，再加上设备闲着的时间。"""

import re
import time
from collections import Counter
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
    "其余": "",
}
IDLE, SLOWEST = "闲着", 15


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
    return next(kind for kind, words in KINDS.items() if re.search(words, name, re.IGNORECASE))


def record(step: Callable[[], object], device: torch.device) -> Trace:
    """走一步，记下每个内核；显卡上闲着的时间是没有任何内核在跑的时间。"""
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities, acc_events=True) as seen:
        start = time.perf_counter()
        step()
        if gpu:
            torch.cuda.synchronize(device)
        total = 1000 * (time.perf_counter() - start)
    where = DeviceType.CUDA if gpu else DeviceType.CPU  # CPU 上的算子不含它叫来的别的算子
    each = [
        Share(one.key, (one.self_device_time_total if gpu else one.self_cpu_time_total) / 1000,
              one.count)
        for one in seen.key_averages() if one.device_type == where
    ]  # fmt: skip
    ran = busy(seen.events()) if gpu else sum(share.milliseconds for share in each)
    spent, counts = Counter({IDLE: max(0.0, total - ran)}), Counter()
    for share in each:
        spent[kind_of(share.name)] += share.milliseconds
        counts[kind_of(share.name)] += share.count
    slow = sorted(each, key=lambda share: -share.milliseconds)[:SLOWEST]
    kinds = (Share(*one, counts[one[0]]) for one in spent.most_common())
    return Trace(total, tuple(kinds), tuple(slow))


def busy(events) -> float:
    """至少有一个内核在显卡上跑的毫秒：重叠的段只算一遍。"""
    spans = [one.time_range for one in events if one.device_type == DeviceType.CUDA]
    total, reached = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        total += max(0.0, span.end - max(span.start, reached))
        reached = max(reached, span.end)
    return total / 1000
