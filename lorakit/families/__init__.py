"""模型家族：一个家族一个文件，别处不出现家族的名字；base 是接缝，registry 是登记处。"""

from lorakit.families.open import open_blank, open_family
from lorakit.families.registry import REGISTRY, get

__all__ = ["REGISTRY", "get", "open_blank", "open_family"]
