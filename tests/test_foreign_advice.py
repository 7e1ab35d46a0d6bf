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
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga

from lorakit.cli import main
from lorakit.hub.bundled import bundled

T = ["transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_k"]
pytestmark = pytest.mark.filterwarnings("ignore:.*(merge|quantiz|config file)")


def plain(**given):
    return LoraConfig(r=4, target_modules=T, **given)


def other(name, **given):
    return getattr(peft, f"{name}Config")(target_modules=T, **given)


def loftq():
    """PEFT 的 loftq_init 只在显卡上算；这里照它的几步在 CPU 上算。"""
    pytest.importorskip("bitsandbytes", reason="LoftQ 要用 bitsandbytes，没有装")
    given = plain()
    given.init_lora_weights, given.loftq_config = "loftq", {"loftq_bits": 4, "loftq_iter": 1}
    return given


def on_the_cpu(weight, num_bits, reduced_rank, num_iter):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    near = dequantize_4bit(*quantize_4bit(weight.float(), quant_type="nf4"))
    u, s, v = torch.linalg.svd(weight.float() - near)
    root = s[:reduced_rank].sqrt()
    return near.to(weight.dtype), root[:, None] * v[:reduced_rank], u[:, :reduced_rank] * root


def corda():
    config = plain(init_lora_weights="corda", corda_config=settings.CordaConfig(corda_method="ipm"))
    return config, lambda model: preprocess_corda(model, config, lambda: run(model))


def lora_ga():
    config = plain(init_lora_weights="lora_ga", lora_ga_config=settings.LoraGAConfig())

    def step(model):
        sum(out.square().mean() for out in run(model)).backward()

    return config, lambda model: preprocess_loraga(model, config, lambda: step(model))


def run(model) -> list[torch.Tensor]:
    layers = [model.get_submodule(path) for path in T]
    return [layer(torch.randn(256, layer.in_features)) for layer in layers]


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
    "loftq": lambda: loftq(), "corda": lambda: corda(), "lora_ga": lambda: lora_ga(),
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
CONVERTED = ("pissa", "olora", "corda", "lora_ga")  # 另有一条路：减掉开头的那一份
DRAW = ["--prompt", "一只猫", "--steps", "2", "--width", "64", "--height", "64"]


def base() -> FluxTransformer2DModel:
    return FluxTransformer2DModel.from_pretrained(bundled("tiny-flux") / "transformer")


def attached(make):
    config, prepare = made if isinstance(made := make(), tuple) else (made, lambda model: None)
    bare = base()
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(peft.tuners.lora.layer, "loftq_init", on_the_cpu)
        prepare(bare)
        return get_peft_model(bare, config)


def moved(make, folder: Path):
    """挂上、动一动、存下来 -> (PEFT 的模型, 存在哪)。"""
    model = attached(make)
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


@pytest.mark.parametrize("kind", CONVERTED)
def test_what_is_converted_as_said_is_a_plain_lora(tmp_path, capsys, kind):
    """练之前存一份开头的，练完减掉它：得到的文件读来就是 PEFT 合并出来的。"""
    model = attached(MERGED[kind])
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = kind
    with torch.no_grad():
        for value in (p for p in model.parameters() if p.requires_grad):
            value.add_(torch.randn_like(value) * 0.05)
    start = {"path_initial_model_for_weight_conversion": str(tmp_path / "start")}
    model.save_pretrained(tmp_path / "plain", **start)
    file, out = tmp_path / "plain/adapter_model.safetensors", tmp_path / "merged"
    code, told = said(capsys, "export", file, "--model", "tiny-flux", "--merge", "--out", out)
    assert code == 0 and "对不上" not in told
    merged, ours = (
        model.merge_and_unload(),
        FluxTransformer2DModel.from_pretrained(out / "transformer"),
    )
    for path in T:
        before = base().get_submodule(path).weight
        want = merged.get_submodule(path).weight - before
        assert (ours.get_submodule(path).weight - before - want).norm() <= 1e-3 * want.norm()


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
