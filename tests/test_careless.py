"""粗心的用法：名字里的点、空名字、两份训练同时来、写到一半的记录；一句话说清，什么也不丢。"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import random_kandinsky5
import random_qwen
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lorakit import infer
from lorakit.cli import main
from lorakit.config import load_config, read, template
from lorakit.errors import ConfigError, LorakitError, LorakitWarning, WeightsError
from lorakit.families import get
from lorakit.infer import pipeline as infer_pipeline
from lorakit.lora import find
from lorakit.lora.convert import named
from lorakit.memory import loading
from lorakit.results import checkpoint, lock, report
from lorakit.results import folder as run_folder
from lorakit.tiny import samples
from lorakit.train import Trainer
from lorakit.training import processes


def test_a_dot_in_a_name_is_not_a_suffix(tmp_path):
    assert named(tmp_path / "style-0.5").name == "style-0.5.safetensors"
    assert named(tmp_path / "a.safetensors").name == "a.safetensors"
    for empty in ("", ".", "/"):
        with pytest.raises(ConfigError, match="没有文件名"):
            named(type(tmp_path)(empty))


@pytest.mark.parametrize(
    ("name", "said"), [("a.txt", "不会存 .txt"), ("v1.5", "不会存 .5"), (".png", "没有文件名")]
)
def test_pictures_need_a_name_of_a_picture(name, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        report.save_image(Image.new("RGB", (8, 8)), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_the_name_of_the_picture_is_checked_before_drawing(capsys):
    assert main(["generate", "tiny-qwen-image", "--prompt", "猫", "--out", "a.txt"]) == 1
    assert "不会存 .txt" in capsys.readouterr().err


def test_a_folder_is_taken_before_the_long_preparations(config, monkeypatch, tmp_path):
    """编码的那几个小时里来的第二份，也要被拒绝；准备失败，就放开，不留空文件夹。"""
    chosen, seen = config(), []

    def another(self):
        """假装是别的进程来看。"""
        seen.append(self.lock.read()["pid"])
        raise LorakitError("编码失败")

    prepare = "lorakit.training.setup.cache.prepare"
    monkeypatch.setattr(prepare, lambda c, *_, **__: another(made["folder"]))
    made, real = {}, run_folder.RunFolder.__init__

    def init(self, *rest):
        real(self, *rest)
        made["folder"] = self

    monkeypatch.setattr(run_folder.RunFolder, "__init__", init)
    with pytest.raises(LorakitError, match="编码失败"):
        Trainer(chosen)
    assert seen == [os.getpid()] and not chosen.run.output.exists()


HOLDS = """
import sys
from pathlib import Path
from lorakit.results.lock import Lock
lock = Lock(Path(sys.argv[1]))
with lock.take():
    pass
print("held", flush=True)
sys.stdin.read()
"""


def test_the_second_of_two_runs_is_refused_until_the_first_is_killed(config):
    chosen = config()
    run, pipes = chosen.run.output, dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other = subprocess.Popen([sys.executable, "-c", HOLDS, str(run)], **pipes)
    try:
        assert other.stdout.readline() == b"held\n"
        owner = (run / lock.OWNER).read_text()
        with pytest.raises(ConfigError, match=f"：进程 {other.pid} 正在"):
            run_folder.RunFolder(chosen)
        assert (run / lock.OWNER).read_text() == owner
    finally:
        other.kill()
        other.wait()
    taken = run_folder.RunFolder(chosen)  # 主人没了，不用等，也不用说
    taken.abandon()
    assert list(run.iterdir()) == []


def test_another_machine_is_known_by_its_heartbeat(config, monkeypatch):
    """共用的盘上，系统的锁未必到得了别的机器：还有心跳就拒绝，早没了的说一声再接过来。"""
    chosen = config()
    owner = chosen.run.output / lock.OWNER
    owner.parent.mkdir()
    owner.write_text(json.dumps({"token": "x", "pid": 7, "host": "far", "boot": "other"}))
    with pytest.raises(ConfigError, match="机器 far 上的进程 7 正在"):
        run_folder.RunFolder(chosen)
    os.utime(owner, (time.time() - 20,) * 2)
    with pytest.raises(ConfigError, match=r"上一次动静在 2\d 秒前.*等 \d\d 秒再运行同一条命令"):
        run_folder.RunFolder(chosen)
    monkeypatch.setattr(lock, "BEAT", 0.2)
    os.utime(owner, (time.time() - 4 * lock.STALE,) * 2)
    with pytest.warns(LorakitWarning, match="4 分钟没有动静，由这次接过来"):
        mine = run_folder.RunFolder(chosen)
    assert mine.lock.read()["pid"] == os.getpid()


def test_the_heartbeat_beats_and_stops(tmp_path, monkeypatch, wait_for):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    mine = lock.Lock(tmp_path)
    with mine.take():
        pass
    os.utime(tmp_path / lock.OWNER, (0, 0))
    wait_for(lambda: (tmp_path / lock.OWNER).stat().st_mtime > 1)
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_in_one_process_the_second_is_refused(config):
    """一格运行两遍、两个线程：先来的占着；它放手、或没人要了，才轮到后来的。"""
    first = run_folder.RunFolder(config())
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"这个进程（.*先前的一个 Trainer 正占着"):
            run_folder.RunFolder(config())
    assert first.lock.read()["token"] == first.lock.token
    first.release()
    second = run_folder.RunFolder(config())
    assert second.lock.read()["token"] == second.lock.token
    del second  # 没有放手就没人要了
    third = run_folder.RunFolder(config())
    third.release()
    assert not third.path.exists() or not list(third.path.iterdir())


def test_two_trainers_in_one_process(config):
    first = Trainer(config())
    with pytest.raises(ConfigError, match="先前的一个 Trainer"):
        Trainer(config())
    steps = iter(first)
    next(steps)
    with pytest.raises(ConfigError, match="先前的一个 Trainer"):
        Trainer(config())
    steps.close()
    assert len(list(Trainer(config()))) == 4
    unused = Trainer(config("train.steps=5"))
    unused.close()
    assert len(list(Trainer(config("train.steps=5")))) == 1


def test_another_container_of_this_machine_is_seen(config):
    """进程号各编各的：那边的 7 号不是这边的 7 号。"""
    chosen = config()
    owner = chosen.run.output / lock.OWNER
    owner.parent.mkdir()
    me = lock._machine()
    owner.write_text(json.dumps({"token": "x", "pid": 7, **me, "space": "pid:[1]"}))
    with pytest.raises(ConfigError, match=r"另一个容器.*进程 7 正在"):
        run_folder.RunFolder(chosen)
    owner.write_text(json.dumps({"token": "x", "pid": 7, **me}))
    run_folder.RunFolder(chosen).abandon()


@pytest.mark.parametrize("hours", [-24, -5, 5, 24])
def test_clocks_that_differ_do_not_hide_a_live_owner(config, monkeypatch, hours):
    """那台机器的钟差几个小时，心跳看着很旧、或在将来：亲眼看它跳不跳。"""
    monkeypatch.setattr(lock, "BEAT", 0.2)
    chosen, stop = config(), threading.Event()
    owner = chosen.run.output / lock.OWNER
    owner.parent.mkdir()
    owner.write_text(json.dumps({"token": "x", "pid": 7, "host": "far", "boot": "other"}))

    def beat():
        while not stop.wait(0.1):
            os.utime(owner, (time.time() + 3600 * hours,) * 2)

    thread = threading.Thread(target=beat)
    os.utime(owner, (time.time() + 3600 * hours,) * 2)
    thread.start()
    try:
        with pytest.raises(ConfigError, match="机器 far 上的进程 7 正在"):
            run_folder.RunFolder(chosen)
    finally:
        stop.set()
        thread.join()
    with pytest.warns(LorakitWarning, match="由这次接过来"):
        run_folder.RunFolder(chosen).abandon()


def test_a_clock_that_jumps_a_day_changes_nothing(config, monkeypatch):
    """训练途中钟前后跳一天：练出来的、记下的用时都照常，别人照样进不来。"""
    list(plain := Trainer(config("train.steps=4", output="plain")))
    jumps, real = itertools.cycle([86400, -86400, 0]), time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    trainer = Trainer(config("train.steps=4"))
    for step in trainer:
        assert 0 < step.seconds < 600
        if step.step < 4:
            with pytest.raises(ConfigError, match="正占着"):
                Trainer(config("train.steps=4"))
            days = real() + 86400 * (1 if step.step % 2 else -1)
            os.utime(config().run.output / lock.OWNER, (days, days))
    a, b = (load_file(find(one.run)) for one in (plain, trainer))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_folder_taken_over_is_noticed(config):
    """盘断了一阵，别的机器接过去了：先来的不再写。"""
    steps = iter(Trainer(config()))
    next(steps)
    owner = config().run.output / lock.OWNER
    owner.write_text(json.dumps({"token": "x", "pid": 7, "host": "far", "boot": "other"}))
    with pytest.raises(ConfigError, match="机器 far 上的进程 7 正在"):
        next(steps)
    assert json.loads(owner.read_text())["token"] == "x"


def test_a_folder_removed_under_the_run(config):
    steps = iter(Trainer(config()))
    next(steps)
    run = config().run.output
    run.rename(run.with_name("moved"))
    with pytest.raises(ConfigError, match="被删掉或改了名"):
        next(steps)


def test_a_run_harms_nothing_beside_it(config, tmp_path, papercut, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    places = (("/", "整个盘"), (home, "家目录"), (papercut, "数据"), (papercut / "run", "数据"))
    for place, why in places:
        with pytest.raises(ConfigError, match=f"run.output.*{why}"):
            run_folder.RunFolder(config(f"run.output={place}"))
    chosen = config("train.keep=1", "train.save_every=1")
    run = chosen.run.output
    for name in ("photo.png", "checkpoint-1/model.safetensors", "notes/a.txt"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("我的")
    with pytest.raises(ConfigError, match=r"checkpoint-1，不是训练写的"):
        run_folder.RunFolder(chosen)
    (run / "checkpoint-1").rename(run / "checkpoint-0")
    with pytest.raises(ConfigError, match="checkpoint-0"):
        run_folder.RunFolder(chosen)
    (run / "checkpoint-0").rename(run / "other-1")
    list(Trainer(chosen))
    assert {"photo.png", "other-1", "notes"} <= {path.name for path in run.iterdir()}
    (run / "metrics.jsonl").write_text('{"epoch": 1}\n')
    for one in checkpoint.all_of(run):
        shutil.rmtree(one)
    with pytest.raises(ConfigError, match=r"metrics.jsonl，不是训练写的"):
        run_folder.RunFolder(chosen)


def test_damaged_checkpoints_fall_back_and_say_so(config, cut_at_three):
    settings = config("train.save_every=1")
    list(Trainer(settings))
    run = settings.run.output
    state = run / "checkpoint-4" / "state" / "state.json"
    state.write_text(state.read_text().replace("0.999", "0.998"))
    with pytest.warns(LorakitWarning, match="checkpoint-4 坏了或被改过，退回 checkpoint-3"):
        assert Trainer(settings).step == 3
    file = run / "checkpoint-3" / "pytorch_lora_weights.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert checkpoint.changed(run / "checkpoint-3") == [file.name]
    with pytest.raises(WeightsError, match="和存的时候不一样了"):
        checkpoint.refuse_changed(file)
    assert main(["audit", str(file)]) == 1


def test_a_file_that_got_into_a_checkpoint_is_not_read(config, cut_at_three):
    cut_at_three(config())
    state = config().run.output / "checkpoint-4" / "state"
    zeros = {
        name: torch.zeros_like(value)
        for name, value in load_file(state / "weights.safetensors").items()
    }
    save_file(zeros, state / "weights.z.safetensors")
    trainer = Trainer(config("train.steps=5"))
    assert trainer.step == 4
    assert any(value.abs().sum() > 0 for value in trainer.parameters.values())
    trainer.close()


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_a_record_that_is_no_file(config, cut_at_three, put):
    """管道一读就一直等，设备没有尽头。"""
    cut_at_three(config())
    (config().run.output / "metrics.jsonl").unlink()
    put(config().run.output / "metrics.jsonl")
    assert run_folder.Tail(config().run.output).new() == []
    with pytest.raises(LorakitError, match="不是普通的文件"):
        Trainer(config())


def test_stop_as_a_folder_and_odd_owners(config):
    run = config().run.output
    (run / "STOP").mkdir(parents=True)
    for odd in ("[]", '{"pid": "x"}', '{"pid": 1e300}'):
        (run / lock.OWNER).write_text(odd)
        run_folder.RunFolder(config()).release()
    assert len(list(Trainer(config()))) == 4


@pytest.mark.parametrize("name", ["config.yaml", "README.md"])
def test_what_the_user_wrote_is_not_overwritten(name, config):
    chosen = config()
    chosen.run.output.mkdir()
    (chosen.run.output / name).write_text("# 我写的")
    with pytest.raises(ConfigError, match=f"已经有 {name}"):
        Trainer(chosen)
    assert (chosen.run.output / name).read_text() == "# 我写的"


def test_half_a_last_line_of_the_record_is_dropped(tmp_path):
    whole = json.dumps({"step": 1, "delta": {"a": 1}})
    for cut in range(1, len(whole)):
        (tmp_path / "metrics.jsonl").write_text(f"{whole}\n{whole[:-cut]}")
        assert run_folder.read(tmp_path) == [json.loads(whole)]


def test_a_base_of_another_family_says_whose_it_is(config, capsys):
    with pytest.raises(ConfigError, match=r"FluxTransformer2DModel.*model\.family=flux"):
        Trainer(config("model.path=tiny-flux"))
    more = ["--offline", "--set", "model.path=tiny-flux"]
    assert main(["doctor", "tiny-qwen-image", *more]) == 1
    assert "model.family=flux" in capsys.readouterr().err


def test_a_file_is_no_folder_for_samples(tmp_path):
    (tmp_path / "afile").write_text("x")
    with pytest.raises(LorakitError, match="写不进"):
        samples.write("papercut", tmp_path / "afile")


def test_templates_and_paths_of_windows(tmp_path):
    file = tmp_path / "y.yaml"
    file.write_bytes("# 我的\ndata:\n  folder: 我的图\n".encode("gbk"))
    assert template(str(file)).startswith("# 我的")
    file.write_text('data:\n  folder: "C:\\Users\\me"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="反斜杠"):
        load_config(file)
    assert read.decoded("猫".encode("utf-16")) == "猫"


@pytest.mark.parametrize("rank", ["0", "-1"])
def test_ranks_to_shrink_to_are_positive(rank, tmp_path, capsys, config):
    list(Trainer(config()))
    out = ["--out", str(tmp_path / "x")]
    assert main(["export", str(config().run.output), "--rank", rank, *out]) == 1
    assert "秩至少是 1" in capsys.readouterr().err


def test_odd_numbers_and_empty_names_are_refused(config, tmp_path, capsys):
    run = config().run.output
    list(Trainer(config()))
    for argv, said in (
        (["doctor", "tiny-qwen-image", "--tier", "nan", "--offline"], "大于 0 GB"),
        (["check", ""], "得到的是空的"),
        (["export", str(run), "--weight", "nan", "--out", str(tmp_path / "x")], "--weight"),
        (["export", str(run), "--weight", "1e39", "--out", str(tmp_path / "x")], "--weight"),
        (["sample-data", "papercut", str(run / "config.yaml" / "x")], "是文件"),
    ):
        assert main(argv) == 1, argv
        assert said in capsys.readouterr().err, argv
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "a", "--prompt", "猫"], "加上 --workflow"),
        (["--out", "a", "--set", "sample.steps=3"], "加上 --workflow"),
        (["--workflow", "a.json", "--rank", "2"], "加上 --out"),
        (["--out", "a", "--merge", "--to", "kohya"], "去掉 --to"),
    ],
)
def test_options_of_export_that_would_do_nothing_are_refused(options, said, capsys):
    assert main(["export", "x.safetensors", *options]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("scarce", [True, False])
def test_a_thread_of_a_picture_is_not_edited(scarce, tmp_path, capsys, monkeypatch):
    """显存紧、先编码的时候，也在编码之前就说。"""
    monkeypatch.setattr(infer_pipeline, "scarce", lambda family: scarce)
    Image.new("RGB", (5000, 10)).save(tmp_path / "a.png")
    assert main(["edit", str(tmp_path / "a.png"), "改成夜晚"]) == 1
    assert "最多是短边的 100 倍" in capsys.readouterr().err


def test_a_run_past_its_steps_says_so(papercut, tmp_path, capsys):
    sets = [f"data.folder={papercut}", f"run.output={tmp_path / 'run'}", "eval.every=0",
            "data.resolution=64"]  # fmt: skip
    for steps in (2, 1):
        more = [x for one in [*sets, f"train.steps={steps}"] for x in ("--set", one)]
        assert main(["train", "tiny-qwen-image", *more]) == 0
    assert "已经练到 2 步，train.steps 是 1" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["kohya", "comfyui"])
def test_our_own_exports_are_drawn_with(kind, config, tmp_path):
    list(Trainer(config()))
    out = tmp_path / f"{kind}.safetensors"
    argv = ["export", str(config().run.output), "--to", kind, "--out", str(out), "--dtype", "fp32"]
    assert main(argv) == 0
    drawn = []
    for lora in (config().run.output, out):
        picture = tmp_path / "a.png"
        more = ["--lora", str(lora), "--prompt", "猫", "--steps", "2", "--out", str(picture)]
        assert main(["generate", "tiny-qwen-image", *more]) == 0
        drawn.append(np.asarray(Image.open(picture), int))
    assert np.abs(drawn[0] - drawn[1]).max() <= 1


@pytest.mark.parametrize("fails", [1, 2])
def test_out_of_memory_while_sampling_loses_nothing(fails, papercut, tmp_path, monkeypatch, capsys):
    """头一次出样张（第 0 步）就放不下，或练到第 2 步才放不下：练过的都存好，说怎么办。"""
    drawn, real = [], infer.preview

    def preview(*given):
        drawn.append(1)
        if len(drawn) == fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*given)

    monkeypatch.setattr(infer, "preview", preview)
    sets = [f"data.folder={papercut}", f"run.output={tmp_path / 'run'}", "train.steps=4",
            "train.batch_size=2", "train.save_every=100", "eval.every=0", "data.resolution=64",
            "sample.prompts=[一只猫]", "sample.every=2", "sample.steps=2"]  # fmt: skip
    argv = ["train", "tiny-qwen-image", *(word for one in sets for word in ("--set", one))]
    assert main(argv) == 1
    said = capsys.readouterr().err
    assert "出样张时显存不够" in said and "sample.prompts" in said
    kept = [path.name for path in checkpoint.all_of(tmp_path / "run")]
    assert kept == ([] if fails == 1 else ["checkpoint-2"])
    more = ["--set", "sample.prompts=[]", "--set", "sample.every=0"]
    assert main([*argv, *more]) == 0  # 照它说的接着练
    assert checkpoint.latest(tmp_path / "run").name == "checkpoint-4"


def test_out_of_memory_elsewhere_is_one_sentence(monkeypatch, tmp_path, capsys):
    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(infer, "generate", full)
    out = ["--out", str(tmp_path / "a.png")]
    assert main(["generate", "tiny-qwen-image", "--prompt", "猫", *out]) == 1
    assert capsys.readouterr().err.startswith("显存不够了")


@pytest.mark.parametrize(("name", "module"), [("kandinsky5", random_kandinsky5),
                                              ("qwen-image", random_qwen)])  # fmt: skip
def test_every_family_is_split_by_its_blocks(name, module, tmp_path):
    """FSDP2 看 _no_split_modules；Kandinsky 没有写，就用它重复的块。"""
    family = get(name)(module.build(tmp_path), torch.device("cpu"), torch.float32)
    model, plugin = family.load("transformer"), SimpleNamespace(transformer_cls_names_to_wrap=None)
    where = SimpleNamespace(
        is_fsdp2=True, state=SimpleNamespace(fsdp_plugin=plugin), prepare=lambda *pair: pair
    )
    processes.prepare(where, model, None)
    names = set(plugin.transformer_cls_names_to_wrap or model._no_split_modules)
    assert names == {type(block).__name__ for block in loading.blocks(model).values()}


def test_a_changed_lora_of_a_checkpoint_is_told_wherever_it_is_used(config, tmp_path, capsys):
    """导出、画图、对比、发布：都不悄悄用上存好以后坏了的那一份。"""
    list(Trainer(config("train.steps=1")))
    run = config().run.output
    file = run / "checkpoint-1" / "pytorch_lora_weights.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    out = str(tmp_path / "o.safetensors")
    said = ["--prompt", "一只猫"]
    for command in (["export", str(run), "--out", out], ["export", str(file), "--out", out],
                    ["generate", str(run), *said], ["compare", str(run), *said],
                    ["compare", str(run), *said, "--checkpoints", "all"],
                    ["audit", str(run)]):  # fmt: skip
        assert main(command) == 1, command
        assert "和存的时候不一样了" in capsys.readouterr().err
    assert not os.path.exists(out)
