"""别处的扁平 YAML：照原样能读，每一项都有交代。"""

import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from lorakit.config import load_config
from lorakit.errors import ConfigError

LORA = """pretrained_model_name_or_path: Qwen/Qwen-Image
data_config:
  train_batch_size: 1
  num_workers: 4
  img_size: 1024
  caption_dropout_rate: 0.1
  img_dir: ./images
  random_ratio: true
  caption_type: txt
report_to: null
train_batch_size: 1
output_dir: ./output/
max_train_steps: 3000
learning_rate: 1e-4
lr_scheduler: constant
lr_warmup_steps: 10
adam_beta1: 0.9
adam_beta2: 0.999
adam_weight_decay: 0.01
adam_epsilon: 1e-8
max_grad_norm: 1.0
logging_dir: logs
mixed_precision: "bf16"
checkpointing_steps: 250
checkpoints_total_limit: 10
tracker_project_name: lora_test
resume_from_checkpoint: latest
gradient_accumulation_steps: 1
rank: 16
"""


def test_every_key_is_read_and_explained(read):
    config, said = read(LORA)
    assert (config.model.family, config.model.path) == ("qwen-image", "Qwen/Qwen-Image")
    assert (config.train.steps, config.train.lr, config.train.save_every) == (3000, 1e-4, 250)
    assert (config.data.resolution, str(config.data.folder)) == (1024, "images")
    assert (config.lora.rank, config.train.keep, config.run.resume) == (16, 10, "auto")
    for line in LORA.splitlines():
        assert line.strip().split(":")[0] in said or line.startswith("data_config")


def test_low_memory_switches_are_explained_not_swallowed(read):
    extra = "precompute_text_embeddings: true\nsave_cache_on_disk: true\nquantize: true\n"
    config, said = read(LORA + extra + "adam8bit: true\n")
    assert config.train.steps == 3000
    assert config.model.quantize == "fp8" and "quantize -> model.quantize" in said
    assert config.train.optimizer == "adamw8bit" and "总是先编码" in said


def test_full_and_flux_variants(read):
    text = LORA.replace("Qwen/Qwen-Image", "black-forest-labs/FLUX.1-dev")
    text = text.replace("lr_scheduler: constant", "lr_scheduler: cosine_with_restarts")
    config, said = read(text)
    assert config.model.family == "flux" and config.train.schedule == "cosine"
    assert "cosine_with_restarts 改成 cosine" in said


def test_the_full_fine_tuning_yaml(read):
    text = LORA.replace("learning_rate: 1e-4", "learning_rate: 6e-4").replace("rank: 16\n", "")
    text += "freeze_text_encoder: true\nuse_8bit_adam: true\n"
    config, said = read(text)
    assert (config.lora.kind, config.train.lr) == ("full", 6e-4)
    assert config.train.optimizer == "adamw8bit"
    assert "lora.kind = full" in said


def test_epochs_are_explained_and_the_steps_decide(read):
    text = LORA.replace("max_train_steps: 3000", "num_train_epochs: 1\nmax_train_steps: 30000")
    text = text.replace("lr_warmup_steps: 10", "lr_warmup_steps: 1000")
    text = text.replace("gradient_accumulation_steps: 1", "gradient_accumulation_steps: 4")
    config, said = read(text + "use_8bit_adam: true\nfreeze_text_encoder: true\n")
    assert (config.train.steps, config.train.warmup, config.train.grad_accum) == (30000, 1000, 4)
    assert config.lora.kind == "full" and said.count("num_train_epochs") == 1
    assert "练多久由步数决定" in said
    assert "train.steps 用默认的" in read(text.replace("max_train_steps: 30000\n", ""))[1]


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_batch_sizes_the_loaders_counts(read, order):
    parts = ["data_config: {train_batch_size: 4}", "train_batch_size: 1"][::order]
    config, said = read("\n".join(["pretrained_model_name_or_path: Qwen/Qwen-Image", *parts]))
    assert config.train.batch_size == 4 and "4 和 1" in said
    assert read("pretrained_model_name_or_path: x\ntrain_batch_size: 3")[0].train.batch_size == 3
    same, said = read(LORA)
    assert same.train.batch_size == 1 and "写得不一样" not in said


@pytest.mark.parametrize(
    ("value", "tracker"),
    [("wandb", "wandb"), ("tensorboard", "tensorboard"), ("null", "none"), ("none", "none")],
)
def test_where_to_report(read, value, tracker):
    text = LORA.replace("report_to: null", f"report_to: {value}\nwandb_project: x\nwandb_entity: y")
    config, said = read(text)
    assert config.run.tracker == tracker and "WANDB_PROJECT" in said


def test_a_value_that_cannot_be_followed_is_said(read):
    text = LORA.replace("beta1: 0.9", "beta1: 0.8").replace("epsilon: 1e-8", "epsilon: 1.0e-6")
    said = read(text + "freeze_text_encoder: false\n")[1]
    assert "adam_beta1：写的是 0.8，没有用到" in said and "adam_beta2：不需要" in said
    assert "adam_epsilon：写的是 1.0e-6" in said and "freeze_text_encoder：写的是 false" in said
    assert "adam_epsilon：不需要" in read(LORA.replace("1e-8", "1.0e-08"))[1]


@pytest.mark.parametrize("name", ["learning_rate", "lr_scheduler", "rank", "report_to"])
@pytest.mark.parametrize("value", ["[1, 2]", "{a: 1}", "[]"])
def test_lists_and_tables_in_place_of_a_value_are_one_sentence(read, name, value):
    text = re.sub(rf"(?m)^{name}: .*$", f"{name}: {value}", LORA)
    with pytest.raises(ConfigError, match="处要改"):
        read(text)


def test_several_folders_are_a_list_here_too(read):
    config, _ = read(LORA.replace("img_dir: ./images", "img_dir: [./a, ./b]"))
    assert [str(one.folder) for one in config.data.sources] == ["a", "b"]


def test_unknown_keys_still_fail(read):
    with pytest.raises(ConfigError, match="learning_rat"):
        read(LORA + "learning_rat: 1\n")


EDIT = LORA.replace("Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit").replace("1e-4", "2e-4")
CACHED = "precompute_text_embeddings: true\nprecompute_image_embeddings: true\n"
FULL = LORA.replace("learning_rate: 1e-4", "learning_rate: 6e-4").replace("rank: 16\n", "")
for _old, _new in {"scheduler: constant": "scheduler: cosine_with_restarts",
                   "warmup_steps: 10": "warmup_steps: 1000", "train_steps: 3": "train_steps: 30",
                   "accumulation_steps: 1": "accumulation_steps: 4", "steps: 250": "steps: 1000",
                   "total_limit: 10": "total_limit: 2", "ratio: true": "ratio: false",
                   "./images": "/path/to/your/dataset"}.items():  # fmt: skip
    FULL = FULL.replace(_old, _new)
VARIANTS = {  # 常见教程里的几份 YAML；底模、数据、步数与分辨率用 --set 换成微型的，其余照原样
    "lora": (LORA, "tiny-qwen-image", "papercut"),
    "24gb": (
        LORA.replace("learning_rate: 1e-4", "learning_rate: 3e-4")
        + CACHED
        + "quantize: true\nadam8bit: true\nsave_cache_on_disk: true\n",
        "tiny-qwen-image",
        "papercut",
    ),
    "edit": (
        EDIT.replace("  random_ratio", "  control_dir: ./control_images\n  random_ratio")
        + CACHED
        + "quantize: false\nadam8bit: false\nsave_cache_on_disk: false\n",
        "tiny-qwen-image-edit",
        "edit-night",
    ),
    "full": (
        FULL + "freeze_text_encoder: true\nuse_8bit_adam: true\nnum_train_epochs: 1\n",
        "tiny-qwen-image",
        "papercut",
    ),
    "flux": (LORA.replace("Qwen/Qwen-Image", "black-forest-labs/FLUX.1-dev"), "flux", "papercut"),
    "z-image": (LORA.replace("Qwen/Qwen-Image", "Tongyi-MAI/Z-Image-Turbo"), "zimage", "papercut"),
    "kandinsky": (
        LORA.replace("Qwen/Qwen-Image", "kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers"),
        "kandinsky5",
        "papercut",
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_key_and_value_of_every_variant_is_read(read, name):
    text = VARIANTS[name][0]
    config, said = read(text)
    tree = yaml.safe_load(text)
    given = tree | tree.pop("data_config")
    assert [key for key in given if key not in said] == []
    train, data = config.train, config.data
    assert (train.steps, train.save_every, train.keep, train.warmup, train.grad_accum) == tuple(
        given[key] for key in ("max_train_steps", "checkpointing_steps", "checkpoints_total_limit",
                               "lr_warmup_steps", "gradient_accumulation_steps")
    )  # fmt: skip
    assert (train.lr, train.weight_decay) == (float(given["learning_rate"]), 0.01)
    assert train.schedule == given["lr_scheduler"].removesuffix("_with_restarts")
    assert (data.resolution, data.caption_dropout) == (1024, 0.1)
    assert str(data.folder) == str(Path(given["img_dir"]))
    assert str(config.run.output) == str(Path(given["output_dir"]))
    assert config.model.path == given["pretrained_model_name_or_path"]
    if control := given.get("control_dir"):
        assert str(data.control_folder) == str(Path(control))
    assert config.lora.kind == ("full" if name == "full" else "lora")
    assert name == "full" or config.lora.rank == given["rank"]
    assert (config.model.quantize == "fp8") == bool(given.get("quantize"))
    eight = given.get("adam8bit") or given.get("use_8bit_adam")
    assert train.optimizer == ("adamw8bit" if eight else "adamw")


@pytest.mark.filterwarnings("ignore::lorakit.errors.LorakitWarning")
@pytest.mark.parametrize("name", VARIANTS)
def test_flat_yaml_trains_on_a_tiny_model(name, tmp_path, tmp_path_factory):
    from lorakit.tiny import samples
    from lorakit.train import Trainer

    text, model, lesson = VARIANTS[name]
    if not model.startswith("tiny"):
        model = import_module(f"random_{model}").build(tmp_path_factory.mktemp(model))
    samples.write(lesson, tmp_path / "data", count=4)
    source = tmp_path / "train.yaml"
    source.write_text(text, encoding="utf-8")
    changes = ["train.steps=2", "train.warmup=0", "data.resolution=128"]
    places = {"model.path": model, "run.output": tmp_path / "run"}
    places["data.folder"] = tmp_path / "data" / ("images" if name == "edit" else "")
    if name == "edit":
        places["data.control_folder"] = tmp_path / "data" / "control"
    changes += [f"{key}={value}" for key, value in places.items()]
    config = load_config(source, changes, say=lambda _: None)
    losses = [step.loss for step in Trainer(config)]
    assert len(losses) == 2 and (tmp_path / "run" / "checkpoint-2").is_dir()
