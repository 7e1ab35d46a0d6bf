"""给用户看的错误：一句中文，说清楚出了什么事、得到了什么、应该是什么、怎么改。"""


class LorakitError(Exception):
    """用户能自己修好的问题；命令行只打印这句话，退出码 1。"""


class ConfigError(LorakitError):
    """配置写错了：哪一项、得到什么、应该是什么、也许想写什么。"""


class DataError(LorakitError):
    """数据有问题：哪个文件、什么原因、怎么修。"""


class WeightsError(LorakitError):
    """权重文件不能用：不是 LoRA、只对上一部分、底模不对、文件损坏。"""
