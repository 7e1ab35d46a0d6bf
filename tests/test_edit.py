"""Qwen-Image-Edit：与 stock 管线逐步对照；控制图进 VAE 与 Qwen2.5-VL 两处；能练、能续、能用。"""

import numpy as np
import pytest
import random_qwen_edit
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as stock_edit
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock_plus
from PIL import Image

from lorakit import flow, lora
from lorakit.config import load_config
from lorakit.families import open_family
from lorakit.families.qwen_image import pack, unpack
from lorakit.tiny.world import random_scene, render

CPU = torch.device("cpu")
SIDE = 64


@pytest.fixture(scope="module", params=[False, True], ids=["edit", "plus"])
def family(request, tmp_path_factory):
    folder = random_qwen_edit.build(tmp_path_factory.mktemp("edit"), plus=request.param)
    return open_family(settings(folder), CPU)


def settings(folder, *more):
    base = [f"model.path={folder}", "model.family=qwen-image-edit", "data.resolution=64"]
    return load_config("tiny-qwen-image", [*base, *more])


@pytest.fixture
def small(monkeypatch):
    """stock 管线把图都放大到一百万像素，写死在代码里；测试里换成 64x64。"""
    real = stock_edit.calculate_dimensions

    def dimensions(area, ratio):
        return real(SIDE**2, ratio)

    monkeypatch.setattr(stock_edit, "calculate_dimensions", dimensions)
    monkeypatch.setattr(stock_plus, "VAE_IMAGE_SIZE", SIDE**2)
    monkeypatch.setattr(stock_plus, "calculate_dimensions", lambda a, r: dimensions(a, r)[:2])


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [render(random_scene(rng), SIDE) for _ in range(count)]


def to_pixels(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def condition(family, caption: str, images) -> dict:
    latents = [family.encode_images(to_pixels(image))[0][0] for image in images]
    return {**family.encode_prompts([caption], [images])[0], **family.control_cond(latents)}


def silent(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_one_step_equals_the_stock_pipeline(family, small):
    images = pictures(2 if family.plus else 1)
    pipe = silent(family.pipeline(family.load("transformer")))
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    states = []

    def spy(pipeline, index, timestep, values):
        states.append(values["latents"].clone())
        return values

    pipe(
        image=images if family.plus else images[0], prompt="变成夜晚", latents=pack(x),
        num_inference_steps=4, true_cfg_scale=1.0, callback_on_step_end=spy, output_type="latent",
        height=SIDE, width=SIDE,
    )  # fmt: skip
    t, t_next = (pipe.scheduler.sigmas[i].expand(1) for i in (0, 1))
    cond = family.collate([condition(family, "变成夜晚", images)])
    with torch.no_grad():
        v = family.predict_velocity(pipe.transformer, x, t, cond)
    ours = flow.euler_step(x, v, t, t_next)
    torch.testing.assert_close(unpack(states[0], 8, 8), ours, atol=2e-4, rtol=1e-4)


def test_control_latents_equal_the_pipeline_s(family):
    (image,) = pictures(1)
    pipe = family.pipeline(family.load("transformer"))
    theirs = pipe._encode_vae_image(to_pixels(image)[:, :, None], torch.Generator())
    torch.testing.assert_close(family.encode_images(to_pixels(image))[0], theirs[:, :, 0])


def test_the_picture_the_encoder_sees_is_the_pipeline_s(family, monkeypatch):
    """文字条件与 stock 管线的 __call__ 里算出来的一样：同样的放大、同样的模板。"""
    images = pictures(2 if family.plus else 1)
    images[0] = images[0].resize((96, 64))
    pipe = silent(family.pipeline(family.load("transformer")))
    asked = []

    class Enough(Exception):
        pass

    def stop(self, **arguments):
        asked.append(arguments["image"])
        raise Enough

    real = type(pipe).encode_prompt
    monkeypatch.setattr(type(pipe), "encode_prompt", stop)
    with pytest.raises(Enough):
        pipe(image=images if family.plus else images[0], prompt="变成夜晚")
    monkeypatch.setattr(type(pipe), "encode_prompt", real)
    expected, _ = pipe.encode_prompt("变成夜晚", image=asked[0])
    ours = family.encode_prompts(["变成夜晚"], [images])[0]["text"]
    torch.testing.assert_close(ours, expected[0])


@torch.no_grad()
def test_the_control_picture_matters_in_both_places(family):
    first, second = pictures(2)
    transformer = family.load("transformer").eval()
    x, t = torch.randn(1, 16, 8, 8), torch.tensor([0.6])
    a, b = condition(family, "变成夜晚", [first]), condition(family, "变成夜晚", [second])
    mixed = [a, {**a, "text": b["text"]}, {**a, "control_1": b["control_1"]}]
    va, vt, vc = (
        family.predict_velocity(transformer, x, t, family.collate([cond])) for cond in mixed
    )
    assert (va - vt).abs().max() > 1e-4
    assert (va - vc).abs().max() > 1e-3


@torch.no_grad()
def test_batch_of_two_equals_two_singles(family):
    images = pictures(2)
    said = ["变成夜晚", "给它戴上一顶红帽子, put a hat on it"]
    conds = [condition(family, text, [image]) for text, image in zip(said, images, strict=True)]
    assert len(conds[0]["text"]) < len(conds[1]["text"])
    transformer = family.load("transformer").eval()
    x, t = torch.randn(2, 16, 8, 8), torch.tensor([0.3, 0.8])
    both = family.predict_velocity(transformer, x, t, family.collate(conds))
    for i in (0, 1):
        one = family.predict_velocity(
            transformer, x[i : i + 1], t[i : i + 1], family.collate([conds[i]])
        )
        torch.testing.assert_close(one[0], both[i], atol=1e-4, rtol=1e-4)


def test_sixty_four_template_tokens(family):
    pipe = family.pipeline(transformer=None, vae=None)
    head = pipe.prompt_template_encode.split("{}")[0].split("<|vision_start|>")[0]
    assert len(family.load("text")[1](head).input_ids) == pipe.prompt_template_encode_start_idx
    image = pictures(1)[0]
    short, long = (len(c["text"]) for c in family.encode_prompts(["", "红帽子"], [[image]] * 2))
    assert long - short == 3


def test_a_lora_works_in_the_stock_pipeline(family, tmp_path):
    ours = open_family(settings(family.folder), CPU)
    transformer = ours.load("transformer").eval()
    cond = family.collate([condition(family, "变成夜晚", pictures(1))])
    x, t = torch.randn(1, 16, 8, 8), torch.tensor([0.5])
    config = settings(family.folder, "lora.rank=4")
    with torch.no_grad():
        before = family.predict_velocity(transformer, x, t, cond)
        parameters = lora.attach(transformer, ours, config.lora, seed=0)
        torch.testing.assert_close(family.predict_velocity(transformer, x, t, cond), before)
        for name, p in parameters.items():
            if ".lora_B." in name:
                p.normal_(std=0.05)
        expected = family.predict_velocity(transformer, x, t, cond)
    lora.save(tmp_path, transformer, config.lora, {"base": "tiny"})
    import diffusers

    pipe = getattr(diffusers, family.pipeline_class).from_pretrained(
        family.folder, processor=family.load("text")[2], torch_dtype=torch.float32
    )
    pipe.load_lora_weights(tmp_path)
    with torch.no_grad():
        loaded = family.predict_velocity(pipe.transformer, x, t, cond)
        pipe.fuse_lora()
        fused = family.predict_velocity(pipe.transformer, x, t, cond)
    torch.testing.assert_close(loaded, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fused, expected, atol=1e-4, rtol=1e-3)
    assert (expected - before).abs().max() > 1e-2
