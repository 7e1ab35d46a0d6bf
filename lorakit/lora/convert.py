"""LoRA 文件换写法的一套：foreign 读、algebra 算、export 写；这里把它们的名字放在一处。"""

from lorakit.lora.algebra import Layers, Pair, combine, delta, merge, plain, resize
from lorakit.lora.export import FORMATS, named, write
from lorakit.lora.foreign import read

__all__ = [
    "FORMATS",
    "Layers",
    "Pair",
    "combine",
    "delta",
    "merge",
    "named",
    "plain",
    "read",
    "resize",
    "write",
]
