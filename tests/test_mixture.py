"""叠加、改份量、缩秩做成的文件：说明说的是它自己；份量 0、全是零的不写。"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit import lora
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.lora import metadata
from lorakit.lora.files import card_of
from lorakit.train import Trainer

MODEL = ["--model", "tiny-qwen-image"]


@pytest.fixture(scope="module")
def runs(papercut, tmp_path_factory):
    """两次训练，触发词不同，都有留出集损失。"""
    made = []
    for name, trigger, steps in (("papers", "ohwx", 2), ("cats", "zkv", 1)):
        made.append(tmp_path_factory.mktemp("runs") / name)
        sets = [f"data.folder={papercut}", f"run.output={made[-1]}", f"data.trigger={trigger}",
                f"train.steps={steps}", "eval.every=1", "data.resolution=64", "sample.every=0",
                "train.schedule=constant"]  # fmt: skip
        list(Trainer(load_config("tiny-qwen-image", sets)))
        assert "held" in card_of(metadata.of(lora.find(made[-1])))
    return made


def export(tmp_path, capsys, *argv, code=0):
    """一条 export -> (说的话, 写好的文件的卡片, 文件头)。"""
    out = tmp_path / "mix.safetensors"
    out.unlink(missing_ok=True)
    assert main(["export", *map(str, argv), "--out", str(out)]) == code
    said = capsys.readouterr()
    if code:
        assert not out.exists()
        return said.err, {}, {}
    head = metadata.of(out)
    return said.out, card_of(head), head


def test_a_mixture_says_what_it_is_made_of(runs, tmp_path, capsys):
    papers, cats = runs
    argv = (papers, "--also", cats, "--weight", "0.7", "--weight=-0.5")
    said, card, head = export(tmp_path, capsys, *argv)
    assert card["made"] == "papers × 0.7 + cats × -0.5" and card["trigger"] == "ohwx，zkv"
    assert not {"held", "steps"} & set(card) and card["base"] == "tiny-qwen-image"
    assert head["modelspec.merged_from"] == "papers, cats"
    assert head["modelspec.trigger_phrase"] == "ohwx，zkv"
    assert head["modelspec.title"] == "mix" and str(tmp_path) not in json.dumps(head)
    assert set(json.loads(head["ss_tag_frequency"])) == {"papers", "cats"}
    assert card["made"] in said and "留出集损失说的不是它" in said
    assert main(["audit", str(tmp_path / "mix.safetensors")]) == 0
    told = capsys.readouterr().out
    assert "由什么做成：papers × 0.7" in told and "留出集损失" not in told
    again = tmp_path / "again.safetensors"  # 再叠一次：里面是什么也带着
    argv = ["export", str(tmp_path / "mix.safetensors"), "--weight", "2", "--out", str(again)]
    assert main(argv) == 0
    assert card_of(metadata.of(again))["made"] == "mix（papers × 0.7 + cats × -0.5） × 2"


def test_every_trigger_reaches_the_workflow(runs, tmp_path, capsys):
    papers, cats = runs
    argv = (papers, "--also", cats, "--workflow", tmp_path / "w.json", "--prompt", "一只 zkv 猫")
    said, card, _ = export(tmp_path, capsys, *argv)
    assert card["made"] == "papers × 1 + cats × 1" and "提示词：ohwx，一只 zkv 猫）" in said


@pytest.mark.parametrize(
    ("options", "made"),
    [
        (["--weight", "0.3"], "papers × 0.3"),
        (["--rank", "1"], "papers，缩到秩 1（保住 "),
        (["--rank", "1", "--weight", "2"], "papers × 2，缩到秩 1（保住 "),
    ],
)
def test_one_that_was_changed_drops_its_held_out_loss(runs, tmp_path, capsys, options, made):
    _, card, head = export(tmp_path, capsys, runs[0], *options)
    assert card["made"].startswith(made) and "held" not in card
    assert (card["steps"], card["trigger"]) == ("2", "ohwx") and "ss_tag_frequency" in head


def test_one_that_was_only_rewritten_keeps_its_card(runs, tmp_path, capsys):
    before = card_of(metadata.of(lora.find(runs[0])))
    for options in ([], ["--weight", "1"], ["--to", "kohya"]):
        said, card, _ = export(tmp_path, capsys, runs[0], *options)
        assert card == before and "做成" not in said


@pytest.mark.parametrize("merge", [[], ["--merge"]])
@pytest.mark.parametrize(
    ("weights", "why"), [(["0", "1"], "份量 0 等于没有用"), (["0.5", "-0.5"], "互相抵消")]
)
def test_what_would_be_nothing_is_refused(runs, tmp_path, capsys, weights, why, merge):
    argv = [runs[0], "--also", runs[0], *(f"--weight={one}" for one in weights), *merge]
    assert why in export(tmp_path, capsys, *argv, code=1)[0]


def test_one_of_nothing_but_zeros(runs, tmp_path, capsys):
    """只换写法的照样写，说一声；改份量、缩秩的不写。"""
    zeros = tmp_path / "zeros.safetensors"
    tensors = load_file(lora.find(runs[0]))
    save_file({name: torch.zeros_like(value) for name, value in tensors.items()}, zeros)
    assert "0 等于没有用" in export(tmp_path, capsys, zeros, *MODEL, "--weight=0", code=1)[0]
    for options in (["--weight=0.5"], ["--rank=1"]):
        assert "每一层都是零" in export(tmp_path, capsys, zeros, *MODEL, *options, code=1)[0]
    assert main(["export", str(zeros), *MODEL, "--out", str(tmp_path / "same")]) == 0
    assert "什么也没改" in capsys.readouterr().err
