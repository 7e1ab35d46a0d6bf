"""lorakit：用中文学会、并真正做好图像模型的 LoRA 微调。"""

import logging
from importlib import import_module

# 有的 CPU 上 bitsandbytes 一载入就用英文说它少一个内核；那个内核这里用不到
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"

_PUBLIC = {
    "Config": "lorakit.config",
    "load_config": "lorakit.config",
    "template": "lorakit.config",
    "LorakitError": "lorakit.errors",
    "inspect": "lorakit.data",
    "prepare": "lorakit.cache",
    "Trainer": "lorakit.train",
    "open_family": "lorakit.families",
    "open_pipeline": "lorakit.infer",
    "generate": "lorakit.infer",
    "edit": "lorakit.infer",
    "compare": "lorakit.infer",
    "set_strength": "lorakit.infer",
    "grid": "lorakit.results.report",
    "plot_loss": "lorakit.results.report",
}
# 搬进文件夹之前的名字：from lorakit import record 这样的旧代码仍然能用
_MOVED = {
    "arithmetic": "training.plan",
    "bench": "machine.bench",
    "board": "results.board",
    "bundled": "hub.bundled",
    "cache_masks": "cache.masks",
    "cache_tools": "cache.why",
    "caption": "data.caption",
    "card": "results.card",
    "checkpoint": "results.checkpoint",
    "choices": "training.preflight",
    "comfyui": "lora.comfyui",
    "config_groups": "config.groups",
    "data_check": "data.inspection",
    "data_fix": "data.fix",
    "data_html": "data.html",
    "data_views": "data.crops",
    "doctor": "machine.doctor",
    "estimate": "machine.estimate",
    "full": "lora.full",
    "hub_sites": "hub.sites",
    "lokr": "lora.lokr",
    "lora_files": "lora.convert",
    "lora_fused": "lora.fused",
    "objective": "training.objective",
    "optim": "training.optim",
    "processes": "training.processes",
    "push": "results.publish",
    "record": "results.folder",
    "report": "results.report",
    "sampler": "infer.sampler",
    "trace": "machine.trace",
    "track": "results.track",
    "transfer": "hub.transfer",
    "verdict": "results.verdict",
    "xy": "infer.xy",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    # 用到才导入：import lorakit 不应该等 torch 载入的那几秒
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in _MOVED:
        return import_module(f"lorakit.{_MOVED[name]}")
    raise AttributeError(f"lorakit 里没有 {name}")


def __dir__():
    return sorted(__all__)
