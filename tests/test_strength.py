"""lorakit generate、edit 的 --strength：画的就是 W + 强度 · ΔW，哪一种 LoRA 都一样。"""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from lorakit import infer
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.families import open_family
from lorakit.lora import full
from lorakit.train import Trainer

KINDS = {
    "plain": ["lora.variant=plain", "lora.alpha=9"],
    "rslora": ["lora.variant=rslora"],
    "dora": ["lora.variant=dora"],
    "lokr": ["lora.variant=lokr", "lora.rank=16"],
}
SAID, SIDE = "剪纸风格，一只大狗在中间", 64
STRENGTHS = (0, 0.5, 1, 1.5, -1)


def train(papercut, output, *more):
    base = [f"data.folder={papercut}", f"run.output={output}", "train.steps=3", "train.lr=0.02",
            "train.batch_size=2", "eval.every=0", "data.resolution=64"]  # fmt: skip
    trainer = Trainer(load_config("tiny-qwen-image", [*base, *more]))
    list(trainer)
    return trainer


@pytest.fixture(scope="module", params=KINDS)
def trained(request, papercut, tmp_path_factory):
    """练几步的结果文件夹，和 PEFT 自己算的每层 ΔW。"""
    place = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAKIT_CACHE", str(place / "cache"))
        trainer = train(papercut, place / "run", *KINDS[request.param])
    changes = {}
    for name, module in trainer.transformer.named_modules():
        if hasattr(module, "base_layer"):
            whole, one = copy.deepcopy(module).double(), torch.eye(module.in_features).double()
            changes[name] = (whole(one) - whole.base_layer(one)).T.detach()
    return place / "run", changes


def draw(folder, *argv) -> np.ndarray:
    out = folder / "x.png"
    small = ["--width", SIDE, "--height", SIDE, "--steps", 2, "--guidance", 1, "--seed", 3]
    argv = ["generate", *argv, "--prompt", SAID, "--out", out, *small]
    assert main([str(a) for a in argv]) == 0
    return np.asarray(Image.open(out)).astype(int)


def by_hand(changes, strength: float) -> np.ndarray:
    """底模的每层权重加上 强度 · ΔW，不挂 LoRA。"""
    config = load_config(
        "tiny-qwen-image", ["sample.steps=2", "sample.guidance=1", "sample.seed=3"]
    )
    family = open_family(config)
    pipe = infer.open_pipeline(family)
    with torch.no_grad():
        for name, change in changes.items():
            weight = pipe.transformer.get_submodule(name).weight
            weight.copy_((weight.double() + strength * change).to(weight.dtype))
    (image,) = infer.generate(family, pipe, [SAID], config.sample, (SIDE, SIDE))
    return np.asarray(image).astype(int)


def test_generate_draws_at_any_strength(trained, tmp_path):
    run, changes = trained
    plain = draw(tmp_path, "tiny-qwen-image")
    drawn = {s: draw(tmp_path, run, "--strength", s) for s in STRENGTHS}
    assert np.array_equal(drawn[0], plain)
    assert np.array_equal(drawn[1], draw(tmp_path, run))
    for strength, ours in drawn.items():
        assert np.abs(ours - by_hand(changes, strength)).max() <= 1, strength
    moved = [np.abs(drawn[s] - plain).mean() for s in STRENGTHS[1:]]
    assert min(moved) > 0.5, moved


def test_an_exported_file_at_a_strength_is_the_same_picture(trained, tmp_path):
    run, _ = trained
    ours = draw(tmp_path, run, "--strength", "-0.7")
    for form in ("comfyui", "diffusers"):
        out = tmp_path / f"{form}.safetensors"
        assert main(["export", str(run), "--to", form, "--dtype", "fp32", "--out", str(out)]) == 0
        given = ["tiny-qwen-image", "--lora", out, "--strength", "-0.7"]
        assert np.abs(draw(tmp_path, *given) - ours).max() <= 1, form


@pytest.mark.parametrize(
    ("argv", "said"),
    [(["--strength", "强"], "“强”不行"), (["--strength", "nan"], "“nan”不行"),
     (["--strength", "99"], "-10 到 10"), (["--strength", "0,1"], "compare --strengths"),
     (["--strength", "1"], "没有 LoRA")],
)  # fmt: skip
def test_what_cannot_be_a_strength_is_told_before_loading(capsys, monkeypatch, argv, said):
    monkeypatch.setattr(infer, "open_for", lambda *_, **__: pytest.fail("载入了"))
    assert main(["generate", "tiny-qwen-image", "--prompt", SAID, *argv]) == 1
    assert said in capsys.readouterr().err


def test_a_full_fine_tune_has_no_strength(papercut, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    more = ["lora.kind=full", "train.steps=1", "train.lr=1e-5"]
    run = train(papercut, tmp_path / "run", *more).run
    assert full.find(run)
    argv = ["generate", str(run), "--prompt", SAID, "--strength"]
    assert main([*argv, "0.5"]) == 1 and "没有强度可调" in capsys.readouterr().err


def test_edit_takes_it_too(tmp_path, papercut, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    from lorakit.tiny import samples

    pairs = samples.write("edit-blue", tmp_path / "pairs", count=4)
    settings = [f"data.folder={pairs}", f"run.output={tmp_path / 'run'}", "train.steps=2",
                "eval.holdout=0", "eval.every=0", "train.lr=0.02"]  # fmt: skip
    list(Trainer(load_config("tiny-qwen-image-edit", settings)))
    picture, drawn = next((pairs / "control").glob("*.png")), []
    small = ["--set", "sample.size=64", "--set", "sample.steps=2"]
    for model, more in ((tmp_path / "run", ["--strength", "0"]), ("tiny-qwen-image-edit", [])):
        out = tmp_path / "e.png"
        argv = ["edit", picture, "变成蓝色", "--model", model, "--out", out, *more, *small]
        assert main([str(a) for a in argv]) == 0
        drawn.append(Image.open(out).tobytes())
    assert drawn[0] == drawn[1]
