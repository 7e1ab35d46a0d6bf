"""擂台的名次：写好的格子 -> 每道课题一张表，照原样的与学习率调过的各一行，带区间，与自己的比。"""

from collections import defaultdict
from collections.abc import Sequence

from lorakit.judge import arena
from lorakit.judge.recipes import OURS, TASKS
from lorakit.results.evidence import Share, claim

ENOUGH = 0.9  # 学会与没忘都到这么多，才算练成
PARTS = ("learned", "kept")


def table(rows: Sequence[dict], tasks: Sequence[str]) -> list[dict]:
    """每道课题、每份配方、每个学习率一行；种子合在一起，`ahead`、`behind` 是与自己最好的一行比。"""
    groups: dict[tuple, dict[int, dict]] = defaultdict(dict)
    for row in rows:
        groups[row["task"], row["recipe"], row["lr"]][row["seed"]] = row
    made = []
    for (task, recipe, lr), seeds in groups.items():
        if task in tasks:
            made.append({"task": task, "recipe": recipe, "lr": lr, **_pooled(seeds)})
    made.sort(key=lambda one: (tasks.index(one["task"]), -sum(one[part][0] / one[part][1]
                                                              for part in PARTS)))  # fmt: skip
    for task in tasks:
        mine = [one for one in made if one["task"] == task and one["recipe"] == OURS]
        if mine:
            ours = groups[task, OURS, mine[0]["lr"]]
            for one in (one for one in made if one["task"] == task and one["lr"]):
                one |= _against(ours, groups[task, one["recipe"], one["lr"]])
    return made


def _last(row: dict) -> dict:
    return row["looks"][max(row["looks"], key=int)]


def _pooled(seeds: dict[int, dict]) -> dict:
    """几个种子合在一起：练完时的两个比例与区间、练成要几步、几秒、留出集的损失。"""
    rows, made = list(seeds.values()), {"seeds": len(seeds)}
    for part in PARTS:
        share = _share(rows, max(rows[0]["looks"], key=int), part)
        made[part] = [share.k, share.n, *share.interval]
    steps = sorted(set.intersection(*(set(map(int, row["looks"])) for row in rows)))
    able = [s for s in steps if min(_share(rows, str(s), part) for part in PARTS) >= ENOUGH]
    ends = [row["held"][max(row["held"], key=int)] for row in rows if row["held"]]
    return made | {
        "enough_at": able[0] if able and able[0] else None,
        "seconds": sum(row["seconds"] for row in rows) / len(rows),
        "held": sum(ends) / len(ends) if ends else None,
        "device": rows[0]["device"],
    }


def _share(rows: Sequence[dict], step: str, part: str) -> Share:
    found = [row["looks"].get(step, _last(row))[part] for row in rows]
    return Share(sum(k for k, _ in found), sum(n for _, n in found))


def _against(ours: dict[int, dict], other: dict[int, dict]) -> dict[str, list[str]]:
    """这一行哪几样确实比自己的好（ahead）、确实不如（behind）：要两个种子以上、区间不含 0。"""
    found: dict[str, list[str]] = {"ahead": [], "behind": []}
    for part in PARTS:
        a, b = ({s: Share(*_last(row)[part]) for s, row in one.items()} for one in (other, ours))
        said = claim(a, b)
        if said.holds:
            found["ahead" if said.difference > 0 else "behind"].append(part)
    return found


def text(made: Sequence[dict]) -> str:
    """中文的表；一格也没有就说怎么跑。"""
    if not made:
        return "还没有跑过一格。先跑：lorakit bench --recipes --lesson pixel --minutes 30。"
    words, lines, task = {"learned": "学会", "kept": "没忘"}, [], ""
    for one in made:
        if one["task"] != task:
            task = one["task"]
            lines += ["", f"{task}（学会、没忘：几张里对了几张，95% 区间；每行的种子数在后面）"]
        said = "，".join(f"{words[part]} {Share(*one[part][:2])}" for part in PARTS)
        if one["recipe"] in arena.CEILING:
            lines.append(f"  上限 {one['recipe']:<14} {said}")
            continue
        when = f"{one['enough_at']} 步练成" if one["enough_at"] else f"没到 {ENOUGH:.0%}"
        held = f"，留出集 {one['held']:.3f}" if one["held"] is not None else ""
        said += f"，{when}{held}，{one['seconds']:.0f} 秒，{one['seeds']} 个种子"
        for key, word in (("ahead", "确实更好"), ("behind", "确实不如")):
            if one.get(key):
                said += f"，{'、'.join(words[part] for part in one[key])}{word}"
        lines.append(f"  {one['recipe']:<14} {one['lr']:<8g} {said}")
    return "\n".join(lines[1:])


def draw(axes, made: Sequence[dict]):
    """两张横条图，左边学会、右边没忘：每道课题、每份配方（成绩最好的学习率）一条，黑线是 95% 区间。

    Args:
        axes: 两个 matplotlib 坐标轴；中文由调用者设好。
        made: `table` 给的。
    """
    best: dict[tuple[str, str], dict] = {}
    for one in made:
        if one["lr"]:
            best.setdefault((one["task"], one["recipe"]), one)
    tasks, names = (list(dict.fromkeys(key[i] for key in best)) for i in (0, 1))
    tall = 0.8 / max(1, len(names))
    for axis, part, title in zip(axes, PARTS, ("学会", "没忘"), strict=True):
        for k, name in enumerate(sorted(names)):
            found = [(i, best[task, name][part]) for i, task in enumerate(tasks)
                     if (task, name) in best]  # fmt: skip
            rows = [(right / n, low, high) for _, (right, n, low, high) in found]
            share = [x for x, _, _ in rows]
            ends = [[max(0, x - low) for x, low, _ in rows], [max(0, up - x) for x, _, up in rows]]
            places = [i + (k - (len(names) - 1) / 2) * tall for i, _ in found]
            axis.barh(places, share, tall, xerr=ends, label=name, error_kw={"lw": 0.8})
        axis.set(title=title, xlim=(0, 1), yticks=range(len(tasks)))
        axis.margins(y=0.01)
        axis.set_yticklabels([TASKS[task].title for task in tasks])
        axis.invert_yaxis()
        axis.xaxis.set_major_formatter("{x:.0%}")
    axes[1].set_yticklabels([])
    axes[1].legend(loc="best", fontsize=8)
