"""随机权重的微型图像编码器：DINOv2 与 SigLIP 真正的类，存成模型站上那样的文件夹。"""

import json
from pathlib import Path

import torch

WORDS = ["[PAD]", "[UNK]", "ohwx", "cat", "dog", "a", "猫", "狗"]
SIDE = 28


def _processor(folder: Path, kind: str):
    size = (
        {"shortest_edge": SIDE} if kind == "BitImageProcessor" else {"height": SIDE, "width": SIDE}
    )
    facts = {
        "image_processor_type": kind,
        "do_resize": True, "size": size, "resample": 3,
        "do_center_crop": kind == "BitImageProcessor", "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))


def dinov2(folder: Path) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2)
    Dinov2Model(Dinov2Config(image_size=SIDE, patch_size=14, **shape)).save_pretrained(folder)
    _processor(folder, "BitImageProcessor")
    return folder


def siglip(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel

    torch.manual_seed(0)
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    text = dict(vocab_size=len(WORDS), max_position_embeddings=64, projection_size=32, **shape)
    vision = dict(image_size=SIDE, patch_size=14, **shape)
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    _processor(folder, "SiglipImageProcessor")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    return folder
