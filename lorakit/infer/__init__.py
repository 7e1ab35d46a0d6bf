"""推理：提示词 -> 图。pipeline 打开管线，draw 画图，edit 改图，compare 开关 LoRA，xy 画网格。"""

from lorakit.infer.checks import check_size
from lorakit.infer.compare import compare, set_strength, without_lora
from lorakit.infer.draw import generate
from lorakit.infer.edit import edit
from lorakit.infer.fitting import seen
from lorakit.infer.pipeline import open_for, open_pipeline
from lorakit.infer.preview import columns, cost, preview, remember_preview, with_own_prompts

__all__ = [
    "check_size",
    "columns",
    "compare",
    "cost",
    "edit",
    "generate",
    "open_for",
    "open_pipeline",
    "preview",
    "remember_preview",
    "seen",
    "set_strength",
    "with_own_prompts",
    "without_lora",
]
