"""微型模型：怎样炼成的（核对零件）、随包的权重是不是说明里说的那样。"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline
from matplotlib.cbook import get_sample_data
from PIL import Image

from lorakit import hub
from lorakit.tiny.examiner import HEADS, examine, share, to_pixels
from lorakit.tiny.pretrain import shapes
from lorakit.tiny.pretrain.base_qwen import BaseData, BaseModel
from lorakit.tiny.pretrain.clock import Clock, checked_compile
from lorakit.tiny.pretrain.loop import caption_labels
from lorakit.tiny.pretrain.vae import flatten, psnr, restore
from lorakit.tiny.world import caption, random_scene, render

NAMED = ("object", "color", "background", "side", "size")


def words(scene, text):
    """类别号 -> 名字；没说到的是 None。"""
    found = caption_labels(scene, text)
    pairs = zip(NAMED, found, strict=True)
    return [None if label == -100 else list(HEADS[name])[label] for name, label in pairs]


def test_caption_labels_only_what_is_said():
    scene = random_scene(np.random.default_rng(0), two=0.0)
    thing = replace(scene.things[0], kind="cat", color="red", side="left", size="big")
    scene = replace(scene, background="sea", things=(thing,))
    assert words(scene, "一只红色的大猫在左边，背景是大海") == ["cat", "red", "sea", "left", "big"]
    assert words(scene, "一只猫，背景是大海") == ["cat", None, "sea", None, None]  # 大海不是大
    assert words(scene, "a red cat") == ["cat", "red", None, None, None]
    two = replace(scene, things=(thing, thing))
    assert words(two, "一只猫和一只猫在大海") == [None, None, "sea", None, None]


@pytest.mark.parametrize("english", [False, True])
def test_full_captions_say_everything(english):
    rng = np.random.default_rng(5)
    for scene in (random_scene(rng, two=0.0) for _ in range(50)):
        thing = scene.things[0]
        said = words(scene, caption(scene, english=english))
        assert said == [thing.kind, thing.color, scene.background, thing.side, thing.size]


def test_flattened_vae_is_the_same_vae():
    torch.manual_seed(0)
    vae = shapes.qwen_vae().eval()
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        whole = vae.encode(x[:, :, None]).latent_dist.parameters[:, :, 0]
        image = vae.decode(whole[:, :16, None]).sample[:, :, 0]
        flatten(vae)
        flat = vae.quant_conv(vae.encoder(x))
        flat_image = vae.decoder(vae.post_quant_conv(flat[:, :16]))
        restore(vae)
        again = vae.encode(x[:, :, None]).latent_dist.parameters[:, :, 0]
    assert torch.allclose(flat, whole, atol=1e-5)
    assert torch.allclose(flat_image.clamp(-1, 1), image, atol=1e-5)
    assert torch.equal(again, whole)


def test_a_wrong_compiler_is_not_trusted(monkeypatch):
    weight = torch.nn.Parameter(torch.tensor([2.0]))

    def loss(x):
        return (weight * x).sum()

    monkeypatch.setattr(torch, "compile", lambda f, **_: lambda x: f(x) * 0.5)
    assert checked_compile(loss, [weight], torch.ones(1)) is loss
    good = []
    monkeypatch.setattr(torch, "compile", lambda f, **_: good.append(f) or (lambda x: f(x)))
    assert checked_compile(loss, [weight], torch.ones(1)) is not loss
    assert weight.grad is None


def test_clock_stops_and_lr_falls():
    clock = Clock(steps=10, minutes=60)
    rates = [clock.lr(1.0, warmup=2) for _ in clock]
    assert (
        len(rates) == 10 and rates[0] == pytest.approx(0.5) and rates[1] > rates[5] > rates[9] > 0
    )


def test_a_step_of_the_base_reaches_every_weight(family):
    """底模的一步：文本编码器与 Transformer 的每个权重都学得到（视觉塔除外）。"""
    tokenizer = hub.locate("tiny-qwen-image") / "tokenizer"
    pipe = shapes.qwen_pipeline(tokenizer)
    data = BaseData(pipe, family.load("vae"), 8, torch.device("cpu"), 1)
    model = BaseModel(pipe, naming=0.1)
    loss = model(*data.batch(8))
    loss.backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert loss.item() > 0.5
    # 最后一块的文字流之后没有人再读，上游的结构就是这样
    last = f"transformer_blocks.{shapes.qwen_transformer().config.num_layers - 1}."
    assert [n for n in silent if last not in n] == []


def test_shipped_model_opens_as_it_is_and_listens():
    pipe = QwenImagePipeline.from_pretrained(hub.locate("tiny-qwen-image"))
    assert {pipe.text_encoder.dtype, pipe.transformer.dtype, pipe.vae.dtype} == {torch.float32}
    pipe.set_progress_bar_config(disable=True)
    prompts = ["一只红色的大猫在中间，背景是草地", "a big blue car in the middle, with snow behind"]
    images = pipe(
        prompts, negative_prompt=[" "] * 2, true_cfg_scale=3.0, width=128, height=128,
        num_inference_steps=12, generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    verdicts = examine(images)
    assert share(verdicts, object=["cat", "car"], color=["red", "blue"]) == 1


def test_shipped_vae_meets_its_bars():
    folder = hub.locate("tiny-qwen-image") / "vae"
    vae = AutoencoderKLQwenImage.from_pretrained(folder)

    @torch.no_grad()
    def there_and_back(x):
        return vae.decode(vae.encode(x[:, :, None]).latent_dist.mode()).sample[:, :, 0]

    rng = np.random.default_rng(99)
    assert psnr(there_and_back, to_pixels([render(random_scene(rng)) for _ in range(10)])) > 33
    with get_sample_data("grace_hopper.jpg", asfileobj=True) as file:
        photo = Image.open(file).convert("RGB")
    side = min(photo.size)
    photo = photo.crop((0, 0, side, side)).resize((128, 128), Image.Resampling.LANCZOS)
    assert psnr(there_and_back, to_pixels([photo])) > 21
