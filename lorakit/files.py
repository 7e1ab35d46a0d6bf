"""一个文件要么整个在、要么不在；小文件从一扇门读进来；缓存与随包的文件在哪里。只用标准库。"""

import codecs
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lorakit.errors import ConfigError, LorakitError, plain_reason, warn

ASSETS = Path(__file__).parent / "assets"  # 随包的权重、预设、工作流、字体
WINDOWS = os.name == "nt"
SMALL = 64 << 20  # 字节；设置、清单、目录再大也不到这么多
DEEPEST = 64  # 套这么多层的不是我们认得的任何文件
TOO_DEEP = "括号套得太深"
DIGITS = 40  # 分词器的 model_max_length 常写成 31 位
WEIGHT_MAP = {"weight_map": {str: str}}  # 分成几个文件的权重的目录：张量 -> 文件
LONGEST = 255, 4096  # 字节：一段名字、整个路径


def _flush(path: Path):
    """写进盘里。Windows 上文件要能写才刷得了，文件夹打不开、也不必刷。"""
    if WINDOWS and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(target: Path, write: Callable[[Path], None]) -> Path:
    """让 write(临时路径) 写完一个文件或文件夹，再一次性改名成 target；中途失败不留半成品。

    Raises:
        LorakitError: 磁盘满、没有权限等；原来的 target 不受影响。
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            _flush(path)
        if temporary.is_dir() and target.is_dir():
            shutil.rmtree(target)
        _rename(temporary, target)
        _flush(target.parent)
    except OSError as error:
        raise LorakitError(
            f"写不进“{target}”：{plain_reason(error)}。请换个地方或腾出空间再来；已经存好的文件都还在。"
        ) from error
    finally:
        _remove(temporary)  # 成了的已经改名；失败了，哪怕是 Ctrl-C，也不留下半个文件夹
    return target


def _rename(old: Path, new: Path):
    """os.replace；Windows 上别的程序（杀毒、网盘）正好看着它就改不成，等一下再试。"""
    for wait in (0.1, 0.3, 1.0) if WINDOWS else ():
        try:
            return os.replace(old, new)
        except PermissionError:
            time.sleep(wait)
    return os.replace(old, new)


def _remove(path: Path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink()


def write_text(target: Path, text: str) -> Path:
    """原子地写一个文本文件。"""
    return write_whole(target, lambda path: path.write_text(text, encoding="utf-8"))


def digest(path: Path) -> str | None:
    """文件内容的 sha256；没有这个文件是 None。"""
    if not path.is_file():
        return None
    with path.open("rb") as file:  # 全量微调的有几十 GB，不能整个读进内存
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_root() -> Path:
    """缓存文件夹：环境变量 LORAKIT_CACHE，或 ~/.cache/lorakit。"""
    return user_path(os.environ.get("LORAKIT_CACHE", "~/.cache/lorakit"), "LORAKIT_CACHE")


def user_path(text: str | Path, what: str = "路径") -> Path:
    """用户写的路径，~ 换成家目录。

    Raises:
        ConfigError: 没有那个用户、名字太长、里面有零字节。
    """
    shown = str(text) if len(str(text)) < 60 else f"{str(text)[:57]}…"
    try:
        path = Path(text).expanduser()
        raw = os.fsencode(path)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{what}：“{shown}”不能当路径：没有这个用户的家目录，或有写不进名字的字。"
            "文件名真的以 ~ 开头，就写成 ./~名字。"
        ) from error
    if b"\0" in raw:
        raise ConfigError(f"{what}：“{shown}”不能当路径：里面有零字节。请删掉它重打。")
    if len(raw) > LONGEST[1] or any(len(os.fsencode(part)) > LONGEST[0] for part in path.parts):
        raise ConfigError(
            f"{what}：“{shown}”不能当路径：一段名字最多 {LONGEST[0]} 字节（一个汉字 3 字节），"
            f"整个最多 {LONGEST[1]}。请改短。"
        )
    return path


# ---- 门：我们、别人或网站写的小文件，读进来之前先看清样子 ----


class Unreadable(LorakitError):
    """小文件读不懂；消息是原因，没有主语，由知道是什么文件的人说完整。"""


def parse_json(raw: bytes | str, shape: Any = dict, finite: bool = True) -> Any:
    """JSON -> 值；样子不对、套得太深、数大得离谱、同一个名字写着两个值都不收。

    Args:
        shape: 该是什么样：类型、几个类型的元组、[每一项]、{str: 每个值}、{"名字": 样子}
            （名字后面加 ? 的可以没有；没提到的名字不看）、函数 值 -> 对不对。
        finite: 不收无穷大与 NaN；prodigy 的设置里本来就有无穷大。

    Raises:
        Unreadable: 一句原因。
    """
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8-sig")
        real = _float if finite else float
        kinds = {"parse_int": _int, "parse_float": real, "parse_constant": real}
        value = json.loads(text, object_pairs_hook=_once, **kinds)
    except UnicodeDecodeError as error:
        raise Unreadable("不是 UTF-8 的文字") from error
    except RecursionError as error:
        raise Unreadable(TOO_DEEP) from error
    except json.JSONDecodeError as error:
        line = f"第 {error.lineno} 行" if "\n" in error.doc else ""
        raise Unreadable(f"{line}第 {error.colno} 个字附近写错了") from error
    except ValueError as error:
        raise Unreadable("里面的数太大或太长") from error
    _look_through(value)
    if wrong := _misfit(value, shape):
        raise Unreadable(f"样子不对（{wrong}）")
    return value


def read_json(path: Path, shape: Any = dict, limit: int = SMALL, finite: bool = True) -> Any:
    """读一个小 JSON 文件，见 parse_json。

    Raises:
        Unreadable: 打不开、太大、读不懂、样子不对；是一句完整的话。
    """
    try:
        return parse_json(read_small(path, limit), shape, finite)
    except Unreadable as error:
        raise Unreadable(f"“{path}”读不出来：{error}。文件坏了，或不是它该有的样子。") from error


def read_small(path: Path, limit: int = SMALL) -> bytes:
    """一个小文件的字节；不是普通文件（管道、设备、文件夹）的不开，免得一直等。"""
    try:
        if not path.is_file():
            raise Unreadable("不是普通的文件" if path.exists() else "没有这个文件")
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise Unreadable(f"打不开（{plain_reason(error)}）") from error
    if len(raw) > limit:
        raise Unreadable(f"超过 {limit} 字节，太大了")
    return raw


def decoded(raw: bytes) -> str:
    """UTF-8（有没有 BOM 都行）；Windows 的 PowerShell、记事本存成的 UTF-16 与 GBK 也认。

    不是 UTF-8、UTF-16 的，照哪一种读的要说一声；几种都像就不猜。

    Raises:
        UnicodeDecodeError: 都不是，或认不准是哪一种。
    """
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        found = readings(raw)
        if len(found) != 1:
            raise
        ((name, text),) = found.items()
        line = next(filter(lambda one: not one.isascii(), text.splitlines()), text).strip()
        warn(f"文件不是 UTF-8，照 {name} 读的（例如“{line[:20]}”）；不对就另存为 UTF-8。")
        return text
    return _as_gbk(raw, text) or text


# 各种文字里最常见的字、描述里常见的字：几种编码都解得开时，看谁读出来的像话
_ZH = """的一是在不了有人我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年
过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心本前开
但因只从想实红黄蓝绿白黑灰橙紫色猫狗鱼鸟兔熊女孩男背景窗边台风格图片张站坐穿衣花草树山水海河云
左右间头发长短高兴光照照片城市街夜晚早果苹"""
_TW = """的一是在不了有人我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年
過發後作裡用道行所然家種事成方多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心本前開
但因只從想實紅黃藍綠白黑灰橙紫色貓狗魚鳥兔熊女孩男背景窗邊臺台風格圖片張站坐穿衣花草樹山水海河雲
左右間頭髮長短高興光照城市街夜晚早果蘋"""
_KO = """이다의가는을에고로하은를도한지서자사대그있나리어들기아인해스시보수정일부제상전여오원만장주
구과동소거게라니면화관비안년모내조성공마으선위중신세국경적용문회물유트발분당선와무때것없않했습배회색흰검빨강파란꽃"""
_KANA = re.compile("[ぁ-ヺー]")
_WIDE = r"\u3000-\u303f\uff00-\uffef"  # 全角的标点、字母
ENCODINGS = {  # 名字 -> (Python 的编码, 这种文字里该有的字, 常见的字)
    "GBK": ("gb18030", r"[^ぁ-ヺ]", _ZH),
    "Big5": ("big5", rf"[\u4e00-\u9fff{_WIDE}]", _TW),
    "EUC-KR": ("euc_kr", rf"[가-힣{_WIDE}]", _KO),
    "EUC-JP": ("euc_jp", rf"[\u4e00-\u9fffぁ-ヺー{_WIDE}]", ""),
    "Shift-JIS": ("cp932", rf"[\u4e00-\u9fffぁ-ヺー{_WIDE}]", ""),
}


def readings(raw: bytes) -> dict[str, str]:
    """不是 UTF-8 的字节可能是什么：编码的名字 -> 照它读出的字；正好一种就是认准了。

    一个编码的字节常常也能按另一个解开，所以看读出来的字像不像话；分不出来就都给。
    """
    scores, texts = {}, {}
    for name, (codec, script, usual) in ENCODINGS.items():
        try:
            text = raw.decode(codec)
        except UnicodeDecodeError:
            continue
        wide = [char for char in text if ord(char) > 127]
        kana = sum(map(bool, map(_KANA.match, wide)))
        fits = wide and all(re.match(script, char) for char in wide)
        if name == "GBK":  # 西欧文字偶尔也能按 GBK 解开：一半以上要是常用字
            fits = fits and 2 * sum(bool(c.encode("gb2312", "ignore")) for c in wide) > len(wide)
        hits = kana + sum(char in usual for char in wide)
        if fits and (hits or name in ("GBK", "EUC-KR")):  # 别的要真有一个认得的字
            texts[name], scores[name] = text, hits / len(wide)
    best = [name for name in texts if scores[name] == max(scores.values())]
    return {name: texts[name] for name in (best if len(best) == 1 else texts)}


def _as_gbk(raw: bytes, text: str) -> str:
    """“图片”的 GBK 正好也是合格的 UTF-8，读成“ͼƬ”：没有人这样写，照 GBK 读；不是就空的。"""
    wide = [char for char in text if ord(char) > 127]
    odd = [char for char in wide if "\u0180" <= char <= "\u02af" and char not in "ƠơƯư"]
    if not odd or any(ord(char) > 0x7FF for char in wide):
        return ""
    try:
        found = raw.decode("gb18030")
        found.encode("gb2312")  # 全是常用字
    except UnicodeError:
        return ""
    return found


def read_words(path: Path, limit: int = SMALL) -> str:
    """读一个小的文字文件，见 decoded。

    Raises:
        Unreadable: 打不开、太大、认不出编码、里面有零字节；是一句完整的话。
    """
    try:
        text = decoded(read_small(path, limit))
        if "\0" in text:
            raise Unreadable("里面有零字节，不是文字")
        return text
    except UnicodeDecodeError as error:
        why = "认不出编码，请用编辑器另存为 UTF-8"
        raise Unreadable(f"“{path}”读不出来：{why}。") from error
    except Unreadable as error:
        raise Unreadable(f"“{path}”读不出来：{error}。") from error


def kept(path: Path, shape: Any, blank: Any) -> Any:
    """我们自己记下的小事（成绩、答过的题）；没有、记坏了，就当还没有记过。"""
    try:
        return read_json(path, shape)
    except Unreadable:
        return blank


def inside(folder: Path, name: str) -> Path | None:
    """清单里写的相对路径 -> folder 里的路径；出得去的（绝对、..、链接、盘符）是 None。"""
    parts = PurePosixPath(name).parts
    windows = PureWindowsPath(name)
    plain = not (windows.drive or windows.root or "\\" in name or "\0" in name)
    if not (plain and parts and name and "." not in parts and ".." not in parts):
        return None
    path = folder
    for part in parts:
        path = path / part
        try:
            if path.is_symlink():
                return None
        except OSError:  # 名字太长之类
            return None
    return path


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """json 遇到重复的名字会悄悄用后一个。"""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found and found[name] != value:
            raise Unreadable(f"“{name[:40]}”写了两次，值不一样")
        found[name] = value
    return found


def _int(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError("too many digits")
    return int(text)


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("not finite")
    return value


def _look_through(value: Any):
    """一层层看到底，不用递归：太深的、有半个字的不收。"""
    level = [value]
    for _ in range(DEEPEST):
        below = []
        for one in level:
            if isinstance(one, str) and not one.isascii():
                try:
                    one.encode()
                except UnicodeEncodeError as error:
                    raise Unreadable("有不成对的 \\ud8xx，只写了半个字") from error
            elif isinstance(one, dict):
                below += [*one, *one.values()]
            elif isinstance(one, list):
                below += one
        if not below:
            return
        level = below
    raise Unreadable(TOO_DEEP)


def _misfit(value: Any, shape: Any, place: str = "最外层") -> str:
    """哪里和 shape 对不上；都对就是空的。"""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place}应是列表"
        found = (_misfit(one, shape[0], f"{place}的第 {i + 1} 个") for i, one in enumerate(value))
        return next(filter(None, found), "")
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{place}应是“名字: 值”"
        if str in shape:
            found = (_misfit(one, shape[str], f"{place}的一项") for one in value.values())
            return next(filter(None, found), "")
        for key, inner in shape.items():
            name = key.removesuffix("?")
            if name in value:
                if wrong := _misfit(value[name], inner, name):
                    return wrong
            elif name == key:
                return f"没有 {name}"
        return ""
    if not isinstance(shape, (type, tuple)):  # 函数
        return "" if shape(value) else f"{place}的值不对"
    kinds = shape if isinstance(shape, tuple) else (shape,)
    if float in kinds:
        kinds = (*kinds, int)
    fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    return "" if fits else f"{place}的类型不对"
