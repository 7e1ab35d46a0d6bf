"""别处的扁平 YAML：照原样能读，每一项都有交代。"""

import pytest

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


@pytest.fixture
def read(tmp_path):
    def run(text: str):
        path = tmp_path / "train.yaml"
        path.write_text(text, encoding="utf-8")
        said: list[str] = []
        return load_config(path, say=said.append), "\n".join(said)

    return run


def test_every_key_is_read_and_explained(read):
    config, said = read(LORA)
    assert (config.model.family, config.model.path) == ("qwen-image", "Qwen/Qwen-Image")
    assert (config.train.steps, config.train.lr, config.train.save_every) == (3000, 1e-4, 250)
    assert (config.data.resolution, str(config.data.folder)) == (1024, "images")
    assert (config.lora.rank, config.train.keep, config.run.resume) == (16, 10, "auto")
    for line in LORA.splitlines():
        assert line.strip().split(":")[0] in said or line.startswith("data_config")
    assert "注意" not in said


def test_low_memory_switches_are_explained_not_swallowed(read):
    extra = "precompute_text_embeddings: true\nsave_cache_on_disk: true\nquantize: true\n"
    config, said = read(LORA + extra + "adam8bit: true\n")
    assert config.train.steps == 3000
    assert config.model.quantize == "fp8" and "quantize -> model.quantize" in said
    assert said.count("注意") == 1 and "总是先编码" in said


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
    assert "lora.kind = full" in said


def test_unknown_keys_still_fail(read):
    with pytest.raises(ConfigError, match="learning_rat"):
        read(LORA + "learning_rat: 1\n")
