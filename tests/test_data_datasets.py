"""Hugging Face datasets：对象、存下的文件夹、编辑的成对图片，都写成普通的“图 + 同名 .txt”。"""

import io
import json
import shutil
import sys
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image

from lorakit import cache, cli
from lorakit.config import load_config
from lorakit.data import inspect, load_records, read_image
from lorakit.data.huggingface import unpacked, write_dataset
from lorakit.data.load import inspect_sources
from lorakit.data.read import ORIENTATION
from lorakit.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:体检有")


def rows(count=3, **changes):
    for i in range(count):
        yield {"image": Image.new("RGB", (40, 40), (i * 40, 0, 0)), "text": f"第 {i} 张"} | changes


def test_a_dataset_becomes_a_folder(tmp_path):
    folder = write_dataset(rows(), tmp_path / "out")
    records, report = inspect(folder)
    assert [r.caption for r in records] == ["第 0 张", "第 1 张", "第 2 张"]
    assert not report.errors
    with pytest.raises(DataError, match="不是空的"):
        write_dataset(rows(), folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": "a.png"}, "第 1 行，image 一列要是图片，得到“a.png”"),
        ({"image": None}, "第 1 行，image 一列要是图片，得到空的"),
        ({"text": 3}, "第 1 行没有描述（text 一列是 3）"),
        ({"text": "  "}, "第 1 行没有描述"),
        ({"image": {"bytes": b"no", "path": None}}, "第 1 行，image 一列的图解不开"),
        ({"image": {"bytes": None, "path": None}}, "第 1 行，image 一列的图解不开"),
        ({"image": {"bytes": None, "path": "no/such.png"}}, "第 1 行，image 一列的图解不开"),
        ({"control": None}, "第 1 行，control 一列要是图片，得到空的"),
    ],
)
def test_a_dataset_without_pictures_or_captions(tmp_path, changes, said):
    with pytest.raises(DataError, match=said):
        write_dataset(rows(**changes), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []  # 没有半个文件夹
    with pytest.raises(DataError, match="一行也没有"):
        write_dataset([], tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "said"), [("image", "没有图.*pic、text"), ("text", "没有描述.*pic")]
)
def test_a_dataset_with_other_column_names(tmp_path, old, said):
    renamed = [{("pic" if key == old else key): row[key] for key in row} for row in rows()]
    with pytest.raises(DataError, match=said):
        write_dataset(renamed, tmp_path / "out")


def test_two_captions_in_one_row_have_to_agree(tmp_path):
    same = [{**row, "caption": f" {row['text']} "} for row in rows()]
    assert len(inspect(write_dataset(same, tmp_path / "same"))[0]) == 3
    with pytest.raises(DataError, match=r"第 2 行有两项描述（caption 与 text）.*\['text'\]"):
        write_dataset([same[0], {**same[1], "text": "别的"}], tmp_path / "out")


def test_an_edit_dataset_becomes_pairs(tmp_path):
    def pairs():
        for i, row in enumerate(rows()):
            before = Image.new("RGB", (40, 40), (0, 99, i))
            second = Image.new("RGB", (40, 40), "blue") if i == 1 else None
            yield {"source_image": before, "source_image_2": second, "mask_img": before,
                   "edited_image": row["image"], "instruction": row["text"]}  # fmt: skip

    said = r"mask_img 也是图，没有用到.*edited_image.*source_image.*columns\(\['mask_img'\]\)"
    with pytest.raises(DataError, match=said):
        write_dataset(pairs(), tmp_path / "out")
    kept = ({key: one for key, one in row.items() if key != "mask_img"} for row in pairs())
    folder = write_dataset(kept, tmp_path / "out")
    records, report = inspect(folder)
    assert not report.errors and [len(r.controls) for r in records] == [1, 2, 1]
    assert [r.caption for r in records] == ["第 0 张", "第 1 张", "第 2 张"]
    assert read_image(records[2].path).getpixel((0, 0)) == (80, 0, 0)
    assert read_image(records[2].controls[0]).getpixel((0, 0)) == (0, 99, 2)


def test_a_dataset_picture_is_turned_upright_once(tmp_path):
    image, exif = Image.new("RGB", (60, 40), "red"), Image.Exif()
    image.paste("blue", (0, 0, 60, 20))
    exif[ORIENTATION] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif, quality=100, subsampling=0)
    lazy = {"bytes": file.getvalue(), "path": None}
    opened = Image.open(io.BytesIO(file.getvalue()))
    (tmp_path / "a.jpg").write_bytes(file.getvalue())
    for number, one in enumerate((lazy, opened, {"bytes": None, "path": str(tmp_path / "a.jpg")})):
        folder = write_dataset(rows(1, image=one), tmp_path / f"out{number}")
        written = read_image(folder / "000001.png")
        assert written.size == (40, 60) and written.getpixel((35, 30))[2] > 200  # 蓝的转到右边
        assert np.array_equal(written, read_image(tmp_path / "a.jpg"))


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    for name in ("dataset_info.json", "state.json"):
        (folder / name).write_text("{}")
    (folder / "data.arrow").write_bytes(b"1")
    return folder


def test_a_saved_dataset_without_the_library(saved, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        load_records(saved)
    assert cli.main(["check", str(saved)]) == 1
    assert "pip install datasets" in capsys.readouterr().err


def test_a_saved_dataset_is_unpacked_once(saved, monkeypatch, own_cache):
    library, calls = ModuleType("datasets"), []
    library.load_from_disk = lambda path: calls.append(path) or rows()
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert len(load_records(saved)) == len(load_records(saved)) == 3
    assert calls == [str(saved)]
    assert unpacked(saved).parent == own_cache / "datasets"
    (saved / "data.arrow").write_bytes(b"2")
    load_records(saved)
    assert len(calls) == 2


def test_several_splits_ask_which(saved, tmp_path):
    (tmp_path / "dataset_dict.json").write_text("{}")
    shutil.copytree(saved, tmp_path / "test")
    with pytest.raises(DataError, match="有几份数据：saved、test"):
        unpacked(tmp_path)


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets")


def test_the_real_library_round_trip(tmp_path, datasets):
    table = datasets.Dataset.from_list(list(rows()))
    table.save_to_disk(tmp_path / "disk")
    direct = write_dataset(table, tmp_path / "direct")  # 对象本身，不必先存
    lazy = table.cast_column("image", datasets.Image(decode=False))
    undecoded = write_dataset(lazy, tmp_path / "lazy")
    wanted = [r.digest for r in inspect(direct)[0]]
    for folder in (tmp_path / "disk", direct, undecoded):
        records = load_records(folder)
        assert [r.caption for r in records] == ["第 0 张", "第 1 张", "第 2 张"]
        assert [r.digest for r in records] == wanted
        assert [read_image(r.path).getpixel((0, 0))[0] for r in records] == [0, 40, 80]


def test_the_real_library_with_edit_pairs(tmp_path, datasets, capsys):
    before = Image.new("RGB", (40, 40), "green")
    table = datasets.Dataset.from_list([{**row, "control_image": before} for row in rows(8)])
    both = table.train_test_split(2, shuffle=False)
    both.save_to_disk(tmp_path / "disk")
    assert cli.main(["check", str(tmp_path / "disk")]) == 0
    said, told = capsys.readouterr()
    line = f"data.folder: [{tmp_path / 'disk/test'}, {tmp_path / 'disk/train'}]"
    assert "只练 train；" in told and line in told
    data = load_config({"data": yaml.safe_load(line.removeprefix("data."))}).data
    assert [len(records) for records, _ in inspect_sources(data)] == [2, 6]
    assert "共 6 张图" in said and "6 张图配好了控制图" in said
    records = load_records(tmp_path / "disk" / "test")
    assert [r.caption for r in records] == ["第 6 张", "第 7 张"]
    assert {read_image(r.controls[0]).getpixel((0, 0)) for r in records} == {(0, 128, 0)}


def test_the_real_library_trains(tmp_path, config, family, datasets, papercut):
    table = datasets.load_dataset("imagefolder", data_dir=str(_as_imagefolder(papercut, tmp_path)))
    table.save_to_disk(tmp_path / "disk")
    prepared = cache.prepare(config(f"data.folder={tmp_path / 'disk'}"), family)
    assert len(prepared.train) + len(prepared.held) == 24


def _as_imagefolder(folder, tmp_path):
    """图 + .txt -> datasets 自己的 imagefolder 写法：图与 metadata.jsonl。"""
    target = shutil.copytree(folder, tmp_path / "imagefolder")
    with (target / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for path in sorted(target.glob("*.txt")):
            row = {"file_name": f"{path.stem}.png", "text": path.read_text("utf-8").strip()}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            path.unlink()
    return target
