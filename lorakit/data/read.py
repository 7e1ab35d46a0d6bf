"""读一个文件：图片变成 RGB，描述变成一行字；读不出来就说清楚是什么、怎么改。"""

import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, PngImagePlugin, UnidentifiedImageError, features
from pillow_heif import register_heif_opener

from lorakit.data.color import mend_key, odd_key, profile_of, to_rgb
from lorakit.data.encoding import marked_as, stray_zeros
from lorakit.data.report import Fault
from lorakit.errors import plain_reason
from lorakit.files import readings
from lorakit.inert import UNSEEN

LARGEST = 1 << 30  # 字节；一亿像素的图没有压缩也不到
MAX_PIXELS = 100_000_000  # 再大多半是解压炸弹；真有这么大的图也该先缩小
# 哪些文件是图，大小写都行
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".heic", ".heif", ".hif", ".avif")
PICTURE = "|".join(map(re.escape, IMAGE_SUFFIXES))  # 给正则表达式用
# 后缀写错的 GIF 也认；不列 EPS 之类会调用外部程序的格式。手机的 MPO 由 JPEG 这一项带出来。
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "AVIF", "HEIF")
# 只解主图：深度图、HDR 增益图、缩略图都不看，它们坏了也不要紧
register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
# PNG 里压缩的一段：Photoshop 的编辑历史、印刷用的颜色配置常超过 Pillow 默认的 1 MB；总的仍有上限
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 64 << 20
# Pillow 解坏文件时会抛的；前三种是随机改坏上万个文件试出来的，其余来自它解 EXIF 与压缩块的代码
BROKEN = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError,
          MemoryError, RuntimeError, struct.error, zlib.error)  # fmt: skip
KINDS = {  # 文件开头的四个字节 -> 它其实是什么
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"PK\3\4": "压缩包或 Word",
    b"\xd0\xcf\x11\xe0": "旧版 Word 或 Excel",
    b"\xff\xd8\xff\xe0": "JPEG 图片",
    b"\xff\xd8\xff\xe1": "JPEG 图片",
    b"\x89PNG": "PNG 图片",
}
BRANDS = {  # ftyp 后面的标记 -> 读不了时说它是什么
    b"crx ": "佳能 RAW（CR3）",
    b"hevc": "HEIC 连拍", b"hevx": "HEIC 连拍", b"hevm": "HEIC 连拍", b"hevs": "HEIC 连拍",
    b"msf1": "HEIC 连拍", b"avis": "AVIF 动图",
}  # fmt: skip
HEIC = (b"hei", b"mif", b"avi")  # 苹果手机的照片、AVIF 的几种标记
BOXES = {b"ftyp": "视频", b"JXL ": "JPEG XL", b"jP  ": "JPEG 2000"}
TAIL = 16  # 像素；JPEG 一次解这么多行
PACKED = ("WEBP", "HEIF", "AVIF")  # 缺了后一截也不报错的；压缩过的里面没有一长串零
ORIENTATION = 0x0112  # EXIF 里“拍照时怎么拿着相机”的编号
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Progress = Callable[[str, int, int], None]  # 函数 (在做什么, 第几个, 共几个)
AGAIN = "重新下载或复制一份；不要这张了，就连同它的 .txt 一起删掉"
EXAMPLE = "写一句话说图里有什么，例如“一只猫坐在窗台上”"
RESAVE = "用看图软件打开，另存为 png 或 jpg"
CJK = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef]")


# 解码和算哈希时 Python 会放开锁，几个线程一起读更快；再多就要同时在内存里放几张大图
WORKERS = min(4, os.cpu_count() or 1)


def in_threads(
    job: Callable[[Path], object], paths: Sequence[Path], progress: Progress | None = None
) -> list:
    """几个线程一起读文件，结果按原来的次序；每读完一个说一声。"""
    # 各线程都会临时关掉警告，恢复的先后会乱：在外面再包一层，出来时一定恢复原样
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(WORKERS) as pool:
            results = []
            for result in pool.map(job, paths):
                results.append(result)
                if progress:
                    progress("看图", len(results), len(paths))
            return results


def read_image(path: str | Path, clear: bool = False) -> Image.Image:
    """读一张图，返回 sRGB（8 位）：已按 EXIF 转正，颜色配置换好，透明合成在白底上，动图取第一帧。

    clear 是 True 就留着透明：真有透明的地方的图是 RGBA，别的还是 RGB。

    要看图的地方都用它：训练图、控制图、样张的控制图、网页里的缩略图、要改的图、你自己的图。

    Raises:
        DataError: 打不开、没有权限、空文件、不是图片、不完整、太大。
    """
    return decode(Path(path), read_bytes(Path(path)), clear)[0]


def decode(path: Path, data: bytes, clear: bool = False) -> tuple[Image.Image, frozenset[str]]:
    """解开一个图片文件的内容，返回 (RGB 图, 做过的处理)；path 只用来说是哪个文件。

    处理的代号：alpha、animation、several、rotated、cmyk、sixteen、color、profile（见 to_rgb）；
    hdr 是没有换的 HDR，grey、zeros 是看着像只下载了一半，key 是以前读错过的一种透明（见 seen.py）。
    """
    image, orientation = open_picture(path, data)
    did = set()
    if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO 的第二帧只是缩略图
        did.add("several" if image.format == "HEIF" else "animation")
    marks = {"key": odd_key(image, data), "cmyk": image.mode == "CMYK"}
    marks["grey"] = image.format in ("JPEG", "MPO") and _grey_below(image)
    marks["zeros"] = image.format in PACKED and not any(data[-max(512, len(data) // 16) :])
    marks["sixteen"] = data[:4] == b"\x89PNG" and data[24] == 16  # PNG 头里的位深
    did |= {name for name, true in marks.items() if true}
    profile, hdr = profile_of(image, data)
    picture, treated = to_rgb(image, profile, clear)
    did |= treated | ({"hdr"} if hdr else set())
    # 不用 ImageOps.exif_transpose：它还要重写 EXIF，EXIF 有一点坏就会失败
    if orientation in TURNS:
        did.add("rotated")
        picture = picture.transpose(TURNS[orientation])
    return picture, frozenset(did)


def read_bytes(path: Path) -> bytes:
    """一个普通文件的全部内容。

    Raises:
        DataError: 没有文件、没有权限、断了的链接、不是普通文件、大得读不进内存、读不出来。
    """
    try:
        if path.is_file():  # 管道和设备文件一读就卡住，只读普通文件
            if (size := path.stat().st_size) > LARGEST:
                reason = f"文件有 {size / 1e9:.0f} GB，不像是一张图或一段描述"
                raise Fault("file_large", path, reason, "确认它是什么；是图就导出成 jpg 或 png")
            return path.read_bytes()
    except PermissionError:
        mend = f"在终端运行 chmod u+r '{path.name}'，或请文件的主人给你读的权限"
        raise Fault("permission", path, "没有权限读这个文件", mend) from None
    except OSError as error:
        reason = f"读不出来（{plain_reason(error)}）"
        raise Fault("unreadable", path, reason, "检查硬盘或网盘，重新复制一份") from error
    if path.is_symlink():
        raise Fault("link_broken", path, "这是一个链接，它指向的文件不在了", "把真正的文件复制过来")
    if path.exists():
        raise Fault("not_a_file", path, "不是普通文件", "换成真正的文件，或把它移走")
    raise Fault("file_missing", path, "没有这个文件", "检查名字和位置")


def peek(path: Path) -> tuple[tuple[int, int], int | None]:
    """只看文件头：(存着的宽高, EXIF 方向)。

    Raises:
        DataError: 和 read_image 一样。
    """
    image, orientation = open_picture(path, read_bytes(path), whole=False)
    return image.size, orientation


def open_picture(path: Path, data: bytes, whole: bool = True) -> tuple[Image.Image, int | None]:
    """解码（whole 是 False 就只看文件头），返回 (图, EXIF 方向)；没有写方向是 None。"""
    if not data:
        raise Fault("picture_empty", path, "文件是空的（0 字节）", AGAIN)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 大小自己检查；EXIF 里的小毛病不影响像素
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise _bomb(path, f"{image.width}x{image.height}")
            if whole:
                image.load()
                mend_key(image, data)
            if image.width * image.height > MAX_PIXELS:  # HEIC 的头可以说小了，解开才知道
                raise _bomb(path, f"{image.width}x{image.height}")
            orientation = image.getexif().get(ORIENTATION)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))  # 这时还没有 image，只能从 Pillow 的话里取大小
        size = f"{int(pixels.group()) / 1e8:.0f} 亿像素" if pixels else "远超上限"
        raise _bomb(path, size) from None
    except UnidentifiedImageError:
        raise _unknown(path, data) from None
    except BROKEN as error:
        raise _damaged(path, str(error)) from error
    return image, orientation if isinstance(orientation, int) else None


def _bomb(path: Path, size: str) -> Fault:
    reason = f"图太大了（{size}，上限是一亿像素），可能是解压炸弹"
    mend = "确认来路可靠后用看图软件缩小到 4000 像素以内；否则删掉"
    return Fault("picture_bomb", path, reason, mend)


def _damaged(path: Path, detail: str) -> Fault:
    detail = " ".join(detail.split())[:120]
    if "MAX_TEXT" in detail:
        reason = "里面夹带的文字或颜色配置大得离谱，可能是解压炸弹"
        return Fault("picture_bomb", path, reason, f"确认来路可靠后{RESAVE}；否则删掉")
    reason = f"文件坏了或没有下载完，解不开（{detail or '没有更多信息'}）"
    return Fault("picture_broken", path, reason, AGAIN)


def _unknown(path: Path, data: bytes) -> Fault:
    """Pillow 认不出的文件：看开头几个字节，说出它其实是什么。"""
    head = data[:512]
    if not any(byte < 32 and byte not in b"\t\n\r\f" for byte in head):
        try:
            head.decode("utf-8")
        except UnicodeDecodeError as error:
            text = error.start > 508  # 只是 512 字节处的最后一个字被切断
        else:
            text = True
        if text:
            reason = f"里面是文字，不是图片（开头是“{start_of(head.decode('utf-8', 'ignore'))}”）"
            return Fault("picture_text", path, reason, "多半是下载到了网页或指针文件；" + AGAIN)
    if head.startswith((b"\xff\xd8", b"\x89PNG", b"RIFF", b"BM", b"GIF8")):
        return _damaged(path, "文件头不完整")
    kind = KINDS.get(head[:4]) or BOXES.get(head[4:8])
    if kind == "视频" and head[8:11] in HEIC:
        if head[8:11] != b"avi" or features.check("avif"):
            return _damaged(path, "里面的画面不完整")
        kind = "AVIF（这里的 Pillow 没带解它的库）"
    elif kind == "视频":
        kind = BRANDS.get(head[8:12], kind)
    if kind:
        reason = f"其实是 {kind} 文件，只是名字叫 {path.suffix}"
        return Fault("picture_kind", path, reason, RESAVE + "，只改后缀没有用")
    return Fault("picture_unknown", path, "认不出是什么图片", RESAVE + "；打不开就" + AGAIN)


def _grey_below(image: Image.Image) -> bool:
    """JPEG 后一半丢了、结尾的标记却还在时，解码器不报错，把剩下的填成正中间的灰；看没换颜色的。"""
    width, height = image.size
    low = image.crop((0, height - TAIL, width, height)).getextrema()
    each = low if isinstance(low[0], tuple) else (low,)
    return height > 2 * TAIL and all(ends in ((127, 127), (128, 128)) for ends in each)


def read_caption(path: str | Path) -> str:
    """读一段描述：UTF-8（带不带 BOM 都行），多行接成一行，多余的空白去掉。

    Raises:
        DataError: 没有文件、没有权限、不是 UTF-8（说出多半是什么编码）、空的。
    """
    path = Path(path)
    data = read_bytes(path)
    if data[:4] in KINDS:
        reason = f"描述不是纯文字，里面是：{KINDS[data[:4]]}"
        mend = "用写它的程序打开，另存为纯文本（UTF-8）；是图片就改成图片的后缀"
        raise Fault("caption_kind", path, reason, mend)
    if marked := marked_as(data):
        raise _encoding(path, f"看文件头是 {marked}", marked)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        found = readings(data)
        shown = "、".join(f"{name}（按它读是“{start_of(said)}”）" for name, said in found.items())
        if len(found) == 1:
            raise _encoding(path, f"多半是 {shown}", next(iter(found))) from None
        said = f"认不准是哪一种：{shown}" if found else "也认不出是什么编码"
        raise _encoding(path, said, None) from None
    if stray_zeros(data):
        mend = "另存一份干净的；认得准的，lorakit check 文件夹 --fix 会替你去掉"
        raise Fault("caption_encoding", path, "描述里夹着看不见的零字节", mend)
    if "\0" in text:
        raise _encoding(path, "多半是没有文件头的 UTF-16", "UTF-16LE")
    caption = one_line(text)
    if not caption:
        raise Fault("caption_empty", path, "描述是空的", EXAMPLE)
    return caption


def _encoding(path: Path, reason: str, encoding: str | None) -> Fault:
    mend = "用记事本或 VS Code 打开，看到的字没有错，就另存为 UTF-8"
    if encoding:
        mend = (
            f"运行 lorakit check 文件夹 --fix 替你换成 UTF-8（原件留着，--undo 能还原）；或{mend}"
        )
        mend += f"；或在终端运行 iconv -f {encoding} -t UTF-8 '{path.name}' > 新文件"
    return Fault("caption_encoding", path, f"描述不是 UTF-8，{reason}", mend)


def start_of(text: str) -> str:
    """开头十几个字，给人辨认用。"""
    line = " ".join(text.split())
    return line[:14] + "……" if len(line) > 14 else line


def one_line(text: str) -> str:
    """多行接成一行：看不见的字去掉，行尾没有标点就补一个逗号，中文补中文的。"""
    result, lines = "", text.translate(UNSEEN).splitlines()
    for line in filter(None, (" ".join(line.split()) for line in lines)):
        if result and result[-1] in ",.;:!?":
            result += " "
        elif result and result[-1] not in "，。、；：！？":
            result += "，" if CJK.match(result[-1]) else ", "
        result += line
    return result
