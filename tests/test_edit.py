"""Qwen-Image-Edit：与 stock 管线逐步对照；控制图进 VAE 与 Qwen2.5-VL 两处；能练、能续、能用。"""

import numpy as np
import pytest
import random_qwen_edit
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as stock_edit
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock_plus
from PIL import Image

from lorakit import cache, flow, infer, lora
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import ConfigError, DataError
from lorakit.families import open_family
from lorakit.families.pixels import to_pixels
from lorakit.families.shared import pack
from lorakit.infer.fitting import near_shape
from lorakit.tiny import samples
from lorakit.tiny.world import random_scene, render
from lorakit.train import Trainer

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


def condition(family, caption: str, images) -> dict:
    return random_qwen_edit.conditions(family, [caption], [images])[0]


def silent(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_one_step_equals_the_stock_pipeline(family, small):
    images = pictures(2 if family.plus else 1)
    pipe = random_qwen_edit.stock(family.folder)
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
        v = family.predict_velocity(family.load("transformer"), x, t, cond)
    ours = flow.euler_step(x, v, t, t_next)
    torch.testing.assert_close(
        random_qwen_edit.to_latents(states[0], 8), ours, atol=2e-4, rtol=1e-4
    )


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
    pipe = random_qwen_edit.stock(family.folder)
    pipe.load_lora_weights(tmp_path)
    with torch.no_grad():
        loaded = family.predict_velocity(pipe.transformer, x, t, cond)
        pipe.fuse_lora()
        fused = family.predict_velocity(pipe.transformer, x, t, cond)
    torch.testing.assert_close(loaded, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fused, expected, atol=1e-4, rtol=1e-3)
    assert (expected - before).abs().max() > 1e-2


@pytest.fixture
def run(family, tmp_path):
    """训练几步的设置；一句指令、八对图。"""
    folder = samples.write("edit-night", tmp_path / "pairs", count=8)

    def make(*more, output: str = "run"):
        base = [f"data.folder={folder}", f"run.output={tmp_path / output}", "train.steps=4",
                "train.batch_size=2", "train.save_every=2", "eval.every=2", "lora.rank=4",
                "data.caption_dropout=0.5"]  # fmt: skip
        return settings(family.folder, *base, *more)

    return make


def test_training_resumes_exactly_and_evaluates(run, cut_at_three):
    whole, cut = run(output="whole"), run(output="cut")
    steps = list(Trainer(whole))
    assert [step.held is not None for step in steps] == [False, True, False, True]
    cut_at_three(cut)
    a, b = (lora.read(c.run.output / "checkpoint-4")[0] for c in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(value.abs().max() > 0 for name, value in a.items() if ".lora_B." in name)


def test_the_cache_knows_the_control_picture(run, family):
    config = run()
    counts = {}

    def prepare():
        counts.clear()
        fresh = open_family(config, CPU)
        return cache.prepare(config, fresh, lambda what, i, n: counts.update({what: n}))

    item = prepare().train[0]
    assert counts == {"编码图片": 16, "编码描述": 16}
    assert item.shapes == ((16, 8, 8), (16, 8, 8))
    assert torch.equal(item.empty["control_1"], item.cond["control_1"])
    with Image.open(item.record.controls[0]) as image:
        blank = family.encode_prompts([""], [[image.convert("RGB")]])[0]["text"]
    torch.testing.assert_close(item.empty["text"], blank)
    prepare()
    assert counts == {}
    draw = Image.new("RGB", (128, 128), "red")
    draw.save(item.record.controls[0])  # 换了控制图：它自己和两句描述都要重编，别的不用
    again = {i.record.path: i for i in (lambda d: (*d.train, *d.held))(prepare())}
    assert counts == {"编码图片": 1, "编码描述": 2}
    changed = again[item.record.path]
    assert not torch.equal(changed.cond["text"], item.cond["text"])
    assert torch.equal(changed.mean, item.mean)


def test_missing_control_is_explained_before_encoding(run, tmp_path):
    papercut = samples.write("papercut", tmp_path / "papercut", count=4)
    with pytest.raises(DataError, match=r"没有.*control_folder"):
        Trainer(run(f"data.folder={papercut}"))


def test_several_controls_train_only_where_they_are_read(run, family):
    config = run("eval.holdout=0", "train.steps=1")
    for path in sorted((config.data.folder / "control").glob("*.png"))[:3]:
        with Image.open(path) as image:
            image.transpose(Image.Transpose.ROTATE_90).save(path.with_stem(f"{path.stem}_2"))
    if not family.plus:
        with pytest.raises(DataError, match="只看 1 张"):
            Trainer(config)
        return
    trainer = Trainer(config)
    assert sorted(len(item.shapes) for item in trainer.dataset.train) == [2] * 5 + [3] * 3
    for number in range(trainer.objective.batches.per_epoch):  # 张数不同的不会拼在一批里
        loss, _, _ = trainer.objective.draw(number, number)
        assert torch.isfinite(loss)


def test_a_text_to_image_family_refuses_controls(tmp_path):
    folder = samples.write("edit-night", tmp_path / "pairs", count=4)
    config = load_config("tiny-qwen-image", [f"data.folder={folder}"])
    with pytest.raises(DataError, match="不看控制图"):
        cache.prepare(config, open_family(config, CPU))
    config = load_config("tiny-qwen-image", [f"data.folder={folder / 'images'}"])
    dataset = cache.prepare(config, open_family(config, CPU))
    assert len(dataset.train) + len(dataset.held) == 4


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_edit_equals_the_stock_pipeline(family, small, guidance):
    images = pictures(2 if family.plus else 1)
    images[-1] = images[-1].resize((130, 66))
    pipe = random_qwen_edit.stock(family.folder)
    wanted = settings(family.folder, f"sample.guidance={guidance}", "sample.steps=4").sample
    mine = family.pipeline(family.load("transformer").eval())
    (ours,) = infer.edit(family, mine, ["变成夜晚"], [images], wanted, SIDE)
    assert ours.size == (96, 32)
    theirs = pipe(
        image=images if family.plus else images[0], prompt="变成夜晚", num_inference_steps=4,
        generator=torch.Generator().manual_seed(wanted.seed),
        true_cfg_scale=guidance, **({"negative_prompt": " "} if guidance > 1 else {}),
    ).images[0]  # fmt: skip
    difference = np.abs(np.asarray(ours, int) - np.asarray(theirs, int))
    assert difference.max() <= 2 and difference.mean() < 0.1


def test_edit_does_not_depend_on_the_batch(family):
    images = [*pictures(2), pictures(1)[0].resize((96, 64))]
    pipe = silent(family.pipeline(family.load("transformer").eval()))
    wanted = settings(family.folder, "sample.steps=2").sample
    said = ["变成夜晚", "put a hat on it", "变成夜晚"]
    together = infer.edit(family, pipe, said, [[i] for i in images], wanted, (SIDE, SIDE))
    later = wanted.model_copy(update={"seed": wanted.seed + 1})
    alone = infer.edit(family, pipe, said[1:2], [[images[1]]], later, (SIDE, SIDE))[0]
    assert np.abs(np.asarray(alone, int) - np.asarray(together[1], int)).max() <= 2
    assert [image.size for image in together] == [(SIDE, SIDE)] * 3


def test_edit_refuses_wrong_sizes_and_counts(family):
    wanted, image = settings(family.folder).sample, pictures(1)[0]
    with pytest.raises(ConfigError, match="32 的倍数"):
        infer.edit(family, None, ["x"], [[image]], wanted, (72, 64))
    for count in (0, 4):
        with pytest.raises(ConfigError, match=f"得到 {count} 张"):
            infer.edit(family, None, ["x"], [[image] * count], wanted, (64, 64))


@pytest.fixture
def command(capsys):
    def call(*argv):
        code = main([str(a) for a in argv])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def test_train_then_edit_from_the_command_line(run, command, tmp_path):
    config = run("sample.prompts=[变成夜晚, 变成白天]", "sample.steps=2", "train.steps=2")
    (tmp_path / "edit.yaml").write_text(config.to_yaml(), encoding="utf-8")
    code, said = command("train", tmp_path / "edit.yaml")
    assert code == 0 and "练完了" in said and "试试：lorakit edit" in said
    out = config.run.output
    assert [Image.open(out / "samples" / f"2_{i}.png").size for i in (0, 1)] == [(64, 64)] * 2
    assert "lorakit edit" in (out / "README.md").read_text("utf-8")
    picture = tmp_path / "我的 图.png"
    pictures(1)[0].resize((96, 48)).save(picture)
    target = tmp_path / "after.png"
    code, said = command("edit", picture, "变成夜晚", "--model", out, "--out", target)
    assert code == 0 and "改好了" in said and Image.open(target).size == (96, 32)
    both = ("--prompt", "变成夜晚", "--image", picture, "--out", target)
    assert command("compare", out, *both)[0] == 0 and Image.open(target).size == (242, 366)
    code, said = command("generate", out, "--prompt", "一只猫")
    assert code == 1 and "lorakit edit" in said
    assert near_shape((200, 100), 1024, 32) == (1440, 736)


def test_edit_says_what_is_wrong(family, command, tmp_path):
    good, text = tmp_path / "good.png", tmp_path / "text.png"
    pictures(1)[0].save(good)
    text.write_text("not a picture")
    config = settings(family.folder, "sample.steps=2")
    (tmp_path / "edit.yaml").write_text(config.to_yaml(), encoding="utf-8")
    model = ("--model", tmp_path / "edit.yaml")
    three = ["--also", good] * 3
    for argv, word in (
        (["edit", tmp_path / "no.png", "变蓝", *model], "没有这个文件"),
        (["edit", text, "变蓝", *model], "text.png"),
        (["edit", good, "变蓝", *model, *three], "得到 4 张"),
        (["edit", good, "变蓝", *model, "--set", "sample.size=80"], "32 的倍数"),
        (["edit", good, "变蓝", "--model", "tiny-qwen-image"], "不能改图"),
        (
            ["edit", good, "变蓝", *model, "--set", "model.path=tiny-qwen-image"],
            "不是 qwen-image-edit",
        ),
    ):
        code, said = command(*argv)
        assert code == 1 and word in said and "Traceback" not in said, said
