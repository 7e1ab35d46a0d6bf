"""成对的图遇到翻转、裁切、遮罩、同类图、几个来源：控制图总和目标图一起变。"""

import shutil
import warnings

import numpy as np
import pytest
import random_qwen_edit
import torch
from PIL import Image

from lorakit import cache
from lorakit.cache import why as cache_why
from lorakit.config import load_config
from lorakit.config.groups import Source
from lorakit.data import fit, load_sources, read_image
from lorakit.data.caption import caption_folder
from lorakit.data.crops import SMALLEST, View, box_for, cut, show
from lorakit.errors import ConfigError, DataError
from lorakit.families import open_family
from lorakit.families.pixels import to_pixels
from lorakit.tiny import samples
from lorakit.train import Trainer
from lorakit.training.objective import Objective

CPU = torch.device("cpu")
DIGEST, OTHER = "0123456789abcdef" * 4, "fedcba9876543210" * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_qwen_edit.build(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path):
    return samples.write("edit-night", tmp_path / "pairs", count=4)


@pytest.fixture
def run(model, folder, tmp_path):
    def make(*more):
        base = [f"model.path={model}", "model.family=qwen-image-edit", "data.resolution=64"]
        base += [f"data.folder={folder}", f"run.output={tmp_path / 'run'}", "eval.holdout=0"]
        base += ["train.steps=2", "train.batch_size=2", "lora.rank=2", "sample.prompts=[]"]
        return load_config("tiny-qwen-image", [*base, *more])

    return make


def prepare(config, counts=None):
    report = None if counts is None else (lambda what, i, n: counts.update({what: n}))
    return cache.prepare(config, open_family(config, CPU), report)


def test_flipped_targets_come_with_flipped_controls(run, model):
    counts = {}
    config = run("data.flip=true")
    item = prepare(config, counts).train[0]
    assert counts == {"编码图片": 16, "编码描述": 16}  # 4 对 x 2 种样子；描述与空描述
    (turned,) = item.variants
    family = open_family(config, CPU)
    mirror = Image.Transpose.FLIP_LEFT_RIGHT
    control = read_image(item.record.controls[0])
    expected = family.encode_images(to_pixels(fit(control, (64, 64))[0].transpose(mirror)))[0][0]
    torch.testing.assert_close(turned.cond["control_1"], expected)
    assert torch.equal(turned.empty["control_1"], turned.cond["control_1"])
    assert not torch.equal(item.cond["control_1"], expected)
    seen = [[control.transpose(mirror)]] * 2
    said = family.encode_prompts([item.record.caption, ""], seen)
    for ours, wanted in zip((turned.cond, turned.empty), said, strict=True):
        torch.testing.assert_close(ours["text"], wanted["text"])
    plain = {}
    prepare(run(), plain)
    assert plain == {}  # 原样的那一份已经有了


def test_a_crop_takes_the_same_place_of_both():
    follow = View(crop=2, place=DIGEST)
    target = np.array(box_for((100, 80), (64, 64), View(crop=2), DIGEST))
    assert np.allclose(2 * target, box_for((200, 160), (64, 64), follow, OTHER))
    assert not np.allclose(2 * target, box_for((200, 160), (64, 64), View(crop=2), OTHER))
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    image = Image.fromarray(pixels)
    piece = cut(image, (64, 64), follow._replace(flip=True), OTHER)
    left, top, right, bottom = (round(edge) for edge in target)
    assert np.array_equal(np.asarray(piece), pixels[top:bottom, left:right][:, ::-1])
    assert cut(image, (64, 64), View(place=DIGEST), OTHER).size == (100, 80)


def test_crops_of_pairs_are_cached_by_the_target(run):
    counts, config = {}, run("data.crops=2")
    dataset = prepare(config, counts)
    assert counts == {"编码图片": 16, "编码描述": 16}
    item = dataset.train[0]
    (cropped,) = item.variants
    assert cropped.shapes == item.shapes
    control, family = read_image(item.record.controls[0]), open_family(config, CPU)
    shown = show(control, (64, 64), View(crop=1), item.record.digest)
    torch.testing.assert_close(
        cropped.cond["control_1"], family.encode_images(to_pixels(shown))[0][0]
    )
    left, top, right, bottom = box_for(control.size, (64, 64), View(crop=1), item.record.digest)
    assert right - left >= SMALLEST * 127 and top >= 0 and bottom <= control.height
    piece = control.crop([round(edge) for edge in (left, top, right, bottom)])
    wanted = family.encode_prompts([item.record.caption], [[piece]])[0]["text"]
    torch.testing.assert_close(cropped.cond["text"], wanted)
    again = {}
    prepare(config, again)
    assert again == {}
    with Image.open(item.record.path) as image:
        image.transpose(Image.Transpose.ROTATE_180).save(item.record.path)
    prepare(config, again)  # 换了目标图：它的两种样子、裁切跟着它走的控制图与两句描述
    assert again == {"编码图片": 3, "编码描述": 2}


def test_one_control_for_two_targets_crops_with_each(run, folder):
    first, second = sorted((folder / "control").glob("*.png"))[:2]
    shutil.copy(first, second)
    a, b = prepare(run("data.crops=2")).train[:2]
    assert torch.equal(a.cond["control_1"], b.cond["control_1"])
    assert not torch.equal(a.variants[0].cond["control_1"], b.variants[0].cond["control_1"])


def test_masks_weigh_the_target_of_a_pair(run, folder):
    half = np.zeros((128, 128), np.uint8)
    half[:, :64] = 255
    for path in sorted((folder / "images").glob("*.png")):
        Image.fromarray(half).save(path.with_stem(f"{path.stem}_mask"))
    config = run("data.mask=file", "data.flip=true")
    dataset = prepare(config)
    item = dataset.train[0]
    assert len(dataset.train) == 4 and item.mask.shape == (1, 8, 8)
    assert (item.mask[..., :4] == 1).all() and not item.mask[..., 4:].any()
    assert torch.equal(item.variants[0].mask, item.mask.flip(-1))
    steps = list(Trainer(config, dataset))
    assert all(np.isfinite(step.loss) for step in steps)


def test_a_control_picture_may_be_called_mask(run, folder):
    name = sorted((folder / "images").glob("*.png"))[0].stem
    for part in ("images", "control"):
        shutil.copy(folder / part / f"{name}.png", folder / part / f"{name}_mask.png")
    (folder / "images" / f"{name}_mask.txt").write_text("变成夜晚", encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records = load_sources(run().data.sources)
    assert len(records) == 5 and all(len(record.controls) == 1 for record in records)


def test_class_pictures_of_an_edit_model_are_pairs_too(run, tmp_path, papercut):
    others = samples.write("edit-blue", tmp_path / "others", count=3)
    config = run(f"data.class_folder={others}", "data.class_weight=2", "data.caption_dropout=1")
    dataset = prepare(config)
    assert len(dataset.prior) == 3
    assert all(item.shapes == ((16, 8, 8), (16, 8, 8)) for item in dataset.prior)
    objective = Objective(config, open_family(config, CPU), dataset, None, CPU)
    batch = objective.batch(0, 0)
    given = [row for (_, _, _, cond, _), _ in batch.parts for row in cond["text"]]
    assert len(given) == 4  # 描述全丢掉了
    for row, item in zip(given, batch.items, strict=True):
        empty = item.empty["text"]
        assert torch.equal(row[: len(empty)], empty) and not row[len(empty) :].any()
    with pytest.raises(DataError, match=r"data\.class_folder：.*并排的 control 文件夹。"):
        prepare(run(f"data.class_folder={papercut}"))


def test_each_source_has_its_own_controls(run, folder, tmp_path):
    more = samples.write("edit-blue", tmp_path / "more", count=2)
    (more / "control").rename(tmp_path / "before")
    listed = f"[{folder}, {{folder: {more}, repeats: 3, control_folder: {tmp_path / 'before'}}}]"
    config = run(f"data.folder={listed}")
    records = load_sources(config.data.sources)
    assert [r.repeats for r in records] == [1] * 4 + [3] * 2
    assert all(len(r.controls) == 1 for r in records)
    (tmp_path / "saved.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(tmp_path / "saved.yaml") == config
    alone = load_config(None, ["data.folder=a", "data.control_folder=b"])
    assert alone.data.sources == (Source(folder="a", control_folder="b"),)
    with pytest.raises(ConfigError, match="写在每一个里"):
        load_config(None, ["data.folder=[a, b]", "data.control_folder=c"])


def test_cache_why_finds_the_source_of_a_picture(run, folder, tmp_path):
    (folder / "control").rename(tmp_path / "before")
    others = samples.write("edit-blue", tmp_path / "others", count=3)
    source = f"data.folder=[{{folder: {folder}, control_folder: {tmp_path / 'before'}}}]"
    config = run(source, f"data.class_folder={others}", "data.trigger=ohwx")
    family = open_family(config, CPU)
    prepare(config)
    for where in (folder, others):
        picture = sorted((where / "images").glob("*.png"))[0]
        assert cache_why.why(config, family, picture).count("会重用") == 2
    plain = load_config("tiny-qwen-image", [f"data.folder={others / 'images'}"])
    prepare(plain)
    said = cache_why.why(plain, open_family(plain, CPU), picture)
    assert said.count("会重用") == 2


def test_captions_of_pairs_are_not_guessed(folder):
    with pytest.raises(DataError, match="怎么改"):
        caption_folder(folder, lambda image: "一只猫", overwrite=True)
