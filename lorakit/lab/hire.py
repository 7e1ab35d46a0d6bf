"""练习册里的租卡表：每种卡用哪个预设、几小时、几元；照数据表推算，写成范围。"""

from collections.abc import Mapping, Sequence

from lorakit.inert import in_html
from lorakit.lab.display import publish, table
from lorakit.machine import cards as known
from lorakit.machine import rent


def cards(
    base: str, prices: Mapping[str, float], steps: int = 0, names: Sequence[str] = ()
) -> None:
    """摆出一张表。

    Args:
        base: 底模的随便哪个预设，例如 "flux-dev"。
        prices: 卡的名字 -> 一小时多少元，照租卡页上的写。
        steps: 练几步；0 是预设写的。
        names: 只看这几种卡；不写就是 prices 里的。
    """
    some = [known.find(name) for name in names or prices]
    rows = [("<b>显卡</b>", "<b>预设</b>", "<b>一步几秒</b>", "<b>几小时</b>", "<b>几元</b>")]
    lines = []
    for plan in rent.plans(base, some, prices, steps):
        head = f"{plan.card.name}（{plan.card.memory:g} GB）"
        if plan.preset is None:
            cells = [head, "放不下", "", "", ""]
        else:
            money = "" if plan.yuan is None else known.told(*plan.yuan)
            cells = [head, plan.preset, known.told(*plan.step), known.told(*plan.hours), money]
        rows.append(tuple(map(in_html, cells)))
        lines.append("  ".join(cell for cell in cells if cell))
    tail = f"{rent.HINT}。钱只算训练这一段，按你写的价。"
    publish({"text/html": f"{table(rows)}<p><small>{in_html(tail)}</small></p>",
             "text/plain": "\n".join([*lines, tail])})  # fmt: skip
