"""一项设置怎么说给人听：它收什么、像哪个名字，pydantic 的报错说成中文；不认识 Config。"""

import difflib
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from lorakit.inert import inert, visible_line


def kinds_of(annotation: Any, limits: Sequence = ()) -> Iterator[tuple[Any, Sequence]]:
    """拆开类型：float | None -> (float, 限制), (NoneType, 限制)；Literal 的“限制”是可选的值。"""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from kinds_of(args[0], args[1].metadata)
    elif origin in (Union, types.UnionType):
        for arg in args:
            yield from kinds_of(arg, limits)
    else:
        yield origin or annotation, args if origin is Literal else limits


def is_group(annotation: Any) -> bool:
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
        kinds = " 或 ".join(words[kind] for kind in dict(kinds_of(self.type)))
        return kinds + (f"（{'，'.join(limits)}）" if limits else "")


def inline(value: Any) -> str:
    """一个值 -> 一行 YAML。"""
    value = str(value) if isinstance(value, Path) else value
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def shown(value: Any) -> str:
    """一个值的样子；长得写不出来、套得太深的只说是什么。"""
    if isinstance(value, (str, Path)):
        return str(value)
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return "一个长得写不出来的数" if isinstance(value, int) else "太大或套得太深的内容"


def quoted(value: Any) -> str:
    text = f"“{value}”" if isinstance(value, (str, Path)) else shown(value)
    return "空（没有写值）" if value is None else text if len(text) < 60 else text[:57] + "…"


def explain(error: ValidationError, known: dict[str, Any]) -> list[str]:
    """pydantic 的错误 -> 每项一行中文。"""
    lines: dict[str, str] = {}
    for item in error.errors(include_url=False):
        kind, loc, got = item["type"], item["loc"], item["input"]
        full = [".".join(map(str, loc[:n])) for n in range(1, len(loc) + 1)]
        name = max((name for name in full if name in known), key=len, default="")
        rest = [n for n in loc[name.count(".") + 1 :] if isinstance(n, int)]  # 列表里的第几个
        if kind in ("extra_forbidden", "invalid_key"):
            lines[full[-1]] = unknown(full[-1], known, got)
        elif kind == "combination":
            lines[item["msg"]] = item["msg"]
        elif not name or is_group(known[name].type):
            mend = "要在下面缩进写“名字: 值”（英文冒号，后面空一格）"
            lines[name] = (
                f"{name}：这是一组设置，得到 {quoted(got)}，{mend}。{names_inside(name, known)}"
            )
        else:
            head = f"{name} 的第 {rest[0] + 1} 个" if rest else name
            wants = "文字" if rest else known[name].expects
            if kind == "not_path":
                lines[head] = f"{head}：{item['msg'].partition('：')[2]}"
                continue
            said = lines.setdefault(head, f"{head}：得到 {quoted(got)}，应为：{wants}。")
            hint = "" if rest else _hint(kind, known[name], got)
            lines[head] += "" if hint in said else hint  # 二选一的类型，每一支各报一次
    return list(lines.values())


def _hint(kind: str, field: Any, got: Any) -> str:
    """看得出来的话，说一句怎么改。"""
    if got is None:
        return f"要用默认值，就删掉这一行或写 {inline(field.default)}。"
    if kind == "multiple_of":
        step, top = field.constraints["multiple_of"], field.constraints["le"]
        below = min(int(got) // step * step, top)
        return f"离它最近的是 {below}" + (f" 和 {below + step}。" if below < top else "。")
    if kind == "finite_number":
        return "不能是 nan 或无穷大。"
    if got == "":
        return "不能空着。"
    if kind == "list_type" and str not in dict(kinds_of(field.type)) and "[" not in shown(got):
        return f"是不是想写 [{shown(got)[:60]}]？"
    if isinstance(got, str) and got.endswith("%"):
        return "百分数要写成小数，10% 写 0.1。"
    close = close_to(shown(got)[:60], field.constraints.get("choices", ()))
    return f"是不是想写 {close[0]}？" if close else ""


def unknown(name: str, known: dict[str, Any], value: Any = None) -> str:
    """不认识的名字 -> 一句话，猜猜本来想写什么（也到别的组里找）。"""
    group, _, leaf = name.lower().replace("-", "_").rpartition(".")
    if name in known:
        return f"{name}：在 YAML 里要分层写，先写 {group}:，下一行缩进写 {leaf}: 值。"
    leaves: dict[str, list[str]] = {}  # 最后一段 -> 完整的名字；写的是一组就只猜组
    for full, field in known.items():
        if is_group(field.type) == isinstance(value, dict):
            leaves.setdefault(full.split(".")[-1], []).append(full)
    beside = [word for word, names in leaves.items() if f"{group}.{word}".strip(".") in names]
    # 先找别的组里同名的，再找同组里相近的，最后找任何地方相近的
    close = [leaf] if leaf in leaves else close_to(leaf, beside) or close_to(leaf, leaves)
    guesses = leaves[close[0]] if close else []
    guesses = [full for full in guesses if full.rpartition(".")[0] == group] or guesses
    guess = f"是不是想写 {' 或 '.join(guesses)}？" if guesses else names_inside(group, known)
    return f"{name}：没有这一项。{guess}"


def names_inside(group: str, known: dict[str, Any]) -> str:
    """一组里有哪些名字；不是组就列出全部组名。"""
    inside = [name.split(".")[-1] for name in known if name.rpartition(".")[0] == group]
    inside = inside or [name for name in known if "." not in name]
    return f"可以写的有：{'、'.join(inside)}。"


def close_to(word: str, choices: Any) -> list[str]:
    return difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)


def one_line(value: str, what: str) -> str:
    """要看得见的一行字：它会写进描述、模型卡、命令和文件名，藏着换行就会断成两句。"""
    if not visible_line(value):
        blank = inert(value, line=True) == value
        shown = f"{value!a}，全是看不见的字" if blank else f"{value!r}，里面有换行或看不见的字"
        said = f"{what}：得到 {shown}，应为：看得见的一行字。请删掉重打。"
        raise PydanticCustomError("combination", "{said}", {"said": said})
    return value
