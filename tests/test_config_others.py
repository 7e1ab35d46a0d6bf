"""别的训练器的设置文件：认得出是谁的，能对应的对应过来；缺底模、图的，给出能照抄的几行。"""

import json

import pytest
import yaml

from lorakit.cli import main
from lorakit.config import load_config
from lorakit.config.foreign import FAMILIES, PIPELINES, family_of
from lorakit.errors import ConfigError
from lorakit.families.registry import REGISTRY, get
from lorakit.hub.bundled import bundled

AI_TOOLKIT = """
job: extension
config:
  name: my_cat
  process:
    - type: sd_trainer
      training_folder: out
      trigger_word: ohwx
      network: {type: lora, linear: 32, linear_alpha: 16}
      save: {dtype: float16, save_every: 200, max_step_saves_to_keep: 4}
      datasets:
        - folder_path: /data/cats
          caption_ext: txt
          caption_dropout_rate: 0.05
          resolution: [512, 768, 1024]
      train:
        batch_size: 2
        steps: 2500
        lr: 1e-4
        optimizer: adamw8bit
        gradient_checkpointing: true
        dtype: bf16
        noise_scheduler: flowmatch
      model: {name_or_path: black-forest-labs/FLUX.1-dev, is_flux: true, quantize: true}
      sample: {sample_every: 250, guidance_scale: 4, prompts: ["[trigger] on a sofa"]}
"""
MUSUBI = """
[general]
resolution = [960, 544]
caption_extension = ".txt"
batch_size = 2
[[datasets]]
image_directory = "/data/cats"
cache_directory = "/data/cache"
num_repeats = 3
"""
KOHYA_DATASET = """
[[datasets]]
resolution = 1024
  [[datasets.subsets]]
  image_dir = "/data/cats"
  num_repeats = 10
  [[datasets.subsets]]
  is_reg = true
  image_dir = "/data/reg"
"""
KOHYA = """
[model]
pretrained_model_name_or_path = "black-forest-labs/FLUX.1-dev"
[training]
train_data_dir = "HERE/img"
reg_data_dir = "/data/reg"
network_module = "networks.lora_flux"
network_dim = 8
network_alpha = 4
max_train_steps = 1200
learning_rate = 2e-4
optimizer_type = "AdamW8bit"
resolution = "1024,1024"
output_dir = "out"
output_name = "cat"
mixed_precision = "bf16"
max_token_length = 225
"""
ONETRAINER = {
    "__version": 6, "training_method": "LORA", "model_type": "FLUX_DEV_1",
    "base_model_name": "black-forest-labs/FLUX.1-dev",
    "concepts": [{"path": "/data/cats", "enabled": True, "balancing": 2.0}],
    "output_model_destination": "models/cat.safetensors", "lora_rank": 16, "lora_alpha": 1.0,
    "learning_rate": 0.0003, "batch_size": 2, "gradient_accumulation_steps": 4,
    "resolution": "768", "optimizer": {"optimizer": "ADAMW_8BIT"}, "masked_training": True,
    "train_dtype": "BFLOAT_16", "gradient_checkpointing": "ON",
}  # fmt: skip


def test_ai_toolkit(read):
    config, said = read(AI_TOOLKIT, "x.yaml")
    assert "是 ai-toolkit 的设置" in said and "noise_scheduler" in said
    assert (config.model.path, config.model.family) == ("black-forest-labs/FLUX.1-dev", "flux")
    assert str(config.data.folder) == "/data/cats" and config.data.trigger == "ohwx"
    assert (config.lora.rank, config.lora.alpha, config.data.resolution) == (32, None, 1024)
    assert (config.train.steps, config.train.lr, config.train.batch_size) == (2500, 1e-4, 2)
    assert (config.train.optimizer, config.model.quantize) == ("adamw8bit", "fp8")
    assert config.sample.prompts == ["ohwx on a sofa"] and str(config.run.output) == "out/my_cat"


def test_kohya(read, tmp_path):
    for name in ("10_ohwx cat", "2_cat"):
        (tmp_path / "img" / name).mkdir(parents=True)
    config, said = read(KOHYA, "x.toml")
    assert "是 kohya 的设置" in said and "max_token_length" in said
    assert [(s.folder.name, s.repeats) for s in config.data.sources] == [
        ("10_ohwx cat", 10), ("2_cat", 2),
    ]  # fmt: skip
    assert (config.lora.rank, config.lora.alpha, config.train.optimizer) == (8, 4, "adamw8bit")
    assert str(config.data.class_folder) == "/data/reg" and str(config.run.output) == "out/cat"


@pytest.mark.parametrize(
    ("module", "file", "base", "family"),
    [
        ("qwen_image_21", "qwen_image_2.1_bf16", "Qwen/Qwen-Image-2.1", "qwen-image-2.1"),
        ("qwen_image", "qwen_image_bf16", "Qwen/Qwen-Image", "qwen-image"),
        ("flux", "flux1-dev-kontext_fp8", "black-forest-labs/FLUX.1-Kontext-dev", "flux-kontext"),
        ("flux_2", "flux2-dev", "black-forest-labs/FLUX.2-dev", "flux2-dev"),
        ("flux_2", "flux-2-klein-base-9b", "black-forest-labs/FLUX.2-klein-base-9B", "flux2-klein"),
    ],
)
def test_a_single_file_becomes_its_base(read, module, file, base, family):
    text = KOHYA.replace("black-forest-labs/FLUX.1-dev", f"models/{file}.safetensors")
    config, said = read(text.replace("networks.lora_flux", f"networks.lora_{module}"), "x.toml")
    assert (config.model.path, config.model.family) == (base, family) and "不读单个" in said


def test_onetrainer(read):
    config, said = read(json.dumps(ONETRAINER), "x.json")
    assert "是 OneTrainer 的设置" in said
    (source,) = config.data.sources
    assert (str(source.folder), source.repeats, config.data.mask) == ("/data/cats", 2, "file")
    assert (config.lora.rank, config.lora.alpha, config.train.grad_accum) == (16, 1.0, 4)
    assert str(config.run.output) == "models/cat" and config.data.resolution == 768


@pytest.mark.parametrize(
    ("text", "name", "tool", "copied"),
    [
        (MUSUBI, "x.toml", "musubi", {"folder": "/data/cats", "repeats": 3}),
        (KOHYA_DATASET, "x.toml", "kohya", {"folder": "/data/cats", "repeats": 10}),
        ("job: extension\nconfig:\n  process: []\n", "x.yaml", "ai-toolkit", None),
        ('{"__version": 6, "training_method": "LORA"}', "x.json", "OneTrainer", None),
        ("[model]\ntype = 'flux'\n[adapter]\ntype = 'lora'\n", "x.toml", "diffusion-pipe", None),
        ('{"--model_family": "flux"}', "x.json", "SimpleTuner", None),
    ],
)
def test_what_lacks_the_base_or_the_pictures_gives_the_lines_to_copy(
    read, tmp_path, capsys, text, name, tool, copied
):
    with pytest.raises(ConfigError, match=f"是 {tool} 的设置") as error:
        read(text, name)
    said = str(error.value)
    assert "--set model.path=" in said
    if copied:
        block = said.partition("能照抄的是：\n")[2].partition("\n还缺")[0]
        assert yaml.safe_load(block)["data"]["folder"] == [copied]
        config, _ = read(text, name, "model.path=tiny-flux")
        assert config.model.family == "flux" and config.data.sources[0].repeats > 1
    assert main(["train", str(tmp_path / name)]) == 1


def test_our_own_files_are_not_taken_for_others(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(load_config("tiny-flux").to_yaml(), encoding="utf-8")
    assert load_config(path, say=pytest.fail) == load_config("tiny-flux")


@pytest.mark.parametrize("text", ["{", "[1]", "a = ", "\x00"])
@pytest.mark.parametrize("name", ["x.toml", "x.json"])
def test_broken_files_are_one_sentence(read, text, name):
    with pytest.raises(ConfigError):
        read(text, name)


# ---- 中文冒号 ----


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train：", 1),
        ("train：\n  steps: 5\n", 1),
        ("model:\n  path: tiny-flux\ntrain：\n  steps: 5\n", 3),
        ("data:\n  folder: x\n  trigger： ohwx\n", 3),
        ("train:\n  steps：5\n", 2),
        ("train:\n  steps ： 5\n", 2),
    ],
)
def test_a_wide_colon_is_named_with_its_line(read, text, line):
    with pytest.raises(ConfigError, match=f"第 {line} 行.*“：”"):
        read(text, "x.yaml")


def test_wide_colons_inside_texts_are_fine(read):
    config, _ = read("sample:\n  prompts:\n    - 标语：你好\n    - 'steps：5'\n", "x.yaml")
    assert config.sample.prompts == ["标语：你好", "steps：5"]


# ---- 底模说它是谁 ----


@pytest.mark.parametrize("name", REGISTRY)
def test_every_family_is_known_by_its_pipeline_and_its_name(name):
    assert PIPELINES[get(name).pipeline_class] == name
    assert name in FAMILIES.values() and family_of(f"somebody/{name}-2")[0] == name


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("./models/qwen_image_edit", "qwen-image-edit"),
        ("Qwen Image Edit 2509", "qwen-image-edit"),
        ("Qwen/Qwen-Image", "qwen-image"), ("x/FLUX.1_dev", "flux"), ("Z_Image_Turbo", "z-image"),
        ("black-forest-labs/FLUX.2-klein-4B", "flux2-klein"), ("tiny-flux", "flux"),
        ("tiny-qwen-image-edit", "qwen-image-edit"), ("mine", None), ("~nobody-here/x", None),
    ],
)  # fmt: skip
def test_names_of_bases(path, family):
    assert family_of(path)[0] == family


def test_the_base_itself_decides(tmp_path, monkeypatch, capsys):
    import shutil

    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundled("tiny-qwen-image-edit"), "models/flux_plain")  # 名字骗人
    text = "pretrained_model_name_or_path: ./models/flux_plain\ndata_config: {control_dir: c}\n"
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    assert load_config(tmp_path / "x.yaml", say=lambda _: None).model.family == "qwen-image-edit"
    assert load_config({"model": {"path": "models/flux_plain"}}).model.family == "qwen-image-edit"
    wrong = load_config({"model": {"path": "models/flux_plain", "family": "qwen-image"}})
    from lorakit.families import open_family

    with pytest.raises(ConfigError, match=r"QwenImageEditPipeline.*model\.family=qwen-image-edit"):
        open_family(wrong)


@pytest.fixture
def said(tmp_path):
    """写成 name，读进来：(设置, 说的话)。"""

    def make(name: str, text: str, *overrides: str):
        file, lines = tmp_path / name, []
        file.write_text(text, encoding="utf-8")
        return load_config(file, overrides, say=lines.append), "\n".join(lines)

    return make


@pytest.mark.parametrize(("use", "ema"), [("false", 0), ("true", 0.99)])
def test_an_average_that_is_switched_off_stays_off(said, use, ema):
    more = f"train:\n        ema_config: {{use_ema: {use}, ema_decay: 0.99}}"
    assert said("x.yaml", AI_TOOLKIT.replace("train:", more, 1))[0].train.ema == ema


def test_a_misspelt_name_stands_first(said):
    _, lines = said("x.yaml", AI_TOOLKIT.replace("steps: 2500", "stpes: 2500"))
    assert "train.stpes：像是写错了，没有用到。是不是 train.steps？" in lines.split("\n")[1]


KOHYA_FLAT = """
pretrained_model_name_or_path = "black-forest-labs/FLUX.1-dev"
train_data_dir = "cats"
network_dim = 8
%s
"""


@pytest.mark.parametrize(
    ("lines", "name", "value"),
    [
        ("unet_lr = 5e-5\nlearning_rate = 1e-4", "lr", 5e-5),
        ("learning_rate = 1e-4\nunet_lr = 5e-5", "lr", 5e-5),
        ("learning_rate = 1e-4\nunet_lr = 0", "lr", 1e-4),
        ("alpha_mask = true", "mask", "alpha"),
        ("masked_loss = true", "mask", "file"),
        ("alpha_mask = false", "mask", "none"),
    ],
)
def test_what_kohya_means(said, lines, name, value):
    config, _ = said("x.toml", KOHYA_FLAT % lines)
    assert getattr(config.train if name == "lr" else config.data, name) == value


CONCEPTS = [
    {"path": "cats", "balancing": 3.0, "text": {"prompt_source": "filename"}},
    {"path": "others", "type": "PRIOR_PREDICTION"},
    {"path": "kept", "type": "VALIDATION"},
    {"path": "off", "enabled": False},
]


@pytest.mark.parametrize("where", ["inside", "beside", "alone"])
def test_concepts_of_onetrainer(said, tmp_path, where):
    tree = {"training_method": "LORA", "base_model_name": "Qwen/Qwen-Image", "peft_type": "LOHA"}
    if where == "beside":
        (tmp_path / "concepts.json").write_text(json.dumps(CONCEPTS), encoding="utf-8")
        tree["concept_file_name"] = "concepts.json"
    else:
        tree["concepts"] = CONCEPTS
    text = json.dumps(CONCEPTS if where == "alone" else tree)
    config, lines = said("x.json", text, "model.path=Qwen/Qwen-Image")
    assert [(str(one.folder), one.repeats) for one in config.data.sources] == [("cats", 3)]
    assert str(config.data.class_folder) == "others"
    assert "kept：只用来检验，没有用到" in lines and "prompt_source 是 filename" in lines
    assert ("peft_type（loha）" in lines) is (where != "alone")


def test_a_name_written_twice_on_one_line(tmp_path):
    (tmp_path / "x.yaml").write_text("train: {lr: 1e-4, lr: 2e-4}", encoding="utf-8")
    with pytest.raises(ConfigError, match="lr：第 1 行写了两次"):
        load_config(tmp_path / "x.yaml")


# ---- 一份里写了几样：用不上的说出来，会少练数据的停下 ----

SETS = """
[[datasets]]
image_directory = "/d/a"
resolution = [960, 544]
batch_size = 2
caption_extension = ".txt"
cache_directory = "/c"
[[datasets]]
image_directory = "/d/b"
resolution = [512, 512]
batch_size = 2
num_repeats = 4
control_directory = "/d/b_before"
caption_extension = ".cap"
"""


def test_musubi_without_general_and_with_several_datasets(said):
    config, lines = said("d.toml", SETS, "model.path=tiny-qwen-image")
    places = [(str(s.folder), s.repeats, s.control_folder) for s in config.data.sources]
    assert places[0] == ("/d/a", 1, None) and str(places[1][2]) == "/d/b_before"
    assert (config.data.resolution, config.train.batch_size) == (720, 2)
    assert config.data.sources[1].repeats == 4
    left = next(line for line in lines.split("\n") if "没有用到" in line)
    for word in ("cache_directory（/c）", "第 2 个 datasets 的 resolution（[512, 512]",
                 "caption_extension（.cap", "第 2 个 datasets 没有写 cache_directory"):  # fmt: skip
        assert word in left, word
    assert "batch_size（" not in left


def test_general_of_musubi_holds_for_every_dataset(said):
    text = "[general]\nresolution = 512\nnum_repeats = 3\n" + SETS.replace("resolution", "x")
    config, _ = said("d.toml", text, "model.path=tiny-qwen-image")
    assert config.data.resolution == 512 and [s.repeats for s in config.data.sources] == [3, 4]


KOHYA_SUBSETS = KOHYA_DATASET + '  [[datasets.subsets]]\n  is_reg = true\n  image_dir = "/r2"\n'
LEFT_OUT = {  # 会悄悄少练的 -> 说的话
    "video": ("d.toml", SETS + '[[datasets]]\nvideo_directory = "/v"\n', "第 3 个 datasets 是视频"),
    "only video": ("d.toml", '[[datasets]]\nvideo_jsonl_file = "/v.jsonl"\n', "是视频（/v.jsonl）"),
    "two class folders": ("d.toml", KOHYA_SUBSETS, "is_reg 不止一个：/data/reg 和 /r2"),
    "two priors": ("o.json", json.dumps(ONETRAINER | {"concepts": [
        {"path": "/a", "type": "PRIOR_PREDICTION"}, {"path": "/b", "type": "PRIOR_PREDICTION"}]}),
        "不止一个：/a 和 /b"),
    "a list of controls": ("a.yaml", AI_TOOLKIT.replace(
        "caption_ext: txt", "control_path: [/c1, /c2]"), "有 2 个控制图文件夹"),
    "numbered controls": ("a.yaml", AI_TOOLKIT.replace(
        "caption_ext: txt", "control_path_1: /c1\n          control_path_2: /c2"), "有 2 个控制图"),
    "two values": ("o.json", json.dumps(ONETRAINER)[:-1] + ', "lora_rank": 4}', "写了两次"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OUT)
def test_data_that_would_be_left_out_stops(said, name):
    file, text, why = LEFT_OUT[name]
    with pytest.raises(ConfigError, match=why):
        said(file, text, "model.path=tiny-qwen-image")


def test_ai_toolkit_with_two_processes_and_class_pictures(said):
    text = AI_TOOLKIT.replace("resolution: [512, 768, 1024]", "resolution: [512, 768]").replace(
        "      train:\n", "        - {folder_path: /data/reg, is_reg: true}\n      train:\n", 1
    )
    one = yaml.safe_load(text)["config"]["process"][0]
    tree = {"job": "extension", "config": {"process": [one, {**one, "trigger_word": "other"}]}}
    config, lines = said("a.json", json.dumps(tree))
    assert "有 2 项，只对应第 1 项" in lines.split("\n")[1]
    assert (str(config.data.folder), str(config.data.class_folder)) == ("/data/cats", "/data/reg")
    assert (config.data.trigger, config.data.resolution) == ("ohwx", 768)
    slider = AI_TOOLKIT.replace("sd_trainer", "concept_slider")
    assert "type 是 concept_slider" in said("a.yaml", slider)[1]


def test_one_numbered_control_folder_is_the_control_folder(said):
    text = AI_TOOLKIT.replace("caption_ext: txt", "control_path_1: /c1")
    assert str(said("a.yaml", text)[0].data.sources[0].control_folder) == "/c1"


def test_what_onetrainer_means(said):
    more = {"ema": "GPU", "ema_decay": 0.99, "lora_decompose": True, "resolution": "512,768",
            "epochs": 100, "layer_filter": "attn", "dropout_probability": 0.0, "debug_dir": "x",
            "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.05}}  # fmt: skip
    config, lines = said("o.json", json.dumps(ONETRAINER | more))
    assert (config.train.ema, config.lora.variant, config.data.resolution) == (0.99, "dora", 768)
    assert config.train.weight_decay == 0.05
    assert "没有用到：epochs、layer_filter" in lines and "dropout_probability" not in lines
    assert "项没有对应，没有用到" in lines
    off = said("o.json", json.dumps(ONETRAINER | more | {"ema": "OFF"}))[0]
    assert off.train.ema == 0
    assert (
        said("o.json", json.dumps(ONETRAINER | {"resolution": "960x544"}))[0].data.resolution == 720
    )
