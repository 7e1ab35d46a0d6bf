"""排练的账：每个环节用了多久、显存与内存的峰值、还剩多少；记成一行行，写成表与 JSON。"""

import json
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import torch

from lorakit.errors import LorakitError
from lorakit.files import write_text
from lorakit.machine.estimate import GIB
from lorakit.machine.whole import Whole, spoken

EVERY = 2.0  # 秒；隔多久看一次内存
ENOUGH = 0.7  # GiB；余量比它小，换一批图、换个驱动就可能不够


@dataclass
class Row:
    """一个环节；没走成就有 error，跳过的只有 skipped。"""

    key: str
    stage: str  # 怎么叫它
    seconds: float = 0.0
    allocated: float = 0.0  # GiB，张量占的峰值
    reserved: float = 0.0  # GiB，PyTorch 向显卡要的峰值
    need: float = 0.0  # GiB，真正要的：张量的峰值（录好的图占着的也算），加上外面多出来的
    outside: float = 0.0  # GiB，显卡上 PyTorch 管不着的：驱动、录好的图自己的
    host: float = 0.0  # GiB，进程独占的内存（USS）的峰值
    compiled: int = 0  # 编译了几份代码
    compiling: float = 0.0  # 编译用了几秒
    retries: int = 0  # 显存不够、清了缓存再要的次数
    full: bool = False  # 显存不够
    error: str = ""
    trace: str = ""
    skipped: str = ""
    mend: str = ""
    facts: dict = field(default_factory=dict)

    @property
    def went(self) -> bool:
        return not (self.error or self.skipped)


class Meter:
    """一个环节一个环节地量；`keep` 是每量完一行就要做的事（把账写下来）。"""

    def __init__(self, rows: list[Row], device: torch.device, spared=0.0, keep=lambda: None):
        """spared：PyTorch 之外本来就留给驱动多少 GiB，超出的才算进 need。"""
        self.rows, self.device, self.spared, self.keep = rows, device, spared, keep
        self.gpu = device.type == "cuda"

    def skip(self, key: str, stage: str, why: str):
        """这一环节走不了：记下为什么。"""
        self.rows.append(Row(key, stage, skipped=why))

    @contextmanager
    def watch(self, key: str, stage: str) -> Iterator[Row]:
        """量一个环节；显存不够、说得清楚的错记成一行，接着走；别的错记下，照旧抛出。"""
        row = Row(key, stage)
        self.rows.append(row)
        before, host = self._start(), _Host()
        start = time.perf_counter()
        try:
            yield row
        except torch.OutOfMemoryError as error:
            self._failed(row, error, full=True)
        except LorakitError as error:
            self._failed(row, error, full=isinstance(error.__cause__, torch.OutOfMemoryError))
        except BaseException as error:
            self._failed(row, error, full=False)
            raise
        finally:
            if self.gpu:
                torch.cuda.synchronize(self.device)
            row.seconds = time.perf_counter() - start
            row.host = host.stop()
            self._finish(row, before)
            self.keep()

    def _failed(self, row: Row, error: BaseException, full: bool):
        row.error = str(error).splitlines()[0] if str(error) else type(error).__name__
        row.trace, row.full = traceback.format_exc(), full

    def _start(self) -> tuple:
        if self.gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        return (*_compiled(), self._retries())

    def _finish(self, row: Row, before: tuple):
        count, seconds, retries = before
        after, spent = _compiled()
        row.compiled, row.compiling = after - count, max(0.0, spent - seconds)
        row.retries = self._retries() - retries
        if not self.gpu:
            return
        row.allocated = torch.cuda.max_memory_allocated(self.device) / GIB
        row.reserved = torch.cuda.max_memory_reserved(self.device) / GIB
        kept = torch.cuda.memory_allocated(self.device) / GIB + held_by_graphs()
        row.outside = outside(self.device)
        row.need = max(row.allocated, kept) + max(0.0, row.outside - self.spared)

    def _retries(self) -> int:
        stats = torch.cuda.memory_stats(self.device) if self.gpu else {}
        return stats.get("num_alloc_retries", 0)


class _Host:
    """另开一个线程，隔一会儿看一次内存。"""

    def __init__(self):
        self.process, self.most = psutil.Process(), 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self):
        while not self.over.wait(EVERY):
            self.most = max(self.most, self.now())

    def now(self) -> int:
        facts = self.process.memory_full_info()
        return getattr(facts, "uss", facts.rss)  # 有的系统不说哪些是独占的

    def stop(self) -> float:
        self.over.set()
        self.thread.join()
        return max(self.most, self.now()) / GIB


def _compiled() -> tuple[int, float]:
    """到现在为止编译了几份代码、用了几秒。"""
    from torch._dynamo import utils

    spent = utils.compilation_time_metrics.get("_compile.compile_inner", [])
    return utils.counters["stats"]["unique_graphs"], sum(spent)


def outside(device: torch.device) -> float:
    """显卡上 PyTorch 管不着的，GiB。"""
    free, total = torch.cuda.mem_get_info(device)
    return (total - free - torch.cuda.memory_reserved(device)) / GIB


def held_by_graphs() -> float:
    """录好的 CUDA 图占着的显存，GiB。"""
    segments = torch.cuda.memory_snapshot()
    pools = (one for one in segments if tuple(one.get("segment_pool_id", (0, 0))) != (0, 0))
    return sum(one["total_size"] for one in pools) / GIB


@dataclass
class Report:
    """一次排练。"""

    device: str
    model: str
    limit: float | None  # GiB，能用的显存；没有显卡是 None
    shapes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    whole: Whole | None = None  # 整个训练要多久
    price: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        return all(not row.error for row in self.rows)

    @property
    def margin(self) -> float | None:
        """显存最少还剩多少，GiB；有放不下的就是负的。"""
        if self.limit is None:
            return None
        return self.limit - max((row.need for row in self.rows), default=0.0)

    def save(self, path: Path) -> Path:
        """写成 JSON。"""
        found = asdict(self) | {"fits": self.fits, "margin": self.margin}
        return write_text(path, json.dumps(found, ensure_ascii=False, indent=1))

    def text(self) -> str:
        """一张中文表，和几句话。"""
        lines = [f"{self.device}，{self.model}，随机权重。图的形状：{'、'.join(self.shapes)}。"]
        if self.limit is not None:
            lines.append(f"能用的显存 {self.limit:.1f} GiB。")
        lines += [*self.notes, "用时      显存峰值（张量/保留）  余量       内存      编译  环节"]
        lines += [self._line(row) for row in self.rows]
        lines += [f"\n{row.stage}：{row.error}\n{row.mend}" for row in self.rows if row.error]
        return "\n".join([*lines, *self._verdict(), *self._time()])

    def _line(self, row: Row) -> str:
        if row.skipped:
            return f"{'—':<8} {row.stage}：跳过，{row.skipped}"
        peak, left = "—", "—"
        if self.limit is not None:
            peak = f"{row.allocated:.1f} / {row.reserved:.1f} GiB"
            left = "不够" if row.full else f"{self.limit - row.need:.1f} GiB"
        mark = "没走成：" if row.error else ""
        return (
            f"{row.seconds:<6.1f} 秒 {peak:<21}  {left:<8}  {row.host:.1f} GiB  "
            f"{row.compiled:>4}  {mark}{row.stage}"
        )

    def _verdict(self) -> list[str]:
        if not self.fits:
            return ["\n排练没有走完：先照上面的话改，再排练一次。"]
        if self.margin is None:
            return ["\n从头到尾都走通了。"]
        tight = max(self.rows, key=lambda row: row.need)
        said = f"\n从头到尾都走通了；最紧的是“{tight.stage}”，显存还剩 {self.margin:.1f} GiB。"
        if self.margin < ENOUGH:
            said += f"少于 {ENOUGH} GiB：换一批图、开一个网页就可能不够，最好换省一点的设置。"
        return [said]

    def _time(self) -> list[str]:
        if self.whole is None:
            return []
        w, hours = self.whole, self.whole.total / 3600
        lines = [
            f"整个训练约 {hours:.2f} 小时：编码 {spoken(w.encode)}，准备（载入、编译、录图）"
            f"{spoken(w.prepare)}，训练 {spoken(w.steps)}（每步 {w.each:.3g} 秒），"
            f"检验 {spoken(w.evaluate)}，存检查点 {spoken(w.save)}，样张 {spoken(w.sample)}。"
        ]
        if self.price:
            lines.append(f"每小时 {self.price:g} 元，一共约 {hours * self.price:.2f} 元。")
        return lines
