"""颜色：任何模式、任何颜色配置的图 -> 看图软件里看到的 sRGB。

文件说自己是什么颜色有好几种写法（ICC、nclx / cICP 编号、PNG 的 gAMA 与 cHRM、相机的 R03），
都先变成一份 ICC 配置，再由 littlecms 换算；本来就是 sRGB 的一个像素也不动。
教程：notebooks/02_dataset.ipynb
"""

import io
import math
import struct
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageCms

CHECK = 8  # 像素；表示透明的格子的边长
NEAR = 2  # 换算前后最多差这么多（0 到 255），就算本来是 sRGB：各家写的 sRGB 配置有一点出入
D50 = (0.9642, 1.0, 0.8249)
D65 = (0.3127, 0.3290)
SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # 红、绿、蓝的 (x, y)
ADOBE = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06), D65, 2.19921875
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
# H.273 的编号，视频和 HEIC、AVIF、新的 PNG 都用它；表里没有的（1、2 等）当作 sRGB
PRIMARIES = {
    4: ((0.67, 0.33, 0.21, 0.71, 0.14, 0.08), (0.310, 0.316)),
    5: ((0.64, 0.33, 0.29, 0.60, 0.15, 0.06), D65),
    6: ((0.630, 0.340, 0.310, 0.595, 0.155, 0.070), D65),
    7: ((0.630, 0.340, 0.310, 0.595, 0.155, 0.070), D65),
    9: ((0.708, 0.292, 0.170, 0.797, 0.131, 0.046), D65),
    11: ((0.680, 0.320, 0.265, 0.690, 0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320, 0.265, 0.690, 0.150, 0.060), D65),
}
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
HDR = (16, 18)  # PQ、HLG
# 解 EXIF 时会抛的
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, struct.error)
INTEROP, INDEX = 0xA005, 1  # EXIF 里相机写“R03”（Adobe RGB）的地方


def layers(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """任何模式 -> (8 位的 L、RGB 或 CMYK, 透明通道 L)；没有透明通道就是 None。"""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "CMYK":
        return image, None
    grey = image.mode in ("1", "L", "LA", "La")
    if not image.has_transparency_data:
        return image.convert("L" if grey else "RGB"), None
    rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    color = rgba.getchannel("R") if grey else rgba.convert("RGB")
    return color, rgba.getchannel("A")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 位整数、小数的灰度图按比例缩成 8 位：convert 会把 255 以上全截成白。"""
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        top = values.max()  # 小数没有定规：0 到 1、0 到 255、0 到 65535 都有人存
        scale = 255 if top <= 1 else 1 if top <= 255 else 255 / 65535
        return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))
    values = np.asarray(image).astype(np.int64).clip(0, 65535)  # (H, W)
    grey = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def odd_key(image: Image.Image, data: bytes) -> bool:
    """PNG 里“这个颜色算透明”，像素又不是 8 位的：Pillow 只换了像素，没有换这个颜色。"""
    kinds = ((2, 0), (4, 0), (16, 2))  # 位深、颜色：灰度的，彩色的
    return image.format == "PNG" and tuple(data[24:26]) in kinds and "transparency" in image.info


def mend_key(image: Image.Image, data: bytes):
    """把这个颜色也换成 8 位的。"""
    if not odd_key(image, data):
        return
    clear, top = image.info["transparency"], (1 << data[24]) - 1
    if data[24] == 16:
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    elif clear <= top:
        image.info["transparency"] = clear * 255 // top


def to_rgb(
    image: Image.Image, profile: bytes | None = None, clear: bool = False
) -> tuple[Image.Image, frozenset[str]]:
    """任何模式 -> (sRGB, 做过的处理)；透明合成在白底上，clear 是 True 就留着（RGBA）。

    处理的代号：alpha 真有透明的地方；color 换了颜色；profile 颜色配置用不上。
    """
    color, alpha = layers(image)
    picture, did = _to_srgb(color, profile)
    if alpha is not None and alpha.getextrema()[0] < 255:
        did |= {"alpha"}
        picture.putalpha(alpha)
        if clear:  # 全透明的地方藏着的颜色谁也看不见，不留给模型学
            picture.paste((0, 0, 0, 0), mask=alpha.point(lambda value: 255 * (value == 0)))
        else:
            picture = on_white(picture)
    picture.info = {}  # 颜色已经换好、方向会转正：原来的配置跟着它存出去，就会再换一次
    return picture, did


def on_white(image: Image.Image) -> Image.Image:
    """透明的地方露出白底 -> RGB：给只认三个通道的看（考官、编码器、没有透明通道的 VAE）。"""
    return _on(image, Image.new("RGBA", image.size, "white"))


def on_checker(image: Image.Image) -> Image.Image:
    """透明的地方露出灰白的格子 -> RGB：给人看，分得清白色与透明。"""
    rows, columns = np.indices(image.size[::-1]) // CHECK
    squares = np.where((rows + columns) % 2, 204, 255).astype(np.uint8)
    return _on(image, Image.fromarray(squares).convert("RGBA"))


def _on(image: Image.Image, ground: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, frozenset[str]]:
    if not profile:
        return image.convert("RGB"), frozenset()
    if image.mode == "L" and profile[16:20] != b"GRAY":
        image = image.convert("RGB")
    way, plain = _way(profile, image.mode), image.convert("RGB")
    if way is None or way.same:
        return plain, frozenset(() if way else ("profile",))
    picture = way(image)
    if image.mode == "CMYK":  # 换了颜色是另一句话，由读的人说
        return picture, frozenset()
    changed = ImageChops.difference(picture, plain).getbbox()  # 黑白两色的换了也一样
    return picture, frozenset(("color",) if changed else ())


class _Way:
    """一份颜色配置到 sRGB 的换法；几个线程可以同时用。"""

    def __init__(self, profile: bytes, mode: str):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        self.transform = ImageCms.buildTransform(source, target, mode, "RGB")
        self.same = mode != "CMYK" and self._same(mode)

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageCms.applyTransform(image, self.transform)

    def _same(self, mode: str) -> bool:
        """名字和字节都靠不住（光 sRGB 就有十几种写法）：换一组颜色，看变不变。"""
        if mode == "L":
            probe = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        else:
            steps = np.arange(0, 256, 17, dtype=np.uint8)
            probe = Image.fromarray(
                np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
            )
        before, after = (np.asarray(one, int) for one in (probe.convert("RGB"), self(probe)))
        return np.abs(before - after).max() <= NEAR


@lru_cache(maxsize=16)
def _way(profile: bytes, mode: str) -> _Way | None:
    """没有就是 None：配置坏了、和图的模式对不上，或这台机器的 Pillow 没带 littlecms。"""
    try:
        return _Way(profile, mode)
    except (ImageCms.PyCMSError, OSError, ValueError, ImportError):
        return None


def profile_of(image: Image.Image, data: bytes = b"") -> tuple[bytes | None, bool]:
    """(文件说的颜色，写成一份 ICC；没说就是 None, 是不是 HDR)。HDR 没有一定的换法，不换。

    Args:
        data: 文件的全部字节；没有就少看两种（PNG 的 cICP、AVIF 的 nclx）。
    """
    try:
        return _profile_of(image, data)
    except UNREADABLE:  # 写着颜色的那一段坏了，像素是好的
        return image.info.get("icc_profile"), False


def _profile_of(image: Image.Image, data: bytes) -> tuple[bytes | None, bool]:
    icc, codes = image.info.get("icc_profile"), _codes(image, data)
    if codes and (image.format == "PNG" or not icc):
        primaries, transfer = codes
        if transfer in HDR:
            return None, True
        if primaries not in PRIMARIES and transfer not in GAMMAS:
            return None, False
        where = PRIMARIES.get(primaries, (SRGB, D65))
        return matrix_profile(*where, GAMMAS.get(transfer)), False
    if icc:
        return icc, False
    if image.format == "PNG":
        return _from_chunks(image.info), False
    if image.format in ("JPEG", "MPO") and image.getexif().get_ifd(INTEROP).get(INDEX) == "R03":
        return matrix_profile(*ADOBE), False
    return None, False


def _codes(image: Image.Image, data: bytes) -> tuple[int, int] | None:
    """H.273 的 (原色, 曲线) 编号：PNG 的 cICP，HEIC 与 AVIF 的 nclx。"""
    if image.format == "PNG":
        place = data.find(b"\0\0\0\4cICP", 0, max(0, data.find(b"IDAT")))
        return (data[place + 8], data[place + 9]) if place > 0 else None
    if image.format == "HEIF":
        nclx = image.info.get("nclx_profile") or {}
        names = ("color_primaries", "transfer_characteristics")
        return tuple(int(nclx.get(name, 2)) for name in names) if nclx else None
    place = data.find(b"colrnclx") if image.format == "AVIF" else -1
    return struct.unpack_from(">HH", data, place + 8) if place > 0 else None


def _from_chunks(info: dict) -> bytes | None:
    """PNG 的 gAMA 与 cHRM；写了 sRGB 就不看它们。"""
    gamma, corners = info.get("gamma"), info.get("chromaticity")
    if "srgb" in info or not (gamma or corners):
        return None
    curve = 1 / gamma if gamma and 0.1 < gamma < 10 else 1 / 0.45455
    # 1/2.2 是 sRGB 的旧写法，不是真的 2.2 次方
    curve = None if abs(1 / curve - 0.45455) < 0.01 else curve
    where = (SRGB, D65) if not corners else (tuple(corners[2:]), tuple(corners[:2]))
    return matrix_profile(*where, curve)


def matrix_profile(primaries, white, gamma: float | None) -> bytes | None:
    """三原色、白点的 (x, y) 和伽马（None 是 sRGB 的曲线）-> ICC；算不出来是 None。"""
    corners = np.array(primaries, float).reshape(3, 2)
    points = np.array([*corners, white], float)
    if not (points[:, 1] > 0.001).all():
        return None
    # (4, 3)：红、绿、蓝、白的 XYZ，亮度都是 1
    xyz = np.stack([points[:, 0], points[:, 1], 1 - points.sum(1)], 1) / points[:, 1:]
    try:
        columns = xyz[:3].T * np.linalg.solve(xyz[:3].T, xyz[3])
    except np.linalg.LinAlgError:
        return None
    cones = BRADFORD @ np.array(D50) / (BRADFORD @ xyz[3])
    columns = np.linalg.inv(BRADFORD) @ (cones[:, None] * (BRADFORD @ columns))
    if not np.isfinite(columns).all() or np.abs(columns).max() > 100:
        return None
    kind, numbers = (
        (0, [gamma]) if gamma else (3, [2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045])
    )
    curve = b"para" + struct.pack(">IHH", 0, kind, 0) + b"".join(map(_fixed, numbers))
    text = (
        b"mluc"
        + struct.pack(">IIIHHII", 0, 1, 12, 0x656E, 0x5553, 6, 28)
        + "rgb".encode("utf-16-be")
    )
    tags = {b"desc": text, b"cprt": text, b"wtpt": _xyz(D50)}
    tags |= {name + b"XYZ": _xyz(columns[:, i]) for i, name in enumerate((b"r", b"g", b"b"))}
    tags |= {name: curve for name in (b"rTRC", b"gTRC", b"bTRC")}
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">4xI", 0x04300000) + b"mntrRGB XYZ "
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += b"".join(map(_fixed, D50))
    whole = head.ljust(124, b"\0") + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole) + 4) + whole


def _fixed(number: float) -> bytes:
    return struct.pack(">i", math.floor(number * 65536 + 0.5))


def _xyz(values) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, values))
