"""证据：几张里对了几张、差多少，都带 95% 的区间；区间不含 0、种子不止一个，差别才算数。

比例的区间是 Clopper–Pearson（精确，宁宽勿窄）；两个比例的差是 Newcombe 的记分法，同一批题就成对比；
平均数的差是 Welch，同样的种子就成对比（t 分布）。
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorakit.errors import LorakitError

LEVEL = 0.95
Z = 1.959964  # 正态分布中间 95% 的一半宽
ROUNDS = 80  # 二分几次
Results = Mapping[int, object]  # 种子 -> 一个 Share、一串对错或一串数


class Share(float):
    """几张里对了几张：就是那个比例，可以当数用；写出来是“9/12（43–95%）”。

    `f"{share:.0%}"` 只写百分数。hits 记着每一张对不对，好和同一批题的另一份成对比。
    """

    def __new__(cls, k: int, n: int, hits: Sequence[bool] = ()):
        if not 0 <= k <= n or n == 0 or (hits and (len(hits), sum(hits)) != (n, k)):
            raise LorakitError(f"比例要从至少一张图里算：得到 {n} 张里对了 {k} 张。")
        share = super().__new__(cls, k / n)
        share.k, share.n, share.hits = int(k), int(n), tuple(map(bool, hits))
        return share

    def __getnewargs__(self):
        return self.k, self.n, self.hits

    @classmethod
    def of(cls, hits: Sequence[bool]) -> "Share":
        """每张对不对 -> 比例。"""
        return cls(sum(map(bool, hits)), len(hits), [bool(hit) for hit in hits])

    @property
    def interval(self) -> tuple[float, float]:
        """真正的比例多半在哪里：Clopper–Pearson 的 95% 区间。"""
        tail, k, n = (1 - LEVEL) / 2, self.k, self.n
        low = _bisect(lambda p: _at_least(k, n, p) - tail) if k else 0.0
        high = _bisect(lambda p: _at_least(k + 1, n, p) - (1 - tail)) if k < n else 1.0
        return low, high

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.k}/{self.n}（{100 * low:.0f}–{100 * high:.0f}%）"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return super().__format__(spec) if spec else str(self)


@dataclass(frozen=True)
class Claim:
    """一句“两边不一样”有多少根据：差（前减后）与它的 95% 区间、几个种子、成立不成立、写成的话。"""

    difference: float
    low: float
    high: float
    seeds: int
    paired: bool
    holds: bool
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def claim(a: Results, b: Results, what: str = "") -> Claim:
    """两边真的不一样吗：差的 95% 区间不含 0，两边又都有两个种子以上，才成立。

    Args:
        a, b: {种子: 结果}；结果是 Share、一串对错，或一个、一串数。不写种子的算一个种子。
            种子一样、题数也一样的，就成对比。
        what: 比的是什么，写进句子里。

    Raises:
        LorakitError: 一边是对错、一边是数，或者一个结果也没有。
    """
    a, b = (x if isinstance(x, Mapping) else {0: x} for x in (a, b))
    shares = {_is_share(value) for value in (*a.values(), *b.values())}
    if len(shares) != 1 or not a or not b:
        raise LorakitError(
            "claim 要两边都有结果、而且同一种：都是对错（Share），或都是数。"
            "例如 claim({0: share0, 1: share1}, {0: share2, 1: share3})。"
        )
    (share,) = shares
    return _claim_shares(a, b, what) if share else _claim_means(a, b, what)


def _is_share(value) -> bool:
    if isinstance(value, Share):
        return True
    items = value if isinstance(value, Sequence | np.ndarray) else [value]
    return all(isinstance(item, bool | np.bool_) for item in items)


def _claim_shares(a: Results, b: Results, what: str) -> Claim:
    one, two = _pool(a), _pool(b)
    paired = _aligned(a, b) and bool(one.hits and two.hits)
    low, high = newcombe_paired(one.hits, two.hits) if paired else newcombe(one, two)
    points = [f"{100 * value:+.0f}" for value in (one - two, low, high)]
    said = f"{one} 对 {two}，差 {points[0]} 个百分点（95% 区间 {points[1]} 到 {points[2]}）"
    return _conclude(what, said, (float(one) - float(two), low, high), a, b, paired)


def _claim_means(a: Results, b: Results, what: str) -> Claim:
    one, two = (np.concatenate([_numbers(x[seed]) for seed in x]) for x in (a, b))
    paired = _aligned(a, b)
    if paired:
        two = np.concatenate([_numbers(b[seed]) for seed in a])
    if (len(one) if paired else min(len(one), len(two))) < 2:
        known = (float(one.mean() - two.mean()), -math.inf, math.inf)
        said = f"{one.mean():.3g} 对 {two.mean():.3g}，每边只有一个数，说不出区间"
        return _conclude(what, said, known, a, b, paired)
    middle, low, high = mean_difference(one, two, paired)
    said = (
        f"{one.mean():.3g}（{len(one)} 个）对 {two.mean():.3g}（{len(two)} 个），"
        f"差 {middle:+.3g}（95% 区间 {low:+.3g} 到 {high:+.3g}）"
    )
    return _conclude(what, said, (middle, low, high), a, b, paired)


def _conclude(what: str, said: str, known, a: Results, b: Results, paired: bool) -> Claim:
    middle, low, high = known
    seeds, apart = min(len(a), len(b)), low > 0 or high < 0
    if not apart:
        end = "区间里有 0，还不能说两边不一样：多画几张、多换几个种子再看"
    elif seeds < 2:
        end = "区间里没有 0，可是只有一个种子，只能说这一次是这样：请至少再换一个种子"
    else:
        end = f"区间里没有 0，{seeds} 个种子：两边确实不一样"
    head = f"{what}：" if what else ""
    pairs = "，成对比" if paired else ""
    return Claim(
        middle, low, high, seeds, paired, apart and seeds > 1, f"{head}{said}{pairs}。{end}。"
    )


def _pool(results: Results) -> Share:
    shares = [x if isinstance(x, Share) else Share.of(_list(x)) for x in results.values()]
    hits = sum((s.hits for s in shares), ()) if all(s.hits for s in shares) else ()
    return Share(sum(s.k for s in shares), sum(s.n for s in shares), hits)


def _aligned(a: Results, b: Results) -> bool:
    """同样的种子，每个种子里题数也一样。"""

    def sizes(results):
        return {s: x.n if isinstance(x, Share) else len(_list(x)) for s, x in results.items()}

    return list(a) == list(b) and sizes(a) == sizes(b)


def _list(value) -> list:
    return list(value) if isinstance(value, Sequence | np.ndarray) else [value]


def _numbers(value) -> np.ndarray:
    return np.array(_list(value), float)


def newcombe(one: Share, two: Share) -> tuple[float, float]:
    """两个互不相干的比例之差的区间（Newcombe 1998，第 10 种）。"""
    return _square_and_add(one, two, 0.0)


def newcombe_paired(one: Sequence[bool], two: Sequence[bool]) -> tuple[float, float]:
    """同一批题答两遍，比例之差的区间（Newcombe 1998，成对的第 10 种）。"""
    a, b = np.array(one, bool), np.array(two, bool)
    n, both, neither = len(a), int((a & b).sum()), int((~a & ~b).sum())
    first, second = int((a & ~b).sum()), int((~a & b).sum())
    sides = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross = both * neither - first * second
    if cross > 0:
        cross = max(cross - n / 2, 0)
    phi = cross / math.sqrt(sides) if sides else 0.0
    return _square_and_add(Share(both + first, n), Share(both + second, n), phi)


def _square_and_add(one: Share, two: Share, phi: float) -> tuple[float, float]:
    (l1, u1), (l2, u2), apart = wilson(one), wilson(two), float(one) - float(two)

    def length(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    return apart - length(one - l1, u2 - two), apart + length(u1 - one, two - l2)


def wilson(share: Share) -> tuple[float, float]:
    """一个比例的 Wilson 区间；Newcombe 的差由它拼成。"""
    n, p = share.n, float(share)
    middle, half = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return (middle - half) / (1 + Z * Z / n), (middle + half) / (1 + Z * Z / n)


def mean_difference(one, two, paired: bool) -> tuple[float, float, float]:
    """两组数的平均之差与区间：成对的看每一对的差，不成对的用 Welch；每组至少两个数。"""
    one, two = np.asarray(one, float), np.asarray(two, float)
    middle = float(one.mean() - two.mean())
    if paired:
        error, free = float((one - two).std(ddof=1)) / math.sqrt(len(one)), len(one) - 1
    else:
        parts = [x.var(ddof=1) / len(x) for x in (one, two)]
        error, below = math.sqrt(sum(parts)), 0.0
        below = sum(p * p / (len(x) - 1) for p, x in zip(parts, (one, two), strict=True))
        free = sum(parts) ** 2 / below if below else 1.0
    half = student(free) * error
    return middle, middle - half, middle + half


def mean_interval(values) -> tuple[float, float, float]:
    """一组数的平均与它的 95% 区间；只有一个数就没有边。"""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), -math.inf, math.inf
    half = student(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()), float(values.mean()) - half, float(values.mean()) + half


def student(free: float) -> float:
    """t 分布中间 95% 的一半宽；free 是自由度，可以不是整数。"""
    scale = math.lgamma((free + 1) / 2) - math.lgamma(free / 2) - 0.5 * math.log(free * math.pi)

    def inside(x: float) -> float:  # |T| < x 的概率，代换 t = tan(u) 后用辛普森法
        u = np.linspace(0, math.atan(x), 2001)
        t = np.tan(u)
        f = np.exp(scale - (free + 1) / 2 * np.log1p(t * t / free)) * (1 + t * t)
        return 2 * float((f[0] + f[-1] + 4 * f[1:-1:2].sum() + 2 * f[2:-1:2].sum()) * u[1] / 3)

    return _bisect(lambda x: inside(x) - LEVEL, 0.0, 700.0 / free**2 + 10)


def _at_least(k: int, n: int, p: float) -> float:
    """n 次里至少 k 次的概率，每次 p。"""
    if k <= 0 or p >= 1:
        return 1.0 if k <= n else 0.0
    if p <= 0 or k > n:
        return 0.0
    i = np.arange(k, n + 1)
    choose = math.lgamma(n + 1) - np.array([math.lgamma(j + 1) + math.lgamma(n - j + 1) for j in i])
    return float(np.exp(choose + i * math.log(p) + (n - i) * math.log1p(-p)).sum())


def _bisect(rising: Callable[[float], float], low: float = 0.0, high: float = 1.0) -> float:
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2
