"""词的地图：份量就是 stock 的注意力自己算的那些；钩子摘掉以后，网络一点没变。"""

import pytest
import torch

import lorakit
from lorakit import lab
from lorakit.errors import LorakitError
from lorakit.lab.picture import render
from lorakit.lab.regions import places, watching
from lorakit.tiny.world import Scene, Thing
from lorakit.tiny.world import render as draw

PROMPT, WORDS = "一只红色的大猫在中间，背景是草地", ("红色", "猫", "草地")


@pytest.fixture(scope="module")
def seen():
    family = lorakit.open_family(lorakit.load_config("tiny-qwen-image"))
    image = draw(Scene((Thing("cat", "red", "center", "big"),), "meadow"))
    return lab.attention(family, family.load("transformer"), image, PROMPT, WORDS)


@pytest.fixture
def given(seen):
    """一次前向要的三样。"""
    cond = seen.family.collate(seen.family.encode_prompts([PROMPT]))
    noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(5))
    return noise, torch.tensor([0.7]), cond


@torch.no_grad()
def test_the_weights_are_those_of_the_stock_processor(seen, given, monkeypatch):
    from diffusers.models.transformers import transformer_qwenimage as stock

    plain, asked = stock.dispatch_attention_fn, []

    def listening(query, key, value, **options):
        out = plain(query, key, value, **options)
        asked.append([x.transpose(1, 2) for x in (query, key, value, out)])
        return out

    monkeypatch.setattr(stock, "dispatch_attention_fn", listening)
    with watching(seen.transformer) as ours:
        seen.family.predict_velocity(seen.transformer, *given)
    assert len(ours) == len(asked) == len(seen.transformer.transformer_blocks)
    text = given[2]["text"].shape[1]
    for weights, (query, key, value, out) in zip(ours, asked, strict=True):
        whole = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)  # (B, 头, S, S)
        assert (whole @ value - out).abs().max() < 1e-5, "stock 真的这样加权"
        assert weights.shape == (1, 4, 64, text + 64)
        assert (weights - whole[:, :, text:]).abs().max() < 1e-5
        assert (weights.sum(-1) - 1).abs().max() < 1e-5


@torch.no_grad()
def test_looking_changes_nothing(seen, given):
    before = seen.family.predict_velocity(seen.transformer, *given)
    with watching(seen.transformer):
        during = seen.family.predict_velocity(seen.transformer, *given)
    assert torch.equal(before, during)
    hooks = [block.attn._forward_pre_hooks for block in seen.transformer.transformer_blocks]
    assert not any(hooks)


def test_a_word_is_found_among_the_tokens_of_the_prompt(seen):
    _, tokenizer = seen.family.load("text")
    ids = tokenizer(PROMPT)["input_ids"]
    for word in WORDS:
        assert tokenizer.decode([ids[i] for i in places(seen.family, PROMPT, word)]) == word
    text = seen.family.encode_prompts([PROMPT])[0]["text"]
    assert len(text) == len(ids) + 5, "句子在前，模板的五个记号在后"
    with pytest.raises(LorakitError, match="没有“火箭”"):
        lab.attention(seen.family, seen.transformer, seen.image, PROMPT, ["火箭"])


def test_a_map_is_one_number_for_every_token_of_the_picture(seen):
    maps = seen.maps(0.8, 2)
    assert list(maps) == list(WORDS) and all(one.shape == (8, 8) for one in maps.values())
    table = seen.blocks(0.8)[1]
    assert torch.allclose(maps["猫"].flatten(), table[:, places(seen.family, PROMPT, "猫")[0]])
    render(seen.picture(0.8, 2)), render(seen.every_block(1.0))  # 缺一个字也会抛出
    with pytest.raises(LorakitError, match="有 4 块，得到第 5 块"):
        seen.maps(0.8, 5)


def test_what_the_book_says_about_the_cat(seen):
    """1.8 节说的：第 2 块里“红色”在猫身上、第 4 块里不在；“草地”一直不到百分之一。"""
    cat = torch.zeros(8, 8, dtype=torch.bool)
    cat[2:7, 2:6] = True

    def denser(shares):  # 猫身上的份量是别处的几倍
        return float(shares[cat].mean() / shares[~cat].mean())

    for t in (0.2, 0.8, 1.0):
        assert denser(seen.maps(t, 2)["红色"]) > 3 and denser(seen.maps(t, 4)["红色"]) < 0.5
        assert denser(seen.maps(t, 4)["猫"]) > 10
        assert max(float(seen.maps(t, b)["草地"].max()) for b in (1, 2, 3, 4)) < 0.01


def test_another_family_is_refused(seen):
    flux = lorakit.open_family(lorakit.load_config("tiny-flux"))
    with pytest.raises(LorakitError, match="这个网络是 flux"):
        lab.attention(flux, seen.transformer, seen.image, PROMPT, WORDS)
