"""留出检验集，把训练的图按形状排成一批批；都由种子决定。"""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from lorakit.data.record import Record
from lorakit.errors import DataError


def split_holdout(records: Sequence[Record], fraction: float) -> tuple[list[Record], list[Record]]:
    """分成 (训练, 留出)：按图片内容决定，添一张图不会打乱别的图。

    内容相同的几份算一张，总在同一边：练过的图拿来检验，看不出学没学会。
    至少 4 张才留出，这时至少留一张；最多留约定的两倍，不会全留。为了守住这两头，
    图很少时（二十来张）添一张偶尔会让一张换边。
    """
    digests = sorted({record.digest for record in records})
    count = len(digests)
    if fraction <= 0 or count < 4:
        return list(records), []
    # 内容的哈希当作 [0, 1) 的随机数，小于 fraction 的留出：每张图自己决定，与别的图无关
    hashes = {one: hashlib.sha256(one.encode()).hexdigest() for one in digests}
    draws = {one: int(value[:13], 16) / 16**13 for one, value in hashes.items()}
    wanted = sum(draw < fraction for draw in draws.values())
    wanted = min(max(wanted, 1), max(1, round(2 * fraction * count)), count - 1)
    held = set(sorted(digests, key=draws.get)[:wanted])
    train = [record for record in records if record.digest not in held]
    return train, [record for record in records if record.digest in held]


class Batches:
    """无穷的批次流：第 k 批只由 (seed, k) 决定，接着训练不必从头走一遍。

    每轮每个下标正好出现 repeats 次；一批只有一种尺寸；一桶的零头成为一个小批，不丢。
    """

    def __init__(
        self,
        buckets: Sequence[Hashable],
        batch_size: int,
        seed: int,
        repeats: int | Sequence[int] = 1,
    ):
        """buckets[i] 是第 i 张图的尺寸（任何可比较的东西）；repeats 可以每张图各给一个。

        Raises:
            DataError: 没有图，或 batch_size、repeats 小于 1。
        """
        if not buckets:
            raise DataError("没有可以训练的图。先运行 lorakit check 看看数据。")
        repeats = [repeats] * len(buckets) if isinstance(repeats, int) else list(repeats)
        if batch_size < 1 or min(repeats) < 1:
            raise DataError(
                f"batch_size 和 repeats 至少是 1，得到 {batch_size} 和 {min(repeats)}。"
            )
        self._groups = defaultdict(list)
        for i, bucket in enumerate(buckets):
            self._groups[bucket].append(i)
        self._size, self._seed, self._repeats = batch_size, seed, repeats
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    @property
    def per_epoch(self) -> int:
        """一轮有几批。"""
        sizes = (sum(self._repeats[i] for i in group) for group in self._groups.values())
        return sum(-(-size // self._size) for size in sizes)

    def batch(self, k: int) -> list[int]:
        """第 k 批（从 0 数）的下标。"""
        assert k >= 0, k
        epoch, place = divmod(k, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffle(epoch))
        return list(self._epoch[1][place])

    def _shuffle(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng((self._seed, epoch))
        batches = []
        for group in self._groups.values():
            # 一遍一遍地洗，而不是重复后一起洗：同一张图尽量不落在同一批
            times = np.asarray([self._repeats[i] for i in group])
            rounds = (np.asarray(group)[times > i] for i in range(times.max()))
            order = np.concatenate([rng.permutation(some) for some in rounds]).tolist()
            batches += [order[i : i + self._size] for i in range(0, len(order), self._size)]
        return [batches[i] for i in rng.permutation(len(batches))]
