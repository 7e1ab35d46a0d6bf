"""LoRA：刚挂上什么也不改变；存下的文件在 stock 管线里效果相同。"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit import infer, lora
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import ConfigError, WeightsError
from lorakit.families import open_family


def fresh(*overrides):
    config = load_config("tiny-qwen-image", list(overrides))
    family = open_family(config, torch.device("cpu"))
    transformer = family.load("transformer").eval()
    return config, family, transformer, lora.attach(transformer, family, config.lora, seed=0)


def shake(parameters):
    generator = torch.Generator().manual_seed(3)
    for name, p in parameters.items():
        if ".lora_B." in name or ".lokr_w2" in name:
            p.data = torch.randn(p.shape, generator=generator) * 0.05


@torch.no_grad()
def velocity(family, transformer):
    cond = family.collate(family.encode_prompts(["一只红色的猫"]))
    x = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    return family.predict_velocity(transformer, x, torch.tensor([0.5]), cond)


def test_the_seed_decides_the_start_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = fresh()[3], fresh()[3]
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_effect_at_the_start(family):
    _, ours, transformer, _ = fresh()
    torch.testing.assert_close(
        velocity(ours, transformer), velocity(family, family.load("transformer").eval())
    )


@pytest.mark.parametrize(
    "overrides", [[], ["lora.alpha=4"], ["lora.alpha=40", "lora.targets=all-linear"]]
)
def test_saved_file_has_the_same_effect_in_the_stock_pipeline(tmp_path, overrides):
    from diffusers import QwenImagePipeline

    config, family, transformer, parameters = fresh(*overrides)
    shake(parameters)
    lora.save(tmp_path, transformer, config.lora, {"base": "tiny-qwen-image"})
    names = load_file(tmp_path / lora.FILE)
    assert all(
        n.startswith("transformer.") and n.endswith((".lora_A.weight", ".lora_B.weight"))
        for n in names
    )
    pipe = QwenImagePipeline.from_pretrained(family.folder, torch_dtype=torch.float32)
    base = velocity(family, pipe.transformer)
    pipe.load_lora_weights(tmp_path)
    expected = velocity(family, transformer)
    torch.testing.assert_close(velocity(family, pipe.transformer), expected, atol=1e-4, rtol=1e-4)
    assert (expected - base).abs().max() > 1e-3
    pipe.fuse_lora()
    torch.testing.assert_close(velocity(family, pipe.transformer), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", ["plain", "lokr"])
def test_a_file_the_stock_loader_would_silently_skip_is_read(tmp_path, variant):
    """名字前面没有 transformer. 的，diffusers 一层也不挂，也不报错。"""
    config, family, transformer, parameters = fresh(f"lora.variant={variant}")
    shake(parameters)
    tensors = load_file(lora.save(tmp_path, transformer, config.lora, {}))
    bare = tmp_path / "bare.safetensors"
    save_file({name.removeprefix("transformer."): v for name, v in tensors.items()}, bare)
    pipe = infer.open_pipeline(family, bare)
    expected = velocity(family, transformer)
    torch.testing.assert_close(velocity(family, pipe.transformer), expected, atol=1e-4, rtol=1e-4)
    pipe.disable_lora()
    assert (velocity(family, pipe.transformer) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("targets", "per_block"), [("image-attention", 4), ("attention", 8), ("all-linear", 14)]
)
def test_presets_of_targets(family, targets, per_block):
    blocks = len(family.load("transformer").transformer_blocks)
    assert len(lora.match(family.load("transformer"), family, targets)) == per_block * blocks


def test_targets_as_list_and_regex(family):
    transformer = family.load("transformer")
    assert len(lora.match(transformer, family, ["to_q"])) == len(transformer.transformer_blocks)
    assert lora.match(transformer, family, r"transformer_blocks\.0\.attn\.to_k") == [
        "transformer_blocks.0.attn.to_k"
    ]


@pytest.mark.parametrize("order", [["image-attention", "net.2"], ["net.2", "image-attention"]])
def test_a_list_may_name_a_preset(family, order):
    transformer = family.load("transformer")
    preset, rest = (lora.match(transformer, family, one) for one in ("image-attention", ["net.2"]))
    found = lora.match(transformer, family, order)
    assert rest and set(found) == {*preset, *rest} and len(found) == len(set(found))


@pytest.mark.parametrize(
    ("targets", "hint"),
    [("atention", "attention"), (["to_w"], "to_"), ("(", "正则"), (["to_q", ""], "“”"),
     (["to_q", "to_zzz"], "“to_zzz”.*最接近的有：.*to_"),
     (["to_zzz", "attention"], "“to_zzz”"), (["attention", "atention"], "“atention”.*attention")],
)  # fmt: skip
def test_targets_that_match_nothing(family, targets, hint):
    with pytest.raises(ConfigError, match=hint):
        lora.match(family.load("transformer"), family, targets)


def test_rank_larger_than_the_layer():
    with pytest.raises(ConfigError, match=r"lora\.rank"):
        fresh("lora.rank=512")


def test_wrong_files_are_refused(tmp_path, family):
    transformer = family.load("transformer")
    torch.save({}, tmp_path / "a.bin")
    (tmp_path / "b.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    save_file({"x.weight": torch.ones(2)}, tmp_path / "c.safetensors")
    save_file(
        {"transformer.y.lora_A.weight": torch.full((4, 4), torch.nan)}, tmp_path / "d.safetensors"
    )
    save_file(
        {"transformer.nowhere.to_q.lora_A.weight": torch.ones(4, 160)}, tmp_path / "e.safetensors"
    )
    cases = {"a.bin": "pickle", "b.safetensors": "打不开",
             "c.safetensors": "没有 LoRA", "d.safetensors": "NaN", "e.safetensors": "对不上",
             "none.safetensors": "没有这个"}  # fmt: skip
    for name, said in cases.items():
        with pytest.raises(WeightsError, match=said):
            lora.check_fits(tmp_path / name, transformer)


def test_our_dora_is_audited_drawn_with_and_merged(tmp_path, capsys):
    """画图、合并都与 PEFT 自己算的相同；alpha 不等于秩。"""
    config, ours, transformer, parameters = fresh("lora.variant=dora", "lora.alpha=24")
    shake(parameters)
    for name, p in parameters.items():
        p.data *= 1.3 if "magnitude" in name else 1
    file = lora.save(tmp_path, transformer, config.lora, {})
    family = open_family(config, torch.device("cpu"))
    before = velocity(family, family.load("transformer").eval())
    pipe = infer.open_pipeline(family, file)
    want = velocity(ours, transformer)
    torch.testing.assert_close(velocity(family, pipe.transformer), want, rtol=1e-4, atol=1e-4)
    infer.set_strength(pipe, 0)
    torch.testing.assert_close(velocity(family, pipe.transformer), before)
    assert main(["audit", str(file), "--model", "tiny-qwen-image"]) == 0
    assert "写法：DoRA（diffusers）" in capsys.readouterr().out
    argv = ["export", str(file), "--model", "tiny-qwen-image", "--merge", "--out"]
    assert main([*argv, str(tmp_path / "merged")]) == 0
    merged = type(transformer).from_pretrained(tmp_path / "merged" / "transformer").eval()
    torch.testing.assert_close(velocity(family, merged), want, rtol=1e-4, atol=1e-4)
