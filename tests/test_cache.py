"""缓存：永远不旧；坏一个字节也会发现；第二次不再编码。"""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lorakit import cache
from lorakit.errors import ConfigError
from lorakit.families import open_family


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
    assert encode("data.resolution=64")[1:] == (6, 0)


def test_another_encoder_is_noticed(encode, family, tmp_path):
    encode()
    other = tmp_path / "other"
    shutil.copytree(family.folder, other)
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-7] ^= 1
    weights.write_bytes(data)
    assert encode(f"model.path={other}")[1:] == (6, 0)


@pytest.mark.parametrize("place", [3, 200, -1, -100])
def test_a_poisoned_byte_is_detected(encode, own_cache, place):
    encode()
    path = sorted((own_cache / "image").glob("*.safetensors"))[0]
    data = bytearray(path.read_bytes())
    data[place] ^= 0x55
    path.write_bytes(data)
    assert encode()[1] == 1


def test_every_step_may_draw_a_fresh_sample(encode):
    item = encode()[0].train[0]
    assert item.mean.shape == (16, 16, 16)
    assert (item.std > 0).all()


def test_missing_folder_and_wrong_resolution(config, family):
    from lorakit.config import load_config

    with pytest.raises(ConfigError, match=r"data\.folder"):
        cache.prepare(load_config("tiny-qwen-image"), family)


def test_why_looks_with_the_trigger_written_in(encode, config, family, folder):
    from lorakit import cache_tools

    encode("data.trigger=ohwx")
    settings = config(f"data.folder={folder}", "data.trigger=ohwx")
    said = cache_tools.why(settings, family, sorted(folder.glob("*.png"))[0])
    assert said.count("会重用") == 2
