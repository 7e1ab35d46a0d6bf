"""LoRA 的开关与强度；同一个种子，关掉画一遍、打开画一遍。"""

from contextlib import contextmanager

from PIL import Image

from lorakit.config.groups import Sample
from lorakit.errors import WeightsError
from lorakit.infer.draw import generate
from lorakit.infer.edit import edit


@contextmanager
def without_lora(transformer):
    """暂时关掉 LoRA，离开时再打开；不必重新载入任何权重。"""
    transformer.disable_lora()
    try:
        yield
    finally:
        transformer.enable_lora()


def set_strength(pipe, strength: float):
    """LoRA 的强度：0 等于没有，1 是训练时的样子，1.5 更夸张。"""
    names = list(getattr(pipe.transformer, "peft_config", {}))
    if not names:
        raise WeightsError(
            "这条管线上没有 LoRA，强度无从设起。先用 open_pipeline(family, LoRA文件) 打开。"
        )
    pipe.set_adapters(names, [strength] * len(names))


def compare(
    family, pipe, prompts, settings: Sample, size, controls=None
) -> tuple[list[Image.Image], list[Image.Image]]:
    """同样的提示词与种子，关掉 LoRA 画一遍、打开画一遍；给了 controls 就是改图（见 edit）。"""
    if not getattr(pipe.transformer, "peft_config", None):
        raise WeightsError(
            "这条管线上没有可以开关的 LoRA。全量微调改的是底模自己，"
            "要比较就用同一个种子分别 lorakit generate 底模和结果。"
        )

    def draw():
        if controls is None:
            return generate(family, pipe, prompts, settings, size)
        return edit(family, pipe, prompts, controls, settings, size)

    with without_lora(pipe.transformer):
        before = draw()
    return before, draw()
