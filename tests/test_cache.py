"""缓存：永远不旧；坏一个字节也会发现；第二次不再编码。"""

import errno
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lorakit import cache, files
from lorakit.cache import store
from lorakit.cache import why as cache_why
from lorakit.errors import ConfigError, LorakitError
from lorakit.families import open_family
from lorakit.files import _flush


@pytest.fixture
def folder(papercut, tmp_path):
    for path in sorted(papercut.iterdir())[:12]:  # 六张图，六个 .txt
        (tmp_path / "pics").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "pics")
    return tmp_path / "pics"


@pytest.fixture
def encode(config, folder):
    """编码一遍，返回 (数据集, 编码了几张图, 编码了几句话)。"""

    def run(*overrides):
        settings = config(f"data.folder={folder}", "eval.holdout=0", *overrides)
        counts = {"编码图片": 0, "编码描述": 0}
        done = cache.prepare(
            settings, open_family(settings), lambda what, i, n: counts.update({what: n})
        )
        return done, counts["编码图片"], counts["编码描述"]

    return run


def test_second_time_nothing_is_encoded(encode):
    first, pictures, texts = encode()
    assert (pictures, texts) == (6, len({i.record.caption for i in first.train}) + 1)
    again, pictures, texts = encode()
    assert (pictures, texts) == (0, 0)
    for a, b in zip(first.train, again.train, strict=True):
        assert torch.equal(a.mean, b.mean) and torch.equal(a.cond["text"], b.cond["text"])


def test_a_changed_pixel_encodes_one_picture(encode, folder):
    encode()
    path = sorted(folder.glob("*.png"))[0]
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    assert encode()[1:] == (1, 0)


def test_a_changed_caption_encodes_one_sentence(encode, folder):
    encode()
    sorted(folder.glob("*.txt"))[0].write_text("全新的一句话", encoding="utf-8")
    assert encode()[1:] == (0, 1)


def test_another_resolution_encodes_all_pictures(encode):
    encode()
    assert encode("data.resolution=96")[1:] == (6, 0)


@pytest.fixture
def other(family, tmp_path):
    """底模的一份副本，某个部分的权重改了一个字节。"""

    def make(part: str) -> str:
        copy = shutil.copytree(family.folder, tmp_path / part)
        weights = next((copy / part).glob("*.safetensors"))
        data = bytearray(weights.read_bytes())
        data[-7] ^= 1
        weights.write_bytes(data)
        return f"model.path={copy}"

    return make


@pytest.mark.parametrize(
    ("part", "rebuilt"), [("vae", (6, 0)), ("text_encoder", (0, 7)), ("transformer", (0, 0))]
)
def test_another_encoder_is_noticed(encode, other, part, rebuilt):
    assert encode()[1:] == (6, 7)  # 六句不同的描述，加上空描述
    assert encode(other(part))[1:] == rebuilt


@pytest.mark.parametrize(
    ("setting", "rebuilt"),
    [
        ("data.trigger=ohwx", (0, 6)),  # 描述都变了，空描述没有
        ("model.precision=bf16", (6, 7)),
        ("data.flip=true", (6, 0)),  # 只多编码六张镜像
        ("data.crops=3", (12, 0)),
        ("lora.rank=4", (0, 0)),
        ("train.seed=5", (0, 0)),
        ("data.repeats=3", (0, 0)),
        ("data.caption_dropout=0.5", (0, 0)),
    ],
)
def test_a_setting_rebuilds_exactly_what_depends_on_it(encode, setting, rebuilt):
    encode()
    assert encode(setting)[1:] == rebuilt


def test_the_text_is_kept_without_padding(encode, family):
    items = encode()[0].train
    lengths = {len(item.cond["text"]) - len(item.empty["text"]) for item in items}
    counts = {family.count_tokens([item.record.caption])[0] for item in items}
    assert lengths == counts and len(counts) > 1  # 各有各的长短，不补齐
    assert len({tuple(item.empty["text"].flatten().tolist()) for item in items}) == 1


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("place", [0, 3, 9, 200, 0.5, -100, -1])
def test_a_poisoned_byte_is_detected(encode, own_cache, kind, place):
    good = encode()[0].train
    path = sorted((own_cache / kind).glob("*.safetensors"))[0]
    content = path.read_bytes()
    data = bytearray(content)
    data[int(place * len(data)) if isinstance(place, float) else place] ^= 0x55
    path.write_bytes(data)
    again, pictures, texts = encode()
    assert (pictures, texts) == ((1, 0) if kind == "image" else (0, 1))
    assert path.read_bytes() == content  # 又编码出一模一样的
    for a, b in zip(good, again.train, strict=True):
        assert torch.equal(a.mean, b.mean) and torch.equal(a.cond["text"], b.cond["text"])


def test_every_single_byte_matters(own_cache):
    path = own_cache / "text" / "a.safetensors"
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, 3, dtype=torch.bfloat16)}
    store._write(path, tensors, {"caption": "一只猫", "format": 1})
    content = path.read_bytes()
    assert torch.equal(store._read(path)["a"], tensors["a"]) and len(content) < 600
    for place in range(len(content)):
        for flip in (0x01, 0x20, 0x80):
            spoiled = bytearray(content)
            spoiled[place] ^= flip
            path.write_bytes(spoiled)
            assert store._read(path) is None, (place, flip)
    for spoiled in (b"", content[:-1], content[:7], content + b"x", content[:200]):
        path.write_bytes(spoiled)
        assert store._read(path) is None


@pytest.mark.parametrize("told", ["5", "{", '{"fields": 5}', '{"fields": "["}', "[" * 100_000])
def test_a_file_of_somebody_else_is_not_read(tmp_path, told):
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", {"lorakit": told})
    assert store.fields_of(tmp_path / "a.safetensors") is None


def test_a_stop_in_the_middle_keeps_what_was_encoded(config, folder, own_cache):
    settings = config(f"data.folder={folder}", "eval.holdout=0")

    def stop(what, done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.prepare(settings, open_family(settings), stop)
    assert len(list((own_cache / "image").glob("*.safetensors"))) == 4
    counts = {}
    cache.prepare(settings, open_family(settings), lambda what, i, n: counts.update({what: n}))
    assert counts["编码图片"] == 2


def test_a_full_disk_says_so_and_keeps_the_rest(config, folder, own_cache, monkeypatch):
    settings = config(f"data.folder={folder}", "eval.holdout=0")
    flush, calls = _flush, []

    def full(path):
        calls.extend([path] * ("image" in path.parts))
        if len(calls) == 5:  # 第三张图
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(path)

    monkeypatch.setattr(files, "_flush", full)
    with pytest.raises(LorakitError, match=r"写不进.*磁盘满了.*已经存好的文件都还在"):
        cache.prepare(settings, open_family(settings))
    monkeypatch.undo()
    monkeypatch.setenv("LORAKIT_CACHE", str(own_cache))
    assert len(list((own_cache / "image").iterdir())) == 2 + 1  # 两张图，加上 locks
    assert len(cache.prepare(settings, open_family(settings)).train) == 6


def test_a_cache_that_cannot_be_written_is_named(encode, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(LorakitError, match=r"写不进.*路径里有一段是文件.*LORAKIT_CACHE"):
        encode()


def test_clean_takes_everything_that_can_be_made_again(encode, own_cache):
    encode()
    (own_cache / "image" / f".{'a1' * 32}.safetensors.1.tmp").write_bytes(b"half")
    unpacked = own_cache / "datasets" / "0123456789abcdef"
    unpacked.mkdir(parents=True)
    (unpacked / "1.png").write_bytes(b"12345")
    mine = [own_cache / name for name in ("a.txt", "loras/my.safetensors", "datasets/cats/1.png")]
    for path in mine:  # 缓存指到了放着别的东西的文件夹
        path.parent.mkdir(exist_ok=True)
        path.write_text("留着")
    files = [path for path in own_cache.rglob("*") if path.is_file() and "locks" not in path.parts]
    assert cache_why.clean(1) == (0, 0)
    size = sum(path.stat().st_size for path in files if path not in mine)
    assert cache_why.clean(0) == (len(files) - len(mine), size)
    with pytest.raises(LorakitError, match=r"--days 不能小于 0，得到 -1"):
        cache_why.clean(-1)
    assert all(path.is_file() for path in mine) and not unpacked.exists()
    assert encode()[1:] == (6, 7)


def test_every_step_may_draw_a_fresh_sample(encode):
    item = encode()[0].train[0]
    assert item.mean.shape == (16, 8, 8)
    assert (item.std > 0).all()


def test_missing_folder_and_wrong_resolution(config, family):
    from lorakit.config import load_config

    with pytest.raises(ConfigError, match=r"data\.folder"):
        cache.prepare(load_config("tiny-qwen-image"), family)


@pytest.fixture
def why(config, folder):
    def ask(*overrides):
        settings = config(f"data.folder={folder}", "eval.holdout=0", *overrides)
        picture = sorted(folder.glob("*.png"))[0]
        return cache_why.why(settings, open_family(settings), picture).split("\n")

    return ask


def test_why_names_the_field_that_changed(encode, why, other, folder):
    assert ["要编码" in line for line in why()] == [True, True]
    encode("data.trigger=ohwx")
    reused = why("data.trigger=ohwx")
    assert all("会重用" in line for line in reused)

    def changed(*overrides):
        """(图变了什么, 描述变了什么)；重用的是空的。"""
        lines = why("data.trigger=ohwx", *overrides)
        return tuple("" if "会重用" in line else line.split("变了的是 ")[1] for line in lines)

    assert changed("data.resolution=96") == ("训练尺寸", "")
    assert changed("data.trigger=别的词") == ("", "描述")
    assert changed("model.precision=bf16") == ("计算精度", "计算精度")
    named = "编码器（底模换了，或权重文件变了）"
    assert changed(other("vae")) == (named, "")
    assert changed(other("text_encoder")) == ("", named)
    assert changed(other("transformer")) == ("", "")
    picture = sorted(folder.glob("*.png"))[0]
    pixels = np.asarray(Image.open(picture)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(picture)
    assert changed() == ("图片内容", "")
    picture.with_suffix(".txt").write_text("另一句", encoding="utf-8")
    assert changed() == ("图片内容", "描述")
