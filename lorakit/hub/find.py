"""权重从哪里来：随包的微型模型、本地文件夹、下载过的、两个模型站；用到哪部分才下哪部分。"""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from huggingface_hub import constants

from lorakit.errors import LorakitError, plain_reason, warn
from lorakit.files import WEIGHT_MAP, Unreadable, inside, read_json, user_path
from lorakit.hub import transfer
from lorakit.hub.bundled import bundled, tiny_models
from lorakit.hub.sites import SITES, Listing, ask
from lorakit.hub.transfer import Refused, Remote, Unreachable, gigabytes

INDEX = "model_index.json"
REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
SMALL = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*\.(?:json|txt|jinja|model)")  # 设置、词表：总要
# 权重只要默认精度的那一份，名字里带 .fp16 之类的是另一份
WEIGHTS = re.compile(r"\w+(?:-\d{5}-of-\d{5})?\.safetensors")
PLAIN = ("tokenizer", "scheduler", "processor", "feature_extractor", "image_processor")


class Gated(LorakitError):
    """要先同意许可，或要登录。"""


def absent(folder: Path, parts: Sequence[str] = ()) -> list[str]:
    """diffusers 布局的文件夹里缺什么：parts 里各部分（不写就是全部）的文件夹或权重。"""
    index = _json(folder / INDEX)
    named = [
        name
        for name, kind in index.items()
        if isinstance(kind, list) and kind and kind[0] and inside(folder, name)
    ]
    lacking = []
    for part in parts or named:
        home = folder / part
        if not home.is_dir():
            lacking.append(part)
        elif not part.startswith(PLAIN):
            found = {path.name for path in home.glob("*.safetensors") if path.is_file()}
            found = set(filter(WEIGHTS.fullmatch, found))
            indexes = [p for p in home.glob("*.safetensors.index.json") if p.name.count(".") == 3]
            shards = {n for p in indexes for n in _json(p, WEIGHT_MAP)["weight_map"].values()}
            # 有目录就由它说了算：分片可以随便叫什么，但要是这个文件夹里的 safetensors
            there = {n for n in shards if _shard(home, n)}
            lacking += [f"{part}/{name}" for name in sorted(shards - there)]
            lacking += [] if shards or found else [f"{part}/*.safetensors"]
    return lacking


def _json(path: Path, shape=dict) -> dict:
    try:
        return read_json(path, shape)
    except Unreadable as error:
        raise LorakitError(f"model.path：{error}请删掉它重新下载。") from error


def _shard(home: Path, name: str) -> bool:
    plain = "/" not in name and "\\" not in name and name.endswith(".safetensors")
    return plain and (home / name).is_file()


@dataclass(frozen=True)
class Model:
    """一个底模：本地的文件夹，以及还缺的部分从哪个站补（site 是 None 就补不了，why 说原因）。"""

    path: str
    folder: Path
    site: object = None
    listing: Listing | None = None
    why: str = "这里只认 safetensors；请把缺的补齐，或重新下载。"

    def needed(self, parts: Sequence[str]) -> list[Remote]:
        """站上的哪些文件是这些部分要用的；设置和词表很小，总是都要。"""
        return [file for file in self.listing.files if _needed(file.path, parts)]

    def mark(self, part: str) -> str:
        """站上这一部分的身份：每个文件的大小与指纹；没有问过站就是空的。"""
        if self.listing is None:
            return ""
        mine = [f for f in self.needed([part]) if f.path.startswith(f"{part}/")]
        rows = sorted((f.path, f.size, f.sha256 or f.git) for f in mine)
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def fetch(self, *parts: str):
        """保证这些部分都在本地，缺的下载；别的进程正在下同一个模型就等它。

        Raises:
            LorakitError: 补不了、磁盘不够、要先同意许可、网络断了、内容不对。
        """
        if self.site is None:
            lacking = absent(self.folder, parts) if parts else []
            if lacking:
                raise LorakitError(
                    f"model.path：“{self.path}”缺 {'、'.join(lacking[:3])}"
                    f"{' 等' if len(lacking) > 3 else ''}（在 {self.folder}）。{self.why}"
                )
            return
        if not self._missing(parts):
            return
        root = self.site.root(self.path)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / ".lorakit.lock"):
                self._download(parts)
        except OSError as error:
            raise LorakitError(
                f"写不进“{root}”：{plain_reason(error)}。"
                f"用环境变量 {self.site.home} 换一个能写的地方。"
            ) from error

    def _missing(self, parts: Sequence[str]) -> list[Remote]:
        return [f for f in self.needed(parts) if not _whole(self.folder / f.path, f.size)]

    def _download(self, parts: Sequence[str]):
        for file in self.needed(parts):
            self.site.settle(self.path, self.listing, file)  # 内容已经有了，只差链接的
        missing = self._missing(parts)
        targets = {self.site.target(self.path, self.listing, file): file for file in missing}
        jobs = [(file, to) for to, file in targets.items()]  # 内容相同的几个文件只下一次
        if jobs:
            need = sum(f.size - min(f.size, transfer.received(f, to)) for f, to in jobs)
            self._announce(missing, need, parts)
            try:
                transfer.download(jobs, self.site.headers())
            except Refused as error:
                raise refused(self, error.status) from error
            except Unreachable as error:
                raise LorakitError(
                    f"从 {self.site.title} 下载“{self.path}”时网络断了（{error}）。"
                    "已经下好的都留着，再运行同一条命令就接着下；"
                    "总是断就换镜像（HF_ENDPOINT）或来源（model.source）。"
                ) from error
            for file in missing:
                self.site.settle(self.path, self.listing, file)
        self.site.remember(self.path, self.listing)

    def _announce(self, missing: Sequence[Remote], need: int, parts: Sequence[str]):
        """说清楚要下什么、多大、从哪、到哪；磁盘不够就不开始。"""
        free = shutil.disk_usage(self.folder if self.folder.exists() else _above(self.folder)).free
        if need > free:
            raise LorakitError(
                f"磁盘不够：“{self.path}”还要下 {gigabytes(need)}，"
                f"{self.folder} 所在的盘只剩 {gigabytes(free)}。"
                f"腾出 {gigabytes(need - free)}，或用环境变量 {self.site.home} 换一个盘。"
            )
        if not parts:
            sizes = {part: 0 for file in self.listing.files if (part := _part(file.path))}
            for part in sizes:
                sizes[part] = sum(f.size for f in self.needed([part]) if _part(f.path) == part)
            each = "、".join(f"{part} {gigabytes(size)}" for part, size in sizes.items())
            print(
                f"“{self.path}”在 {self.site.title} 上：{each}。用到哪部分才下哪部分。",
                file=sys.stderr,
            )
        else:
            what = "、".join(sorted({file.path.split("/")[0] for file in missing}))
            print(
                f"下载“{self.path}”的 {what}：{len(missing)} 个文件，还要 {gigabytes(need)}，"
                f"从 {self.site.title}（{self.site.endpoint}）到 {self.folder}，"
                f"盘上还有 {gigabytes(free)}。中途断了，再运行同一条命令就接着下。",
                file=sys.stderr,
            )


def _needed(path: str, parts: Sequence[str]) -> bool:
    return bool(SMALL.fullmatch(path)) or _part(path) in set(parts) - {""}


def _part(path: str) -> str:
    """权重在哪个部分；不是要用的权重就是空的。"""
    part, _, name = path.rpartition("/")
    return part if "/" not in part and part and WEIGHTS.fullmatch(name) else ""


def _whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _above(path: Path) -> Path:
    return next(folder for folder in path.parents if folder.exists())


def locate(path: str, source: str = "auto") -> Path:
    """model.path -> diffusers 布局的文件夹；站上的先只下设置和词表。"""
    return find(path, source).folder


def find(path: str, source: str = "auto") -> Model:
    """model.path 与 model.source -> 底模；完整的一份已经在本地就不联网。

    Raises:
        LorakitError: 本地没有、站上没有、要先同意许可、或连不上。
    """
    local = bundled(path) if path in tiny_models() else user_path(path, "model.path")
    if (local / INDEX).is_file():
        return Model(path, local)
    if local.is_dir():
        raise LorakitError(
            f"model.path：文件夹“{local}”里没有 {INDEX}，不是 diffusers 布局的模型。"
        )
    if not REPO.fullmatch(path):
        raise LorakitError(
            f"model.path：找不到“{path}”：没有这个文件夹，也不是模型站上的名字"
            f"（要像 Qwen/Qwen-Image 这样）。随包的微型模型有：{'、'.join(tiny_models())}。"
        )
    sites = [make() for name, make in SITES.items() if source in ("auto", name)]
    copies = [(site, folder) for site in sites if (folder := site.copy(path))]
    for _, folder in copies:
        if not absent(folder):
            return Model(path, folder)
    if constants.HF_HUB_OFFLINE:
        mend = "现在是离线模式（HF_HUB_OFFLINE=1）：去掉它再运行，或先在能上网的机器上下好。"
        return _offline(path, copies, mend)
    sites.sort(key=lambda site: site.copy(path) is None)  # 下过一部分的站接着下
    return _online(path, sites, copies)


def _offline(path: str, copies, why: str) -> Model:
    """联不了网：有一份不完整的就先用着，真用到缺的部分再说。"""
    if not copies:
        raise LorakitError(f"model.path：“{path}”不在本地。{why}")
    return Model(path, copies[0][1], why=why)


def _online(path: str, sites, copies) -> Model:
    said, gates = [], []
    for site in sites:
        try:
            listing = site.listing(path)
            if not any(file.path == INDEX for file in listing.files):
                said.append(f"{site.title} 上的不是 diffusers 布局（没有 {INDEX}）")
                continue
            model = Model(path, site.folder(path, listing), site, listing)
            _check_gate(model)
            model.fetch()
        except Gated as error:
            gates.append(error)
            said.append(f"{site.title} 上的要先同意许可")
        except Refused as error:
            lost = error.status not in (403, 451)  # Hugging Face 对没有的模型回答 401
            said.append(f"{site.title} " + ("上没有它，或它是私有的" if lost else "不让看"))
        except Unreachable as error:
            said.append(f"{site.title}（{site.endpoint}）{error}")
        else:
            if said:
                warn(f"“{path}”：{'；'.join(said)}。改用 {site.title}。")
            return model
    if gates:
        raise gates[0]
    why = f"{'；'.join(said)}。"
    if any(site.endpoint in one for site in sites for one in said):
        why += "请检查网络和代理，或设 HF_ENDPOINT 用镜像。"
    tiny = f"名字写对了吗？随包的微型模型不用下载：{'、'.join(tiny_models())}。"
    return _offline(path, copies, why + ("" if copies else tiny))


def _check_gate(model: Model):
    """要先同意许可的，下载之前就问清楚，不等下到一半。"""
    if not model.listing.gated:
        return
    url = next(file.url for file in model.listing.files if file.path == INDEX)
    try:
        ask(url, model.site.headers(), "HEAD")
    except Refused as error:
        raise refused(model, error.status) from error


def refused(model: Model, status: int) -> LorakitError:
    """站上不给下载：为什么、要下多大、到哪里同意许可、怎么登录。"""
    site = model.site
    if status not in (401, 403):
        return LorakitError(
            f"从 {site.title} 下载“{model.path}”：服务器回答 {status}，文件不在了或地址不对。"
            "模型也许刚更新过，过一会儿再运行同一条命令；还不行就换来源（model.source）。"
        )
    parts = {_part(file.path) for file in model.listing.files}
    size = gigabytes(sum(file.size for file in model.needed(sorted(parts))))
    who = "登录了，但这个账号还没有被允许" if site.headers() else "还没有登录"
    return Gated(
        f"“{model.path}”要先同意许可才能从 {site.title} 下载（共 {size}），现在{who}。\n"
        f"  1. 打开 {site.page(model.path)} ，登录，读过许可后点同意；\n"
        f"  2. {site.login}；\n"
        "  3. 再运行同一条命令。许可里会写能不能商用，请看清楚。"
    )
