"""描述表里的一行行：JSON 与 CSV 各怎么解开，解不开的说出哪里不对。"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from lorakit.data.read import IMAGE_SUFFIXES
from lorakit.data.report import Fault
from lorakit.files import Unreadable, parse_json


def json_value(text: str) -> str | list:
    """解开一段 JSON：[值]；解不开就返回原因。"""
    try:
        return [parse_json(text, (object, bool), finite=False)]
    except Unreadable as error:
        return str(error)


def jsonl(text: str) -> Iterator[tuple[int, dict | str, str]]:
    """逐行 (行号, 内容或哪里不对, 改法)；空行跳过。"""
    mend = '一行写一个 {"file_name": "01.png", "text": "一只猫"}，引号用英文的，行尾不加逗号'
    # 不用 splitlines：它会在描述里的 \u2028 处也断开
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        value = json_value(line)
        if isinstance(value, str):
            yield number, f"不是合格的 JSON（{value}）", mend
        elif not isinstance(value[0], dict):
            yield number, "不是用 {} 括起来的一项", mend
        else:
            yield number, value[0], ""


def repeated(header: Sequence[str]) -> str:
    """有名字的列里头一个重复的；没有就是空的。"""
    return next((name for name in header if name and header.count(name) > 1), "")


def csv_rows(text: str) -> Iterator[tuple[int, dict | str, str]]:
    """逐行 (行号, 内容或哪里不对, 改法)；第一行是列名，行号是这一项结束的那一行。"""
    reader = csv.reader(io.StringIO(text, newline=""))
    header: list[str] = []
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reason = f"读不懂（{error}）"
            yield reader.line_num, reason, "多半是少了一个双引号，用表格软件打开另存一次"
            return
        if cells is None:
            return
        if not header:
            header = [cell.strip() for cell in cells]
            if "file_name" not in header:
                reason = f"是列名，里面没有 file_name（得到：{'、'.join(header)}）"
                yield 1, reason, "第一行写 file_name,text，用英文逗号隔开"
                return
            if twice := repeated(header):
                yield 1, f"是列名，{twice} 写了两次", "留下对的那一列，另一列改个名字"
                return
        elif len(cells) > len(header):
            reason = f"有 {len(cells)} 格，比列名多（列名有 {len(header)} 个）"
            yield reader.line_num, reason, "描述里有英文逗号，就用英文双引号把整句括起来"
        elif any(cells):
            yield reader.line_num, dict(zip(header, cells, strict=False)), ""


def not_trained(path: Path, line: str, name: str) -> Fault:
    """一行说的文件在这里，却不是训练图：当作遮罩、控制图了，或读不了这种格式。"""
    reason, mend = "不是这里能读的图片格式", "另存为 png 或 jpg，把 file_name 也改过来"
    if name.strip().lower().endswith(IMAGE_SUFFIXES):
        reason = "没有当作训练图：它是遮罩、控制图，或在不看的文件夹里"
        mend = "要练它，就在这一行写上描述（控制图、不看的先挪出来）；不练就删掉这一行"
    return Fault("metadata_file", path, f"{line}的 {name} {reason}", mend)
