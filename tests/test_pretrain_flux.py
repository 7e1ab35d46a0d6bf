"""tiny-flux 是怎样炼成的：每一步都真走几步，末了 stock 管线打得开、引导有意义。"""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import FluxPipeline

from lorakit import flow
from lorakit.families import get
from lorakit.families.shared import pack, unpack
from lorakit.tiny.pretrain import __main__ as pretrain
from lorakit.tiny.pretrain import base_flux as flux
from lorakit.tiny.pretrain import base_qwen, tokenizer_flux, vae

CPU = torch.device("cpu")
FEW = dict(steps=2, minutes=1, workers=1, size=12)
SHORT, LONG = "一只猫", "一盆白色的仙人掌在左边，一个青色的热气球在右边，背景是沙滩"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """三步都走一遍的结果文件夹。"""
    out = tmp_path_factory.mktemp("tiny-flux")
    facts = flux.train_vae(out, CPU, **FEW)
    assert facts["steps"] == 2 and facts["psnr_world"] > 3
    assert flux.train_base(out, CPU, batch=4, **FEW)["steps"] == 2
    assert flux.train_distill(out, CPU, batch=4, **FEW)["steps"] == 2
    return out


@pytest.fixture(scope="module")
def model(out):
    """蒸馏开始之前的学生与老师。"""
    pipe, parts = flux.open_parts(out)
    for name, part in parts.items():
        flux.load_part(part, out / name)
    empty = {name: table[0] for name, table in flux.tokenize(pipe, [["", " "]]).items()}
    return flux.Distillation(flux.FluxModel(pipe, naming=0.0), empty), pipe


def draws(count=2):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(count, 64, 64, generator=rng), torch.tensor([0.3, 0.8])


def test_the_folder_opens_with_plain_defaults(out):
    pipe = FluxPipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    parts = (pipe.vae, pipe.transformer, pipe.text_encoder, pipe.text_encoder_2)
    assert {part.dtype for part in parts} == {torch.float32}
    assert pipe.transformer.config.guidance_embeds and pipe.tokenizer_2.model_max_length == 32
    image = pipe(SHORT, width=128, height=128, num_inference_steps=1).images[0]
    assert image.size == (128, 128)


def test_assets_fit_the_budget_and_name_no_path_of_this_machine(out):
    shipped = [p for p in out.rglob("*") if p.is_file() and flux.TEACHER not in p.parts]
    assert sum(p.stat().st_size for p in shipped) < 8 << 20
    for path in shipped:
        if path.suffix == ".json":
            assert str(out) not in path.read_text("utf-8"), path.name


def test_guidance_does_nothing_before_distillation_and_something_after(out):
    family = get("flux")(out, CPU, torch.float32)
    cond = family.collate(family.encode_prompts([SHORT, LONG]))
    x, t = draws()

    def moved(transformer):
        results = []
        for family.guidance in (1.0, 4.0):
            with torch.no_grad():
                results.append(family.predict_velocity(transformer, unpack(x, 16, 16), t, cond))
        return (results[1] - results[0]).abs().max()

    student = family.load("transformer")
    teacher = type(student).from_pretrained(out / flux.TEACHER)
    assert moved(teacher) == 0
    assert moved(student) > 0


def test_training_reads_and_predicts_what_the_stock_pipeline_does(out, model):
    """词元、补齐、编号与家族相同：炼的时候和用的时候是同一件事。"""
    distillation, pipe = model
    student = distillation.teacher
    words = {name: table[0] for name, table in flux.tokenize(pipe, [[SHORT, LONG]]).items()}
    family, (x, t) = get("flux")(out, CPU, torch.float32), draws()
    cond = family.collate(family.encode_prompts([SHORT, LONG]))
    with torch.no_grad():
        text, pooled = student.encode(words)
        ours = student.velocity(text, pooled, x, t, torch.ones(2))
        theirs = family.predict_velocity(student.transformer, unpack(x, 16, 16), t, cond)
    torch.testing.assert_close(text, cond["text"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pooled, cond["pooled"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours, pack(theirs), atol=1e-4, rtol=1e-4)


def test_clip_may_be_cut_after_the_longest_caption(model):
    _, pipe = model
    ids = flux.tokenize(pipe, [[SHORT, LONG]])["clip"][0]
    end = (ids == pipe.tokenizer.eos_token_id).int().argmax(-1).max() + 1
    with torch.no_grad():
        whole, cut = (pipe.text_encoder(table).pooler_output for table in (ids, ids[:, :end]))
    torch.testing.assert_close(whole, cut, atol=1e-5, rtol=1e-4)


def test_the_distillation_target_is_cfg(model):
    """学生还是老师时：g = 1 或描述是空的，损失为零；g = 3 正好差 2 (cond - uncond)，再除以 3。"""
    distillation, pipe = model
    words = {name: table[0] for name, table in flux.tokenize(pipe, [[SHORT, LONG]]).items()}
    blank = {name: table[0] for name, table in flux.tokenize(pipe, [["", " "]]).items()}
    (x, t), three = draws(), torch.full((2,), 3.0)
    teacher = distillation.teacher
    with torch.no_grad():
        assert distillation(words, x, t, torch.ones(2)) < 1e-10
        assert distillation(blank, x, t, three) < 1e-10
        cond, uncond = (teacher.velocity(*teacher.encode(w), x, t, t) for w in (words, blank))
        expected = flow.loss(cond, flow.guide(cond, uncond, 3.0)).mean() / 3
        assert expected > 1e-8
        torch.testing.assert_close(distillation(words, x, t, three), expected)


def test_guidance_is_drawn_from_one_to_five_with_a_fifth_at_one():
    g = flux.draw_guidance(4000, torch.Generator().manual_seed(0))
    assert g.min() == 1 and 4.9 < g.max() <= 5
    assert 0.17 < (g == 1).float().mean() < 0.23


def test_captions_fit_and_unseen_words_split_stably(out):
    pipe = FluxPipeline.from_pretrained(out, vae=None, transformer=None)
    text = tokenizer_flux.lines()[::20]
    for tok in (pipe.tokenizer, pipe.tokenizer_2):
        assert max(len(tok(line).input_ids) for line in text) <= tokenizer_flux.LENGTH
        alone = tok("ohwx").input_ids[:-1]
        assert tok("ohwx，一只猫").input_ids[: len(alone)] == alone
        assert tok("ohwx cat").input_ids[: len(alone)] == alone
        assert tok.unk_token_id not in alone
    assert (
        pipe.tokenizer.decode(pipe.tokenizer("魑魅").input_ids, skip_special_tokens=True) == "魑魅"
    )


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_every_chinese_character_is_one_token(out, part):
    tok = getattr(FluxPipeline.from_pretrained(out, vae=None, transformer=None), part)
    one, two = (len(tok(text).input_ids) for text in ("红", "一只红色的大猫在左边"))
    assert two - one == 9


def test_pretraining_needs_no_pydantic():
    """炼模型的机器上只有 torch、diffusers、transformers。"""
    code = "import sys; sys.modules['pydantic'] = None; import lorakit.tiny.pretrain"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_distill_belongs_to_flux_only(tmp_path, monkeypatch, capsys):
    words = ["pretrain", "tiny-qwen-image", "--part", "distill", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        pretrain.main()
    assert stopped.value.code == 2 and "tiny-flux" in capsys.readouterr().err


def test_the_qwen_base_trains_with_the_same_loop(tmp_path):
    vae.train_vae(tmp_path, CPU, **(FEW | {"steps": 1}))
    facts = base_qwen.train_base(tmp_path, CPU, batch=4, **FEW)
    assert facts["steps"] == 2 and facts["loss"] > 0
    config = json.loads((tmp_path / "text_encoder" / "config.json").read_text())
    assert config["dtype"] == "float32"
