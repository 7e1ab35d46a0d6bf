"""一格写得不合 Python 的写法：在英文的那几行下面，用一句中文说哪一行、多半是什么。"""

import re

# (英文的样子、中文)；{0}、{1} 是英文里括出来的几段
SENTENCES = (
    (r"'(.)' was never closed", "括号 {0} 没有配上另一半"),
    (r"incomplete input", "还没有写完：多半少了括号或引号的另一半"),
    (r"unmatched '(.)'", "多了一个 {0}，或者前面少了和它配对的一半"),
    (r"parenthesis '(.)' does not match opening parenthesis '(.)'",
     "括号配错了：前面开的是 {1}，后面关的却是 {0}"),
    (r"invalid (?:non-printable )?character '?(.*?)'? ?\(?U\+",
     "代码里有一个中文输入法的 {0}：标点、引号、括号都换成英文的（半角）"),
    (r"expected ':'", "少了一个冒号（英文的 :）"),
    (r"unterminated|EOL while|EOF while", "引号没有配上另一半"),
    (r"forgot a comma", "两样东西之间多半少了一个逗号（英文的 ,）"),
    (r"Maybe you meant '=='|cannot assign to", "等号用错了：比一比是不是相等写 ==，起名字写 ="),
    (r"expected an indented block", "冒号下面的一行要往里缩进，四个空格"),
    (r"unexpected indent", "这一行开头的空格多了"),
    (r"unindent does not match", "这一行开头的空格和上面的对不齐：同一段的每一行要一样多"),
    (r"inconsistent use of tabs", "缩进有的用空格，有的用 Tab：全换成空格"),
    (r"'return' outside function", "return 写到了函数外面：看看它前面的空格，要比 def 多四个"),
)  # fmt: skip


def tell(result):
    """一格运行完（IPython 的 post_run_cell）：读不懂的那一格，补一句中文。"""
    if isinstance(result.error_before_exec, SyntaxError):
        print(sentence(result.error_before_exec))


def sentence(error: SyntaxError) -> str:
    """第几行、多半是什么；认不出的，说去哪里找。"""
    said = "Python 读不懂 ^ 指着的地方：看看那里和上一行，括号、引号、冒号、逗号是不是都在"
    for pattern, chinese in SENTENCES:
        if found := re.search(pattern, error.msg):
            said = chinese.format(*found.groups())
            break
    return f"第 {error.lineno} 行：{said}。改好再运行这一格。"
