"""底模放在内存里，用到哪一块才搬到显卡上哪一块；算着这一块时，下一块已经在路上。

每块的权重排成内存里（锁页的）一段字节，显卡上只有两个格子轮流用。前向从第一块走到最后一块，
反向（重算时）倒着走，所以总能猜到下一块；猜错了只是多等一次。
没轮到的块，权重指向一个全是 NaN 的占位张量：形状、设备都对，不占显存，误用了立刻看得见。
内存里的那段与两个格子的地址都不变，所以搬运也能和计算一起录成 CUDA 图重放（training/graphs.py）。

diffusers 的 group offloading（enable_group_offload）也能边算边搬，训练的梯度也对；这里另写一份，
是因为它做不到三件事：地址不变（才录得成图）、反向时倒着提前搬、每块在内存里只占一整段锁页的字节。
"""

import weakref
from collections.abc import Sequence

import torch
from torch import nn

from lorakit.memory.loading import blocks

ALIGN = 256  # 每个张量从这么多字节的整数倍开始，各种内核都喜欢
SLOTS = 2


def moving(members: Sequence, offload: str | int) -> list:
    """按 memory.offload 要搬的那些块；只搬几块时隔得一样远，算留下的那些时正好搬下一块。"""
    total = len(members)
    if offload in ("none", "blocks") or offload >= total:
        return [] if offload == "none" else list(members)
    stay = total - offload
    return [one for i, one in enumerate(members) if i * stay % total < offload]


def _empty_like(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """形状对、不占地方的占位张量：浮点数全是 NaN，一个字节的编码全是 255（也是 fp8 的 NaN）。"""
    one = torch.zeros((), dtype=value.dtype, device=device)
    one.fill_(torch.nan if value.is_floating_point() else torch.iinfo(value.dtype).max)
    return one.expand(value.shape)


def is_away(value: torch.Tensor) -> bool:
    """没轮到这一块，权重只是占位的张量：要等前向用到它时才看得到。"""
    return value.numel() > 1 and set(value.stride()) == {0}


class _Block:
    """一块的冻住的权重：内存里的一段字节，以及它们在各个格子里该是什么样。"""

    def __init__(self, module: nn.Module, device: torch.device):
        tensors = [*module.parameters(), *module.buffers()]
        self.tensors = [t for t in tensors if not t.requires_grad]
        self.layout, self.size = [], 0
        for value in self.tensors:
            self.layout.append((self.size, value.dtype, value.shape))
            self.size += -(-value.nbytes // ALIGN) * ALIGN
        self.host = torch.empty(self.size, dtype=torch.uint8)
        if device.type == "cuda":
            self._pin()
        for view, value in zip(self.views(self.host), self.tensors, strict=True):
            view.copy_(value.data)
        self.away = [_empty_like(value, device) for value in self.tensors]
        self.here: dict[int, list[torch.Tensor]] = {}  # 格子 -> 权重在里面的样子
        self.point(self.away)

    def _pin(self):
        """锁住这段内存，显卡才能一边算一边自己来取。

        不用 pin_memory=True：它总把大小凑到二的幂，几十块加起来要多占一半内存。
        锁不住（系统有上限）也能用，只是搬的时候不能同时算。
        """
        driver, place = torch.cuda.cudart(), self.host.data_ptr()
        if int(driver.cudaHostRegister(place, self.size, 0)) == 0:
            weakref.finalize(self, driver.cudaHostUnregister, place)

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """一段字节 -> 各个权重的样子，不复制。"""
        return [
            flat[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
            for start, dtype, shape in self.layout
        ]

    def point(self, values: list[torch.Tensor]):
        """让权重指向 values；参数对象不变，所以谁拿着它们都看得到。"""
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor.data = value


class Streamer:
    """管着一个模型的块在内存与显卡之间的来往；`add` 收下一块，之后它自己随用随到。"""

    def __init__(self, device: torch.device):
        self.device = device
        self.blocks: list[_Block] = []
        self.slots: list[torch.Tensor] = []
        self.holds: list[int | None] = [None] * SLOTS  # 格子里是第几块
        self.last, self.step = -1, 1  # 上一次用的块、走的方向
        self.waits = 0  # 没有提前搬到、只好等的次数
        fast = device.type == "cuda"
        self.side = torch.cuda.Stream(device) if fast else None
        self.arrived: list[torch.cuda.Event | None] = [None] * SLOTS

    def add(self, module: nn.Module):
        """收下一块：权重搬进内存，每次前向之前自己回来。"""
        number = len(self.blocks)
        self.blocks.append(_Block(module, self.device))
        module.register_forward_pre_hook(lambda *_: self.need(number))

    def need(self, number: int):
        """第 number 块马上要用：没到就等它到，再让下一块上路。"""
        if not self.slots:
            most = max(block.size for block in self.blocks)
            self.slots = [
                torch.empty(most, dtype=torch.uint8, device=self.device) for _ in range(SLOTS)
            ]
        if number not in self.holds:
            self.waits += 1
            free = 0 if self.last not in self.holds else 1 - self.holds.index(self.last)
            self._bring(number, free)
        place = self.holds.index(number)
        self._wait(place)
        if number != self.last:
            # 从第一块出发总是往前：反向走完之后，下一步又从它开始
            self.step = 1 if number > self.last or number == 0 else -1
        self.last = number
        following = self._following(number)
        if following not in self.holds:
            self._bring(following, 1 - place)

    def settle(self):
        """回到一步的开头：头两块在格子里，没有还在路上的。录图的首尾、每次重放之前都要这样。"""
        ready = list(range(min(SLOTS, len(self.blocks))))
        if self.holds[: len(ready)] != ready:
            self.drop()
            for number in ready:
                self._bring(number, number)
        for place in ready:
            self._wait(place)
        self.arrived = [None] * SLOTS
        self.last, self.step = 0, 1

    def drop(self):
        """格子里的都不算数了，再用到时重新搬。"""
        for number in self.holds:
            if number is not None:
                self.blocks[number].point(self.blocks[number].away)
        self.holds, self.arrived = [None] * SLOTS, [None] * SLOTS

    def _wait(self, place: int):
        """之后派的活，等 place 号格子里的权重到了再做。"""
        if self.arrived[place] is not None:
            torch.cuda.current_stream(self.device).wait_event(self.arrived[place])

    def _following(self, number: int) -> int:
        """接下来多半是哪块：顺着走；走到头，训练就倒着回来，推理就再从第一块开始。"""
        following = number + self.step
        if following < len(self.blocks):
            return following
        return max(0, number - 1) if torch.is_grad_enabled() else 0

    def _bring(self, number: int, place: int):
        """把第 number 块搬进 place 号格子；原来在里面的那块先让出来。"""
        if (old := self.holds[place]) is not None:
            self.blocks[old].point(self.blocks[old].away)
        block = self.blocks[number]
        self.holds[place] = number
        views = block.here.get(place)
        if views is None:
            views = block.here[place] = block.views(self.slots[place])
        target = self.slots[place][: block.size]
        if self.side is None:
            target.copy_(block.host)
        else:
            # 显卡算完用到旧权重的那些活，才能往格子里写新的
            self.side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.side):
                target.copy_(block.host, non_blocking=True)
                self.arrived[place] = self.side.record_event()
        block.point(views)


def stream(model: nn.Module, device: torch.device):
    """把一个已经在内存里的模型改成随用随搬；块以外的部分直接放到显卡上。"""
    streamer = Streamer(device)
    for block in blocks(model).values():
        streamer.add(block)
    inside = {id(t) for block in streamer.blocks for t in block.tensors}
    for tensor in [*model.parameters(), *model.buffers()]:
        if id(tensor) not in inside:
            tensor.data = tensor.data.to(device)
