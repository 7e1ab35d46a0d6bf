"""命令行：只解析、调用、说中文；真正的活都在库里。"""

import os
import sys
import warnings
from contextlib import redirect_stdout
from io import TextIOBase, TextIOWrapper

from lorakit.cli import book, data, draw, judge, machine, start, train, weights
from lorakit.cli.options import DONE, INTERRUPTED, WRONG_INPUT, parser
from lorakit.cli.progress import first_speaks
from lorakit.errors import LorakitError, LorakitWarning, plain_reason
from lorakit.inert import inert

FULL = (
    "显存不够了；已经存好的检查点都在。别的程序占着显卡就先关掉它；再不够，换小一档的预设"
    "（lorakit doctor 预设 会说放不放得下），或加 --set model.quantize=fp8。"
)
NO_THREADS = "系统不让再开线程了（ulimit -u）：关掉别的程序，或放宽限制再来。"
# 照 --help 里的次序
COMMANDS = (
    start.demo, book.book, start.sample_data, start.init, data.check, data.caption, data.cache,
    train.train, judge.judge, draw.generate, draw.edit, draw.compare, weights.export, weights.audit,
    weights.push, machine.doctor, machine.rehearse, machine.bench,
)  # fmt: skip


class Inert(TextIOBase):
    """屏幕：文件名、描述、卡片里藏的控制符只显示、不起作用。"""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(inert(text))
        return len(text)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def flush(self):
        self.stream.flush()

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return self.stream.isatty()


def _remind(message, category, filename, lineno, file=None, line=None):
    text = warnings.formatwarning(message, category, filename, lineno, line)
    ours = issubclass(category, LorakitWarning)
    print(inert(f"提醒：{message}" if ours else text.rstrip()), file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """入口；返回退出码：0 完成，1 输入有误，2 用法错，130 被打断但已存好。"""
    for stream in (sys.stdout, sys.stderr):
        # Windows 上接到文件里是 GBK，没有“✔”：写成问号，别停下
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    args = parser(COMMANDS).parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # 它用英文提醒的事与学的人无关
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _remind
            with first_speaks(), redirect_stdout(Inert(sys.stdout)):
                code = args.run(args)
                sys.stdout.flush()  # 写不出去的，现在就知道
                return code
    except LorakitError as error:
        if args.debug:
            raise
        if not error.told:  # 几个进程一起停的，0 号已经说了
            print(error, file=sys.stderr)
        return WRONG_INPUT
    except RuntimeError as error:
        torch = sys.modules.get("torch")  # 这时候多半载入了；为这一句去载入太慢
        if not args.debug and "start new thread" in str(error):
            print(NO_THREADS, file=sys.stderr)
            return WRONG_INPUT
        if args.debug or torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        print(FULL, file=sys.stderr)
        return WRONG_INPUT
    except BrokenPipeError:  # 输出接到 head 之类、对方先走了：不算错，也别在退出时再报一次
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        if args.debug:
            raise
        where = f"“{error.filename}”：" if error.filename else ""
        print(inert(f"读写时系统不让：{where}{plain_reason(error)}。"), file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # 退出时不再报一次
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("已停下。", file=sys.stderr)
        return INTERRUPTED
