"""练的是什么：attach 挂上 LoRA，files 存读 LoRA 文件，full 全量微调，convert 换成别家的写法。"""

from lorakit.lora.attach import attach, block_of, delta_norms, match, plan, scale, summary
from lorakit.lora.files import FILE, find, read, save
from lorakit.lora.put import check_fits, put_on

__all__ = [
    "FILE",
    "attach",
    "block_of",
    "check_fits",
    "delta_norms",
    "find",
    "match",
    "plan",
    "put_on",
    "read",
    "save",
    "scale",
    "summary",
]
