"""模型家族：一个家族一个文件，别处的程序不认识它们；base 是接缝，registry 是登记处。"""

from lorakit.families.open import open_blank, open_family
from lorakit.families.registry import REGISTRY, get

__all__ = ["REGISTRY", "get", "open_blank", "open_family"]
