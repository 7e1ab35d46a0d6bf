"""一段文字是什么编码：文件头说的，没有文件头的 UTF-16，夹着几个零字节的。"""

import codecs


def marked_as(data: bytes) -> str | None:
    """文件头说的编码；UTF-32 的头两个字节与 UTF-16 的一样，先看。"""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    return "UTF-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else None


def stray_zeros(data: bytes) -> bool:
    """普通的中英文（UTF-8）里夹着几个零字节；UTF-16 的英文一半是零，中文照 UTF-8 读不成中文。"""
    if not 0 < data.count(b"\0") * 4 < len(data):
        return False
    try:
        text = data.decode("utf-8-sig").replace("\0", "")
    except UnicodeDecodeError:
        return False
    return all(
        char.isascii() or "\u3000" <= char <= "\u9fff" or "\uff00" <= char <= "\uffef"
        for char in text
    )
