"""读不了的文件该怎么办：真的用 PEFT 造一个，照那句话做，做完就能用；写着的命令每一条都运行过。"""

import shutil
from pathlib import Path

import peft
import pytest
import torch
from diffusers import FluxTransformer2DModel
from foreign_tools import named, write
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import config as settings

from lorakit.cli import main
from lorakit.hub.bundled import bundled

T = ["transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_k"]
pytestmark = pytest.mark.filterwarnings("ignore:.*(merge|quantiz|config file)")


def plain(**given):
    return LoraConfig(r=4, target_modules=T, **given)


def other(name, **given):
    return getattr(peft, f"{name}Config")(target_modules=T, **given)


READ = {  # 读得了的：算得和 PEFT 自己合并的一样
    "plain": lambda: plain(), "dora": lambda: plain(use_dora=True),
    "rslora": lambda: plain(use_rslora=True, rank_pattern={T[0]: 2}),
    "mica": lambda: plain(init_lora_weights="mica"), "lokr": lambda: other("LoKr", r=4),
    "orthogonal": lambda: plain(init_lora_weights="orthogonal"),
}  # fmt: skip
MERGED = {  # 读不了、可以合并的
    "pissa": lambda: plain(init_lora_weights="pissa"),
    "olora": lambda: plain(init_lora_weights="olora"),
    "pissa and dora": lambda: plain(init_lora_weights="pissa", use_dora=True),
    "pissa, rslora, ranks": lambda: plain(
        init_lora_weights="pissa", use_rslora=True, rank_pattern={T[0]: 2}),
    "loftq": lambda: plain(
        init_lora_weights="loftq", loftq_config={"loftq_bits": 4, "loftq_iter": 1}),
    "qalora": lambda: plain(use_qalora=True, qalora_group_size=16),
    "bdlora": lambda: plain(use_bdlora=settings.BdLoraConfig(
        target_modules_bd_a=["to_q"], target_modules_bd_b=["to_k"], nblocks=2)),
    "kasa": lambda: plain(kasa_config=settings.KasaConfig()),
    "velora": lambda: plain(velora_config=settings.VeloraConfig(num_groups=4)),
    "lora_bias": lambda: plain(lora_bias=True), "bias": lambda: plain(bias="lora_only"),
    "modules_to_save": lambda: plain(modules_to_save=["x_embedder"]),
    "adalora": lambda: other("AdaLora", r=4, total_step=10), "vera": lambda: other("Vera", r=4),
    "loha": lambda: other("LoHa", r=4), "ia3": lambda: other("IA3", feedforward_modules=[]),
    "oft": lambda: other("OFT", oft_block_size=16), "hra": lambda: other("HRA", r=4),
    "boft": lambda: other("BOFT", boft_block_size=4),
    "fourierft": lambda: other("FourierFT", n_frequency=10), "shira": lambda: other("Shira", r=4),
    "randlora": lambda: other("RandLora", r=4), "miss": lambda: other("Miss", r=4),
    "delora": lambda: other("Delora", r=4), "gralora": lambda: other("Gralora", r=4),
}  # fmt: skip
CONVERTED = ("pissa", "olora")  # 另有一条路：减掉开头的那一份
DRAW = ["--prompt", "一只猫", "--steps", "2", "--width", "64", "--height", "64"]


def base() -> FluxTransformer2DModel:
    return FluxTransformer2DModel.from_pretrained(bundled("tiny-flux") / "transformer")


def moved(make, folder: Path):
    """挂上、动一动、存下来 -> (PEFT 的模型, 存在哪)。"""
    try:
        model = get_peft_model(base(), make())
    except ImportError as error:
        pytest.skip(f"PEFT 的这一种另要一个包：{error}")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for value in (p for p in model.parameters() if p.requires_grad):
            value.add_(torch.randn_like(value) * 0.05)
    model.save_pretrained(folder)
    return model.eval(), folder


def said(capsys, *argv) -> tuple[int, str]:
    capsys.readouterr()
    code = main([str(one) for one in argv])
    return code, "".join(capsys.readouterr())


@pytest.mark.parametrize("kind", READ)
def test_what_is_read_means_what_peft_merges(tmp_path, capsys, kind):
    model, folder = moved(READ[kind], tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    code, told = said(capsys, "audit", file, "--model", "tiny-flux")
    assert code == 0 and "对不上" not in told
    out = tmp_path / "merged"
    assert said(capsys, "export", file, "--model", "tiny-flux", "--merge", "--out", out)[0] == 0
    ours = FluxTransformer2DModel.from_pretrained(out / "transformer")
    merged = model.merge_and_unload()
    for path in T:
        before = base().get_submodule(path).weight.double()
        want = merged.get_submodule(path).weight.double() - before
        got = ours.get_submodule(path).weight.double() - before
        assert (got - want).norm() <= 1e-4 * want.norm(), path


@pytest.mark.parametrize("kind", MERGED)
def test_what_is_not_read_can_be_merged_as_said(tmp_path, capsys, kind):
    model, folder = moved(MERGED[kind], tmp_path / "a")
    code, told = said(capsys, "audit", folder / "adapter_model.safetensors", "--model", "tiny-flux")
    assert code == 1 and "merge_and_unload()" in told and "换掉底模文件夹里的 transformer" in told
    assert ("path_initial_model_for_weight_conversion" in told) == (kind in CONVERTED)
    x = torch.eye(base().get_submodule(T[0]).in_features)
    with torch.no_grad():
        want = model.base_model.model.get_submodule(T[0])(x)
    place = tmp_path / "base"
    shutil.copytree(bundled("tiny-flux"), place, symlinks=False)
    shutil.rmtree(place / "transformer")
    model.merge_and_unload().save_pretrained(place / "transformer")
    merged = FluxTransformer2DModel.from_pretrained(place / "transformer")
    with torch.no_grad():
        got = merged.get_submodule(T[0])(x)
    assert (got - want).norm() <= 1e-4 * want.norm()
    out = tmp_path / "a.png"
    code, told = said(capsys, "generate", "--model_name", place, *DRAW, "--out", out)
    assert code == 0 and out.is_file(), told


ROUTED = {"alora": {"alora_invocation_tokens": [1]}, "arrow": {"arrow_config": {"top_k": 2}}}


@pytest.mark.parametrize("kind", ROUTED)
def test_what_cannot_be_merged_is_not_told_to_merge(tmp_path, capsys, kind):
    """PEFT 自己也合并不了：aLoRA does not support merging；Arrow 一个词一个样。"""
    tensors = named(T[0], torch.ones(4, 64), torch.ones(64, 4), "base_model.model.")
    file = write(tmp_path, tensors, lora_adapter_metadata={"r": 4, "lora_alpha": 4} | ROUTED[kind])
    code, told = said(capsys, "audit", file, "--model", "tiny-flux")
    assert code == 1 and "合并不进底模" in told and "merge_and_unload" not in told
    for prefix in ("lily_", "shadow_", "prompt_tuning_", "xlora_"):
        odd = write(tmp_path, {f"base_model.model.{T[0]}.{prefix}x": torch.ones(2, 2)})
        code, told = said(capsys, "audit", odd, "--model", "tiny-flux")
        assert code == 1 and "merge_and_unload" not in told, prefix
