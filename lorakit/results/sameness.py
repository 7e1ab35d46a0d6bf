"""接着练之前的核对：这一半和上一半练的是不是同一件事。比的是内容，不是叫什么名字、放在哪里。

检查点自己记着它是照什么设置、用哪些图、在哪份底模上练的，所以 config.yaml 丢了、
检查点是从别处复制来的，也看得出来。设置、底模不同就不接；数据、软件的版本不同，接得上，说清楚哪里不同。
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lorakit.config import Config, differences, load_config
from lorakit.errors import ConfigError, warn
from lorakit.files import Unreadable, digest, read_json
from lorakit.results import checkpoint

# 续训时可以改的设置：它们不影响已经练过的那些步
CHANGEABLE = (
    "train.steps", "train.save_every", "train.keep", "sample.", "eval.every", "memory.", "run.",
    "model.source",
)  # fmt: skip
PLACES = ("data.folder", "data.control_folder", "data.class_folder")  # 在哪里不要紧，内容另外比
ADAPTER = "training_adapter"  # 在 base 里：它也是冻住的底模的一部分
KEY = "trained_on"  # 在检查点的 state.json 里
PACKAGES = ("lorakit", "torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes",
            "torchao", "pillow", "pillow-heif")  # fmt: skip
PARTS = {"train": "训练的图", "held": "留出的图", "prior": "同类图片"}
WHAT = {"caption": "描述", "mask": "遮罩", "controls": "控制图", "repeats": "重复次数"}
SHOWN = 3


def facts(
    config: Config, dataset, base: Mapping[str, str], machine: Mapping[str, str]
) -> dict[str, Any]:
    """这一次练的是什么，记进检查点。

    Args:
        base: 底模的各部分（与训练适配器）-> 它的指纹。
        machine: 在什么上面算、什么精度。
    """
    parts = _parts(config, dataset)
    versions = {name: found for name in PACKAGES if (found := version_of(name))}
    known = {"config": config.to_dict(), "data": parts, "base": dict(base), "versions": versions}
    return known | {"machine": dict(machine)}


def _parts(config: Config, dataset) -> dict[str, list[dict[str, Any]]]:
    return {
        part: [_row(item.record, config.data.mask) for item in getattr(dataset, part)]
        for part in PARTS
    }


def data_moved(found: Path, config: Config, dataset) -> list[str]:
    """dataset 和检查点 found 练的时候比，哪里不同，一样一句；以前的检查点没有记，是空的。"""
    before = _dict(_recorded(found).get("data"))
    return _data_told(before, _parts(config, dataset)) if before else []


def trained_pictures(run: Path) -> dict[str, dict[str, dict]]:
    """run 的各个检查点记着的：{train、held: {图的内容: 那一行}}；都没有记就是空的。"""
    known: dict[str, dict[str, dict]] = {"train": {}, "held": {}}
    for path in checkpoint.all_of(run):
        data = _dict(_recorded(path).get("data"))
        for part, rows in known.items():
            listed = data.get(part) if isinstance(data.get(part), list) else []
            rows |= {row["picture"]: row for row in listed if _dict(row).get("picture")}
    return known if known["train"] else {}


def pictures_moved(known: Mapping[str, Mapping[str, dict]], records, mask: str) -> list[str]:
    """现在的图和练的时候比，哪里不同，一样一句；哪些留出是另一回事，不算。

    Args:
        known: `trained_pictures` 给的。
        records: 现在的训练的、留出的图。
        mask: 设置里的 data.mask。
    """
    old = list({**known["held"], **known["train"]}.values())
    new = list({r.digest: _row(r, mask) for r in records}.values())
    old.sort(key=lambda row: row["picture"])
    new.sort(key=lambda row: row["picture"])
    return [f"图{said}" for said in _part_told(old, new)]


def changed_by_card(run: Path, records) -> bool:
    """检查点没有记着图的（以前的版本）：运行卡 run.json 里的指纹和现在的不一样。"""
    known = _card(run).get("data")
    return bool(known) and known != _hash(records)


def settings(run: Path, new: Config, processes: int):
    """开始准备之前：设置不是同一份就停下（图和底模的内容，准备好了再由 `content` 比）。

    Raises:
        ConfigError: 里面是另一份设置的结果。
    """
    last = checkpoint.all_of(run)[-1]
    recorded, old = _recorded(last), config_of(last)
    if old is None:
        warn(
            f"run.output：“{run}”里没有 config.yaml，检查点也没有记着设置，没法核对设置；"
            "不放心就换一个 run.output。"
        )
        return
    changed = {
        name: pair
        for name, pair in differences(old, new).items()
        if not name.startswith(CHANGEABLE)
    }
    count = checkpoint.facts_of(last).get("processes") or processes
    before, now = old.train.grad_accum * count, new.train.grad_accum * processes
    if before == now:  # 进程少了、累积多了，一步看的图还是那些
        changed.pop("train.grad_accum", None)
    if recorded.get("data") or _card(run).get("data"):
        for name in PLACES:
            changed.pop(name, None)
    if recorded.get("base") and Path(new.model.path).expanduser().is_dir():
        changed.pop("model.path", None)
    if _dict(recorded.get("base")).get(ADAPTER) and new.model.training_adapter:
        changed.pop("model.training_adapter", None)
    warmed = changed.pop("train.warmup", None) if _by_steps(old, new) else None
    if changed:
        raise _other(run, [f"{n}：原来 {a}，现在 {b}" for n, (a, b) in changed.items()])
    train = new.train
    if warmed:
        warn(
            f"train.warmup 原来是 {warmed[0]}（照 {old.train.steps} 步定的），"
            f"现在是 {warmed[1]}（照 {train.steps} 步定的）。接得上；"
            f"要和原来一样，就加上 --set train.warmup={warmed[0]}。"
        )
    if before != now:
        same = f"，要一样就把 train.grad_accum 改成 {before // processes}"
        warn(
            f"进程数变了：一步原来看 {before} 批，现在 {now} 批。接得上，但取图的次序、"
            f"噪声和每步的图数都和没断过不同{'' if before % processes else same}。"
        )


def _by_steps(old: Config, new: Config) -> bool:
    """热身不同，是不是只因为步数不同：步数不比预设的热身多时，照步数的一成（见 config/load）。"""
    few, many = sorted((old.train, new.train), key=lambda train: train.steps)
    both = many.warmup == many.steps // 10  # 多的那一次也不比预设的热身多
    fell = few.schedule != "constant" and few.warmup == few.steps // 10
    return fell and (both or few.steps <= many.warmup)


def content(found: Path, now: Mapping[str, Any], dataset):
    """准备好之后：检查点 found 是在哪份底模、哪些图上练的，和这一次比。

    Args:
        now: `facts` 给的。

    Raises:
        ConfigError: 底模不是那一份；以前的结果文件夹，图换了地方、内容也不同。
    """
    run, before = found.parent, _recorded(found)
    if not before:
        _by_card(run, now, dataset)
        return
    old, new = _config(before), _config(now)
    if old and new and found != checkpoint.all_of(run)[-1]:  # 最后一个坏了，接的是前一个
        changed = [
            f"{name}：原来 {a}，现在 {b}"
            for name, (a, b) in differences(old, new).items()
            if not name.startswith((*CHANGEABLE, *PLACES, "model.path", "train.grad_accum"))
            and not (name == "train.warmup" and _by_steps(old, new))
        ]
        if changed:
            raise _other(run, changed)
    moved = []
    for key in ("base", "whole"):  # 抽样的，每个字节的；以前的检查点只记了抽样的
        was = _dict(before.get(key))
        moved += [part for part, one in now[key].items() if was.get(part, one) != one]
    if moved := list(dict.fromkeys(moved)):
        parts = [part for part in moved if part != ADAPTER]
        said = [f"model.path：底模的 {'、'.join(parts)} 换了内容，不是原来那一份"] * bool(parts)
        said += ["model.training_adapter：换了内容，不是原来那一份"] * (ADAPTER in moved)
        raise _other(run, said)
    told = _data_told(_dict(before.get("data")), now["data"])
    if told:
        warn(
            f"数据和 {found.name} 那时不一样：{'；'.join(told)}。接着练，后一半用的是现在的数据；"
            "要和原来一样就改回来，要分开练就换一个 run.output。"
        )
    for what, key in (("软件的版本", "versions"), ("机器", "machine")):
        was = _dict(before.get(key))
        newer = [
            f"{name} {was[name]} -> {one}"
            for name, one in now[key].items()
            if was.get(name) and was[name] != one
        ]
        if newer:
            said = f"{what}和 {found.name} 那时不一样：{'、'.join(newer)}"
            warn(f"{said}。接得上，不保证逐位相同。")


def _by_card(run: Path, now: Mapping[str, Any], dataset):
    """以前的检查点没有记数据：运行卡 run.json 里有数据的指纹。"""
    known = _card(run).get("data")
    if not known or known == data_hash(dataset):
        return
    old, new = _saved(run), _config(now)
    moved = {n: p for n, p in differences(old, new).items() if n in PLACES} if old and new else {}
    if moved:
        raise _other(run, [f"{n}：原来 {a}，现在 {b}，内容不同" for n, (a, b) in moved.items()])
    warn(f"数据（图、描述或控制图）和“{run}”上次练的不一样。接着练，后一半用的是现在的数据。")


def data_hash(dataset) -> str:
    """训练的与留出的图、描述、控制图的指纹；和它们放在哪里、叫什么无关。"""
    return _hash(item.record for item in (*dataset.train, *dataset.held))


def _hash(records: Iterable) -> str:
    seen = sorted((one.digest, one.caption, *one.control_digests) for one in records)
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def _row(record, kind: str) -> dict[str, Any]:
    row = {"name": record.path.name, "picture": record.digest, "caption": _short(record.caption)}
    if record.controls:
        row["controls"] = [one[:16] for one in record.control_digests]
    if record.repeats != 1:
        row["repeats"] = record.repeats
    if kind == "file" and record.mask:
        row["mask"] = digest(record.mask)[:16]
    return row


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def version_of(package: str) -> str | None:
    """装的是哪一版；没有用 pip 安装（在源码的文件夹里 python -m lorakit）就是 None。"""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _recorded(path: Path) -> dict[str, Any]:
    """检查点记着的；以前的版本没有记，就是空的。"""
    return _dict(checkpoint.facts_of(path).get(KEY))


def config_of(path: Path) -> Config | None:
    """检查点是照什么设置练的；没有记，就看旁边的 config.yaml，也没有就是 None。"""
    return _config(_recorded(path)) or _saved(path.parent)


def _config(recorded: Mapping[str, Any]) -> Config | None:
    try:
        return load_config(recorded["config"]) if recorded.get("config") else None
    except ConfigError:  # 别的版本写的，有这里没有的设置
        return None


def _saved(run: Path) -> Config | None:
    path = run / "config.yaml"
    return load_config(path) if path.is_file() else None


def _card(run: Path) -> dict[str, Any]:
    try:
        return read_json(run / "run.json", finite=False)
    except Unreadable:
        return {}


def _other(run: Path, lines: Iterable[str]) -> ConfigError:
    listed = "".join(f"\n  - {line}" for line in lines)
    return ConfigError(
        f"run.output：“{run}”里是另一份设置的结果：{listed}\n"
        "换一个 run.output，或改回原来的设置接着练。"
    )


def _data_told(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """两次的数据哪里不同，一样一句；按图的内容对，改了名字不算。"""
    told = []
    for part, called in PARTS.items():
        rows = before.get(part)
        old = [row for row in rows if _dict(row).get("picture")] if isinstance(rows, list) else []
        told += [f"{called}{said}" for said in _part_told(old, now[part])]
    return told


def _part_told(old: Sequence[dict], new: Sequence[dict]) -> list[str]:
    both, gone, added = _paired(old, new)
    replaced = {row["name"] for row in added} & {row.get("name") for row in gone}
    told = []
    for what, rows in (("多了", added), ("少了", gone)):
        rows = [row for row in rows if row.get("name") not in replaced]
        if rows:
            told.append(f"{what} {len(rows)} 张（{_names(rows)}）")
    if replaced:
        told.append(f"换了内容 {len(replaced)} 张（{'、'.join(sorted(replaced)[:SHOWN])}）")
    for field, called in WHAT.items():
        rows = [row for was, row in both if was.get(field) != row.get(field)]
        if rows:
            told.append(f"的{called}变了 {len(rows)} 份（{_names(rows)}）")
    if not told and [r["picture"] for r in old] != [r["picture"] for r in new]:
        told.append("的次序变了，取图的先后会不同")
    return told


def _paired(old: Sequence[dict], new: Sequence[dict]) -> tuple[list, list, list]:
    """(同一张图的前后两行, 少了的, 多了的)；同一张图存了几份的，一份对一份，先对最像的。"""
    both, gone, added = [], list(old), list(new)
    for fields in (("picture", "name", *WHAT), ("picture", "name"), ("picture",)):
        waiting = defaultdict(list)
        for row in gone:
            waiting[repr([row.get(field) for field in fields])].append(row)
        rest = []
        for row in added:
            same = waiting[repr([row.get(field) for field in fields])]
            if same:
                both.append((same.pop(0), row))
            else:
                rest.append(row)
        kept = {id(row) for rows in waiting.values() for row in rows}
        gone, added = [row for row in gone if id(row) in kept], rest
    return both, gone, added


def _names(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = "、".join(str(row.get("name")) for row in rows[:SHOWN])
    return f"{shown} 等" if len(rows) > SHOWN else shown
