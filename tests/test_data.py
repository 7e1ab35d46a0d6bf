"""数据：坏文件一个不漏地说清楚；好文件读得对；分桶、裁切、留出、分批。"""

import hashlib
import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from lorakit import data
from lorakit.config.groups import Source
from lorakit.errors import DataError, InspectionWarning

GOOD = "一只红色的猫坐在窗台上"


def picture(seed: int = 0, size=(64, 48), mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """只有头的 PNG：几十个字节，却说自己有 width x height。"""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def add(
    folder: Path, name: str, seed: int = 0, caption: str | bytes | None = GOOD, **options
) -> Path:
    """放一张好图；caption 是 None 就不写描述。"""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower(), path.suffix[1:].upper())
    path.write_bytes(encoded(picture(seed, **options), kind))
    if caption is not None:
        text = caption if isinstance(caption, bytes) else caption.encode()
        path.with_suffix(".txt").write_bytes(text)
    return path


def codes(report: data.Report, severity: str) -> list[str]:
    return [p.code for p in report.problems if p.severity == severity]


JPEG = encoded(picture(size=(256, 256)), "JPEG")
PNG = encoded(picture(size=(256, 256)), "PNG")
WEBP = encoded(picture(size=(256, 256)), "WEBP")
BMP = encoded(picture(size=(256, 256)), "BMP")

BAD_PICTURES = {
    "half.jpg": (JPEG[: len(JPEG) // 2], "picture_broken"),
    "half.png": (PNG[: len(PNG) // 2], "picture_broken"),
    "half.webp": (WEBP[: len(WEBP) // 2], "picture_broken"),
    "half.bmp": (BMP[: len(BMP) // 2], "picture_broken"),
    "head.jpg": (JPEG[:3], "picture_broken"),
    "head.png": (PNG[:20], "picture_broken"),
    "chunk.png": (PNG[:37] + b"\0\1\2\3" + PNG[41:], "picture_broken"),
    "zero.png": (b"", "picture_empty"),
    "text.jpg": (("这不是图片，" * 200).encode(), "picture_text"),
    "page.png": (b"<!DOCTYPE html><html>404</html>", "picture_text"),
    "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "picture_broken"),
    "movie.jpg": (b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(100), "picture_kind"),
    "raw.png": (b"\0\0\0\x18ftypcrx \0\0\0\1crx " + bytes(100), "picture_kind"),
    "new.jpg": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "picture_kind"),
    "scan.jpg": (encoded(picture(), "TIFF"), "picture_kind"),
    "noise.png": (bytes(range(256)), "picture_unknown"),
    "bomb.png": (png_header(30_000, 30_000), "picture_bomb"),
    "big.png": (png_header(12_000, 9_000), "picture_bomb"),  # Pillow 只警告，我们不收
    "dot.png": (encoded(picture(size=(1, 1)), "PNG"), "picture_small"),
    "line.png": (encoded(picture(size=(20_000, 20)), "PNG"), "picture_small"),
    "thin.png": (encoded(picture(size=(200, 31)), "PNG"), "picture_small"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_picture_is_one_error(tmp_path, name):
    content, code = BAD_PICTURES[name]
    add(tmp_path, "good.png")
    path = tmp_path / name
    path.write_bytes(content)
    path.with_suffix(".txt").write_text(GOOD, encoding="utf-8")
    records, report = data.inspect(tmp_path)
    assert [r.path.name for r in records] == ["good.png"]
    assert [(p.code, p.path) for p in report.errors] == [(code, path)]
    assert name in report.text() and report.errors[0].mend in report.text()
    assert "共 2 张图，可用 1 张" in report.text()
    if code != "picture_small":
        with pytest.raises(DataError, match=name):
            data.read_image(path)
    with pytest.raises(DataError) as caught:
        data.load_records(tmp_path)
    assert name in str(caught.value) and "lorakit check" in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_random_damage_never_escapes(tmp_path, kind):
    """随机改几个字节：要么读出来，要么是 DataError，不会是别的。"""
    good, chance = (
        encoded(picture(), kind, **({"exif": exif(6)} if kind != "BMP" else {})),
        random.Random(0),
    )
    path = tmp_path / "a.png"
    for _ in range(150):
        bad = bytearray(good[: chance.choice([len(good), chance.randrange(len(good))])])
        for _ in range(chance.randint(1, 6) if bad else 0):
            bad[chance.randrange(min(len(bad), chance.choice([80, len(bad)])))] = chance.randrange(
                256
            )
        path.write_bytes(bytes(bad))
        try:
            assert data.read_image(path).mode == "RGB"
        except DataError as error:
            assert "怎么改" in str(error)


def test_a_warning_points_at_the_caller_and_has_a_type(tmp_path):
    for i in range(4):
        add(tmp_path, f"{i}.png", i)
    source = Source(folder=tmp_path)
    with pytest.warns(InspectionWarning, match="体检有 1 个警告") as told:
        data.load_sources([source])  # 隔着一个函数
    assert told[0].filename == __file__


BAD_CAPTIONS = {
    "gbk": (GOOD.encode("gbk"), "caption_encoding", "GBK"),
    "utf16": (GOOD.encode("utf-16"), "caption_encoding", "UTF-16"),
    "utf16be": (b"\xfe\xff" + GOOD.encode("utf-16-be"), "caption_encoding", "UTF-16"),
    "utf16 no bom": ("a red cat".encode("utf-16-le"), "caption_encoding", "UTF-16"),
    "cp1252": ("a café’s cat, naïve “style”".encode("cp1252"), "caption_encoding", "认不出"),
    "latin": ("un café, déjà vu à côté".encode("latin-1"), "caption_encoding", "认不出"),
    "empty": (b"", "caption_empty", "空"),
    "blank": (" \n\t\u3000\r\n".encode(), "caption_empty", "空"),
    "bom only": (b"\xef\xbb\xbf", "caption_empty", "空"),
    "missing": (None, "caption_missing", "a.txt"),
}


@pytest.mark.parametrize("name", BAD_CAPTIONS)
def test_bad_caption_is_one_error(tmp_path, name):
    content, code, words = BAD_CAPTIONS[name]
    add(tmp_path, "a.png", caption=content)
    records, report = data.inspect(tmp_path)
    assert not records and [p.code for p in report.errors] == [code]
    assert words in report.text()
    if code != "caption_missing":
        with pytest.raises(DataError, match=r"a\.txt"):
            data.read_caption(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("\ufeff一只猫\r\n".encode(), "一只猫"),
        ("一只猫\n\n坐着。\n很高兴".encode(), "一只猫，坐着。很高兴"),
        (b"  a red\tcat \n on a mat,\nhappy", "a red cat, on a mat, happy"),
        ("猫 🐱\u200b".encode(), "猫 🐱"),
    ],
)
def test_caption_is_one_clean_line(tmp_path, content, expected):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert data.read_caption(path) == expected


def test_folder_problems(tmp_path):
    file = tmp_path / "file.png"
    file.write_bytes(PNG)
    empty = tmp_path / "empty"
    empty.mkdir()
    gifs = tmp_path / "gifs"
    gifs.mkdir()
    (gifs / "a.gif").write_bytes(encoded(picture(), "GIF"))
    for folder, code in [(tmp_path / "没有", "folder_missing"), (file, "folder_is_file"),
                         (empty, "no_pictures"), (gifs, "not_used no_pictures")]:  # fmt: skip
        records, report = data.inspect(folder)
        assert not records and codes(report, "error") == code.split()
        with pytest.raises(DataError):
            data.load_records(folder)


def test_good_folder_with_hard_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("./images")
    hard = ["a.b.c.png", "中文 名字.jpg", "表情🐱.webp", "大写.JPG", "x.PNG", "b.bmp"]
    hard += ["里面/更里面/c.jpeg", "x" * 200 + ".png"]
    for i, name in enumerate(hard):
        add(folder, name, i, f"{GOOD}{i}")
    (folder / "x.txt").rename(folder / "x.TXT")
    # 苹果电脑写的文件名：“が”是两个字符，描述的名字是一个字符
    add(folder, "か\u3099.png", 9, caption=None)
    (folder / "が.txt").write_text("假名", encoding="utf-8")
    records, report = data.inspect("./images")
    assert not report.problems and "没有发现问题" in report.text()
    assert {str(r.path.relative_to("images")) for r in records} == {*hard, "か\u3099.png"}
    assert {r.caption for r in records} == {*(f"{GOOD}{i}" for i in range(len(hard))), "假名"}
    assert data.inspect(folder)[0] == records  # 顺序固定
    for record in records:
        assert record.size == data.read_image(record.path).size == (64, 48)
        assert record.digest == hashlib.sha256(record.path.read_bytes()).hexdigest()


def test_ignored_and_unused_files(tmp_path):
    add(tmp_path, "a.png")
    for name in [
        ".DS_Store",
        "._a.png",
        "Thumbs.db",
        "desktop.ini",
        "__MACOSX/a.png",
        ".git/b.png",
    ]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert not data.inspect(tmp_path)[1].problems
    # 一张图的另一份（备份、RAW、工程文件），说明书、许可：不是没有用到的数据
    fine = ["README.md", "LICENSE.txt", "readme_1.txt", "说明.txt", "a.psd"]
    fine += ["a.CR2", "a.mov", "a.png.bak", "a.png~"]
    unused = ["b.gif", "c.tiff", "d.jxl", "x.png.bak", "y.jpg~", "metadata.jsonl", "a.caption"]
    unused += ["clip.mp4", "raw.NEF", "w.tags", "lonely.txt", "v.3gp", "p.jpe", "r.RAF", "s.tga"]
    unused += ["captions.xlsx", "描述.docx", "metadata.yaml", "torn.zip", "x.7z", "y.tar.gz"]
    for name in [*unused, *fine]:
        (tmp_path / name).write_bytes(b"x")
    records, report = data.inspect(tmp_path)
    assert len(records) == 1 and not report.warnings
    assert {p.path.name for p in report.errors} == set(unused)
    assert all("移走" in p.mend for p in report.errors)
    with pytest.raises(DataError, match="没有用到"):
        data.load_records(tmp_path)
    for name in unused:
        (tmp_path / name).unlink()
    records, report = data.inspect(tmp_path)
    assert len(records) == 1 and not report.errors and codes(report, "note") == ["others"]
    assert f"{len(fine)} 个" in report.notes[0].reason


def test_pairing(tmp_path):
    add(tmp_path, "a.png", 1)
    add(tmp_path, "a.jpg", 2)  # 和 a.png 共用 a.txt
    add(tmp_path, "b.png", 3, "二")
    add(tmp_path, "copy.png", 3, "三")
    (tmp_path / "lonely.txt").write_text("没有图", encoding="utf-8")
    add(tmp_path, "c.png", 4, caption=None)
    (tmp_path / "c.png.txt").write_text("名字多写了一截", encoding="utf-8")
    records, report = data.inspect(tmp_path)
    assert [r.path.name for r in records] == ["b.png", "copy.png"]
    wrong = ["caption_missing", "caption_orphan", "caption_shared"]
    assert sorted(codes(report, "error")) == wrong
    assert sorted(codes(report, "warning")) == ["caption_orphan", "duplicate"]  # 已经指名的那一份
    assert "把 c.png.txt 改名为 c.txt" in report.text()
    (tmp_path / "c.png.txt").rename(tmp_path / "c.txt.txt")
    assert "把 c.txt.txt 改名为 c.txt" in data.inspect(tmp_path)[1].text()
    assert "a.jpg、a.png" in report.text() and "和 b.png 是同一张图" in report.text()


def test_a_wrong_encoding_points_to_the_automatic_mend(tmp_path):
    add(tmp_path, "a.png", 1, GOOD.encode("gbk"))
    assert "lorakit check 文件夹 --fix 替你换成 UTF-8" in data.inspect(tmp_path)[1].text()
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 rouge")  # 认不出的编码换不了，就不这么说
    assert "--fix" not in data.inspect(tmp_path)[1].text()


def test_whole_set_warnings(tmp_path):
    for i in range(4):
        add(tmp_path, f"{i}.png", i)
    assert codes(data.inspect(tmp_path)[1], "warning") == ["caption_same"]
    (tmp_path / "0.txt").write_text("墨线，一只猫", encoding="utf-8")
    _, report = data.inspect(tmp_path, "墨线")
    assert codes(report, "warning") == ["trigger_missing"]
    assert "4 份描述里有 3 份没有触发词“墨线”：1.png、2.png、3.png" in report.text()
    assert codes(data.inspect(tmp_path, "别的")[1], "note") == ["trigger_missing"]
    assert [r.caption for r in data.load_records(tmp_path, "墨线")][:2] == [
        "墨线，一只猫",
        "墨线，" + GOOD,
    ]
    assert [r.caption for r in data.inspect(tmp_path, "墨线")[0]][1] == GOOD  # 检查不改描述


@pytest.mark.parametrize(
    ("caption", "trigger", "expected"),
    [
        ("a cat", "sks", "sks, a cat"),
        ("a sks cat", "sks", "a sks cat"),
        ("he asks", "sks", "sks, he asks"),
        ("一只猫", "sks", "sks，一只猫"),
        ("画sks风", "sks", "画sks风"),
        ("水墨风格的猫", "水墨风格", "水墨风格的猫"),
        ("a cat", " ", "a cat"),
        ("a (x) cat", "(x)", "a (x) cat"),
    ],
)
def test_apply_trigger(caption, trigger, expected):
    assert data.apply_trigger(caption, trigger) == expected
    assert data.apply_trigger(expected, trigger) == expected


def test_shape_and_size_warnings(tmp_path, monkeypatch):
    add(tmp_path, "long.png", 0, size=(400, 64))
    assert codes(data.inspect(tmp_path)[1], "warning") == ["ratio"]
    monkeypatch.setattr("lorakit.data.limits.LARGE", 400 * 64 - 1)
    records, report = data.inspect(tmp_path)
    assert codes(report, "warning") == ["ratio", "picture_large"] and len(records) == 1


def test_links(tmp_path):
    folder = tmp_path / "images"
    add(folder, "a.png", 0)
    outside = add(tmp_path / "elsewhere", "o.png", 1)
    (folder / "out.png").symlink_to(outside)
    (folder / "out.txt").symlink_to(outside.with_suffix(".txt"))
    (folder / "gone.png").symlink_to(tmp_path / "nothing.png")
    (folder / "gone.txt").write_text("描述", encoding="utf-8")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "loop.txt").write_text("描述", encoding="utf-8")
    (folder / "inside.png").symlink_to(folder / "a.png")
    (folder / "inside.txt").write_text("里面的链接可以用", encoding="utf-8")
    (folder / "round").symlink_to(folder)
    records, report = data.inspect(folder)
    assert [r.path.name for r in records] == ["a.png", "inside.png"]
    found = {(p.path.name, p.code) for p in report.problems}
    assert found == {
        ("out.png", "link_outside"), ("out.txt", "link_outside"), ("gone.png", "link_broken"),
        ("loop.png", "link_broken"), ("inside.png", "duplicate"), ("round", "link_folder"),
    }  # fmt: skip
    linked = tmp_path / "linked"
    linked.symlink_to(folder)  # 文件夹本身是链接没有关系
    assert len(data.inspect(linked)[0]) == 2


def test_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(GOOD, encoding="utf-8")
    assert codes(data.inspect(tmp_path)[1], "error") == ["not_a_file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root 什么都读得到")
def test_permission(tmp_path):
    add(tmp_path, "a.png").chmod(0)
    add(tmp_path, "b.png", 1).with_suffix(".txt").chmod(0)
    add(tmp_path, "inner/c.png", 2)
    (tmp_path / "inner").chmod(0)
    try:
        records, report = data.inspect(tmp_path)
        assert not records and codes(report, "error") == ["permission"] * 3
    finally:
        (tmp_path / "inner").chmod(0o700)


def test_permission_error_is_told(tmp_path, monkeypatch):
    """root 也能跑的那一半：系统说没有权限时，报告里有它。"""
    add(tmp_path, "a.png")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    report = data.inspect(tmp_path)[1]
    assert {(p.path.name, p.code) for p in report.errors} == {
        ("a.png", "permission"),
        ("a.txt", "permission"),
    }


def test_report_shortens_long_groups(tmp_path):
    for i in range(25):
        add(tmp_path, f"{i:02}.png", i, caption=None)
    (tmp_path / "zero.png").write_bytes(b"")
    _, report = data.inspect(tmp_path)
    text = report.text()
    assert "共 26 张图，可用 0 张；错误 27 个，警告 0 个，说明 0 个。" in text
    assert "没有描述，26 张：00.png、01.png" in text and text.count("没有描述") == 1
    assert "zero.png：文件是空的" in text  # 别的种类不会被挤掉
    assert len(text.splitlines()) < 8


# ---- 读图 ----


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    path = tmp_path / "a.png"
    stored = picture(size=(64, 48))
    stored.save(path, exif=exif(orientation))
    (tmp_path / "a.txt").write_text(GOOD, encoding="utf-8")
    image = data.read_image(path)
    array, shown = np.asarray(stored), np.asarray(image)
    # EXIF 规范：第 0 行、第 0 列在画面里的位置
    expected = {
        1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1],
        5: array.swapaxes(0, 1), 6: np.rot90(array, -1), 7: array[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(array),
    }[orientation]  # fmt: skip
    assert np.array_equal(shown, expected)
    records, report = data.inspect(tmp_path)
    assert records[0].size == image.size == ((64, 48) if orientation < 5 else (48, 64))
    assert codes(report, "note") == ([] if orientation == 1 else ["rotated"])


def notes_of(tmp_path: Path) -> list[str]:
    (tmp_path / "a.txt").write_text(GOOD, encoding="utf-8")
    records, report = data.inspect(tmp_path)
    assert len(records) == 1 and not report.errors
    assert set(codes(report, "warning")) <= {"picture_blank"}  # 有的测试图只有一种颜色
    return codes(report, "note")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_alpha_becomes_white(tmp_path, mode):
    image = picture().convert("L" if mode == "LA" else "RGB")
    if mode in ("RGBA", "LA"):
        clear = Image.new("L", image.size, 255)
        clear.paste(0, (0, 0, 32, 48))
        image.putalpha(clear)
        options = {}
    elif mode == "P":
        image = image.quantize(16)
        image.paste(3, (0, 0, 32, 48))
        options = {"transparency": 3}
    else:
        image.paste((1, 2, 3), (0, 0, 32, 48))
        options = {"transparency": (1, 2, 3)}
    image.save(tmp_path / "a.png", **options)
    array = np.asarray(data.read_image(tmp_path / "a.png"))
    assert (array[:, :32] == 255).all() and array[:, 32:].std() > 10
    assert notes_of(tmp_path) == ["alpha"]


def test_half_transparent_mixes_with_white(tmp_path):
    Image.new("RGBA", (64, 64), (0, 0, 0, 128)).save(tmp_path / "a.webp", lossless=True)
    assert abs(int(np.asarray(data.read_image(tmp_path / "a.webp")).mean()) - 127) <= 1


def test_opaque_alpha_is_not_mentioned(tmp_path):
    picture(mode="RGBA").save(tmp_path / "a.png")
    assert notes_of(tmp_path) == []


def test_sixteen_bit_keeps_brightness(tmp_path):
    grey = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    Image.fromarray(grey).save(tmp_path / "a.png")
    array = np.asarray(data.read_image(tmp_path / "a.png"))
    assert array.shape == (64, 64, 3)
    assert np.abs(array[..., 0] - grey / 257).max() <= 0.5
    assert notes_of(tmp_path) == ["sixteen"]


def test_cmyk(tmp_path):
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red = np.asarray(data.read_image(tmp_path / "a.jpg"))[32, 32]
    assert red[0] > 245 and red[1] < 10 and red[2] < 10
    assert notes_of(tmp_path) == ["cmyk"]


def test_cmyk_with_unusable_profile_still_opens(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (b"broken", srgb):  # 坏的；不是给 CMYK 用的
        image = Image.new("CMYK", (64, 64), (255, 0, 255, 0))
        image.save(tmp_path / "a.jpg", icc_profile=profile)
        green = np.asarray(data.read_image(tmp_path / "a.jpg"))[32, 32]
        assert green[1] > 245 and green[0] < 10


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "PNG"])
def test_animation_uses_first_frame(tmp_path, kind):
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    path = tmp_path / ("a.webp" if kind == "WEBP" else "a.png")  # 改了后缀的 GIF 也读得出
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], duration=100, **options)
    assert data.read_image(path).getpixel((5, 5)) == (255, 0, 0)
    assert notes_of(tmp_path) == ["animation"]


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr"])
def test_other_modes_become_rgb(tmp_path, mode):
    image = picture(mode=mode)
    path = tmp_path / ("a.jpg" if mode == "YCbCr" else "a.png")
    image.save(path, **({"quality": 100, "subsampling": 0} if mode == "YCbCr" else {}))
    read = data.read_image(path)
    assert read.mode == "RGB" and notes_of(tmp_path) == []
    assert np.abs(np.asarray(read, int) - np.asarray(image.convert("RGB"), int)).mean() < 3


def test_data_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, lorakit.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(("size", "code"), [(5_000_000, ""), (200_000_000, "picture_bomb")])
@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_what_a_png_carries_is_large_but_bounded(tmp_path, kind, size, code):
    """Photoshop 的编辑历史常有几 MB；解开有两百 MB 的是炸弹。"""
    raw = encoded(picture(), "PNG")
    body = chunk(kind, b"x\0\0" + zlib.compress(bytes(size), 9))
    (tmp_path / "a.png").write_bytes(raw[:33] + body + raw[33:])
    (tmp_path / "a.txt").write_text("一只猫", encoding="utf-8")
    assert codes(data.inspect(tmp_path)[1], "error") == ([code] if code else [])


def test_a_file_too_large_for_memory_is_not_read(tmp_path):
    for name in ("a.png", "a.txt"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(3 << 30)  # 没有真的占盘
    assert set(codes(data.inspect(tmp_path)[1], "error")) == {"file_large"}
