"""一份设置、三个入口：YAML、--set 和表单都走 `load_config`；各项在 groups.py。"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ValidationError

from lorakit.config.explain import Field, close_to, explain, inline, is_group, kinds_of, quoted
from lorakit.config.foreign import MARK, family_of, translate
from lorakit.config.groups import Data, Eval, Group, Lora, Memory, Model, Run, Sample, Train
from lorakit.config.others import incomplete, read_other, recognise
from lorakit.config.read import override, parse_file
from lorakit.errors import ConfigError
from lorakit.files import ASSETS, decoded, user_path

PRESETS = ASSETS / "presets"
ASKED = ("data.mask", "data.control_folder")  # 没写，旁边又有，就停下来问（data/select）


class Config(Group):
    """lorakit 的全部设置"""

    model: Model = Model()
    data: Data = Data()
    lora: Lora = Lora()
    train: Train = Train()
    sample: Sample = Sample()
    eval: Eval = Eval()
    memory: Memory = Memory()
    run: Run = Run()

    @property
    def bf16_weights(self) -> bool:
        """全量微调的权重也用 bf16 练，更新时随机舍入（见 training/rounding.py）。"""
        return self.lora.kind == "full" and self.model.precision == "bf16"

    def to_dict(self) -> dict[str, Any]:
        """变成只有基本类型的字典，可以直接写进 JSON。"""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """变成 YAML 文本；存成文件再 `load_config`，会得到完全一样的设置。"""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def fields() -> Iterator[Field]:
    """按书写顺序走遍每一项设置。"""
    return (field for field in _walk(Config) if not is_group(field.type))


def presets() -> list[str]:
    """自带的预设名。"""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_for(base: str) -> str | None:
    """底模的名字（Qwen/Qwen-Image）-> 用它的预设，几个里取名字最短的；没有就是 None。"""
    texts = {name: (PRESETS / f"{name}.yaml").read_text("utf-8") for name in presets()}
    maybe = [name for name, text in texts.items() if base in text]  # 全都解开要半秒
    named = [name for name in maybe if yaml.safe_load(texts[name])["model"]["path"] == base]
    return min(named, key=len, default=None)


def template(preset: str) -> str:
    """把一个预设写成完整的 YAML，每一项上面都有一句说明；供 `lorakit init` 使用。"""
    config = load_config(preset)
    lines = [decoded(_locate(preset).read_bytes()).splitlines()[0]]
    for field in _walk(Config):
        *groups, key = field.name.split(".")
        pad, value = "  " * len(groups), ""
        if not is_group(field.type):
            value = " " + inline(_value(config, field.name))
        elif not groups:
            lines.append("")
        aside = "# " if field.name in ASKED and _value(config, field.name) == field.default else ""
        lines += [f"{pad}# {field.sentence}", f"{pad}{aside}{key}:{value}"]
    return "\n".join(lines) + "\n"


def flat(config: Config) -> dict[str, Any]:
    """{设置名: 值}，例如 {"train.lr": 1e-4}。"""
    return {field.name: _value(config, field.name) for field in fields()}


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """两份设置哪里不同：{设置名: (a 的值, b 的值)}。"""
    old, new = flat(a), flat(b)
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}


def load_config(
    source: str | Path | dict | None = None,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Config:
    """读设置：`source` 是 YAML 文件、预设名、底模名、字典或 None，overrides 再逐条覆盖。

    别处常见的扁平 YAML 也能读，逐项对应交给 say 说出来。

    Raises:
        ConfigError: 一条消息，列出全部问题，每行一个。
    """
    known = {field.name: field for field in _walk(Config)}
    problems, where, other = [], "", None
    if isinstance(source, (str, Path)):
        path, where = _locate(source), f" {source} "
        tree = read_other(path)
        tree = parse_file(path, problems, known) if tree is None else tree
        if other := recognise(tree, _fits):
            tree = other.ours
            if other.lines:
                said = f"{source}：这是 {other.tool} 的设置，逐项对应如下："
                say("\n  ".join([said, *other.lines]))
        elif MARK in tree:
            tree, lines = translate(tree)
            say("\n  ".join([f"{source} 是别处的写法，逐项对应如下：", *lines]))
    elif source is None or isinstance(source, dict):
        tree = dict(source or {})
    else:
        raise ConfigError(f"读不了设置：得到 {quoted(source)}，应为：文件路径、预设名或字典。")
    given = [overrides] if isinstance(overrides, str) else list(overrides)
    for text in given:
        override(tree, text, known, problems)
    if other and (lacking := _lacking(tree)):
        shown = yaml.safe_dump(other.ours, sort_keys=False, allow_unicode=True)
        raise ConfigError(incomplete(str(source), other, lacking, shown))
    _settle_family(tree)
    if source in presets() and not any("train.warmup" in str(text) for text in given):
        _settle_warmup(tree)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems += explain(error, known)
    if problems:
        listed = "".join(f"\n  - {line}" for line in dict.fromkeys(problems))
        raise ConfigError(f"设置{where}有 {len(dict.fromkeys(problems))} 处要改：{listed}")
    return config


def _settle_warmup(tree: dict[str, Any]):
    """预设的热身是照它自己的步数写的：步数改得不比它多，就照新步数的一成热身。"""
    train = tree.get("train") or {}
    steps, warmup = (str(train.get(name, 0)) for name in ("steps", "warmup"))
    falls = train.get("schedule", "constant") != "constant"
    if falls and steps.isdecimal() and int(steps) <= int(warmup):  # 写错的留给检查去报
        train["warmup"] = int(steps) // 10


def _fits(name: str, value: Any) -> bool:
    """这一项设置收不收这个值。"""
    tree = value
    for part in reversed(name.split(".")):
        tree = {part: tree}
    try:
        Config.model_validate(tree)
    except ValidationError:
        return False
    return True


def _lacking(tree: dict[str, Any]) -> list[str]:
    """要练起来少不了、默认值又不是用户想要的那几项里，还没有写的。"""
    named = {"model.path": "path", "data.folder": "folder"}
    return [name for name, key in named.items() if not tree.get(name.split(".")[0], {}).get(key)]


def _settle_family(tree: dict[str, Any]):
    """写了底模、没有写家族：底模说它是哪一家，就是哪一家。"""
    model = tree.get("model")
    if isinstance(model, dict) and isinstance(model.get("path"), str) and "family" not in model:
        family, _ = family_of(model["path"])
        if family:
            tree["model"] = {**model, "family": family}


def _walk(group: type[BaseModel], prefix: str = "") -> Iterator[Field]:
    """先根遍历：组本身，再是它的每一项。"""
    for key, info in group.model_fields.items():
        limits = {}
        for kind, found in kinds_of(info.annotation, info.metadata):
            names = ("gt", "ge", "lt", "le", "multiple_of", "min_length")
            limits |= {n: getattr(m, n) for m in found for n in names if hasattr(m, n)}
            if kind is Literal:
                limits["choices"] = found
        said = info.annotation.__doc__ if is_group(info.annotation) else info.description
        # 源文件里一句话可以折行；中文折行处不加空格
        sentence, default = said.replace("\n", ""), info.get_default(call_default_factory=True)
        yield Field(prefix + key, info.annotation, default, sentence, limits)
        if is_group(info.annotation):
            yield from _walk(info.annotation, f"{prefix}{key}.")


def _value(config: Config, name: str) -> Any:
    return reduce(getattr, name.split("."), config)


def _locate(source: str | Path) -> Path:
    """预设名、底模的名字或路径 -> 文件；找不到就说附近有什么。"""
    name = source if source in presets() else preset_for(str(source))
    try:
        path = PRESETS / f"{name}.yaml" if name else user_path(source, "设置文件")
    except ConfigError as error:
        raise ConfigError(f"{error}可以用的有：{'、'.join(presets())}。") from error
    if path.is_file():
        return path
    folder = path if path.is_dir() else path.parent
    near = {file.name: str(file) for file in folder.glob("*.y*ml")} | {n: n for n in presets()}
    close = close_to(path.name, near) or close_to(path.stem, near)
    guess = f"是不是想写 {near[close[0]]}？" if close else ""
    what = "这是文件夹，不是文件" if path.is_dir() else "没有这个文件，也没有叫这个名字的预设"
    listed = "、".join(near.values())
    raise ConfigError(f"找不到设置“{source}”：{what}。{guess}可以用的有：{listed}。")
