"""tiny-flux 的两个分词器：真正的 CLIPTokenizer 与 T5Tokenizer 类，词表从我们的描述里学出来。"""

import json
import re
import string
from collections import Counter
from math import log
from pathlib import Path

from lorakit.tiny.pretrain.tokenizer import EXTRA, captions
from lorakit.tiny.styles import STYLES

LENGTH = 32  # T5 补齐到几个词元；最长的描述（两件东西）是 31 个
MARK = "▁"  # T5 用它表示词的开头
WORD = re.compile(r"[A-Za-z]+|[^\sA-Za-z]")  # 英文按词，汉字与标点按单字


def lines() -> list[str]:
    """学词表用的描述，中英文都有。"""
    return captions() + list(EXTRA) + [name for pair in STYLES.values() for name in pair]


def train(folder: Path, text: list[str] | None = None) -> Path:
    """写出 folder/tokenizer（CLIP，77 个词元）与 folder/tokenizer_2（T5，32 个词元）。"""
    text = text or lines()
    clip(text).save_pretrained(folder / "tokenizer")
    t5(text).save_pretrained(folder / "tokenizer_2")
    return folder


def clip(text: list[str], vocab_size: int = 1200):
    """字节级 BPE：英文照常学合并；汉字只许在一个字的三个字节之间合并，整句话才不会粘成一个词元。"""
    from tokenizers import Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    spell = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    wide = sorted({c for line in text for c in line if ord(c) > 0x7FF})
    merges = {}  # 字典只为去重而不乱序：共用前两个字节的字，第一条合并是一样的
    for a, b, c in (spell(char)[0][0] for char in wide):
        merges |= {(a, b): 0, (a + b, c): 0, (a + b, f"{c}</w>"): 0}
    core = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    core.pre_tokenizer = CLIPTokenizer()._tokenizer.pre_tokenizer
    english = [line.lower() for line in text if line.isascii()]
    core.train_from_iterator(
        english,
        trainers.BpeTrainer(
            vocab_size=vocab_size, end_of_word_suffix="</w>", show_progress=False, min_frequency=2
        ),
    )
    merges |= dict.fromkeys(_merges(core), 0)
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=77)


def _merges(core) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(core.to_str())["model"]["merges"]]


def t5(text: list[str]):
    """Unigram：英文整词、汉字与标点单字，分数是词频的对数；生词拆成单个字母，怎么拆都一样。"""
    from transformers import T5Tokenizer

    count = Counter(word for line in text for word in WORD.findall(line))
    total = sum(count.values())
    pieces = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, MARK: -3.0}
    for word, times in count.most_common():
        # 英文词前面有空格，带上开头的记号；汉字与标点前面没有
        pieces[MARK + word if word.isascii() and word.isalpha() else word] = log(times / total)
    for char in string.printable.strip():
        pieces.setdefault(char, -15.0)  # 单个字母是最后的办法
    return T5Tokenizer(vocab=list(pieces.items()), extra_ids=0, model_max_length=LENGTH)
