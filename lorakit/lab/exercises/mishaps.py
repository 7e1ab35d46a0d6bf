"""读者的代码出了错：说成一句中文，指出是哪一行；英文原话留在括号里，好去网上查。"""

import builtins
import difflib
import inspect
import linecache
import re
from traceback import walk_tb

FEW = 3  # 一串张量、网络，只说前几个
SEEN = 80  # 引用读者的一行代码、一个值，最多这么多字

# (错误的类、英文的样子、中文)；{0}、{1} 是英文里括出来的几段
SENTENCES = (
    (UnboundLocalError, r"variable '(\w+)'", "用到 {0} 的时候它还没有值：先给它一个值，再用它"),
    (ModuleNotFoundError, r"named '([\w.]+)'", "没有叫 {0} 的库：名字写错了，或者没有装"),
    (ImportError, r"cannot import name '(\w+)' from '([\w.]+)'", "{1} 里没有叫 {0} 的东西"),
    (ValueError, r"truth value of an array",
     "一整块数不能当“是不是”用：要先变成一个数，例如 .all() 或 .sum()"),
    (ZeroDivisionError, r"", "除以了 0：想一想，哪个除数会等于 0"),
    (RecursionError, r"", "函数一直在调用自己，停不下来"),
    (MemoryError, r"", "占的内存太多：多半是循环里一直在添东西，停不下来"),
    (OverflowError, r"", "算出来的数太大了，放不下"),
    (KeyError, r"(.+)", "字典里没有 {0} 这一项"),
    (IndexError, r"^(list|tuple|string|range) ", "位置超出去了：下标从 0 数起，最后一个是个数减 1"),
    (IndexError, r"index (-?\d+) is out of bounds for dimension (\d+) with size (\d+)",
     "位置超出去了：第 {1} 维只有 {2} 个（从 0 数起），要的却是第 {0} 个"),
    (IndexError, r"too many indices for tensor of dimension (\d+)",
     "下标太多：这个张量只有 {0} 维"),
    (IndexError, r"Dimension out of range.*got (-?\d+)", "没有第 {0} 维：维数从 0 数起"),
    (IndexError, r"", "位置超出去了：下标从 0 数起，最后一个是个数减 1"),
    (AttributeError, r"'(\w+)' object has no attribute '(\w+)'", "{0} 没有 {1} 这个本事"),
    (AttributeError, r"module '([\w.]+)' has no attribute '(\w+)'", "{0} 里没有叫 {1} 的东西"),
    (TypeError, r"takes (?:from \d+ to )?(\d+) positional arguments? but (\d+) w",
     "判题时给了 {1} 个参数，你的函数只收 {0} 个：参数的个数和次序照题目里的写"),
    (TypeError, r"missing \d+ required \w+ argument.*?: (.+)",
     "少给了参数 {0}：参数的个数和次序照题目里的写"),
    (TypeError, r"got an unexpected keyword argument '(\w+)'", "没有叫 {0} 的参数"),
    (TypeError, r"unsupported operand type\(s\) for (\S+?):? '(\w+)' and '(\w+)'",
     "{1} 和 {2} 不能用 {0} 算在一起"),
    (TypeError, r"'(\S+)' not supported between instances of '(\w+)' and '(\w+)'",
     "{1} 和 {2} 不能用 {0} 比大小"),
    (TypeError, r"can only concatenate (\w+) \(not \"(\w+)\"\)", "{0} 只能和 {0} 相加，不能加 {1}"),
    (TypeError, r"can't multiply sequence by non-int of type '(\w+)'",
     "一串东西不能乘 {0}：要一个个地乘，或先变成张量"),
    (TypeError, r"'(\w+)' object is not callable",
     "{0} 不是函数，后面不能跟圆括号；乘号不能省，取第几个用方括号"),
    (TypeError, r"'(\w+)' object is not subscriptable", "{0} 里面没有一项一项的，不能用方括号取"),
    (TypeError, r"cannot unpack non-iterable (\w+)", "{0} 只有一个，不能拆成几个"),
    (TypeError, r"'(\w+)' object is not iterable", "{0} 里面没有一项一项的东西，不能一个个地数"),
    (TypeError, r"unhashable type: '(\w+)'", "{0} 不能当字典的键、放进集合：换成圆括号的一组"),
    (TypeError, r"object of type '(\w+)' has no len", "{0} 没有长度"),
    (TypeError, r"'(\w+)' object does not support item assignment", "{0} 里的东西不能改：另做一个"),
    (TypeError, r"'(\w+)' object cannot be interpreted as an integer",
     "这里要整数，得到 {0}：整除用 //，或者套上 int(...)"),
    (TypeError, r"slice indices must be integers", "切片的两头要整数：整除用 //"),
    (ValueError, r"too many values to unpack \(expected (\d+)",
     "等号左边有 {0} 个名字，右边的东西更多"),
    (ValueError, r"not enough values to unpack \(expected (?:at least )?(\d+), got (\d+)",
     "等号左边有 {0} 个名字，右边只有 {1} 个"),
    (ValueError, r"invalid literal for int\(\).*: (.+)", "{0} 变不成整数"),
    (ValueError, r"could not convert string to float: (.+)", "{0} 变不成数"),
    (ValueError, r"(min|max)\(\) .*empty", "{0} 拿到的是空的，一个也没有"),
    (RuntimeError, r"tensor a \((\d+)\) must match .*b \((\d+)\) at non-singleton dimension (\d+)",
     "两个张量形状对不上：第 {2} 维一个是 {0}，一个是 {1}"),
    (RuntimeError, r"shapes cannot be multiplied \((\w+) and (\w+)\)",
     "这两个矩阵不能相乘：{0} 和 {1}，前一个的列数要等于后一个的行数；看看 @ 的左右是不是反了"),
    (RuntimeError, r"shape '(.+?)' is invalid for input of size (\d+)",
     "reshape 不成 {0}：一共有 {1} 个数，几个边长乘起来要正好是它"),
    (RuntimeError, r"Sizes of tensors must match except in dimension (\d+)",
     "拼不起来：除了第 {0} 维，别的边长都要一样；看看 dim 写对了没有"),
    (RuntimeError, r"Boolean value of Tensor with more than one value",
     "一整块数不能当“是不是”用：要先变成一个数，例如 .all() 或 .sum()"),
    (RuntimeError, r"number of dimensions in the tensor input does not match",
     "permute 要把每一维都写上，一个不多、一个不少"),
    (RuntimeError, r"expected .*scalar type|same dtype|result type .* can't be cast",
     "两边的数不是一种（整数和小数）：先用 .float() 变成小数"),
    (RuntimeError, r"view size is not compatible", "permute 以后不能用 view：换成 reshape"),
    (AssertionError, r"", "你自己写的 assert 没有成立"),
    (StopIteration, r"", "next 已经没有下一个了"),
    (EOFError, r"", "答案里不用 input：要用的东西，判题时会当参数给你"),
    (SystemExit, r"", "答案里不用 exit，算完用 return 交出来"),
)  # fmt: skip


def explain(error: BaseException, answer) -> str:
    """一个错误 -> 第几行、那一行的字、中文原因；英文原话在括号里。"""
    frame, line = _where(error, answer)
    said, original = _sentence(error, frame), f"{type(error).__name__}: {error}".rstrip(": ")
    place = "你的答案"
    if frame:
        code = linecache.getline(frame.f_code.co_filename, line).strip()
        place = f"第 {line} 行" + (f" `{code[:SEEN]}` " if code else "")
    return f"{place}出错了：{said.rstrip('。')}（英文原话：{original[:200]}）"


def _where(error: BaseException, answer):
    """最里面的、属于读者自己的那一层 -> (它, 行号)；没有就是 (None, 0)。"""
    own = getattr(getattr(answer, "__code__", None), "co_filename", None)
    found = None, 0
    for frame, line in walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if file == own or "ipykernel_" in file or file.startswith("<ipython-input"):
            found = frame, line
    return found


def _sentence(error: BaseException, frame) -> str:
    if isinstance(error, NameError) and not isinstance(error, UnboundLocalError):
        return unknown(error, frame)
    for kind, pattern, chinese in SENTENCES:
        found = isinstance(error, kind) and re.search(pattern, str(error))
        if found:
            return chinese.format(*found.groups())
    return "这一行 Python 做不了"


def unknown(error: NameError, frame) -> str:
    """没有这个名字：说是哪个，像哪一个。"""
    name = error.name or str(error)
    known = [*frame.f_locals, *frame.f_globals] if frame else []
    public = [one for one in (*known, *dir(builtins)) if not one.startswith("_")]
    near = difflib.get_close_matches(name, public, 1, cutoff=0.7)
    tail = f"是不是想写 {near[0]}？" if near else "先写上它，或者看看是不是写错了字"
    return f"没有叫 {name} 的东西。{tail}".rstrip("。")


def returns_something(function) -> bool:
    """函数里有没有 return 一个东西；看不出来的算有。"""
    code = getattr(function, "__code__", None)
    if code is None:
        return True
    lines = inspect.getsource(function) if _readable(function) else ""
    if lines:
        return bool(re.search(r"\breturn\b[ \t]*[^\s#]|\blambda\b|\byield\b", lines))
    return True


def _readable(function) -> bool:
    try:
        inspect.getsource(function)
    except (OSError, TypeError):
        return False
    return True


def brief(value) -> str:
    """一个值的样子，短短的：张量只说形状，网络、函数只说是什么。"""
    if hasattr(value, "named_parameters") and not isinstance(value, type):
        return "一个网络" if "\n" in repr(value) else repr(value)
    if callable(value):
        return getattr(value, "__name__", "一个函数").lstrip("_")
    if isinstance(value, (list, tuple)) and any(hasattr(one, "shape") for one in value):
        more = "……" if len(value) > FEW else ""
        return f"{'，'.join(map(brief, value[:FEW]))}{more}（一共 {len(value)} 个）"
    if hasattr(value, "shape") and hasattr(value, "dim") and value.dim():
        return f"形状 {'x'.join(map(str, value.shape))} 的张量"
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= SEEN else f"{text[:SEEN]}……"
