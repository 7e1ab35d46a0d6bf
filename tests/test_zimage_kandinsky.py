"""Z-Image 与 Kandinsky 5 的合同：用随机权重的微型管线，与 stock 管线逐步对照。"""

import re

import numpy as np
import pytest
import random_kandinsky5
import random_zimage
import torch
from PIL import Image

from lorakit import flow, infer, lora
from lorakit.config import load_config
from lorakit.errors import LorakitError
from lorakit.families import get
from lorakit.train import Trainer

BUILD = {"z-image": random_zimage.build, "kandinsky5": random_kandinsky5.build}
SHORT = "一只红色的猫"
LONG = "左边有一只很大很大的红色的猫，右边有一朵黄色的花，背景是绿色的草地，天上有两片云，剪纸风格"
SIZE = 64  # 像素；潜变量是 8x8


@pytest.fixture(scope="module", params=BUILD)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    return BUILD[name](tmp_path_factory.mktemp(name) / "model")


@pytest.fixture(scope="module")
def family(name, folder):
    """只读：挂 LoRA 的测试用 fresh。"""
    return open_fresh(name, folder)


@pytest.fixture
def fresh(name, folder):
    return open_fresh(name, folder)


def open_fresh(name, folder):
    return get(name)(folder, torch.device("cpu"), torch.float32)


def stock(name, folder):
    """不经过 lorakit、直接用 diffusers 打开的同一条管线。"""
    from diffusers import Kandinsky5T2IPipeline, ZImagePipeline

    kind = {"z-image": ZImagePipeline, "kandinsky5": Kandinsky5T2IPipeline}[name]
    pipe = kind.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.resolutions = [(SIZE, SIZE)]  # 只有 Kandinsky 看它
    return pipe


def noise(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(
        count, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(seed)
    )


def settings(targets: str = "attention"):
    return load_config("tiny-qwen-image", [f"lora.targets={targets}"]).lora


def attach(family, targets: str = "attention", fill: float = 0.0):
    """挂上 LoRA；fill > 0 时 B 也给随机值，好看出它有没有起作用。"""
    parameters = lora.attach(family.load("transformer"), family, settings(targets), seed=0)
    torch.manual_seed(3)
    for key, parameter in parameters.items():
        if fill and ".lora_B." in key:
            torch.nn.init.normal_(parameter, std=fill)
    return parameters


@torch.no_grad()
def predict(family, conds, transformer=None, x=None, t=(0.3, 0.8)):
    transformer = transformer or family.load("transformer")
    x = noise(len(conds)) if x is None else x
    t = torch.tensor(t[: len(conds)])
    return family.predict_velocity(transformer, x, t, family.collate(conds))


def test_one_step_equals_the_stock_pipeline(name, folder, family):
    pipe, conds, x = stock(name, folder), family.encode_prompts([SHORT, LONG]), noise(2)
    after = []

    def spy(pipeline, index, timestep, values):
        after.append(values["latents"].clone())
        return values

    common = dict(width=SIZE, height=SIZE, num_inference_steps=4, output_type="latent",
                  callback_on_step_end=spy)  # fmt: skip
    if name == "z-image":
        rows = [cond["text"] for cond in conds]
        pipe(prompt_embeds=rows, latents=x, guidance_scale=0.0, **common)
        expected = after[0]
    else:  # stock 成批时短句会看到补齐的词元，所以一句句对照
        for cond, one in zip(conds, x, strict=True):
            length = torch.tensor([0, len(cond["text"])], dtype=torch.int32)
            pipe(prompt_embeds_qwen=cond["text"][None], prompt_embeds_clip=cond["pooled"][None],
                 prompt_cu_seqlens=length, latents=one.permute(1, 2, 0)[None, None],
                 guidance_scale=1.0, **common)  # fmt: skip
        expected = torch.cat([after[0], after[4]])[:, 0].permute(0, 3, 1, 2)
    t, t_next = (pipe.scheduler.sigmas[i].expand(2) for i in (0, 1))
    ours = flow.euler_step(x, predict(family, conds, x=x, t=t.tolist()), t, t_next)
    torch.testing.assert_close(expected, ours, atol=2e-4, rtol=1e-4)


def test_guidance_is_the_usual_cfg(name, family):
    """sample.guidance = 3 在哪个家族都是 uncond + 3 (cond - uncond)，1 是不引导。"""
    pipe = family.pipeline(family.load("transformer"))
    pipe.set_progress_bar_config(disable=True)
    x, conds = noise(1), family.encode_prompts([SHORT, ""])
    latents = x if name == "z-image" else x.permute(0, 2, 3, 1)[:, None]
    t = torch.ones(1)
    cond, uncond = (predict(family, [c], x=x, t=(1.0,)) for c in conds)
    for guidance, v in ((3.0, flow.guide(cond, uncond, 3.0)), (1.0, cond)):
        out = pipe([SHORT], latents=latents, width=SIZE, height=SIZE, num_inference_steps=1,
                   output_type="latent", **family.sample_arguments(guidance, 1)).images  # fmt: skip
        out = torch.stack(list(out)) if name == "z-image" else out[0].permute(0, 3, 1, 2)
        ours = flow.euler_step(x, v, t, torch.zeros(1))
        torch.testing.assert_close(out, ours, atol=1e-3, rtol=1e-3)


def test_batch_of_two_equals_two_singles(family):
    conds = family.encode_prompts([SHORT, LONG])
    # Z-Image 把文字补到 32 的倍数，跨过 32 才看得出掩码对不对
    assert len(conds[0]["text"]) <= 32 < len(conds[1]["text"])
    x, t = noise(2), (0.3, 0.8)
    both = predict(family, conds, x=x, t=t)
    for i in (0, 1):
        one = predict(family, [conds[i]], x=x[i : i + 1], t=t[i : i + 1])
        torch.testing.assert_close(one[0], both[i], atol=1e-3, rtol=1e-3)
    swapped = predict(family, conds[::-1], x=x, t=t)
    assert (swapped - both).abs().max() > 0.05  # 文字确实起作用


def test_prompts_do_not_depend_on_the_batch_nor_change_the_list(family):
    captions = [SHORT, LONG]
    alone, together = family.encode_prompts([SHORT])[0], family.encode_prompts(captions)[0]
    for key in alone:
        torch.testing.assert_close(alone[key], together[key], atol=1e-3, rtol=1e-3)
    assert captions == [SHORT, LONG]


def test_latents_equal_the_stock_normalisation(name, folder, family):
    """解码时 stock 管线把潜变量还原成图；我们的编码是它的逆。"""
    pipe = stock(name, folder)
    pixels = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)) * 2 - 1
    mean, std = family.encode_images(pixels)
    config, posterior = pipe.vae.config, pipe.vae.encode(pixels).latent_dist
    moved = config.shift_factor if name == "z-image" else 0.0
    torch.testing.assert_close(mean / config.scaling_factor + moved, posterior.mean)
    torch.testing.assert_close(std / config.scaling_factor, posterior.std)
    # 画一步后管线给出的图，就是我们把它的潜变量解码成的图
    common = dict(prompt=SHORT, width=SIZE, height=SIZE, num_inference_steps=1,
                  guidance_scale=0.0)  # fmt: skip
    latent, image = (
        pipe(generator=torch.Generator().manual_seed(0), output_type=kind, return_dict=False,
             **common)[0]
        for kind in ("latent", "pt")
    )  # fmt: skip
    latent = latent if name == "z-image" else latent[:, 0].permute(0, 3, 1, 2)
    torch.testing.assert_close(family.decode(latent) / 2 + 0.5, image, atol=1e-5, rtol=1e-4)


def test_lora_changes_nothing_at_first(fresh):
    conds = fresh.encode_prompts([SHORT])
    before = predict(fresh, conds)
    attach(fresh)
    torch.testing.assert_close(predict(fresh, conds), before, atol=0, rtol=0)


@pytest.mark.parametrize("targets", ["attention", "all-linear"])
def test_lora_has_the_same_effect_in_the_stock_pipeline(name, folder, fresh, tmp_path, targets):
    conds = fresh.encode_prompts([SHORT])
    before = predict(fresh, conds)
    attach(fresh, targets, fill=0.2)
    ours = predict(fresh, conds)
    assert (ours - before).abs().max() > 0.01
    lora.save(tmp_path, fresh.load("transformer"), settings(targets), {})
    pipe = stock(name, folder)
    lora.check_fits(tmp_path, pipe.transformer)
    pipe.load_lora_weights(tmp_path, weight_name=lora.FILE)
    theirs = predict(fresh, conds, transformer=pipe.transformer)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def test_overfits_one_picture(fresh):
    parameters = attach(fresh, "all-linear")
    cond = fresh.collate(fresh.encode_prompts([SHORT]))
    x0, eps, t = fresh.encode_images(torch.rand(1, 3, SIZE, SIZE))[0], noise(1), torch.tensor([0.5])
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-2)
    losses = []
    for _ in range(120):
        v = fresh.predict_velocity(fresh.load("transformer"), flow.add_noise(x0, eps, t), t, cond)
        loss = flow.loss(v, flow.velocity(x0, eps)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize("targets", ["attention", "image-attention", "all-linear"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_lora_tensor_and_nothing_else(fresh, targets, checkpointing):
    parameters = attach(fresh, targets, fill=0.02)  # B = 0 时 A 的梯度本来就是 0
    transformer = fresh.load("transformer").train()
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    cond = fresh.collate(fresh.encode_prompts([SHORT, LONG]))
    v = fresh.predict_velocity(transformer, noise(2), torch.tensor([0.3, 0.6]), cond)
    v.pow(2).mean().backward()
    for key, parameter in transformer.named_parameters():
        if key in parameters:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
        else:
            assert parameter.grad is None, key


def test_targets_stay_inside_the_blocks(family):
    """时间、出口、嵌入层也叫 out_layer、linear，一个也不能碰；三个预设一个比一个大。"""
    transformer = family.load("transformer")
    image, attention, every = (
        set(lora.match(transformer, family, key))
        for key in ("image-attention", "attention", "all-linear")
    )
    assert image < attention < every
    block = re.compile(r"(layers|\w+_refiner|\w+_transformer_blocks)\.\d+\.")
    assert all(block.match(layer) for layer in every)
    linear = {k for k, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    bare = family.skeleton()  # 没有权重也要对上同样的层
    assert set(lora.match(bare, family, "all-linear")) == every
    assert {layer for layer in linear if block.match(layer)} == every


def test_distilled_base_is_refused(name, folder, tmp_path):
    word = next(iter(get(name).distilled))
    (tmp_path / f"My-{word}").symlink_to(folder)
    overrides = [f"model.family={name}", f"model.path={tmp_path / f'My-{word}'}",
                 f"run.output={tmp_path / 'run'}"]  # fmt: skip
    with pytest.raises(LorakitError, match="蒸馏"):
        Trainer(load_config("tiny-qwen-image", overrides), dataset=object())


def test_trains_and_draws(name, folder, papercut, tmp_path):
    """从图片文件夹到带 LoRA 的图走一遍；一次画两张与一次画一张相同。"""
    overrides = [f"model.family={name}", f"model.path={folder}", f"run.output={tmp_path / 'run'}",
                 f"data.folder={papercut}", f"data.resolution={SIZE}", "train.steps=2",
                 "train.batch_size=2", "sample.steps=2", "sample.guidance=3"]  # fmt: skip
    config = load_config("tiny-qwen-image", overrides)
    assert [step.step for step in Trainer(config)] == [1, 2]
    family = open_fresh(name, folder)
    pipe = infer.open_pipeline(family, tmp_path / "run")
    both = infer.generate(family, pipe, [SHORT, LONG], config.sample, (SIZE, SIZE))
    assert all(isinstance(image, Image.Image) and image.size == (SIZE, SIZE) for image in both)
    one = infer.generate(family, pipe, [SHORT], config.sample, (SIZE, SIZE))
    difference = np.abs(np.asarray(both[0], int) - np.asarray(one[0], int))
    assert difference.max() <= 1


def test_stock_kandinsky_sees_the_padding(tmp_path):
    """为什么要 text_lengths：不告诉 stock 的 Transformer，短句就会看到补齐的词元。"""
    family = open_fresh("kandinsky5", random_kandinsky5.build(tmp_path))
    conds = family.encode_prompts([SHORT, LONG])
    batch = family.collate(conds)
    masked, x, t = predict(family, conds), noise(2), torch.tensor([0.3, 0.8])
    del batch["text_mask"]
    with torch.no_grad():
        padded = family.predict_velocity(family.load("transformer"), x, t, batch)
    assert (padded[0] - masked[0]).abs().max() > 0.01
    torch.testing.assert_close(padded[1], masked[1], atol=1e-3, rtol=1e-3)
