"""CUDA 图：把一步的前向与反向录下来，以后整个重放，CPU 不用再一个个地派活。

20 B 的模型一步有一万多个内核，CPU 一个个地派往往比显卡算得还慢；重放只派一次。
录下的图认死每个张量的地址与形状，所以输入先抄进固定的地方，形状不同（图的尺寸、描述的长短）
就各录一张；各张先后用同一片显存（PyTorch 的 CUDA graphs 文档，“Sharing memory across captures”）。
编译好的代码不管描述多长都用得上，所以图的尺寸热过身，没见过的长短头一次就录：照常走的一步与录好的
图争显存，越少越好。
"""

import gc
from collections import Counter

import torch
from torch.utils import _pytree as pytree

from lorakit.errors import warn
from lorakit.memory import devices
from lorakit.memory.recompute import Recompute
from lorakit.memory.streaming import Streamer
from lorakit.training.objective import Objective

WARM = 2  # 一种尺寸的头两次照常走：编译、挑内核都不能在录的时候做
MOST = 64  # 最多录几种形状：每张图自己也要占显存
SPARE = 1 << 30  # 图自己要占的、零碎用不上的，不能算给中间结果


class Graphs:
    """训练目标的前向加反向；第三次遇到同一种尺寸起重放录好的图，结果与照常走相同。

    用它时，参数的梯度要一直在原处：清零，不能丢掉（`zero_grad(set_to_none=False)`）。
    """

    def __init__(
        self,
        objective: Objective,
        recompute: Recompute,
        count: float,
        streamer: Streamer | None = None,
    ):
        """每份的损失先除以 count，再反向；底模边算边搬时，搬运的 streamer 也录进图里。"""
        self.objective, self.recompute, self.count = objective, recompute, count
        self.streamer = streamer
        self.device = objective.device
        self.seen: Counter = Counter()  # 形状，与其中图的尺寸 -> 照常走过几次
        self.shy: set[tuple] = set()  # 头一次录不成的形状：自己先走 WARM 次
        self.need = 0  # 照常走一步，最多另要多少字节
        self.refused = False  # 录不成，以后都照常走
        self.forget()

    def forget(self):
        """放掉录好的图与它们的显存（出样张之前要腾地方）；再用到时马上重录。"""
        self.made: dict[tuple, tuple] = {}  # 形状 -> (输入的固定位置, 图, 损失)
        self.pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()

    def draw(self, number: int, *keys: int):
        """与 Objective.draw 一样，并且把梯度加好；返回的损失已不带梯度。"""
        batch = self.objective.batch(number, *keys)
        given, layout = pytree.tree_flatten(batch.parts)
        kind = (str(layout), *(None if x is None else (x.shape, x.dtype) for x in given))
        if kind not in self.made and self._warmed(kind) and not self.refused:
            self._try(kind, given, layout)
        if kind in self.made:
            loss = self._replay(*self.made[kind], given)
        else:
            loss = self._plainly(kind, batch.parts)
        return loss, batch.t, batch.items

    def _warmed(self, kind: tuple) -> bool:
        return self.seen[kind if kind in self.shy else _sizes(kind)] >= WARM

    def _try(self, kind: tuple, given: list, layout):
        if len(self.made) == MOST:
            return  # 多出来的几种照常走
        try:
            self.made[kind] = self._record(given, layout)
            return
        except RuntimeError as error:  # 还要编译，模型里有录不了的操作，或显存不够再放一张图
            why, full = str(error).splitlines()[0], isinstance(error, torch.OutOfMemoryError)
        gc.collect()  # 错误还记着录了一半的图与它的中间结果，循环引用着：不放掉，下一步没有地方走
        if self.streamer:
            self.streamer.drop()  # 录的时候什么也没有真的搬
        if self.seen[kind] >= WARM:
            return self._refuse(f"这一步录不成：{why}")
        self.shy.add(kind)
        if full:
            self.forget()

    def _refuse(self, why: str):
        self.refused = True
        self.forget()
        warn(f"memory.compile=graphs 只编译，没有录图，照常练（{why}）。")

    def _plainly(self, kind: tuple, parts: list) -> torch.Tensor:
        self.seen.update({kind, _sizes(kind)})
        if self.made and self._room() < self.need + SPARE:
            if len(self.made) == MOST:  # 让出来也只是再录一遍
                self._refuse(f"图的尺寸与描述的长短有 {MOST} 种以上，显存录不下")
            self.forget()  # 录好的图占着中间结果的地方，先让出来
        loss = self._work(parts)
        peak = torch.cuda.max_memory_allocated(self.device)
        self.need = max(self.need, peak - torch.cuda.memory_allocated(self.device))
        return loss

    def _room(self) -> int:
        """图占着的不算，还能用多少字节。"""
        torch.cuda.empty_cache()  # 之后，要来了却没用着的就都是图的
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return devices.free_memory(self.device) - kept

    def _work(self, parts: list) -> torch.Tensor:
        loss = self.objective.total(parts)
        (loss / self.count).backward()
        return loss.detach()

    def _record(self, given: list, layout) -> tuple:
        held = [None if value is None else value.clone() for value in given]
        self._settle()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # 录的时候不能问显卡还剩多少，先问好；也不能编译：录坏了的那一张，PyTorch 2.12 以前一直占着
        # 显存（pytorch#180395）。thread_local：别的线程照常用显卡
        with (
            torch.compiler.set_stance("fail_on_recompile"),
            self.recompute.within(devices.free_memory(self.device) - SPARE),
            torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"),
        ):
            loss = self._work(pytree.tree_unflatten(held, layout))
            self._settle()  # 放完一遍又是开头的样子，才能接着放
        return held, graph, loss

    def _settle(self):
        if self.streamer:
            self.streamer.settle()

    def _replay(self, held: list, graph, loss: torch.Tensor, given: list) -> torch.Tensor:
        for place, value in zip(held, given, strict=True):
            if value is not None:
                place.copy_(value, non_blocking=True)
        self._settle()  # 中间检验过、出过样张，格子里就是别的块
        graph.replay()
        return loss.clone()  # 下一次重放会写在同一个地方


def _sizes(kind: tuple) -> tuple:
    """一种形状里图的尺寸：描述有多长不算。"""
    return kind[:1] + tuple(one for one in kind[1:] if one is not None and len(one[0]) > 3)
