"""小模型的分词器：真正的 Qwen2Tokenizer 类，词表从我们的描述和管线自己的提示模板里学出来。"""

import json
from pathlib import Path

import numpy as np

from lorakit.tiny.styles import STYLES
from lorakit.tiny.world import caption, random_scene

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
# 编辑指令与示例里会出现的话；放进语料只为让常用字各占一个词元。
EXTRA = (
    "给它戴上一顶红帽子", "把它变成线稿", "变成夜晚", "把颜色改成",
    "一张照片，人物，风景，动物，植物",
    "你好，世界。这是什么？我想画上下前后东南西北", "春夏秋冬，日月星辰，山水花鸟，金木水火土",
    "一二三四五六七八九十", "a photo of a person, put a hat on it, make it night",
    "turn it into a line drawing",
)  # fmt: skip


def templates() -> list[str]:
    """stock 管线的两个提示模板（文生图、编辑），直接向管线要，不抄第二份。"""
    from diffusers import QwenImageEditPipeline, QwenImagePipeline

    blank = dict(scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=None)
    return [
        QwenImagePipeline(**blank).prompt_template_encode,
        QwenImageEditPipeline(processor=None, **blank).prompt_template_encode,
    ]


def captions(count: int = 20000, seed: int = 7) -> list[str]:
    """随机场景的描述，中文六成、英文四成。"""
    rng = np.random.default_rng(seed)
    return [caption(random_scene(rng), rng, english=bool(i % 5 < 2)) for i in range(count)]


def corpus(count: int = 20000, seed: int = 7) -> list[str]:
    lines = captions(count, seed)
    lines += [zh for zh, _ in STYLES.values()] * 50 + list(EXTRA) * 50
    # 模板要出现得足够多，其中每个词才会合并成一个词元，词元数才和真模型一样（34 与 64）
    return lines + [text.replace("{}", "") for text in templates()] * 400


def train(folder: Path, vocab_size: int = 1600) -> Path:
    """学出词表并写成 Qwen2Tokenizer 的文件（vocab.json、merges.txt、tokenizer_config.json）。"""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # 汉字先拆成单字再学合并：否则整句话会并成一个词元，换个说法就认不出
            pre_tokenizers.Split(Regex(r"\p{Han}"), behavior="isolated"),
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text = corpus()
    for token in SPECIAL:
        text = [line.replace(token, "\n") for line in text]
    core.train_from_iterator(
        text,
        trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False),
    )
    model = json.loads(core.to_str())["model"]
    merges = [tuple(m) for m in model["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"], merges=merges, padding_side="right", model_max_length=4096,
        extra_special_tokens=SPECIAL[1:],
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder
