"""数据：文件夹 -> 记录。read 读图与字，captions 找描述，inspection 体检，load 取用，crops 裁切。"""

from lorakit.data.batches import Batches, split_holdout
from lorakit.data.crops import bucket_for, buckets, fit, framing
from lorakit.data.inspection import inspect
from lorakit.data.load import load_prior, load_records, load_sources
from lorakit.data.read import read_caption, read_image
from lorakit.data.record import Record
from lorakit.data.report import Problem, Report
from lorakit.data.trigger import apply_trigger

__all__ = [
    "Batches", "Problem", "Record", "Report", "apply_trigger", "bucket_for", "buckets", "fit",
    "framing", "inspect", "load_prior", "load_records", "load_sources", "read_caption",
    "read_image", "split_holdout",
]  # fmt: skip
