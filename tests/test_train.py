"""训练：断了再练与没断过逐比特相同；检查点任何时刻都完整（随时杀掉：见 test_kill.py）。"""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorakit import lora
from lorakit.errors import ConfigError, LorakitError
from lorakit.results import checkpoint
from lorakit.train import Trainer
from lorakit.training.objective import Objective


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / f"checkpoint-{step}"
    return {
        f"{file.name}|{name}": value
        for file in (folder / lora.FILE, *sorted((folder / "state").glob("*.safetensors")))
        for name, value in load_file(file).items()
    }


def losses(run: Path) -> list:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(m["step"], m.get("loss"), m.get("held"), m.get("grad_norm")) for m in lines]


def same(a: dict, b: dict):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "extra", [[], ["train.grad_accum=2", "train.schedule=cosine", "train.warmup=2"]]
)
def test_interrupted_run_equals_an_uninterrupted_one(config, extra, cut_at_three):
    whole, cut = config(*extra, output="whole"), config(*extra, output="cut")
    list(Trainer(whole))
    cut_at_three(cut)
    same(tensors(whole.run.output, 4), tensors(cut.run.output, 4))
    assert losses(whole.run.output) == losses(cut.run.output)


def test_sampling_in_between_does_not_disturb_training(config):
    from lorakit import infer

    plain, watched = config(output="plain"), config("sample.steps=2", output="watched")
    list(Trainer(plain))
    trainer = Trainer(watched)
    for _ in trainer:
        torch.rand(7)
        pipe = trainer.family.pipeline(trainer.transformer)
        infer.generate(trainer.family, pipe, ["一只猫"], watched.sample, (64, 64))
        trainer.transformer.train()
    same(tensors(plain.run.output, 4), tensors(watched.run.output, 4))


def test_training_lowers_the_held_out_loss(config):
    settings = config(
        "train.steps=30",
        "train.batch_size=4",
        "train.lr=2e-3",
        "eval.every=30",
        "train.save_every=100",
    )
    list(Trainer(settings))
    held = [h for _, _, h, _ in losses(settings.run.output) if h is not None]
    assert held[-1] < held[0] * 0.97
    assert (settings.run.output / "checkpoint-30").is_dir()  # 最后一步总会存


def test_old_checkpoints_go_after_the_new_one_is_written(config):
    settings = config("train.steps=6", "train.save_every=1", "train.keep=2")
    list(Trainer(settings))
    assert [p.name for p in checkpoint.all_of(settings.run.output)] == [
        "checkpoint-5",
        "checkpoint-6",
    ]


def test_a_broken_checkpoint_is_skipped(config):
    settings = config()
    list(Trainer(settings))
    weights = settings.run.output / "checkpoint-4" / "state" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert checkpoint.latest(settings.run.output).name == "checkpoint-2"


def test_another_config_in_the_same_folder_is_refused(config):
    list(Trainer(config()))
    with pytest.raises(ConfigError, match=r"lora\.rank：原来 16，现在 8"):
        Trainer(config("lora.rank=8"))
    Trainer(config("train.steps=5"))  # 练久一点不算换设置


def test_stop_saves_the_step_in_hand(config):
    settings = config("train.steps=50", "train.save_every=50")
    trainer = Trainer(settings)
    for step in trainer:
        if step.step == 3:
            trainer.stop()
    assert checkpoint.latest(settings.run.output).name == "checkpoint-3"


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_bad_losses_stop_at_once_and_name_step_items_and_t(config, monkeypatch, bad):
    settings = config("train.save_every=1", "eval.every=0", "data.resolution=64")
    trainer, seen = Trainer(settings), []
    real = Objective.draw

    def poisoned(self, *args):
        loss, t, items = real(self, *args)
        seen[:] = [item.record.path.name for item in items], [round(x, 3) for x in t.tolist()]
        return loss * (float(bad) if trainer.step == 2 else 1), t, items

    monkeypatch.setattr(Objective, "draw", poisoned)
    with pytest.raises(
        LorakitError, match=rf"第 3 步的损失变成了 {bad}.*学习率.*checkpoint-2"
    ) as told:
        list(trainer)
    names, times = seen
    assert "、".join(names) in str(told.value) and f"t = {times}" in str(told.value)
    assert checkpoint.latest(settings.run.output).name == "checkpoint-2"


def test_a_full_disk_keeps_what_was_saved(config, monkeypatch):
    settings = config("train.steps=6", "train.save_every=2")
    trainer, real = Trainer(settings), checkpoint.write_tensors

    def full(path, *args):
        if "checkpoint-4" in str(path):
            raise OSError(28, "No space left on device")
        real(path, *args)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(LorakitError, match="磁盘"):
        list(trainer)
    assert [p.name for p in settings.run.output.glob("*checkpoint*")] == ["checkpoint-2"]
    assert checkpoint.latest(settings.run.output).name == "checkpoint-2"


def test_the_step_is_fast_enough_to_be_timed(config):
    trainer = Trainer(config())
    start = time.time()
    steps = list(trainer)
    assert sum(s.seconds for s in steps) <= time.time() - start
