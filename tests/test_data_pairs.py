"""成对的图：同名就是一对；缺的、坏的、多的、重名的、形状不同的，都说得清楚。"""

from pathlib import Path

import pytest
from PIL import Image

from lorakit.cli import main
from lorakit.config import load_config
from lorakit.data import html as data_html
from lorakit.data import inspect, load_records
from lorakit.data.limits import CONTROLS
from lorakit.errors import DataError
from lorakit.tiny import samples


def draw(path: Path, color: str, size=(64, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, color)
    image.paste("gray", (16, 16, 32, 32))  # 整张一种颜色会另报一条
    image.save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """两对图：后缀不同，名字里有点和中文。"""
    for name, before, after in (("猫.v2", "red", "blue"), ("dog", "green", "white")):
        draw(tmp_path / "images" / f"{name}.png", after)
        (tmp_path / "images" / f"{name}.txt").write_text("换个颜色", encoding="utf-8")
        draw(tmp_path / "control" / f"{name}.JPG", before)
    return tmp_path


def codes(folder, control=None, severity="error") -> list[str]:
    return [p.code for p in inspect(folder, "", control)[1].problems if p.severity == severity]


def test_pairs_are_found_by_stem_whatever_the_suffix(folder):
    records, report = inspect(folder)
    assert [(r.path.name, [c.name for c in r.controls]) for r in records] == [
        ("dog.png", ["dog.JPG"]),
        ("猫.v2.png", ["猫.v2.JPG"]),
    ]
    assert report.total == 2 and not report.errors and not report.warnings
    assert records[0].control_sizes == ((64, 48),)
    assert len(records[0].control_digests[0]) == 64


def test_another_control_folder_can_be_named(folder):
    (folder / "control").rename(folder / "before")
    assert [r.controls for r in inspect(folder / "images")[0]] == [(), ()]
    records = load_records(folder / "images", "", folder / "before")
    assert [len(r.controls) for r in records] == [1, 1]


def test_as_many_control_pictures_as_the_widest_family(folder):
    for number in (2, 3):
        draw(folder / "control" / f"dog_{number}.png", "black")
    records, report = inspect(folder)
    assert [c.name for c in records[0].controls] == ["dog.JPG", "dog_2.png", "dog_3.png"]
    assert not report.warnings
    for number in range(4, CONTROLS + 2):
        assert codes(folder) == []
        draw(folder / "control" / f"dog_{number}.png", "black")
    assert codes(folder) == ["control_many"]


def test_a_target_of_that_name_keeps_its_own_control(folder):
    draw(folder / "images" / "dog_2.png", "pink")
    (folder / "images" / "dog_2.txt").write_text("换个颜色", encoding="utf-8")
    draw(folder / "control" / "dog_2.png", "black")
    assert [len(r.controls) for r in inspect(folder)[0]] == [1, 1, 1]


def test_missing_control_names_the_nearest(folder):
    (folder / "control" / "dog.JPG").rename(folder / "control" / "dogs.JPG")
    records, report = inspect(folder)
    (problem,) = report.errors
    assert problem.code == "control_missing" and "dogs.JPG" in problem.mend
    assert [r.path.name for r in records] == ["猫.v2.png"]
    assert [p.code for p in report.warnings] == ["control_orphan"]
    with pytest.raises(DataError, match="没有控制图"):
        load_records(folder)


def test_broken_control_is_one_error(folder):
    (folder / "control" / "dog.JPG").write_bytes(b"\xff\xd8\xff\xe0 broken")
    records, report = inspect(folder)
    (problem,) = report.errors
    assert problem.code == "picture_broken" and problem.path.parent.name == "control"
    assert len(records) == report.usable == 1


def test_small_control_is_an_error(folder):
    draw(folder / "control" / "dog.JPG", "red", (16, 12))
    assert codes(folder) == ["picture_small"]


def test_two_controls_of_one_name(folder):
    draw(folder / "control" / "dog.png", "black")
    assert codes(folder) == ["control_twice"]
    assert len(inspect(folder)[0]) == 1


def test_an_extra_control_of_an_unread_kind_is_told(folder):
    (folder / "control" / "more.tif").write_bytes(b"II*\0")
    (folder / "control" / "dog.psd").write_bytes(b"8BPS")  # dog.JPG 的另一份
    (problem,) = inspect(folder)[1].errors
    assert problem.code == "not_used" and problem.path.name == "more.tif"


def test_numbering_with_a_gap_is_told(folder):
    draw(folder / "control" / "dog_3.png", "black")
    assert codes(folder) == ["control_orphan"]
    with pytest.raises(DataError, match="没有用到"):
        load_records(folder)


@pytest.mark.parametrize("name", ["dog.JPG", "dog.png"])
def test_identical_to_the_target(folder, name):
    (folder / "control" / "dog.JPG").unlink()
    with Image.open(folder / "images" / "dog.png") as picture:
        picture.save(folder / "control" / name, quality=100)
    assert codes(folder, severity="warning") == ["control_same"]


def test_another_aspect_ratio(folder):
    draw(folder / "control" / "dog.JPG", "red", (64, 64))
    _, report = inspect(folder)
    (problem,) = report.warnings
    assert problem.code == "control_aspect" and "64x48" in problem.reason


def test_control_folder_missing_or_the_same(folder):
    assert codes(folder / "images", folder / "nowhere") == ["folder_missing"]
    assert codes(folder / "images", folder / "images") == ["control_folder"]


def test_link_out_of_the_control_folder(folder, tmp_path_factory):
    outside = draw(tmp_path_factory.mktemp("out") / "x.png", "red")
    (folder / "control" / "dog.JPG").unlink()
    (folder / "control" / "dog.png").symlink_to(outside)
    assert codes(folder) == ["link_outside"]


def test_sample_sets_are_whole_pairs(tmp_path, capsys):
    folder = samples.write("edit-hat", tmp_path / "hat", count=4)
    assert main(["check", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "4 张图配好了控制图" in said and "错误 0 个，警告 0 个" in said


def test_check_takes_a_control_folder(folder, capsys):
    (folder / "control").rename(folder / "before")
    command = ["check", str(folder / "images"), "--control", str(folder / "before")]
    assert main(command) == 0 and "2 张图配好了控制图" in capsys.readouterr().out
    (folder / "before" / "dog.JPG").unlink()
    assert main(command) == 1 and "没有控制图" in capsys.readouterr().out


def test_the_page_shows_pairs_side_by_side(folder, tmp_path):
    page = data_html.write(tmp_path / "report.html", *inspect(folder), 64).read_text("utf-8")
    assert page.count("<figure") == 2 and page.count("<img") == 4


def test_the_usual_flat_yaml_names_the_control_folder(tmp_path):
    text = "pretrained_model_name_or_path: Qwen/Qwen-Image-Edit\ndata_config:\n"
    text += "  img_dir: ./images\n  control_dir: ./control_images\n"
    (tmp_path / "edit.yaml").write_text(text, encoding="utf-8")
    said = []
    config = load_config(tmp_path / "edit.yaml", say=said.append)
    assert config.model.family == "qwen-image-edit"
    assert str(config.data.control_folder) == "control_images"
    assert "注意" not in said[0]
