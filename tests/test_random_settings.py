"""每一种允许的设置都练得动：随机抽一份，第 2 步断掉再接着练，与没断过的逐比特相同。

平时抽 COUNT 份；要多就设 LORAKIT_SETTINGS=100。不允许的要在载入之前说清楚，不算数。
"""

import os
import random
import warnings

import pytest
import torch
from safetensors.torch import load_file

from lorakit.errors import ConfigError, LorakitWarning
from lorakit.results import folder as run_folder
from lorakit.train import Trainer
from lorakit.training import preflight

COUNT = int(os.environ.get("LORAKIT_SETTINGS", "6"))
CHOICES = {
    "lora.kind": ["lora", "lora", "lora", "full"],
    "lora.rank": [1, 3, 4, 8],
    "lora.alpha": ["null", 2, 7.5],
    "lora.variant": ["plain", "rslora", "dora", "lokr"],
    "lora.init": ["gaussian", "default", "orthogonal"],
    "lora.targets": ["attention", "image-attention", "all-linear", "[to_q, to_k]"],
    "model.precision": ["auto", "bf16", "fp32"],
    "model.quantize": ["none", "none", "int8", "fp8"],
    "data.caption_dropout": [0, 0.5, 1],
    "data.flip": ["false", "true"],
    "data.crops": [1, 2],
    "data.repeats": [1, 3],
    "train.batch_size": [1, 2],
    "train.grad_accum": [1, 2],
    "train.optimizer": ["adamw", "adafactor", "prodigy"],
    "train.schedule": ["constant", "linear", "cosine"],
    "train.warmup": [0, 2],
    "train.max_grad_norm": [0.1, 1],
    "train.ema": [0, 0.9],
    "train.weighting": ["none", "sigma_sqrt", "cosmap"],
    "train.timestep.density": ["logit-normal", "uniform"],
    "train.timestep.shift": ["auto", 3],
    "eval.every": [0, 2],
    "eval.holdout": [0, 0.2],
    "memory.checkpointing": ["off", "full", "selective"],
    "memory.offload": ["none", "none", "blocks"],
}


def draw(seed: int, config) -> list[str]:
    """第 seed 份允许的设置：不允许的换一份再抽。"""
    dice = random.Random(seed)
    while True:
        chosen = [f"{name}={dice.choice(values)}" for name, values in CHOICES.items()]
        rate = 1 if "train.optimizer=prodigy" in chosen else 1e-4
        chosen += [f"train.lr={rate}", "train.save_every=2", "train.steps=4"]
        try:
            preflight.refuse(config(*chosen))
        except ConfigError as error:
            assert "\n" in str(error) or "：" in str(error)
        else:
            return chosen


@pytest.mark.parametrize("seed", range(COUNT))
def test_what_is_accepted_trains_and_resumes(seed, config):
    chosen = draw(seed, config)
    whole, cut = config(*chosen, output="whole"), config(*chosen, output="cut")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LorakitWarning)
        list(Trainer(whole))
        for step in Trainer(cut):
            if step.step == 2:
                break
        again = Trainer(cut)
        assert again.step == 2, chosen
        list(again)
    rows = [
        [
            {k: v for k, v in row.items() if k != "seconds"}
            for row in run_folder.read(one.run.output)
        ]
        for one in (whole, cut)
    ]
    assert rows[0] == rows[1], chosen
    files = sorted((whole.run.output / "checkpoint-4").rglob("*.safetensors"))
    for file in files:
        here = load_file(file)
        there = load_file(cut.run.output / file.relative_to(whole.run.output))
        assert here.keys() == there.keys()
        assert all(torch.equal(here[key], there[key]) for key in here), chosen


@pytest.mark.parametrize(
    ("extra", "said"),
    [("lora.rank=3", r"lora.init.*双数"), ("model.quantize=int8", r"lora.init.*不是浮点数")],
)
def test_orthogonal_says_what_it_cannot_do(config, extra, said):
    with pytest.raises(ConfigError, match=said):
        preflight.refuse(config("lora.init=orthogonal", extra))
    preflight.refuse(config("lora.init=orthogonal", "lora.rank=4"))
