"""命令行：主要的活能干完；坏输入各有一句中文、退出码 1、什么也不留下。"""

import subprocess
import sys

import pytest

from lorakit.cli import main
from lorakit.cli.main import COMMANDS


def run(capsys, *argv) -> tuple[int, str]:
    code = main([str(a) for a in argv])
    said = capsys.readouterr()
    return code, said.out + said.err


SHORT = [
    word
    for setting in ("train.steps=2", "train.batch_size=2", "sample.steps=2", "eval.every=2")
    for word in ("--set", setting)
]


def test_demo_as_a_whole(capsys, tmp_path):
    code, said = run(capsys, "demo", "--out", tmp_path / "demo", *SHORT)
    assert code == 0
    assert "考官打分" in said and "接下来打开" in said and "2 步 = " in said
    files = [
        "before_after.png", "loss.png", "data/01_cat.txt", "run/README.md", "run/run.json",
        "run/metrics.jsonl", "run/config.yaml",
        "run/checkpoint-2/pytorch_lora_weights.safetensors",
    ]  # fmt: skip
    assert [f for f in files if not (tmp_path / "demo" / f).is_file()] == []
    code, said = run(capsys, "demo", "--out", tmp_path / "demo", "--lesson", "pixel", *SHORT)
    assert code == 1 and "“papercut”那一课" in said and "--out" in said, "不许拿上一课的结果充数"


def test_each_lesson_has_its_own_place(capsys, tmp_path):
    from lorakit.tiny import demo

    wanted = {
        ("papercut", None): "demo",
        ("pixel", None): "demo-pixel",
        ("ohwx-cat", "tiny-flux"): "demo-ohwx-cat-tiny-flux",
        ("ohwx-cat", "x/my.yaml"): "demo-ohwx-cat-my",
    }
    assert [demo.place(*which).name for which in wanted] == list(wanted.values())
    (tmp_path / "mine" / "data").mkdir(parents=True)
    code, said = run(capsys, "demo", "--out", tmp_path / "mine", *SHORT)
    assert code == 1 and "别的东西" in said
    (tmp_path / "file").write_text("")
    code, said = run(capsys, "demo", "--out", tmp_path / "file", *SHORT)
    assert code == 1 and "Traceback" not in said
    code, said = run(capsys, "demo", "--out", tmp_path / "new", "--lesson", "oil", *SHORT)
    assert code == 1 and "没有叫“oil”的课" in said and not (tmp_path / "new").exists()


def test_sample_check_train_generate_compare(capsys, papercut, tmp_path):
    out = tmp_path / "run"
    code, said = run(capsys, "check", papercut)
    assert code == 0 and "24" in said
    code, said = run(
        capsys, "train", "tiny-qwen-image", "--set", f"data.folder={papercut}",
        "--set", f"run.output={out}", "--set", "sample.prompts=[一只狗]", *SHORT,
    )  # fmt: skip
    assert code == 0 and "练完了" in said
    assert (out / "samples" / "2_0.png").is_file() and (out / "loss.png").is_file()
    for command in ("generate", "compare"):
        code, said = run(
            capsys,
            command,
            out,
            "--prompt",
            "一只猫",
            "--out",
            tmp_path / f"{command}.png",
            "--set",
            "sample.steps=2",
        )
        assert code == 0 and (tmp_path / f"{command}.png").is_file()


def test_cache_says_why(capsys, folder):
    build = ["cache", "build", "--set", f"data.folder={folder}"]
    picture = sorted(folder.glob("*.png"))[0]
    code, said = run(capsys, "cache", "why", picture)
    assert code == 0 and said.count("要编码") == 2
    code, said = run(capsys, *build)
    assert code == 0 and "都编码好了" in said
    code, said = run(capsys, "cache", "why", picture)
    assert code == 0 and said.count("会重用") == 2
    code, said = run(capsys, "cache", "why", picture, "--set", "data.resolution=64")
    assert "变了的是 训练尺寸\n" in said and said.count("会重用") == 1
    picture.with_suffix(".txt").write_text("剪纸风格，另一句话", encoding="utf-8")
    code, said = run(capsys, "cache", "why", picture)
    assert "变了的是 描述" in said and said.count("会重用") == 1
    picture.write_bytes(b"")
    code, said = run(capsys, "cache", "why", picture)
    assert code == 1 and "不能用于训练" in said
    assert run(capsys, "cache", "why")[0] == 1
    code, said = run(capsys, "cache", "clean", "--days", "1")
    assert code == 0 and "删掉了 0 个" in said
    code, said = run(capsys, "cache", "clean")
    assert code == 0 and "删掉了 0 个" not in said


def test_cache_takes_a_folder_or_a_yaml(capsys, folder, tmp_path):
    code, said = run(capsys, "cache", "build", folder)
    assert code == 0 and "都编码好了：训练" in said
    (tmp_path / "mine.yaml").write_text(f"data: {{folder: {folder}, resolution: 128}}")
    code, said = run(capsys, "cache", "build", tmp_path / "mine.yaml")
    assert code == 0 and "编码" not in said.replace("都编码好了", "")
    code, said = run(capsys, "cache", "clean", folder)
    assert code == 1 and "后面不用写文件" in said
    code, said = run(capsys, "cache", "build", tmp_path / "none")
    assert code == 1 and "没有这个文件夹" in said


def test_init_prints_a_template_that_loads(capsys, tmp_path):
    from lorakit.config import load_config

    code, said = run(capsys, "init", "qwen-image")
    (tmp_path / "my.yaml").write_text(said, encoding="utf-8")
    assert code == 0 and load_config(tmp_path / "my.yaml") == load_config("qwen-image")


@pytest.fixture
def folder(papercut, tmp_path):
    import shutil

    return shutil.copytree(papercut, tmp_path / "pics")


def spoil(folder, how: str):
    picture = sorted(folder.glob("*.png"))[0]
    text = picture.with_suffix(".txt")
    if how == "空文件夹":
        for path in folder.iterdir():
            path.unlink()
    elif how == "没有描述":
        text.unlink()
    elif how == "坏图":
        picture.write_bytes(picture.read_bytes()[:200])
    elif how == "GBK":
        text.write_bytes("剪纸风格，一只猫".encode("gbk"))
    return text if how == "GBK" else picture


@pytest.mark.parametrize(
    ("how", "word"),
    [("空文件夹", "图"), ("没有描述", "描述"), ("坏图", "01_cat.png"), ("GBK", "GBK")],
)
def test_bad_data(capsys, folder, tmp_path, how, word):
    spoil(folder, how)
    out = tmp_path / "run"
    for argv in (
        ["check", folder],
        [
            "train",
            "tiny-qwen-image",
            "--set",
            f"data.folder={folder}",
            "--set",
            f"run.output={out}",
        ],
    ):
        code, said = run(capsys, *argv)
        assert code == 1 and word in said and "Traceback" not in said
    assert not out.exists()  # 什么也没留下


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("train.stepz=3", "train.steps"),
        ("lora.rank=0", "lora.rank"),
        ("lora.targets=nothing_here", "lora.targets"),
        ("lora.targets=[to_q, to_zzz]", "lora.targets：“to_zzz”"),
        ("data.resolution=100", "112"),
        ("model.path=no/such-model", "model.path"),
        ("model.family=qwen", "qwen-image"),
        ("run.output=/proc/nowhere/run", "写不进"),
        ("data.folder=/no/such/folder", "/no/such/folder"),
    ],
)
def test_bad_settings(capsys, papercut, tmp_path, monkeypatch, setting, word):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, said = run(
        capsys, "train", "tiny-qwen-image", "--set", f"data.folder={papercut}",
        "--set", f"run.output={tmp_path / 'run'}", "--set", setting,
    )  # fmt: skip
    assert code == 1 and word in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()  # 什么也没留下


def test_usage_errors_are_chinese(capsys):
    for argv in ([], ["train"], ["demo", "--nope"], ["nonsense"]):
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert "用法" in said and "命令写错了" in said


@pytest.mark.parametrize("name", [one.name for one in COMMANDS])
def test_help_has_an_example(capsys, name):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0 and "例子：lorakit " + name in said and "show this" not in said


NO_TORCH = """import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        assert name != "torch", "载入了 torch"
sys.meta_path.insert(0, Refused())
from lorakit.cli import main
sys.exit(main(sys.argv[1:]))"""


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        *([one.name, "--help"] for one in COMMANDS),
        ["init", "qwen-image"],
        *(["sample-data", name, "new"] for name in ("inkwash", "ohwx-cat", "edit-hat")),
        ["check", "pics", "--trigger", "剪纸风格", "--resolution", "64"],
        ["check", "pics", "--html", "page.html"],
        ["check", "pics", "--fix"],
        ["check", "pics", "--undo"],
    ],
    ids=lambda argv: " ".join(argv),
)
def test_these_start_without_torch(argv, folder, tmp_path):
    if "--fix" in argv or "--undo" in argv:
        spoil(folder, "GBK")
    if "--undo" in argv:
        assert main(["check", str(folder), "--fix"]) == 0
    command = [sys.executable, "-c", NO_TORCH, *argv]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == ("--undo" in argv, "")  # 撤销了，错误也回来了


def test_sample_data_refuses_a_full_folder(capsys, tmp_path):
    (tmp_path / "x").write_text("mine")
    code, said = run(capsys, "sample-data", "papercut", tmp_path)
    assert (
        code == 1
        and "不是空的" in said
        and [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["x"]
    )
    code, said = run(capsys, "sample-data", "papercutt", tmp_path / "new")
    assert code == 1 and "papercut" in said


def test_training_passes_on_what_the_doctor_warns_of(capsys, papercut, tmp_path):
    import shutil

    folder = tmp_path / "data"
    shutil.copytree(papercut, folder)
    first = sorted(folder.glob("*.txt"))[0]
    first.write_bytes("一只猫".encode("gbk"))  # 凑巧也是合法的 UTF-8，读出来是乱码
    out = tmp_path / "run"
    code, said = run(
        capsys, "train", "tiny-qwen-image", "--set", f"data.folder={folder}",
        "--set", f"run.output={out}", *SHORT,
    )  # fmt: skip
    assert code == 0
    assert "提醒：体检有 1 个警告" in said and "乱码" in said and "UserWarning" not in said
