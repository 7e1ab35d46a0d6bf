"""遮罩：权重与手算一致；裁切、翻转和图在同一处；坏的遮罩说清楚。"""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from lorakit import cache, flow
from lorakit.cache.masks import weigh
from lorakit.data import fix as data_fix
from lorakit.data import inspect
from lorakit.data.crops import View
from lorakit.errors import DataError
from lorakit.training.objective import Objective


def gray(rows) -> Image.Image:
    return Image.fromarray(np.asarray(rows, np.uint8))


@pytest.fixture
def folder(tmp_path):
    """四张 128x128 的图；头两张旁边有遮罩：左半要学、右半不学。"""
    rng, made = np.random.default_rng(0), tmp_path / "pics"
    made.mkdir()
    half = np.zeros((128, 128), np.uint8)
    half[:, :64] = 255
    for i in range(4):
        pixels = rng.integers(0, 256, (128, 128, 3), np.uint8)
        Image.fromarray(pixels).save(made / f"{i}.png")
        (made / f"{i}.txt").write_text(f"第 {i} 张花纹", encoding="utf-8")
        if i < 2:
            gray(half).save(made / f"{i}_mask.png")
    return made


def test_a_latent_cell_weighs_its_share_of_white():
    mask = gray([[255, 255, 0, 0], [255, 0, 0, 255], [0, 0, 255, 255], [0, 0, 255, 255]])
    got = weigh(mask, (2, 2), View(), "0" * 64)
    assert torch.allclose(got, torch.tensor([[[0.75, 0.25], [0.0, 1.0]]]), atol=1e-6)
    flipped = weigh(mask, (2, 2), View(flip=True), "0" * 64)
    assert torch.allclose(flipped, torch.tensor([[[0.25, 0.75], [1.0, 0.0]]]), atol=1e-6)
    # 4x2 的遮罩裁成正方形：只看中间两列
    wide = gray([[255, 0, 255, 255], [255, 0, 0, 255]])
    assert torch.allclose(
        weigh(wide, (2, 2), View(), "0" * 64), torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]), atol=1e-6
    )


def test_the_weighted_loss_by_hand():
    predicted = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # (1, 2, 1, 2)
    target, weight = torch.zeros_like(predicted), torch.tensor([[[[1.0, 0.5]]]])
    # (1*1 + 9*1 + 4*0.5 + 16*0.5) / (1 + 1 + 0.5 + 0.5) = 20 / 3
    assert float(flow.loss(predicted, target, weight)) == pytest.approx(20 / 3)
    ones = torch.ones_like(weight)
    assert flow.loss(predicted, target, ones) == flow.loss(predicted, target)
    assert float(flow.loss(predicted, target, torch.zeros_like(weight))) == 0


def test_file_masks_reach_the_loss_with_a_floor(config, family, folder):
    settings = config(
        f"data.folder={folder}", "data.mask=file", "data.mask_floor=0.2", "eval.holdout=0",
        "data.resolution=128",
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"2 张图没有遮罩，整张都学：2\.png、3\.png"):
        dataset = cache.prepare(settings, family)
    first, _, third, _ = dataset.train
    assert first.mask.shape == (1, 16, 16) and third.mask is None
    assert torch.equal(first.mask[0, :, :8], torch.ones(16, 8)) and not first.mask[..., 8:].any()
    weight = Objective(settings, family, dataset, None, torch.device("cpu"))._weight([first, third])
    assert weight.shape == (2, 1, 16, 16)
    assert torch.allclose(weight[0, 0, 0], torch.tensor([1.0] * 8 + [0.2] * 8))
    assert (weight[1] == 1).all()


def test_a_changed_mask_is_made_again_and_the_picture_is_not(config, family, folder):
    settings = config(f"data.folder={folder}", "data.mask=file", "eval.holdout=0")
    counts = {}

    def encode():
        counts.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cache.prepare(settings, family, lambda what, i, n: counts.update({what: n}))

    encode()
    assert counts["缩小遮罩"] == 2
    encode()
    assert counts == {}
    gray(np.full((128, 128), 255)).save(folder / "0_mask.png")
    assert (encode().train[0].mask == 1).all()
    assert counts == {"缩小遮罩": 1}


def test_alpha_is_the_mask(config, family, folder):
    image = Image.open(folder / "3.png").convert("RGBA")
    alpha = np.zeros((128, 128), np.uint8)
    alpha[:32] = 255  # 只有上面四分之一
    image.putalpha(gray(alpha))
    image.save(folder / "3.png")
    sets = (f"data.folder={folder}", "data.mask=alpha", "eval.holdout=0", "data.resolution=128")
    settings = config(*sets)
    with pytest.warns(UserWarning, match="3 张图没有遮罩"):
        dataset = cache.prepare(settings, family)
    assert float(dataset.train[3].mask.mean()) == pytest.approx(0.25)
    assert (dataset.train[3].mask[0, :4] == 1).all()


def test_no_mask_at_all_is_refused(config, family, papercut):
    for kind, said in (("alpha", "没有一张图带透明通道"), ("file", "没有一张图旁边有 _mask")):
        with pytest.raises(DataError, match=said):
            cache.prepare(config(f"data.mask={kind}"), family)


def test_the_doctor_knows_masks(folder):
    records, report = inspect(folder)
    assert len(records) == 4 and not report.errors
    assert "2 张 _mask 图是遮罩" in report.text()
    gray(np.zeros((128, 128))).save(folder / "0_mask.png")
    gray(np.full((64, 128), 255)).save(folder / "1_mask.png")
    (folder / "2_mask.png").write_bytes(b"")
    assert {p.code for p in inspect(folder)[1].errors} == {
        "mask_black",
        "mask_shape",
        "picture_empty",
    }


def test_two_masks_for_one_picture(folder):
    gray(np.full((128, 128), 255)).save(folder / "0_mask.bmp")
    assert [p.code for p in inspect(folder)[1].errors] == ["mask_twice"]


def test_a_picture_called_mask_with_its_own_caption_is_a_picture(folder):
    (folder / "0_mask.txt").write_text("一只戴面具的猫", encoding="utf-8")
    records, _ = inspect(folder)
    assert len(records) == 5


def test_fix_moves_the_mask_with_its_picture(folder):
    (folder / "0.png").write_bytes(b"<html>")
    data_fix.fix(folder)
    assert not (folder / "0_mask.png").exists()
    assert not inspect(folder)[1].errors
    data_fix.undo(folder)
    assert (folder / "0_mask.png").exists()
