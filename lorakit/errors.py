"""给用户看的错误：一句中文，说清楚出了什么事、得到了什么、应该是什么、怎么改。"""

import errno
import sys
import warnings

from lorakit.inert import inert

REASONS = {  # 系统的英文原因 -> 人话
    errno.ENOSPC: "磁盘满了",
    errno.EDQUOT: "磁盘配额用完了",
    errno.EACCES: "没有写的权限",
    errno.EPERM: "没有写的权限",
    errno.EROFS: "这里是只读的",
    errno.ENOENT: "那里建不了文件夹",
    errno.ENOTDIR: "路径里有一段是文件，不是文件夹",
    errno.EISDIR: "那是一个文件夹",
    errno.ENAMETOOLONG: "名字太长",
    errno.EEXIST: "那里已经有一个同名的文件",
    errno.EIO: "磁盘读写出错",
    errno.EFBIG: "系统不让写这么大的文件",
}


def plain_reason(error: OSError) -> str:
    """系统错误的中文原因；表里没有的照抄系统的话。"""
    return REASONS.get(error.errno, error.strerror or str(error))


class LorakitWarning(UserWarning):
    """不妨碍运行、但多半不是用户想要的；命令行打印成一行“提醒”。"""

    def __str__(self) -> str:
        return inert(super().__str__())


class InspectionWarning(LorakitWarning):
    """体检有警告；报告刚刚给人看过的，就按这个类关掉它。"""


def warn(sentence: str, category: type[Warning] = LorakitWarning):
    """提醒一句，指着 lorakit 之外叫到这里的那一行，中间隔了几个函数都一样。"""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "lorakit":
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, category, stacklevel=level)


class LorakitError(Exception):
    """用户能自己修好的问题；命令行只打印这句话，退出码 1；练习册里也只有这句话。"""

    def __str__(self) -> str:
        return inert(super().__str__())

    told = False  # 几个进程一起练时：0 号进程会说这句话，自己就不用再说

    def _render_traceback_(self) -> list[str]:
        """IPython 用它代替一长串调用栈：读者要的是怎么改，不是哪一行抛的。"""
        return [str(self)]


class ConfigError(LorakitError):
    """配置写错了：哪一项、得到什么、应该是什么、也许想写什么。"""


class DataError(LorakitError):
    """数据有问题：哪个文件、什么原因、怎么修。"""


class WeightsError(LorakitError):
    """权重文件不能用：不是 LoRA、只对上一部分、底模不对、文件损坏。"""
