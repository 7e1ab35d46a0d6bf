"""检查点：先写到临时名字、落盘、再改名，任何时刻断电都只会留下完整的；续训与没断过一样。"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from lorakit.errors import WeightsError
from lorakit.files import Unreadable, digest, inside, read_json, write_text, write_whole
from lorakit.lora.files import find
from lorakit.lora.steps import STATE, all_of, folder_of, lost, step_of, way_out
from lorakit.lora.tensors import sharded, write_tensors
from lorakit.memory.sharded import Tensors, shared_like

FACTS = "state.json"
SUM = "checksum"  # state.json 里其余各项的 sha256
GROUP = "group-"  # 参数组里的数，与参数名分得开
SHAPE = {
    "step": lambda step: type(step) is int and step >= 0,
    "files": {str: str},
    "optimizer": {
        str: lambda value: value is None or isinstance(value, bool | int | float | str | list)
    },
    "processes?": lambda count: type(count) is int and count > 0,
    "exported?": {str: str},
    SUM + "?": str,
}
OLD = {"step", "files", "optimizer", "processes"}  # 没有 checksum 的时候就只有这些
Parameters = dict[str, torch.nn.Parameter]


def _unfold(optimizer, names: list[str]) -> tuple[dict[str, torch.Tensor], dict]:
    """优化器的全部状态 -> 张量 {名字|键: 值} 与其余（组里的数、不是张量的状态），后者进 JSON。"""
    whole = optimizer.state_dict()
    tensors, plain = {}, {}
    rows = [(names[index], values) for index, values in whole["state"].items()]
    groups = [{k: v for k, v in g.items() if k != "params"} for g in whole["param_groups"]]
    rows += [(f"{GROUP}{i}", values) for i, values in enumerate(groups)]
    for name, values in rows:
        for key, value in _flat(values):
            if isinstance(value, torch.Tensor):
                tensors[f"{name}|{key}"] = value
            elif isinstance(value, bool | int | float | str | tuple | list | None):
                plain[f"{name}|{key}"] = value
            else:
                raise TypeError(f"优化器的状态 {key} 是 {type(value).__name__}，不会存。")
    return tensors, plain


def _flat(values: Mapping) -> Iterator[tuple[str, object]]:
    """bitsandbytes 把 8 位的状态包在里层的字典里（给 FSDP 看的）；拆开了它也认。"""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield key, value


def snapshot(
    parameters: Parameters, optimizer, average: Tensors
) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    """续训要的一切 -> ({文件名: 张量}, 进 JSON 的数)；切开的张量还没有拼。"""
    tensors, plain = _unfold(optimizer, list(parameters))
    whole = {"weights": parameters, "optimizer": tensors}
    whole |= {"average": average} if average else {}
    files = {}
    for stem, one in whole.items():
        files |= sharded(stem, one)
    return files, plain


def save(
    run: Path,
    step: int,
    files: Iterable[tuple[str, Tensors]],
    facts: dict,
    write_weights: Callable[[Path], None],
    keep: int,
) -> Path:
    """写 run/checkpoint-{step}，再删掉多余的旧检查点，返回它的路径。

    Args:
        files: 一个个文件名与其中的张量，`snapshot` 给的，切开的拼好了；写完一个才取下一个。
        facts: 要记进 state.json 的其余。
        write_weights: 函数 (文件夹) -> None，写给别人用的权重文件。
        keep: 留下最新的几个；新的落盘之后才删旧的。
    """

    def write(folder: Path):
        (folder / STATE).mkdir(parents=True)
        write_weights(folder)
        for name, tensors in files:
            write_tensors(folder / STATE / name, tensors)
        digests = {path.name: digest(path) for path in sorted((folder / STATE).iterdir())}
        ours = (path for path in sorted(folder.rglob("*")) if path.is_file())
        given = {path.relative_to(folder).as_posix(): path for path in ours}
        exported = {n: digest(p) for n, p in given.items() if not n.startswith(f"{STATE}/")}
        whole = {"step": step, "files": digests, "exported": exported, **facts}
        (folder / STATE / FACTS).write_text(_told(whole), encoding="utf-8")

    path = write_whole(folder_of(run, step), write)
    # 后面的是坏的，续练时跳过了；别的程序也有叫 checkpoint-500 的，不是我们写的不删
    older = [one for one in all_of(run) if step_of(one) <= step and is_ours(one)]
    for old in older[:-keep]:
        shutil.rmtree(old, ignore_errors=True)  # 有人正看着它就删不掉，下次再删
    return path


def mend(path: Path, write_weights: Callable[[Path], None]):
    """检查点 path 里给别人用的文件丢了、坏了：重新写一份，接着练要的一个字节也不动。

    Args:
        write_weights: 同 `save`。
    """
    facts, made = facts_of(path), {}

    def write(folder: Path):
        folder.mkdir()
        write_weights(folder)
        for one in sorted(p for p in folder.rglob("*") if p.is_file()):
            made[one.relative_to(folder).as_posix()] = digest(one)

    home = path.with_name(f".{path.name}.0.tmp")
    try:
        write_whole(home, write)
        for one in sorted(home.iterdir()):
            write_whole(path / one.name, one.rename)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if facts.get("exported") != made:  # 版本、描述和那时不同，文件头就不同
        write_text(path / STATE / FACTS, _told(facts | {"exported": made}))


def _told(facts: dict) -> str:
    """state.json 的内容。"""
    return json.dumps({**facts, SUM: _sum(facts)}, indent=1)


def is_ours(path: Path) -> bool:
    """是不是我们写的检查点（坏了的也算）；链接不算。"""
    return not path.is_symlink() and (path / STATE).is_dir()


def _sum(facts: dict) -> str:
    rest = {key: value for key, value in facts.items() if key != SUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def facts_of(path: Path) -> dict:
    """检查点的 state.json：步数、进程数、优化器的数；没有、坏了、改过就是空的。"""
    try:
        facts = read_json(path / STATE / FACTS, SHAPE, finite=False)
    except Unreadable:
        return {}
    kept = facts[SUM] == _sum(facts) if SUM in facts else set(facts) <= OLD
    return facts if kept and facts["step"] == step_of(path) else {}


def latest(run: Path) -> Path | None:
    """最新的、核对无误的检查点；损坏的跳过，没有就返回 None。"""
    for path in reversed(all_of(run)):
        files = facts_of(path).get("files")
        if files and _same(path / STATE, files):
            return path
    return None


def changed(path: Path) -> list[str]:
    """检查点里给别人用的文件，哪些不见了、和存的时候不一样了；以前的检查点没有记，只知道在不在。"""
    recorded = facts_of(path).get("exported", {})
    wrong = [name for name, known in recorded.items() if not _same(path, {name: known})]
    return lost(path) if not recorded and is_ours(path) else wrong


def refuse_changed(file: Path):
    """一个 LoRA 或权重文件属于检查点，就核对它。

    Raises:
        WeightsError: 存好以后变了：坏了，或被人换过。
    """
    home = next((one for one in (file, *file.parents[:2]) if step_of(one) is not None), None)
    if home is not None and (wrong := changed(home)):
        there = (home / wrong[0]).is_file()
        what = "和存的时候不一样了：磁盘出了错，或被换过" if there else "不见了"
        raise WeightsError(f"“{home / wrong[0]}”{what}。{way_out(home)}")


def exported(path: Path) -> Path:
    """LoRA 文件、检查点或结果文件夹 -> 那个 safetensors 文件；属于检查点的，核对过和存的时候一样。

    Raises:
        WeightsError: 没有这个文件，或存好以后变了。
    """
    file = find(path)
    refuse_changed(file)
    return file


def _same(folder: Path, digests: dict[str, str]) -> bool:
    """这几个文件都在里面，内容也没有变。"""
    paths = {name: inside(folder, name) for name in digests}
    try:
        return all(paths[n] and digest(paths[n]) == one for n, one in digests.items())
    except OSError:  # 读不出来：盘坏了
        return False


def load(path: Path, parameters: Parameters, optimizer, average=None) -> int:
    """把检查点里的权重、优化器状态与滑动平均原样放回去，返回已经练完的步数。

    Raises:
        WeightsError: 检查点与现在的模型对不上。
    """
    state = path / STATE
    facts = facts_of(path)
    _put_back(path, _read(state, "weights", facts), parameters)
    if average:
        _put_back(path, _read(state, "average", facts), average)
    indices = {name: index for index, name in enumerate(parameters)}
    whole = optimizer.state_dict()
    whole["state"] = {index: {} for index in indices.values()}
    large = {}
    for place, value in (_read(state, "optimizer", facts) | facts["optimizer"]).items():
        name, _, key = place.rpartition("|")
        group = name.removeprefix(GROUP)
        if group != name:
            if not _fits(whole["param_groups"], group, key, value):
                raise _mismatch(path)
            whole["param_groups"][int(group)][key] = _plain(value)
        elif name not in indices:
            raise _mismatch(path)
        elif isinstance(value, torch.Tensor) and value.dim():
            large[name, key] = value
        else:
            whole["state"][indices[name]][key] = _plain(value)
    optimizer.load_state_dict(whole)
    # 大的自己放：torch 会把它们换成参数的精度，bitsandbytes 先在内存里整份复制一遍
    for (name, key), value in large.items():
        parameter = parameters[name]
        # 总要复制：读出来的映射着文件，一直握着它，Windows 上这个检查点就删不掉
        value = value.to(parameter.device, copy=True)
        optimizer.state[parameter][key] = shared_like(value, parameter)
    return facts["step"]


def _read(state: Path, stem: str, facts: dict) -> dict[str, torch.Tensor]:
    """sharded 写的一个或几个文件，合在一起；只看记着、核对过的，混进来的别的文件不算。"""
    found = {}
    for name in sorted(facts["files"]):
        if name.startswith(stem) and name.endswith(".safetensors"):
            found |= load_file(state / name)
    return found


def _plain(value):
    """进过 JSON 的元组还原；小张量复制一份，不再握着文件。"""
    if isinstance(value, torch.Tensor):
        return value.clone()
    return tuple(value) if isinstance(value, list) else value


def _fits(groups: list[dict], number: str, key: str, value) -> bool:
    """真有这个参数组；里面已经有的一项，现在的值也是这一类（prodigy 练起来才添上几项）。"""
    if not (number.isdecimal() and int(number) < len(groups)):
        return False
    now, number_like = groups[int(number)].get(key), (int, float, torch.Tensor)
    if isinstance(now, list | tuple):
        numbers = isinstance(value, list) and len(value) == len(now)
        return numbers and all(one is None or isinstance(one, int | float) for one in value)
    return (
        now is None
        or value is None
        or isinstance(now, number_like) == isinstance(value, number_like)
    )


def _mismatch(path: Path) -> WeightsError:
    return WeightsError(
        f"检查点“{path}”里的权重与现在的模型对不上。换一个 run.output，或用原来的设置续训。"
    )


def _put_back(path: Path, saved: dict, current: Mapping[str, torch.Tensor]):
    if set(saved) != set(current):
        raise _mismatch(path)
    with torch.no_grad():
        for name, value in current.items():
            value.copy_(shared_like(saved[name], value))
