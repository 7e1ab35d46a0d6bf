"""编辑底模的训练：数据教的正是要教的；快路与 stock 管线的编码相同；几秒跑通一遍。"""

import numpy as np
import pytest
import random_qwen_edit
import torch
from safetensors.torch import load_file

from lorakit.families.qwen_image_edit import QwenImageEdit
from lorakit.tiny import edits, samples
from lorakit.tiny.pretrain import base_edit
from lorakit.tiny.world import render

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", edits.EDITS)
def test_every_edit_changes_the_picture_and_says_so(name):
    rng = np.random.default_rng(6)
    for _ in range(6):
        kind, before, after, said = edits.random_edit(rng, name)
        assert kind == name and len(said) == edits.PHRASES
        assert before != after and before.style == after.style == ""
        assert render(before).tobytes() != render(after).tobytes()
        assert all(text.isascii() == (i == edits.PHRASES - 1) for i, text in enumerate(said))


def test_the_base_never_sees_line_drawings_but_knows_the_other_sample_edits():
    rng = np.random.default_rng(0)
    said = {text for _ in range(3000) for text in edits.random_edit(rng)[3]}
    assert {samples.EDITS[name][0] for name in ("hat", "night", "blue")} <= said
    assert not any("线" in text or "line" in text for text in said)


def test_the_fast_reader_equals_the_stock_encoding(tmp_path):
    family = QwenImageEdit(random_qwen_edit.build(tmp_path, plus=False), CPU, torch.float32)
    before, _, small, texts = base_edit.edit_corpus(3, workers=1)
    pipe, reader = family.pipeline(transformer=None, vae=None), base_edit.Reader(family)
    seen = reader.look(base_edit.to_device(small, CPU))
    ids, length = reader.tokenize(texts)
    for i in range(3):
        picture = base_edit.Image.fromarray(before[i])
        expected, _ = pipe.encode_prompt([texts[i][0]], image=[picture])
        ours = reader(ids[i, :1], seen[i : i + 1])[:, : int(length[i, 0]) - reader.drop]
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)


def test_a_short_run_learns_and_shares_everything_but_the_transformer(tmp_path):
    facts = base_edit.train_edit(tmp_path, CPU, 3, 5, 1, size=6, batch=2)
    assert facts["steps"] == 3
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        name = f"{part}.safetensors"
        assert (tmp_path / name).read_bytes() == (base_edit.BASE / name).read_bytes()
    name = "transformer/diffusion_pytorch_model.safetensors"
    old, new = load_file(base_edit.BASE / name), load_file(tmp_path / name)
    assert old.keys() == new.keys() and any(not torch.equal(old[k], new[k]) for k in old)
    assert {value.dtype for value in new.values()} == {torch.bfloat16}
    sheet = tmp_path / "samples.png"
    report = base_edit.measure_edit(tmp_path, CPU, count=2, steps=2, sheet=sheet)
    assert set(report) == {*edits.EDITS, "lineart"} and sheet.is_file()
    assert all(0 <= value <= 1 for one in report.values() for value in one.values())
