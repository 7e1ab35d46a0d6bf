"""看着训练的东西：TensorBoard 等记录、挑检查点、样张里的 NaN、STOP 文件、时间步的提醒。"""

import os
import sys
import warnings

import pytest
import torch

from lorakit import flow
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import ConfigError, LorakitWarning
from lorakit.families import open_family
from lorakit.results import checkpoint, verdict
from lorakit.results import folder as run_folder
from lorakit.training import preflight
from lorakit.training.times import draw_times, train_times


@pytest.fixture
def train(config, tmp_path):
    def run(*more):
        file = tmp_path / "x.yaml"
        file.write_text(config(*more).to_yaml())
        return main(["train", str(file)])

    return run


def test_tensorboard_gets_every_number_and_picture(train, config):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sets = ("run.tracker=tensorboard", "sample.prompts=[猫, 狗]", "sample.every=2",
            "sample.steps=2", "sample.size=64")  # fmt: skip
    assert train(*sets) == 0
    run = config().run.output
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    rows = run_folder.read(run)
    for key in ("loss", "lr", "grad_norm", "held"):
        wanted = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        found = [(event.step, event.value) for event in events.Scalars(key)]
        assert found == [(step, pytest.approx(value)) for step, value in wanted], key
    assert {"delta/0", "delta/3"} <= set(events.Tags()["scalars"])
    pictures = events.Images("sample")  # 两句提示词的图并成一张
    assert [(image.step, image.width) for image in pictures] == [(0, 128), (2, 128), (4, 128)]


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_missing_tracker_says_what_to_install(train, capsys, monkeypatch, name):
    monkeypatch.setattr(preflight, "find_spec", lambda package: None)
    assert train(f"run.tracker={name}") == 1
    assert f"pip install {name}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_keys_come_from_the_environment_only(tmp_path, monkeypatch, name):
    monkeypatch.setattr(preflight, "find_spec", lambda package: True)
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("API_KEY", "MODE"):
        monkeypatch.delenv(f"{name.upper()}_{variable}", raising=False)
    asked = load_config("tiny-qwen-image", [f"run.tracker={name}"])
    with pytest.raises(ConfigError, match=f"{name.upper()}_API_KEY"):
        preflight.refuse(asked)
    monkeypatch.setenv(f"{name.upper()}_MODE", "offline")
    preflight.refuse(asked)
    monkeypatch.setenv(f"{name.upper()}_MODE", "online")
    monkeypatch.setenv(f"{name.upper()}_API_KEY", "secret")
    preflight.refuse(asked)


def test_wandb_offline(train, config, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert train("run.tracker=wandb", "sample.prompts=[猫]", "sample.steps=2") == 0
    files = list((config().run.output / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 1 and files[0].stat().st_size > 1000


def test_swanlab_offline(train, config, monkeypatch):
    pytest.importorskip("swanlab")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    assert train("run.tracker=swanlab", "sample.prompts=[猫]", "sample.steps=2") == 0
    (file,) = (config().run.output / "swanlab").glob("run-*/*.swanlab")
    assert file.stat().st_size > 1000
    assert len(list(file.parent.rglob("*.png"))) == 2  # 没有 LoRA 时的，和最后的


def test_swanlab_through_the_class_of_accelerate(train, config, monkeypatch):
    """没装也测得到：一个记下每次调用的替身，走 accelerate 自己的 SwanLabTracker。"""
    from types import SimpleNamespace

    from accelerate import accelerator

    calls = []
    run = SimpleNamespace(
        log=lambda values, step=None: calls.append((step, values)),
        finish=lambda: calls.append("finish"),
    )
    fake = SimpleNamespace(
        init=lambda **options: calls.append(options) or run,
        config={},
        Image=lambda image: image.size,
    )
    fake.config = type(
        "Config", (dict,), {"update": lambda self, values, **_: calls.append(values)}
    )()
    monkeypatch.setitem(sys.modules, "swanlab", fake)
    monkeypatch.setattr(preflight, "find_spec", lambda package: True)
    monkeypatch.setattr(accelerator, "filter_trackers", lambda kinds, folder=None: ["swanlab"])
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    assert train("run.tracker=swanlab", "sample.prompts=[猫]", "sample.steps=2") == 0
    options, settings, *logged, end = calls
    assert options["project"] == "lorakit" and settings["train.steps"] == 4 and end == "finish"
    assert [step for step, values in logged if "loss" in values] == [1, 2, 3, 4]
    assert logged[-1] == (4, {"sample": [(64, 64)]})


LISTED = "LoRA 加在 8 层：attn.to_q × 4、attn.to_out.0 × 4；要学的参数 "


@pytest.mark.parametrize(
    ("targets", "variant", "said"),
    [*(("[attn.to_q, to_out.0]", variant, LISTED) for variant in ("plain", "dora", "lokr")),
     ("image-attention", "plain", "16 层：attn.to_q × 4、attn.to_k × 4")],
)  # fmt: skip
def test_what_the_targets_match_is_listed(train, capsys, targets, variant, said):
    sets = (f"lora.targets={targets}", f"lora.variant={variant}", "train.steps=1")
    assert train(*sets, "train.warmup=0", "lora.rank=4") == 0
    assert said in capsys.readouterr().out


def test_a_stop_file_stops_the_command_with_130(train, config, capsys):
    run = config().run.output
    run.mkdir()
    (run / "STOP").touch()
    assert train("train.steps=50") == 130
    assert "再运行同一条命令就接着练" in capsys.readouterr().out
    assert checkpoint.latest(run).name == "checkpoint-0"
    assert train("train.steps=2") == 0


def test_nan_in_a_sample_names_the_prompt_and_the_last_good_checkpoint(train, capsys, monkeypatch):
    from diffusers import AutoencoderKLQwenImage

    real = AutoencoderKLQwenImage.decode
    drawn = []

    def broken(self, z, **options):
        drawn.append(z)  # 开头那一张是好的
        return real(self, z * (float("nan") if len(drawn) > 1 else 1), **options)

    monkeypatch.setattr(AutoencoderKLQwenImage, "decode", broken)
    assert train("sample.prompts=[一只猫]", "sample.steps=2", "train.steps=2") == 1
    said = capsys.readouterr().err
    assert "一只猫" in said and "第 2 步" in said and "checkpoint-2" in said


def test_the_best_checkpoint_is_said_and_written(train, config, capsys):
    sets = ("train.steps=6", "train.save_every=1", "eval.every=6", "train.lr=0.02", "train.keep=9")
    assert train(*sets) == 0
    run, out = config().run.output, capsys.readouterr().out
    held = verdict.held_by_step(run_folder.read(run))
    assert sorted(held) == list(range(7))  # 存检查点的那些步也检验
    best = min((step for step in held if step), key=held.get)
    assert best == 6 or f"checkpoint-{best}，多半比最后一个好" in out
    assert main(["audit", str(run)]) == 0
    assert f"checkpoint-{best}  {held[best]:.4f}  留出集损失最低" in capsys.readouterr().out
    assert verdict.best_of([], [1, 2]) is None


def test_training_far_from_inference_is_told(config, family):
    def said(*sets):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            preflight.check(config(*sets), family)
        return [str(one.message) for one in told if issubclass(one.category, LorakitWarning)]

    assert not [line for line in said() if "timestep" in line]
    assert "偏向构图" in said("train.timestep.shift=20")[0]
    assert "偏向细节" in said("train.timestep.shift=0.2")[0]


def test_the_plotted_density_is_the_one_that_is_drawn(config):
    settings = config("train.timestep.shift=3")
    family = open_family(settings, torch.device("cpu"))
    times = train_times(settings, family)
    drawn = flow.sample_t(20000, "logit-normal", 3.0, torch.Generator().manual_seed(0))
    places = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert times.quantile(places).tolist() == pytest.approx(
        drawn.double().quantile(places).tolist(), abs=0.02
    )
    walked = draw_times(settings, family)
    assert len(walked) == 50 and (walked[:-1] > walked[1:]).all() and os.path.exists(family.folder)


def test_the_density_picture(config, family, tmp_path):
    from PIL import Image

    from lorakit.training.times import plot_density

    picture = Image.open(plot_density(config(), family, tmp_path / "density.png"))
    assert picture.width > 500 and len(picture.convert("RGB").getcolors(1 << 20)) > 10
