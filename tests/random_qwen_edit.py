"""随机权重的微型 Qwen-Image-Edit：真正的类、diffusers 布局，只为对照，不会改图。"""

from pathlib import Path

import torch

from lorakit.hub import ASSETS
from lorakit.tiny import shapes

# 最后一块的文字流输出被丢弃，所以这些层得不到梯度
UNUSED = r"transformer_blocks\.1\.(attn\.(to_add_out|add_q_proj|norm_added_q)|txt_mlp)\..*"


def build(folder: Path, plus: bool = True) -> Path:
    """写一条随机权重的管线到 folder 并返回它；每次写出的权重都一样。

    Args:
        plus: 能看一到三张控制图的 QwenImageEditPlusPipeline，控制图的时间恒为 0（zero_cond_t）。
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        pipe = shapes.qwen_pipeline(ASSETS / "tiny-qwen-image" / "tokenizer", layers=2)
        if plus:
            transformer = pipe.transformer
            pipe.transformer = type(transformer).from_config(transformer.config, zero_cond_t=True)
        for name, parameter in pipe.transformer.named_parameters():
            if "_mod." in name:
                torch.nn.init.normal_(parameter, std=0.1)
        for parameter in pipe.text_encoder.model.visual.parameters():
            parameter.mul_(5)  # 初值太小，换一张图几乎看不出
    pipe.save_pretrained(folder)
    return shapes.make_edit(folder, plus)
