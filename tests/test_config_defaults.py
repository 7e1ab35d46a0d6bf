"""别人的设置里没有写的：有它自己的默认值；照它的补上，补不了的说出来。"""

import json

import pytest
import yaml

from lorakit.config import load_config
from lorakit.config.defaults import MISSING
from lorakit.config.load import Config, flat
from lorakit.lora.attach import scale

SETS = ("model.path=tiny-flux", "data.folder=x")
KOHYA = 'network_module = "networks.lora_flux"\ntrain_data_dir = "cats"\n'
MUSUBI = 'dit = "qwen_image.safetensors"\nnetwork_module = "networks.lora_qwen_image"\n'


@pytest.fixture
def read(tmp_path):
    """写成文件再读：(设置, 说的话)。"""

    def make(text: str, name: str = "x.toml", *sets: str):
        file, lines = tmp_path / name, []
        file.write_text(text, encoding="utf-8")
        return load_config(file, sets or SETS, say=lines.append), "\n".join(lines)

    return make


def toolkit(**parts) -> str:
    one = {"type": "sd_trainer", "network": {"type": "lora", "linear": 32},
           "datasets": [{"folder_path": "/d"}], "train": {"steps": 9}, **parts}  # fmt: skip
    return yaml.safe_dump({"job": "extension", "config": {"process": [one]}})


def onetrainer(**more) -> str:
    return json.dumps({"training_method": "LORA", "base_model_name": "x", **more})


@pytest.mark.parametrize(
    ("text", "name", "times"),
    [
        (KOHYA + "network_dim = 32", "x.toml", 1 / 32),
        (KOHYA + "network_dim = 32\nnetwork_alpha = 16", "x.toml", 0.5),
        (MUSUBI + "network_dim = 32", "x.toml", 1 / 32),
        (KOHYA, "x.toml", 1 / 4),  # network_dim 也没有写：4
        (json.dumps({"network_dim": 32, "network_alpha": None}), "x.json", 1 / 32),
        (onetrainer(lora_rank=32), "x.json", 1 / 32),
        (onetrainer(lora_rank=32, lora_alpha=8), "x.json", 1 / 4),
        (toolkit(), "x.yaml", 1),
        (toolkit(network={"linear": 32, "linear_alpha": 16}), "x.yaml", 1),
        (toolkit(network={"linear": 32, "alpha": 1}), "x.yaml", 1),
    ],
)
def test_the_strength_is_theirs(read, text, name, times):
    config, said = read(text, name)
    assert scale(config.lora) == times
    if "linear_alpha" in text:
        assert "network.linear_alpha（16）：在这些底模上它自己也不用" in said
    if config.lora.alpha == 1:
        assert "lora_alpha" in said or "没有写 network_alpha，照" in said


@pytest.mark.parametrize("tool", MISSING)
def test_only_what_differs_from_ours_is_listed(tool):
    ours = flat(Config())
    for name, (target, value) in MISSING[tool].items():
        assert ours[target] != value, name


WANTED = {  # 没有写的 -> 补成的；(文字, 文件名, {设置: 值})
    "kohya": (KOHYA, "x.toml", {
        "train.lr": 2e-6, "train.steps": 1600, "train.warmup": 0, "data.caption_dropout": 0,
        "train.timestep.density": "uniform", "train.timestep.shift": 3, "train.guidance": 3.5}),
    "musubi": (MUSUBI, "x.toml", {
        "train.lr": 2e-6, "train.timestep.density": "uniform", "train.timestep.shift": 1,
        "train.guidance": 1}),
    "sigmoid": (KOHYA + 'timestep_sampling = "sigmoid"\ndiscrete_flow_shift = 3.1', "x.toml", {
        "train.timestep.density": "logit-normal", "train.timestep.shift": 1}),
    "shift": (MUSUBI + 'timestep_sampling = "shift"\ndiscrete_flow_shift = 2.2', "x.toml", {
        "train.timestep.density": "logit-normal", "train.timestep.shift": 2.2}),
    "qwen_shift": (MUSUBI + 'timestep_sampling = "qwen_shift"', "x.toml", {
        "train.timestep.density": "logit-normal", "train.timestep.shift": "auto"}),
    "warm": (KOHYA + 'lr_scheduler = "cosine"\nlr_warmup_steps = 7', "x.toml", {
        "train.warmup": 7, "train.schedule": "cosine"}),
    "constant": (KOHYA + "lr_warmup_steps = 7", "x.toml", {"train.warmup": 0}),
    "epochs": (KOHYA + "max_train_epochs = 7", "x.toml", {"train.steps": 1000}),
    "prodigy": (KOHYA + 'optimizer_type = "Prodigy"', "x.toml", {"train.weight_decay": 0}),
    "decay": (KOHYA + 'optimizer_args = ["weight_decay=0.1"]', "x.toml", {
        "train.weight_decay": 0.1}),
    "data of kohya": ('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "d"', "x.toml", {
        "data.caption_dropout": 0, "data.resolution": 1024}),
    "data of musubi": ('[[datasets]]\nimage_directory = "d"', "x.toml", {
        "data.caption_dropout": 0, "data.resolution": 720, "train.lr": 1e-4}),
    "dropout": ('[general]\ncaption_dropout_rate = 0.2\n[[datasets]]\nimage_directory = "d"',
                "x.toml", {"data.caption_dropout": 0.2}),
    "ai-toolkit": (toolkit(), "x.yaml", {
        "train.lr": 1e-6, "train.steps": 9, "train.warmup": 0, "data.resolution": 512,
        "data.caption_dropout": 0, "train.timestep.density": "logit-normal",
        "train.timestep.shift": 1, "memory.checkpointing": True, "train.ema": 0}),
    "linear": (toolkit(train={"timestep_type": "linear", "optimizer": "prodigy", "lr": 1e-4}),
               "x.yaml", {"train.timestep.density": "uniform", "train.timestep.shift": 1,
                          "train.lr": 1, "train.weight_decay": 0}),
    "ema": (toolkit(train={"ema_config": {"use_ema": True}}), "x.yaml", {"train.ema": 0.999}),
    "no ema": (toolkit(train={"ema_config": {"ema_decay": 0.9}}), "x.yaml", {"train.ema": 0}),
    "old rank": (toolkit(network={"rank": 24}), "x.yaml", {"lora.rank": 24}),
    "OneTrainer": (onetrainer(), "x.json", {
        "train.lr": 3e-6, "train.warmup": 200, "data.resolution": 512, "data.caption_dropout": 0,
        "train.timestep.density": "uniform", "train.timestep.shift": 1}),
    "dynamic": (onetrainer(dynamic_timestep_shifting=True, timestep_distribution="LOGIT_NORMAL",
                           ema="GPU", text_encoder={"dropout_probability": 0.3}), "x.json", {
        "train.timestep.density": "logit-normal", "train.timestep.shift": "auto",
        "train.ema": 0.999, "data.caption_dropout": 0.3}),
    "diffusers": ("pretrained_model_name_or_path: tiny-flux\ndata_config: {img_dir: d}", "x.yaml", {
        "data.resolution": 512, "data.caption_dropout": 0.1}),
}  # fmt: skip


@pytest.mark.parametrize("case", WANTED)
def test_what_is_not_written_has_their_value(read, case):
    text, name, wanted = WANTED[case]
    config, said = read(text, name)
    found = flat(config)
    assert {key: found[key] for key in wanted} == wanted
    for key, value in wanted.items():
        assert f"-> {key}" in said or flat(Config())[key] == value, key


def test_what_cannot_be_filled_in_is_said(read):
    for text, name in ((KOHYA, "x.toml"), (MUSUBI, "x.toml"), (toolkit(), "x.yaml")):
        said = read(text, name)[1]
        assert "lora.targets=all-linear" in said and "没有写种子" in said and "auto" in said
    said = read(KOHYA)[1]
    assert "sigma_scaled" in said and "文本编码器" in said and "用 --set 改过来" in said
    said = read(KOHYA + 'model_prediction_type = "raw"\nnetwork_train_unet_only = true')[1]
    assert "sigma_scaled" not in said and "文本编码器" not in said
    assert "轮，这里按步数" in read(KOHYA + "max_train_epochs = 7")[1]
    assert "没有写 epochs" in read(onetrainer(), "x.json")[1]
    assert "all-linear" not in read(onetrainer(layer_filter="attn"), "x.json")[1]
    full = read(onetrainer(training_method="FINE_TUNE"), "x.json")[1]
    assert "lora.alpha" not in full and "all-linear" not in full
    assert "timestep_sampling（logsnr）" in read(KOHYA + 'timestep_sampling = "logsnr"')[1]
    assert "满秩" in read(toolkit(network={"type": "lokr"}), "x.yaml")[1]


def test_a_file_that_says_nothing_gets_nothing(read):
    concepts = json.dumps([{"path": "cats"}])
    config, said = read(concepts, "x.json", "model.path=tiny-flux")
    assert config.train == Config().train and config.lora == Config().lora
    assert "默认值" not in said


def test_paged_adamw_decays_like_adamw_and_a_wrong_shape_is_no_traceback(read):
    config, said = read(KOHYA + 'optimizer_type = "PagedAdamW8bit"')
    assert config.train.weight_decay == 0.01 and "weight_decay" not in said
    read(toolkit(network="lora"), "x.yaml")
