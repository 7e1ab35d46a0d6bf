"""设置变成表单：名字、说明、校验都来自 `config.fields()`，和 YAML、--set 走同一个入口。"""

from types import UnionType
from typing import Literal, Union, get_args, get_origin

import yaml

from lorakit.config import Config, fields, load_config
from lorakit.config.explain import Field
from lorakit.config.read import bounded, syntax
from lorakit.data.folder import walk
from lorakit.errors import ConfigError
from lorakit.inert import in_html
from lorakit.lab.display import Placed, both, table, widgets
from lorakit.training import preflight

FEW = 3  # 这么几组以内就全摊开


def form(config: Config | None = None, groups: tuple[str, ...] = ()) -> "Form":
    """摆出表单；`form(...).config` 是现在的设置。groups 只显示这几组，例如 ("data", "train")。"""
    made = Form(config or load_config(), groups)
    made.display()
    return made


class Form(Placed):
    """一份设置的表单；写错时 config 保持上一份对的，message 说哪里要改。"""

    def __init__(self, config: Config, groups: tuple[str, ...] = ()):
        w = widgets()
        self.config = config
        chosen = [f for f in fields() if not groups or f.name.split(".")[0] in groups]
        if not chosen:
            known = "、".join(Config.model_fields)
            raise ConfigError(f"form：没有叫 {'、'.join(groups)} 的组。有的是：{known}。")
        self.fields = {field.name: field for field in chosen}
        self.inputs = {name: _input(field, self._text(name)) for name, field in self.fields.items()}
        self.said = {name: w.HTML() for name in self.fields}  # 每一项下面的话：改好了，或哪里要改
        self.message = w.HTML()
        self.yaml = w.Textarea(config.to_yaml(), layout=w.Layout(width="95%", height="160px"))
        read = w.Button(description="从 YAML 读入", icon="upload")
        read.on_click(lambda button: self.read_yaml(self.yaml.value))
        for box in self.inputs.values():
            box.observe(self._changed, names="value")
        self._busy = False
        self.box = w.VBox([self._laid_out(w, w.VBox([self.yaml, read])), self.message])
        self._freshen = lambda static: None

    def _laid_out(self, w, yaml):
        """两三组就全摊开，要看的都在眼前；整份设置太长，一组一组折起来。"""
        groups = self._names()
        parts = {Config.model_fields[g].annotation.__doc__: self._group(g, w) for g in groups}
        few = len(groups) <= FEW
        folded = {"YAML": yaml} if few else parts | {"YAML": yaml}
        # 全合上的，读者不知道能点
        accordion = w.Accordion(children=[*folded.values()], selected_index=None if few else 0)
        for i, title in enumerate(folded):
            accordion.set_title(i, title)
        if not few:
            return accordion
        heads = [(w.HTML(f"<b>{in_html(title)}</b>"), part) for title, part in parts.items()]
        return w.VBox([*(one for pair in heads for one in pair), accordion])

    def set(self, name: str, value: str) -> str:
        """像在表单里那样填一项，返回要改的话（没有问题是空的）。"""
        self.inputs[name].value = value
        return self._said

    def read_yaml(self, text: str):
        """从 YAML 文本读入整份设置；有错就说哪里错，什么也不改。"""
        try:
            tree = bounded(text)
            config = load_config(tree if isinstance(tree, dict) else {"YAML": tree})
        except ConfigError as error:
            self._say(str(error))
            return
        except yaml.YAMLError as error:
            self._say(f"YAML {syntax(error, text)}")
            return
        self.config, self._busy = config, True
        for name, box in self.inputs.items():
            box.value = _as(box, self._text(name))
        self._busy = False
        self._settle()

    def display(self):
        self._freshen = both(self.box, self._static())

    def _static(self) -> dict:
        rows = [(f.name, self._text(f.name), f.sentence) for f in self.fields.values()]
        lines = [f"{name} = {value}　{said}" for name, value, said in rows]
        page = table((f"<code>{n}</code>", in_html(v), in_html(said)) for n, v, said in rows)
        return {"text/html": page, "text/plain": "\n".join(lines)}

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name.split(".")[0] for name in self.fields))

    def _group(self, group: str, w):
        rows = []
        for name, field in self.fields.items():
            if name.split(".")[0] == group:
                look = "font-size:smaller;line-height:1.5;margin-bottom:6px"
                said = f'<div style="{look}">{in_html(field.sentence)}</div>'
                rows += [self.inputs[name], self.said[name], w.HTML(said)]
        return w.VBox(rows)

    def _line(self, name: str) -> str:
        value = self.inputs[name].value
        return f"{name}={str(value).lower() if isinstance(value, bool) else value}"

    def _text(self, name: str) -> str:
        """一项现在的值，写成 --set 里的样子；空的文字就是空的。"""
        value = self.config.to_dict()
        for key in name.split("."):
            value = value[key]
        if value == "":
            return ""
        text = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=10**6)
        return text.removesuffix("\n").removesuffix("\n...")

    def _changed(self, change):
        if self._busy:
            return
        name = next((n for n, box in self.inputs.items() if box is change["owner"]), None)
        for one in self.said.values():
            one.value = ""
        try:
            config = load_config(self.config.to_dict(), [self._line(name) for name in self.inputs])
        except ConfigError as error:
            self._say(str(error))
            self.said[name].value = _red(f"还没有改：{error}")
            return
        self.config = config
        wrong, found = looked_at(name, config)
        self.said[name].value = _red(found) if wrong else f"<small>改好了。{in_html(found)}</small>"
        self._settle()

    def _settle(self):
        found = preflight.clashes(preflight.Case(self.config))
        self._say("\n".join(said for _, said in found))  # 每一项都对，合在一起却练不了
        self.yaml.value = self.config.to_yaml()
        self._freshen(self._static())

    def _say(self, text: str):
        self._said = text
        self.message.value = _red(text) if text else ""

    _said = ""


def looked_at(name: str, config: Config) -> tuple[bool, str]:
    """填的是图片文件夹，就去看一眼 -> (不对吗, 找到几张；没有就说怎么改)；别的项什么也不说。"""
    if name != "data.folder":
        return False, ""
    found = walk(config.data.folder)
    if found.pictures:
        return False, f"找到 {len(found.pictures)} 张图。"
    faults = [problem.line(config.data.folder) for problem in found.problems]
    return True, faults[0] if faults else f"“{config.data.folder}”里没有图片。"


def _red(text: str) -> str:
    return f'<pre style="color:#c4382c;white-space:pre-wrap">{in_html(text)}</pre>'


def _input(field: Field, text: str):
    """一项设置的控件：几选一是下拉，也能写别的就带着建议，是非是勾选，其余是文字框（由设置自己校验）。"""
    w = widgets()
    looks = {"style": {"description_width": "13em"}, "layout": w.Layout(width="min(520px, 95%)")}
    choices, free = _choices(field.type)
    if choices and not free:
        return w.Dropdown(options=choices, value=text, description=field.name, **looks)
    if choices:
        named = {"description": field.name, "continuous_update": False}
        return w.Combobox(value=text, options=choices, ensure_option=False, **named, **looks)
    if field.type is bool:
        return w.Checkbox(text == "true", description=field.name, **looks)
    return w.Text(text, description=field.name, continuous_update=False, **looks)


def _choices(kind) -> tuple[list[str], bool]:
    """(几选一的全部写法，能不能写别的)；是非与几选一并在一起的（false、true、graphs）也算几选一。"""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    names = [name for part in parts if get_origin(part) is Literal for name in get_args(part)]
    if not names:
        return [], True
    free = any(part is not bool and get_origin(part) is not Literal for part in parts)
    return [*(["false", "true"] if bool in parts else []), *map(str, names)], free


def _as(box, text: str):
    return text == "true" if isinstance(box.value, bool) else text
