"""文件头说的与张量对不上：用张量的，但要说；各层的秩另有说法的（rank_pattern……）算对得上。"""

import json

import pytest
import torch
from foreign_tools import NORM, OUT, Q, flux, meaning, named, pair, write
from safetensors.torch import save_file

from lorakit.cli import main
from lorakit.config import load_config
from lorakit.families import open_family
from lorakit.families.flux import Flux
from lorakit.lora import audit as lora_audit
from lorakit.lora import convert

ADAPTER = {"r": 4, "lora_alpha": 8}


@pytest.fixture(scope="module")
def base():
    """不改动它。"""
    return flux()


def kohya(path, a, b, alpha=None):
    stem = f"lora_unet_{path.replace('.', '_')}"
    told = {} if alpha is None else {f"{stem}.alpha": torch.tensor(float(alpha))}
    return named(stem, a, b, "", "lora_down", "lora_up") | told


SS = {"ss_network_dim": "4", "ss_network_alpha": "8"}
AGREE = {  # 文件头、旁边的 alpha（None 是没有）
    "adapter": ({"lora_adapter_metadata": ADAPTER}, None),
    "with alpha": ({"lora_adapter_metadata": ADAPTER}, 8),
    "pattern": ({"lora_adapter_metadata": ADAPTER | {"r": 16, "rank_pattern": {Q: 4}}}, None),
    "ss": (SS, 8), "dynamic": ({"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}, 8),
    "blocks": ({"ss_network_dim": "16", "ss_network_alpha": "8",
                "ss_network_args": '{"img_attn_dim": "4"}'}, 8),
    "flat": ({"lora_alpha": "8", "lora_rank": "4"}, None), "silent": ({}, 8),
    "bf16": ({"ss_network_dim": "4", "ss_network_alpha": "8.01"}, 8),
    "unread": ({"lora_adapter_metadata": "{"}, 8),
}  # fmt: skip
APART = {
    "adapter": ({"lora_adapter_metadata": ADAPTER | {"r": 16}}, None, "秩是 16，张量的秩是 4", 2),
    "pattern": ({"lora_adapter_metadata": ADAPTER | {"rank_pattern": {"attn.to_q": 8}}}, None,
                "秩是 8，张量的秩是 4", 2),
    "ss": (SS | {"ss_network_dim": "32"}, 8, "ss_network_alpha 那里写的秩是 32", 2),
    "only the rank": ({"ss_network_dim": "32"}, None, "ss_network_dim 那里写的秩是 32", 1),
    "flat rank": ({"lora_rank": "32"}, None, "文件头 那里写的秩是 32", 1),
    "flat": ({"lora_alpha": "8", "rank": "32"}, None, "lora_alpha 那里写的秩是 32", 2),
    "alpha": (SS | {"ss_network_alpha": "4"}, 8, "强度是 1，用的是 2", 2),
    "adapter's alpha": ({"lora_adapter_metadata": ADAPTER | {"lora_alpha": 4}}, 8,
                        "强度是 1，用的是 2", 2),
    "two headers": ({"lora_adapter_metadata": ADAPTER} | SS | {"ss_network_alpha": "4"}, None,
                    "照文件头的 ss_network_alpha", 2),
}  # fmt: skip


@pytest.mark.parametrize(("header", "alpha"), AGREE.values(), ids=AGREE)
def test_what_agrees_is_not_doubted(base, tmp_path, header, alpha):
    file = write(tmp_path, kohya(Q, *pair(base, Q), alpha), **header)
    found = meaning(file, base)
    assert found.doubt == "" and "对不上：" not in lora_audit.audit(file, base).text()


@pytest.mark.parametrize(("header", "alpha", "said", "scale"), APART.values(), ids=APART)
def test_what_disagrees_is_told_and_what_was_used(base, tmp_path, header, alpha, said, scale):
    file = write(tmp_path, kohya(Q, *pair(base, Q), alpha), **header)
    found = meaning(file, base)
    assert said in found.doubt and found.scales == {f"{Q}": scale}
    told = lora_audit.audit(file, base).text()
    assert f"强度：{scale:g}（" in told and f"对不上：{found.doubt}；用的是上面的强度" in told


def test_the_config_beside_a_file_of_peft(base, tmp_path):
    file = tmp_path / "adapter_model.safetensors"
    save_file(named(Q, *pair(base, Q), "base_model.model."), file)
    for rank, said in ((4, ""), (8, "旁边的 adapter_config.json 那里写的秩是 8，张量的秩是 4")):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 4}))
        assert meaning(file, base).doubt.startswith(said) and bool(said) == bool(
            meaning(file, base).doubt
        )


@pytest.mark.parametrize("form", convert.FORMATS)
def test_what_we_write_is_never_doubted(base, tmp_path, form):
    """各层的秩不同、kohya 里并起来的几层，文件头只写得下一个秩。"""
    ranks = {Q: 2, Q.replace("to_q", "to_v"): 4, OUT: 4, NORM: 3}
    layers = {path: pair(base, path, rank) for path, rank in ranks.items()}
    names = convert.Names.of(Flux, base)
    file, _ = convert.write(layers, form, tmp_path / form, {}, names)
    assert meaning(file, base).doubt == ""


def test_our_own_header_is_held_to_it_too(base, tmp_path):
    for rank in (2, 8):
        told = {"ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
        file = write(tmp_path, named(Q, *pair(base, Q)), lorakit={"alpha": "folded"}, **told)
        assert f"秩是 {rank}，张量的秩是 4" in meaning(file, base).doubt


def test_audit_generate_and_export_say_it(tmp_path, capsys):
    shell = open_family(load_config("tiny-qwen-image")).skeleton()
    path = "transformer_blocks.0.attn.to_q"
    layer, told = shell.get_submodule(path), {"r": 16, "lora_alpha": 4}
    a, b = torch.randn(4, layer.in_features), torch.randn(layer.out_features, 4)
    file = write(tmp_path, named(path, a, b), lora_adapter_metadata=told)
    said = "写的秩是 16，张量的秩是 4（transformer_blocks.0.attn.to_q 等 1 层）"
    drawing = ["--prompt", "一只猫", "--steps", "2", "--width", "64", "--height", "64"]
    for argv in (
        ["audit", file, "--model", "tiny-qwen-image"],
        ["generate", "tiny-qwen-image", "--lora", file, *drawing, "--out", tmp_path / "a.png"],
        ["export", file, "--model", "tiny-qwen-image", "--out", tmp_path / "o.safetensors"],
        ["export", file, "--model", "tiny-qwen-image", "--merge", "--out", tmp_path / "merged"],
    ):
        assert main([str(one) for one in argv]) == 0
        assert "".join(capsys.readouterr()).count(said) == 1, argv[0]
