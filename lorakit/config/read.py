"""读设置的文字：YAML（认得出常见的写错）与 `--set a.b=c`。"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from lorakit.config.explain import is_group, kinds_of, names_inside, quoted, unknown
from lorakit.errors import ConfigError
from lorakit.files import Unreadable, decoded, read_small

LARGEST = 1 << 20  # 设置文件最多这么多字
DEEPEST, MOST = 50, 20_000  # 最多套几层、展开以后最多几项


class _Checked(yaml.SafeLoader):
    """值造不出来（!!int abc）时，PyYAML 抛的是各种 Python 的错：都算 YAML 的错。"""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            mark = node.start_mark
            raise yaml.constructor.ConstructorError(None, None, "bad value", mark) from error


class _Loader(_Checked):
    """只认 null 的 YAML：1e-4、no、007 都先留作文字，由设置的类型决定怎么读，就不会读错。"""

    yaml_implicit_resolvers = {  # noqa: RUF012  PyYAML 规定写成类属性
        first: [rule for rule in rules if rule[0].endswith((":null", ":merge"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        """重复的名字，PyYAML 会悄悄用后一个；这里记下来报告。"""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if str(key.value) in lines:
                first = lines[str(key.value)]
                where = f"第 {first} 行" + (f"和第 {line} 行" if line != first else "")
                self.repeated.append(f"{key.value}：{where}写了两次，请只留一个。")
            lines.setdefault(str(key.value), line)
        return super().construct_mapping(node, deep)


def _parse(text: str, repeated: list[str]) -> Any:
    """设置的 YAML 文本 -> 内容，都是文字；重复的名字记进 repeated，出错见 `bounded`。"""

    def make(text: str) -> _Loader:
        loader = _Loader(text)
        loader.repeated = repeated
        return loader

    return bounded(text, make)


def bounded(text: str, make: Callable[[str], yaml.SafeLoader] = _Checked) -> Any:
    """YAML 文本 -> 内容；别人的也可以，时间和内存都有限。

    Raises:
        yaml.YAMLError: 语法不对、值造不出来、套得太深、引用套着引用胀得太大。
    """
    if len(text) > LARGEST:
        raise yaml.YAMLError("too large")
    loader = None
    try:
        loader = make(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_bomb(node)
        return loader.construct_document(node)
    except (ValueError, OverflowError) as error:  # 双引号里的 \UFFFFFFFF 没有这个字
        if isinstance(error, yaml.YAMLError):
            raise
        mark = loader.get_mark() if loader else None
        raise yaml.scanner.ScannerError(None, None, "unknown escape character", mark) from error
    except RecursionError as error:
        raise yaml.YAMLError("too deep") from error
    finally:
        if loader:
            loader.dispose()


def _refuse_bomb(top: Any):
    """一层层数展开以后有多少项：&a [*b, *b] 套上几十层，几行字就胀满内存。"""
    level, count = [top], 0
    for _ in range(DEEPEST):
        below = []
        for node in level:
            pairs = isinstance(node, yaml.MappingNode)
            inner = [one for pair in node.value for one in pair] if pairs else node.value
            below += inner if isinstance(inner, list) else []
            count += 1
            if count > MOST or len(below) > MOST:
                raise yaml.YAMLError("too large")
        if not below:
            return
        level = below
    raise yaml.YAMLError("too deep")


def wide_colons(text: str, known: Iterable[str] = ()) -> list[str]:
    """写成中文冒号的行，各一句：第几行、写了什么。

    Args:
        known: 认得的设置名；不给就凡是英文名字后面跟着中文冒号的都算。
    """
    words = {part for name in known for part in name.split(".")}
    said = []
    for number, line in enumerate(text.split("\n"), 1):
        hit = re.match(r"\s*(?:- *)?([A-Za-z_][\w.]*)\s*：", line)
        if hit and (not words or hit[1] in words):
            shown = quoted(line.strip())
            mend = "“：”是中文的冒号，冒号要用英文的“:”，后面空一格"
            said.append(f"第 {number} 行写错了：得到 {shown}，{mend}。")
    return said


def parse_file(path: Path, problems: list[str], known: Iterable[str] = ()) -> dict:
    """读一个 YAML 文件；读不了就说原因和改法。"""
    text = ""
    try:
        text = decoded(read_small(path, 4 * LARGEST))
        tree = _parse(text, problems)
    except UnicodeDecodeError:
        why = "认不出编码：请用编辑器打开，另存为 UTF-8 编码（记事本：另存为，编码选 UTF-8）。"
    except Unreadable as error:
        why = f"{error}：请检查这个文件和它的读取权限。"
    except yaml.YAMLError as error:
        why = "".join(wide_colons(text)) or syntax(error, text)
    else:
        if isinstance(tree, dict):
            problems += wide_colons(text, known) if known else []
            return tree
        mend = (
            "最外层要写成“名字: 值”，例如先写 train:，下一行缩进写 lr: 1e-4（英文冒号，后面空一格）"
        )
        why = f"的内容不对：得到 {quoted(tree)}，{mend}。"
        if isinstance(tree, str) and (wide := wide_colons(text)):
            why = "".join(wide)
        if tree is None:
            why = "是空的：可以运行 lorakit init qwen-image 得到一份带说明的，或者直接用预设名。"
    raise ConfigError(f"设置文件 {path} {why}")


_SYNTAX = {  # PyYAML 的说法 -> 怎么改；从上往下找第一个对得上的
    "\\t": "缩进不能用 Tab 键，请换成空格",
    "mapping values": "这一行多了冒号或缩进没对齐，含冒号的文字要用引号括起来",
    "expected ':'": "少了冒号，或冒号后面少了空格，要写成“名字: 值”",
    "expected ',' or": "括号没有配对，或少了逗号",
    "bad value": "!! 后面写的类型和值对不上，去掉 !! 那一段就好",
    "too deep": "括号或缩进套的层数太多，设置最多三四层",
    "too large": "内容太多，不像一份设置（引用 *名字 套着引用也会这样）",
    "escape": "双引号里的反斜杠有别的意思：Windows 的路径改用单引号，或把 \\ 换成 /",
    "quoted scalar": "引号没有配对",
    "block": "缩进没有对齐，同一组的名字要从同一列开始",
    "single document": "有多余的 ---，一个文件只能写一份设置",
    "special characters": "有看不见的控制字符，请删掉重打这一行",
}


def syntax(error: Exception, text: str) -> str:
    """YAML 的语法错误 -> 第几行、写了什么、怎么改。"""
    said, mark = str(error), getattr(error, "problem_mark", None)
    if "scanning" in said or "flow" in said:  # 这两类，报的是读不下去的地方，开头才是写错的地方
        mark = getattr(error, "context_mark", None) or mark
    line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
    lines = [*text.split("\n"), ""]
    if "mapping values" in said and re.match(r"\s*\w+[:：]\S", lines[line - 1]):
        line -= 1  # 上一行的冒号没被认出来，到这一行才读不下去
    shown = lines[line].strip()
    hint = next((mend for sign, mend in _SYNTAX.items() if sign in said), "请检查标点和缩进")
    if re.match(r"\w+\s*：|\w+:\S", shown):
        hint = "冒号要用英文的“:”，后面空一格"
    return f"第 {line + 1} 行写错了：得到 {quoted(shown)}，{hint}。"


def override(tree: dict, text: str, known: dict[str, Any], problems: list[str]) -> None:
    """把一条 "名字=值" 写进 tree；名字不对就记一个问题。"""
    name, equals, raw = (part.strip() for part in str(text).partition("="))
    if not equals:
        problems.append(f"“{text}”：少了等号，要写成 名字=值，例如 train.lr=1e-4。")
    elif name not in known:
        problems.append(unknown(name, known))
    elif is_group(known[name].type):
        problems.append(
            f"{name}：这是一组设置，不能直接给值，要写到具体的一项。{names_inside(name, known)}"
        )
    else:
        kinds = dict(kinds_of(known[name].type))
        # 文字和路径原样收下：里面的冒号、井号、方括号都不当 YAML
        plain = (str in kinds and list not in kinds) or Path in kinds
        if list in kinds and raw.startswith("["):
            plain = False
        if raw[:1] in ("'", '"') or (raw in ("null", "~") and type(None) in kinds):
            plain = False
        try:
            value = raw if plain else _parse(raw, problems)
        except yaml.YAMLError:
            value = raw
        *groups, leaf = name.split(".")
        for group in groups:  # 逐层复制，不改调用者的字典；组本身写错了就留给检查去报
            inner = {} if tree.get(group) is None else tree[group]
            if not isinstance(inner, (dict, BaseModel)):
                return
            tree[group] = dict(inner)
            tree = tree[group]
        tree[leaf] = value
