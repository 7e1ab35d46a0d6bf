"""Kontext、FLUX.2、Qwen-Image 2.1 的改图：与 stock 管线逐步对照；参考图几张、不给都行。"""

import numpy as np
import pytest
import random_flux2_dev
import random_flux2_klein
import random_flux_kontext
import random_qwen_2_1
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
from PIL import Image

from lorakit import cache, flow, infer
from lorakit.config import load_config
from lorakit.config.groups import Sample
from lorakit.errors import ConfigError, DataError
from lorakit.families import get
from lorakit.families.pixels import to_pixels
from lorakit.families.shared import pack
from lorakit.infer.fitting import near_shape
from lorakit.judge.drawing import Question, Studio
from lorakit.tiny import samples
from lorakit.tiny.world import random_scene, render
from lorakit.train import Trainer

CPU = torch.device("cpu")
SIDE, SAID = 64, "变成夜晚"
BUILT = {
    "flux-kontext": random_flux_kontext,
    "flux2-dev": random_flux2_dev,
    "flux2-klein": random_flux2_klein,
    "qwen-image-2.1": random_qwen_2_1,
}


@pytest.fixture(scope="module", params=BUILT)
def family(request, tmp_path_factory):
    folder = BUILT[request.param].build(tmp_path_factory.mktemp("model"))
    return get(request.param)(folder, CPU, torch.float32)


@pytest.fixture(scope="module")
def pipe(family):
    pipe = DiffusionPipeline.from_pretrained(family.folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def small_of(family) -> tuple[int, int]:
    """SIDE² 的图，潜变量的高与宽。"""
    return (SIDE // family.compression,) * 2


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [render(random_scene(rng), SIDE) for _ in range(count)]


def condition(family, images) -> dict:
    latents = [family.encode_images(to_pixels(image))[0][0] for image in images]
    return family.encode_prompts([SAID], [images])[0] | family.control_cond(latents)


def asked(family, pipe, images, **more) -> dict:
    """stock 管线改图要的参数；Kontext 只看一张，还总想把图放大到一百万像素。"""
    single = family.controls == (1, 1)
    exact = {"max_area": SIDE**2, "_auto_resize": False} if single else {}
    if family.text_sees:
        exact = {"output_resolution": SIDE}
    return {
        "image": images[0] if single else images, "prompt": SAID, "height": SIDE, "width": SIDE,
        **exact, **more,
    }  # fmt: skip


@pytest.mark.parametrize("count", [1, 2])
def test_one_step_equals_the_stock_pipeline(family, pipe, count):
    images = pictures(min(count, family.controls[1]))
    made = BUILT[family.name]
    seen, step = [], pipe.scheduler.step

    def spy(v, timestep, sample, **options):
        after = step(v, timestep, sample, **options)
        seen.append((sample.clone(), after[0]))
        return after

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.scheduler, "step", spy)
        pipe(**asked(family, pipe, images, **family.sample_arguments(1.0, 1)),
             num_inference_steps=3, output_type="latent",
             generator=torch.Generator().manual_seed(0))  # fmt: skip
    small = SIDE // family.compression
    before, after = (made.to_latents(value, small, small) for value in seen[0])
    t, t_next = (pipe.scheduler.sigmas[i].expand(1) for i in (0, 1))
    transformer = family.load("transformer")
    with torch.no_grad():
        cond = family.collate([condition(family, images)])
        v = family.predict_velocity(transformer, before, t, cond)
        other = family.collate([condition(family, pictures(3)[2:])])
        assert (v - family.predict_velocity(transformer, before, t, other)).abs().max() > 1e-3
    ours = flow.euler_step(before, v, t, t_next)
    torch.testing.assert_close(ours, after, atol=1e-3, rtol=1e-3)


def test_control_latents_equal_the_pipeline_s(family, pipe):
    pixels = to_pixels(pictures(1)[0])
    given = pixels
    if family.text_sees:  # Qwen-Image 2.1 还有透明通道与时间这一维
        given = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)[:, :, None]
    theirs = pipe._encode_vae_image(given, torch.Generator()).reshape(1, -1, *small_of(family))
    torch.testing.assert_close(family.encode_images(pixels)[0], theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_order_of_the_pictures_matters(family):
    if family.controls[1] == 1:
        pytest.skip("只看一张")
    first, second = pictures(2)
    x, t = torch.randn(1, family.latent_channels, 4, 4), torch.tensor([0.6])
    conds = [family.collate([condition(family, some)]) for some in
             ([first, second], [second, first], [first])]  # fmt: skip
    one, two, alone = (
        family.predict_velocity(family.load("transformer"), x, t, cond) for cond in conds
    )
    assert (one - two).abs().max() > 1e-3 and (one - alone).abs().max() > 1e-3


def test_drawing_an_edit_equals_the_stock_pipeline(family, pipe):
    """改成的图逐像素相同：时间、引导（内嵌的、CFG 的）都一样。"""
    (image,) = pictures(1)
    shape = (1, family.latent_channels, *small_of(family))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    packed = noise
    if family.name == "flux-kontext":
        packed = pack(noise)
    if family.name == "qwen-image-2.1":
        packed = noise.flatten(2).transpose(1, 2)
    given = asked(family, pipe, [image], **family.sample_arguments(3.0, 1))
    theirs = pipe(**given, num_inference_steps=3, latents=packed).images[0]
    stock = family.pipeline(family.load("transformer"))
    ours = infer.edit(
        family, stock, [SAID], [[image]], Sample(steps=3, guidance=3.0, seed=5), (SIDE, SIDE)
    )[0]
    if theirs.mode == "RGBA":
        theirs = Image.alpha_composite(Image.new("RGBA", theirs.size, "white"), theirs)
    differ = np.abs(np.asarray(ours, int) - np.asarray(theirs.convert("RGB"), int))
    assert differ.max() <= 2


def test_our_sizes_are_the_preferred_ones_of_kontext():
    for size in kontext.PREFERRED_KONTEXT_RESOLUTIONS:
        ours = near_shape(size, 1024, 16)
        assert max(abs(a - b) for a, b in zip(size, ours, strict=True)) <= 16


@pytest.mark.parametrize("paired", [True, False])
def test_one_model_trains_both_uses(family, tmp_path, paired):
    """成对的图练改图，只有图就练画图；只会改图的说清楚要控制图。"""
    folder = samples.write("edit-night", tmp_path / "pairs", count=6)
    config = load_config("tiny-qwen-image", [
        f"model.family={family.name}", f"model.path={family.folder}", "lora.targets=attention",
        f"data.folder={folder if paired else folder / 'images'}", "train.steps=2",
        "data.resolution=64", "train.batch_size=2", "lora.rank=2", "data.caption_dropout=0.5",
        "sample.prompts=[变成夜晚]", "sample.steps=2", f"run.output={tmp_path / 'run'}",
    ])  # fmt: skip
    if not paired:
        (folder / "control").rename(tmp_path / "elsewhere")
        if family.controls[0]:
            with pytest.raises(DataError, match="要有控制图"):
                cache.prepare(config, family)
            return
    trainer = Trainer(config)
    assert all(np.isfinite(step.loss) for step in trainer)
    assert trainer.dataset.edits is paired
    pipe = trainer.family.pipeline(trainer.transformer)
    pipe.set_progress_bar_config(disable=True)
    (drawn,) = infer.preview(trainer.family, pipe, config, trainer.dataset)
    assert drawn.size == (64, 64)
    looks = tuple(pictures(1)) if paired else ()
    studio = Studio(config, trainer.family, {"asked": [Question(SAID, (64, 64), looks)]})
    assert studio.draw(2, "asked", 0)[0].size == (64, 64)  # 判断也按练的是画还是改来画


def test_an_edit_needs_a_picture(family, pipe):
    with pytest.raises(ConfigError, match="得到 0 张"):
        infer.edit(family, pipe, [SAID], [[]], Sample(steps=2), (SIDE, SIDE))
