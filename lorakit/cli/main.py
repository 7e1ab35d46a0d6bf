"""命令行：只解析、调用、说中文；真正的活都在库里。"""

import os
import sys
import warnings
from io import TextIOWrapper

from lorakit.cli import data, draw, machine, start, train, weights
from lorakit.cli.options import DONE, INTERRUPTED, WRONG_INPUT, parser
from lorakit.cli.progress import first_speaks
from lorakit.errors import LorakitError, LorakitWarning

FULL = (
    "显存不够了；已经存好的检查点都在。别的程序占着显卡就先关掉它；再不够，换小一档的预设"
    "（lorakit doctor 预设 会说放不放得下），或加 --set model.quantize=fp8。"
)
# 照 --help 里的次序
COMMANDS = (
    start.demo, start.sample_data, start.init, data.check, data.caption, data.cache, train.train,
    draw.generate, draw.edit, draw.compare, weights.export, weights.audit, weights.push,
    machine.doctor, machine.bench,
)  # fmt: skip


def _remind(message, category, filename, lineno, file=None, line=None):
    text = warnings.formatwarning(message, category, filename, lineno, line)
    ours = issubclass(category, LorakitWarning)
    print(f"提醒：{message}" if ours else text.rstrip(), file=sys.stderr)


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
            with first_speaks():
                return args.run(args)
    except LorakitError as error:
        if args.debug:
            raise
        if not error.told:  # 几个进程一起停的，0 号已经说了
            print(error, file=sys.stderr)
        return WRONG_INPUT
    except RuntimeError as error:
        torch = sys.modules.get("torch")  # 这时候多半载入了；为这一句去载入太慢
        if args.debug or torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        print(FULL, file=sys.stderr)
        return WRONG_INPUT
    except BrokenPipeError:  # 输出接到 head 之类、对方先走了：不算错，也别在退出时再报一次
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        print("已停下。", file=sys.stderr)
        return INTERRUPTED
