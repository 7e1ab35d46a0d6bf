"""练的是什么：attach 挂上 LoRA，full 全量微调；files 存读，strength 定强度，convert 换写法。"""

from lorakit.lora.attach import attach, block_of, delta_norms, match, plan, scale, summary
from lorakit.lora.files import FILE, find, read, save
from lorakit.lora.put import check_fits, put_on

__all__ = [
    "FILE", "attach", "block_of", "check_fits", "delta_norms", "find", "match", "plan", "put_on",
    "read", "save", "scale", "summary",
]  # fmt: skip
