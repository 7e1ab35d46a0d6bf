"""全量微调：每个权重都练，存成 stock 管线能打开的样子，断了续得上。"""

import re
import warnings

import pytest
import random_kandinsky5
import random_qwen_edit
import random_zimage
import torch
from diffusers import AutoModel, QwenImagePipeline
from PIL import Image
from safetensors.torch import load_file

from lorakit import infer
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import WeightsError
from lorakit.families import get, open_family
from lorakit.lora import full
from lorakit.lora import tensors as lora_tensors
from lorakit.train import Trainer

CPU = torch.device("cpu")
TINY = {
    "qwen-image-edit": (random_qwen_edit, random_qwen_edit.UNUSED),
    "z-image": (random_zimage, "nothing"),
    "kandinsky5": (random_kandinsky5, "nothing"),
}


@pytest.mark.parametrize("name", TINY)
def test_gradients_reach_every_weight(name, tmp_path):
    module, unused = TINY[name]
    family = get(name)(module.build(tmp_path / name), CPU, torch.float32)
    transformer = family.load("transformer")
    parameters = full.attach(transformer)
    x = torch.randn(2, *family.encode_images(torch.rand(1, 3, 64, 64))[0].shape[1:])
    refs = [[Image.new("RGB", (64, 64), color)] for color in ("red", "blue")]
    cond = family.collate(family.encode_prompts(["一只猫", "左边有一条很大的鱼"], refs))
    with torch.no_grad():  # 有些层的初值是零，零的前面得不到梯度
        for parameter in parameters.values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    family.predict_velocity(transformer, x, torch.tensor([0.3, 0.6]), cond).pow(2).mean().backward()
    assert set(parameters) == {key for key, _ in transformer.named_parameters()}
    dead = [k for k, p in parameters.items() if p.grad is None or not p.grad.abs().max() > 0]
    assert [key for key in dead if not re.fullmatch(unused, key)] == []


@pytest.fixture
def settings(config):
    def make(*more, output: str = "run"):
        return config(
            "lora.kind=full", "lora.targets=attention", "train.lr=1e-5", *more, output=output
        )

    return make


def test_resumes_exactly_and_opens_in_the_stock_pipeline(settings, cut_at_three):
    whole, cut = settings(output="whole"), settings(output="cut")
    trainer = Trainer(whole)
    base = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    list(trainer)
    changed = [name for name, p in trainer.parameters.items() if not torch.equal(p, base[name])]
    assert len(changed) > 0.9 * len(base)
    cut_at_three(cut)
    for name in ("state/weights.safetensors", "state/optimizer.safetensors",
                 "transformer/diffusion_pytorch_model.safetensors"):  # fmt: skip
        a, b = (load_file(c.run.output / "checkpoint-4" / name) for c in (whole, cut))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    folder = whole.run.output / "checkpoint-4" / "transformer"
    family = open_family(whole, CPU)
    pipe = QwenImagePipeline.from_pretrained(
        family.folder, transformer=AutoModel.from_pretrained(str(folder))
    )
    for name, value in pipe.transformer.state_dict().items():
        assert torch.equal(value, trainer.transformer.state_dict()[name]), name
    opened = infer.open_pipeline(family, whole.run.output)
    assert torch.equal(opened.transformer.proj_out.weight, pipe.transformer.proj_out.weight)
    with pytest.raises(WeightsError, match="全量微调"):
        infer.compare(family, opened, ["一只猫"], whole.sample, (64, 64))


def test_large_checkpoints_are_written_file_by_file(settings, cut_at_three, monkeypatch):
    """大模型的检查点分成几个文件，写的时候内存里只有一个的；续训、stock 的载入都认得。"""
    whole, cut = (settings("model.precision=bf16", output=one) for one in ("whole", "cut"))
    list(Trainer(whole))  # 只有一个文件
    monkeypatch.setattr(lora_tensors, "LIMIT", 1 << 20)
    cut_at_three(cut)
    one, many = (c.run.output / "checkpoint-4" for c in (whole, cut))
    for stem in ("weights", "optimizer"):
        files = sorted((many / "state").glob(f"{stem}-*.safetensors"))
        assert files[0].name == f"{stem}-00001-of-{len(files):05}.safetensors" and len(files) > 2
        parts = [load_file(file) for file in files]
        assert all(len(part) == 1 or size(part) <= lora_tensors.LIMIT for part in parts)
        joined = {key: value for part in parts for key, value in part.items()}
        right = load_file(one / "state" / f"{stem}.safetensors")
        assert joined.keys() == right.keys()
        assert all(torch.equal(joined[key], right[key]) for key in right)
    ours, theirs = (AutoModel.from_pretrained(str(path / "transformer")) for path in (many, one))
    assert (many / "transformer/diffusion_pytorch_model.safetensors.index.json").is_file()
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name
    opened = infer.open_pipeline(open_family(cut, CPU), cut.run.output)
    assert torch.equal(opened.transformer.proj_out.weight.float(), ours.proj_out.weight.float())


def size(tensors: dict) -> int:
    return sum(value.nbytes for value in tensors.values())


def test_bf16_bases_learn_in_fp32_and_are_saved_as_they_were(settings, tmp_path):
    family = open_family(settings("model.precision=bf16"), CPU)
    transformer = family.load("transformer")
    assert transformer.dtype == torch.bfloat16
    assert {p.dtype for p in full.attach(transformer).values()} == {torch.float32}
    full.save(tmp_path, family, full.files_of(transformer.state_dict()).items())
    saved = load_file(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    assert {p.dtype for p in transformer.parameters()} == {torch.float32}


def test_preview_in_mixed_precision(settings):
    trainer = Trainer(settings("model.precision=bf16", "sample.prompts=[一只猫]", "sample.steps=2"))
    pipe = trainer.family.pipeline(trainer.transformer.eval())
    (image,) = infer.preview(trainer.family, pipe, trainer.config, trainer.dataset)
    assert image.size == (64, 64) and image.getextrema() != ((0, 0),) * 3


def test_settings_without_effect_and_a_high_rate_are_told(settings):
    with pytest.warns(UserWarning) as told:
        Trainer(settings("lora.rank=4", "train.lr=6e-4"))
    said = "".join(str(one.message) for one in told)
    assert (
        "lora.rank" in said and "不起作用" in said and "0.0006" in said and "lora.alpha" not in said
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Trainer(settings(output="quiet"))


def test_weights_of_another_base_are_refused(settings, tmp_path):
    other = random_zimage.build(tmp_path / "z")
    (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
    (other / "transformer").rename(tmp_path / "run" / "checkpoint-1" / "transformer")
    family = open_family(settings(), CPU)
    with pytest.raises(WeightsError, match="对不上"):
        infer.open_pipeline(family, tmp_path / "run")
    file = tmp_path / "run/checkpoint-1/transformer/diffusion_pytorch_model.safetensors"
    file.write_bytes(b"broken")
    with pytest.raises(WeightsError, match="打不开"):
        infer.open_pipeline(family, tmp_path / "run")


def test_the_newest_checkpoint_is_found(tmp_path):
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}" / "transformer").mkdir(parents=True)
        (tmp_path / f"checkpoint-{step}" / "transformer" / "config.json").write_text("{}")
    assert full.find(tmp_path).parent.name == "checkpoint-10"
    assert full.find(tmp_path / "checkpoint-2").parent.name == "checkpoint-2"
    assert full.find(load_config().run.output) is None
    assert full.find(open_family(load_config(), CPU).folder) is None  # 底模不是训练的结果


def test_the_preset_from_the_command_line(papercut, tmp_path, capsys):
    out = tmp_path / "run"
    sets = (f"data.folder={papercut}", f"run.output={out}", "train.steps=2", "train.warmup=0",
            "train.schedule=constant", "sample.steps=2", "eval.every=2")  # fmt: skip
    argv = ["train", "tiny-qwen-image-full", *(w for s in sets for w in ("--set", s))]
    assert main(argv) == 0 and f"lorakit generate {out}" in capsys.readouterr().out
    assert "全量微调" in (out / "README.md").read_text("utf-8")
    picture = tmp_path / "cat.png"
    assert main(["generate", str(out), "--prompt", "一只猫", "--out", str(picture)]) == 0
    assert picture.is_file()
    assert main(["compare", str(out), "--prompt", "一只猫"]) == 1
    assert "全量微调" in capsys.readouterr().err


def test_the_base_is_the_base_again_after_a_full_fine_tune(settings):
    """同一个家族对象：打开过全量微调的结果、练过，再打开底模，还是原来的底模。"""
    config = settings()
    family = open_family(config, torch.device("cpu"))
    before = {n: p.clone() for n, p in family.load("transformer").state_dict().items()}
    trainer = Trainer(config, family=family)
    list(trainer)

    def same() -> bool:
        now = infer.open_pipeline(family).transformer.state_dict()
        return all(torch.equal(now[name], value) for name, value in before.items())

    assert same()
    whole = infer.open_pipeline(family, config.run.output).transformer.state_dict()
    assert any(not torch.equal(whole[name], value) for name, value in before.items())
    assert same()
