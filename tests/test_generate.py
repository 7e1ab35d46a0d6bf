"""lorakit generate：别处的脚本常用的参数名也认；负面提示词真的起作用，不起作用就说出来。"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lorakit import infer, lora
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import ConfigError, LorakitError
from lorakit.families import open_family
from lorakit.families.base import Family
from lorakit.infer import decoding
from lorakit.infer import pipeline as infer_pipeline
from lorakit.memory import devices
from lorakit.train import Trainer

TINY, SAID = "tiny-qwen-image", "剪纸风格，一只大狗在中间"


def run(capsys, *argv) -> tuple[int, str]:
    code = main([str(a) for a in argv])
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.fixture(scope="module")
def trained(papercut, tmp_path_factory):
    """练两步的结果文件夹：差别不大，可是每个像素都不同。"""
    output = tmp_path_factory.mktemp("generate") / "run"
    settings = [f"data.folder={papercut}", f"run.output={output}", "train.steps=2"]
    settings += ["train.batch_size=2", "train.lr=0.01", "eval.every=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAKIT_CACHE", str(output.parent / "cache"))
        for _ in Trainer(load_config(TINY, settings)):
            pass
    return output


def test_names_of_common_scripts(capsys, tmp_path, trained):
    file = lora.find(trained)
    common = [
        "--model_name", TINY, "--lora_weights", file, "--output_image", tmp_path / "a.png",
        "--prompt", SAID, "--negative_prompt", "蓝色", "--width", 96, "--height", 128,
        "--num_inference_steps", 2, "--true_cfg_scale", 4, "--seed", 5,
    ]  # fmt: skip
    assert run(capsys, "generate", *common)[0] == 0
    ours = [
        trained, "--out", tmp_path / "b.png", "--prompt", SAID, "--negative", "蓝色",
        "--width", 96, "--height", 128, "--steps", 2, "--guidance", 4, "--seed", 5,
    ]  # fmt: skip
    assert run(capsys, "generate", *ours)[0] == 0
    one, two = (Image.open(tmp_path / name) for name in ("a.png", "b.png"))
    assert one.size == (96, 128) and one.tobytes() == two.tobytes()
    assert run(capsys, "generate", *common, "--quantization", "int8")[0] == 0
    assert Image.open(tmp_path / "a.png").tobytes() != one.tobytes(), "没有量化"
    assert run(capsys, "generate", *common[:2], *common[4:])[0] == 0
    assert Image.open(tmp_path / "a.png").tobytes() != one.tobytes(), "LoRA 没有用上"


def test_words_beyond_the_limit_are_told_in_chinese(capsys, tmp_path):
    said = run(capsys, "generate", "tiny-flux", "--prompt", 9 * SAID, "--out", tmp_path / "a.png",
               "--set", "sample.steps=2", "--set", "sample.size=64")[1]  # fmt: skip
    assert "flux 最多看 32 个" in said and "truncated" not in said


def test_where_the_base_comes_from(capsys, tmp_path, trained, family):
    """结果文件夹、底模的文件夹、只给 LoRA：画的都一样。"""
    rest = ["--prompt", SAID, "--out", tmp_path / "x.png", "--width", 64, "--height", 64]
    rest += ["--steps", 2, "--guidance", 3]
    drawn = set()
    for source in (
        [trained],
        ["--lora_weights", trained],
        ["--model_name", trained],
        ["--lora_weights", lora.find(trained)],  # 文件里记着底模
        ["--model_name", family.folder, "--lora_weights", trained],
    ):
        assert run(capsys, "generate", *source, *rest)[0] == 0, source
        drawn.add(Image.open(tmp_path / "x.png").tobytes())
    assert len(drawn) == 1


@pytest.fixture
def kept(monkeypatch):
    """像在显卡上一样；载入各部分时，另外还有哪些部分在。"""
    seen, real = [], Family.load

    def load(self, part):
        if part not in self.parts:
            seen.append({part, *self.parts})
        return real(self, part)

    monkeypatch.setattr(infer_pipeline, "scarce", lambda family: True)
    monkeypatch.setattr(devices, "free_memory", lambda device: 1 << 40)
    monkeypatch.setattr(Family, "load", load)
    return seen


def test_encoder_and_transformer_are_never_together(capsys, tmp_path, trained, kept, monkeypatch):
    small = ["--set", "sample.size=64", "--set", "sample.steps=2", "--set", "sample.guidance=3"]
    for command in ("generate", "compare"):  # 各画各的一句：编码过的不用再载入编码器
        drawn, where = [], ["--out", tmp_path / "x.png", "--prompt", f"{SAID}，{command}"]
        for scarce in (True, False):
            monkeypatch.setattr(infer_pipeline, "scarce", lambda family, scarce=scarce: scarce)
            kept.clear()
            assert run(capsys, command, trained, *where, *small)[0] == 0
            assert ({"text"} in kept) == scarce and any("transformer" in one for one in kept)
            together = [parts for parts in kept if parts >= {"text", "transformer"}]
            assert bool(together) != scarce
            drawn.append(Image.open(tmp_path / "x.png").tobytes())
        assert drawn[0] == drawn[1]


def _pictures(trainer):
    """每一步之后的样张，像 lorakit train 那样画。"""
    for _ in trainer:
        family = trainer.family
        (drawn,) = infer.preview(family, trainer.pipeline(), trainer.config, trainer.dataset)
        family.release("vae", "text")
        yield drawn.tobytes()


def test_previews_do_not_load_the_encoder_again(config, papercut, kept, monkeypatch):
    drawn = []
    for name in ("scarce", "roomy"):
        monkeypatch.setattr(infer_pipeline, "scarce", lambda family, name=name: name == "scarce")
        kept.clear()
        settings = config("train.steps=2", f"sample.prompts=[{SAID}]",
                          "sample.steps=2", "sample.size=64", output=name)  # fmt: skip
        pictures = [*_pictures(Trainer(settings))]
        together = [parts for parts in kept if parts >= {"text", "transformer"}]
        assert bool(together) == (name == "roomy")
        drawn.append(pictures)
    assert drawn[0] == drawn[1] and len(drawn[0]) == 2


def test_the_encoder_is_loaded_once_and_never_for_what_it_has_said(
    capsys, config, tmp_path, kept, monkeypatch
):
    """头一次：描述、样张的句子、负面的一起编码；接着练、再画同样的句子，都从缓存取。"""
    loaded, real = [], Family._load_encoder
    monkeypatch.setattr(
        Family, "_load_encoder", lambda self, *how: loaded.append(how) or real(self, *how)
    )

    def settings(steps: int):
        return config(f"train.steps={steps}", f"sample.prompts=[{SAID}]", "sample.steps=2",
                      "sample.size=64", "sample.guidance=3")  # fmt: skip

    for steps, times in ((2, 1), (4, 0)):
        loaded.clear()
        assert len([*_pictures(Trainer(settings(steps)))]) == 2
        assert len(loaded) == times
    where = [settings(4).run.output, "--out", tmp_path / "x.png", "--prompt"]
    for said, times in ((SAID, 0), ("另一句", 1), ("另一句", 0)):
        loaded.clear()
        assert run(capsys, "generate", *where, said)[0] == 0
        assert len(loaded) == times


@pytest.mark.parametrize("name", [TINY, "tiny-flux"])
def test_pictures_are_decoded_in_tiles_when_memory_is_short(name, monkeypatch):
    config = load_config(name, ["sample.steps=2"])
    family = open_family(config, torch.device("cpu"))
    pipe, side, drawn = infer.open_pipeline(family), 576, []
    monkeypatch.setattr(decoding, "scarce", lambda family: True)
    enough = decoding.DECODING * 2 * side**2  # fp32 要 bf16 的两倍：T4 那样的卡
    assert family.dtype == torch.float32
    for free, tiled in ((enough, False), (enough - 1, True)):
        monkeypatch.setattr(devices, "free_memory", lambda device, free=free: free)
        (picture,) = infer.generate(family, pipe, [SAID], config.sample, (side, side))
        assert pipe.vae.use_tiling == tiled
        drawn.append(np.asarray(picture, int))
    assert 0 < np.abs(drawn[0] - drawn[1]).mean() < 4  # 接缝处稍有不同

    # 量的时候够，轮到解码时碎得不够：CPU 上显存不会真的不够，所以由解码器自己说
    stock = type(pipe.vae).decode

    def short(vae, latents, *given, **named):
        if not vae.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return stock(vae, latents, *given, **named)

    monkeypatch.setattr(type(pipe.vae), "decode", short)
    monkeypatch.setattr(devices, "free_memory", lambda device: enough)
    (picture,) = infer.generate(family, pipe, [SAID], config.sample, (side, side))
    assert np.array_equal(np.asarray(picture, int), drawn[1])


def test_negative_prompt_is_the_stock_one(family):
    settings = load_config(TINY, ["sample.steps=2", "sample.guidance=4"]).sample
    pipe = infer.open_pipeline(family)
    plain, blank, avoided = (
        infer.generate(family, pipe, [SAID], settings, (64, 64), negative)[0]
        for negative in ("", " ", "红色")
    )

    stock = pipe(
        SAID, negative_prompt="红色", true_cfg_scale=4.0, width=64, height=64,
        num_inference_steps=2, generator=torch.Generator("cpu").manual_seed(0),
    ).images[0]  # fmt: skip
    assert plain.tobytes() == blank.tobytes()
    assert np.array_equal(np.asarray(avoided), np.asarray(stock))
    assert not np.array_equal(np.asarray(avoided), np.asarray(plain))
    weak = settings.model_copy(update={"guidance": 1.0})
    with pytest.raises(ConfigError, match="引导是 1"):
        infer.generate(family, pipe, [SAID], weak, (64, 64), "红色")


def test_opening_again_starts_clean(trained, family):
    """同一个家族再打开一次：上一个 LoRA 不留在上面，也不妨碍核对下一个。"""
    settings = load_config(TINY, ["sample.steps=2"]).sample
    drawn = []
    for weights in (None, trained, trained, None):
        pipe = infer.open_pipeline(family, weights)
        drawn.append(infer.generate(family, pipe, [SAID], settings, (64, 64))[0].tobytes())
        if weights:
            lora.check_fits(lora.find(weights), pipe.transformer)  # 叠第二个之前也核对得了
    assert drawn[0] == drawn[3] != drawn[1] == drawn[2]


def test_base_by_its_name_on_the_hub(monkeypatch):
    """底模在站上的名字：有预设就用预设的；没有就看 LoRA 里记的家族。"""
    from lorakit.cli.draw import choose_base

    source, _ = choose_base(None, "Qwen/Qwen-Image", None)
    assert load_config(source).model.path == "Qwen/Qwen-Image"
    monkeypatch.setattr(lora, "read", lambda path: ({}, {"family": "flux"}))
    source, sets = choose_base(None, "someone/FLUX.1-dev", "x")
    chosen = load_config(source, [*sets, "sample.seed=3"])
    assert (chosen.model.family, chosen.model.path) == ("flux", "someone/FLUX.1-dev")
    assert source == "flux-dev"
    assert chosen.sample.seed == 3


def test_a_base_that_was_a_folder_elsewhere_is_asked_for(monkeypatch):
    from lorakit.cli.draw import choose_base

    monkeypatch.setattr(lora, "read", lambda path: ({}, {"family": "flux", "base": "my-flux"}))
    with pytest.raises(LorakitError, match=r"训练那台机器上的文件夹“my-flux”。.*--model_name"):
        choose_base(None, None, Path("x.safetensors"))


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        ([], "用哪个模型画"),
        ([TINY, "--model_name", TINY], "只能写一个"),
        (["--model_name", "tiny-qwen-imag"], "tiny-qwen-image"),
        ([TINY, "--width", "100"], "最近的是 96x128"),
        ([TINY, "--height", "0"], "不行"),
        ([TINY, "--num_inference_steps", "many"], "sample.steps"),
        ([TINY, "--true_cfg_scale", "-1"], "sample.guidance"),
        ([TINY, "--seed", "1.5"], "sample.seed"),
        ([TINY, "--guidance", "1", "--negative_prompt", "红色"], "不起作用"),
        ([TINY, "--lora_weights", "no-such.safetensors"], "没有这个 LoRA 文件"),
    ],
)
def test_bad_input(capsys, tmp_path, argv, word):
    out = tmp_path / "x.png"
    code, said = run(capsys, "generate", "--prompt", "一只猫", "--out", out, *argv)
    assert code == 1 and word in said and "Traceback" not in said
    assert not out.exists()
