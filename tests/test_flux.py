"""FLUX.1 与 FLUX.2 自己的事：文字的长度、内嵌的引导、时间偏移；人人都有的在 test_contract.py。"""

import json
import math

import pytest
import random_flux
import random_flux2_klein
import torch
from test_contract import SHORT, noise, open_family, predict

from lorakit.config import load_config
from lorakit.errors import LorakitError
from lorakit.families import open_family as open_from_config
from lorakit.training import preflight


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_flux.build(tmp_path_factory.mktemp("flux") / "model")


def rewrite(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_text_length_is_read_from_the_tokenizer_and_capped(tmp_path):
    family = open_family("flux", random_flux.build(tmp_path))
    assert family.text_length == family.caption_limit == 32
    short, long = family.count_tokens(["一只猫", "一只猫" * 9])
    ids = family.load("text")[3](["一只猫"], add_special_tokens=False)["input_ids"]  # T5 的
    assert short == len(ids[0]) < long
    assert family.encode_prompts([SHORT])[0]["text"].shape == (32, 96)
    assert family.sample_arguments(3.5, 1) == {"guidance_scale": 3.5, "max_sequence_length": 32}
    rewrite(tmp_path / "tokenizer_2" / "tokenizer_config.json", model_max_length=int(1e30))
    assert open_family("flux", tmp_path).text_length == 512


def test_training_guidance_comes_from_the_config_and_reaches_the_model(folder):
    overrides = ["model.family=flux", f"model.path={folder}", "train.guidance=2.5"]
    family = open_from_config(load_config("tiny-qwen-image", overrides), torch.device("cpu"))
    assert family.guidance == 2.5
    conds, x = family.encode_prompts([SHORT]), noise(family, 1)
    at_2 = predict(family, conds, x)
    family.guidance = 1.0
    assert (predict(family, conds, x) - at_2).abs().max() > 1e-3


def test_a_base_without_the_guidance_input_still_runs(tmp_path):
    """有人把 dev 的引导蒸馏又去掉了：没有这个输入，就不喂。"""
    from diffusers import FluxTransformer2DModel

    folder = random_flux.build(tmp_path)
    config = dict(FluxTransformer2DModel.load_config(folder, subfolder="transformer"))
    plain = FluxTransformer2DModel.from_config(config | {"guidance_embeds": False})
    plain.save_pretrained(folder / "transformer")
    family = open_family("flux", folder)
    v = predict(family, family.encode_prompts([SHORT]), noise(family, 1))
    assert torch.isfinite(v).all()


def test_shift_at_1024_is_the_stock_one(folder):
    assert open_family("flux", folder).shift(1024, 1024) == pytest.approx(math.exp(1.15))


def test_klein_shift_depends_on_steps_as_in_the_stock_pipeline(tmp_path):
    """与 stock 调度器按 50 步排出来的时间比：中间那个 sigma 就是 shift 之后的 t。"""
    family = open_family("flux2-klein", random_flux2_klein.build(tmp_path))
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    pipe(prompt="x", width=64, height=64, num_inference_steps=50, max_sequence_length=64,
         output_type="latent", guidance_scale=1.0)  # fmt: skip
    t, s = 0.5, family.shift(64, 64)
    assert float(pipe.scheduler.sigmas[25]) == pytest.approx(s * t / (1 + (s - 1) * t), rel=1e-5)


def test_a_distilled_klein_is_refused_whatever_its_name(tmp_path):
    folder = random_flux2_klein.build(tmp_path)
    config = load_config(None, ["model.family=flux2-klein", "model.path=my-model"])
    preflight.refuse(config, family=open_family("flux2-klein", folder))
    rewrite(folder / "model_index.json", is_distilled=True)
    with pytest.raises(LorakitError, match="klein-base-4B"):
        preflight.refuse(config, family=open_family("flux2-klein", folder))
