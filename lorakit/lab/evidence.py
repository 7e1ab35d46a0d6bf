"""练习册里的证据：几张里对了几张（带区间），两边的差别成不成立。"""

from lorakit.lab.display import publish
from lorakit.results import evidence
from lorakit.results.evidence import Claim, Share


def share(k: int, n: int) -> Share:
    """n 张里对了 k 张：写出来是“9/12（43–95%）”，95% 的 Clopper–Pearson 区间。"""
    return Share(k, n)


def claim(a, b, what: str = "") -> Claim:
    """两边真的不一样吗：差的 95% 区间不含 0、种子不止一个才算；印出这句话，返回 Claim。

    Args:
        a, b: {种子: 结果}，结果是 Share、一串对错，或一个、一串数。
        what: 比的是什么。
    """
    found = evidence.claim(a, b, what)
    publish({"text/plain": found.sentence})
    return found
