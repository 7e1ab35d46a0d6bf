"""下载：本地的假模型站会断、会停、会坏、会拒绝；要么接着下成了，要么一句中文，绝不留下坏文件。"""

import hashlib
import json
import os
import random
import shutil
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from huggingface_hub import constants
from stand_in_hub import StandIn, files_of

from lorakit import hub
from lorakit.config import load_config
from lorakit.errors import LorakitError, LorakitWarning
from lorakit.families import open_family
from lorakit.files import ASSETS
from lorakit.hub import sites, transfer

TRANSFORMER = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"
SECOND = TRANSFORMER.replace("00001", "00002", 1)
REPO = "me/model"


def repository() -> dict[str, bytes]:
    """一个什么都有的仓库：分片、半精度的另一份、pickle、根目录的单文件、ONNX。"""
    noise = random.Random(0)
    index = {"weight_map": {"a": TRANSFORMER.split("/")[1], "b": SECOND.split("/")[1]}}
    files = {
        "model_index.json": {
            "_class_name": "X", "transformer": ["diffusers", "T"], "vae": ["diffusers", "V"],
            "text_encoder": ["transformers", "E"], "tokenizer": ["transformers", "K"],
            "scheduler": ["diffusers", "S"], "safety_checker": [None, None],
        },
        "transformer/config.json": {}, "vae/config.json": {}, "text_encoder/config.json": {},
        "tokenizer/tokenizer.json": {}, "scheduler/scheduler_config.json": {},
        "transformer/diffusion_pytorch_model.safetensors.index.json": index,
    }  # fmt: skip
    weights = [
        TRANSFORMER, SECOND, "vae/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin", "everything.safetensors", "onnx/model.onnx", "README.md",
    ]  # fmt: skip
    made = {name: json.dumps(content).encode() for name, content in files.items()}
    return made | {name: noise.randbytes(200_000 + len(name)) for name in weights}


@pytest.fixture
def served(tmp_path, monkeypatch):
    with StandIn({REPO: repository()}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"{server.address}/hf")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"{server.address}/ms")
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(transfer, "pause", lambda *_: 0.0)
        monkeypatch.setattr("lorakit.hub.sites.pause", lambda *_: 0.0)
        monkeypatch.setattr(transfer, "TIMEOUT", (2.0, 0.4))
        monkeypatch.setattr("lorakit.hub.sites.TIMEOUT", (2.0, 0.4))
        monkeypatch.setattr(transfer, "CHUNK", 1 << 14)
        yield server


def whole(folder: Path):
    """本地每个正式名字的文件，都和站上一字节不差。"""
    truth = repository()
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.endswith((".incomplete", ".lock")):
            assert path.read_bytes() == truth[path.relative_to(folder).as_posix()], path


@pytest.mark.parametrize("source", ["modelscope", "huggingface"])
def test_only_what_is_needed(served, source, capsys):
    model = hub.find(REPO, source)
    assert served.weights == []  # 先只有设置和词表
    model.fetch("vae", "text_encoder", "tokenizer")
    wanted = ["text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    assert sorted(served.weights) == wanted
    said = capsys.readouterr().err
    assert "text_encoder、vae：2 个文件，还要 0.4 MB" in said and served.address in said
    assert hub.absent(model.folder) == [TRANSFORMER, SECOND]
    model.fetch("transformer")
    assert hub.absent(model.folder) == []
    whole(model.folder)
    names = {p.relative_to(model.folder).as_posix() for p in model.folder.rglob("*") if p.is_file()}
    skipped = {
        "everything.safetensors",
        "onnx/model.onnx",
        "README.md",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
    }
    assert names - {".lorakit.lock"} == set(repository()) - skipped  # fmt: skip
    count = len(served.asked)
    served.down |= {"hf", "ms"}  # 完整之后不再联网
    assert hub.find(REPO, source).folder == model.folder and hub.find(REPO).folder == model.folder
    assert len(served.asked) == count


def test_the_huggingface_cache_is_the_librarys_own(served):
    """huggingface_hub 自己认得这份缓存，也说它是完整的。"""
    from huggingface_hub import scan_cache_dir, snapshot_download

    model = hub.find(REPO, "huggingface")
    model.fetch("transformer", "vae", "text_encoder")
    theirs = snapshot_download(
        REPO, cache_dir=constants.HF_HUB_CACHE, local_files_only=True, allow_patterns=["vae/*.json"]
    )
    assert Path(theirs) == model.folder
    (info,) = scan_cache_dir(constants.HF_HUB_CACHE).repos
    assert info.repo_id == REPO and info.refs.keys() == {"main"}
    blob = (model.folder / TRANSFORMER).resolve()
    assert blob.name == hashlib.sha256(repository()[TRANSFORMER]).hexdigest()


@pytest.mark.parametrize("source", ["modelscope", "huggingface"])
@pytest.mark.parametrize(
    "faults",
    [["cut"], ["cut", "cut", "cut"], ["stall"], ["corrupt"], ["cut", "no-range"], [500, 503, 429],
     ["cut", 416], ["cut", "corrupt"], ["stall", 502, "cut"]],
    ids=str,
)  # fmt: skip
def test_a_bad_connection_is_mended(served, source, faults):
    served.faults[TRANSFORMER] = list(faults)
    model = hub.find(REPO, source)
    model.fetch("transformer")
    whole(model.folder)
    assert hub.absent(model.folder, ["transformer"]) == []
    assert not list(model.folder.parent.rglob("*.incomplete"))
    if faults[0] == "cut":
        assert any("@" in one for one in served.asked)  # 是接着下的，不是从头


@pytest.mark.parametrize("source", ["modelscope", "huggingface"])
@pytest.mark.parametrize(
    ("faults", "word"),
    [
        (["corrupt"] * 4, "指纹对不上"),
        ([500] * 9, "服务器回答 500，试了 5 次"),
        ([404], "服务器回答 404"),
        ([401], "还没有登录"),
        ([403], "点同意"),
    ],
    ids=str,
)
def test_a_lost_cause_is_one_chinese_sentence(served, source, faults, word):
    served.faults[TRANSFORMER] = list(faults)
    model = hub.find(REPO, source)
    with pytest.raises(LorakitError, match=word):
        model.fetch("transformer")
    whole(model.folder)
    assert not (model.folder / TRANSFORMER).exists()
    served.faults.clear()
    hub.find(REPO, source).fetch("transformer")  # 好了以后再来一次就成
    whole(model.folder)
    assert hub.absent(model.folder, ["transformer"]) == []


def test_the_next_run_goes_on_where_this_one_stopped(served, monkeypatch):
    served.faults[TRANSFORMER] = ["cut", *[503] * 9]
    with pytest.raises(LorakitError, match="接着下"):
        hub.find(REPO).fetch("transformer")
    (part,) = Path(os.environ["MODELSCOPE_CACHE"]).rglob("*00001*.incomplete")
    have = part.stat().st_size
    assert 0 < have < len(repository()[TRANSFORMER])
    served.faults.clear()
    served.asked.clear()
    model = hub.find(REPO)
    model.fetch("transformer")
    assert f"{TRANSFORMER}@{have}" in served.asked and SECOND not in served.asked[:0]
    whole(model.folder)


def test_without_fingerprints_the_size_is_checked(served):
    served.fingerprints = False
    served.faults[TRANSFORMER] = ["cut"]
    for source in ("modelscope", "huggingface"):
        model = hub.find(REPO, source)
        model.fetch("transformer")
        whole(model.folder)


def test_auto_falls_from_one_site_to_the_other(served):
    served.absent.add("ms")
    with pytest.warns(LorakitWarning, match=r"ModelScope 上没有它.*改用 Hugging Face"):
        model = hub.find(REPO)
    assert model.site.name == "huggingface"
    served.absent.clear()
    assert hub.find(REPO).site.name == "huggingface"  # 在这里下过一部分，就接着下这一份
    served.down = {"hf"}
    with pytest.warns(LorakitWarning, match="503.*改用 ModelScope"):
        assert hub.find(REPO).site.name == "modelscope"
    served.down.clear()
    served.absent = {"hf", "ms"}
    with pytest.raises(LorakitError, match=r"名字写对了吗.*tiny-qwen-image"):
        hub.find("me/other")
    served.down = {"hf", "ms"}
    with pytest.raises(LorakitError, match=r"503.*HF_ENDPOINT"):
        hub.find("me/other")


def test_gated_is_explained_before_anything_is_downloaded(served, monkeypatch):
    served.gated.add(REPO)
    with pytest.raises(LorakitError) as caught:
        hub.find(REPO, "huggingface")
    said = str(caught.value)
    assert f"https://huggingface.co/{REPO}" in said and "hf auth login" in said
    assert "还没有登录" in said and "0.8 MB" in said and served.asked == []
    monkeypatch.setenv("HF_TOKEN", "someone-else")
    with pytest.raises(LorakitError, match="这个账号还没有被允许"):
        hub.find(REPO, "huggingface")
    monkeypatch.setenv("HF_TOKEN", "good-token")
    hub.find(REPO, "huggingface").fetch("vae")
    with pytest.raises(LorakitError, match="MODELSCOPE_API_TOKEN"):
        hub.find(REPO, "modelscope")
    shutil.rmtree(constants.HF_HUB_CACHE)
    with pytest.warns(LorakitWarning, match=r"ModelScope 上的要先同意许可.*改用 Hugging Face"):
        assert hub.find(REPO).site.name == "huggingface"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "good-token")
    hub.find(REPO, "modelscope").fetch("vae")


def test_the_bar_shows_size_and_time_left(served, monkeypatch, capsys):
    monkeypatch.setattr(transfer, "QUICK", 0)
    hub.find(REPO).fetch("transformer")
    said = capsys.readouterr().err
    assert "transformer 0.4 MB、vae 0.2 MB、text_encoder 0.2 MB" in said
    assert "下载 100%" in said and "400kB/400kB" in said and "还要 00:00" in said


def test_offline(served, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LorakitError, match="HF_HUB_OFFLINE=1"):
        hub.find(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.find(REPO).fetch("vae")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(served.asked)
    model = hub.find(REPO)
    model.fetch("vae")
    with pytest.raises(LorakitError, match=r"缺 text_encoder/.*HF_HUB_OFFLINE"):
        model.fetch("text_encoder")
    assert len(served.asked) == count


def test_a_full_disk_is_seen_before_the_download(served, monkeypatch):
    model = hub.find(REPO)
    served.asked.clear()
    full = shutil._ntuple_diskusage(10**6, 10**6, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(LorakitError, match=r"还要下 0.4 MB.*MODELSCOPE_CACHE"):
        model.fetch("transformer")
    assert served.asked == []


def test_names_that_are_no_model(served, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, word in (
        ("./models/qwen", "没有这个文件夹"),
        (str(tmp_path / "empty"), "不是 diffusers 布局"),
        ("tiny-qwen-imag", "没有这个文件夹"),
        ("a/b/c", "没有这个文件夹"),
        ("../..", "不是 diffusers 布局"),
    ):
        with pytest.raises(LorakitError, match=word):
            hub.find(path)
    assert served.asked == []


def test_a_login_page_is_not_a_model_site(served):
    served.portal = True
    with pytest.raises(LorakitError, match="多半不是模型站"):
        hub.find(REPO)


def test_a_disk_without_links(served, monkeypatch):
    def refuse(*_):
        raise OSError("no symlinks here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    model = hub.find(REPO, "huggingface")
    model.fetch("transformer", "vae", "text_encoder")
    whole(model.folder)
    assert hub.absent(model.folder) == [] and hub.find(REPO).folder == model.folder


def test_what_the_modelscope_library_downloaded_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("MODELSCOPE_ENDPOINT", raising=False)
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "www.modelscope.ai/")
    assert sites.ModelScope().endpoint == "https://www.modelscope.ai"
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://localhost:1")
    assert sites.ModelScope().endpoint == "http://localhost:1"
    monkeypatch.setenv("HOME", str(tmp_path))
    for given, place in (
        ("", ".cache/modelscope/hub/models/me/a___b"), ("", ".cache/modelscope/hub/me/a___b"),
        ("", ".cache/modelscope/models/me--a.b/snapshots/master"), ("x", "x/models/me/a___b"),
    ):  # fmt: skip
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / given) if given else "")
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / hub.INDEX).write_text("{}")
        assert sites.ModelScope().copy("me/a.b") == folder
        shutil.rmtree(folder)


def test_a_hostile_listing_writes_nowhere_else(served, tmp_path):
    served.repos["bad/one"] = {
        **repository(), "../../evil.json": b"{}", "/etc/evil.json": b"{}",
        "transformer/../../evil.txt": b"x", "..\\evil.json": b"{}",
    }  # fmt: skip
    for source in ("modelscope", "huggingface"):
        hub.find("bad/one", source).fetch("transformer", "vae")
    assert not list(tmp_path.rglob("*evil*"))


def test_a_local_folder_says_what_it_lacks(tmp_path):
    folder = tmp_path / "mine"
    for name, content in repository().items():
        if name != SECOND:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    with pytest.raises(LorakitError, match="缺 transformer/diffusion_pytorch_model-00002"):
        hub.find(str(folder)).fetch("transformer")
    (folder / "model_index.json").write_text("{")
    with pytest.raises(LorakitError, match="读不出来"):
        hub.find(str(folder)).fetch()
        hub.absent(folder)


def test_a_full_cache_needs_no_text_encoder(served, papercut, tmp_path):
    """编码过一次，之后把编码器的权重都删掉，再训练也不下载它们。"""
    from lorakit.train import Trainer

    served.repos["me/tiny"] = files_of(ASSETS / "tiny-qwen-image")
    sets = ["model.path=me/tiny", f"data.folder={papercut}", "train.steps=1", "eval.every=0",
            "train.batch_size=1"]  # fmt: skip
    config = load_config("tiny-qwen-image", [*sets, f"run.output={tmp_path / 'one'}"])
    first = list(Trainer(config))
    order = [name.split("/")[0] for name in served.weights]
    assert order[0] == "transformer" and set(order[1:]) == {"vae", "text_encoder"}
    folder = open_family(config).folder
    for part in ("vae", "text_encoder"):
        for file in (folder / part).glob("*.safetensors"):
            file.resolve().unlink()
            file.unlink(missing_ok=True)
    served.asked.clear()
    config = load_config("tiny-qwen-image", [*sets, f"run.output={tmp_path / 'two'}"])
    second = list(Trainer(config))
    assert served.weights == [] and second[0].loss == first[0].loss
    family = open_family(config)
    family.load("vae")  # 真用到时才下
    assert served.weights == ["vae/diffusion_pytorch_model.safetensors"]


def test_how_long_to_wait(capsys):
    """站上说等多久就等多久；等太久就先停下，说清楚。"""

    def busy(said: str, date: str = "") -> float:
        answer = requests.Response()
        answer.status_code, answer.headers["Retry-After"] = 429, said
        answer.headers["Date"] = date
        with pytest.raises(transfer.Busy) as caught:
            transfer.raise_for(answer)
        return caught.value.wait

    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert busy("300") == 300 and 90 < busy(later) <= 100
    past = [datetime(2020, 1, 1, 0, 0, second, tzinfo=UTC) for second in (0, 30)]  # 两边的钟差几年
    assert busy(*(format_datetime(one, usegmt=True) for one in past[::-1])) == 30
    assert [busy(odd) for odd in ("", "x", "-5", "Wed, 99 Foo", "1e400")] == [0] * 5
    assert transfer.pause(1, 300) == 300 and "等 300 秒" in capsys.readouterr().err
    assert transfer.pause(1) == 1.0 and transfer.pause(9) == 20.0
    with pytest.raises(transfer.Unreachable, match="等 60 分钟"):
        transfer.pause(1, 3600)


def test_more_than_was_promised_is_not_written(tmp_path, monkeypatch):
    """说好 10 个字节，给起来没完：盘上不多写一个。"""

    class Endless:
        status_code, headers = 200, {}
        raw = SimpleNamespace(read1=lambda size, **_: b"x" * size)
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda *_: None  # noqa: E731

    monkeypatch.setattr(transfer.requests, "get", lambda *_, **__: Endless())
    remote = transfer.Remote("a.json", 10, "http://x", sha256="0" * 64)
    with pytest.raises(LorakitError, match="对不上"):
        transfer.download([(remote, tmp_path / "a.json")], {})
    assert not list(tmp_path.iterdir())


def test_a_trickle_is_a_stop(monkeypatch):
    answer = SimpleNamespace(raw=SimpleNamespace(read1=lambda size, **_: b"x"))
    monkeypatch.setattr(transfer, "WINDOW", 0.01)
    with pytest.raises(requests.Timeout):
        for _ in transfer.blocks(answer):
            time.sleep(0.005)


def test_an_answer_without_end_is_not_read(monkeypatch):
    monkeypatch.setattr(sites, "SMALL", 1000)
    endless = SimpleNamespace(raw=SimpleNamespace(read1=lambda size, **_: b"[" * 400))
    with pytest.raises(transfer.Unreachable, match="没有尽头"):
        sites._whole(endless)
