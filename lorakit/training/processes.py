"""几个进程一起练：一个出错大家一起停、切开的张量怎样拼回来；分工与通信都由 accelerate 做。

一个进程也走同一条路，那时这里的每一步都什么也不做。教程：README 的“几张显卡”。
"""

import atexit
import gc
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from torch.distributed.tensor import DTensor

from lorakit.errors import LorakitError, warn
from lorakit.memory.sharded import Tensors, whole

PATIENCE = timedelta(hours=6)  # 等别的进程：编码一大批图、存几十 GB 都可能很久；真死了启动器会收场


def start(run, tracker: str, cpu: bool) -> Accelerator:
    """按启动的方式（一个进程、DDP、FSDP2）造 Accelerator；精度由我们自己的 autocast 管。"""
    # Qwen 最后一块的文字一侧没有输出，得不到梯度；全家族都让 DDP 自己找出这样的参数
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    with warnings.catch_warnings():
        # 没装的记录工具，稍后 preflight 会用中文说
        warnings.filterwarnings("ignore", "`log_with=", UserWarning)
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no",
            fsdp_plugin=shard_plugin() if asks_to_shard() else None,
            log_with=None if tracker == "none" else tracker,
            project_dir=run,
            kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    if accelerator.num_processes > 1:
        atexit.register(leave)
    if accelerator.is_fsdp2:  # 我们从不就地改模型的输出
        warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    if asks_to_shard() and not accelerator.is_fsdp2:
        warn("FSDP 要两张以上的显卡，这里没有，照普通的多进程（DDP）练。")
    return accelerator


def prepare(accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer):
    """交给 accelerate：一个进程时原样，DDP 包一层，FSDP2 就地切开。"""
    with warnings.catch_warnings():
        # torch 想把 broadcast_buffers 换个名字，而 accelerate 只认这一个
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        if accelerator.is_fsdp2 and not model._no_split_modules:  # Kandinsky 没有写哪些是块
            plugin = accelerator.state.fsdp_plugin
            plugin.transformer_cls_names_to_wrap = list(model._repeated_blocks)
        return accelerator.prepare(model, optimizer)


def leave():
    """离开进程组；解释器收场前做，那时训练器已经放掉。不离开，退出时偶尔会崩或卡住。

    拆组要等它的线程，线程放下最后一个张量又要拿 Python 的锁：torch 自己拆会先让出锁，DDP 拆不会。
    """
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def asks_to_shard() -> bool:
    """accelerate launch --use_fsdp 启动的：把模型切开，每张卡只放一份。"""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shard_plugin() -> FullyShardedDataParallelPlugin:
    """FSDP2：每个 Transformer 块切成一份。

    cpu_ram_efficient_loading 必须关掉：它会让 transformers 在别的进程里载入空的文本编码器。
    """
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )


def together(accelerator: Accelerator, work: Callable):
    """每个进程都做 work，返回自己的结果；有一个失败，大家一起停在同一句话上。

    work 里不能通信：有一个中途失败，别的就一直等它（write_in_turn 失败了也走到底，不在此列）。
    """
    result, failure = None, None
    try:
        result = work()
    except LorakitError as error:
        failure = error
    failures = [error for error in gather_object([failure]) if error is not None]
    if failures:
        mine = failure or failures[0]
        mine.told = not accelerator.is_main_process  # 0 号说过，就不用每个进程各说一遍
        raise mine
    return result


def by_first(accelerator: Accelerator, work: Callable):
    """只让 0 号进程做 work，结果给大家；它失败了，大家一起停。"""
    result = together(accelerator, work if accelerator.is_main_process else lambda: None)
    return broadcast_object_list([result])[0]


def by_local_first(accelerator: Accelerator, work: Callable):
    """每台机器只让一个进程做 work，别的等它做完；有一个失败，大家一起停。"""
    together(accelerator, work if accelerator.is_local_main_process else lambda: None)


def anyone(accelerator: Accelerator, asked: bool) -> bool:
    """有一个进程被要求停下，大家就都停在同一步。"""
    if accelerator.num_processes == 1:
        return asked
    flag = torch.tensor(float(asked), device=accelerator.device)
    return bool(accelerator.reduce(flag) > 0)


def collect(accelerator: Accelerator, rows: list) -> list:
    """把各进程的几行数据按进程次序接成一份，人人都有。"""
    return rows if accelerator.num_processes == 1 else gather_object(rows)


def gathered(accelerator: Accelerator, tensors: Tensors) -> dict[str, torch.Tensor]:
    """拼回整个，只留在 0 号进程的内存里；别的进程只陪着通信，得到空的。"""
    result = {}
    for name, value in tensors.items():
        full = whole(value.detach())
        if accelerator.is_main_process:
            result[name] = full.cpu() if isinstance(value, DTensor) else full
    return result


def in_turn(accelerator: Accelerator, parts: Iterable[Tensors]) -> Iterator[dict]:
    """一份份拼回整个，内存里只有一份：0 号进程拿着写，别的进程得到空的；人人都要走到底。"""
    for part in parts:
        yield gathered(accelerator, part)


def write_in_turn(accelerator: Accelerator, parts: Iterable[Tensors], write: Callable):
    """只让 0 号进程做 write(一份份拼好的张量)；它写到一半失败，也陪大家走完，再一起停。"""
    turns = in_turn(accelerator, parts)

    def work():
        try:
            if accelerator.is_main_process:
                write(turns)
        finally:
            for _ in turns:  # 拼的时候要一起通信：有一个先走了，别的就一直等
                pass

    together(accelerator, work)


def trainable(transformer: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """要学的参数 {名字: 参数}；FSDP2 会换掉参数对象，准备好之后要重新取。"""
    named: Iterable = transformer.named_parameters()
    return {name: value for name, value in named if value.requires_grad}
