"""两个模型站：怎么问有哪些文件、文件从哪里取、下到哪里；都放进它们自己的缓存，别的工具也认得。"""

import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import requests
from huggingface_hub import constants, get_token
from huggingface_hub.file_download import repo_folder_name

from lorakit.files import SMALL, Unreadable, parse_json, read_small, user_path
from lorakit.hub.transfer import (
    TIMEOUT,
    TRIES,
    Busy,
    Refused,
    Remote,
    Unreachable,
    blocks,
    pause,
    plain_network,
    raise_for,
)

LONGEST = 300.0  # 秒：一句回答最多收这么久


def _size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 50


def _maybe_size(value: object) -> bool:
    return value is None or _size(value)


# 两个站的回答该是什么样；没提到的不看
HUGGING_FACE = {
    "siblings": [
        {
            "rfilename": str,
            "size?": _maybe_size,
            "lfs?": lambda lfs: (
                lfs is None or (isinstance(lfs, dict) and _maybe_size(lfs.get("size")))
            ),
        }
    ]
}
MODELSCOPE = {"Data": {"Files": [lambda one: isinstance(one, dict) and _entry(one)]}}


def _entry(one: dict) -> bool:
    """ModelScope 的一项：文件要有路径与大小，文件夹不看。"""
    return one.get("Type") == "tree" or (
        isinstance(one.get("Path"), str) and _size(one.get("Size"))
    )


@dataclass(frozen=True)
class Listing:
    """站上一个模型现在的样子：全部文件、版本号、是不是要先同意许可。"""

    files: tuple[Remote, ...]
    commit: str
    gated: bool = False


def ask(url: str, headers: dict[str, str], method: str = "GET") -> bytes:
    """问站上一句话，返回它的回答；连不上、忙不过来就多试几次。

    Raises:
        Refused: 401、403、404 等。
        Unreachable: 试了几次都不行。
    """
    for failures in range(1, TRIES + 1):
        asked = 0.0
        try:
            with requests.request(
                method, url, headers=headers, timeout=TIMEOUT, stream=True
            ) as response:
                raise_for(response)
                return b"" if method == "HEAD" else _whole(response)
        except Busy as error:
            reason, asked = f"服务器回答 {error.status}", error.wait
        except requests.ConnectionError as error:  # 名字解析不了、拒绝连接：再试多半也一样
            raise Unreachable(plain_network(error)) from error
        except requests.RequestException as error:
            reason = plain_network(error)
        if failures < TRIES:
            time.sleep(pause(failures, asked))
    raise Unreachable(f"{reason}，试了 {TRIES} 次")


def _whole(response: requests.Response) -> bytes:
    """一句回答的全部字节；长得没有尽头的不收。"""
    raw, until = bytearray(), time.monotonic() + LONGEST
    for block in blocks(response):
        raw += block
        if len(raw) > SMALL or time.monotonic() > until:
            raise Unreachable("回答长得没有尽头，多半不是模型站（看看地址和代理）")
    return bytes(raw)


def facts(raw: bytes, shape=dict) -> dict:
    """回答里的 JSON；不是 JSON、样子不对，就当连错了地方。"""
    try:
        return parse_json(raw, shape)
    except Unreadable as error:
        raise Unreachable(f"的回答读不懂：{error}，多半不是模型站（看看地址和代理）") from error


def _hex(value: object) -> str:
    """指纹要用来做文件名：只认十六进制的，别的当没有。"""
    return value if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16,64}", value) else ""


class HuggingFace:
    """huggingface.co 或它的镜像（HF_ENDPOINT）；放进 HF_HOME 的缓存，diffusers 直接认得。"""

    name, title = "huggingface", "Hugging Face"
    login = "在终端运行 hf auth login，或设环境变量 HF_TOKEN"
    home = "HF_HOME"

    def __init__(self):
        self.endpoint = constants.ENDPOINT

    def headers(self) -> dict[str, str]:
        token = get_token()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def page(self, repo: str) -> str:
        """模型的主页；镜像上同意不了许可，所以总是官方的。"""
        return f"https://huggingface.co/{repo}"

    def root(self, repo: str) -> Path:
        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")

    def copy(self, repo: str, name: str = "model_index.json") -> Path | None:
        """下载过的一份（不一定完整），里面要有 name。"""
        ref = self.root(repo) / "refs" / "main"
        if not ref.is_file():
            return None
        try:  # 别的程序写的：只认版本号，不跟着它走到别处
            commit = _hex(read_small(ref, 1 << 12).decode().strip())
        except (Unreadable, ValueError):
            return None
        folder = self.root(repo) / "snapshots" / commit
        return folder if commit and (folder / name).is_file() else None

    def listing(self, repo: str) -> Listing:
        """现在有哪些文件。"""
        address = f"{self.endpoint}/api/models/{repo}?blobs=true"
        info = facts(ask(address, self.headers()), HUGGING_FACE)
        commit = _hex(info.get("sha"))
        if not commit:
            raise Unreachable("没有说版本号，多半不是模型站（看看地址和代理）")
        files = []
        for entry in info["siblings"]:
            path, lfs = entry["rfilename"], entry.get("lfs") or {}
            url = f"{self.endpoint}/{repo}/resolve/{commit}/{quote(path)}"
            sha, size = _hex(lfs.get("sha256")), lfs.get("size", entry.get("size"))
            git = "" if sha else _hex(entry.get("blobId"))
            if size is not None:
                files.append(Remote(path, size, url, sha, git))
        return Listing(tuple(files), commit, bool(info.get("gated")))

    def folder(self, repo: str, listing: Listing) -> Path:
        return self.root(repo) / "snapshots" / listing.commit

    def target(self, repo: str, listing: Listing, file: Remote) -> Path:
        """先写进 blobs，名字就是指纹；几个版本里相同的文件只存一份。"""
        if not (file.sha256 or file.git):
            return self.folder(repo, listing) / file.path
        return self.root(repo) / "blobs" / (file.sha256 or file.git)

    def settle(self, repo: str, listing: Listing, file: Remote):
        """让快照里的路径指向 blobs 里的内容；不许建链接的系统就放一份真的。"""
        blob, pointer = self.target(repo, listing, file), self.folder(repo, listing) / file.path
        if blob == pointer or pointer.exists() or not blob.is_file():
            return
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.unlink(missing_ok=True)  # 指向别处的死链接
        try:
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:
            # 小文件可能有几个内容一样（例如空的设置），复制；权重太大，搬过去
            (shutil.copyfile if file.git else os.replace)(blob, pointer)

    def remember(self, repo: str, listing: Listing):
        """main 现在是哪个版本。"""
        ref = self.root(repo) / "refs" / "main"
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(listing.commit, "utf-8")


class ModelScope:
    """modelscope.cn（MODELSCOPE_ENDPOINT、MODELSCOPE_DOMAIN 可换）；放进它的库也认得的缓存。"""

    name, title = "modelscope", "ModelScope"
    login = "把网页上的“访问令牌”设成环境变量 MODELSCOPE_API_TOKEN"
    home = "MODELSCOPE_CACHE"

    def __init__(self):
        chosen = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN")
        address = (chosen or "https://modelscope.cn").rstrip("/")
        self.endpoint = address if re.match(r"https?://", address) else f"https://{address}"

    def headers(self) -> dict[str, str]:
        token = os.environ.get("MODELSCOPE_API_TOKEN")
        if not token:
            return {}
        return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}

    def page(self, repo: str) -> str:
        """模型的主页。"""
        return f"https://modelscope.cn/models/{repo}"

    def places(self, repo: str) -> list[Path]:
        """它的库历来放模型的地方，第一个是我们写的地方。"""
        chosen = os.environ.get("MODELSCOPE_CACHE")
        base = user_path(chosen or "~/.cache/modelscope", "MODELSCOPE_CACHE")
        owner, name = repo.split("/")
        old = Path("models") / owner / name.replace(".", "___")
        snapshots = base / "models" / f"{owner}--{name}" / "snapshots"
        first = [base / old, base / "hub" / old] if chosen else [base / "hub" / old, base / old]
        return [*first, snapshots / "master", base / "hub" / owner / name.replace(".", "___")]

    def copy(self, repo: str, name: str = "model_index.json") -> Path | None:
        """下载过的一份（不一定完整），里面要有 name。"""
        found = (p for p in self.places(repo) if (p / name).is_file())
        return next(found, None)

    def listing(self, repo: str) -> Listing:
        """现在有哪些文件。"""
        address = f"{self.endpoint}/api/v1/models/{repo}/repo"
        raw = ask(f"{address}/files?Revision=master&Recursive=True", self.headers())
        found = facts(raw)
        if found.get("Success") is False:  # 有的错误它用 200 回答
            code = found.get("Code")
            raise Refused(code if _size(code) and 400 <= code < 600 else 404)
        files = []
        for entry in facts(raw, MODELSCOPE)["Data"]["Files"]:
            if entry.get("Type") != "tree":
                url = f"{address}?Revision=master&FilePath={quote(entry['Path'], safe='')}"
                files.append(Remote(entry["Path"], entry["Size"], url, _hex(entry.get("Sha256"))))
        return Listing(tuple(files), "master")

    def root(self, repo: str) -> Path:
        return self.copy(repo) or self.places(repo)[0]

    def folder(self, repo: str, listing: Listing) -> Path:
        return self.root(repo)

    def target(self, repo: str, listing: Listing, file: Remote) -> Path:
        return self.folder(repo, listing) / file.path

    def settle(self, repo: str, listing: Listing, file: Remote):
        """它的缓存就是平常的文件夹，不用再做什么。"""

    def remember(self, repo: str, listing: Listing):
        """它只有一个版本，不用记。"""


SITES = {"modelscope": ModelScope, "huggingface": HuggingFace}  # auto 依次试
