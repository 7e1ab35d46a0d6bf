"""毕业：把前测、后测、练习和考官的分数放在一张成绩单上，评一个等级。"""

from collections.abc import Mapping
from importlib import import_module

from lorakit.inert import in_html
from lorakit.lab import quiz
from lorakit.lab.display import publish, table
from lorakit.lab.exercises.judge import BOOKS, all_exercises, passed
from lorakit.results.evidence import Share

GRADES = ((0.9, "优"), (0.75, "良"), (0.6, "及格"), (0.0, "再来一遍"))
UNDONE = "还没有答"


def grade(shares: list[float]) -> str:
    """各项（0 到 1）的平均 -> 等级。"""
    mean = sum(shares) / len(shares)
    return next(name for least, name in GRADES if mean >= least)


def report_card(marks: Mapping[str, float]):
    """成绩单：marks 是你的 LoRA 的考官分 {名字: 0 到 1}；没有做的项目算 0 分。"""
    before, after, gained = quiz.score("pre"), quiz.score("post"), quiz.gain()
    known = all_exercises()
    done = len(set(passed()) & known.keys())
    level = overall(marks)
    rows = {
        "前测": _percent(before),
        "后测": _percent(after),
        "归一化的进步": "前测已经满分" if before == 1 else _percent(gained),
        "练习": f"{done} / {len(known)} 道",
        **{f"考官：{name}": told(share) for name, share in marks.items()},
        "等级": level or "答完后测才评",
    }
    todo = ["后测"] * (after is None) + [f"练习（{_left()}）"] * (done < len(known))
    tail = f"还差：{'、'.join(todo)}。补上再运行这一格。" if todo else "都做完了，祝贺毕业。"
    lines = [f"{name}：{value}" for name, value in rows.items()]
    marked = table((in_html(name), f"<b>{in_html(value)}</b>") for name, value in rows.items())
    page = f"{marked}<p>{tail}</p>"
    publish({"text/html": page, "text/plain": "\n".join([*lines, tail])})


def overall(marks: Mapping[str, float]) -> str:
    """后测、练习、考官分三样的平均 -> 等级；后测还没有答是空的。"""
    after, known = quiz.score("post"), all_exercises()
    if after is None:
        return ""
    done = len(set(passed()) & known.keys()) / len(known)
    return grade([after, done, sum(marks.values()) / len(marks)])


def still_open() -> dict[str, list[str]]:
    """还没通过的练习：{"01": 名字, ...}；名字就是 lab.check. 后面的那个。"""
    done, missing = set(passed()), {}
    for book in BOOKS:
        exercises = import_module(f"lorakit.lab.exercises.{book}").EXERCISES
        if names := [one.name for one in exercises if one.name not in done]:
            missing[book[-2:]] = names
    return missing


def _left() -> str:
    """还没通过的练习，按本数：01 差 2 道，03 差 1 道。"""
    return "，".join(f"{book} 差 {len(names)} 道" for book, names in still_open().items())


def told(mark: float) -> str:
    """考官的一项分：数得出几张的，写成“9/12（43–95%）”；只有一个数的，写百分数。"""
    return str(mark) if isinstance(mark, Share) else f"{mark:.0%}"


def _percent(share: float | None) -> str:
    return UNDONE if share is None else f"{share:.0%}"
