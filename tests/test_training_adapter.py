"""训练适配器：训练时是 base + ΔW，画图时、存下的文件里都没有它；换了、写错了，说得清楚。"""

import hashlib
import json
import shutil
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import random_zimage
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from test_hub import served  # noqa: F401
from torch import nn

from lorakit import infer, lora
from lorakit.config import load_config
from lorakit.errors import ConfigError, LorakitError
from lorakit.families import get, open_family
from lorakit.hub import single
from lorakit.tiny import samples
from lorakit.train import Trainer
from lorakit.training import adapter, preflight

SAID = "一只红色的猫"
FIELD = "model.training_adapter"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """一个步数蒸馏过的底模、给它的适配器（ai-toolkit 的写法）、几张图。"""
    folder = tmp_path_factory.mktemp("adapter")
    base = random_zimage.build(folder / "Z-Image-Turbo")
    write(folder / "adapter.safetensors", base)
    samples.write("papercut", folder / "data", count=4)
    return folder


def deltas(base: Path, seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """块里的每个线性层一对 (A, B)，秩 3。"""
    family = open_family(load_config(None, ["model.family=z-image", f"model.path={base}"]))
    g, shell = torch.Generator().manual_seed(seed), family.skeleton()
    layers = [(name, shell.get_submodule(name)) for name in lora.match(shell, family, "all-linear")]
    return {
        name: (
            0.5 * torch.randn(3, layer.in_features, generator=g),
            0.5 * torch.randn(layer.out_features, 3, generator=g),
        )
        for name, layer in layers
    }


def write(file: Path, base: Path, seed: int = 0):
    tensors = {}
    for name, (a, b) in deltas(base, seed).items():
        stem = f"diffusion_model.{name}"
        tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
    save_file(tensors, file)


def merged(home: Path) -> Path:
    """同一个底模，ΔW 合进权重；名字里没有蒸馏的字样。"""
    folder = home / "merged"
    if not folder.is_dir():
        shutil.copytree(home / "Z-Image-Turbo", folder)
        file = next((folder / "transformer").glob("*.safetensors"))
        state = load_file(file)
        for name, (a, b) in deltas(folder).items():
            state[f"{name}.weight"] += b @ a
        save_file(state, file, {"format": "pt"})
    return folder


def settings(home: Path, run: Path, *sets: str, base="Z-Image-Turbo", with_it=True):
    given = [f"{FIELD}={home / 'adapter.safetensors'}"] if with_it else []
    return load_config("z-image", [
        f"model.path={home / base}", *given, f"data.folder={home / 'data'}", f"run.output={run}",
        "data.resolution=64", "train.steps=2", "train.save_every=1", "train.batch_size=2",
        "train.warmup=0", "train.lr=1e-2", "eval.holdout=0.25", "eval.every=1", "lora.rank=2",
        "memory.compile=false", "memory.checkpointing=false", "sample.prompts=[]",
        "sample.every=0", "sample.steps=2", *sets,
    ])  # fmt: skip


def practise(config) -> tuple[Trainer, list[float]]:
    trainer = Trainer(config)
    held = [trainer.evaluate(), *(step.held for step in trainer)]
    return trainer, held


@pytest.mark.parametrize("how", [
    (), ("memory.offload=blocks", "memory.checkpointing=full"), ("memory.compile=true",),
])  # fmt: skip
def test_it_trains_as_if_merged_and_the_file_holds_only_ours(home, tmp_path, monkeypatch, how):
    """加着它练两步 = 在合进了 ΔW 的底模上练两步；存下的只有要学的那一份。"""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr("lorakit.memory.compiling.cannot_compile", lambda device: "")
    _, held = practise(settings(home, tmp_path / "with", *how))
    _, truth = practise(settings(home, tmp_path / "whole", base=merged(home), with_it=False))
    assert held == pytest.approx(truth, rel=1e-4)
    ours, theirs = (load_file(lora.find(tmp_path / run)) for run in ("with", "whole"))
    assert ours.keys() == theirs.keys() and {len(v) for k, v in ours.items() if "_A." in k} == {2}
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-4, rtol=1e-2)
    trainer = Trainer(settings(home, tmp_path / "probe"))
    trainer.objective.model = open_family(trainer.config).load("transformer")  # 没有适配器的
    assert float(np.mean(trainer.objective.evaluate())) != pytest.approx(held[0], rel=1e-3)
    trainer.close()


def test_pictures_are_drawn_without_it(home, tmp_path):
    """样张用底模自己，与 stock 管线逐像素相同；画完接着练，它又在了。"""
    trainer = Trainer(settings(home, tmp_path / "run"))
    before, how = trainer.evaluate(), trainer.config.sample
    ours = infer.generate(trainer.family, trainer.pipeline(), [SAID], how, (64, 64))[0]
    assert trainer.evaluate() == before
    stock = DiffusionPipeline.from_pretrained(home / "Z-Image-Turbo")
    stock.set_progress_bar_config(disable=True)

    def draw():
        return infer.generate(trainer.family, stock, [SAID], how, (64, 64))[0]

    assert np.array_equal(np.asarray(ours), np.asarray(draw()))  # 还没有练，LoRA 是零
    list(trainer)
    ours = infer.generate(trainer.family, trainer.pipeline(), [SAID], how, (64, 64))[0]
    stock.load_lora_weights(lora.find(tmp_path / "run").parent, weight_name=lora.FILE)
    apart = np.abs(np.asarray(ours, int) - np.asarray(draw(), int))
    assert apart.max() <= 1
    again = open_family(trainer.config)  # generate 的路：底模加上练出来的文件
    pipe = infer.open_pipeline(again, tmp_path / "run")
    apart = np.asarray(infer.generate(again, pipe, [SAID], how, (64, 64))[0], int) - ours
    assert np.abs(apart).max() <= 1


@pytest.mark.parametrize("how", [
    "model.quantize=int8", "model.quantize=fp8", "model.quantize=nf4",
    "lora.variant=dora", "lora.variant=lokr", "lora.kind=full",
])  # fmt: skip
def test_each_layer_adds_the_delta_whatever_holds_its_weight(home, tmp_path, how):
    """量化过的底模，各种要学的：train 时多出来的正好是 B A x，eval 时一点不多。"""
    if "nf4" in how:
        pytest.importorskip("bitsandbytes")
    trainer = Trainer(settings(home, tmp_path / "run", how))
    model, truth = trainer.transformer, deltas(home / "Z-Image-Turbo")
    for name, (a, b) in truth.items():
        layer = model.get_submodule(name)
        x = torch.randn(5, a.shape[1])
        with torch.no_grad():
            more = layer.train()(x) - layer.eval()(x)
        torch.testing.assert_close(more, x @ a.T @ b.T, atol=1e-5, rtol=1e-4)
    hooked = [m for m in model.modules() if any(map(_is_branch, m._forward_hooks.values()))]
    assert len(hooked) == len(truth) and all(isinstance(m, nn.Linear) for m in hooked)
    assert list(trainer)[-1].held is not None
    whole = trainer.transformer.state_dict()
    learned = trainer.parameters
    assert not any(value is part for value in whole.values() for h in hooked for part in _parts(h))
    assert all("assist" not in name for name in (*whole, *learned))


def _is_branch(hook) -> bool:
    return isinstance(hook, adapter.Branch)


def _parts(layer):
    return [p for h in layer._forward_hooks.values() if _is_branch(h) for p in (h.a, h.b)]


def test_the_next_training_on_the_same_family_starts_clean(home, tmp_path):
    family = open_family(settings(home, tmp_path))
    for run in ("one", "two"):
        trainer = Trainer(settings(home, tmp_path / run), family=family)
        trainer.close()
        layer = trainer.transformer.get_submodule("layers.0.feed_forward.w1")
        assert len(layer._forward_hooks) == 1
    adapter.put_on(family.untouched(), family, trainer.config.model, family.device)
    assert not family.untouched().get_submodule("layers.0.feed_forward.w1")._forward_hooks


def test_going_on_notices_another_adapter(home, tmp_path):
    mine, moved = tmp_path / "mine.safetensors", tmp_path / "moved.safetensors"
    shutil.copy(home / "adapter.safetensors", mine)
    shutil.copy(mine, moved)
    run = tmp_path / "run"
    list(Trainer(settings(home, run, f"{FIELD}={mine}", "train.steps=1")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(settings(home, run, f"{FIELD}={moved}")).close()  # 换了地方，内容一样
    with pytest.raises(ConfigError, match=f"{FIELD}：原来"):
        Trainer(settings(home, run, f"{FIELD}=", base=merged(home)))
    write(mine, home / "Z-Image-Turbo", seed=1)
    with pytest.raises(ConfigError, match=f"{FIELD}：换了内容"):
        Trainer(settings(home, run, f"{FIELD}={mine}"))


def test_the_refusal_names_it(home, tmp_path):
    config = settings(home, tmp_path, with_it=False)
    with pytest.raises(ConfigError) as caught:
        Trainer(config)
    known = get("z-image").training_adapters["turbo"]
    assert f"model.training_adapter={known}" in str(caught.value)
    assert "Tongyi-MAI/Z-Image 上训练" in str(caught.value)
    with pytest.raises(ConfigError, match=r"FLUX.1-schnell-training-adapter"):
        preflight.refuse(load_config("flux-dev", ["model.path=black-forest-labs/FLUX.1-schnell"]))
    with pytest.raises(ConfigError, match=f"{FIELD}=给它练的训练适配器"):
        preflight.refuse(load_config("qwen-image", ["model.path=x/Qwen-Image-Lightning"]))
    preflight.refuse(settings(home, tmp_path))


def _foreign(file: Path, base: Path):
    save_file({"transformer.blocks.0.x.lora_A.weight": torch.ones(1, 4),
               "transformer.blocks.0.x.lora_B.weight": torch.ones(4, 1)}, file)  # fmt: skip


def _wider(file: Path, base: Path):
    pair = deltas(base)["layers.0.attention.to_q"]
    save_file({"transformer.layers.0.attention.to_q.lora_A.weight": torch.ones(3, 8),
               "transformer.layers.0.attention.to_q.lora_B.weight": pair[1]}, file)  # fmt: skip


def _dora(file: Path, base: Path):
    a, b = deltas(base)["layers.0.attention.to_q"]
    stem = "transformer.layers.0.attention.to_q"
    save_file({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b,
               f"{stem}.lora_magnitude_vector": torch.ones(len(b))}, file)  # fmt: skip


def _weights(file: Path, base: Path):
    shutil.copy(next((base / "transformer").glob("*.safetensors")), file)


def _html(file: Path, base: Path):
    file.write_text("<html>", encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(_foreign, "对不上"), (_wider, "对不上"), (_dora, "DoRA"), (_weights, "没有 LoRA 的权重"),
     (_html, "打不开"), (lambda file, base: None, "没有“")],
)  # fmt: skip
def test_a_wrong_file_is_said_before_anything_is_loaded(home, tmp_path, monkeypatch, spoil, said):
    file = tmp_path / "wrong.safetensors"
    spoil(file, home / "Z-Image-Turbo")
    monkeypatch.setattr("lorakit.training.setup.encoded", lambda *a: pytest.fail("已经在编码了"))
    with pytest.raises(LorakitError, match=FIELD) as caught:
        Trainer(settings(home, tmp_path / "run", f"{FIELD}={file}"))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["modelscope", "huggingface", "auto"])
def test_one_file_comes_from_a_site_once(served, home, source):  # noqa: F811
    content = (home / "adapter.safetensors").read_bytes()
    served.repos["me/adapter"] = {"v1.safetensors": content, "v2.safetensors": b"x" * 99}
    served.repos["me/one"] = {"only.safetensors": content, "README.md": b"x"}
    name = "me/adapter/v1.safetensors"
    found = single(name, source, FIELD)
    assert hashlib.sha256(found.read_bytes()).digest() == hashlib.sha256(content).digest()
    assert served.weights == ["v1.safetensors"]
    assert single("me/one", source, FIELD).read_bytes() == content
    for wrong, said in [
        ("me/adapter", "要写上是哪一个"),
        ("me/adapter/v3.safetensors", "v1.saf"),
        ("me/nothing/a.safetensors", "没有这个仓库"),
        ("no such", "没有“no such”"),
    ]:
        with pytest.raises(LorakitError, match=f"{FIELD}：.*{said}"):
            single(wrong, source, FIELD)
    served.down |= {"hf", "ms"}
    assert single(name, source, FIELD) == found  # 下载过的不联网
    with pytest.raises(LorakitError, match="503"):
        single("me/adapter/v2.safetensors", source, FIELD)


def test_the_other_trainers_word_for_it(tmp_path):
    process = {"type": "sd_trainer", "datasets": [{"folder_path": "my-data"}], "model": {
        "name_or_path": "Tongyi-MAI/Z-Image-Turbo", "arch": "zimage:turbo",
        "assistant_lora_path": "ostris/zimage_turbo_training_adapter/v2.safetensors",
    }}  # fmt: skip
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps({"job": "extension", "config": {"process": [process]}}))
    config = load_config(file, say=lambda _: None)
    assert config.model.training_adapter == process["model"]["assistant_lora_path"]
