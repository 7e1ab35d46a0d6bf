"""下载文件：断了从断的地方接着下，停住了重连，下完核对大小与指纹；核对过才换成正式的名字。

没有用 huggingface_hub 的下载（2.4.0，见它的 PR 4228）：换一个进程就从头下，HTTP 时也不核对内容。
"""

import hashlib
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import requests
import urllib3

from lorakit.errors import LorakitError, plain_reason

TIMEOUT = (10.0, 30.0)  # 秒：连上要多久、两次收到数据之间最多等多久
TRIES = 5  # 连着这么多次一个字节也没收到，就不再试
SPOILT = 2  # 内容对不上，最多从头重下几次
WORKERS = 4  # 同时下几个文件
CHUNK = 1 << 20
QUIET = 20.0  # 秒：等得比这久，就说一声
QUICK = 5_000_000  # 不到这么多字节，一眨眼就好，不画进度条
PATIENCE = 600.0  # 秒：站上请我们等（Retry-After），最多等这么久
SLOWEST, WINDOW = 1024, 60.0  # 一分钟里收到的不到这么多字节，就当停住了
LATER = {408, 425, 429, 500, 502, 503, 504}  # 等一等再试也许就好的状态


@dataclass(frozen=True)
class Remote:
    """站上的一个文件；sha256、git 是站上给的指纹，没有就是空的（那时只核对大小）。"""

    path: str
    size: int
    url: str
    sha256: str = ""
    git: str = ""  # git 的 blob 编号：sha1("blob 大小\\0" + 内容)，小文件才有


class Refused(Exception):
    """站上不给：401、403、404 等；由知道是哪个站、哪个模型的人说给用户听。"""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


class Busy(Exception):
    """服务器一时忙不过来，等一等再试；wait 是它请我们等的秒数。"""

    def __init__(self, status: int, wait: float = 0.0):
        super().__init__(status)
        self.status, self.wait = status, wait


class Unreachable(Exception):
    """连不上，或连上了一直出错；reason 是中文。"""


class _Stopped(Exception):
    """别的文件出了错，这一个也不下了。"""


def gigabytes(size: int) -> str:
    """字节数给人看：1.2 GB、35.0 MB、4 KB。"""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit / 10:
            return f"{size / unit:.1f} {name}"
    return f"{max(size, 1000) / 1e3:.0f} KB"


def partial(remote: Remote, target: Path) -> Path:
    """还没下完的那一份；名字里带着指纹，所以站上换了文件也不会接错。"""
    mark = (remote.sha256 or remote.git or str(remote.size))[:16]
    return target.with_name(f"{target.name}.{mark}.incomplete")


def received(remote: Remote, target: Path) -> int:
    """已经下好的字节数。"""
    path = partial(remote, target)
    return path.stat().st_size if path.is_file() else 0


def same(remote: Remote, path: Path) -> bool:
    """下好的内容与站上的是不是一样。"""
    if path.stat().st_size != remote.size:
        return False
    if not (remote.sha256 or remote.git):
        return True
    sha = hashlib.sha256() if remote.sha256 else hashlib.sha1(f"blob {remote.size}\0".encode())
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            sha.update(block)
    return sha.hexdigest() == (remote.sha256 or remote.git).lower()


def download(jobs: Sequence[tuple[Remote, Path]], headers: dict[str, str]):
    """同时下几个文件，每个写到自己的 Path；有一个不成就都停下，已下的部分留着下次接。

    Raises:
        Refused: 站上不给。
        Unreachable: 连不上，试了几次都不行。
        LorakitError: 内容总是对不上，或写不进。
    """
    stop = threading.Event()
    start = sum(received(*job) for job in jobs)
    with _bar(sum(remote.size for remote, _ in jobs), start) as show:
        pool = ThreadPoolExecutor(WORKERS)
        try:
            work = [pool.submit(_fetch, *job, headers, show, stop) for job in jobs]
            for done in as_completed(work):
                done.result()
        finally:  # 包括 Ctrl-C：其余的收完手头一块就停
            stop.set()
            pool.shutdown(cancel_futures=True)


@contextmanager
def _bar(total: int, start: int):
    from tqdm import tqdm

    form = (
        "下载 {percentage:3.0f}%|{bar:24}| {n_fmt}B/{total_fmt}B，{rate_fmt}，"
        "已用 {elapsed}，还要 {remaining}"
    )
    lock = threading.Lock()
    with tqdm(
        total=total, initial=start, bar_format=form, unit="B", unit_scale=True,
        mininterval=0.5, file=sys.stderr, disable=total < QUICK,
    ) as shown:  # fmt: skip

        def show(count: int):
            with lock:
                shown.update(count)

        yield show


def _fetch(remote: Remote, target: Path, headers, show: Callable[[int], None], stop):
    part = partial(remote, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(SPOILT):
            _receive(remote, part, headers, show, stop)
            if same(remote, part):
                part.replace(target)
                return
            show(-part.stat().st_size)
            part.unlink()
    except OSError as error:
        raise LorakitError(
            f"下载写不进“{target.parent}”：{plain_reason(error)}。"
            "腾出空间，或用 HF_HOME（Hugging Face）、MODELSCOPE_CACHE（ModelScope）换一个盘。"
        ) from error
    raise LorakitError(
        f"{remote.path} 下了 {SPOILT} 次，内容都和站上公布的指纹对不上，已经删掉。"
        "多半是代理或镜像改了内容：换一个网络、镜像（HF_ENDPOINT）或来源（model.source）再试。"
    )


def _receive(remote: Remote, part: Path, headers, show, stop):
    """收到够为止：每断一次从断的地方接着要，收到过数据就重新数次数。"""
    failures = 0
    while True:
        asked = 0.0
        if stop.is_set():
            raise _Stopped
        have = part.stat().st_size if part.is_file() else 0
        if have > remote.size:
            part.unlink()
            show(-have)
            continue
        if have == remote.size:
            part.touch()  # 空文件也要在
            return
        try:
            _stream(remote, part, have, headers, show, stop)
            reason = "提前断开了"
        except requests.RequestException as error:
            reason = plain_network(error)
        except Busy as error:
            reason, asked = f"服务器回答 {error.status}", error.wait
        now = part.stat().st_size if part.is_file() else 0
        failures = 0 if now > have else failures + 1
        if failures >= TRIES:
            raise Unreachable(f"{remote.path}：{reason}，试了 {TRIES} 次")
        if now < remote.size:
            stop.wait(pause(failures, asked))


def pause(failures: int, asked: float = 0.0) -> float:
    """第几次失败之后等多少秒：越来越久；站上请我们等 asked 秒的，至少等这么久。

    Raises:
        Unreachable: 要等太久。
    """
    if asked > PATIENCE:
        raise Unreachable(f"服务器请我们等 {asked / 60:.0f} 分钟再来")
    if asked > QUIET:
        print(f"服务器忙，请我们等 {asked:.0f} 秒；到时候自动接着来。", file=sys.stderr)
    return max(min(0.5 * 2**failures, 20.0), asked)


def _stream(remote: Remote, part: Path, have: int, headers, show, stop):
    asked = {**headers, "Accept-Encoding": "identity"}
    if have:
        asked["Range"] = f"bytes={have}-"
    with requests.get(remote.url, headers=asked, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # 站上的文件没有这么长：手里的是旧的
            part.unlink()
            show(-have)
            return
        raise_for(response)
        resumed = response.status_code == 206 and _begins_at(response, have)
        if have and not resumed:  # 不会接着给的服务器，从头收
            show(-have)
        with part.open("ab" if resumed else "wb") as file:
            room = remote.size - (have if resumed else 0)
            for block in blocks(response):
                if stop.is_set():
                    raise _Stopped
                file.write(block[:room])  # 比说好的多给的不要：盘不能让它写满
                show(len(block[:room]))
                room -= len(block)
                if room < 0:
                    return


def blocks(response: requests.Response):
    """一块块收到的字节：来多少给多少，不凑整；一直只滴几个字节的当断了。

    Raises:
        requests.Timeout: 太慢。
        requests.RequestException: 传到一半断了。
    """
    read = getattr(response.raw, "read1", None) or response.raw.read
    since, got = time.monotonic(), 0
    try:
        while block := read(CHUNK, decode_content=True):
            yield block
            got += len(block)
            if time.monotonic() - since > WINDOW:
                if got < SLOWEST:
                    raise requests.ReadTimeout("too slow")
                since, got = time.monotonic(), 0
    except urllib3.exceptions.ReadTimeoutError as error:
        raise requests.ReadTimeout(error) from error
    except urllib3.exceptions.HTTPError as error:
        raise requests.exceptions.ChunkedEncodingError(error) from error


def _begins_at(response, place: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {place}-")


def raise_for(response: requests.Response):
    """状态码不对就报：一时的 Busy，其余 Refused。"""
    status = response.status_code
    if status in LATER:
        raise Busy(status, _retry_after(response.headers))
    if status >= 400:
        raise Refused(status)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Retry-After：秒数，或站上的钟的一个时刻（它现在几点写在 Date 里）；看不懂的当没有说。"""
    said = headers.get("Retry-After", "")
    if said.strip().isdecimal():
        return float(said.strip()[:9])
    now, when = _moment(headers.get("Date", "")), _moment(said)
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds()) if when else 0.0


def _moment(said: str) -> datetime | None:
    try:
        when = parsedate_to_datetime(said)
    except (ValueError, TypeError, OverflowError):
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def plain_network(error: Exception) -> str:
    """网络错误的中文原因。"""
    if isinstance(error, requests.exceptions.ProxyError):
        return "代理连不上（看看 HTTPS_PROXY）"
    if isinstance(error, requests.exceptions.SSLError):
        return "证书不对，多半是代理插在中间，或这台机器的钟不准"
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return f"{TIMEOUT[0]:.0f} 秒连不上"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"{TIMEOUT[1]:.0f} 秒没有收到数据"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "传到一半断了"
    return "连不上"
