"""命令行的样子：一条命令怎么写明、几条命令共有的选项、argparse 的话怎么说成中文。"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# 退出码：完成、输入有误、命令写错了、被打断但已存好
DONE, WRONG_INPUT, USAGE, INTERRUPTED = 0, 1, 2, 130
_HEADINGS = {"positional arguments": "参数", "options": "选项"}
_ERRORS = {  # argparse 的话 -> 我们的
    r"^argument (.+?): ": r"\1：",
    r"^the following arguments are required: ": "还缺：",
    r"^unrecognized arguments: ": "不认识：",
    r"expected one argument$": "后面要跟一个值",
    r"expected at least one argument$": "后面至少要跟一个值",
    r"invalid int value: (.+)": r"\1 不是合适的值（要整数）",
    r"invalid float value: (.+)": r"\1 不是合适的值（要数字）",
    r"invalid choice: (.+) \(choose from (.+)\)$": r"没有 \1，可选：\2",
}


@dataclass(frozen=True)
class Command:
    """一条命令：叫什么、一句话、例子、选项、做事的函数。"""

    name: str
    about: str
    example: str
    options: tuple
    run: Callable[[argparse.Namespace], int]


def command(example: str, *options) -> Callable[[Callable], Command]:
    """写在做事的函数上面：它是一条命令，名字是函数的名字，一句话是函数的第一行说明。"""

    def declared(run):
        about = (run.__doc__ or "").partition("\n")[0].rstrip("。")
        return Command(run.__name__.replace("_", "-"), about, example, options, run)

    return declared


def option(*flags: str, **details):
    """一个选项；怎么写和 `add_argument` 一样。"""
    return flags, details


# 写在命令后面也认；默认不填，免得盖掉写在命令前面的
_DEBUG = option("--debug", action="store_true", default=argparse.SUPPRESS, help="打印调用栈")
SET = option("--set", action="append", default=[], metavar="名字=值", help="改一项设置，可多次")


def settings(source: str | Path, sets: Sequence[str] = ()):
    """读 YAML 文件或预设；当前文件夹里有叫预设名的文件，就是那个文件。"""
    from lorakit.config import load_config

    return load_config(Path(source) if Path(source).is_file() else source, sets)


class _Formatter(argparse.HelpFormatter):
    def start_section(self, heading):
        super().start_section(_HEADINGS.get(heading, heading))

    def add_usage(self, usage, actions, groups, prefix=None):
        super().add_usage(usage, actions, groups, "用法：" if prefix is None else prefix)


class _Once(argparse.Action):
    """只写一个的选项：写了两次不悄悄听后一个。"""

    def __call__(self, parser, namespace, values, option_string=None):
        given = vars(namespace).setdefault("given", set())
        if self.dest in given:
            parser.error(f"{'、'.join(self.option_strings)} 写了两次，只能写一个")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **details):
        super().__init__(formatter_class=_Formatter, add_help=False, **details)
        self.add_argument("-h", "--help", action="help", help="显示这份说明")

    def error(self, message: str):
        self.print_usage(sys.stderr)
        for theirs, ours in _ERRORS.items():
            message = re.sub(theirs, ours, message)
        print(f"命令写错了：{message}。用 {self.prog} --help 看说明和例子。", file=sys.stderr)
        sys.exit(USAGE)


def parser(commands: Sequence[Command]) -> argparse.ArgumentParser:
    """全部命令的解析器；解析出来的 run 是要做事的函数。"""
    whole = _Parser(prog="lorakit", description="用中文学会图像模型的 LoRA 微调。先试 lorakit demo")
    whole.add_argument("--debug", action="store_true", help="出错时打印完整的调用栈")
    names = whole.add_subparsers(metavar="命令", required=True)
    for one in commands:
        about = {"help": one.about, "description": one.about, "epilog": f"例子：{one.example}"}
        sub = names.add_parser(one.name, **about)
        for flags, details in (*one.options, _DEBUG):
            single = flags[0].startswith("-") and "action" not in details
            sub.add_argument(*flags, **({"action": _Once} if single else {}), **details)
        sub.set_defaults(run=one.run)
    return whole
