"""照片的体检报告，摆给人看：先说能不能练，再一类一类说，同样的毛病并成一条。"""

from lorakit import data
from lorakit.data import fix
from lorakit.data.report import SEVERITIES, Report
from lorakit.inert import in_html
from lorakit.lab.bar import waiting
from lorakit.lab.display import publish

LOOKS = {"error": "#c4382c", "warning": "#b3730f", "note": "#6b7685"}
READY = "可以训练。"


def show(work):
    """体检 work 的照片，把报告摆出来。"""
    if work.sample:
        said = "样例的图都是好的，不用查。换成自己的照片：先运行 01 里的 lab.work()。"
        publish({"text/html": f"<p>{said}</p>", "text/plain": said})
        return
    publish(page(inspected(work)))


def inspected(work) -> Report:
    """体检一遍；十几张手机照片要看好几秒，所以摆一条进度条。"""
    with waiting("正在看照片"):
        return data.inspect(work.photos, work.trigger)[1]


def clean(work, undo: bool = False):
    """替 work 的照片改好能放心改的，或全改回去。"""
    if work.sample:
        said = "样例的图都是好的，不用改。"
    elif undo:
        said = fix.undo(work.photos)
    else:
        with waiting("正在改照片"):
            said = fix.fix(work.photos)
    publish({"text/html": f"<pre>{in_html(said)}</pre>", "text/plain": said})


def page(report: Report) -> dict:
    """一份报告 -> 网页与文字两种写法。"""
    head = verdict(report)
    lines, parts = [head], [f"<p><b>{in_html(head)}</b></p>"]
    for severity, name in SEVERITIES.items():
        said = report.gathered(report.of(severity))
        if said:
            lines += [f"{name}：", *(f"  · {line}" for line in said)]
            items = "".join(f"<li>{in_html(line)}</li>" for line in said)
            parts.append(f'<p style="color:{LOOKS[severity]}">{name}</p><ul>{items}</ul>')
    return {"text/html": "".join(parts), "text/plain": "\n".join(lines)}


def verdict(report: Report) -> str:
    """头一句：几张能练，能不能开始。"""
    if report.total == 0:
        return f"“{report.folder}”里还没有照片。"
    count = f"共 {report.total} 张照片，{report.usable} 张能练"
    wrong = len(report.errors)
    return f"{count}。{READY}" if not wrong else f"{count}；先改好 {wrong} 处错误，才能训练："
