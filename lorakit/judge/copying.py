"""抄没抄：照训练图的描述画，离训练图是不是比同一句话换个种子还近；是不是和哪一张几乎一样。

对照不是“随便两张训练图差多少”（它们画的本来就不同），而是同一句描述、换种子的另一张；
几乎一样：离最近的训练图，不到那张图与别的训练图的距离的三分之一。
"""

from collections.abc import Sequence

import numpy as np

from lorakit.judge.drawing import Question
from lorakit.judge.looking import Drawn, Eye, Paper, off
from lorakit.judge.taught import Taught
from lorakit.results.evidence import Share
from lorakit.results.verdict import GREEN, NAMES, RED, YELLOW, Light

NAME = "copy"  # 这一组题的名字
MARGIN = 0.75  # 近到另一张的这么多以内，才算比它近：刚好一样近是本来就会的
TWIN = 1 / 3
LEAST = 0.5  # 多半


def questions(about: Taught, most: int) -> list[Question]:
    """训练描述里均匀地挑 most 句；编辑的不问：照训练的控制图改成训练图，本来就对。"""
    if about.train[0].controls:
        return []
    chosen = about.train[:: -(-len(about.train) // most)]
    return [Question(one.caption, one.size) for one in chosen]


def light(eye: Eye, about: Taught, paper: Paper, drawn: Drawn) -> Light:
    """抄没抄的灯：绿是没有；黄是照训练描述画的多半比换种子还近；红是多半和训练图几乎一样。

    练过的图不全了就是灭的：抄的也许正是少了的那张。
    """
    if about.moved:
        return off(NAMES[2], f"{about.moved}，抄的是不是它们，看不出")
    known = eye.features([one.image for one in about.train])
    if len(known) < 2:
        return off(NAMES[2], "只有一张训练图，没有别的图作对照")
    gaps = _gaps(known)
    facts, color = {"training": len(known)}, GREEN
    fresh = Share.of(_twins(eye, drawn["asked"], known, gaps))
    facts["asked_twins"] = _count(fresh)
    said = f"没练过的题，几乎就是训练图的 {fresh}"
    if NAME in paper:
        twins = Share.of(_twins(eye, drawn[NAME], known, gaps))
        near, far = _distances(eye, about, paper[NAME], drawn[NAME], known)
        closer = Share.of([n < MARGIN * f for n, f in zip(near, far, strict=True)])
        facts |= {"twins": _count(twins), "closer": _count(closer)}
        facts |= {"to_training": float(np.mean(near)), "to_other_seed": float(np.mean(far))}
        said = (
            f"照训练描述画的，比换个种子离训练图更近的 {closer}，几乎就是训练图的 {twins}；{said}"
        )
        if twins.interval[0] > LEAST:
            color = RED
        elif closer > LEAST or twins > LEAST:
            color = YELLOW
    if fresh > LEAST / 2:
        color = RED
    return Light(NAMES[2], color, f"{said}。", facts)


def _twins(eye: Eye, turns, known: np.ndarray, gaps: np.ndarray) -> list[bool]:
    """每张画的图，和最近的训练图是不是几乎一样。"""
    hits = []
    for images in turns:
        apart = _apart(eye.features(images), known)
        nearest = apart.argmin(1)
        hits += list(apart.min(1) < TWIN * gaps[nearest])
    return hits


def _distances(eye: Eye, about: Taught, asked: Sequence[Question], turns, known: np.ndarray):
    """每张画的图：离最近的训练图多远，同一句话换种子的另一张离那张训练图多远。"""
    seen = [eye.features(images) for images in turns]
    again = eye.again(about, asked)  # 眼睛自己会画的：[题][另一张]
    near, far = [], []
    for i in range(len(asked)):
        others = eye.features(again[i]) if again else None
        for turn, rows in enumerate(seen):
            apart = _apart(rows[i : i + 1], known)[0]
            near.append(float(apart.min()))
            nearest = known[[int(apart.argmin())]]
            if others is None:
                rest = np.stack([one[i] for t, one in enumerate(seen) if t != turn])
                far.append(float(_apart(rest, rows[i : i + 1]).mean()))
            else:
                far.append(float(_apart(others, nearest).mean()))
    return near, far


def _gaps(known: np.ndarray) -> np.ndarray:
    """每张训练图离最近的另一张训练图多远；一个样的（重复的图）不算另一张。"""
    apart = _apart(known, known)
    usual = float(np.median(apart[~np.eye(len(known), dtype=bool)]))
    apart[apart < usual / 10] = np.inf
    gaps = apart.min(1)
    return np.where(np.isfinite(gaps), gaps, usual)


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """两组特征 (N, 宽)、(M, 宽) 的距离 (N, M)。"""
    return np.linalg.norm(one[:, None] - other[None], axis=2)


def _count(share: Share) -> list:
    return [share.k, share.n, *share.interval]
