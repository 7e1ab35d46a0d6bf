"""LoRA 的命令说“请用……”的，照着做真的做得成：从句子里取出选项，换上，再跑一次。"""

import re

import pytest
import torch
from foreign_tools import named
from safetensors.torch import load_file, save_file
from torch import nn

from lorakit.cli import main
from lorakit.config import load_config
from lorakit.families import open_family
from lorakit.lora import algebra, comfyui, convert

Q, MODEL = "transformer_blocks.0.attn.to_q", ["--model", "tiny-flux"]
WAYS = re.compile(r"--(?:to \w+|dtype \w+|merge|family [\w.-]+)")


@pytest.fixture(scope="module")
def shell():
    return open_family(load_config("tiny-flux")).skeleton()


@pytest.fixture(scope="module")
def parts(shell):
    layer, g = shell.get_submodule(Q), torch.Generator().manual_seed(0)
    a, b = torch.randn(4, layer.in_features, generator=g), torch.randn(128, 4, generator=g)
    last = shell.get_submodule("proj_out").out_features
    plain, stem = named(Q, a * 0.1, b * 0.1), f"transformer.{Q}."
    wide = torch.rand(128, 1, generator=g) + 0.5
    factors = {"lokr_w1": (8, 8), "lokr_w2_a": (16, 200), "lokr_w2_b": (200, 16)}
    lokr = {stem + k: torch.randn(*shape, generator=g) * 0.05 for k, shape in factors.items()}
    return {
        "plain": plain, "dora": plain | {stem + "lora_magnitude_vector": wide},
        "columns": plain | {stem + "dora_scale": wide.T}, "lokr": lokr,
        "big": {k: v * 1e7 for k, v in plain.items()},
        "small": {k: v * 1e-6 for k, v in plain.items()},
        "kohya": named(f"lora_unet_{Q.replace('.', '_')}", a, b, "", "lora_down", "lora_up"),
        "outside": named("proj_out", torch.ones(1, 128), torch.ones(last, 1)),
    }  # fmt: skip


CASES = [("dora", ["--to", "kohya"], 1), ("columns", ["--to", "diffusers"], 1),
         ("columns", ["--to", "kohya"], 1), ("lokr", ["--to", "comfyui"], 1),
         ("lokr", ["--rank", "4"], 1), ("lokr", ["--weight", "0.5"], 1),
         ("big", ["--dtype", "fp16"], 1), ("small", ["--dtype", "fp16"], 1),
         ("dora", ["--to", "diffusers"], 0), ("dora", ["--to", "comfyui"], 0),
         ("outside", ["--to", "kohya"], 0)]  # fmt: skip


@pytest.mark.parametrize(("kind", "words", "code"), CASES, ids=lambda one: str(one))
def test_what_export_says_to_use_works(parts, tmp_path, capsys, kind, words, code):
    file, out = tmp_path / "f.safetensors", str(tmp_path / "out")
    save_file({k: v.contiguous() for k, v in parts[kind].items()}, file)
    argv = ["export", str(file), *MODEL, "--out", out]
    assert main([*argv, *words]) == code
    said = "".join(capsys.readouterr())
    found = WAYS.findall(said)
    assert found, said
    for way in found:
        assert main([*argv, *way.split()]) == 0, (said, way, capsys.readouterr().err)


def test_merging_takes_any_rank_and_weight(parts, shell, tmp_path, capsys):
    """LoKr 的秩再大、份量不是 1、再叠一个：先加起来再舍入，与手算的一样；舍入丢了多少写出来。"""
    files = {}
    for kind in ("lokr", "plain"):
        files[kind] = tmp_path / f"{kind}.safetensors"
        save_file({k: v.contiguous() for k, v in parts[kind].items()}, files[kind])
    argv = ["export", str(files["lokr"]), *MODEL, "--also", str(files["plain"])]
    argv += ["--weight", "0.5", "--weight=-2", "--merge", "--out", str(tmp_path / "merged")]
    assert main(argv) == 0
    assert re.search(r"float32 舍入之后，加进去的与 ΔW 差 0\.00%", capsys.readouterr().out)
    modules = [n for n, m in shell.named_modules() if isinstance(m, nn.Linear)]
    one, two = (convert.delta(convert.read(file, modules)[0][Q]) for file in files.values())
    base = open_family(load_config("tiny-flux")).load("transformer").get_submodule(Q).weight
    moved = load_file(next((tmp_path / "merged").rglob("*.safetensors")))[f"{Q}.weight"] - base
    torch.testing.assert_close(moved.double(), 0.5 * one - 2 * two, rtol=1e-4, atol=1e-6)


def test_rounding_of_a_merge_is_measured():
    model = nn.ModuleDict({"x": nn.Linear(64, 64)}).bfloat16()
    before = model["x"].weight.detach().double()
    layer = {"x": (torch.randn(2, 64) * 1e-3, torch.randn(64, 2) * 1e-2)}
    lost, want = algebra.merge(layer, model), algebra.delta(layer["x"])
    real = model["x"].weight.detach().double() - before
    assert lost == pytest.approx(float((real - want).norm() / want.norm()), rel=1e-6) and lost > 0.5


def test_the_originals_are_offered_only_where_they_are_read(parts, tmp_path, capsys):
    """kohya 的文件、强度不是 1 的文件，diffusers 读不成这个意思：不叫人用原文件。"""
    odd = parts["outside"] | {"transformer.proj_out.alpha": torch.tensor(4.0)}
    for tensors, offered in ((parts["outside"], True), (odd, False)):
        save_file(tensors, tmp_path / "f.safetensors")
        argv = ["export", str(tmp_path / "f.safetensors"), *MODEL, "--to", "kohya"]
        assert main([*argv, "--out", str(tmp_path / "out")]) == 0
        said = capsys.readouterr().out
        assert "diffusers 请用 --to diffusers" in said and ("原文件" in said) == offered


@pytest.mark.parametrize("kind", ["plain", "dora"])
def test_what_the_workflow_says_to_use_works(parts, tmp_path, capsys, kind):
    file, flow = tmp_path / "f.safetensors", tmp_path / "w.json"
    save_file({k: v.contiguous() for k, v in parts[kind].items()}, file)
    argv = ["export", str(file), "--workflow", str(flow)]
    assert main(argv) == 1
    said = capsys.readouterr().err
    if kind == "dora":
        assert "--to comfyui --out 名字.safetensors" in said
        more = ["--to", "comfyui", "--out", str(tmp_path / "名字.safetensors"), *MODEL]
        assert main([*argv, *more]) == 0
        return
    for name in comfyui.names():
        assert name in said and main([*argv, "--family", name]) == 0, name
