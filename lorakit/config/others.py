"""别的训练器的设置文件（ai-toolkit、musubi、OneTrainer、kohya……）：认出来，能对应的逐项对应。"""

import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lorakit.config.translation import Found, Translation, as_dict, as_list
from lorakit.errors import ConfigError
from lorakit.files import Unreadable, decoded, parse_json, read_small


def read_other(path: Path) -> dict | None:
    """TOML、JSON 文件的内容；别的后缀返回 None，由 YAML 去读。"""
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".json"):
        return None
    try:
        text = decoded(read_small(path))
        if suffix == ".json":
            tree = parse_json(text, (dict, list), finite=False)
        else:
            tree = tomllib.loads(text)
    except (Unreadable, ValueError, RecursionError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"设置文件 {path} 不是合格的 {suffix[1:].upper()}：{why}。") from None
    if _concepts(tree):  # OneTrainer 的 concepts.json 单独一份
        return {"concepts": tree, "training_method": None}
    if isinstance(tree, dict) and isinstance(name := tree.get("concept_file_name"), str):
        tree["concepts"] = tree.get("concepts") or _beside(path, name)
    if not isinstance(tree, dict):
        raise ConfigError(f"设置文件 {path} 的内容不对：最外层要是“名字: 值”的样子。")
    return tree


def _concepts(tree: Any) -> bool:
    """OneTrainer 的图片清单：一个列表，每一项有图片文件夹。"""
    return isinstance(tree, list) and bool(tree) and all("path" in as_dict(one) for one in tree)


def _beside(path: Path, name: str) -> list | None:
    """设置里提到的 concepts.json：从它旁边、或从当前文件夹找；找不到就是 None。"""
    for place in (path.parent / name, Path(name)):
        try:
            tree = parse_json(decoded(read_small(place)), list)
        except (Unreadable, UnicodeDecodeError):
            continue
        if _concepts(tree):
            return tree
    return None


def recognise(tree: Mapping[str, Any], fits: Callable[[str, Any], bool]) -> Found | None:
    """别的训练器的设置 -> 对应成的；认不出就是 None。

    Args:
        fits: 函数 (设置名, 值) -> 这里收不收这个值；不收的写进说明，不拦着。
    """
    datasets = as_list(tree.get("datasets"))
    if "job" in tree or isinstance(as_dict(tree.get("config")).get("process"), list):
        return Translation("ai-toolkit", fits).ai_toolkit(tree)
    if "training_method" in tree or ("__version" in tree and "base_model_name" in tree):
        return Translation("OneTrainer", fits).onetrainer(tree)
    if datasets and any("subsets" in one for one in datasets):
        return Translation("kohya", fits).datasets(tree)
    if datasets or {"general", "cache_directory"} <= set(tree):
        return Translation("musubi", fits).datasets(tree)
    flat = dict(_merged(tree))
    if {"network_dim", "network_module", "train_data_dir", "LoRA_type"} & set(flat):
        tool = "musubi" if "dit" in flat or "dataset_config" in flat else "kohya"
        return Translation(tool, fits).kohya(flat)
    if "type" in as_dict(tree.get("model")) and ("adapter" in tree or "dataset" in tree):
        return Found("diffusion-pipe", {}, [])
    if "data_backend_config" in flat or any(str(key).startswith("--") for key in tree):
        return Found("SimpleTuner", {}, [])
    return None


def incomplete(where: str, found: Found, lacking: list[str], text: str) -> str:
    """还缺底模或图片文件夹、不能照原样练时的一句话；text 是能照抄的设置。"""
    copy = f"能照抄的是：\n{text}" if found.ours else "没有能照抄的；"
    sets = " ".join(f"--set {name}=……" for name in lacking)
    return (
        f"“{where}”：这是 {found.tool} 的设置，不是 lorakit 的。{copy}还缺 {'、'.join(lacking)}："
        f"写进自己的 YAML（先 lorakit init qwen-image > my.yaml），或在命令后面加 {sets}。"
    )


def _merged(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """kohya 的 TOML 可以分节，节的名字没有意义。"""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from value.items()
        else:
            yield key, value
