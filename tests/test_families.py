"""Qwen-Image 自己的事与训练过的微型模型；人人都有的合同在 test_contract.py。"""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from lorakit import families
from lorakit.errors import ConfigError
from lorakit.families import get
from lorakit.families.qwen_image import single_frame
from lorakit.families.shared import pack, unpack
from lorakit.tiny.examiner import to_pixels
from lorakit.tiny.pretrain import tokenizer
from lorakit.tiny.world import random_scene, render

ROOT = Path(families.__file__).parent.parent


def pictures(count: int) -> torch.Tensor:
    rng = np.random.default_rng(5)
    return to_pixels([render(random_scene(rng)) for _ in range(count)])


def test_pack_round_trip():
    x = torch.randn(2, 16, 8, 12)
    packed = pack(x)
    assert packed.shape == (2, 24, 64)
    torch.testing.assert_close(unpack(packed, 8, 12), x)


def test_encode_decode_and_scale(family):
    x = pictures(8)
    mean, std = family.encode_images(x)
    assert mean.shape == std.shape == (8, 16, 16, 16)
    assert abs(mean.mean().item()) < 0.3
    assert 0.7 < mean.std().item() < 1.3
    mse = ((family.decode(mean) - x) / 2).pow(2).mean()
    assert -10 * torch.log10(mse) > 24


def test_single_frame_changes_nothing():
    from diffusers import AutoencoderKLQwenImage

    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4, temperal_downsample=[True, False],
    ).eval()  # fmt: skip
    still, clip = torch.randn(1, 3, 1, 32, 32), torch.randn(1, 3, 5, 32, 32)
    with torch.no_grad():
        expected = [vae(still).sample, vae(clip).sample]
        single_frame(vae)
        torch.testing.assert_close(vae(still).sample, expected[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(vae(clip).sample, expected[1], atol=1e-5, rtol=1e-4)


def test_template_tokens_are_34_and_64(family):
    tok = family.load("text")[1]
    text, edit = tokenizer.templates()
    assert len(tok(text.split("{}")[0]).input_ids) == 34
    assert len(tok(edit.split("<|vision_start|>")[0]).input_ids) == 64


@pytest.mark.parametrize("word", ["剪纸", "ohwx", "魑魅魍魉", "sks person", "🐱"])
def test_unseen_words_tokenize_stably(family, word):
    tok = family.load("text")[1]
    alone = tok(word).input_ids
    assert tok.decode(alone) == word
    inside = tok(f"{word}，一只猫").input_ids
    assert inside[: len(alone)] == alone


def test_chinese_characters_never_merge(family):
    tok = family.load("text")[1]
    assert len(tok("一只红色的大猫在左边").input_ids) == 10


def trees(folder: Path):
    """folder 里的每个模块与它的语法树。"""
    for path in sorted(folder.rglob("*.py")):
        yield path, ast.parse(path.read_text("utf-8"))


def is_family(node: ast.AST) -> bool:
    """写作 family 或 谁.family 的；family.parts 那样再往里的也算。"""
    if isinstance(node, ast.Attribute):
        return node.attr == "family" or is_family(node.value)
    return isinstance(node, ast.Name) and node.id == "family"


def test_nobody_outside_sets_what_a_family_holds():
    """家族的属性只由构造、again 与它自己的方法定；外面改，读的人就不知道它什么时候变了。"""
    for path, tree in trees(ROOT):
        if path.parent == ROOT / "families":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute | ast.Subscript):
                set_here = isinstance(node.ctx, ast.Store | ast.Del) and is_family(node.value)
            else:
                called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
                set_here = called and node.func.id == "setattr" and is_family(node.args[0])
            assert not set_here, f"{path.relative_to(ROOT)}:{node.lineno}"


def test_unknown_family_is_explained():
    with pytest.raises(ConfigError, match="qwen-image"):
        get("qwen-imag")


def test_compiled_rotary_embedding_equals_the_stock_one():
    """编译时用实数算的旋转位置编码，与 stock 的复数相同，梯度也一样。"""
    from diffusers.models.transformers import transformer_qwenimage as stock

    from lorakit.families import qwen_image

    qwen_image.fuse_rope()
    ours = stock.apply_rotary_emb_qwen
    qwen_image.fuse_rope()  # 再来一次也不会自己套自己
    assert stock.apply_rotary_emb_qwen is ours
    freqs = torch.polar(torch.ones(12, 8), torch.randn(12, 8))
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 12, 3, 16).to(dtype).requires_grad_()
        results = []
        for rotate in (ours, torch.compile(ours, backend="eager")):
            out = rotate(x, freqs, use_real=False)
            (grad,) = torch.autograd.grad(out.float().square().sum(), x)
            results.append((out, grad))
        for plain, compiled in zip(*results, strict=True):
            torch.testing.assert_close(plain, compiled)  # 精度也要相同


def test_masks_reach_attention_as_stock_makes_them(monkeypatch):
    from diffusers.models.controlnets.controlnet_qwenimage import compute_text_seq_len_from_mask
    from diffusers.models.transformers import transformer_qwenimage as stock

    from lorakit.families import qwen_image

    monkeypatch.setattr(stock, "compute_text_seq_len_from_mask", None)
    qwen_image.keep_mask()
    text = torch.randn(2, 3, 4)
    for mask in (None, torch.tensor([[1, 1, 1], [1, 0, 0]]), torch.ones(2, 3, dtype=torch.bool)):
        length, _, kept = stock.compute_text_seq_len_from_mask(text, mask)
        want, _, stock_kept = compute_text_seq_len_from_mask(text, mask)
        assert length == want and (kept is None) == (mask is None)
        assert mask is None or (torch.equal(kept, stock_kept) and kept.dtype == torch.bool)
