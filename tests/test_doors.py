"""小文件的门：别人写的、坏了的、下载来的，只会得到一句中文，路径出不了自己的文件夹。

每种文件由 hypothesis 造一批；平时各 INPUTS 份，要多就设 LORAKIT_INPUTS=2000。
"""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit import files
from lorakit.config import load_config
from lorakit.data import fix
from lorakit.errors import ConfigError, LorakitError, LorakitWarning
from lorakit.files import Unreadable, inside, parse_json
from lorakit.hub import sites
from lorakit.hub.find import INDEX, absent
from lorakit.hub.transfer import Refused, Unreachable
from lorakit.inert import inert
from lorakit.memory.loading import WEIGHTS, Shards
from lorakit.results import checkpoint, folder, lock, verdict

INPUTS = int(os.environ.get("LORAKIT_INPUTS", "150"))
many = settings(
    max_examples=INPUTS, deadline=None, database=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
OLD = Path(__file__).parent / "old_run" / "run"

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner)
)
big = st.sampled_from([10**400, -(10**400), 1e308, 10**18, -1, 0])
deep = st.integers(50, 3000).map(lambda n: "[" * n + "]" * n)
paths = st.sampled_from(
    ["../x", "/etc/passwd", "a/../../x", "C:\\x", "..\\x", "\\\\host\\x", "link/x", "a\0b", "", ".",
     "图/猫.png", "a" * 300, "./a", "~/x", "a//b"]
)  # fmt: skip


def near(sample: dict):
    """和真的一样、只换掉几处的：深处的检查只有这样才走得到。"""
    keys = st.sampled_from(sorted(sample))
    changes = st.dictionaries(keys, values | big | paths, min_size=1, max_size=2)
    dropped = st.sets(keys, max_size=1)
    return st.builds(
        lambda new, gone: {k: v for k, v in {**sample, **new}.items() if k not in gone},
        changes, dropped,
    )  # fmt: skip


def raw_of(sample: dict):
    """一个文件的字节：随便的字节、随便的 JSON、差一点的、截断的、套得很深的。"""
    whole = json.dumps(sample).encode()
    cut = st.integers(0, len(whole)).map(lambda n: whole[:n])
    flipped = st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 7)).map(
        lambda at: whole[: at[0]] + bytes([whole[at[0]] ^ 1 << at[1]]) + whole[at[0] + 1 :]
    )
    made = (values | near(sample)).map(lambda value: json.dumps(value).encode())
    return made | st.binary(max_size=64) | cut | flipped | deep.map(str.encode)


def only_a_sentence(work, kinds=LorakitError):
    """做 work；出错就只能是给用户看的一句中文。"""
    try:
        return work()
    except kinds as error:
        said = str(error)
        assert said and said == inert(said)
        return None


# ---- 我们自己写的 ----


def test_the_state_of_a_checkpoint(tmp_path):
    run = shutil.copytree(OLD, tmp_path / "run")
    path = run / "checkpoint-2"
    state = path / checkpoint.STATE / checkpoint.FACTS
    whole = {**json.loads(state.read_text()), "exported": {}}
    whole[checkpoint.SUM] = checkpoint._sum(whole)
    state.write_text(json.dumps(whole))
    assert checkpoint.latest(run) == path
    tried = 0

    @many
    @given(raw_of(whole))
    def anything(raw):
        nonlocal tried
        tried += 1
        state.write_bytes(raw)
        facts = checkpoint.facts_of(path)
        assert facts == {} or facts == whole  # 换了一个数，也不认
        assert checkpoint.latest(run) in (None, path)

    anything()
    assert tried >= INPUTS / 2
    for name, value in (("step", 3), ("step", 10**9)):
        state.write_text(json.dumps({**whole, name: value}))
        assert checkpoint.latest(run) is None
    changed = json.loads(json.dumps(whole))
    changed["optimizer"]["group-0|lr"] *= 2
    state.write_text(json.dumps(changed))
    assert checkpoint.latest(run) is None


def test_the_record_of_a_run(tmp_path):
    row = json.loads((OLD / "metrics.jsonl").read_text().splitlines()[-1])
    row |= {"held": 0.5, "held_each": [[0.5, 0.6], [0.4, 0.7]], "step": 4}
    start = {**row, "step": 0}

    @many
    @given(st.lists(raw_of(row), max_size=4))
    def anything(lines):
        text = b"\n".join([json.dumps(start).encode(), *lines, json.dumps(row).encode(), b""])
        (tmp_path / "metrics.jsonl").write_bytes(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LorakitWarning)
            rows = folder.read(tmp_path)
        assert all(type(one["step"]) is int for one in rows)
        verdict.judge(rows)

    anything()


def test_lost_lines_are_said(tmp_path):
    rows = [json.dumps({"step": n, "loss": 1.0}) for n in range(4)]
    glued = "\n".join([rows[0], rows[1] + rows[2], "[]", "\ufeff" + rows[3]]) + '\n{"step": 9'
    (tmp_path / "metrics.jsonl").write_text(glued)
    with pytest.warns(LorakitWarning, match=r"坏了 2 行，没有算（第 2、3 行）"):
        assert [row["step"] for row in folder.read(tmp_path)] == [0, 3]


def test_the_owner_of_a_folder(tmp_path):
    owner = tmp_path / lock.OWNER

    @many
    @given(raw_of({"token": "x", "pid": 7, "host": "far", "boot": lock._machine()["boot"]}))
    def anything(raw):
        owner.write_bytes(raw)
        mine = lock.Lock(tmp_path)
        if mine.read().get("boot") == lock._machine()["boot"] or not mine.read():
            with mine.take():
                pass
            mine.release()

    anything()


# ---- 下载来的 ----


@pytest.fixture
def fixed(tmp_path):
    """一个修过的数据文件夹；旁边放着别人的东西。"""
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_bytes("一只橘猫坐在窗边，看着外面的雨".encode("gbk"))
    from PIL import Image

    Image.new("RGB", (80, 80)).save(data / "a.png")
    fix.fix(data)
    (tmp_path / "secret.txt").write_text("秘密")
    (tmp_path / "out").mkdir()
    (data / "link").symlink_to(tmp_path / "out")
    return data


def snapshot(top: Path, without: Path) -> dict:
    found = (p for p in top.rglob("*") if p.is_file() and not p.is_relative_to(without))
    return {p: p.read_bytes() for p in found}


def test_undo_never_leaves_its_folder(fixed, tmp_path):
    (store,) = (fixed / fix.UNDO).iterdir()
    whole = json.loads((store / fix.MANIFEST).read_text())
    entry, outside = whole["changes"][0], snapshot(tmp_path, fixed)
    keep = shutil.copytree(fixed, tmp_path / "keep", symlinks=True)
    outside = snapshot(tmp_path, fixed)

    @many
    @given(raw_of(whole) | near({**entry, "to": f"{fix.MOVED}/a.txt"}).map(
        lambda one: json.dumps({"format": 1, "changes": [one]}).encode()
    ))  # fmt: skip
    def anything(raw):
        shutil.rmtree(fixed)
        shutil.copytree(keep, fixed, symlinks=True)
        (fixed / store.relative_to(fixed) / fix.MANIFEST).write_bytes(raw)
        only_a_sentence(lambda: fix.undo(fixed))
        assert snapshot(tmp_path, fixed) == outside

    anything()


@pytest.mark.parametrize("link", [fix.UNDO, fix.MOVED])
def test_originals_do_not_go_through_a_link(tmp_path, link):
    (tmp_path / "out").mkdir()
    data = tmp_path / "data"
    data.mkdir()
    (data / link).symlink_to(tmp_path / "out")
    for work in (fix.fix, fix.undo):
        with pytest.raises(LorakitError, match="是一个链接"):
            work(data)
    assert not list((tmp_path / "out").iterdir())


@many
@given(st.text() | paths)
def test_a_path_from_a_file_stays_inside(name):
    found = inside(Path("/there/here"), name)
    if found is not None:
        assert Path(os.path.normpath(found)).is_relative_to("/there/here") and found != Path(
            "/there/here"
        )


def test_the_index_of_a_base(tmp_path):
    index = tmp_path / f"{WEIGHTS}.index.json"
    (tmp_path / INDEX).write_text(json.dumps({"vae": ["diffusers", "X"]}))
    (tmp_path / "vae").mkdir()

    @many
    @given(raw_of({"weight_map": {"a": "x.safetensors", "b": "../x.safetensors"}}))
    def anything(raw):
        index.write_bytes(raw)
        (tmp_path / "vae" / index.name).write_bytes(raw)
        only_a_sentence(lambda: absent(tmp_path))
        shards = only_a_sentence(lambda: Shards(tmp_path))
        for name in shards.places if shards else ():
            only_a_sentence(lambda name=name: shards(name, None))

    anything()


def test_the_small_files_of_a_base(tmp_path, config):
    """每个小文件各坏一次：载入之前、载入的时候，都只有一句话。"""
    from lorakit.families import open_family
    from lorakit.hub.bundled import bundled

    base = shutil.copytree(bundled("tiny-qwen-image"), tmp_path / "base")
    chosen = config(f"model.path={base}")
    small = [p for p in sorted(base.rglob("*.json")) if p.stat().st_size < 20_000]
    raws = [b"", b"[]", b"{}", b"null", b'{"_class_name": 3}', b"{" * 5000, b"\xff\xfe\x00"]

    def everything():
        family = open_family(chosen)
        family.skeleton(), family.latent_channels, family.shift(64, 64)
        for part in ("vae", "text"):
            family.load(part)

    for path in small:
        whole = path.read_bytes()
        facts = json.loads(whole)
        odd = [{**facts, key: bad} for key in list(facts)[:6] for bad in ("x", -1, [], None)]
        for raw in [
            *raws,
            whole[: len(whole) // 2],
            *(json.dumps(one).encode() for one in odd[:6]),
        ]:
            path.write_bytes(raw)
            only_a_sentence(everything)
        path.write_bytes(whole)
    everything()


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_no_weight_is_made_up(tmp_path, config, part):
    """少一个张量、形状不对、截断、空的：报错，不用随机数补上。"""
    from safetensors.torch import load_file, save_file

    from lorakit.families import open_family
    from lorakit.hub.bundled import bundled

    base = shutil.copytree(bundled("tiny-qwen-image"), tmp_path / "base")
    (file,) = (base / part).glob("*.safetensors")
    whole, tensors = file.read_bytes(), load_file(file)
    name = max(tensors, key=lambda key: tensors[key].numel())
    fewer = {key: value for key, value in tensors.items() if key != name}
    odd = {**tensors, name: tensors[name].flatten()[1:].clone()}
    for spoil in (
        lambda: save_file(fewer, file, {"format": "pt"}),
        lambda: save_file(odd, file, {"format": "pt"}),
        lambda: file.write_bytes(whole[: len(whole) // 2]),
        lambda: file.write_bytes(b""),
    ):
        spoil()
        family = open_family(config(f"model.path={base}"))
        with pytest.raises(LorakitError, match=r"读不出来|权重不全"):
            family.load("vae" if part == "vae" else "text")
    file.write_bytes(whole)


# ---- 网站说的 ----

HUGGING = {"sha": "a" * 40, "gated": False, "siblings": [
    {"rfilename": "model_index.json", "size": 3, "lfs": {"sha256": "b" * 64, "size": 3}},
    {"rfilename": "../../x", "size": 3},
]}  # fmt: skip
SCOPE = {"Success": True, "Code": 200, "Data": {"Files": [
    {"Path": "model_index.json", "Size": 3, "Type": "blob", "Sha256": "b" * 64},
]}}  # fmt: skip


@pytest.mark.parametrize(("site", "sample"), [
    (sites.HuggingFace, HUGGING), (sites.ModelScope, SCOPE),
])  # fmt: skip
def test_the_answers_of_a_site(monkeypatch, site, sample):
    entry = (sample.get("siblings") or sample["Data"]["Files"])[0]
    one = near(entry).map(
        lambda e: {**sample, "siblings": [e], "Data": {"Files": [e]}}
    ).map(lambda value: json.dumps(value).encode())  # fmt: skip

    @many
    @given(raw_of(sample) | one)
    def anything(raw):
        monkeypatch.setattr(sites, "ask", lambda *_: raw)
        listing = only_a_sentence(lambda: site().listing("a/b"), (Unreachable, Refused))
        if listing is not None:
            assert all(type(f.size) is int and f.size >= 0 for f in listing.files)

    anything()


# ---- 用户写的设置 ----


@many
@given(
    st.dictionaries(st.sampled_from(["train", "data", "run", "model", "lora", "sample"]),
                    st.dictionaries(st.sampled_from(["steps", "folder", "output", "path", "rank",
                                                     "prompts", "lr", "repeats", "targets"]),
                                    values | big | paths))
)  # fmt: skip
def test_settings_as_a_dictionary(tree):
    only_a_sentence(lambda: load_config(tree), ConfigError)


FOREIGN = [  # 各训练器的文件里走得到的几处：里层的也换
    {"job": "extension", "config": {"name": "x", "process": [{"type": "sd_trainer"}]}},
    {"type": "sd_trainer", "training_folder": "o", "trigger_word": "x", "datasets": [], "train": {},
     "model": {"name_or_path": "x", "arch": "flux"}, "network": {"linear": 4}, "sample": {}},
    {"folder_path": "/a", "is_reg": True, "control_path": ["/c"], "resolution": [512, 768]},
    {"training_method": "LORA", "base_model_name": "x", "concepts": [{"path": "/a"}], "ema": "GPU",
     "ema_decay": 0.9, "optimizer": {"optimizer": "ADAMW"}, "resolution": "512x768"},
    {"path": "/a", "type": "PRIOR_PREDICTION", "balancing": 2.0, "text": {"prompt_source": "x"}},
    {"general": {"resolution": 512}, "datasets": [{"image_directory": "/a"}]},
    {"image_dir": "/a", "subsets": [{"is_reg": True, "image_dir": "/r"}], "num_repeats": 3,
     "image_jsonl_file": "/a/x.jsonl", "alpha_mask": True, "caption_extension": ".txt"},
    {"network_dim": 8, "train_data_dir": "x", "dit": "/m.safetensors", "unet_lr": 1e-4},
]  # fmt: skip


def test_settings_of_other_trainers(tmp_path):
    file = tmp_path / "x.json"
    some = st.one_of(*map(near, FOREIGN))
    whole = st.builds(lambda one: {"config": {"process": [one]}}, some)
    whole |= st.builds(
        lambda key, rows: {key: rows, "training_method": "LORA", "base_model_name": "x"},
        st.sampled_from(["datasets", "concepts"]), st.lists(some, max_size=3),
    )  # fmt: skip
    whole |= st.builds(lambda rows: {"datasets": rows}, st.lists(some, max_size=3))

    @settings(many, max_examples=INPUTS // 2)
    @given(some | whole)
    def anything(tree):
        file.write_text(json.dumps(tree), encoding="utf-8")
        only_a_sentence(
            lambda: load_config(file, ["model.path=m"], say=lambda _: None), ConfigError
        )

    anything()


TAGS = ["int", "float", "bool", "timestamp", "binary", "set", "omap", "pairs", "seq", "map", "null",
        "str", "python/object:os.system", "merge", "value"]  # fmt: skip


def test_settings_as_text(tmp_path):
    file = tmp_path / "x.yaml"
    tagged = st.builds(
        "train: {{steps: !!{} {}}}".format, st.sampled_from(TAGS), st.text(max_size=9)
    )
    written = values.map(lambda value: yaml.safe_dump(value))
    aliased = st.integers(1, 60).map(
        lambda n: (
            "b0: &b0 [1, 1]\n"
            + "".join(f"b{i}: &b{i} [*b{i - 1}, *b{i - 1}]\n" for i in range(1, n))
        )
    )

    @many
    @given(st.text() | tagged | written | aliased | deep)
    def anything(text):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        only_a_sentence(lambda: load_config(file), ConfigError)
        only_a_sentence(lambda: load_config(None, [f"train.steps={text}"]), ConfigError)

    anything()


def test_the_place_of_a_yaml_mistake_is_said(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("lora:\n  rank: 4\ntrain:\n  steps: !!int abc\n")
    with pytest.raises(ConfigError, match=r"第 4 行写错了.*!!int abc.*去掉 !!"):
        load_config(file)


def test_the_door_has_limits(tmp_path):
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"a": "字" * 100}), encoding="utf-8-sig")
    assert files.read_json(file, {"a": str})["a"][0] == "字"
    with pytest.raises(Unreadable, match="太大"):
        files.read_json(file, limit=20)
    with pytest.raises(Unreadable, match="不是普通的文件"):
        files.read_json(tmp_path)
    with pytest.raises(Unreadable, match="没有这个文件"):
        files.read_json(tmp_path / "none.json")
    with pytest.raises(Unreadable, match="a应是列表"):
        parse_json('{"a": 1}', {"a": [int]})
    with pytest.raises(Unreadable, match="第 2 行第 6 个字附近写错了"):
        parse_json('{"a": 1,\n "b" 2}')


# ---- 学的人自己的小文件 ----


def test_what_a_learner_did(monkeypatch):
    """通过的练习、答过的题、编号：记坏了就当没有记过，能重新记下。"""
    from lorakit.lab import exercises, quiz
    from lorakit.lab.exercises.marking import remember
    from lorakit.lab.notes import notes

    places = {
        (notes() / "exercises.json"): ({"0": "compression"}, exercises.passed),
        quiz._place("pre"): ({"0": 1}, lambda: quiz.picks("pre")),
        notes() / "reader.json": ({"0": "ab"}, quiz._reader),
    }
    notes().mkdir(parents=True, exist_ok=True)
    count = len(quiz.exam("pre"))

    @many
    @given(raw_of({"0": 1, "1": None}) | st.lists(values | big, max_size=count + 1).map(
        lambda value: json.dumps(value).encode()
    ))  # fmt: skip
    def anything(raw):
        for place, (_, look) in places.items():
            place.write_bytes(raw)
            found = look()
            assert isinstance(found, list | str)
        picks = quiz.picks("pre")
        assert len(picks) == count and all(
            pick is None or 0 <= pick < len(one.options)
            for pick, one in zip(picks, quiz.exam("pre"), strict=True)
        )
        assert all(isinstance(name, str) for name in exercises.passed())
        (notes() / "exercises.json").write_bytes(raw)
        remember("compression")
        assert "compression" in exercises.passed()

    anything()


def test_an_open_book_that_is_damaged(tmp_path):
    from lorakit.lab.lost import home_of

    book = tmp_path / "x.ipynb"
    cell = {"cell_type": "code", "source": ["x = 1\n"]}

    @many
    @given(raw_of({"cells": [cell]}) | near(cell).map(
        lambda one: json.dumps({"cells": [one]}).encode()
    ))  # fmt: skip
    def anything(raw):
        book.write_bytes(raw)
        assert home_of("x", str(book)) == ""

    anything()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_words_of_the_learner_in_any_encoding(tmp_path, encoding):
    """记事本、PowerShell 存的提示词，别的训练器的 TOML、JSON：同样的字。"""
    from lorakit.cli.judge import _prompts

    file = tmp_path / "prompts.txt"
    file.write_bytes("一只猫\r\n\r\n剪纸风格，一条船\r\n".encode(encoding))
    assert _prompts([str(file)]) == ["一只猫", "剪纸风格，一条船"]
    from lorakit.config.others import read_other

    for name, text in (("a.toml", 'folder = "图片"'), ("a.json", '{"folder": "图片"}')):
        other = tmp_path / name
        other.write_bytes(text.encode(encoding))
        assert read_other(other) == {"folder": "图片"}


def test_odd_prompt_files_are_one_sentence(tmp_path):
    from lorakit.cli.judge import _prompts

    file = tmp_path / "prompts.txt"

    @many
    @given(st.binary(max_size=40))
    def anything(raw):
        file.write_bytes(raw)
        said = only_a_sentence(lambda: _prompts([str(file)]))
        assert said is None or all(said)

    anything()
    with pytest.raises(LorakitError, match="没有这个文件"):
        _prompts(["none.txt"])


SHIPPED = {  # 读随包的、我们自己造模型时的文件：不是别人写的，坏了就是我们的错
    "config/load.py", "hub/bundled.py", "lab/questions/bank.py", "lora/comfyui.py",
    "tiny/examiner.py", "lab/exercises/trial.py", "lab/recordings.py", "lab/hospital/chart.py",
}  # fmt: skip
PARSERS = ("json.loads(", "json.load(", "yaml.safe_load(", "yaml.load(")


def test_there_is_one_door():
    """别处不自己解开 JSON 与 YAML。"""
    home = Path(files.__file__).parent
    found = set()
    for path in home.rglob("*.py"):
        inside_name = path.relative_to(home).as_posix()
        text = path.read_text(encoding="utf-8")
        if not inside_name.startswith("tiny/pretrain/") and any(one in text for one in PARSERS):
            found.add(inside_name)
    assert found == SHIPPED | {"files.py"}
