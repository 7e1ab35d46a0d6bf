"""发布与模型卡：预演不联网；真传走 HTTP 到本地的假模型站；卡里的代码真能运行。"""

import json
import re
import shutil
import sys
import time

import numpy as np
import pytest
import random_flux
import random_flux2_klein
import random_qwen
import random_zimage
import torch
import yaml
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from stand_in_hub import StandIn

from lorakit import infer, lora
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import LorakitError, WeightsError
from lorakit.families import REGISTRY, get, open_family
from lorakit.lora import FILE, full
from lorakit.results import card, publish

REPO = "zhang/papercut"


@pytest.fixture(scope="module")
def trained(papercut, tmp_path_factory):
    """从命令行练几步，连同样张与模型卡。"""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("push")
        patch.setenv("LORAKIT_CACHE", str(folder / "cache"))
        run = folder / "我的 run"
        sets = (f"data.folder={papercut}", f"run.output={run}", "train.steps=3",
                "train.batch_size=2", "eval.every=3", "sample.steps=2", "data.trigger=zjian",
                "sample.prompts=[一只猫, 一条鱼]")  # fmt: skip
        assert main(["train", "tiny-qwen-image", *(w for s in sets for w in ("--set", s))]) == 0
    return run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def served(tmp_path, monkeypatch):
    with StandIn({}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"{server.address}/hf")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(
            constants, "HF_HUB_DISABLE_XET", True
        )  # Xet 的传法不是 HTTP 上的公开约定
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"{server.address}/ms")
        monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "ms-home"))
        monkeypatch.setenv("HF_TOKEN", "good-token")
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", "good-token")
        yield server


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_snippet_of_the_card_runs(trained, tmp_path, monkeypatch):
    text = (trained / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    picture = Image.open(tmp_path / "picture.png").convert("RGB")
    config = load_config(trained / "config.yaml")
    family = open_family(config, torch.device("cpu"))
    pipe = infer.open_pipeline(family, trained)
    said = re.search(r'prompt="(.*)"', code)[1]
    (ours,) = infer.generate(family, pipe, [said], config.sample, (128, 128))
    # 与 lorakit generate 一样；VAE 我们换成了等价的 2-D 卷积，舍入可以差一点点
    assert np.abs(np.int16(ours) - np.int16(picture)).max() <= 2


@pytest.mark.parametrize(
    ("name", "build", "kind"),
    [("flux", random_flux, "lora"), ("flux2-klein", random_flux2_klein, "lora"),
     ("z-image", random_zimage, "lora"), ("qwen-image", random_qwen, "full"),
     ("qwen-image", random_qwen, "lokr")],
    ids=lambda value: str(value),
)  # fmt: skip
def test_the_snippet_of_every_family_runs(name, build, kind, tmp_path, monkeypatch):
    """Kandinsky 的 stock 管线只画一千像素的图，太慢；编辑的要 torchvision：这两个只看写法。"""
    folder, run = build.build(tmp_path / "model"), tmp_path / "run"
    config = load_config("tiny-qwen-image", [
        f"model.family={name}", f"model.path={folder}", "lora.rank=2", "lora.targets=attention",
        f"lora.kind={'full' if kind == 'full' else 'lora'}", "train.steps=1",
        f"lora.variant={'lokr' if kind == 'lokr' else 'plain'}", 
        "sample.steps=2", "sample.size=64", "train.warmup=0",
    ])  # fmt: skip
    family = open_family(config, torch.device("cpu"))
    transformer = family.load("transformer")
    if kind == "full":
        files = full.files_of(transformer.state_dict())
        full.save(run / "checkpoint-1", family, files.items())
    else:
        (run / "checkpoint-1").mkdir(parents=True)
        lora.attach(transformer, family, config.lora, seed=0)
        lora.save(run / "checkpoint-1", transformer, config.lora, {})
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(card.snippet(run, config, family, "一只猫", False), "snippet", "exec"), names)
    assert names["picture"].size == (64, 64) and (tmp_path / "picture.png").is_file()
    assert "lorakit" not in names


def test_the_card_says_what_one_needs(trained):
    text = (trained / "README.md").read_text("utf-8")
    head = front(text)
    assert head["license"] == "apache-2.0" and head["pipeline_tag"] == "text-to-image"
    assert head["instance_prompt"] == "zjian" and "lora" in head["tags"]
    shown = ["samples/3_0.png", "samples/3_1.png"]
    assert [(row["text"], row["output"]["url"]) for row in head["widget"]] == list(
        zip(["一只猫", "一条鱼"], shown, strict=True)
    )
    assert all(f"]({name})" in text and (trained / name).is_file() for name in shown)
    facts = yaml.safe_load((trained / "run.json").read_text("utf-8"))
    assert facts["data"][:16] in text and "zjian" in text and "学习率" in text


def test_a_real_base_is_named_with_its_licence(family, tmp_path):
    for name in REGISTRY:
        for path in (
            "tiny-qwen-image",
            "Qwen/Qwen-Image",
            "black-forest-labs/FLUX.2-klein-base-9B",
        ):
            assert card.licence(get(name), path) in card.TERMS
    flux = get("flux")
    config = load_config("qwen-image", ["model.path=black-forest-labs/FLUX.1-dev",
                                        "model.family=flux"])  # fmt: skip
    head = yaml.safe_load(card.front(config, flux, [], "x", False))
    assert head["base_model"] == "black-forest-labs/FLUX.1-dev" and head["license"] == "other"
    assert head["license_name"] == "flux-1-dev-non-commercial-license"
    assert "不能商用" in card.terms(flux, config.model.path)
    klein = get("flux2-klein")
    assert card.licence(klein, "black-forest-labs/FLUX.2-klein-base-4B") == "apache-2.0"
    assert "non-commercial" in card.licence(klein, "black-forest-labs/FLUX.2-klein-base-9B")
    assert card.licence(get("kandinsky5"), "kandinskylab/x") == "mit"
    local = load_config("qwen-image", [f"model.path={family.folder}"])
    assert "base_model" not in yaml.safe_load(card.front(local, family, [], "x", False))
    assert str(family.folder.parent) not in card.base_link(str(family.folder))
    edited = card.without_paths('base = "D:\\models\\qwen"')  # 手改过的，不是 JSON 的写法
    assert edited.startswith('base = "qwen"  # 换成')
    code = card.snippet(tmp_path, load_config("qwen-image"), family, '他说"好"', False)
    compile(code, "snippet", "exec")
    assert 'base = "Qwen/Qwen-Image"' in code and "lorakit" not in code


def test_the_plan_takes_only_what_belongs(run, capsys):
    (run / "bad.pt").write_bytes(b"x")
    (run / "checkpoint-3" / "optimizer.bin").write_bytes(b"x")
    (run / "私事.txt").write_text("x")
    (run / "samples" / "other.png").write_bytes(b"x")
    assert main(["push", str(run), "--to", "huggingface", "--repo", REPO]) == 0
    said = capsys.readouterr().out
    assert "什么也没有上传" in said and "bad.pt（pickle" in said and "optimizer.bin（pickle" in said
    wanted = publish.plan(run, "huggingface", REPO)
    assert set(wanted.files) == {"README.md", FILE, "config.yaml", "samples/3_0.png",
                                 "samples/3_1.png"}  # fmt: skip
    assert "私事.txt" in said and "私事.txt" not in wanted.files
    assert "base_model" in said  # 微型模型不在站上
    config = wanted.files["config.yaml"].decode()
    assert str(run.parent) not in config and "/" not in config and "papercut" in config
    text = wanted.files["README.md"].decode()
    assert f'lora = "{REPO}"' in text and "```bash" not in text and str(run.parent) not in text
    assert front(text) == front((run / "README.md").read_text("utf-8"))
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    compile(code, "README.md", "exec")
    text = publish.plan(run, "modelscope", REPO).files["README.md"].decode()
    assert f'snapshot_download("{REPO}")' in text


def test_one_file_and_a_card_that_points_outside(run, tmp_path):
    wanted = publish.plan(run / "checkpoint-3" / FILE, "huggingface", REPO)
    assert {"README.md", FILE, "samples/3_0.png"} <= set(wanted.files)
    alone = shutil.copy(run / "checkpoint-3" / FILE, tmp_path / "猫.safetensors")
    wanted = publish.plan(alone, "huggingface", REPO)
    assert set(wanted.files) == {"猫.safetensors"} and "模型卡" in wanted.missing[0]
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (run / "link.png").symlink_to(tmp_path / "secret.png")
    card_file = run / "README.md"
    old = card_file.read_text("utf-8")
    card_file.write_text(old + "![a](../secret.png) ![b](link.png) ![c](run.json)\n", "utf-8")
    wanted = publish.plan(run, "huggingface", REPO)
    assert not {"../secret.png", "link.png", "run.json"} & set(wanted.files)
    assert sum("没有这个图" in line for line in wanted.missing) == 3


def test_the_card_of_a_checkpoint_tells_that_step(papercut, tmp_path, capsys):
    """传的是哪一步，卡、判断、样张就是哪一步的；那一步没有画过的，说一声。"""
    run = tmp_path / "run"
    sets = (f"data.folder={papercut}", f"run.output={run}", "train.steps=2", "train.save_every=1",
            "train.batch_size=2", "eval.every=1", "sample.steps=2", "sample.every=1",
            "data.resolution=64", "sample.prompts=[一只猫, 一条鱼]")  # fmt: skip
    assert main(["train", "tiny-qwen-image", *(w for s in sets for w in ("--set", s))]) == 0
    capsys.readouterr()
    push = ["--to", "huggingface", "--repo", REPO]

    def planned(source) -> tuple[publish.Plan, str]:
        wanted = publish.plan(source, "huggingface", REPO)
        return wanted, wanted.files["README.md"].decode()

    whole, text = planned(run)
    assert "| 步数 | 2，" in text and not whole.told
    assert planned(run / "checkpoint-2")[1] == text
    for source in (run / "checkpoint-1", run / "checkpoint-1" / FILE):
        wanted, text = planned(source)
        assert "| 步数 | 1，" in text and "（第 1 步）" in text and "第 2 步" not in text
        shots = [f"samples/1_{i}.png" for i in range(2)]
        assert [n for n in wanted.files if n.startswith("samples")] == shots
        assert [row["output"]["url"] for row in front(text)["widget"]] == shots
        assert text.count("](samples/1_") == 2
    assert main(["push", str(run / "checkpoint-1"), *push]) == 0
    assert "模型卡说的是第 2 步，要传的是第 1 步" in capsys.readouterr().out
    record = run / "samples.json"  # 中途换过提示词：那一张画的是别的话
    known = json.loads(record.read_text("utf-8"))
    record.write_text(json.dumps({**known, "1": ["另一句", known["1"][1]]}), "utf-8")
    assert [n for n in planned(run / "checkpoint-1")[0].files if "samples/" in n] == shots[1:]
    record.write_text(json.dumps(known), "utf-8")
    (run / "samples/1_0.png").unlink()
    assert [n for n in planned(run / "checkpoint-1")[0].files if "samples" in n] == shots[1:]
    (run / "samples/1_1.png").unlink()
    wanted, text = planned(run / "checkpoint-1")
    assert "samples/" not in text and "widget" not in front(text)
    assert any("第 1 步没有画过" in line for line in wanted.told)
    shutil.rmtree(run / "checkpoint-2")  # 只留下早一点的一个：传的是它，说的也是它
    assert "| 步数 | 1，" in planned(run)[1]


LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]\n" for i in range(9))
BOMBS = {
    "aliases": LAUGHS, "deep": "a: " + "[" * 100_000, "long": "x: y\n" * 300_000,
    "digits": "a: 1" + "0" * 100_000, "tag": "a: !!int x", "date": "a: 2001-99-99",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_in_a_downloaded_card_or_settings_are_bounded(run, name):
    """下载来的结果文件夹也会被人再发布：时间和内存都有限，一句话说清。"""
    start = time.monotonic()
    settings = (run / "config.yaml").read_text("utf-8")
    (run / "config.yaml").write_text(BOMBS[name], "utf-8")
    with pytest.raises(LorakitError, match=r"config\.yaml"):
        publish.plan(run, "huggingface", REPO)
    (run / "config.yaml").write_text(settings, "utf-8")
    (run / "README.md").write_text(f"---\n{BOMBS[name]}\n---\n", "utf-8")
    with pytest.raises(LorakitError, match=r"README\.md"):
        publish.plan(run, "huggingface", REPO)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("text", ["![" * 200_000, "![a](" * 100_000, "```bash\n" * 60_000])
def test_markdown_without_an_end_is_read_in_bounded_time(run, text):
    (run / "README.md").write_text(text, "utf-8")
    start = time.monotonic()
    assert publish.plan(run, "huggingface", REPO).files["README.md"]
    assert time.monotonic() - start < 20


def test_bad_sources_are_refused(run, tmp_path):
    (tmp_path / "x.pt").write_bytes(b"x")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "empty").mkdir()
    tensors = load_file(run / "checkpoint-3" / FILE)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] * float("nan")}, tmp_path / "nan.safetensors")
    for source, word in (
        ("x.pt", "pickle"), ("broken.safetensors", "打不开"), ("empty", f"没有 {FILE}"),
        ("nan.safetensors", "NaN"), ("nothing", "没有这个文件"),
    ):  # fmt: skip
        with pytest.raises((LorakitError, WeightsError), match=word):
            publish.plan(tmp_path / source, "huggingface", REPO)
    for repo in ("zhang", "a/b/c", "张三/猫 lora", "../x"):
        with pytest.raises(LorakitError, match="用户名/模型名"):
            publish.plan(run, "huggingface", repo)
    (run / "README.md").write_text("---\nbad: [\n---\n", "utf-8")
    with pytest.raises(LorakitError, match="YAML 写错了"):
        publish.plan(run, "huggingface", REPO)


@pytest.mark.parametrize(("site", "key"), [("huggingface", "hf"), ("modelscope", "ms")])
def test_it_really_uploads(served, run, site, key, capsys):
    argv = ["push", str(run), "--to", site, "--repo", REPO, "--yes"]
    assert main(argv) == 0
    assert f"传好了：{served.address}/{key}" in capsys.readouterr().out
    wanted = publish.plan(run, site, REPO)
    for name, content in wanted.files.items():
        local = content if isinstance(content, bytes) else content.read_bytes()
        assert served.uploaded[key, REPO][name] == local, name
    made = served.made[key, REPO]
    assert (
        made.get("private") is True
        or made.get("visibility") == "private"
        or (made.get("Visibility") == 1)
    )
    assert FILE in served.uploaded[key, REPO] and served.seen_tokens == {"good-token"}
    assert main([*argv, "--public"]) == 0  # 再传一次是更新


@pytest.mark.parametrize("site", ["huggingface", "modelscope"])
@pytest.mark.parametrize(
    ("step", "status", "word"),
    [("create", 403, "不让你写"), ("commit", 403, "不让你写"), ("blob", 403, "不让你写"),
     ("commit", 400, "回答 400"), ("create", 404, "看看 --repo")],
)  # fmt: skip
def test_refusals_are_explained(served, run, site, step, status, word, capsys):
    served.refuse[step] = status
    assert main(["push", str(run), "--to", site, "--repo", REPO, "--yes"]) == 1
    assert word in capsys.readouterr().err


def test_xet_errors_are_explained_too(served, run, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    assert main(["push", str(run), "--to", "huggingface", "--repo", REPO, "--yes"]) == 1
    said = capsys.readouterr().err
    assert "Hugging Face" in said and "Traceback" not in said
    assert served.uploaded == {}


@pytest.mark.parametrize(("site", "login"), [("huggingface", "hf auth login"),
                                             ("modelscope", "modelscope login")])  # fmt: skip
def test_tokens_and_network(served, run, site, login, monkeypatch, capsys):
    argv = ["push", str(run), "--to", site, "--repo", REPO, "--yes"]
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.setenv(name, "stolen")
    assert main(argv) == 1 and login in capsys.readouterr().err
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name)
    assert main(argv) == 1
    said = capsys.readouterr().err
    assert "还没有登录" in said and login in said
    monkeypatch.setenv("HF_TOKEN", "good-token")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "good-token")
    monkeypatch.setattr("urllib3.util.retry.Retry.sleep", lambda *_: None)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9/hf")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9/ms")
    assert main(argv) == 1 and "网络" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(argv) == 1 and "离线模式" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    if site == "modelscope":
        monkeypatch.setitem(sys.modules, "modelscope_hub", None)
        assert main(argv) == 1 and "pip install modelscope-hub" in capsys.readouterr().err
