"""手机的照片：HEIC 与 AVIF 的方向只转一次，颜色对，坏的说清楚，动不了别人的东西。"""

import io
import struct
import threading
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from lorakit.data import inspect, load_records, read_image
from lorakit.data import read as data_read
from lorakit.data.fix import fix
from lorakit.errors import DataError
from lorakit.lab import mine

LOSSLESS = {"heic": {"quality": -1, "chroma": 444, "matrix_coefficients": 0},
            "avif": {"quality": 100, "subsampling": "4:4:4"}}  # fmt: skip


def shape(size=(96, 64)) -> Image.Image:
    """四个角四种颜色：转没转、翻没翻，一看便知。"""
    image = Image.new("RGB", size, (120, 120, 120))
    w, h = size[0] // 2, size[1] // 2
    for corner, color in (((0, 0), "red"), ((w, 0), "lime"), ((0, h), "blue")):
        image.paste(color, (*corner, corner[0] + w, corner[1] + h))
    return image


def save(image: Image.Image, path: Path, **options) -> Path:
    kind = "avif" if path.suffix.lower() == ".avif" else "heic"
    image.save(path, "AVIF" if kind == "avif" else "HEIF", **{**LOSSLESS[kind], **options})
    path.with_suffix(".txt").write_text("四种颜色", encoding="utf-8")
    return path


def near(path: Path, want, tolerance: int = 4) -> bool:
    return np.abs(np.asarray(read_image(path), int) - np.asarray(want, int)).max() <= tolerance


def boxes(content: bytes, kind: bytes, body: bytes) -> bytes:
    """换掉文件里的一个盒子（大小不变）。"""
    place = content.index(kind)
    return content[: place + 4] + body + content[place + 4 + len(body) :]


@pytest.mark.parametrize("name", ["a.heic", "b.HEIC", "c.heif", "d.HIF", "e.avif", "f.AVIF"])
def test_every_spelling_is_a_picture(tmp_path, name):
    path = save(shape(), tmp_path / name)
    records, report = inspect(tmp_path)
    assert [r.path for r in records] == [path] and not report.problems
    assert records[0].size == (96, 64) and near(path, shape())
    assert len(load_records(tmp_path)) == 1


@pytest.mark.parametrize("suffix", ["heic", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_once(tmp_path, suffix, orientation):
    """存的时候 EXIF 方向写进旋转盒：看图软件只转一次，我们也是。"""
    tags, path = Image.Exif(), tmp_path / f"a.{suffix}"
    tags[0x0112] = orientation
    save(shape(), path, exif=tags.tobytes())
    array = np.asarray(shape())
    want = {
        1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1],
        5: array.swapaxes(0, 1), 6: np.rot90(array, -1), 7: array[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(array),
    }[orientation]  # fmt: skip
    assert near(path, want)
    assert inspect(tmp_path)[0][0].size == want.shape[1::-1]


def test_a_rotation_box_without_exif_and_exif_without_a_box(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6
    content = save(shape(), tmp_path / "a.heic", exif=tags.tobytes()).read_bytes()
    # 苹果的规矩：旋转盒说了算，EXIF 里写的不再转
    (tmp_path / "a.heic").write_bytes(
        content.replace(b"\x01\x12\0\3\0\0\0\1\0\6", b"\x01\x12\0\3\0\0\0\1\0\1")
    )
    assert near(tmp_path / "a.heic", np.rot90(np.asarray(shape()), -1))
    assert b"irot" in content
    (tmp_path / "a.heic").write_bytes(content.replace(b"irot", b"free"))
    assert near(tmp_path / "a.heic", shape())


@pytest.mark.parametrize("suffix", ["heic", "avif"])
@pytest.mark.parametrize(("codes", "matrix"), [((12, 13), "P3"), ((9, 13), "2020"), ((1, 13), "")])
def test_colour_numbers_instead_of_a_profile(tmp_path, suffix, codes, matrix):
    from test_color import FROM_2020, FROM_P3, PATCH, converted

    path = tmp_path / f"a.{suffix}"
    flat = Image.new("RGB", (64, 64), PATCH)
    if suffix == "heic":
        save(flat, path, color_primaries=codes[0], transfer_characteristics=codes[1])
        assert pillow_heif.open_heif(path).info["nclx_profile"]["color_primaries"] == codes[0]
    else:
        content = save(flat, path).read_bytes()
        place = content.index(b"colrnclx") + 8
        path.write_bytes(content[:place] + struct.pack(">HH", *codes) + content[place + 4 :])
    want = converted({"P3": FROM_P3, "2020": FROM_2020}[matrix]) if matrix else PATCH
    assert np.abs(np.subtract(read_image(path).getpixel((9, 9)), want)).max() <= 3
    codes_said = [p.code for p in inspect(tmp_path)[1].problems if p.code != "picture_blank"]
    assert codes_said == (["color"] if matrix else [])


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_photos_are_told(tmp_path, transfer):
    save(shape(), tmp_path / "a.hif", color_primaries=9, transfer_characteristics=transfer)
    assert [p.code for p in inspect(tmp_path)[1].problems] == ["picture_hdr"]


def test_ten_bits(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 64), (64, 1)).astype(np.uint16)
    deep = pillow_heif.from_bytes("RGB;16", (64, 64), np.stack([ramp] * 3, -1).tobytes())
    deep.save(tmp_path / "a.heic", quality=-1, chroma=444, matrix_coefficients=0)
    assert (
        pillow_heif.open_heif(tmp_path / "a.heic", convert_hdr_to_8bit=False).info["bit_depth"]
        == 10
    )
    assert np.abs(np.asarray(read_image(tmp_path / "a.heic"))[..., 0] - ramp / 257).max() <= 1.5


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_transparency(tmp_path, suffix):
    image = shape().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    path = save(image, tmp_path / f"a.{suffix}")
    want = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    assert near(path, want, 6)
    assert [p.code for p in inspect(tmp_path)[1].problems] == ["alpha"]


def test_several_in_one_file(tmp_path):
    path = tmp_path / "a.heic"
    file = pillow_heif.from_pillow(Image.new("RGB", (64, 64), "red"))
    file.add_from_pillow(shape())
    file.save(path, quality=-1, chroma=444, matrix_coefficients=0, primary_index=1)
    (tmp_path / "a.txt").write_text("四种颜色", encoding="utf-8")
    assert near(path, shape())  # 主图是第二张
    _, report = inspect(tmp_path)
    assert [p.code for p in report.problems] == ["several"] and "只用主图" in report.text()


def test_moving_avif_uses_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:], duration=100)
    red = read_image(tmp_path / "a.avif").getpixel((5, 5))
    assert red[0] > 250 and red[2] < 5
    (tmp_path / "a.txt").write_text("红", encoding="utf-8")
    assert "animation" in [p.code for p in inspect(tmp_path)[1].notes]


def test_a_thumbnail_and_a_live_photo_beside_it(tmp_path):
    path = save(shape((512, 384)), tmp_path / "IMG_1.HEIC", thumbnails=[64])
    (tmp_path / "IMG_1.MOV").write_bytes(b"\0\0\0\x14ftypqt  " + bytes(99))
    (tmp_path / "IMG_1.AAE").write_bytes(b"<?xml")
    records, report = inspect(tmp_path)
    assert records[0].size == (512, 384) and near(path, shape((512, 384)))
    assert [p.code for p in report.problems] == ["others"] and "IMG_1.MOV" in report.text()


def test_a_wrong_name_and_fix(tmp_path):
    save(shape(), tmp_path / "a.heic").rename(tmp_path / "a.jpg")  # 手机传来常这样
    (tmp_path / "b.heic").write_bytes((tmp_path / "a.jpg").read_bytes()[:200])
    Image.new("RGBA", (64, 64), (1, 2, 3, 99)).save(tmp_path / "c.avif")
    for name in "bc":
        (tmp_path / f"{name}.txt").write_text(f"第 {name} 张", encoding="utf-8")
    kept = (tmp_path / "c.avif").read_bytes()
    assert near(tmp_path / "a.jpg", shape())
    assert "移走" in fix(tmp_path)
    assert not (tmp_path / "b.heic").exists() and (tmp_path / "c.avif").read_bytes() == kept


def test_a_huge_one_is_refused_before_it_is_decoded(tmp_path):
    content = save(shape(), tmp_path / "a.heic").read_bytes()
    place = content.index(b"ispe") + 8
    huge = content[:place] + struct.pack(">II", 20000, 20000) + content[place + 8 :]
    (tmp_path / "a.heic").write_bytes(huge)
    with pytest.raises(DataError, match="炸弹"):
        read_image(tmp_path / "a.heic")


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_any_damage_is_one_sentence(tmp_path, suffix):
    rng = np.random.default_rng(0)
    good = save(shape(), tmp_path / f"a.{suffix}", exif=Image.Exif().tobytes()).read_bytes()
    for _ in range(300):
        bad = bytearray(good[: rng.choice([len(good), rng.integers(len(good))])])
        for _ in range(rng.integers(1, 6) if bad else 0):
            bad[rng.integers(min(len(bad), rng.choice([500, len(bad)])))] = rng.integers(256)
        (tmp_path / f"a.{suffix}").write_bytes(bytes(bad))
        try:
            assert read_image(tmp_path / f"a.{suffix}").mode == "RGB"
        except DataError as error:
            assert "怎么改" in str(error)


def test_what_is_not_read_is_named(tmp_path):
    for brand, words in ((b"hevc", "HEIC 连拍"), (b"crx ", "CR3"), (b"qt  ", "视频")):
        (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x14ftyp" + brand + bytes(200))
        with pytest.raises(DataError, match=words):
            read_image(tmp_path / "a.jpg")


def test_without_an_avif_decoder(tmp_path, monkeypatch):
    save(shape(), tmp_path / "a.avif")
    monkeypatch.setattr(data_read, "FORMATS", ("JPEG", "PNG"))
    monkeypatch.setattr(data_read.features, "check", lambda name: False)
    with pytest.raises(DataError, match="Pillow 没带"):
        read_image(tmp_path / "a.avif")


def test_many_threads(tmp_path):
    paths = [save(shape((96 + 2 * i, 64)), tmp_path / f"{i}.heic") for i in range(8)]
    first = [read_image(path).tobytes() for path in paths]
    results = []
    threads = [
        threading.Thread(target=lambda: results.append([read_image(p).tobytes() for p in paths]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [first] * 4


def test_your_own_picture_may_be_a_phone_photo(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_NOTES", str(tmp_path / "notes"))
    file = io.BytesIO()
    shape((64, 64)).save(file, "HEIF", **LOSSLESS["heic"])
    (tmp_path / "x.upload").write_bytes(file.getvalue())
    got = np.asarray(mine.my_picture(tmp_path / "x.upload"), int)
    assert np.abs(got[20, 20] - [255, 0, 0]).max() <= 4 and ".heic" in mine.ACCEPT
