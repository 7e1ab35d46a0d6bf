"""data.alpha：透明通道从读图、裁切、缓存、训练到画出来的图，与 stock 管线对照。"""

import numpy as np
import pytest
import random_qwen_2_1
import torch
from PIL import Image

from lorakit import cache, infer
from lorakit.cache.keys import image_fields
from lorakit.cli.main import main
from lorakit.config import load_config
from lorakit.config.groups import Data, Sample
from lorakit.data.color import on_checker, on_white
from lorakit.data.crops import View, show
from lorakit.data.inspection import inspect
from lorakit.data.load import inspect_sources
from lorakit.data.read import read_image
from lorakit.errors import ConfigError
from lorakit.families import get, open_family
from lorakit.families.pixels import to_pixels
from lorakit.infer.fitting import fit
from lorakit.judge.drawing import Question, Studio
from lorakit.results import board, report
from lorakit.tiny.world import random_scene, render
from lorakit.train import Trainer
from lorakit.training import preflight

SIDE = 64
CPU = torch.device("cpu")


def sticker(seed: int = 3, side: int = 96) -> Image.Image:
    """一张贴纸：中间的圆不透明，边上半透明，外面全透明（藏着品红）。"""
    picture = render(random_scene(np.random.default_rng(seed)), side)
    rows, columns = np.indices((side, side)) - side / 2
    far = np.hypot(rows, columns) / side
    alpha = ((0.45 - far) * 10).clip(0, 1) * 255
    color = np.where(alpha[..., None] == 0, [255, 0, 255], np.asarray(picture))
    return Image.fromarray(np.dstack([color, alpha]).round().astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_qwen_2_1.build(tmp_path_factory.mktemp("model"))


@pytest.fixture
def stickers(tmp_path):
    home = tmp_path / "stickers"
    home.mkdir()
    for i in range(4):
        sticker(i).save(home / f"{i}.png")
        (home / f"{i}.txt").write_text(f"第 {i} 张贴纸", encoding="utf-8")
    return home


@pytest.fixture
def settings(folder, stickers, tmp_path):
    def make(*more: str):
        return load_config("qwen-image-2.1", [
            f"model.path={folder}", f"data.folder={stickers}", "data.resolution=64",
            "model.precision=fp32", "memory.compile=false", "memory.checkpointing=false",
            "model.quantize=none", "lora.rank=2", "train.steps=2", "train.warmup=0",
            "sample.prompts=[一张贴纸]", "sample.steps=2", "sample.guidance=1", "eval.every=0",
            "data.alpha=keep", f"run.output={tmp_path / 'run'}", *more,
        ])  # fmt: skip

    return make


def test_reading_keeps_alpha_and_drops_the_colours_nobody_sees(stickers, tmp_path):
    kept, white = read_image(stickers / "0.png", True), read_image(stickers / "0.png")
    assert (kept.mode, white.mode) == ("RGBA", "RGB")
    values, alpha = np.asarray(kept), np.asarray(sticker(0))[..., 3]
    assert (values[..., 3] == alpha).all() and not values[alpha == 0].any()
    np.testing.assert_array_equal(np.asarray(on_white(kept)), np.asarray(white))
    sticker(0).convert("RGB").save(tmp_path / "plain.png")
    assert read_image(tmp_path / "plain.png", True).mode == "RGB"  # 没有透明的还是三个通道


def test_shrinking_does_not_bleed_hidden_colours_into_the_edge():
    """手算的：颜色先乘上透明度再平均，再除回来。"""
    left = np.zeros((2, 64, 4), np.uint8)
    left[:, ::2] = (200, 100, 0, 255)  # 一列不透明、一列藏着品红的全透明
    left[:, 1::2] = (255, 0, 255, 0)
    small = show(Image.fromarray(left), (32, 1), View(), "0" * 64, Image.Resampling.BOX)
    color, alpha = np.asarray(small)[..., :3], np.asarray(small)[..., 3]
    assert (np.abs(color.astype(int) - [200, 100, 0]) <= 1).all()
    assert (np.abs(alpha.astype(int) - 128) <= 1).all()


def test_a_control_with_alpha_is_what_the_stock_pipeline_sees(folder):
    family = get("qwen-image-2.1")(folder, CPU, torch.float32, clear=True)
    pipe = family.pipeline(family.load("transformer"))
    fitted = fit(family, [sticker()], SIDE)[0]
    theirs = pipe.image_processor.preprocess(sticker(), width=SIDE, height=SIDE)
    torch.testing.assert_close(to_pixels(fitted), theirs, atol=1e-6, rtol=0)
    want = pipe._encode_vae_image(theirs[:, :, None], torch.Generator())[:, :, 0]
    torch.testing.assert_close(family.encode_images(to_pixels(fitted))[0], want)
    solid = family.encode_images(to_pixels(on_white(fitted)))[0]
    assert (want - solid).abs().max() > 0.01


@pytest.mark.parametrize("edits", [False, True])
def test_what_is_drawn_has_the_alpha_of_the_stock_pipeline(folder, edits):
    family = get("qwen-image-2.1")(folder, CPU, torch.float32, clear=True)
    pipe = family.pipeline(family.load("transformer"))
    pipe.set_progress_bar_config(disable=True)
    how = Sample(steps=2, guidance=1.0, seed=5)
    seeded = torch.Generator().manual_seed(5)
    given = {"prompt": "一张贴纸", "width": SIDE, "height": SIDE, "num_inference_steps": 2}
    given |= {"image": [sticker()], "output_resolution": SIDE} if edits else {}
    theirs = pipe(**given, generator=seeded).images[0]
    if edits:
        ours = infer.edit(family, pipe, ["一张贴纸"], [[sticker()]], how, (SIDE, SIDE))[0]
    else:
        ours = infer.generate(family, pipe, ["一张贴纸"], how, (SIDE, SIDE))[0]
    assert ours.mode == theirs.mode == "RGBA"
    assert np.ptp(np.asarray(ours)[..., 3]) > 0
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 2


def test_alpha_reaches_the_latents_and_the_cache_tells_them_apart(settings, stickers):
    kept = cache.prepare(settings(), open_family(settings()))
    white = settings("data.alpha=white")
    plain = cache.prepare(white, open_family(white))
    for one, other in zip(kept.train, plain.train, strict=True):
        assert one.record == other.record and (one.mean - other.mean).abs().max() > 0.01
    counts = {}
    cache.prepare(settings(), open_family(settings()), lambda what, i, n: counts.update({what: n}))
    assert set(counts.values()) <= {0}  # 各用各的，谁也不用重编
    fields = [image_fields(open_family(c), [kept.train[0].record], 64)[0]
              for c in (settings(), white)]  # fmt: skip
    assert fields[0] == {**fields[1], "alpha": "keep"}  # 不留透明的，键和以前一样


def test_it_trains_and_the_previews_are_transparent(settings, tmp_path):
    config = settings()
    trainer = Trainer(config)
    assert all(np.isfinite(step.loss) for step in trainer)
    pipe = trainer.family.pipeline(trainer.transformer)
    pipe.set_progress_bar_config(disable=True)
    (drawn,) = infer.preview(trainer.family, pipe, config, trainer.dataset)
    file = report.save_image(drawn, tmp_path / "run" / "samples" / "2_0.png")
    assert Image.open(file).mode == "RGBA"
    report.save_image(drawn, tmp_path / "flat.jpg")
    assert read_image(tmp_path / "flat.jpg").size == (SIDE, SIDE)
    assert board.plot(tmp_path / "run").is_file()
    studio = Studio(config, trainer.family, {"asked": [Question("一张贴纸", (SIDE, SIDE))]})
    assert [one.mode for one in studio.draw(2, "asked", 0)] == ["RGB"]  # 眼睛看白底上的
    assert Image.open(tmp_path / "run/judge/checkpoint-2/asked-0/01.png").mode == "RGBA"


def test_generate_saves_transparent_pictures(settings, tmp_path, capsys):
    config = settings()
    for _ in Trainer(config):
        pass
    out = tmp_path / "out.png"
    asked = ["generate", str(tmp_path / "run"), "--prompt", "一张贴纸", "--out", str(out)]
    assert main(asked) == 0, capsys.readouterr()
    assert Image.open(out).mode == "RGBA"


def test_a_person_sees_a_checker_where_it_is_clear():
    shown = np.asarray(on_checker(Image.new("RGBA", (32, 32), (255, 0, 0, 0))))
    assert set(map(tuple, shown.reshape(-1, 3))) == {(255, 255, 255), (204, 204, 204)}
    assert (np.asarray(on_checker(sticker()))[48, 48] == np.asarray(sticker())[48, 48, :3]).all()
    cell = np.asarray(report.grid([[sticker()]], ["一"], ["二"], 96))
    assert not (cell == [255, 0, 255]).all(-1).any()  # 藏着的颜色不露出来


@pytest.mark.parametrize(("sets", "said"), [
    (["model.family=qwen-image"], "没有透明通道.*qwen-image-2.1"),
    (["model.family=flux2-klein"], "没有透明通道.*qwen-image-2.1"),
    (["model.family=qwen-image-2.1", "data.mask=alpha"], "学不到透明"),
])  # fmt: skip
def test_what_cannot_learn_alpha_says_so(sets, said):
    with pytest.raises(ConfigError, match=f"data.alpha：.*{said}"):
        preflight.refuse(load_config("tiny-qwen-image", ["data.alpha=keep", *sets]))


def test_check_says_that_the_asked_alpha_is_kept(settings, stickers, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    for how, said, other in (("white", "合成在白底上", "照 data.alpha=keep 留着"),
                             ("keep", "照 data.alpha=keep 留着", "合成在白底上")):  # fmt: skip
        file.write_text(settings(f"data.alpha={how}").to_yaml(), encoding="utf-8")
        assert main(["check", str(file)]) == 0
        told = capsys.readouterr().out
        assert f"4 张图有透明的地方，{said}" in told and other not in told


def test_keep_without_any_alpha_is_told(settings, stickers):
    for path in stickers.glob("*.png"):
        sticker().convert("RGB").save(path)
    with pytest.warns(UserWarning, match="没有一张图有透明的地方"):
        cache.prepare(settings(), open_family(settings()))


def test_a_pair_that_differs_only_in_alpha(tmp_path):
    """抠图的成对图：合成在白底上就一样了，要说怎么练。"""
    for name, picture in (("images", sticker()), ("control", on_white(sticker()))):
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "1.png")
    (tmp_path / "images" / "1.txt").write_text("去掉背景", encoding="utf-8")
    found = [one for one in inspect(tmp_path)[1].problems if one.code == "control_clear"]
    assert found and "只差在透明" in found[0].reason and "data.alpha=keep" in found[0].mend
    ((_, report),) = inspect_sources(Data(folder=tmp_path, alpha="keep"))
    assert not [one for one in report.problems if one.code.startswith("control_")]
