"""设置的文字一面：读 YAML、读 `--set`、把 pydantic 的报错说成中文；不认识 Config。"""

import codecs
import difflib
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from lorakit.errors import ConfigError


def _parts(annotation: Any, limits: Sequence = ()) -> Iterator[tuple[Any, Sequence]]:
    """拆开类型：float | None -> (float, 限制), (NoneType, 限制)；Literal 的“限制”是可选的值。"""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _parts(args[0], args[1].metadata)
    elif origin in (Union, types.UnionType):
        for arg in args:
            yield from _parts(arg, limits)
    else:
        yield origin or annotation, args if origin is Literal else limits


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type(BaseModel))


class Field(NamedTuple):
    """一项设置的全部信息：表单、`--help` 和报错都从这里取。"""

    name: str
    type: Any
    default: Any
    sentence: str
    constraints: dict[str, Any]  # gt ge le multiple_of min_length choices

    @property
    def expects(self) -> str:
        """它要什么样的值，一句中文。"""
        words = {int: "整数", float: "数字", bool: "true 或 false", str: "文字", Path: "路径"}
        words |= {list: "列表（例如 [甲, 乙]）", type(None): "null"}
        choices = self.constraints.get("choices", ())
        words[Literal] = "、".join(choices) + " 之一" * (len(choices) > 1)
        said = {
            "gt": "大于 {}",
            "lt": "小于 {}",
            "ge": "不小于 {}",
            "le": "不超过 {}",
            "multiple_of": "是 {} 的倍数",
        }
        said |= {"min_length": "不能空着"}
        limits = [said[key].format(v) for key, v in self.constraints.items() if key in said]
        kinds = " 或 ".join(words[kind] for kind in dict(_parts(self.type)))
        return kinds + (f"（{'，'.join(limits)}）" if limits else "")


def _inline(value: Any) -> str:
    """一个值 -> 一行 YAML。"""
    value = str(value) if isinstance(value, Path) else value
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _show(value: Any) -> str:
    text = f"“{value}”" if isinstance(value, (str, Path)) else repr(value)
    return "空（没有写值）" if value is None else text if len(text) < 60 else text[:57] + "…"


class _Loader(yaml.SafeLoader):
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
            first = lines.setdefault(str(key.value), line)
            if first != line:
                self.repeated.append(
                    f"{key.value}：第 {first} 行和第 {line} 行写了两次，请只留一个。"
                )
        return super().construct_mapping(node, deep)


def _parse(text: str, repeated: list[str]) -> Any:
    """YAML 文本 -> 内容；重复的名字记进 repeated。"""
    loader = _Loader(text)
    loader.repeated = repeated
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def decoded(raw: bytes) -> str:
    """UTF-8；Windows 上 `lorakit init 预设 > my.yaml` 存成的 UTF-16 与 GBK 也认。"""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("gb18030")


def _parse_file(path: Path, problems: list[str]) -> dict:
    """读一个 YAML 文件；读不了就说原因和改法。"""
    text = ""
    try:
        text = decoded(path.read_bytes())
        tree = _parse(text, problems)
    except UnicodeDecodeError:
        why = "认不出编码：请用编辑器打开，另存为 UTF-8 编码（记事本：另存为，编码选 UTF-8）。"
    except OSError:
        why = "打不开：请检查这个文件的读取权限。"
    except (yaml.YAMLError, RecursionError) as error:
        why = syntax(error, text)
    else:
        if isinstance(tree, dict):
            return tree
        mend = (
            "最外层要写成“名字: 值”，例如先写 train:，下一行缩进写 lr: 1e-4（英文冒号，后面空一格）"
        )
        why = f"的内容不对：得到 {_show(tree)}，{mend}。"
        if tree is None:
            why = "是空的：可以运行 lorakit init qwen-image 得到一份带说明的，或者直接用预设名。"
    raise ConfigError(f"设置文件 {path} {why}")


_SYNTAX = {  # PyYAML 的说法 -> 怎么改；从上往下找第一个对得上的
    "\\t": "缩进不能用 Tab 键，请换成空格",
    "mapping values": "这一行多了冒号或缩进没对齐，含冒号的文字要用引号括起来",
    "expected ':'": "少了冒号，或冒号后面少了空格，要写成“名字: 值”",
    "expected ',' or": "括号没有配对，或少了逗号",
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
    return f"第 {line + 1} 行写错了：得到 {_show(shown)}，{hint}。"


def _override(tree: dict, text: str, known: dict[str, Any], problems: list[str]) -> None:
    """把一条 "名字=值" 写进 tree；名字不对就记一个问题。"""
    name, equals, raw = (part.strip() for part in str(text).partition("="))
    if not equals:
        problems.append(f"“{text}”：少了等号，要写成 名字=值，例如 train.lr=1e-4。")
    elif name not in known:
        problems.append(_unknown(name, known))
    elif _is_group(known[name].type):
        problems.append(
            f"{name}：这是一组设置，不能直接给值，要写到具体的一项。{_inside(name, known)}"
        )
    else:
        kinds = dict(_parts(known[name].type))
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


def _explain(error: ValidationError, known: dict[str, Any]) -> list[str]:
    """pydantic 的错误 -> 每项一行中文。"""
    lines: dict[str, str] = {}
    for item in error.errors(include_url=False):
        kind, loc, got = item["type"], item["loc"], item["input"]
        full = [".".join(map(str, loc[:n])) for n in range(1, len(loc) + 1)]
        name = max((name for name in full if name in known), key=len, default="")
        rest = [n for n in loc[name.count(".") + 1 :] if isinstance(n, int)]  # 列表里的第几个
        if kind in ("extra_forbidden", "invalid_key"):
            lines[full[-1]] = _unknown(full[-1], known, got)
        elif kind == "combination":
            lines[kind] = item["msg"]
        elif not name or _is_group(known[name].type):
            mend = "要在下面缩进写“名字: 值”（英文冒号，后面空一格）"
            lines[name] = f"{name}：这是一组设置，得到 {_show(got)}，{mend}。{_inside(name, known)}"
        else:
            head = f"{name} 的第 {rest[0] + 1} 个" if rest else name
            wants = "文字" if rest else known[name].expects
            said = lines.setdefault(head, f"{head}：得到 {_show(got)}，应为：{wants}。")
            hint = "" if rest else _hint(kind, known[name], got)
            lines[head] += "" if hint in said else hint  # 二选一的类型，每一支各报一次
    return list(lines.values())


def _hint(kind: str, field: Any, got: Any) -> str:
    """看得出来的话，说一句怎么改。"""
    if got is None:
        return f"要用默认值，就删掉这一行或写 {_inline(field.default)}。"
    if kind == "multiple_of":
        step, top = field.constraints["multiple_of"], field.constraints["le"]
        below = min(int(got) // step * step, top)
        return f"离它最近的是 {below}" + (f" 和 {below + step}。" if below < top else "。")
    if kind == "finite_number":
        return "不能是 nan 或无穷大。"
    if got == "":
        return "不能空着。"
    if kind == "list_type" and str not in dict(_parts(field.type)) and "[" not in str(got):
        return f"是不是想写 [{got}]？"
    if isinstance(got, str) and got.endswith("%"):
        return "百分数要写成小数，10% 写 0.1。"
    close = _close(str(got), field.constraints.get("choices", ()))
    return f"是不是想写 {close[0]}？" if close else ""


def _unknown(name: str, known: dict[str, Any], value: Any = None) -> str:
    """不认识的名字 -> 一句话，猜猜本来想写什么（也到别的组里找）。"""
    group, _, leaf = name.lower().replace("-", "_").rpartition(".")
    if name in known:
        return f"{name}：在 YAML 里要分层写，先写 {group}:，下一行缩进写 {leaf}: 值。"
    leaves: dict[str, list[str]] = {}  # 最后一段 -> 完整的名字；写的是一组就只猜组
    for full, field in known.items():
        if _is_group(field.type) == isinstance(value, dict):
            leaves.setdefault(full.split(".")[-1], []).append(full)
    beside = [word for word, names in leaves.items() if f"{group}.{word}".strip(".") in names]
    # 先找别的组里同名的，再找同组里相近的，最后找任何地方相近的
    close = [leaf] if leaf in leaves else _close(leaf, beside) or _close(leaf, leaves)
    guesses = leaves[close[0]] if close else []
    guesses = [full for full in guesses if full.rpartition(".")[0] == group] or guesses
    guess = f"是不是想写 {' 或 '.join(guesses)}？" if guesses else _inside(group, known)
    return f"{name}：没有这一项。{guess}"


def _inside(group: str, known: dict[str, Any]) -> str:
    """一组里有哪些名字；不是组就列出全部组名。"""
    inside = [name.split(".")[-1] for name in known if name.rpartition(".")[0] == group]
    inside = inside or [name for name in known if "." not in name]
    return f"可以写的有：{'、'.join(inside)}。"


def _close(word: str, choices: Any) -> list[str]:
    return difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
