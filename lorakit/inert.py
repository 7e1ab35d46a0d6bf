"""别人的文字（文件名、描述、卡片、网站的话）放到人面前，只显示、不起作用：四种地方，各一个函数。"""

import re
from html import escape

# 控制符（换行与制表除外）、左右颠倒的、看不见的、夹带用的、半个字：会改写终端，或让人看错
_ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e007f]"
)
# 描述里的这些字，人读着没有，文本编码器却读得到：去掉；断行的控制符、连着表情的 \u200d 留下
UNSEEN = dict.fromkeys(
    [*range(9), *range(14, 28), 31, 127, 0xAD, 0x61C, 0x180E, 0x200B, 0x200E, 0x200F,
     *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFC),
     *range(0xE0000, 0xE0080)]
)  # fmt: skip
# 占着一格、画出来却是空的字：韩文与盲文的空格；分在“字母”“符号”里，不算空白
_EMPTY = dict.fromkeys(map(ord, "\u115f\u1160\u2800\u3164\uffa0\u200c\u200d\ufe0e\ufe0f\u034f"))
# Markdown 里放在哪都起作用的：代码、链接、图、HTML、表格、公式、实体、删除线、邮箱
_MARKS = re.compile(r"([\\`*\[\]<>|&$~@])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_OPENING = re.compile(r"^(\s*)([#+=-]|\d+(?=[.)]))")  # 在一行的开头才起作用：标题、列表、分隔线
_ADDRESS = re.compile(r"(?i)(:)(?=//)|(?<=www)(\.)")  # 光写着网址也会变成链接


def inert(text: object, line: bool = False) -> str:
    """终端、日志、纯文字：控制符写成看得见的 \\x1b；line 是只许占一行。"""
    shown = _ACTIVE.sub(lambda found: ascii(found[0])[1:-1], str(text))
    return shown.replace("\n", "\\n").replace("\t", "\\t") if line else shown


def in_html(text: object) -> str:
    """网页：标签、实体、引号都只是字。"""
    return escape(inert(text))


def in_markdown(text: object) -> str:
    """Markdown 的一行：链接、图、HTML、代码、公式、标题、列表都不起作用。"""
    shown = _MARKS.sub(r"\\\g<0>", inert(text, line=True))
    shown = _ADDRESS.sub(r"\\\g<0>", shown)
    return _OPENING.sub(lambda m: f"{m[1]}{m[2]}\\" if m[2].isdigit() else f"{m[1]}\\{m[2]}", shown)


def in_figure(text: object) -> str:
    """matplotlib 的图：$ 只是一个字，不会被当作公式；换行照旧。"""
    return inert(text).replace("$", r"\$")


def visible_line(text: str) -> bool:
    """是不是看得见的一行字：没有换行、控制符、看不见的字，也不全是空的。"""
    return inert(text, line=True) == text and bool(text.translate(_EMPTY).strip())
