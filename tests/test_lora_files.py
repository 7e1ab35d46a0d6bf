"""LoRA 文件：各家写法来回转换，ΔW 不变；体检、叠加、缩秩、合并与手算相同。"""

import warnings

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from lorakit import infer, lora
from lorakit.cli import main
from lorakit.errors import LorakitWarning, WeightsError
from lorakit.families import open_family
from lorakit.hub import locate
from lorakit.lora import audit as lora_audit
from lorakit.lora import convert, metadata, steps
from lorakit.lora import tensors as lora_tensors
from lorakit.results import checkpoint, verdict
from lorakit.results import folder as run_folder
from lorakit.results.verdict import Judgement, Light
from lorakit.train import Trainer

MODEL = ["--model", "tiny-qwen-image"]


@pytest.fixture(scope="module")
def shell():
    from lorakit.config import load_config

    return open_family(load_config("tiny-qwen-image"), torch.device("cpu")).skeleton()


@pytest.fixture
def trained(config):
    settings = config("train.lr=1e-2", "lora.alpha=8")
    list(Trainer(settings))
    return settings.run.output


def test_the_newest_numbered_checkpoint_is_found(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-best", "checkpoint-11.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / lora.FILE).touch()
    assert [steps.step_of(path) for path in steps.all_of(tmp_path)] == [9, 10]
    assert lora.find(tmp_path) == steps.folder_of(tmp_path, 10) / lora.FILE


FILE = lora.FILE
P = ["--prompt", "一只猫"]
USES = (["export", "--out", "o.safetensors"], ["audit"], ["judge"], ["generate", *P],
        ["compare", *P], ["compare", *P, "--checkpoints", "all"],
        ["push", "--to", "huggingface", "--repo", "a/b"])  # fmt: skip


def meant(folder):
    """检查点里每个权重文件的说明与张量；文件头里各项的次序每次都不同。"""
    files = sorted(folder.rglob("*.safetensors"))
    return [(p, metadata.of(p), {k: v.tolist() for k, v in load_file(p).items()}) for p in files]


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.filterwarnings("ignore::lorakit.errors.LorakitWarning")
def test_lost_weights_of_the_newest_checkpoint_are_told_and_mended(
    config, tmp_path, monkeypatch, capsys, kind
):
    """不悄悄退回前一个；丢了的、坏了的，再运行一遍训练就写回来，一个数也不差。"""
    monkeypatch.chdir(tmp_path)
    settings = config(f"lora.kind={kind}", "train.lr=1e-4", "sample.steps=2")
    list(Trainer(settings))
    run, name = settings.run.output, {"lora": FILE, "full": "transformer"}[kind]
    newest = run / "checkpoint-4"
    before = meant(newest)
    seen = verdict.judge(run_folder.read(run), 4, *(Light(n, "绿", "") for n in verdict.NAMES[1:]))
    verdict.save(run, Judgement("tiny", {4: seen}, 4, "因为"))
    (newest / name).rename(tmp_path / "moved")
    for command, *more in USES if kind == "lora" else (["generate", *P], ["push", *USES[-1][1:]]):
        assert main([command, str(run), *more]) == 1, command
        told = capsys.readouterr().err
        assert "checkpoint-4”里的权重不见了" in told and "再运行一遍训练的那条命令" in told
        assert "checkpoint-2" in told
    with pytest.warns(LorakitWarning, match=f"checkpoint-4.*{name}.*重新写好"):
        list(Trainer(settings))
    assert meant(newest) == before and verdict.read(run).verdicts[4].lights == seen.lights
    weights = next((newest / name).glob("*.safetensors")) if kind == "full" else newest / name
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert main(["generate", str(run), *P]) == 1
    assert "和存的时候不一样了" in capsys.readouterr().err
    with pytest.warns(LorakitWarning, match="重新写好"):
        list(Trainer(settings))
    assert meant(newest) == before and not checkpoint.changed(newest)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*重新写好")
        list(Trainer(settings))


def test_an_older_checkpoint_without_its_file_is_of_no_matter(trained, tmp_path):
    (trained / "checkpoint-2" / FILE).unlink()
    assert lora.find(trained).parent.name == "checkpoint-4"
    with pytest.raises(WeightsError, match=r"不见了.*写明用别的检查点，例如 .*checkpoint-4。"):
        lora.find(trained / "checkpoint-2")
    (trained / "checkpoint-4" / FILE).unlink()
    with pytest.raises(WeightsError, match=r"checkpoint-4.*不见了.*再运行一遍") as told:
        lora.find(trained)
    assert "别的检查点" not in str(told.value)


@pytest.mark.parametrize(("kind", "sharded"), [("lora", False), ("full", False), ("full", True)])
def test_without_digests_the_lost_file_is_named_as_it_is(config, monkeypatch, kind, sharded):
    """以前的检查点没有记指纹：全量微调的丢了权重，说的是它自己的文件，不是 LoRA 的。"""
    if sharded:
        monkeypatch.setattr(lora_tensors, "LIMIT", 1 << 20)
    settings = config(f"lora.kind={kind}", "train.lr=1e-4", "train.steps=1")
    list(Trainer(settings))
    home = settings.run.output / "checkpoint-1"
    facts = checkpoint.facts_of(home)
    kept = {key: facts[key] for key in checkpoint.OLD}
    (home / "state/state.json").write_text(checkpoint._told(kept))
    assert checkpoint.changed(home) == []
    name = {"lora": FILE, "full": "transformer/diffusion_pytorch_model.safetensors"}[kind]
    for file in home.glob(f"{name.removesuffix('.safetensors')}*.safetensors"):
        file.unlink()
    assert checkpoint.changed(home) == [name]
    with pytest.raises(WeightsError) as told:
        infer.open_pipeline(open_family(settings, torch.device("cpu")), settings.run.output)
    assert name in str(told.value) and (kind == "lora" or FILE not in str(told.value))
    with pytest.warns(LorakitWarning, match=f"checkpoint-1.*{name}.*重新写好"):
        list(Trainer(settings))
    assert checkpoint.changed(home) == []


def modules(shell):
    return [name for name, module in shell.named_modules() if isinstance(module, nn.Linear)]


def changes(file, shell):
    layers, unknown = convert.read(file, modules(shell))
    assert unknown == []
    return {path: convert.delta(pair) for path, pair in layers.items()}


def rename(trained, folder, change, extra=lambda name, value: {}):
    """把我们的文件改成别家的写法，另存。"""
    tensors = {}
    for name, value in load_file(lora.find(trained)).items():
        tensors |= {change(name): value} | extra(name, value)
    path = folder / "foreign.safetensors"
    save_file(tensors, path)
    return path


FOREIGN = {
    "peft": lambda n: n.replace("transformer.", "base_model.model.", 1),
    "diffsynth": lambda n: n.removeprefix("transformer.").replace(".weight", ".default.weight"),
    "comfyui": lambda n: n.replace("transformer.", "diffusion_model.", 1),
    "old diffusers": lambda n: n.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_foreign_files_mean_the_same(trained, shell, tmp_path, change):
    ours = changes(lora.find(trained), shell)
    theirs = changes(rename(trained, tmp_path, change), shell)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[path], theirs[path]) for path in ours)


def test_alpha_beside_the_matrices_is_a_scale(trained, shell, tmp_path):
    def alpha(name, value):
        stem = name.rpartition(".lora_")[0]
        return {f"{stem}.alpha": torch.tensor(4.0)} if ".lora_A." in name else {}

    ours = changes(lora.find(trained), shell)
    theirs = changes(rename(trained, tmp_path, lambda n: n, alpha), shell)
    assert all(torch.allclose(theirs[path], ours[path] * 4 / 16) for path in ours)


@pytest.mark.parametrize("form", convert.FORMATS)
def test_export_keeps_every_delta(trained, shell, tmp_path, form, capsys):
    out = tmp_path / f"{form}.safetensors"
    argv = ["export", str(trained), "--to", form, "--out", str(out), "--dtype", "fp32"]
    assert main(argv) == 0
    ours, theirs = changes(lora.find(trained), shell), changes(out, shell)
    for path in ours:
        assert (ours[path] - theirs[path]).norm() <= 1e-6 * ours[path].norm()
    assert lora.read(out)[1]["base"] == "tiny-qwen-image"
    assert main(["audit", str(out)]) == 0 and "全部对得上" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_stock_diffusers_loads_the_export(trained, tmp_path, form):
    from lorakit.config import load_config
    from lorakit.families import open_family

    out = tmp_path / "x.safetensors"
    assert main(["export", str(trained), "--to", form, "--out", str(out)]) == 0
    family = open_family(load_config("tiny-qwen-image"), torch.device("cpu"))
    pipe = family.pipeline(family.load("transformer"))
    before = pipe.transformer.get_submodule("transformer_blocks.0.attn.to_q").weight.clone()
    pipe.load_lora_weights(tmp_path, weight_name=out.name)
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    after = pipe.transformer.get_submodule("transformer_blocks.0.attn.to_q").weight
    layers, _ = convert.read(out, ["transformer_blocks.0.attn.to_q"])
    want = convert.delta(layers["transformer_blocks.0.attn.to_q"])
    assert torch.allclose((after - before).double(), want, atol=1e-6)


def test_half_renamed_file_is_an_error(trained, tmp_path, capsys):
    count = iter(range(10**6))
    broken = rename(
        trained, tmp_path, lambda n: n.replace("blocks", "blokcs") if next(count) % 2 else n
    )
    assert main(["audit", str(broken), *MODEL]) == 1
    said = capsys.readouterr()
    assert "没有地方放" in said.out or "只有一半" in said.err
    out = tmp_path / "no.safetensors"
    assert main(["export", str(broken), "--out", str(out), *MODEL]) == 1 and not out.exists()


def test_another_base_is_refused(trained, tmp_path, capsys):
    other = rename(trained, tmp_path, lambda n: n.replace("transformer_blocks.", "layers."))
    assert main(["export", str(other), "--out", str(tmp_path / "x"), *MODEL]) == 1
    assert "与这个底模对不上" in capsys.readouterr().err


def pair(rank, seed=0, out=6, wide=5):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rank, wide, generator=g), torch.randn(out, rank, generator=g)


def test_combine_by_hand():
    one, two = {"x": pair(2), "y": pair(2, 1)}, {"x": pair(3, 2)}
    mixed = convert.combine([(one, 0.5), (two, -2.0)])
    want = 0.5 * one["x"][1] @ one["x"][0] - 2 * two["x"][1] @ two["x"][0]
    assert torch.allclose(mixed["x"][1] @ mixed["x"][0], want, atol=1e-5)
    assert len(mixed["x"][0]) == 5 and len(mixed["y"][0]) == 2


def test_resize_is_the_best_low_rank_approximation():
    layers = {"x": pair(4)}
    small, kept = convert.resize(layers, 2)
    whole = (layers["x"][1] @ layers["x"][0]).double()
    u, s, vh = torch.linalg.svd(whole)
    best = u[:, :2] * s[:2] @ vh[:2]
    assert torch.allclose(convert.delta(small["x"]), best, atol=1e-5)
    assert kept == pytest.approx(float(s[:2].square().sum() / s.square().sum()), rel=1e-5)


def test_effective_rank_by_hand(shell):
    rank = lora_audit._effective_rank
    assert rank(torch.tensor([1.0, 1.0, 1.0])) == pytest.approx(3)
    assert rank(torch.tensor([2.0, 0.0, 0.0])) == pytest.approx(1)


def test_merged_base_opens_in_diffusers(trained, tmp_path, shell):
    out = tmp_path / "merged"
    assert main(["export", str(trained), "--merge", "--out", str(out)]) == 0
    merged = QwenImageTransformer2DModel.from_pretrained(out / "transformer").state_dict()
    base = QwenImageTransformer2DModel.from_pretrained(
        locate("tiny-qwen-image"), subfolder="transformer"
    ).state_dict()
    moved = changes(lora.find(trained), shell)
    for name, value in base.items():
        want = moved.get(name.removesuffix(".weight"))
        if want is None:
            assert torch.equal(merged[name], value), name
        else:
            assert torch.allclose((merged[name] - value).double(), want, atol=1e-6), name


def test_weights_and_files_must_match(trained, tmp_path, capsys):
    argv = ["export", str(trained), "--weight", "1", "--weight", "2", "--out", str(tmp_path / "x")]
    assert main(argv) == 1
    assert "--weight 要写 1 个" in capsys.readouterr().err


def test_not_a_lora_is_said(tmp_path, shell):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="没有 LoRA"):
        convert.read(tmp_path / "a.safetensors", modules(shell))
