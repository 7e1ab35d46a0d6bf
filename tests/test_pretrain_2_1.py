"""tiny-qwen-image-2.1 的训练：快路与 stock 相同；透明底画得对；几秒跑通一遍。"""

import numpy as np
import pytest
import torch
from PIL import Image

from lorakit.data.color import on_white
from lorakit.families.pixels import to_pixels
from lorakit.families.qwen_image_2_1 import QwenImage21
from lorakit.tiny import edits
from lorakit.tiny.examiner import clear
from lorakit.tiny.pretrain import base_qwen_2_1 as base
from lorakit.tiny.pretrain import shapes
from lorakit.tiny.pretrain.block_causal import FastQwenImage21
from lorakit.tiny.pretrain.clock import to_device
from lorakit.tiny.pretrain.loop import caption_labels
from lorakit.tiny.world import CLEAR, caption, random_scene, render, replace

CPU = torch.device("cpu")
SAID = ["一只红色的大猫在左边，背景是透明底", "猫", "a big blue car"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """随机权重的整条微型管线。"""
    home = tmp_path_factory.mktemp("tiny")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = shapes.qwen_2_1_pipeline(base.TOKENIZER, base.SIZE)
        for name, value in pipe.transformer.named_parameters():
            if "modulation" in name or name.startswith(("proj_out", "norm_out")):
                torch.nn.init.normal_(value, std=0.3)
        pipe.register_modules(vae=shapes.qwen_2_1_vae())
        pipe.save_pretrained(home)
    return home


def family_of(folder, cls=QwenImage21):
    return cls(folder, CPU, torch.float32, clear=True)


def test_the_miniature_fits():
    pipe = shapes.qwen_2_1_pipeline(base.TOKENIZER, base.SIZE)
    parts = (pipe.transformer, pipe.text_encoder, shapes.qwen_2_1_vae())
    assert sum(p.numel() * 2 for part in parts for p in part.parameters()) < 7.3e6


def test_a_clear_scene_is_the_thing_alone():
    rng = np.random.default_rng(1)
    for scene in (random_scene(rng, two=0.0) for _ in range(5)):
        bare = replace(scene, background=CLEAR)
        cut, whole = np.asarray(render(bare)), np.asarray(render(scene))
        assert cut.shape == (128, 128, 4) and clear(render(bare))
        inside = cut[..., 3] == 255
        assert inside.sum() > 200 and (cut[inside][:, :3] == whole[inside]).all()
        assert "透明底" in caption(bare)
        assert caption_labels(bare, caption(bare))[2] == -100  # 考官没有这一类背景


def test_cutting_out_says_so_and_leaves_no_background():
    kind, before, after, said = edits.cutout(np.random.default_rng(2))
    assert kind == CLEAR and before.things == after.things and len(said) == edits.PHRASES
    assert render(after).mode == "RGBA" and render(before).mode == "RGB"
    assert [text.isascii() for text in said] == [False] * 3 + [True]


@pytest.mark.parametrize("edits", [False, True])
def test_the_fast_reader_equals_the_stock_encoding(folder, edits):
    family = family_of(folder)
    pipe = family.pipeline(transformer=None, vae=None)
    reader = base.Reader(pipe)
    cut = render(replace(random_scene(np.random.default_rng(3)), background=CLEAR))
    words = reader.tokenize([[said] for said in SAID], "edit" if edits else "draw")
    seen = None
    if edits:
        look = to_device(np.asarray(on_white(cut))[None], CPU)
        seen = reader.look(look).float().expand(3, -1, -1)
    with torch.no_grad():
        ours = reader(words["ids"][:, 0], seen)
    conds = family.encode_prompts(SAID, [[cut]] * 3 if edits else None)
    for row, length, cond in zip(ours, words["length"], conds, strict=True):
        row = row[: int(length) - reader.drop]
        torch.testing.assert_close(row, cond["text"], atol=2e-2 if edits else 1e-4, rtol=1e-2)
        if edits:
            assert cond["gaps"].shape[0] == reader.before


@pytest.mark.parametrize("edits", [False, True])
@torch.no_grad()
def test_rows_of_different_length_equal_one_by_one(folder, edits):
    family, fast = family_of(folder), family_of(folder, FastQwenImage21)
    pictures = [render(random_scene(np.random.default_rng(i))) for i in range(3)]
    refs = [[one] for one in pictures] if edits else None
    conds = family.encode_prompts(SAID, refs)
    if edits:
        for cond, one in zip(conds, pictures, strict=True):
            cond |= family.control_cond([family.encode_images(to_pixels(one))[0][0]])
    x, t = torch.randn(3, 64, 8, 8, generator=torch.Generator().manual_seed(0)), torch.rand(3)
    cond = family.collate(conds)
    assert "text_mask" in cond
    want = family.predict_velocity(family.load("transformer"), x, t, cond)
    ours = fast.predict_velocity(fast.load("transformer"), x, t, cond)
    torch.testing.assert_close(ours, want, atol=2e-4, rtol=1e-3)


def test_a_short_run_makes_a_whole_pipeline(tmp_path):
    facts = base.train_vae(tmp_path, CPU, 2, 5, 1, size=8)
    assert facts["steps"] == 2 and facts["psnr_world"] > 0 and 0 <= facts["alpha_error"] <= 1
    facts = base.train_base(tmp_path, CPU, 2, 5, 1, size=8, batch=4)
    assert facts["steps"] == 2 and np.isfinite(facts["loss"])
    again = base.train_base(tmp_path, CPU, 1, 5, 1, size=8, batch=4, start=tmp_path)
    assert again["steps"] == 1
    sheet = tmp_path / "samples.png"
    report = base.measure(tmp_path, CPU, count=1, sheet=sheet, steps=2)
    assert {"draw", CLEAR, "cutout", *edits.EDITS} == set(report)
    assert Image.open(sheet).size == (12 * 128, 9 * 128)


def test_a_step_reaches_every_weight_that_is_used(folder):
    pipe = shapes.qwen_2_1_pipeline(base.TOKENIZER, base.SIZE)
    reader = base.Reader(pipe)
    data = base.Data(reader, 24, CPU, 1)
    data.encode(family_of(folder).load("vae"))
    model = base.Model(pipe, reader, 0.1)
    model(*data.batch(16, 8)).backward()
    learned = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert [n for n, p in learned if p.grad is None or not p.grad.any()] == []
