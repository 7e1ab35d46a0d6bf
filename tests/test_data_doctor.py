"""lorakit check：认文件夹，也认训练用的 YAML；照设置看分辨率、控制图、遮罩、长度和步数。"""

import ast
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from PIL import Image

import lorakit
from lorakit import cli
from lorakit.config import load_config
from lorakit.config.groups import Data, Source
from lorakit.data import framing, inspect
from lorakit.data.load import inspect_sources, places
from lorakit.tiny import samples
from lorakit.train import Trainer


@pytest.fixture
def check(tmp_path, capsys):
    """写一份 YAML 再体检，返回 (退出码, 说的话)。"""

    def run(*options, **groups):
        tree = {"model": {"family": "qwen-image", "path": "tiny-qwen-image"}, **groups}
        tree["data"] = {"resolution": 128, **tree.get("data", {})}
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
        code = cli.main(["check", str(path), *map(str, options)])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out + said.err

    return run


def folders(papercut, tmp_path, *names):
    return [shutil.copytree(papercut, tmp_path / name) for name in names]


def test_a_yaml_names_the_folder_and_the_steps_are_told(check, papercut, config):
    code, said = check(data={"folder": str(papercut)}, train={"steps": 60, "batch_size": 4})
    assert code == 0 and f"{papercut}：共 24 张图" in said
    assert "128x128 24 张" in said
    settings = config("train.steps=60", "train.batch_size=4")
    plan = Trainer(settings).plan()
    assert f"训练 {plan.pictures} 张，留出 {24 - plan.pictures} 张" in said
    assert plan.text() in said  # 和真训练前说的一字不差


def test_the_trigger_and_the_resolution_of_the_yaml_count(check, papercut, tmp_path):
    (folder,) = folders(papercut, tmp_path, "a")
    text = sorted(folder.glob("*.txt"))[0]
    text.write_text("一只猫", encoding="utf-8")
    code, said = check(data={"folder": str(folder), "trigger": "剪纸风格", "resolution": 512})
    assert code == 0 and "24 份描述里有 1 份没有触发词“剪纸风格”：01_cat.png" in said
    assert "24 张图比训练尺寸小，要放大（最多 4.0 倍）" in said and "等 24 个" in said
    options = ("--trigger", "剪纸", "--resolution", 128)  # 命令里写明的盖过 YAML
    code, said = check(*options, data={"folder": str(folder), "trigger": "x", "resolution": 512})
    assert "没有触发词“剪纸”" in said and "要放大" not in said


def test_every_folder_of_the_yaml_is_checked(check, papercut, tmp_path):
    one, two, prior = folders(papercut, tmp_path, "甲", "乙", "同类")
    for path in (*one.glob("0*"), *two.glob("1*"), *two.glob("2*")):
        path.unlink()
    for path in prior.glob("*.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    (prior / "02_rabbit.txt").write_bytes(b"")
    sources = [str(one), {"folder": str(two), "repeats": 3}]
    settings = {"folder": sources, "class_folder": str(prior), "trigger": "ohwx"}
    code, said = check(data=settings)
    assert code == 1 and "02_rabbit.txt：描述是空的" in said and "错误改好之前不能训练" in said
    assert all(f"{folder}：共" in said for folder in (one, two, prior))
    (prior / "02_rabbit.txt").write_text("一只兔子")
    code, said = check(data=settings)
    assert code == 0 and "同类 24 张" in said


def test_what_only_the_settings_know_is_refused_as_in_training(check, papercut, tmp_path):
    (folder,) = folders(papercut, tmp_path, "a")
    code, said = check(data={"folder": str(folder), "mask": "file"})
    assert code == 1 and "data.mask：写的是 file，可是没有一张图" in said
    code, said = check(data={"folder": str(folder), "class_folder": str(folder)})
    assert code == 1 and "data.class_folder" in said and "也在训练图里" in said
    code, said = check(data={"folder": [str(folder), str(tmp_path / "a")]})
    assert code == 1 and "都能走到" in said
    code, said = check()
    assert code == 1 and "还没有指定图片文件夹" in said
    code, said = check(data={"folder": str(folder), "resolution": 100})
    assert code == 1 and "112" in said


def test_the_control_folder_of_the_yaml(check, tmp_path, monkeypatch):
    pairs = samples.write("edit-hat", tmp_path / "hat")
    (tmp_path / "before").mkdir()
    (pairs / "control").rename(tmp_path / "before" / "control")
    model = {"family": "qwen-image-edit", "path": "no/such-model"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = {"folder": str(pairs / "images"), "control_folder": str(tmp_path / "before" / "control")}
    code, said = check(data=data, model=model)
    assert code == 0 and "24 张图配好了控制图" in said and "训练 20 张" in said
    assert "连不上" in said and "没有检查描述的长度" in said  # 没有下载也能体检
    code, said = check(data={"folder": str(pairs)}, model=model)
    assert code == 1 and "要有控制图" in said


def test_fix_and_undo_reach_every_folder_of_the_yaml(check, papercut, tmp_path):
    one, two = folders(papercut, tmp_path, "甲", "乙")
    for path in two.glob("*"):
        path.rename(path.with_name("b" + path.name))
    before = {path: path.read_bytes() for path in (*one.iterdir(), *two.iterdir())}
    (two / "b01_cat.txt").write_bytes("剪纸风格，一只猫".encode("gbk"))
    before[two / "b01_cat.txt"] = (two / "b01_cat.txt").read_bytes()
    data = {"folder": [str(one), str(two)], "trigger": "剪纸风格"}
    code, said = check("--fix", data=data)
    assert code == 0 and "没有可以自动修的" in said and "从 GBK 换成 UTF-8" in said
    assert (two / "b01_cat.txt").read_text("utf-8") == "剪纸风格，一只猫"
    code, said = check("--undo", data=data)
    assert code == 1 and f"{one} 没有改过" in said and "还原了 1 个文件" in said
    assert before == {path: path.read_bytes() for path in (*one.iterdir(), *two.iterdir())}


def test_control_pictures_elsewhere_are_mended_too(tmp_path, capsys):
    pairs = samples.write("edit-hat", tmp_path / "hat")
    control = (pairs / "control").rename(tmp_path / "before")
    path = sorted(control.glob("*.png"))[0]
    Image.open(path).convert("CMYK").save(path.with_suffix(".jpg"))
    path.unlink()
    original = path.with_suffix(".jpg").read_bytes()
    argv = ["check", str(pairs / "images"), "--control", str(control)]
    assert cli.main([*argv, "--fix"]) == 0
    assert "从 CMYK 换成 RGB" in capsys.readouterr().out
    assert Image.open(path.with_suffix(".jpg")).mode == "RGB"
    assert cli.main([*argv, "--undo"]) == 0
    assert path.with_suffix(".jpg").read_bytes() == original


def test_pages_for_several_folders(check, papercut, tmp_path):
    one, two = folders(papercut, tmp_path, "甲", "乙")
    (two / "01_cat.png").write_bytes(b"")
    page = tmp_path / "report.html"
    code, _ = check("--html", page, data={"folder": [str(one), str(two)]})
    assert code == 1
    assert "甲" in page.read_text("utf-8") and "训练分辨率 128" in page.read_text("utf-8")
    assert "文件是空的" in (tmp_path / "report-2.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["a.yaml"], "找不到设置“a.yaml”"),
        (["F", "--set", "data.mask=file"], "要和 YAML"),
        (["tiny-qwen-image"], "还没有指定图片文件夹"),
        (["tiny-qwen-image", "--config", "tiny-qwen-image"], "不用再写 --config"),
        (["F", "--config", "nope"], "找不到设置“nope”"),
        (["F", "--resolution", "100"], "最近的是 96 和 112"),
        (["F/01_cat.png"], "这是一个文件，要的是文件夹"),
        (["F/01_cat.txt", "--html", "x.png"], ".html 结尾"),
    ],
)
def test_wrong_words(papercut, capsys, argv, word):
    code = cli.main(["check", *(one.replace("F", str(papercut)) for one in argv)])
    said = capsys.readouterr()
    assert code == 1 and word in said.out + said.err and "Traceback" not in said.err


def test_a_plain_folder_needs_no_torch(papercut):
    code = f"import sys; from lorakit.cli import main; main(['check', {str(papercut)!r}])"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_data_has_no_circle_and_needs_no_torch():
    root = Path(lorakit.__file__).parent
    for room in ("data", "cache"):
        names = {path.stem for path in (root / room).glob("[!_]*.py")}
        using = {name: imported(root / room / f"{name}.py", room) & names for name in names}
        done = list(TopologicalSorter(using).static_order())  # 有圈就抛 CycleError
        assert set(done) == names
    code = "import sys; from importlib import import_module as get\n"
    code += f"for name in {sorted(p.stem for p in (root / 'data').glob('*.py'))}:\n"
    code += "    get(f'lorakit.data.{name}' if name != '__init__' else 'lorakit.data')\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def imported(path: Path, room: str) -> set[str]:
    """同一个文件夹里它用到的模块，写在函数里的也算。"""
    used = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            used |= {name.split(".")[2] for name in names if name.startswith(f"lorakit.{room}.")}
    return used


def test_framing_by_hand(tmp_path):
    for name, size in (("wide", (512, 100)), ("plain", (256, 256)), ("small", (100, 100))):
        Image.linear_gradient("L").resize(size).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    records, _ = inspect(tmp_path)
    note, warning = framing(records, 256, 16, tmp_path)
    assert "256x256 2 张" in note.reason and "352x192 1 张" in note.reason
    lost = 1 - 100 * 352 / 192 / 512
    assert f"裁掉最多的是 wide.png，裁掉 {lost:.0%}" in note.reason
    assert "2 张图比训练尺寸小，要放大（最多 2.6 倍）" in warning.reason  # 256 / 100
    assert "small.png" in warning.reason and "plain.png" not in warning.reason
    assert framing([], 256, 16, tmp_path) == []


def test_places_and_the_doctor(papercut, tmp_path):
    prior = folders(papercut, tmp_path, "同类")[0]
    data = Data(folder=papercut, trigger="x", class_folder=prior)
    assert places(data) == [(Source(folder=papercut), "x"), (Source(folder=prior), "")]
    results = inspect_sources(data)
    assert [report.folder for _, report in results] == [papercut, prior]
    assert "没有触发词" in results[0][1].text() and "没有触发词" not in results[1][1].text()


def test_a_preset_with_a_folder_set(papercut, capsys):
    argv = ["check", "tiny-qwen-image", "--set", f"data.folder={papercut}"]
    assert cli.main(argv) == 0
    steps = load_config("tiny-qwen-image").train.steps
    assert f"{steps} 步 =" in capsys.readouterr().out
