"""文件夹里的压缩包：里面的图这里都有，它就是它们的来处；有这里没有的，就是没有用到的数据。"""

import re
import tarfile
import unicodedata
import zipfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path, PurePosixPath

from lorakit.data.read import IMAGE_SUFFIXES
from lorakit.data.report import Problem

ARCHIVE = re.compile(  # 后一半是分卷的
    r"\.(zip|cbz|tar|tgz|tbz2|txz|tar\.\w+|7z|rar|gz|bz2|xz|zst|z\d\d|r\d\d|(zip|7z|rar|tar)\.\d{3})$",
    re.IGNORECASE,
)
LOOKED = (".zip", ".cbz", ".tar")  # 不用解压就看得到名字的
UTF8 = 0x800  # zip 里这一位写着名字是 UTF-8；没有写的，Windows 的中文版用 GBK
MOST = 200_000  # 最多看这么多个名字


def is_archive(path: Path) -> bool:
    return ARCHIVE.search(path.name) is not None


def unpacked_here(path: Path, stems: Collection[str]) -> bool | Problem:
    """压缩包里的图是不是这里都有了；有这里没有的、看不到里面的，是一个错误。

    从它解压出来的图常和它放在一起，那不算没有用到；里面一张图也没有的也不算。

    Args:
        stems: 这里的图的名字（`stem_of`）。
    """
    aside = "不用就移走，或挪进一个名字以点开头的文件夹（例如 .不用的），那里不看"
    mend = f"里面有要练的图，就解压到这个文件夹里，再移走它；{aside}"
    if not path.name.lower().endswith(LOOKED) or not path.is_file():
        reason = "是压缩包，看不到里面有没有要练的图，没有用到"
        return Problem.error("archive", path, reason, mend)
    try:
        found = [both for both in _names(path) if both[0].lower().endswith(IMAGE_SUFFIXES)]
    except (zipfile.BadZipFile, tarfile.TarError, OSError, ValueError, NotImplementedError):
        reason, mend = "是压缩包，可是打不开，没有用到", f"重新下载，或用解压软件看看里面；{aside}"
        return Problem.error("archive", path, reason, mend)
    away = [both[-1] for both in found if not {stem_of(name) for name in both} & set(stems)]
    if not away:
        return True
    reason = f"是压缩包，里面有 {len(away)} 张图这里没有（例如 {away[0]}），没有用到"
    return Problem.error("archive", path, reason, mend)


def stem_of(name: str) -> str:
    """不带文件夹、后缀，不分大小写的名字：解压之后换过格式的也认得。"""
    return unicodedata.normalize("NFKC", PurePosixPath(name.replace("\\", "/")).stem).casefold()


def _names(path: Path) -> list[tuple[str, ...]]:
    """里面的每个文件：它的名字，名字的编码不知道时两种读法都给；系统留下的不算。"""
    if path.name.lower().endswith(".tar"):
        with tarfile.open(path, "r:") as whole:
            found = [
                (one.name,) for one, _ in zip(whole, range(MOST), strict=False) if one.isfile()
            ]
    else:
        with zipfile.ZipFile(path) as whole:
            found = [_readings(one) for one in whole.infolist()[:MOST] if not one.is_dir()]
    return [both for both in found if not _left(both[0])]


def _readings(one: zipfile.ZipInfo) -> tuple[str, ...]:
    if one.flag_bits & UTF8 or one.filename.isascii():
        return (one.filename,)
    found = [one.filename]
    for encoding in ("gbk", "utf-8"):
        with suppress(UnicodeError):
            found.append(one.filename.encode("cp437").decode(encoding))
    return tuple(found)


def _left(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part.upper() == "__MACOSX" for part in parts)
