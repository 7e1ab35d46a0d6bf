"""看过的图不再解码；记录坏了、写不进都不影响结果。"""

import threading

import numpy as np
import pytest
from PIL import Image

from lorakit.data import inspect, seen


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 256, (48, 40 + i, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"第 {i} 张", encoding="utf-8")
    Image.new("RGBA", (48, 48), (9, 9, 9, 99)).save(tmp_path / "5.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    return tmp_path


@pytest.fixture
def decoded(monkeypatch):
    """真的解码了哪些文件。"""
    names, real = [], seen.decode

    def decode(path, data):
        names.append(path.name)
        return real(path, data)

    monkeypatch.setattr(seen, "decode", decode)
    return names


def look_again(folder, decoded):
    """再检查一遍：(报告里的话, 解码了哪些)。"""
    decoded.clear()
    records, report = inspect(folder)
    return (records, [r.look for r in records], report.text()), sorted(decoded)


def test_only_new_and_broken_pictures_are_decoded(folder, decoded):
    first, names = look_again(folder, decoded)
    assert names == [*(f"{i}.png" for i in range(6)), "bad.png"]
    again, names = look_again(folder, decoded)
    assert again == first and names == ["bad.png"]  # 坏的每次都重新看，重新说
    (folder / "0.png").rename(folder / "新名字.png")
    Image.new("RGB", (50, 50), "red").save(folder / "1.png")
    assert look_again(folder, decoded)[1] == ["1.png", "bad.png"]


def test_a_new_pillow_looks_again(folder, decoded, monkeypatch):
    look_again(folder, decoded)
    monkeypatch.setattr(seen, "VERSION", "another")
    assert len(look_again(folder, decoded)[1]) == 7


@pytest.mark.parametrize("part", range(8))
def test_a_damaged_memory_changes_nothing(folder, decoded, own_cache, part):
    first, _ = look_again(folder, decoded)
    path = own_cache / seen.FILE
    content = bytearray(path.read_bytes())
    place = part * len(content) // 8
    content[place : place + 200] = bytes(byte ^ 0x5A for byte in content[place : place + 200])
    path.write_bytes(content)
    assert look_again(folder, decoded)[0] == first
    look_again(folder, decoded)
    assert look_again(folder, decoded) == (first, ["bad.png"])  # 坏的记录已经换成好的


def test_a_row_that_lies_is_not_believed(folder, decoded, own_cache):
    first, _ = look_again(folder, decoded)
    path = own_cache / seen.FILE
    path.write_text(path.read_text().replace("48]", "64]"))
    again, names = look_again(folder, decoded)
    assert again == first and len(names) == 7


def test_garbage_in_its_place_is_replaced(folder, decoded, own_cache):
    own_cache.joinpath(seen.FILE).write_bytes(b"not a list at all\xff\t\t" * 99)
    first, _ = look_again(folder, decoded)
    assert look_again(folder, decoded) == (first, ["bad.png"])


def test_without_a_place_to_write(folder, decoded, tmp_path_factory, monkeypatch):
    first, _ = look_again(folder, decoded)
    blocked = tmp_path_factory.mktemp("blocked") / "file"
    blocked.write_text("我是文件")
    monkeypatch.setenv("LORAKIT_CACHE", str(blocked / "cache"))
    again, names = look_again(folder, decoded)
    assert again == first and len(names) == 7


def test_a_file_that_cannot_be_read_or_written_is_left_alone(folder, decoded, own_cache):
    (own_cache / seen.FILE).mkdir()
    first, _ = look_again(folder, decoded)
    assert look_again(folder, decoded)[0] == first and (own_cache / seen.FILE).is_dir()


def test_two_that_overlap_remember_both(folder, decoded, own_cache):
    with seen.Album() as one, seen.Album() as other:
        one.see(folder / "0.png")
        other.see(folder / "1.png")
    with (own_cache / seen.FILE).open("a") as file:
        file.write("1 half a li")  # 写到一半被杀掉：后面添的不受它连累
    assert look_again(folder, decoded)[1] == ["2.png", "3.png", "4.png", "5.png", "bad.png"]
    assert look_again(folder, decoded)[1] == ["bad.png"]


def test_several_at_once(folder, decoded):
    first, _ = look_again(folder, decoded)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(inspect(folder)[0])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [first[0]] * 4
