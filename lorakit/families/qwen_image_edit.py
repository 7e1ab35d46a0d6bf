"""Qwen-Image-Edit：同一个 Qwen-Image，外加控制图；它进两处，VAE（词元接在后面）和 Qwen2.5-VL。"""

from typing import ClassVar

import torch

from lorakit.errors import ConfigError
from lorakit.families.processor import PictureProcessor
from lorakit.families.qwen_image import QwenImage
from lorakit.families.shared import Cond

AREA = 1024 * 1024  # QwenImageEditPipeline 给 Qwen2.5-VL 看的图约一百万像素，写死在它的 __call__ 里
PLUS = {"model_index": {"_class_name": "QwenImageEditPlusPipeline"}}


class QwenImageEdit(QwenImage):
    """Qwen/Qwen-Image-Edit，以及能看一到三张控制图的 2509 / 2511（QwenImageEditPlusPipeline）。"""

    name = "qwen-image-edit"
    called: ClassVar = {
        "2509": ("Qwen-Image-Edit-Plus", "qwen_image_edit"),
        "2511": ("Qwen-Image-Edit-2511", "qwen_image_edit"),
        "": ("Qwen-Image-Edit", "qwen_image_edit"),
    }
    pipeline_class = "QwenImageEditPipeline"  # 能看几张的，打开时才知道
    multiple = 32
    controls = (1, 1)
    text_sees = "whole"
    workflows: ClassVar = {
        "2509": "qwen-image-edit-2509", "2511": "qwen-image-edit-2509", "": "qwen-image-edit",
    }  # fmt: skip
    # 2511 的参考图用另一个时刻：ComfyUI 从这个文件里的记号知道，节点与 2509 的相同
    base_files: ClassVar = {"2509": "", "2511": "qwen_image_edit_2511_bf16.safetensors"}
    text_parts: ClassVar = {**QwenImage.text_parts, "processor": "Qwen2VLImageProcessorPil"}
    full_size: ClassVar = {
        **QwenImage.full_size,
        "model_index": {"_class_name": "QwenImageEditPipeline"},
    }
    other_sizes: ClassVar = {
        "2509": PLUS,
        "2511": {
            **PLUS, "transformer": QwenImage.full_size["transformer"] | {"zero_cond_t": True},
        },
    }  # fmt: skip
    distilled: ClassVar = dict.fromkeys(
        ("Lightning", "Turbo"), "Qwen/Qwen-Image-Edit 或 Qwen/Qwen-Image-Edit-2511"
    )

    def __init__(self, folder, *place, **how):
        super().__init__(folder, *place, **how)
        self.pipeline_class = self.small("model_index.json").get("_class_name")
        if self.pipeline_class not in ("QwenImageEditPipeline", "QwenImageEditPlusPipeline"):
            raise ConfigError(
                f"model.family：“{folder.name}”是 {self.pipeline_class}，不是编辑模型。"
                "要改图，model.path 写 Qwen/Qwen-Image-Edit；文生图，model.family 写 qwen-image。"
            )
        self.plus = self.pipeline_class == "QwenImageEditPlusPipeline"
        if self.plus:
            self.controls = (1, 3)

    def _load_text(self):
        encoder, tokenizer, images = super()._load_text()
        return encoder, tokenizer, PictureProcessor(images, tokenizer)

    @torch.no_grad()
    def encode_prompts(self, captions, refs=None) -> list[Cond]:
        assert refs is not None  # 张数由 cache 与 infer 先核对过
        pipe = self.pipeline(transformer=None, vae=None)
        conds = []
        for caption, pictures in zip(captions, refs, strict=True):  # 一句句来：图的张数可以不同
            seen = [self._seen(pipe, picture) for picture in pictures]
            # stock 管线自己的 encode_prompt：模板、丢掉前 64 个词元都与推理时一致
            embeds, _ = pipe.encode_prompt([caption], image=seen, device=self.device)
            conds.append({"text": embeds[0]})
        return conds

    def _seen(self, pipe, picture):
        """Qwen2.5-VL 看到的图：与推理时一样大，和训练的分辨率无关。"""
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock

        area = stock.CONDITION_IMAGE_SIZE if self.plus else AREA
        width, height = stock.calculate_dimensions(area, picture.width / picture.height)
        return pipe.image_processor.resize(picture, height, width)
