"""遮罩：权重与手算一致；裁切、翻转和图在同一处；坏的遮罩说清楚。"""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from lorakit import cache, flow
from lorakit.cache.masks import weigh
from lorakit.data import fix as data_fix
from lorakit.data import inspect
from lorakit.data.crops import View
from lorakit.data.mask import read_alpha, read_mask
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


@pytest.mark.parametrize(("name", "rows"), [
    ("metadata.jsonl", '{"file_name": "0_mask.png", "text": "戴面具的人"}'),
    ("metadata.csv", "file_name,text\n0_mask.png,戴面具的人\n"),
    ("captions.json", '{"0_mask.png": "戴面具的人"}'),
])  # fmt: skip
def test_a_picture_with_a_caption_in_a_table_is_no_mask(folder, name, rows):
    (folder / name).write_text(rows, encoding="utf-8")
    records, report = inspect(folder)
    assert not report.errors and len(records) == 5
    masks = {r.path.name: r.mask and r.mask.name for r in records}
    assert masks["0.png"] is None and masks["1.png"] == "1_mask.png"


def test_a_mask_listed_without_a_caption_says_what_it_is(folder):
    text = '{"file_name": "0_mask.png", "label": 1}'
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    records, report = inspect(folder)
    (problem,) = report.errors
    assert "遮罩" in problem.reason and "格式" not in problem.reason and "另存" not in problem.mend
    assert len(records) == 4 and records[0].mask.name == "0_mask.png"


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


HALF = np.zeros((128, 128), np.uint8)
HALF[:, :64] = 255


def painted() -> dict[str, Image.Image]:
    """左半要学的遮罩，用各种模式存。"""
    white, half = Image.new("L", (128, 128), 255), gray(HALF)
    layer = np.zeros((128, 128, 4), np.uint8)
    layer[:, :64] = 255
    palette = half.point(lambda v: v // 255).convert("P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    photo = Image.new("RGB", (128, 128), "white")
    photo.putalpha(half)
    ink = Image.merge("CMYK", [Image.new("L", (128, 128))] * 3 + [half.point(lambda v: 255 - v)])
    return {
        "L": half, "1": half.convert("1"), "RGB": half.convert("RGB"),
        "RGBA layer": Image.fromarray(layer), "RGBA opaque": half.convert("RGBA"),
        "white with alpha": photo, "LA": Image.merge("LA", (white, half)),
        "LA both": Image.merge("LA", (half, half)), "P": palette,
        "I;16": Image.fromarray(HALF.astype(np.uint16) * 257), "CMYK": ink,
    }  # fmt: skip


@pytest.mark.parametrize("mode", painted())
def test_a_mask_means_what_was_painted(folder, mode):
    path = folder / ("0_mask.png" if mode != "CMYK" else "0_mask.jpg")
    (folder / "0_mask.png").unlink()
    painted()[mode].save(path, quality=100)
    got = np.asarray(read_mask(path), int)
    assert np.abs(got - HALF).max() <= (3 if mode == "CMYK" else 0)
    assert [p.code for p in inspect(folder)[1].problems] == ["masks"]


@pytest.mark.parametrize("suffix", ["webp", "heic", "avif", "bmp", "jpg"])
def test_a_mask_in_every_format(folder, suffix):
    (folder / "0_mask.png").unlink()
    gray(HALF).save(folder / f"0_mask.{suffix}", quality=100)
    got = np.asarray(read_mask(folder / f"0_mask.{suffix}"), int)
    assert np.abs(got - HALF)[:, [0, 50, 70, 127]].max() <= 8
    assert inspect(folder)[0][0].mask.suffix == f".{suffix}"


def test_transparent_keys_of_masks(folder):
    path = folder / "0_mask.png"
    palette = painted()["P"]
    palette.putpalette([200, 200, 200, 255, 255, 255])  # 0 号是灰的，但是透明
    nine, deep = gray(np.where(HALF, 255, 9)), np.where(HALF, 65535, 999).astype(np.uint16)
    keyed = [
        (palette, 0),
        (nine, 9),
        (nine.convert("RGB"), (9, 9, 9)),
        (Image.fromarray(deep), 999),
    ]
    for image, clear in keyed:
        image.save(path, transparency=clear)
        assert np.array_equal(np.asarray(read_mask(path)), HALF), image.mode


def test_half_strength_is_kept_whatever_the_profile(folder):
    from test_color import icc

    gray(np.where(HALF, 128, 40)).save(folder / "0_mask.png", icc_profile=icc(gamma=1.0))
    assert read_mask(folder / "0_mask.png").getextrema() == (40, 128)


ODD = {
    "全白": (np.full((128, 128), 255), "mask_white", "warning", "和没有遮罩一样"),
    "几乎全白": (np.where(HALF, 255, 250), "mask_white", "warning", "和没有遮罩一样"),
    "全黑": (np.zeros((128, 128)), "mask_black", "error", "全是黑的"),
    "标签": (HALF // 255, "mask_black", "error", "乘以 255"),
    "很暗": (HALF // 3, "mask_dark", "warning", "85/255"),
}


@pytest.mark.parametrize("name", ODD)
def test_a_mask_that_means_nothing_is_told(folder, name):
    values, code, severity, words = ODD[name]
    gray(values).save(folder / "0_mask.png")
    report = inspect(folder)[1]
    assert [(p.code, p.severity) for p in report.problems] == [(code, severity), ("masks", "note")]
    assert words in report.text()


def test_black_paint_on_a_clear_layer_and_colour_are_told(folder):
    layer = np.zeros((128, 128, 4), np.uint8)
    layer[:, 64:, 3] = 255  # 在透明图层上用黑笔涂了右半
    Image.fromarray(layer).save(folder / "0_mask.png")
    report = inspect(folder)[1]
    assert [p.code for p in report.errors] == ["mask_black"] and "透明图层" in report.text()
    red = np.zeros((128, 128, 3), np.uint8)
    red[:, :64] = 255, 160, 160
    Image.fromarray(red).save(folder / "0_mask.png")
    assert [p.code for p in inspect(folder)[1].warnings] == ["mask_color"]
    Image.fromarray(red).resize((64, 64)).convert("L").save(folder / "0_mask.jpg", quality=30)
    (folder / "0_mask.png").unlink()  # 缩小过、压得很狠的灰图不算彩色
    assert not inspect(folder)[1].warnings


def test_all_white_trains_like_none_and_a_clear_layer_does_not(config, family, folder):
    layer = np.zeros((128, 128, 4), np.uint8)
    layer[:, :64] = 255
    Image.fromarray(layer).save(folder / "0_mask.png")
    settings = config(f"data.folder={folder}", "data.mask=file", "eval.holdout=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mask = cache.prepare(settings, family).train[0].mask
    half = mask.shape[-1] // 2
    assert (mask[..., :half] == 1).all() and not mask[..., half:].any()


@pytest.mark.parametrize("orientation", [5, 6, 7, 8, 3])
@pytest.mark.parametrize("way", ["upright", "stored", "own exif"])
def test_masks_turn_with_their_picture(folder, orientation, way):
    tags = Image.Exif()
    tags[0x0112] = orientation
    values = np.zeros((64, 128), np.uint8)
    values[:20, :50] = 255
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (64, 128, 3), np.uint8))
    picture.save(folder / "0.png", exif=tags)
    want = ImageOps.exif_transpose(_with(gray(values), tags))
    if way == "upright":
        want.save(folder / "0_mask.png")
    else:
        gray(values).save(folder / "0_mask.png", exif=tags if way == "own exif" else b"")
    got = read_mask(folder / "0_mask.png", folder / "0.png")
    if way == "stored" and orientation == 3:  # 形状一样，看不出来：当作照看到的样子画的
        want = gray(values)
    assert np.array_equal(np.asarray(got), np.asarray(want))
    assert not inspect(folder)[1].errors


def _with(image: Image.Image, tags: Image.Exif) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "PNG", exif=tags)
    return Image.open(file)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "I;16"])
def test_alpha_of_every_mode(tmp_path, mode):
    path, where = tmp_path / "a.png", HALF == 0
    rgb = Image.fromarray(np.where(where[..., None], [9, 9, 9], [99, 150, 200]).astype(np.uint8))
    options = {}
    if mode in ("RGBA", "LA"):
        image = rgb.convert(mode[:-1])
        image.putalpha(gray(HALF))
    elif mode == "P":
        image = Image.fromarray(where.astype(np.uint8)).convert("P")
        image.putpalette([1, 2, 3, 200, 100, 50])
        options = {"transparency": 1}
    elif mode == "I;16":
        image = Image.fromarray(np.where(where, 700, 9999).astype(np.uint16))
        options = {"transparency": 700}
    else:
        image, options = rgb.convert(mode), {"transparency": 9 if mode == "L" else (9, 9, 9)}
    image.save(path, **options)
    assert np.array_equal(np.asarray(read_alpha(path)), HALF)
    gray(HALF).convert("RGBA").save(path)  # 处处不透明：和没有一样
    assert read_alpha(path) is None


def test_alpha_that_masks_nothing_or_all(config, family, folder):
    settings = config(f"data.folder={folder}", "data.mask=alpha", "eval.holdout=0")
    for i in range(4):
        Image.open(folder / f"{i}.png").convert("RGBA").save(folder / f"{i}.png")
    with pytest.raises(DataError, match="没有一张图带透明通道"):
        cache.prepare(settings, family)
    clear = Image.open(folder / "3.png")
    clear.putalpha(0)
    clear.save(folder / "3.png")
    with pytest.raises(DataError, match=r"3\.png 整张都是透明的"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache.prepare(settings, family)


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
