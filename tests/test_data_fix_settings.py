"""--fix 照着设置改：设置要用的不动，改过以后不会冒出原来没有的错误。"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit.cli import main
from lorakit.data import inspect, load_records
from lorakit.data.mask import read_alpha


def draw(path: Path, seed: int, size=(64, 48), **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, **how)
    return path


def turned() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "图"
    for i in range(4):
        draw(made / f"{i}.png", i).with_suffix(".txt").write_text(f"猫 {i}", encoding="utf-8")
    return made


@pytest.fixture
def settings(tmp_path):
    """写一份 YAML，返回它的路径。"""

    def write(**data) -> str:
        path = tmp_path / "my.yaml"
        tree = {"data": {key: str(value) for key, value in data.items()}}
        path.write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
        return str(path)

    return write


def clear(path: Path):
    with Image.open(path) as image:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(path, exif=turned())


@pytest.mark.parametrize(("data", "kept"), [
    ({"mask": "alpha"}, True), ({"alpha": "keep"}, True), ({}, False), ({"mask": "none"}, False),
])  # fmt: skip
def test_alpha_that_the_settings_need_stays(folder, settings, capsys, data, kept):
    clear(folder / "0.png")
    before = (folder / "0.png").read_bytes()
    argv = ["check", settings(folder=folder, resolution=64, **data), "--fix"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert (read_alpha(folder / "0.png") is not None) == kept
    assert ((folder / "0.png").read_bytes() == before) == kept
    assert ("去掉透明" in said) == (not kept)  # 同时转正的，也说一声


def test_a_picture_is_not_turned_away_from_its_mask(folder, settings, capsys):
    """遮罩照没有转正的样子画：图转正了，遮罩就对不上了。"""
    draw(folder / "0.png", 0, exif=turned())
    draw(folder / "1.png", 1, exif=turned())
    half = Image.new("L", (64, 48))
    half.paste(255, (0, 0, 32, 48))
    half.save(folder / "0_mask.png")
    argv = ["check", settings(folder=folder, resolution=64, mask="file"), "--fix"]
    assert main(argv) == 0
    assert "按 EXIF 转正（1 个）：1.png" in capsys.readouterr().out


def test_a_trigger_is_written_in_both_copies_of_a_caption(folder, tmp_path):
    """控制图旁边的描述和目标图的一样：加了触发词以后还是一样。"""
    for i in range(4):
        path = draw(tmp_path / "before" / f"{i}.png", i + 10).with_suffix(".txt")
        path.write_text(f"猫 {i}", encoding="utf-8")
    both = ["--control", str(tmp_path / "before")]
    assert main(["check", str(folder), *both]) == 0
    assert main(["check", str(folder), *both, "--trigger", "ohwx", "--fix"]) == 0
    assert (tmp_path / "before" / "0.txt").read_text("utf-8") == "ohwx，猫 0"


@pytest.mark.parametrize(("name", "rows"), [
    ("captions.json", lambda rows: json.dumps(rows)),
    ("metadata.jsonl", lambda rows: "\n".join(
        json.dumps({"image_path": k, "caption": v}) for k, v in rows.items())),
])  # fmt: skip
def test_no_trigger_in_one_of_two_copies(folder, name, rows):
    """别的工具的表不改：它也写着的描述，不在 .txt 里单独加触发词。"""
    told = {f"{i}.png": f"猫 {i}" for i in range(3)}
    (folder / name).write_text(rows(told), encoding="utf-8")
    assert main(["check", str(folder), "--trigger", "ohwx", "--fix"]) == 0
    said = [(folder / f"{i}.txt").read_text("utf-8") for i in range(4)]
    assert said == ["猫 0", "猫 1", "猫 2", "ohwx，猫 3"]
    assert all(r.caption.startswith("ohwx，") for r in load_records(folder, "ohwx"))


def test_class_captions_inside_the_folder_get_no_trigger(folder, settings):
    path = draw(folder / "reg" / "x.png", 9).with_suffix(".txt")
    path.write_text("一只猫", encoding="utf-8")
    main(["check", settings(folder=folder, class_folder=folder / "reg", trigger="ohwx"), "--fix"])
    assert path.read_text("utf-8") == "一只猫"
    assert [p.code for p in inspect(folder)[1].errors] == ["class_inside"]


@pytest.mark.parametrize(("name", "head", "row"), [
    ("captions.json", "[", '{{"image": "{0}", "caption": "猫 {0}"}}'),
    ("d.jsonl", "", '{{"image_path": "{0}", "caption": "猫 {0}"}}'),
    ("all.csv", "image,caption", "{0},猫 {0}"),
    ("metadata.jsonl", "", '{{"file_name": "{0}", "text": "猫 {0}"}}'),
])  # fmt: skip
def test_a_row_of_a_moved_picture_is_a_warning_in_every_table(folder, name, head, row):
    for path in folder.glob("*.txt"):
        path.unlink()
    mark = "," if head == "[" else "\n"
    rows = mark.join(row.format(f"{i}.png") for i in range(4))
    (folder / name).write_text(f"{head}\n{rows}\n{']' if head == '[' else ''}".strip(), "utf-8")
    (folder / "2.png").write_bytes(b"")
    assert main(["check", str(folder), "--fix"]) == 0
    records, report = inspect(folder)
    assert [p.code for p in report.warnings] == ["metadata_moved"] and len(records) == 3
    (folder / ".lorakit-moved" / "2.png").unlink()  # 没有移走过的，还是错误
    assert [p.code for p in inspect(folder)[1].errors] == ["metadata_file"]


def test_controls_of_a_moved_target_are_a_warning(tmp_path):
    for i in range(3):
        path = draw(tmp_path / "images" / f"{i}.png", i).with_suffix(".txt")
        path.write_text(f"变成 {i}", encoding="utf-8")
        draw(tmp_path / "control" / f"{i}.png", i + 10)
    draw(tmp_path / "control" / "2_2.png", 20)
    (tmp_path / "control" / "2.txt").write_text("变成 2", encoding="utf-8")
    (tmp_path / "images" / "2.png").write_bytes(b"")
    assert main(["check", str(tmp_path), "--fix"]) == 0
    records, report = inspect(tmp_path)
    assert [p.code for p in report.warnings] == ["control_moved"] * 2 and len(records) == 2
    draw(tmp_path / "control" / "9.png", 30)
    assert [p.code for p in inspect(tmp_path)[1].errors] == ["control_orphan"]
