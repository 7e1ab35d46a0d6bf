"""哪些文件可以放心地替用户改、改成什么样；只算出来，不动文件（动文件的是 fix）。"""

import csv
import io
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lorakit.data.captions import CAPTION_KEYS
from lorakit.data.encoding import marked_as, stray_zeros
from lorakit.data.folder import Found, key_of
from lorakit.data.limits import MIN_SIDE
from lorakit.data.read import CJK, FORMATS, decode, one_line, read_bytes
from lorakit.data.report import Fault
from lorakit.data.rows import json_value
from lorakit.data.tables import read_foreign, tables_of
from lorakit.data.trigger import apply_trigger, has_trigger, looks_like
from lorakit.files import readings

PLAIN = ("RGB", "L", "1")  # 这几种颜色模式各处读出来都一样，不用换
WHY = {"rotated": "按 EXIF 转正", "cmyk": "从 CMYK 换成 RGB", "sixteen": "从 16 位换成 8 位"}
SAVE = {  # 后缀 -> (格式, 选项)；能无损就无损，JPEG 用看不出差别的质量
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".bmp": ("BMP", {}),
}


@dataclass(frozen=True)
class Change:
    """一个文件的修改：新内容（None 表示移走）和为什么。"""

    path: Path
    content: bytes | None
    why: str


def changes(found: Found, trigger: str, clear: bool = False) -> Iterator[Change]:
    """逐个给出可以放心做的修改；链接和没有权限的文件不碰，留给报告去说。

    Args:
        clear: 透明通道有用（当遮罩，或也教给模型），不去掉。
    """
    stems, moved = Counter(map(key_of, found.pictures)), set()
    # 别的工具的表不改；它说过的图，描述也不添字：一处添了一处没添，就成了两种写法
    ours, theirs = tables_of(found.others, found.tables)
    said = read_foreign(theirs, found.pictures, found.folder).said if trigger.strip() else {}
    told = set(map(key_of, said))
    for path in found.pictures:
        if path.is_symlink():
            continue
        change = _picture(path, clear, found.masks.get(key_of(path)))
        if change:
            yield change
        if change and change.content is None and stems[key_of(path)] == 1:
            moved.add(key_of(path))
            if key_of(path) in found.masks:
                yield Change(found.masks[key_of(path)], None, "移走：它说的那张图不能用")
    for key, paths in found.captions.items():
        for path in paths if key in stems else ():  # 没有图的 .txt 不一定是描述，不碰
            if key in moved:
                yield Change(path, None, "移走：它说的那张图不能用")
            elif not path.is_symlink():
                yield from _caption_file(path, "" if key in told else trigger)
    for path in found.tables:
        if not path.is_symlink():
            yield from _caption_file(path, trigger if path in ours and not told else "")


def _picture(path: Path, clear: bool, mask: Path | None) -> Change | None:
    try:
        picture, did = decode(path, read_bytes(path))
    except Fault as fault:
        unusable = fault.problem.code.startswith("picture_")  # 没有权限、断了的链接不算
        return Change(path, None, f"移走：{fault.problem.reason}") if unusable else None
    if min(picture.size) < MIN_SIDE:
        return Change(path, None, f"移走：太小，短边不到 {MIN_SIDE} 像素")
    if (clear and "alpha" in did) or (mask and "rotated" in did):
        return None  # 遮罩常照没有转正的样子画，跟着图一起转：图转了，它就对不上了
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 大小 decode 已经查过
        image = Image.open(path, formats=FORMATS)
    with image:
        mode = image.mode
    why = [WHY[name] for name in sorted(did) if name in WHY]
    if "alpha" in did:
        why.append("去掉透明，合成在白底上")
    elif mode not in PLAIN and not why:
        why = [f"从 {mode} 模式换成 RGB"]
    if not why or did & {"animation", "several", "hdr"}:  # 动图只用第一帧，重存会丢掉别的帧
        return None
    if path.suffix.lower() not in SAVE:  # HEIC、AVIF：这里读得对，重存一遍只会变差
        return None
    kind, options = SAVE[path.suffix.lower()]
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return Change(path, file.getvalue(), "，".join(why))


def _caption_file(path: Path, trigger: str) -> Iterator[Change]:
    """一个写着描述的文件：换成 UTF-8，需要时在前面写上触发词。"""
    try:
        data = read_bytes(path)
    except Fault:
        return
    text, encoding = _decode(data)
    if text is None:
        return
    why = [f"从 {encoding} 换成 UTF-8"] if encoding else []
    if trigger.strip():
        form = {".json": _json_file, ".jsonl": _jsonl_file, ".csv": _csv_file}
        longer = form.get(path.suffix.lower(), _with_trigger)(text, trigger.strip())
        if longer != text:
            text = longer
            why.append(f"在前面写上触发词“{trigger.strip()}”")
    if text.encode() != data:
        yield Change(path, text.encode(), "，".join(why))


def _decode(data: bytes) -> tuple[str | None, str]:
    """(文字, 要换掉的编码；本来就是 UTF-8 时是空的)；认不准的返回 None，宁可不动。"""
    try:
        if marked := marked_as(data):
            return data.decode(marked), marked
        if stray_zeros(data) and _bare_utf16(data) is None:  # 两种都读得通的不动
            return data.decode("utf-8-sig").replace("\0", ""), "夹着零字节的文字"
        if b"\0" in data:
            return None if stray_zeros(data) else _bare_utf16(data), "UTF-16"
        bom = data.startswith(b"\xef\xbb\xbf")
        return data.decode("utf-8-sig"), "带 BOM 的 UTF-8" if bom else ""
    except UnicodeDecodeError:
        found = {} if marked_as(data) or _was_utf8(data) else readings(data)
        (name, text), *more = found.items() or [("", None)]
        return (None, "") if more else (text, name)


def _bare_utf16(data: bytes) -> str | None:
    """没有文件头的 UTF-16：两种字节次序都试，取全是能显示的字、汉字和英文更多的那一种。"""

    def usual(text: str) -> int:
        return sum(char.isascii() or bool(CJK.match(char)) for char in text)

    texts = []
    for encoding in ("utf-16-le", "utf-16-be"):
        with suppress(UnicodeDecodeError):
            text = data.decode(encoding)
            if all(char.isprintable() or char in "\r\n\t" for char in text):
                texts.append(text)
    best = max(texts, key=usual, default="")
    return best if usual(best) * 2 > len(best) else None


def _was_utf8(data: bytes) -> bool:
    """原来是 UTF-8，只坏了几个字节：这样的字节常常也能按 GBK 解开，换了反而全成乱码。"""
    chinese = CJK.findall(data.decode("utf-8", "ignore"))
    return 3 * len(chinese) * 2 > sum(byte > 127 for byte in data)


def _with_trigger(text: str, trigger: str) -> str:
    """描述前面加触发词，其余一个字不动；空的描述加了也没有意义。"""
    return apply_trigger(text.lstrip(), trigger) if _lacks(text, trigger) else text


def _lacks(text: object, trigger: str) -> bool:
    if not isinstance(text, str) or not one_line(text):
        return False
    # 写着全角字之类看着一样的：该改的是那个字，前面再加一个就重了，留给报告去说
    return not has_trigger(text, trigger) and not looks_like(text, trigger)


def _in_row(row: object, trigger: str) -> bool:
    """就地给一行的描述加触发词，返回有没有改。"""
    if not isinstance(row, dict):
        return False
    name = next((key for key in CAPTION_KEYS if row.get(key) is not None), None)
    if name is None or not _lacks(row[name], trigger):
        return False
    row[name] = _with_trigger(row[name], trigger)
    return True


def _json_file(text: str, trigger: str) -> str:
    value = json_value(text)
    if isinstance(value, str) or not _in_row(value[0], trigger):
        return text
    return json.dumps(value[0], ensure_ascii=False, indent=2 if "\n" in text.strip() else None)


def _jsonl_file(text: str, trigger: str) -> str:
    lines = text.split("\n")
    for i, line in enumerate(lines):
        value = json_value(line)
        if not isinstance(value, str) and _in_row(value[0], trigger):
            ending = "\r" if line.endswith("\r") else ""
            lines[i] = json.dumps(value[0], ensure_ascii=False) + ending
    return "\n".join(lines)


def _csv_file(text: str, trigger: str) -> str:
    try:
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error:
        return text
    header = [cell.strip() for cell in rows[0]] if rows else []
    changed = False
    for cells in rows[1:]:
        row = dict(zip(header, cells, strict=False))
        if len(cells) <= len(header) and _in_row(row, trigger):
            cells[:] = [row[name] for name in header[: len(cells)]]
            changed = True
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\r\n" if "\r\n" in text else "\n").writerows(rows)
    return file.getvalue() if changed else text
