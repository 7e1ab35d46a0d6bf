"""Qwen 的编辑模型给文本编码器准备图与文字的处理器。"""

from transformers import Qwen2VLProcessor
from transformers.processing_utils import ProcessorMixin


class PictureProcessor(Qwen2VLProcessor):
    """只看图、不看视频的处理器（Qwen2-VL 到 Qwen3-VL 看图都一样）。

    原来的还要一个视频处理器，为它得装 torchvision。
    """

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
            [self.image_token, self.video_token]
        )
        # 跳过上一层的 __init__：它一定要有视频处理器
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
