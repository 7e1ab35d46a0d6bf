"""哪个词管图的哪里：从 Qwen-Image 真正的注意力里，量出图的每个词元看每个词的份量。

教程：notebooks/01_concepts.ipynb 1.8
"""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from matplotlib.figure import Figure
from PIL import Image

from lorakit import flow
from lorakit.errors import LorakitError
from lorakit.families.base import Family
from lorakit.lab.picture import to_tensor

SHADE = "Blues"  # 份量的颜色：越深越多


def weights(attn, image: torch.Tensor, text: torch.Tensor, rope) -> torch.Tensor:
    """一块的输入 -> softmax 之后的份量 (B, 头, 图的词元, 文字 + 图的词元)，同它的处理器算的一样。

    Args:
        attn: 双流块里的 diffusers Attention。
        image, text: 两条流进注意力时的词元，(B, S, C)。
        rope: (图的, 文字的) 旋转位置编码。
    """
    from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen as turn

    def heads(layer, norm, x, freqs):  # (B, S, C) -> (B, 头, S, 每头)
        x = norm(layer(x).unflatten(-1, (attn.heads, -1)))
        return turn(x, freqs, use_real=False).transpose(1, 2)

    query = heads(attn.to_q, attn.norm_q, image, rope[0])
    keys = heads(attn.add_k_proj, attn.norm_added_k, text, rope[1])
    keys = torch.cat([keys, heads(attn.to_k, attn.norm_k, image, rope[0])], dim=2)
    return (query @ keys.mT / query.shape[-1] ** 0.5).softmax(-1)


@contextmanager
def watching(transformer):
    """走过的每一块，份量记进交出来的列表；出来时摘掉钩子，网络一点没变。"""
    seen: list[torch.Tensor] = []

    def hook(attn, _, given):
        rope = given["image_rotary_emb"]
        seen.append(weights(attn, given["hidden_states"], given["encoder_hidden_states"], rope))

    hooks = [
        block.attn.register_forward_pre_hook(hook, with_kwargs=True)
        for block in transformer.transformer_blocks
    ]
    try:
        yield seen
    finally:
        for one in hooks:
            one.remove()


def places(family: Family, prompt: str, word: str) -> list[int]:
    """一个词在这句话的哪几个词元里。

    Raises:
        LorakitError: 这句话里没有这个词。
    """
    start = prompt.find(word)
    if start < 0 or not word:
        raise LorakitError(f"“{prompt}”里没有“{word}”：换一个这句话里有的词。")
    _, tokenizer = family.load("text")
    spans = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    end = start + len(word)
    return [i for i, (low, high) in enumerate(spans) if low < end and high > start]


@dataclass(frozen=True, eq=False)
class Attention:
    """一张图、一句话：每个 t、每一块里，图的各处看几个词的份量。"""

    family: Family
    transformer: torch.nn.Module
    image: Image.Image
    prompt: str
    words: tuple[str, ...]
    seed: int = 0

    @torch.no_grad()
    def blocks(self, t: float) -> list[torch.Tensor]:
        """加噪到 t，网络走一遍 -> 每一块的份量，各头平均，(图的词元, 文字 + 图的词元)。"""
        x0, _ = self.family.encode_images(to_tensor(self.image))
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(self.seed))
        x_t = flow.add_noise(x0, noise, torch.tensor(float(t)))
        cond = self.family.collate(self.family.encode_prompts([self.prompt]))
        with watching(self.transformer) as seen:
            self.family.predict_velocity(self.transformer, x_t, torch.tensor([float(t)]), cond)
        return [one[0].mean(0) for one in seen]

    def maps(self, t: float, block: int) -> dict[str, torch.Tensor]:
        """第 block 块（从 1 数）里每个词的地图，(h, w)，里面是份量：全部词元（连图的）加起来是 1。

        Raises:
            LorakitError: 没有这一块，或这句话里没有这个词。
        """
        seen = _blocks(self, float(t))
        if not 1 <= block <= len(seen):
            raise LorakitError(f"这个网络有 {len(seen)} 块，得到第 {block} 块。")
        table = seen[block - 1]
        wide = self.image.width // self.family.multiple  # 一个词元 multiple 个像素宽
        found = {word: places(self.family, self.prompt, word) for word in self.words}
        return {word: table[:, at].sum(1).reshape(-1, wide) for word, at in found.items()}

    def picture(self, t: float, block: int) -> Figure:
        """一块：原图，和每个词的地图。"""
        return self._drawn(t, [block])

    def every_block(self, t: float) -> Figure:
        """每一块一行。"""
        return self._drawn(t, range(1, len(self.transformer.transformer_blocks) + 1))

    def _drawn(self, t: float, blocks: Sequence[int]) -> Figure:
        """一行一块，一列一个词，一格一个词元；颜色各图自己从 0 到最多，最多是几写在上面。"""
        rows, columns = len(blocks), len(self.words) + 1
        size = (1.6 * columns, 0.25 + 1.75 * rows)
        figure = Figure(figsize=size, dpi=100, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for row, block in zip(axes, blocks, strict=True):
            maps = self.maps(t, block)
            row[0].imshow(self.image)
            row[0].set_ylabel(f"第 {block} 块", fontsize=10)
            for axis, (word, shares) in zip(row[1:], maps.items(), strict=True):
                axis.imshow(shares, cmap=SHADE, vmin=0)
                axis.set_title(f"{word}：最多 {float(shares.max()):.1%}", fontsize=10)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
        figure.suptitle(f"噪声占 {t:.0%}", fontsize=10)
        return figure


@lru_cache(maxsize=32)
def _blocks(attention: Attention, t: float) -> list[torch.Tensor]:
    return attention.blocks(t)


def attention(family: Family, transformer, image, prompt: str, words: Sequence[str], seed=0):
    """看注意力：返回的东西有 `picture(t, block)` 和 `maps(t, block)`。

    Raises:
        LorakitError: 不是 Qwen-Image 那样的双流块，或这句话里没有这个词。
    """
    if family.name != "qwen-image":
        raise LorakitError(f"注意力的地图只会看 Qwen-Image 的双流块；这个网络是 {family.name}。")
    for word in words:
        places(family, prompt, word)
    return Attention(family, transformer, image, prompt, tuple(words), seed)
