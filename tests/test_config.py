"""设置：三个入口得到同样的结果；写错时，消息说清楚哪一项、得到什么、怎么改。"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from lorakit.config import Config, differences, fields, load_config, presets, template
from lorakit.config.groups import Train
from lorakit.config.load import PRESETS
from lorakit.errors import ConfigError, LorakitWarning

# pydantic 和 PyYAML 的英文句子里常见的词；消息里一个都不该有
ENGLISH = re.compile(
    r"Input should|validation error|pydantic|permitted|unable to|valid (number|integer|string)"
    r"|greater than|less than|expected|found|mapping values|scanning|codec|Errno"
)


def message(source=None, overrides=()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    said = str(caught.value)
    assert not ENGLISH.search(said), said
    return said


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name: str = "my.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# ---- 三个入口 ----


NASTY = [
    "no",
    "1e-4",
    "007",
    "null",
    "~",
    "a: b",
    "a # b",
    "[x",
    "“猫”🐱",
    " 空格 ",
    "",
    "2024-01-01",
]


@pytest.mark.parametrize("text", NASTY)
def test_round_trip(write, text):
    config = load_config(
        {
            "data": {"trigger": text, "folder": "图 片/a.b"},
            "sample": {"prompts": [text, "两\n行"], "size": 512},
            "train": {"lr": 3.3e-5, "timestep": {"shift": 3}},
            "lora": {"alpha": 7.5, "targets": ["to_q", text]},
        }
    )
    assert load_config(write(config.to_yaml())) == config
    assert load_config(json.loads(json.dumps(config.to_dict()))) == config
    assert config.data.trigger == text.strip() and config.sample.prompts[0] == text


UNSEEN = ["两\n行", "a\r", "\x1b[2J", "a\tb", "\u202e猫", "o\u200bhwx", "\u3000", "\u3164"]


@pytest.mark.parametrize("name", ["data.trigger", "run.output"])
@pytest.mark.parametrize(
    "text",
    ["两\n行", "a\r", "\x1b[2J", "a\tb", "\u202e猫", "o\u200bhwx", "\u3000", "\u3164", "\u2800"],
)
def test_a_trigger_and_a_folder_are_one_visible_line(write, name, text):
    group, key = name.split(".")
    for source in ({group: {key: text}}, write(yaml.safe_dump({group: {key: text}}))):
        with pytest.raises(ConfigError, match=rf"{name}：得到 .*看得见的一行字.*删掉重打"):
            load_config(source)


def test_every_invisible_line_is_named():
    with pytest.raises(ConfigError, match=r"有 2 处要改(.|\n)*data\.trigger(.|\n)*run\.output"):
        load_config({"data": {"trigger": "a{b}\n"}, "run": {"output": "x\n"}})


def test_plain_yaml_readers_see_the_same():
    config = load_config(None, ["train.lr=1e-5", "data.trigger=no"])
    assert yaml.safe_load(config.to_yaml()) == config.to_dict()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.lr=1e-4", 1e-4),
        ("train.lr=3", None),
        ("train.lr = 2.5E-4 ", 2.5e-4),
        ("train.steps=1e3", 1000),
        ("train.steps=60", 60),
        ("data.folder=图片/a b", Path("图片/a b")),
        ("data.folder=null", None),
        ("data.trigger=a: b #c", "a: b #c"),
        ("data.trigger=no", "no"),
        ("data.trigger=007", "007"),
        ("data.trigger=", ""),
        ("data.trigger='引号'", "引号"),
        ("data.trigger=a=b", "a=b"),
        ("lora.alpha=null", None),
        ("lora.alpha=8", 8.0),
        ("lora.targets=[to_q, to_k]", ["to_q", "to_k"]),
        ("lora.targets=(to_q|to_k)$", "(to_q|to_k)$"),
        ("lora.targets=[a-z]+.to_q", "[a-z]+.to_q"),
        ("sample.prompts=[一只猫, 雨]", ["一只猫", "雨"]),
        ("train.timestep.shift=3", 3.0),
        ("train.timestep.shift=auto", "auto"),
        ("memory.compile=true", True),
        ("run.output=runs/x", Path("runs/x")),
    ],
)
def test_override(override, value):
    if override == "train.lr=3":
        assert "train.lr" in message(None, [override])
        return
    name = override.partition("=")[0].strip()
    found = differences(load_config(None, [override]), Config()).get(name)
    default = {field.name: field.default for field in fields()}[name]
    assert (found[0] if found else default) == value


def test_three_doors_agree(write):
    text = "train:\n  lr: 1e-4\n  steps: 7\ndata:\n  folder: pics\n"
    from_file = load_config(write(text))
    from_dict = load_config({"train": {"lr": 1e-4, "steps": 7}, "data": {"folder": Path("pics")}})
    from_set = load_config(None, ["train.lr=1e-4", "train.steps=7", "data.folder=pics"])
    assert from_file == from_dict == from_set
    assert from_file.train.lr == 1e-4


def test_override_beats_file_and_spares_the_caller():
    mine = {"train": {"lr": 1e-3}}
    config = load_config(mine, ["train.lr=2e-4", "train.timestep.shift=2"])
    assert (config.train.lr, config.train.timestep.shift) == (2e-4, 2.0)
    assert mine == {"train": {"lr": 1e-3}}
    assert load_config({"train": Train(steps=5)}, "train.lr=2e-4").train.steps == 5


def test_commented_out_group_is_default(write):
    assert load_config(write("train:\nlora:\n  # rank: 4\n")) == Config()


def test_byte_order_mark_and_home(write):
    config = load_config(write(b"\xef\xbb\xbfdata:\r\n  folder: ~/pics\r\n"))
    assert config.data.folder == Path.home() / "pics"


# ---- 写错了 ----


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train: {lr: abc}", ["train.lr", "“abc”", "数字", "大于 0"]),
        ("train: {lr: -1}", ["train.lr", "大于 0"]),
        ("train: {lr: nan}", ["train.lr", "nan", "无穷大"]),
        ("train: {lr: .inf}", ["train.lr", "数字"]),
        ("train: {lr: 1e400}", ["train.lr", "无穷大"]),
        ("train: {lr: }", ["train.lr", "没有写值", "0.0001"]),
        ("train: {lr: [1]}", ["train.lr", "数字"]),
        ("train: {lr: true}", ["train.lr", "数字"]),
        ("train: {steps: 1.5}", ["train.steps", "1.5", "整数"]),
        ("train: {steps: true}", ["train.steps", "整数"]),
        ("train: {save_every: 0}", ["train.save_every", "不小于 1"]),
        ("train: {seed: 99999999999999999999}", ["train.seed", "不超过"]),
        ("lora: {rank: 0}", ["lora.rank", "“0”", "不小于 1"]),
        ("lora: {alpha: 0}", ["lora.alpha", "大于 0", "null"]),
        ("lora: {targets: []}", ["lora.targets", "不能空着"]),
        ("data: {resolution: 1000}", ["data.resolution", "992", "1008", "16"]),
        ("data: {resolution: 4090}", ["data.resolution", "4080", "4096"]),
        ("data: {resolution: 32}", ["data.resolution", "不小于 64"]),
        ("eval: {holdout: 0.9}", ["eval.holdout", "不超过 0.5"]),
        ("eval: {holdout: 10%}", ["eval.holdout", "写 0.1"]),
        ("model: {precision: bf61}", ["model.precision", "是不是想写 bf16"]),
        ("train: {schedule: Cosin}", ["train.schedule", "是不是想写 cosine", "linear"]),
        ("memory: {compile: maybe}", ["memory.compile", "true 或 false"]),
        ("sample: {prompts: 一只猫}", ["sample.prompts", "是不是想写 [一只猫]"]),
        ("sample: {prompts: [a, ~]}", ["sample.prompts 的第 2 个", "文字"]),
        ("train: {timestep: {shift: often}}", ["train.timestep.shift", "auto 或 数字"]),
        ("run: {output: ''}", ["run.output", "不能空着"]),
        ("train: 5", ["train", "一组设置", "steps"]),
        ("train:\n  lr：1e-4", ["train", "英文冒号"]),
        # 名字写错
        ("train: {step: 5}", ["train.step：", "是不是想写 train.steps"]),
        ("train: {rank: 5}", ["train.rank", "是不是想写 lora.rank"]),
        ("train: {every: 5}", ["是不是想写 sample.every 或 eval.every"]),
        ("lr: 5", ["是不是想写 train.lr"]),
        ("sampel: {prompts: [a]}", ["sampel", "是不是想写 sample"]),
        ("timestep: {shift: 3}", ["是不是想写 train.timestep？"]),
        ("train: {timestep: {shfit: 3}}", ["train.timestep.shfit", "train.timestep.shift"]),
        ("train: {Save-Every: 3}", ["是不是想写 train.save_every"]),
        ("train.lr: 3", ["train.lr", "分层"]),
        ("train: {xyzzy: 3}", ["train.xyzzy", "可以写的有", "batch_size"]),
        ("1: 2", ["1：没有这一项"]),
        # 不可能的组合
        ("train: {schedule: cosine, steps: 10}", ["train.warmup", "train.steps", "train.schedule"]),
    ],
)
def test_wrong_value(write, text, parts):
    said = message(write(text))
    assert "my.yaml" in said
    for part in parts:
        assert part in said, said


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"train": {"steps": True}}, "train.steps"),
        ({"train": {"steps": 1.5}}, "train.steps"),
        ({"train": {"lr": float("nan")}}, "train.lr"),
        ({"train": {"lr": object()}}, "train.lr"),
        ({"data": {"trigger": 12}}, "data.trigger"),
        ({"data": {"folder": 3}}, "data.folder"),
        ({"sample": {"prompts": ["a", 3]}}, "sample.prompts 的第 2 个"),
        ({"train": []}, "train"),
        ({4: 5}, "4"),
    ],
)
def test_wrong_dict(value, name):
    assert f"- {name}：" in message(value)


def test_all_problems_in_one_message(write):
    path = write("train: {lr: abc, rank: 4}\nlora: {rank: 0}\neval: {holdout: 0.9}\n")
    said = message(path, ["data.resolution=1000", "train.stpes=3", "lora=5", "seed"])
    assert "8 处要改" in said and len(said.splitlines()) == 9
    for name in ["train.lr", "train.rank", "lora.rank", "eval.holdout", "data.resolution"]:
        assert f"- {name}：" in said
    assert said.count("train.lr：") == 1


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.lr", ["train.lr", "少了等号", "train.lr=1e-4"]),
        ("", ["少了等号"]),
        ("train=5", ["train：", "一组设置", "steps"]),
        ("train.timestep=5", ["train.timestep：", "一组设置", "shift"]),
        ("train.rank=5", ["是不是想写 lora.rank"]),
        ("trian.lr=5", ["trian.lr", "是不是想写 train.lr"]),
        ("train.lr.x=5", ["train.lr.x", "没有这一项"]),
        ("train.lr=", ["train.lr", "没有写值"]),
        ("sample.prompts=[a", ["sample.prompts", "列表"]),
    ],
)
def test_wrong_override(override, parts):
    said = message(None, [override])
    for part in parts:
        assert part in said, said


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("train:\n  lr: 1\n  lr: 2\n", ["lr：第 2 行和第 3 行"]),
        ("train:\n  lr: 1e-4\nlora:\n  rank: 4\ntrain:\n  steps: 5\n", ["train：第 1 行和第 5 行"]),
        ("train:\n\tlr: 1\n", ["第 2 行", "Tab"]),
        ("train:\n  lr：1e-4\n  steps: 3\n", ["第 2 行", "英文"]),
        ("train:\n  lr:1e-4\n  steps: 3\n", ["第 2 行", "空一格"]),
        ("data:\n  trigger: a: b\n", ["第 2 行", "引号"]),
        ('data:\n  trigger: "abc\nlora:\n  rank: 4\n', ["第 2 行", "引号没有配对"]),
        ("sample:\n  prompts: [a, b\nlora:\n  rank: 4\n", ["第 2 行", "没有配对"]),
        ("data:\n  folder: x\n trigger: a\n", ["第 3 行", "对齐"]),
        ("lora: {rank: 4}\n---\nlora: {rank: 5}\n", ["第 2 行", "---"]),
        ("lora: {rank: 4}\ndata: {trigger: \x00}\n", ["第 2 行", "控制字符"]),
        ("model: !!python/object:os.system x\n", ["第 1 行"]),
        ("? [a]\n: 3\n", ["第 1 行"]),
        ("[" * 5000, ["第 1 行"]),
        ("", ["空的", "lorakit init"]),
        ("# 只有注释\n", ["空的"]),
        ("- a\n- b\n", ["最外层"]),
        ("只有一句话\n", ["最外层"]),
        (b"data:\n  trigger: \xff\xff\n", ["UTF-8"]),
    ],
)
def test_broken_file(write, content, parts):
    said = message(write(content))
    assert "my.yaml" in said
    for part in parts:
        assert part in said, said


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk"])
def test_files_saved_by_a_windows_terminal(write, encoding):
    """PowerShell 5 的 `>` 存成 UTF-16，cmd 存成 GBK，记事本带 BOM。"""
    assert (
        load_config(write("data:\n  trigger: 水墨画风格\n".encode(encoding))).data.trigger
        == "水墨画风格"
    )


def test_what_an_odd_encoding_was_read_as_is_said(write):
    """GBK、韩文的设置照哪一种读的要说；几种都像就不猜。"""
    text = "data:\n  trigger: {}\n"
    for words, encoding, name in (("水墨画风格", "gbk", "GBK"), ("고양이", "euc_kr", "EUC-KR")):
        file = write(text.format(words).encode(encoding))
        with pytest.warns(LorakitWarning, match=f"照 {name} 读的（例如“trigger: {words}"):
            assert load_config(file).data.trigger == words
    assert "认不出编码" in message(write(text.format("飞机").encode("gbk")))


def test_missing_file(write, tmp_path):
    near = write("lora: {rank: 4}", "cats.yaml")
    assert f"是不是想写 {near}" in message(tmp_path / "cat.yaml")
    assert "是不是想写 tiny-qwen-image" in message("tiny-qwen-imag")
    assert "是不是想写 tiny-qwen-image" in message("tiny-qwen-image.yaml")
    for source in (tmp_path, "", "nowhere/x", "a\0b"):
        assert all(name in message(source) for name in presets())
    assert "文件夹" in message(tmp_path)
    assert "字典" in message(5)


# ---- 预设和说明 ----


def test_presets_ship():
    assert {"tiny-qwen-image", "qwen-image"} <= set(presets())


@pytest.mark.parametrize("preset", presets())
def test_preset_and_template(write, preset):
    config = load_config(preset)
    assert load_config(PRESETS / f"{preset}.yaml") == config
    text = template(preset)
    assert load_config(write(text)) == config
    assert text.startswith("# ") and re.search(r"[一-鿿]", text.splitlines()[0])
    lines = [line.strip() for line in text.splitlines()]
    for field in fields():
        assert f"# {field.sentence}" in lines
    assert load_config(write(text)).data.model_fields_set.isdisjoint({"mask", "control_folder"})
    assert yaml.safe_load(text).keys() == config.to_dict().keys()


def test_contract_of_presets():
    tiny = load_config(
        "tiny-qwen-image", ["data.folder=D", "train.steps=60", "train.save_every=10"]
    )
    assert (tiny.model.path, tiny.data.resolution, tiny.train.lr) == (
        "tiny-qwen-image",
        128,
        2.8e-3,
    )
    real = load_config("qwen-image")
    assert real.model.path == "Qwen/Qwen-Image" and real.memory.checkpointing


def test_every_field_explains_itself():
    every = list(fields())
    assert len(every) <= 57
    assert len({field.name for field in every}) == len(every)
    for field in every:
        assert re.search(r"[一-鿿]", field.sentence) and field.sentence.endswith("。"), field.name
        assert field.expects and "\n" not in field.sentence
    for name, group in Config.model_fields.items():
        assert re.search(r"[一-鿿]", group.annotation.__doc__), name
    by_name = {field.name: field for field in every}
    assert by_name["data.resolution"].constraints == {"ge": 64, "le": 4096, "multiple_of": 16}
    assert by_name["lora.init"].constraints["choices"] == (
        "gaussian", "default", "orthogonal",
    )  # fmt: skip
    assert by_name["train.timestep.shift"].constraints["gt"] == 0


def test_frozen():
    config = load_config()
    with pytest.raises(ValidationError):
        config.train.lr = 1
    with pytest.raises(ValidationError):
        config.train = Train()
    config.sample.prompts.append("x")
    assert load_config().sample.prompts == []


def test_differences():
    a, b = load_config(), load_config(None, ["train.lr=2e-4", "train.timestep.shift=3"])
    assert differences(a, a) == {}
    assert differences(a, b) == {"train.lr": (1e-4, 2e-4), "train.timestep.shift": ("auto", 3.0)}


def test_import_is_light():
    code = "import lorakit.config, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_the_name_of_a_base_finds_its_preset():
    """练习册里把 模型 换成真模型的名字，别处都不用改。"""
    assert load_config("Qwen/Qwen-Image") == load_config("qwen-image")
    assert load_config("black-forest-labs/FLUX.1-dev") == load_config("flux-dev")
    with pytest.raises(ConfigError, match="没有叫这个名字的预设"):
        load_config("Qwen/Qwen-Imag")
