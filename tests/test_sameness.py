"""接着练之前的核对：同样的内容换了名字、换了地方照常接；内容变了说得出哪里变了。"""

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit.cache import whole
from lorakit.config import load_config
from lorakit.errors import ConfigError, InspectionWarning, LorakitWarning
from lorakit.hub.bundled import bundled
from lorakit.results import checkpoint, sameness
from lorakit.results import folder as run_folder
from lorakit.tiny import samples
from lorakit.train import Trainer


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    samples.write("papercut", tmp_path / "data", count=5)
    monkeypatch.chdir(tmp_path)


def settings(*overrides: str):
    base = ["data.folder=data", "run.output=run", "data.resolution=64", "train.save_every=1",
            "train.steps=1", "eval.holdout=0", "eval.every=0", "lora.rank=2"]  # fmt: skip
    return load_config("tiny-qwen-image", [*base, *overrides])


def go_on(*overrides: str) -> str:
    """先照原样练一步；再接着练一步，返回提醒。"""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer = Trainer(settings("train.steps=2", *overrides))
        assert trainer.step == 1
        list(trainer)
    said = [str(w.message) for w in told if w.category is not InspectionWarning]
    return "\n".join(line for line in said if "那时" in line or "核对" in line or "上次" in line)


def first(*overrides: str):
    list(Trainer(settings(*overrides)))


@pytest.mark.parametrize("place", ["absolute", "copy", "list", "link"])
def test_the_same_pictures_elsewhere_go_on(place):
    first()
    shutil.copytree("data", "copy")
    Path("link").symlink_to("copy")
    folder = {"absolute": Path("data").absolute(), "list": "[data]"}.get(place, place)
    assert go_on(f"data.folder={folder}") == ""


def test_the_same_base_elsewhere_goes_on_and_another_does_not():
    shutil.copytree(bundled("tiny-qwen-image"), "one")
    shutil.copytree("one", "two")
    first("model.path=one")
    assert go_on("model.path=two") == ""
    first("model.path=one", "run.output=other")
    file = next(Path("one/transformer").glob("*.safetensors"))
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ConfigError, match="底模的 transformer 换了内容"):
        go_on("model.path=one", "run.output=other")


def _unsampled(file: Path) -> int:
    """大文件里抽样抽不到的一个字节。"""
    size, block = file.stat().st_size, 64 << 10
    first, second, *_ = np.linspace(0, size - block, 64).astype(int)
    assert size > 4 << 20 and second > first + block
    return int(first) + block + 1


def _flip(file: Path, place: int):
    """就地改一个比特，时间照旧。"""
    facts = file.stat()
    with file.open("r+b") as opened:
        opened.seek(place)
        byte = opened.read(1)[0] ^ 1
        opened.seek(place)
        opened.write(bytes([byte]))
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_one_bit_of_a_large_base_is_noticed_and_it_is_read_whole_once(monkeypatch):
    read, real = [], whole.digest
    monkeypatch.setattr(whole, "digest", lambda path: read.append(path) or real(path))
    shutil.copytree(bundled("tiny-qwen-image"), "one")
    first("model.path=one")
    assert {path.parent.name for path in read} >= {"transformer", "vae", "text_encoder"}
    assert len(read) == len(set(read))
    read.clear()
    assert go_on("model.path=one") == "" and read == []
    first("model.path=one", "run.output=other")
    file = next(Path("one/transformer").glob("*.safetensors"))
    _flip(file, _unsampled(file))
    with pytest.raises(ConfigError, match="底模的 transformer 换了内容"):
        go_on("model.path=one", "run.output=other")
    assert read == [file]
    first("model.path=one", "run.output=new")  # 另一份底模，另一份结果


def test_a_changed_encoder_is_not_served_from_the_cache(own_cache):
    """VAE 在抽样抽不到的地方改了：以前编码的不能再用。"""
    shutil.copytree(bundled("tiny-qwen-image"), "one")
    first("model.path=one")
    before = set((own_cache / "image").rglob("*.safetensors"))
    assert before
    first("model.path=one", "run.output=again")
    assert set((own_cache / "image").rglob("*.safetensors")) == before
    file = next(Path("one/vae").glob("*.safetensors"))
    _flip(file, _unsampled(file))
    first("model.path=one", "run.output=other")
    assert len(set((own_cache / "image").rglob("*.safetensors"))) == 2 * len(before)
    _flip(file, _unsampled(file))  # 改回来，还是原来那一份
    first("model.path=one", "run.output=back")
    assert len(set((own_cache / "image").rglob("*.safetensors"))) == 2 * len(before)


def _captions():
    path = sorted(Path("data").glob("*.txt"))[0]
    path.write_text("另一句话", encoding="utf-8")


def _picture():
    path = sorted(Path("data").glob("*.png"))[0]
    Image.fromarray(np.full((64, 64, 3), 9, np.uint8)).save(path)


def _added():
    Image.effect_noise((64, 64), 50).convert("RGB").save("data/新.png")
    Path("data/新.txt").write_text("噪声", encoding="utf-8")


def _removed():
    path = sorted(Path("data").glob("*.png"))[0]
    path.unlink()
    path.with_suffix(".txt").unlink()


def _twice(*there: str):
    for path in sorted(Path("data").iterdir())[:2]:
        if there:
            shutil.copy(path, path.with_stem(f"{path.stem}_{there[0]}"))
        elif path.suffix == ".txt":
            path.write_text("第二份的描述", encoding="utf-8")


CHANGES = {
    "的描述变了 1 份": _captions, "换了内容 1 张": _picture, "多了 1 张（新.png": _added,
    "少了 1 张": _removed, "多了 1 张（01": lambda: _twice("b"),
}  # fmt: skip


@pytest.mark.parametrize("said", CHANGES)
def test_changed_data_is_told(said):
    first()
    CHANGES[said]()
    assert said in go_on()


def test_of_two_copies_the_changed_caption_is_told():
    _twice("b")
    first()
    _twice()
    assert "描述变了 1 份" in go_on()


def test_more_steps_of_a_falling_rate_are_told_from_what_to_what():
    """学习率按总步数下降：改了总步数，前一半就不是那条曲线上的了，接上的那一步会跳。"""
    falling = ("train.schedule=cosine", "train.warmup=0", "train.lr=1e-3", "train.save_every=50")
    first(*falling, "train.steps=4")
    more = settings(*falling, "train.steps=8")
    with pytest.warns(LorakitWarning, match="train.steps 原来是 4，现在是 8") as told:
        list(Trainer(more))
    rate = {row["step"]: row["lr"] for row in run_folder.read(more.run.output) if row["step"]}
    said = next(str(w.message) for w in told if "train.steps" in str(w.message))
    assert rate[5] > 3 * rate[4] and f"学习率从 {rate[4]:.2g} 跳到 {rate[5]:.2g}" in said


def test_more_steps_of_a_level_rate_need_no_word(recwarn):
    level = ("train.schedule=constant", "train.warmup=0")
    first(*level)
    list(Trainer(settings(*level, "train.steps=2")))
    assert not [w for w in recwarn if "train.steps 原来" in str(w.message)]


def test_more_steps_go_on_though_the_warmup_was_cut_to_the_few():
    """没有写热身：4 步时照步数缩成 0，改成 12 步又是预设的 10；说得出，接得上。"""
    rare = "train.save_every=50"
    first("train.steps=4", rare)
    with pytest.warns(LorakitWarning, match="就加上 --set train.warmup=0"):
        trainer = Trainer(settings("train.steps=12", rare))
    assert trainer.step == 4 and trainer.config.train.warmup == 10
    trainer.close()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Trainer(settings("train.steps=12", rare, "train.warmup=0")).close()  # 照它说的
    assert not [one for one in told if "train.warmup" in str(one.message)]
    list(Trainer(settings("train.steps=12", rare)))
    for file in Path("run/checkpoint-12/state").glob("*.safetensors"):
        file.write_bytes(b"")  # 最后一个坏了，退回热身还是 0 的那一个
    with pytest.warns(LorakitWarning, match="退回 checkpoint-4"):
        assert Trainer(settings("train.steps=14", rare)).step == 4


def test_two_warmups_both_cut_go_on_too():
    rare = "train.save_every=50"
    first("train.steps=5", rare)  # 热身 0
    with pytest.warns(LorakitWarning, match="train.warmup 原来是 0（照 5 步定的）"):
        trainer = Trainer(settings("train.steps=10", rare))
    assert trainer.step == 5 and trainer.config.train.warmup == 1
    trainer.close()


@pytest.mark.parametrize("warmup", [3, 0])
def test_a_warmup_of_ones_own_is_still_another_setting(warmup):
    falling = ("train.schedule=cosine", "train.steps=12")
    first(*falling, "train.warmup=5")
    with pytest.raises(ConfigError, match=f"train.warmup：原来 5，现在 {warmup}"):
        Trainer(settings(*falling, f"train.warmup={warmup}"))


def test_checkpoints_moved_without_the_record_go_on():
    first()
    Path("run/metrics.jsonl").unlink()
    assert go_on() == ""


def test_changed_masks_and_class_pictures_are_told():
    mask = Image.new("L", (64, 64), 255)
    for path in sorted(Path("data").glob("*.png")):
        mask.resize(Image.open(path).size).save(path.with_name(f"{path.stem}_mask.png"))
    samples.write("papercut", Path("prior"), count=9)
    for path in sorted(Path("prior").iterdir())[: 2 * 5]:
        path.unlink()
    given = ("data.mask=file", "data.class_folder=prior")
    first(*given)
    path = sorted(Path("data").glob("*_mask.png"))[0]
    half = np.array(Image.open(path))
    half[:, ::2] = 0
    Image.fromarray(half).save(path)
    sorted(Path("prior").glob("*.txt"))[0].write_text("一只别的猫", encoding="utf-8")
    said = go_on(*given)
    assert "训练的图的遮罩变了 1 份" in said and "同类图片的描述变了 1 份" in said


def test_a_renamed_picture_is_the_same_picture():
    first()
    path = sorted(Path("data").glob("*.png"))[-1]
    for old in (path, path.with_suffix(".txt")):
        old.rename(old.with_stem(f"{old.stem}_again"))
    assert go_on() == ""


def test_settings_are_known_without_config_yaml():
    first()
    Path("run/config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"train\.lr：原来"):
        go_on("train.lr=0.009")
    assert go_on() == ""


def test_a_checkpoint_of_another_run_is_noticed():
    first()
    first("train.seed=7", "run.output=other")
    shutil.rmtree("run/checkpoint-1")
    shutil.copytree("other/checkpoint-1", "run/checkpoint-1")
    with pytest.raises(ConfigError, match=r"train\.seed：原来 7，现在 0"):
        go_on()


def test_another_version_and_another_machine_are_told():
    first()
    state = Path("run/checkpoint-1/state/state.json")
    facts = json.loads(state.read_text("utf-8"))
    facts["trained_on"]["versions"]["torch"] = "1.0"
    assert facts["trained_on"]["machine"] == {"设备": "CPU", "精度": "float32"}
    facts["trained_on"]["machine"] = {"设备": "NVIDIA H100", "精度": "bfloat16"}
    facts.pop(checkpoint.SUM)
    facts[checkpoint.SUM] = checkpoint._sum(facts)
    state.write_text(json.dumps(facts), encoding="utf-8")
    said = go_on()
    assert "torch 1.0 -> " in said
    assert "设备 NVIDIA H100 -> CPU" in said and "精度 bfloat16 -> float32" in said


def test_an_old_run_without_records_goes_on_elsewhere(monkeypatch):
    """以前的检查点没有记数据：有 run.json 就照它核对。"""
    shutil.copytree(Path(__file__).parent / "old_run", "old")
    monkeypatch.chdir("old")
    shutil.copytree("data", "moved")
    shutil.copytree("data", "other")
    next(Path("other").glob("*.txt")).write_text("别的", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"data\.folder.*内容不同"):
        Trainer(load_config("run/config.yaml", ["train.steps=4", "data.folder=other"]))
    config = load_config("run/config.yaml", ["train.steps=3", "data.folder=moved"])
    assert Trainer(config).step == 2


def test_changed_controls_and_repeats_are_told():
    """改图的：控制图换了、次数改了；改了名字的还是同一张。"""
    row = {"name": "a.png", "picture": "p", "caption": "c", "controls": ["x"], "repeats": 2}
    before = {"train": [row], "held": [], "prior": []}
    changes = [
        ({"controls": ["y"]}, "控制图变了 1 份（a.png）"),
        ({"repeats": 3}, "重复次数变了 1 份"),
    ]
    for change, said in [*changes, ({"name": "b.png"}, "")]:
        told = sameness._data_told(before, {**before, "train": [{**row, **change}]})
        assert said in "；".join(told) and bool(told) is bool(said)
