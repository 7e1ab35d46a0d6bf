"""颜色：读到的和看图软件里看到的一样；本来就是 sRGB 的一个像素也不动。"""

import base64
import hashlib
import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from lorakit import cache
from lorakit.data import html, inspect, read_image, seen
from lorakit.data import read as data_read
from lorakit.data.color import to_rgb
from lorakit.data.fix import fix, undo
from lorakit.data.huggingface import write_dataset
from lorakit.data.mask import read_alpha
from lorakit.lab import mine

PATCH = (200, 80, 60)
ADOBE = (
    (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)
)  # fmt: skip
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
PROPHOTO = ((0.79767, 0.28804, 0.0), (0.13519, 0.71187, 0.0), (0.03134, 0.00009, 0.82491))


def icc(columns=None, gamma: float = 2.2) -> bytes:
    """一份 v2 配置：三原色的矩阵配置，或（没有 columns）灰度配置。与被测的代码无关。"""

    def fixed(*values):
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    text = b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(80)
    tags = {b"desc": text, b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)}
    if columns:
        for name, column in zip((b"r", b"g", b"b"), columns, strict=True):
            tags[name + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*column)
            tags[name + b"TRC"] = curve
    else:
        tags[b"kTRC"] = curve
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    space = b"RGB " if columns else b"GRAY"
    head = b"lcms\2\x10\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += fixed(0.9642, 1, 0.8249) + bytes(48)
    whole = head + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole) + 4) + whole


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def expected(image: Image.Image, profile: bytes) -> np.ndarray:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    target = ImageCms.createProfile("sRGB")
    return np.asarray(ImageCms.profileToProfile(image, source, target, outputMode="RGB"))


def noise(mode: str = "RGB", size=(64, 48)) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)


def with_chunks(png: Path, *chunks: tuple[bytes, bytes]):
    """在 IHDR 后面插几块。"""
    content = png.read_bytes()
    made = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    png.write_bytes(content[:33] + made + content[33:])


def said(path: Path) -> list[str]:
    path.with_suffix(".txt").write_text("一张花纹", encoding="utf-8")
    records, report = inspect(path.parent)
    assert len(records) == 1 and not report.errors
    return [p.code for p in report.problems if p.code != "picture_blank"]


def test_the_patch_in_adobe_rgb(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64), PATCH).save(path, icc_profile=icc(ADOBE))
    assert read_image(path).getpixel((9, 9)) == (230, 79, 56)


@pytest.mark.parametrize("columns", [ADOBE, P3, PROPHOTO])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "avif", "heic"])
def test_rgb_profiles_in_every_format(tmp_path, columns, suffix):
    path, profile = tmp_path / f"a.{suffix}", icc(columns)
    noise().save(path, quality=100, icc_profile=profile)
    stored = Image.open(path).convert("RGB")
    assert np.array_equal(np.asarray(read_image(path)), expected(stored, profile))
    assert np.abs(np.asarray(read_image(path), int) - np.asarray(stored, int)).max() > 5
    assert said(path) == ["color"]


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16"])
@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
def test_grey_profiles(tmp_path, mode, gamma):
    path, profile = tmp_path / "a.png", icc(gamma=gamma)
    if mode == "I;16":
        grey = noise("L")
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = noise("L").convert(mode)
        grey = image.convert("L")
    if mode == "LA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path, icc_profile=profile)
    want = expected(grey, profile).astype(float)
    if mode == "LA":
        alpha = np.asarray(image.getchannel("A"))[..., None] / 255
        want = want * alpha + 255 * (1 - alpha)
    assert np.abs(np.asarray(read_image(path)) - want).max() <= 1
    codes = said(path)
    assert ("color" in codes) == (mode != "1")  # 只有黑白两种，换了也一样


@pytest.mark.parametrize("mode", ["RGBA", "P", "RGB"])
def test_alpha_survives_the_conversion(tmp_path, mode):
    path, profile = tmp_path / "a.png", icc(P3)
    flat = Image.new("RGB", (64, 48), PATCH)
    if mode == "RGBA":
        alpha = Image.linear_gradient("L").resize(flat.size)
        image, options = flat.copy(), {}
        image.putalpha(alpha)
    elif mode == "P":
        image = Image.new("P", flat.size, 0)
        image.putpalette([*PATCH, 1, 2, 3])
        image.paste(1, (0, 0, 32, 48))
        options = {"transparency": 1}
        alpha = Image.new("L", flat.size, 255)
        alpha.paste(0, (0, 0, 32, 48))
    else:
        image, options = flat.copy(), {"transparency": (1, 2, 3)}
        image.paste((1, 2, 3), (0, 0, 32, 48))
        alpha = Image.new("L", flat.size, 255)
        alpha.paste(0, (0, 0, 32, 48))
    image.save(path, icc_profile=profile, **options)
    part = np.asarray(alpha)[..., None] / 255
    want = expected(flat, profile) * part + 255 * (1 - part)
    assert np.abs(np.asarray(read_image(path)) - want).max() <= 1
    assert set(said(path)) >= {"alpha", "color"}


@pytest.mark.parametrize(
    "profile", [SRGB, icc(((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708),
                           (0.14307, 0.06061, 0.71410)), 2.2)]
)  # fmt: skip
def test_what_is_srgb_already_stays_bit_for_bit(tmp_path, profile):
    path = tmp_path / "a.png"
    image = noise()
    image.save(path, icc_profile=profile)
    same = profile is SRGB  # 纯 2.2 次方的曲线在暗处和 sRGB 差好几级，要换
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(image)) == same
    assert said(path) == ([] if same else ["color"])
    records, _ = inspect(tmp_path)
    assert (records[0].digest == hashlib.sha256(path.read_bytes()).hexdigest()) == same


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
@pytest.mark.parametrize("profile", [b"broken", b"", icc(P3)[:200], icc(P3)[:-60], b"x" * 500])
def test_a_broken_profile_changes_nothing(tmp_path, mode, profile):
    path = tmp_path / "a.png"
    image = noise().convert(mode)
    image.save(path, icc_profile=profile)
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(image.convert("RGB")))
    assert said(path) == (["profile"] if profile else [])


def test_a_profile_for_another_kind_of_picture(tmp_path):
    noise().save(tmp_path / "a.png", icc_profile=icc())  # 灰度的配置，彩色的图
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(noise()))
    assert said(tmp_path / "a.png") == ["profile"]
    grey = noise("L")  # 彩色的配置，灰度的图：三个通道一样的彩色图
    grey.save(tmp_path / "a.png", icc_profile=icc(ADOBE, 1.8))
    want = expected(grey.convert("RGB"), icc(ADOBE, 1.8))
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), want)


def linear(value: float) -> float:
    value /= 255
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def encode(value: float) -> int:
    value = min(max(value, 0), 1)
    return round(
        255 * (12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055)
    )


FROM_P3 = np.array([[1.2249401, -0.2249404, 0], [-0.0420569, 1.0420571, 0],
                    [-0.0196376, -0.0786361, 1.0982735]])  # fmt: skip
FROM_2020 = np.array([[1.6604910, -0.5876411, -0.0728499], [-0.1245505, 1.1328999, -0.0083494],
                      [-0.0181508, -0.1005789, 1.1187297]])  # fmt: skip
FROM_ADOBE = np.array([[1.3982832, -0.3982830, 0], [0, 1, 0], [0, -0.0429398, 1.0429400]])


def converted(matrix, curve=linear) -> tuple[int, ...]:
    """按公开的换算矩阵手算 PATCH。"""
    return tuple(map(encode, matrix @ [curve(v) for v in PATCH]))


CHROMA = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)  # P3
PLAIN_CHROMA = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
CHUNKS = {
    "cICP P3": ([(b"cICP", bytes([12, 13, 0, 1]))], converted(FROM_P3)),
    "cICP 2020": ([(b"cICP", bytes([9, 13, 0, 1]))], converted(FROM_2020)),
    "cICP sRGB": ([(b"cICP", bytes([1, 13, 0, 1]))], PATCH),
    "cICP linear": (
        [(b"cICP", bytes([1, 8, 0, 1]))], converted(np.eye(3), lambda v: v / 255)
    ),
    "gamma 1": (
        [(b"gAMA", struct.pack(">I", 100000))], converted(np.eye(3), lambda v: v / 255)
    ),
    "gamma 1.8": (
        [(b"gAMA", struct.pack(">I", 55556))], converted(np.eye(3), lambda v: (v / 255) ** 1.8)
    ),
    "gamma 2.2": ([(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", PLAIN_CHROMA)], PATCH),
    "P3 corners": ([(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", CHROMA)], converted(FROM_P3)),
    "sRGB wins": (
        [(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000)), (b"cHRM", CHROMA)], PATCH
    ),
    "nonsense": ([(b"gAMA", bytes(4)), (b"cHRM", bytes(32))], PATCH),
    "one line": ([(b"cHRM", struct.pack(">8I", *[33333] * 8))], PATCH),
}  # fmt: skip


CURVED = ("cICP linear", "gamma 1", "gamma 1.8")


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
def test_what_png_chunks_say(tmp_path, name, mode):
    path, (chunks, want) = tmp_path / "a.png", CHUNKS[name]
    image = Image.new("RGB", (64, 64), PATCH)
    (image.quantize(4) if mode == "P" else image.convert(mode)).save(path)
    with_chunks(path, *chunks)
    got = read_image(path).getpixel((9, 9))
    if mode == "L":  # 灰的只随曲线变，三原色不影响它
        assert max(got) - min(got) <= 1
        changed = name in CURVED
        assert (abs(got[0] - image.convert("L").getpixel((0, 0))) > 3) == changed
    else:
        changed = want != PATCH
        assert np.abs(np.subtract(got, want)).max() <= 1
    assert said(path) == (["color"] if changed else [])


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_told(tmp_path, transfer):
    path = tmp_path / "a.png"
    noise().save(path)
    with_chunks(path, (b"cICP", bytes([9, transfer, 0, 1])))
    assert said(path) == ["picture_hdr"]
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(noise()))


def test_a_camera_that_only_says_adobe_rgb_in_exif(tmp_path):
    tags, path = Image.Exif(), tmp_path / "a.jpg"
    tags.get_ifd(0x8769)[0xA001] = 65535
    tags.get_ifd(0x8769)[0xA005] = {1: "R03"}
    Image.new("RGB", (64, 64), PATCH).save(path, quality=100, exif=tags)
    want = converted(FROM_ADOBE, lambda v: (v / 255) ** 2.19921875)
    assert np.abs(np.subtract(read_image(path).getpixel((9, 9)), want)).max() <= 2
    Image.new("RGB", (64, 64), PATCH).save(path, quality=100, exif=tags, icc_profile=SRGB)
    assert np.abs(np.subtract(read_image(path).getpixel((9, 9)), PATCH)).max() <= 1


@pytest.mark.parametrize(
    ("values", "want"),
    [([0, 0.5, 1], [0, 128, 255]), ([0, 100, 255], [0, 100, 255]),
     ([0, 32896, 65535], [0, 128, 255]), ([np.nan, -3, 1], [0, 0, 255]),
     ([0, 0, 0], [0, 0, 0]), ([np.inf, 0, 255], [0, 0, 255])],
)  # fmt: skip
def test_floats_keep_their_brightness(values, want):
    picture, _ = to_rgb(Image.fromarray(np.array([values], np.float32)))
    assert np.asarray(picture)[0, :, 0].tolist() == want


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_alpha(mode):
    source = noise("L" if mode == "La" else "RGB").convert("LA" if mode == "La" else "RGBA")
    source.putalpha(Image.linear_gradient("L").resize(source.size))
    image = source.convert(mode)
    picture, did = to_rgb(image)
    back = image.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert("RGBA")
    white = Image.alpha_composite(Image.new("RGBA", back.size, "white"), back).convert("RGB")
    assert np.array_equal(np.asarray(picture), np.asarray(white)) and did == {"alpha"}


@pytest.fixture
def wide(tmp_path) -> Path:
    """一张 P3 的图和它的描述。"""
    folder = tmp_path / "pics"
    folder.mkdir()
    Image.new("RGB", (64, 64), PATCH).save(folder / "a.png", icc_profile=icc(P3))
    (folder / "a.txt").write_text("一块红", encoding="utf-8")
    return folder


RED = (218, 67, 47)  # 这份 2.2 次方的 P3 配置里的 PATCH


def test_every_place_reads_the_same_colour(wide, tmp_path, monkeypatch):
    path = wide / "a.png"
    assert np.abs(np.subtract(read_image(path).getpixel((9, 9)), RED)).max() <= 2
    want = read_image(path).getpixel((9, 9))
    monkeypatch.setenv("LORAKIT_NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr(mine, "headless", lambda: False)
    assert mine.my_picture(path).getpixel((9, 9)) == want
    assert mine.my_picture().getpixel((9, 9)) == want  # 存下再读：没有换第二次
    records, report = inspect(wide)
    page = html.write(tmp_path / "r.html", records, report).read_text("utf-8")
    shown = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])
    thumbnail = Image.open(io.BytesIO(shown)).getpixel((9, 9))
    assert np.abs(np.subtract(thumbnail, want)).max() <= 4


def test_saved_again_is_not_converted_twice(wide):
    want = read_image(wide / "a.png").getpixel((0, 0))
    read_image(wide / "a.png").save(wide / "a.png")
    assert read_image(wide / "a.png").getpixel((0, 0)) == want


def test_fix_keeps_the_colour(tmp_path):
    tags, path = Image.Exif(), tmp_path / "a.png"
    tags[0x0112] = 6
    noise().save(path, icc_profile=icc(P3), exif=tags)
    (tmp_path / "a.txt").write_text("一张花纹", encoding="utf-8")
    before, bytes_before = np.asarray(read_image(path)), path.read_bytes()
    assert "按 EXIF 转正" in fix(tmp_path)
    assert np.array_equal(np.asarray(read_image(path)), before) and said(path) == []
    undo(tmp_path)
    assert path.read_bytes() == bytes_before


def test_fix_leaves_a_picture_that_only_has_a_profile(wide):
    assert "没有可以自动修的" in fix(wide)


def test_only_pictures_that_changed_are_encoded_again(wide, config, family, monkeypatch):
    """以前的版本没有换颜色就编码了：带 P3 的要重新编码，别的照样用。"""
    noise().save(wide / "b.png", icc_profile=SRGB)
    (wide / "b.txt").write_text("一张花纹", encoding="utf-8")
    settings = config(f"data.folder={wide}", "eval.holdout=0", "data.resolution=64")
    counts = {}

    def encode():
        counts.clear()
        return cache.prepare(settings, family, lambda what, i, n: counts.update({what: n}))

    with monkeypatch.context() as old:  # 旧版：不看颜色配置，身份就是内容的 sha256
        old.setattr(data_read, "profile_of", lambda image, data: (None, False))
        old.setattr(seen, "VERSION", "old")
        before = encode().train
    after = encode().train
    assert counts == {"编码图片": 1}
    by_name = [{item.record.path.name: item for item in items} for items in (before, after)]
    assert by_name[0]["b.png"].record.digest == by_name[1]["b.png"].record.digest
    assert (by_name[0]["a.png"].mean - by_name[1]["a.png"].mean).abs().max() > 0.01
    encode()
    assert counts == {}


def test_rows_of_a_dataset_keep_their_colour(tmp_path):
    def opened(kind: str, mode: str = "RGB", **options) -> Image.Image:
        file = io.BytesIO()
        Image.new("RGB", (64, 64), PATCH).convert(mode).save(file, kind, **options)
        return Image.open(file)

    linear = Image.new("RGB", (64, 64), PATCH)
    linear.save(tmp_path / "x.png")
    with_chunks(tmp_path / "x.png", (b"gAMA", struct.pack(">I", 100000)))
    p3 = icc(P3)
    pictures = [opened("PNG", icc_profile=p3), opened("PNG", "RGBA", icc_profile=p3),
                opened("HEIF", quality=-1, chroma=444, color_primaries=12),
                Image.open(tmp_path / "x.png"), opened("TIFF", icc_profile=p3)]  # fmt: skip
    rows = [{"image": one, "text": f"第 {i} 张"} for i, one in enumerate(pictures)]
    write_dataset(rows, tmp_path / "made")
    got = [read_image(path).getpixel((9, 9)) for path in sorted((tmp_path / "made").glob("*.png"))]
    curve = converted(np.eye(3), lambda v: v / 255)
    want = [RED, RED, converted(FROM_P3), curve, RED]
    assert np.abs(np.subtract(got, want)).max() <= 3


# ---- PNG 里“这个颜色算透明”：不是 8 位的，这个颜色也要换成 8 位 ----


def raw_png(depth: int, kind: int, rows: list[bytes], key: bytes) -> bytes:
    """自己写的 PNG：Pillow 不存 2 位、4 位的灰度和 16 位的彩色。宽高 64。"""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 64, 64, depth, kind, 0, 0, 0)), (b"tRNS", key)]
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


@pytest.mark.parametrize(
    ("depth", "clear"), [(1, 0), (1, 1), (2, 0), (2, 1), (2, 3), (4, 5), (4, 15), (8, 200), (16, 9)]
)
def test_the_clear_grey_of_any_depth(tmp_path, depth, clear):
    levels = 1 << depth
    row = [clear if x < 16 else (clear + 1 + x % 3) % levels for x in range(64)]
    bits = "".join(f"{value:0{depth}b}" for value in row)
    packed = int(bits, 2).to_bytes(len(bits) // 8)
    path = tmp_path / "a.png"
    path.write_bytes(raw_png(depth, 0, [packed] * 64, struct.pack(">H", clear)))
    want = np.array([0 if value == clear else 255 for value in row])
    assert (np.asarray(read_alpha(path)) == want).all()
    grey = np.array([value * 255 / (levels - 1) for value in row]).round()
    shown = np.where(want == 0, 255, grey)
    assert np.abs(np.asarray(read_image(path)).astype(int) - shown[None, :, None]).max() <= 1
    assert "alpha" in said(path)


@pytest.mark.parametrize("clear", [(65535, 0, 0), (0x0100, 0, 0), (0x1234, 0x5678, 0x9ABC)])
def test_the_clear_colour_of_sixteen_bits(tmp_path, clear):
    row = np.zeros((64, 3), ">u2")  # 别处是黑的：它的后八位和 0x0100 的一样
    row[:20] = clear
    path = tmp_path / "a.png"
    path.write_bytes(raw_png(16, 2, [row.tobytes()] * 64, struct.pack(">HHH", *clear)))
    assert (np.asarray(read_alpha(path))[0] == np.where(np.arange(64) < 20, 0, 255)).all()
    assert read_image(path).getpixel((0, 0)) == (255, 255, 255)
    assert read_image(path).getpixel((40, 0)) == (0, 0, 0)


def test_a_picture_once_read_wrong_is_encoded_again(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(raw_png(2, 0, [bytes([0b11_01_10_00] * 16)] * 64, struct.pack(">H", 3)))
    with seen.Album() as album:
        first = album.see(path)
    assert first.digest != hashlib.sha256(path.read_bytes()).hexdigest()
    with seen.Album() as album:
        assert album.see(path) == first
