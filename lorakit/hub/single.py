"""站上仓库里的一个 LoRA 文件：不是整个底模，只要这一个。"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from lorakit.errors import LorakitError
from lorakit.files import user_path
from lorakit.hub.find import Gated, Model
from lorakit.hub.sites import SITES
from lorakit.hub.transfer import Refused, Remote, Unreachable

NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:/((?:\w[\w.-]*/)*\w[\w.-]*\.safetensors))?")


@dataclass(frozen=True)
class File(Model):
    """仓库里的一个文件；下载、核对、说话都和底模的一样。"""

    name: str = ""

    def needed(self, parts: Sequence[str]) -> list[Remote]:
        return [file for file in self.listing.files if file.path == self.name]


def single(said: str, source: str, field: str) -> Path:
    """本地的路径，或站上的 作者/仓库/文件.safetensors -> 本地的路径；下载过的不联网。

    Args:
        field: 哪一项设置写的，报错时说。

    Raises:
        LorakitError: 本地没有、站上也没有，或仓库里有几个、说不清是哪个。
    """
    local = user_path(said, field)
    if local.exists():
        return local
    named = NAME.fullmatch(said)
    if named is None:
        raise LorakitError(
            f"{field}：没有“{said}”这个文件，也不是站上的名字。"
            "请写本地的 LoRA 文件，或 作者/仓库/文件.safetensors。"
        )
    repo, name = named[1], named[2] or ""
    sites = [make() for key, make in SITES.items() if source in ("auto", key)]
    for site in sites:
        if name and (folder := site.copy(repo, name)):
            return folder / name
    if constants.HF_HUB_OFFLINE:
        raise LorakitError(
            f"{field}：“{said}”没有下载过。现在是离线模式（HF_HUB_OFFLINE=1）："
            "去掉它再运行，或先在能上网的机器上下好。"
        )
    return _online(repo, name, sites, field)


def _online(repo: str, name: str, sites, field: str) -> Path:
    told = []
    for site in sites:
        try:
            listing = site.listing(repo)
        except Refused:
            told.append(f"{site.title} 上没有这个仓库，或它是私有的")
            continue
        except Unreachable as error:
            told.append(f"{site.title}（{site.endpoint}）{error}")
            continue
        there = [f.path for f in listing.files if f.path.endswith(".safetensors")]
        if name in there or (not name and len(there) == 1):
            chosen = name or there[0]
            made = File(repo, site.folder(repo, listing), site, listing, name=chosen)
            try:
                made.fetch(chosen)
            except Gated as error:
                raise LorakitError(f"{field}：{error}") from error
            return made.folder / chosen
        have = f"有 {'、'.join(there[:5])}" if there else "没有 safetensors 文件"
        told.append(f"{site.title} 的“{repo}”里{have}" + ("" if name else "：要写上是哪一个"))
    raise LorakitError(f"{field}：找不到“{repo}{name and '/'}{name}”。{'；'.join(told)}。")
