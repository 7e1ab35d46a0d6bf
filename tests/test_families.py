"""家族的合同：与 stock 管线逐步对照。"""

import numpy as np
import pytest
import torch

from lorakit import flow, lora
from lorakit.config import load_config
from lorakit.errors import ConfigError
from lorakit.families import get
from lorakit.families.qwen_image import pack, single_frame, unpack
from lorakit.tiny import tokenizer
from lorakit.tiny.examiner import to_pixels
from lorakit.tiny.world import random_scene, render


@pytest.fixture(scope="module")
def pipe(family):
    pipe = family.pipeline(family.load("transformer"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(count: int) -> torch.Tensor:
    rng = np.random.default_rng(5)
    return to_pixels([render(random_scene(rng)) for _ in range(count)])


def test_pack_round_trip():
    x = torch.randn(2, 16, 8, 12)
    packed = pack(x)
    assert packed.shape == (2, 24, 64)
    torch.testing.assert_close(unpack(packed, 8, 12), x)


def test_one_step_equals_the_stock_pipeline(family, pipe):
    cond = family.collate(
        family.encode_prompts(["一只红色的猫", "a big blue car on the left, a meadow"])
    )
    x = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    states = []

    def spy(pipeline, index, timestep, values):
        states.append((values["latents"].clone(), timestep))
        return values

    pipe(
        prompt_embeds=cond["text"], prompt_embeds_mask=cond["text_mask"], latents=pack(x),
        width=128, height=128, num_inference_steps=4, true_cfg_scale=1.0,
        callback_on_step_end=spy, output_type="latent",
    )  # fmt: skip
    sigmas = pipe.scheduler.sigmas
    t, t_next = (sigmas[i].expand(2) for i in (0, 1))
    with torch.no_grad():
        v = family.predict_velocity(pipe.transformer, x, t, cond)
    ours = flow.euler_step(x, v, t, t_next)
    torch.testing.assert_close(unpack(states[0][0], 16, 16), ours, atol=2e-4, rtol=1e-4)


def test_batch_of_two_equals_two_singles(family):
    transformer = family.load("transformer").eval()
    conds = family.encode_prompts(["猫", "左边有一只很大很大的红色的猫，右边有一朵花，背景是草地"])
    assert conds[0]["text"].shape[0] < conds[1]["text"].shape[0]
    x, t = torch.randn(2, 16, 16, 16), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        both = family.predict_velocity(transformer, x, t, family.collate(conds))
        for i in (0, 1):
            one = family.predict_velocity(
                transformer, x[i : i + 1], t[i : i + 1], family.collate([conds[i]])
            )
            torch.testing.assert_close(one[0], both[i], atol=1e-4, rtol=1e-4)


def test_prompts_do_not_depend_on_the_batch(family):
    alone = family.encode_prompts(["一只猫"])[0]["text"]
    together = family.encode_prompts(
        ["一只猫", "a very long caption about a cat and a dog, a meadow"]
    )[0]["text"]
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)


def test_encode_decode_and_scale(family):
    x = pictures(8)
    mean, std = family.encode_images(x)
    assert mean.shape == std.shape == (8, 16, 16, 16)
    assert abs(mean.mean().item()) < 0.3
    assert 0.7 < mean.std().item() < 1.3
    mse = ((family.decode(mean) - x) / 2).pow(2).mean()
    assert -10 * torch.log10(mse) > 24


def test_latents_equal_the_stock_normalisation(family):
    from diffusers import AutoencoderKLQwenImage

    vae = AutoencoderKLQwenImage.from_pretrained(
        family.folder, subfolder="vae", torch_dtype=torch.float32
    )
    x = pictures(2)
    raw = vae.encode(x[:, :, None]).latent_dist.mean
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    torch.testing.assert_close(
        family.encode_images(x)[0], ((raw - mean) / std)[:, :, 0], atol=1e-3, rtol=1e-3
    )


def test_single_frame_changes_nothing():
    from diffusers import AutoencoderKLQwenImage

    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4, temperal_downsample=[True, False],
    ).eval()  # fmt: skip
    still, clip = torch.randn(1, 3, 1, 32, 32), torch.randn(1, 3, 5, 32, 32)
    with torch.no_grad():
        expected = [vae(still).sample, vae(clip).sample]
        single_frame(vae)
        torch.testing.assert_close(vae(still).sample, expected[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(vae(clip).sample, expected[1], atol=1e-5, rtol=1e-4)


def test_template_tokens_are_34_and_64(family):
    tok = family.load("text")[1]
    text, edit = tokenizer.templates()
    assert len(tok(text.split("{}")[0]).input_ids) == 34
    assert len(tok(edit.split("<|vision_start|>")[0]).input_ids) == 64


@pytest.mark.parametrize("word", ["剪纸", "ohwx", "魑魅魍魉", "sks person", "🐱"])
def test_unseen_words_tokenize_stably(family, word):
    tok = family.load("text")[1]
    alone = tok(word).input_ids
    assert tok.decode(alone) == word
    inside = tok(f"{word}，一只猫").input_ids
    assert inside[: len(alone)] == alone


def test_chinese_characters_never_merge(family):
    tok = family.load("text")[1]
    assert len(tok("一只红色的大猫在左边").input_ids) == 10


def test_unknown_family_is_explained():
    with pytest.raises(ConfigError, match="qwen-image"):
        get("qwen-imag")


def test_gradients_reach_every_lora_tensor_and_nothing_else(family):
    from lorakit.families import open_family

    fresh = open_family(load_config("tiny-qwen-image"), torch.device("cpu"))
    transformer = fresh.load("transformer")
    parameters = lora.attach(transformer, fresh, load_config("tiny-qwen-image").lora, seed=0)
    for name, p in parameters.items():
        if ".lora_B." in name:
            torch.nn.init.normal_(p, std=0.02)  # B = 0 时 A 的梯度本来就是 0
    cond = fresh.collate(fresh.encode_prompts(["一只猫", "一条鱼在左边"]))
    v = fresh.predict_velocity(
        transformer, torch.randn(2, 16, 16, 16), torch.tensor([0.3, 0.6]), cond
    )
    v.pow(2).mean().backward()
    # 最后一块的文字流输出被丢弃，所以它的 to_add_out 与 add_q_proj 得不到梯度
    last = f"transformer_blocks.{len(transformer.transformer_blocks) - 1}.attn"
    unused = (f"{last}.to_add_out", f"{last}.add_q_proj")
    for name, p in transformer.named_parameters():
        if name not in parameters:
            assert p.grad is None, name
        elif not name.startswith(unused):
            assert p.grad is not None and p.grad.abs().max() > 0, name
