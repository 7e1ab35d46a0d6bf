"""机器的毛病，别处没有管到的：只读的文件夹、Ctrl-C、没有 bf16 的显卡、没有 ipywidgets。

磁盘满、NaN：test_train.py、test_cache.py；显存不够：test_optim.py；杀掉：test_kill.py；
断网、要同意许可、站连不上：test_hub.py；没有显卡：test_doctor.py；几个进程里的：test_processes.py。
"""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lorakit import cache, lora
from lorakit.cli import main
from lorakit.cli.progress import interrupt
from lorakit.errors import LorakitError, LorakitWarning
from lorakit.families import open_family
from lorakit.machine import doctor
from lorakit.memory import devices
from lorakit.results import checkpoint
from lorakit.train import Trainer
from lorakit.training import preflight
from lorakit.training.objective import Objective

CUDA = torch.device("cuda")
SMALL = ("data.resolution=64", "eval.every=0")


@pytest.mark.parametrize(
    ("number", "said"), [(errno.EROFS, "只读"), (errno.EACCES, "没有写的权限")]
)
def test_a_read_only_folder_is_said_before_encoding(config, monkeypatch, own_cache, number, said):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint.Path, "write_text", refuse)
    with pytest.raises(LorakitError, match=rf"写不进.*run.*{said}.*换个地方"):
        Trainer(config(*SMALL))
    assert not list(own_cache.rglob("*.safetensors")) and not config().run.output.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    config, tmp_path, monkeypatch, capsys, number
):
    real = Objective.draw

    def interrupted(self, number_of_batch, step, share):
        if step == 2:  # 第 3 步算到一半
            os.kill(os.getpid(), number)
        return real(self, number_of_batch, step, share)

    monkeypatch.setattr(Objective, "draw", interrupted)
    settings = config(*SMALL, "train.steps=50", "train.save_every=50")
    file = tmp_path / "x.yaml"
    file.write_text(settings.to_yaml())
    first = signal.signal(number, signal.default_int_handler)  # 用 nohup 跑测试时，SIGHUP 是不理的
    before = signal.getsignal(number)
    assert main(["train", str(file)]) == 130
    assert signal.getsignal(number) is before
    assert "已停在第 3 步并存好。再运行同一条命令就接着练。" in capsys.readouterr().out
    assert checkpoint.latest(settings.run.output).name == "checkpoint-3"
    assert "| 步数 | 3，" in (settings.run.output / "README.md").read_text("utf-8")
    monkeypatch.setattr(Objective, "draw", real)
    assert main(["train", str(file), "--set", "train.steps=4"]) == 0
    assert "从第 3 步接着练" in capsys.readouterr().out
    signal.signal(number, first)


def test_a_card_without_bf16_works_in_fp32_and_says_so(config, family, monkeypatch):
    """像 T4 那样：PyTorch 说“支持”，其实是模拟的。"""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: (
        including_emulation
    ))  # fmt: skip
    assert devices.pick_dtype("auto", CUDA) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (15 * 2**30, 15 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    (_, told) = doctor._gpu(None)
    assert told.level == doctor.WARN and "会用 fp32" in told.said
    monkeypatch.setattr(family, "device", CUDA)
    with pytest.warns(LorakitWarning, match=r"precision=bf16.*多半很慢；写 auto"):
        preflight.check(config("model.precision=bf16"), family)


def test_without_ipywidgets_the_way_to_install_it_is_said(monkeypatch):
    from lorakit.lab import display

    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(LorakitError, match=r'pip install "lorakit\[notebook\]"，再重启内核'):
        display.widgets()


def test_without_a_card_the_tiny_model_still_trains(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (told,) = doctor._gpu(None)
    assert told.level == doctor.WARN and "微型模型照练" in told.said


SMALL_DISK = """
import resource, sys
from lorakit.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("limit", [1000, 30_000, 100_000, 300_000])
def test_a_really_full_disk_is_one_sentence_and_loses_nothing(config, tmp_path, own_cache, limit):
    """系统真的不让写：检查点、记录、导出都一样；腾出空间以后接着练，与没断过的相同。"""
    settings = config(*SMALL, "train.save_every=1", "train.steps=3")
    cache.prepare(settings, open_family(settings))  # 编码在先：这里只看结果文件夹
    file = tmp_path / "x.yaml"
    file.write_text(settings.to_yaml())
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, str(limit), "train", str(file)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search("写不进|系统不让", done.stderr) and "系统不让写这么大的文件" in done.stderr
    run = settings.run.output
    assert not list(run.glob(".checkpoint-*"))
    assert [s.step for s in Trainer(settings)][-1] == 3
    plain = config(*SMALL, "train.save_every=1", "train.steps=3", output="plain")
    list(Trainer(plain))
    a, b = (load_file(lora.find(one.run.output)) for one in (settings, plain))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_export_to_a_full_disk(config, tmp_path):
    settings = config(*SMALL, "train.steps=1")
    list(Trainer(settings))
    out = tmp_path / "out.safetensors"
    command = ["export", str(settings.run.output), "--to", "kohya", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, "1000", *command], capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "系统不让写这么大的文件" in done.stderr and not out.exists()


@pytest.mark.parametrize("limit", [500, 6000])
def test_judging_on_a_full_disk(config, limit):
    """画的题、判断、判断的图都写不下：说一句，训练的结果一个字节也不变；腾出空间再判。"""
    settings = config(*SMALL, "train.steps=2", "sample.steps=2")
    list(Trainer(settings))
    run = settings.run.output
    before = _everything([run])
    command = ["judge", str(run)]
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, str(limit), *command], capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "系统不让写这么大的文件" in done.stderr and not (run / "judge.json").exists()
    after = _everything([run])
    assert before.items() <= after.items()
    assert all("judge" in path.parts and path.suffix == ".png" for path in after.keys() - before)


def test_nohup_keeps_ignoring_the_hang_up():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupt(None):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("name", "value"), [
    ("LORAKIT_CACHE", "/tmp/" + "a" * 300), ("LORAKIT_CACHE", "~nouser/x"),
])  # fmt: skip
def test_odd_places_in_the_environment(config, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(LorakitError, match=r"LORAKIT_CACHE.*不能当路径"):
        Trainer(config(*SMALL))


def test_a_screen_that_is_full(papercut):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "lorakit", "check", str(papercut)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "磁盘满了" in done.stderr and "Traceback" not in done.stderr


NO_THREADS = """
import sys, threading
import torch
from PIL import Image
threading.stack_size(1 << 46)  # 哪个系统也给不了这么大的栈：真的开不出线程
from lorakit.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["check", "train"])
def test_no_threads_allowed_is_one_sentence(config, papercut, tmp_path, command):
    file = tmp_path / "x.yaml"
    file.write_text(config(*SMALL).to_yaml(), encoding="utf-8")
    what = [command, str(papercut if command == "check" else file)]
    done = subprocess.run(
        [sys.executable, "-c", NO_THREADS, *what], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "系统不让再开线程了" in done.stderr
    assert not (config().run.output / ".running").exists()


SMALL_WORK = """
import resource, sys
from pathlib import Path
from PIL import Image
from lorakit.errors import LorakitError
import lorakit.results.report as report, lorakit.files as files
from lorakit.data.caption import caption_folder
from lorakit.lab.works import editor, panel, shelf
what, limit = sys.argv[1], int(sys.argv[2])
work = shelf.keep("小橘", trigger="ohwx")
photo = work.photos / "a.png"
if what == "shelf":
    act = lambda: shelf.keep("大橘")
elif what == "photo":
    act = lambda: panel.store(work.photos, "b.png", photo.read_bytes())
elif what == "caption":
    made = editor.Editor(work, [photo], None, None, None)
    made.text.value = "一只ohwx 猫在左边，很长的一句话" * 9
    act = lambda: made.save() or print(made.saved.value, file=sys.stderr)
elif what == "describe":
    act = lambda: caption_folder(work.photos, lambda image: "一只猫，" * 99, overwrite=True)
elif what == "judge":
    act = lambda: report.save_image(Image.open(photo), Path("judge/01.png"))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    act()
except LorakitError as error:
    print(error, file=sys.stderr)
"""


@pytest.mark.parametrize("what", ["shelf", "photo", "caption", "describe", "judge"])
def test_the_small_things_on_a_full_disk(tmp_path, monkeypatch, what):
    """作品、收下的照片、写的描述、判断画的图：说一句，原来的都还在，不留半个文件。"""
    from lorakit.lab.works import shelf
    from lorakit.tiny import samples

    monkeypatch.chdir(tmp_path)
    work = shelf.keep("小橘", trigger="ohwx")
    source = samples.write("ohwx-cat", tmp_path / "source", count=1)
    (work.photos / "a.png").write_bytes(next(source.glob("*.png")).read_bytes())
    (work.photos / "a.txt").write_text("一只ohwx 猫\n", encoding="utf-8")
    places = [tmp_path, Path(os.environ["LORAKIT_CACHE"])]
    before = _everything(places)
    done = subprocess.run(
        [sys.executable, "-c", SMALL_WORK, what, "100"], capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert re.search(r"写不进.*系统不让写这么大的文件", done.stderr), done.stderr
    assert _everything(places) == before


@pytest.mark.parametrize("limit", [60, 3000])
def test_mending_captions_on_a_full_disk(tmp_path, limit):
    """check --fix：备份写不下就一个字也不改；腾出空间再修，能还原。"""
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (80, 80), "red").save(data / "a.png")
    (data / "a.txt").write_bytes(("一只橘猫坐在窗边，看着外面的雨" * 99).encode("gbk"))
    before = _everything([data])
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, str(limit), "check", str(data), "--fix"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "系统不让写这么大的文件" in done.stderr and _everything([data]) == before
    assert main(["check", str(data), "--fix"]) == 0
    assert (data / "a.txt").read_text("utf-8").startswith("一只橘猫")


def test_samples_on_a_full_disk_leave_nothing(tmp_path):
    place = tmp_path / "cut"
    command = ["sample-data", "papercut", str(place)]
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, "500", *command], capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "系统不让写这么大的文件" in done.stderr and not list(place.glob("*"))


def _everything(places) -> dict:
    files = (p for place in places for p in place.rglob("*") if p.is_file())
    return {p: p.read_bytes() for p in files if p.name != "seen.tsv"}
