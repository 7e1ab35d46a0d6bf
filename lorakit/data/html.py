"""体检报告写成一个网页：问题按轻重排，每张图带缩略图、描述和裁切框；断网也能打开。

教程：notebooks/02_dataset.ipynb
"""

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lorakit.config.groups import Data
from lorakit.data.captions import stay_inside
from lorakit.data.crops import bucket_for, buckets, crop_box
from lorakit.data.folder import key_of, walk
from lorakit.data.limits import MULTIPLE, PAIRED
from lorakit.data.read import in_threads, read_image
from lorakit.data.record import Record
from lorakit.data.report import SEVERITIES, Fault, Problem, Report, relative
from lorakit.errors import DataError
from lorakit.files import user_path, write_whole
from lorakit.inert import in_html

SIDE = 160  # 缩略图的长边，像素
SHOWN = 400  # 描述最多写这么多个字：有人会放进一整个日志
MEANING = {
    "error": "不改就不能训练",
    "warning": "能训练，但多半会影响效果",
    "note": "已经自动处理好，只是告诉你",
}
# 只许用写在页里的图和样式：描述里就算混进了脚本或网址，也不会运行、不会联网
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body{font:15px/1.7 system-ui,"PingFang SC","Microsoft YaHei",sans-serif;margin:0 auto;
max-width:1100px;padding:1em;color:#222;background:#fafafa}
h1{font-size:1.4em;word-break:break-all}h2{font-size:1.15em;border-left:.4em solid;
padding-left:.5em}
.error{color:#b3261e}.warning{color:#8a5a00}.note{color:#3a5a80}
li{margin:.3em 0;color:#222;overflow-wrap:anywhere}.mend{color:#555}
.all{display:grid;grid-template-columns:repeat(auto-fill,minmax(190px,1fr));gap:1em}
figure{margin:0;padding:.7em;background:#fff;border:1px solid #ddd;border-radius:6px;
content-visibility:auto;contain-intrinsic-size:190px 300px;overflow-wrap:anywhere}
figure:target{outline:3px solid #3a5a80}
.frame{position:relative;display:inline-block;line-height:0}
.frame i{position:absolute;box-sizing:border-box;border:2px solid #e00;
box-shadow:0 0 0 1px #fff8 inset}
.none{display:inline-block;width:120px;padding:2em 1em;background:#eee;text-align:center}
figcaption{font-size:.85em}figcaption p{margin:.3em 0}.size{color:#777}
"""


def write(
    target: str | Path, records: Sequence[Record], report: Report, resolution: int | None = None
) -> Path:
    """把体检报告写成 target 这一个网页文件，不用任何外部资源。

    Args:
        resolution: 裁切框按这个训练分辨率画；None 用配置里 data.resolution 的默认值。

    Raises:
        DataError: 名字不是 .html 结尾；分辨率不是 16 的倍数，或太小。
        LorakitError: 写不进。
    """
    target = user_path(target)
    if target.suffix.lower() not in (".html", ".htm"):  # 写错成一张图的名字，会把它盖掉
        raise DataError(f"--html 后面要写 .html 结尾的文件名，得到 {target}；例如 report.html。")
    resolution = Data().resolution if resolution is None else resolution
    buckets(resolution, MULTIPLE)  # 不是它的倍数，在写之前就说
    page = _page(records, report, resolution)
    # 文件名可能不是合格的 UTF-8（Linux 允许）；写成 \\udcff 的样子，不让整页写不成
    content = page.encode("utf-8", "backslashreplace")
    return write_whole(target, lambda path: path.write_bytes(content))


def _page(records: Sequence[Record], report: Report, resolution: int) -> str:
    known = {record.path: record for record in records}
    controls = {path for record in records for path in record.controls}  # 画在目标图的左边
    pictures_here = walk(report.folder).pictures  # 不能用的图也要看得到
    paths = [path for path in pictures_here if path not in controls]
    anchors = {path: f"p{i}" for i, path in enumerate(paths)}
    pictures, about = defaultdict(list), defaultdict(list)
    for path in paths:
        pictures[key_of(path)].append(path)
    for problem in report.problems:
        if problem.path in anchors:
            about[problem.path].append(problem)
        elif problem.path:  # 描述的问题写在它的图下面
            for path in pictures.get(key_of(problem.path), []):
                about[path].append(problem)

    grid = (resolution, PAIRED if controls else MULTIPLE)

    def figure(path: Path) -> str:
        return _figure(path, known.get(path), about[path], anchors[path], report.folder, grid)

    figures = in_threads(figure, paths)
    total, _, _ = report.text(()).partition("\n")
    title = f"数据体检：{in_html(str(report.folder))}"
    return f"""<!DOCTYPE html>
<html lang="zh-CN"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
<p>{in_html(total)}</p>
{"".join(_group(report, severity, anchors) for severity in SEVERITIES)}
<h2>图片（{len(paths)}）</h2>
<p>红框是训练时看得见的部分：按训练分辨率 {resolution} 选最接近的宽高比，从中间裁。</p>
<div class="all">
{"".join(figures)}</div>
</body></html>
"""


def _group(report: Report, severity: str, anchors: dict[Path, str]) -> str:
    chosen = report.of(severity)
    if not chosen:
        return ""
    head = f"{SEVERITIES[severity]}（{len(chosen)}）：{MEANING[severity]}"
    items = []
    for problem in chosen:
        where = in_html(relative(problem.path, report.folder)) if problem.path else ""
        if problem.path in anchors:
            where = f'<a href="#{anchors[problem.path]}">{where}</a>'
        colon, mend = "：" if where else "", in_html(problem.mend)
        mend = f' <span class="mend">怎么改：{mend}。</span>' if mend else ""
        items.append(f"<li>{where}{colon}{in_html(problem.reason)}。{mend}</li>\n")
    return f'<h2 class="{severity}">{head}</h2>\n<ul>\n{"".join(items)}</ul>\n'


def _figure(
    path: Path,
    record: Record | None,
    problems: Sequence[Problem],
    anchor: str,
    folder: Path,
    grid: tuple[int, int],
) -> str:
    """一张图：缩略图与裁切框、名字、尺寸、描述、它的问题。"""
    lines = [f"<p><b>{in_html(relative(path, folder))}</b></p>"]
    try:
        stay_inside(path, folder)
        picture = read_image(path)
    except Fault:  # 原因在 problems 里
        frame = '<span class="none">没有用到</span>'
    else:
        size = bucket_for(picture.size, *grid)
        frame = _thumbnail(picture, size)
        shapes = "{}x{}，训练时 {}x{}".format(*picture.size, *size)
        lines.append(f'<p class="size">{shapes}</p>')
    if record:
        said, count = record.caption[:SHOWN], len(record.caption)
        more = f"……（共 {count} 个字）" if count > SHOWN else ""
        lines.append(f"<p>{in_html(said)}{more}</p>")
        for control in reversed(record.controls):
            before = read_image(control)
            frame = f"{_thumbnail(before, bucket_for(before.size, *grid))} → {frame}"
    lines += [f'<p class="{p.severity}">{in_html(p.reason)}</p>' for p in problems]
    return f'<figure id="{anchor}">{frame}<figcaption>{"".join(lines)}</figcaption></figure>\n'


def _thumbnail(picture: Image.Image, size: tuple[int, int]) -> str:
    """缩略图和红框；框用百分比写，页面怎么缩放都对得上。"""
    width, height = picture.size
    box = crop_box(picture.size, size)
    left, top = 100 * box[0] / width, 100 * box[1] / height
    wide, high = 100 * (box[2] - box[0]) / width, 100 * (box[3] - box[1]) / height
    scale = min(1.0, SIDE / max(width, height))  # 本来就小的不放大
    small = picture.resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX
    )
    file = io.BytesIO()
    small.save(file, "JPEG", quality=75)
    data = base64.b64encode(file.getvalue()).decode()
    place = f"left:{left:.2f}%;top:{top:.2f}%;width:{wide:.2f}%;height:{high:.2f}%"
    return (
        f'<span class="frame"><img alt="" width="{small.width}" height="{small.height}" '
        f'src="data:image/jpeg;base64,{data}">'
        f'<i style="{place}"></i></span>'
    )
