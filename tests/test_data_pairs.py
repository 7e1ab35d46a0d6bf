"""成对的图：同名就是一对；缺的、坏的、多的、重名的、形状不同的，都说得清楚。"""

import json
import shutil
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


TOLD = {  # 文件 -> 一张图的那一段；{} 里是图、控制图
    "metadata.jsonl": '{{"file_name": "images/{0}", "text": "换个颜色", "control_image": "{1}"}}',
    "metadata.csv": "images/{0},换个颜色,{1}",
    "m.jsonl": '{{"image_path": "images/{0}", "caption": "换个颜色", "control_path": "{1}"}}',
    "all.csv": "images/{0},换个颜色,{1}",
}
HEADS = {
    "metadata.csv": "file_name,text,conditioning_image\n",
    "all.csv": "image,prompt,edit_image\n",
}


def tell(folder: Path, name: str, *pairs: tuple[str, str]):
    for path in (folder / "images").glob("*.txt"):
        path.unlink()
    text = "\n".join(TOLD[name].format(*pair) for pair in pairs)
    (folder / name).write_text(HEADS.get(name, "") + text, encoding="utf-8")


@pytest.mark.parametrize("name", TOLD)
def test_a_table_that_names_other_pairs_is_never_ignored(folder, name):
    """表里写的和按名字配的不一样，是一个错误；一样的、在别的机器上写的同名的，照常。"""
    mine, other = "control/dog.JPG", "control/猫.v2.JPG"
    tell(folder, name, ("dog.png", other), ("猫.v2.png", mine))
    (problem,) = inspect(folder)[1].errors
    assert problem.code == "control_in_table" and problem.path == folder / name
    assert "2 张图的控制图" in problem.reason and mine in problem.reason and other in problem.reason
    with pytest.raises(DataError, match="不一样"):
        load_records(folder)
    for right in (mine, "/data/控制/dog.png", "D:\\\\x\\\\dog.png"):
        tell(folder, name, ("dog.png", right), ("猫.v2.png", other))
        records, report = inspect(folder)
        assert len(records) == 2 and not report.errors, report.text()
    if name != "all.csv":
        (folder / "before").mkdir()
        shutil.copy(folder / mine, folder / "before" / "x.jpg")  # 挪了地方，内容一样
        tell(folder, name, ("dog.png", "before/x.jpg"), ("猫.v2.png", other))
        assert not [one for one in codes(folder) if one == "control_in_table"]


@pytest.mark.parametrize("name", TOLD)
def test_a_table_with_pairs_is_an_error_without_a_control_folder(folder, name):
    (folder / "control").rename(folder.parent / f"{folder.name}-before")
    control = folder.parent / f"{folder.name}-before"
    pairs = [(f"{one}.png", f"../{control.name}/{one}.JPG") for one in ("dog", "猫.v2")]
    tell(folder, name, *pairs)
    (problem,) = inspect(folder)[1].errors
    assert problem.code == "control_in_table" and control.name in problem.mend
    records, report = inspect(folder, "", control)
    assert not report.errors and all(record.controls for record in records)


def test_a_json_beside_the_picture_that_names_another_control(folder):
    path = folder / "images" / "dog.json"
    path.write_text('{"caption": "换个颜色", "control_image": "control/猫.v2.JPG"}', "utf-8")
    assert codes(folder) == ["control_in_table"]


@pytest.mark.parametrize("told", [
    {"source": "flickr"}, {"source": "IMG_1.jpg"}, {"original_file_name": "dog.png"},
    {"source": "images/dog.png"}, {"control": 0.7}, {"control": "canny"}, {"edit": "换成蓝色"},
])  # fmt: skip
def test_where_a_picture_came_from_is_not_a_control(folder, told):
    shutil.rmtree(folder / "control")
    row = {"file_name": "images/dog.png", "text": "换个颜色", **told}
    (folder / "metadata.jsonl").write_text(json.dumps(row), encoding="utf-8")
    records, report = inspect(folder)
    assert len(records) == 2 and not report.errors


def test_several_controls_in_a_row_are_compared_in_order(folder):
    draw(folder / "control" / "dog_2.png", "black")
    row = {"file_name": "images/dog.png", "text": "换个颜色"}
    both = ["control/dog.JPG", "control/dog_2.png"]
    for told, wrong in (
        ({"control_images": both}, False), ({"control_images": both[::-1]}, True),
        ({"control_path_0": both[0], "control_path_1": both[1]}, False),
        ({"control_images": json.dumps(both)}, False), ({"control_image": both[0]}, True),
    ):  # fmt: skip
        (folder / "metadata.jsonl").write_text(json.dumps({**row, **told}), encoding="utf-8")
        assert ("control_in_table" in codes(folder)) == wrong, told


def test_a_row_that_names_its_own_picture_or_a_page_is_no_pair(folder, tmp_path_factory):
    """来处写的是自己、是网址：不是点名控制图；和控制图同名时只写名字，也照常。"""
    rows = [
        {"file_name": f"{name}.png", "text": "换个颜色", "control_image": f"{name}.png"}
        for name in ("dog", "猫.v2")
    ]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "images" / "metadata.jsonl").write_text(lines, "utf-8")
    for path in (folder / "images").glob("*.txt"):
        path.unlink()
    assert codes(folder) == [] and len(inspect(folder)[0]) == 2
    alone = tmp_path_factory.mktemp("alone")
    for number in range(3):
        shutil.copy(folder / "images" / "dog.png", alone / f"{number}.png")
    for value in ("{0}.png", "https://x.org/{0}.jpg"):
        rows = [
            {"file_name": f"{n}.png", "text": f"第 {n} 张", "source_image": value.format(n)}
            for n in range(3)
        ]
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (alone / "metadata.jsonl").write_text(lines, "utf-8")
        assert "control_in_table" not in codes(alone), value
