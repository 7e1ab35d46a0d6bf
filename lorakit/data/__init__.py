"""数据：文件夹 -> 记录。read 读图与字，captions 找描述，inspection 体检，load 取用，crops 裁切。

fix 替你修（mend 算出改成什么样），caption 请看图模型写描述，conventions、tables 认别家的摆法与表。
"""

from lorakit.data.batches import Batches, split_holdout
from lorakit.data.crops import bucket_for, buckets, fit, framing
from lorakit.data.inspection import inspect
from lorakit.data.load import load_records, load_sources
from lorakit.data.read import read_caption, read_image
from lorakit.data.record import Record
from lorakit.data.report import Report
from lorakit.data.trigger import apply_trigger

__all__ = [
    "Batches", "Record", "Report", "apply_trigger", "bucket_for", "buckets", "fit", "framing",
    "inspect", "load_records", "load_sources", "read_caption", "read_image", "split_holdout",
]  # fmt: skip
