"""打开 stock diffusers 管线，用上 LoRA；显存紧就先编码提示词。"""

from pathlib import Path

from lorakit import lora
from lorakit.infer.checks import check_pictures
from lorakit.infer.fitting import seen
from lorakit.infer.prompts import remember
from lorakit.lora import full
from lorakit.results import checkpoint


def open_pipeline(family, weights: Path | None = None, text="load"):
    """打开家族的 stock 管线；给了 LoRA 或全量微调的结果就先核对、再用上。

    Args:
        text: None 就不载入文本编码器，只能画 `remember` 过的提示词。
    """
    whole = full.find(weights) if weights is not None else None
    if whole is not None:
        checkpoint.refuse_changed(whole)
        full.check_fits(whole, family)
    family.use_transformer(whole)
    transformer = family.untouched()
    pipe = family.pipeline(transformer, text=text)
    pipe.set_progress_bar_config(disable=True)
    if weights is not None and whole is None:
        lora.put_on(pipe, checkpoint.exported(weights), original=family.original)
    return pipe


def open_for(
    family, weights, guidance: float, prompts, controls=None, negative: str = "", size=None
):
    """打开只画这几句的管线：显卡上先编码、放掉文本编码器，再载入 Transformer。

    Args:
        controls, size: 要改的图、改成多大（见 edit）。
    """
    for pictures in controls or []:  # 别等编码完了才说
        check_pictures(family, pictures)
    if not scarce(family) or (family.controls[0] and controls is None):
        return open_pipeline(family, weights)
    if weights is not None and full.find(weights) is None:
        checkpoint.exported(weights)  # 文件不在、坏了，就别先等编码
    if controls and size:
        controls = [seen(family, pictures, size) for pictures in controls]
    remember(family, guidance, prompts, controls, negative)
    return open_pipeline(family, weights, text=None)


def scarce(family) -> bool:
    """显存紧：文本编码器与 Transformer 不同时放。"""
    return family.device.type == "cuda"
