"""LoRA 文件头里的说明：别的软件认的几项，我们自己的卡片；本地的路径一概不写进去。

modelspec.* 是 Stability AI 的 ModelSpec 1.0.1，ss_* 是 kohya 一系的；
Civitai 与各种 LoRA 管理器都照它们显示底模、触发词与秩。
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lorakit.errors import WeightsError
from lorakit.files import Unreadable, parse_json

LOCAL = re.compile(r"(/|~|\.{1,2}[\\/]|[A-Za-z]:[\\/]|\\\\|file:)")
TAGS = 500  # 最多记这么多种词：文件头不能太大
LONGEST, MOST = 1 << 20, 200  # 从别人的文件带过来的：一项最多多少字、最多几项
KEPT = ("modelspec.", "ss_")  # 转换写法时从原来的文件带过去的
STALE = ("modelspec.hash_sha256", "ss_network_args")  # 换了写法就不对了的


def bare(value):
    """文件夹只留最后一段：别人用不上，还会露出你的用户名；列表、字典、JSON 里的也算。"""
    if isinstance(value, dict):
        return {bare(key): bare(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [bare(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if value.lstrip()[:1] in ("{", "["):
        try:
            return json.dumps(
                bare(parse_json(value, (dict, list), finite=False)), ensure_ascii=False
            )
        except Unreadable:
            pass  # 只是以括号开头的一句话
    return re.split(r"[\\/]", value.rstrip("\\/"))[-1] if LOCAL.match(value) else value


def base_of(path: str) -> str:
    """底模怎么写进文件：站上的名字照写，本地的文件夹只写最后一段。"""
    there = Path(path).expanduser().is_dir() or path.count("/") > 1 or "\\" in path
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] if there else bare(path)


def of(file: Path) -> dict[str, str]:
    """文件头里的全部说明。

    Raises:
        WeightsError: 不是完整的 safetensors 文件。
    """
    try:
        with safe_open(file, framework="pt") as handle:
            return handle.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"“{file}”打不开：不是完整的 safetensors 文件（{error}）。请重新下载或换一个。"
        ) from error


def describe(
    family, base: str, name: str, *, trigger="", resolution=0, licence="", captions=()
) -> dict[str, str]:
    """别的软件认的几项；不知道的不写。

    Args:
        name: LoRA 的名字，一般是结果文件夹或文件的名字。
        captions: 训练用的描述，用来数词（ss_tag_frequency）。
    """
    known = family.called.items()
    architecture, version = next(said for word, said in known if word in base_of(base).lower())
    told = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.trigger_phrase": trigger,
        "modelspec.resolution": f"{resolution}x{resolution}" if resolution else "",
        "modelspec.license": licence,
        "ss_base_model_version": version,
        "ss_output_name": name,
        "ss_tag_frequency": _tags(name, captions),
    }
    return {key: value for key, value in told.items() if value}


def _tags(name: str, captions: Iterable[str]) -> str:
    """kohya 的写法：{数据的名字: {词: 几次}}；描述按逗号分开。"""
    words = (word.strip() for said in captions for word in re.split(r"[,，]", said))
    counted = dict(Counter(word for word in words if word).most_common(TAGS))
    return json.dumps({name: counted}, ensure_ascii=False) if counted else ""


def header(
    card: Mapping[str, str], about: Mapping[str, str], rank: int, name: str | None = None
) -> dict[str, str]:
    """写进文件头的全部：alpha 已经乘进权重，所以记成等于秩；不留本地的路径。

    Args:
        about: `describe` 给的，或从原来的文件带过来的。
        name: 换一个名字；不写就照 about。
    """
    kept = {k: v for k, v in about.items() if k.startswith(KEPT) and k not in STALE}
    kept = dict([(k, v) for k, v in kept.items() if len(v) <= LONGEST][:MOST])
    renamed = {"modelspec.title": name, "ss_output_name": name} if name else {}
    card = {"rank": str(rank), **card, "alpha": "folded"}
    if "base" in card:
        card["base"] = base_of(card["base"])
    whole = {
        **bare(kept),
        **renamed,
        "ss_network_module": "networks.lora",
        "ss_network_dim": card["rank"],
        "ss_network_alpha": card["rank"],
        "format": "pt",
        "lorakit": json.dumps(bare(card), ensure_ascii=False),
    }
    return {key: str(value) for key, value in whole.items()}


def clean(file: Path) -> bytes | None:
    """文件头里有本地的路径 -> 去掉之后的整个文件；没有就是 None。张量一个字节也不动。"""
    before = of(file)
    after = {key: _inert(key, value) for key, value in before.items()}
    if after == before:
        return None
    whole = file.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    head = parse_json(whole[8 : 8 + size])
    head["__metadata__"] = after
    packed = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    packed += b" " * (-len(packed) % 8)  # 张量要对齐到 8 字节
    return len(packed).to_bytes(8, "little") + packed + whole[8 + size :]


def _inert(key: str, value: str) -> str:
    if key != "lorakit":
        return bare(value)
    try:
        card = parse_json(value)
    except Unreadable:  # 别人写坏的卡片：只去掉路径
        return bare(value)
    if isinstance(card.get("base"), str):
        card["base"] = base_of(card["base"])
    return json.dumps(bare(card), ensure_ascii=False)
