"""LoRA 文件换写法的一套：foreign 读、algebra 算、export 写；这里把它们的名字放在一处。"""

from lorakit.lora.algebra import Layers, Pair, combine, delta, merge, plain, resize
from lorakit.lora.dora import Dora
from lorakit.lora.export import DTYPES, FORMATS, Names, Written, named, spell, write
from lorakit.lora.foreign import meaning, read

__all__ = [
    "DTYPES", "FORMATS", "Dora", "Layers", "Names", "Pair", "Written", "combine", "delta",
    "meaning", "merge", "named", "plain", "read", "resize", "spell", "write",
]  # fmt: skip
