"""没有用到的数据：并排的遮罩与控制图、控制图旁边的描述、压缩包；停下来，照那句话做就能过去。"""

import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_conventions import codes, draw

from lorakit.data import inspect
from lorakit.data.select import select
from lorakit.errors import DataError, InspectionWarning

BESIDE = {  # 底模一次看几张控制图 -> 并排的 control 没有写明时
    (0, 0): None,  # 用不上它：照 data.folder 的意思只练图
    (0, 3): r"只练图，也可以写 data\.control_folder=null",
    (1, 3): r"名字以点开头的不看）。$",  # 只会改图的，写 null 没有用
}


@pytest.mark.parametrize("controls", BESIDE)
def test_controls_beside_the_pictures_stop_where_the_base_could_use_them(
    config, tmp_path, controls
):
    base = SimpleNamespace(name="底模", multiple=16, controls=controls)
    draw(tmp_path / "img", "a.png", "b.png", "c.png")
    draw(tmp_path / "control", "a.png", "b.png", "c.png", said="")
    given = [f"data.folder={tmp_path / 'img'}", "eval.holdout=0"]
    if BESIDE[controls] is None:
        with pytest.warns(InspectionWarning, match="像是控制图，没有用到"):
            assert len(select(config(*given), base).train) == 3
        return
    with pytest.raises(DataError, match=BESIDE[controls]) as told:
        select(config(*given), base)
    line = f"data.control_folder: {tmp_path / 'control'}"
    assert line in str(told.value)
    paired = select(config(*given, line.replace(": ", "=")), base)
    assert all(len(record.controls) == 1 for record in paired.train)
    item = str(told.value).partition("写在那一个里：")[2].partition("）")[0]
    assert select(config(f"data.folder=[{item}]", "eval.holdout=0"), base).train[0].controls
    if controls == (0, 3):
        for alone in (
            ["data.control_folder=null", *given],
            [f"data.folder=[{{folder: {tmp_path / 'img'}, control_folder: null}}]"],
        ):
            with pytest.warns(InspectionWarning):
                assert not select(config(*alone, "eval.holdout=0"), base).train[0].controls
    (tmp_path / "control").rename(tmp_path / ".control")
    if not controls[0]:
        assert len(select(config(*given), base).train) == 3


def test_masks_beside_the_pictures_stop(config, family, tmp_path):
    draw(tmp_path / "images", "a.png", "b.png")
    draw(tmp_path / "images_mask", "a.png", "b.png", said="")
    given = [f"data.folder={tmp_path / 'images'}", "eval.holdout=0"]
    with pytest.raises(DataError, match=r"遮罩，没有走到.*data\.mask: file.*data\.mask=none"):
        select(config(*given), family)
    with pytest.warns(InspectionWarning, match="没有走到"):
        select(config(*given, "data.mask=none"), family)
    with pytest.warns(InspectionWarning):  # 这两张随便画的遮罩是彩色的
        chosen = select(config(f"data.folder={tmp_path}", "data.mask=file"), family)
    assert len(chosen.masks) == 2


@pytest.mark.parametrize(
    ("after", "before"),
    [("target", "source"), ("after", "before"), ("edited_images", "original"), ("output", "input")],
)
def test_other_names_of_pairs_side_by_side(tmp_path, after, before):
    draw(tmp_path / after, "a.png")
    draw(tmp_path / before, "a.png", said="")
    draw(tmp_path / "images", "a.png")
    assert codes(tmp_path / after, "warning") == ["control_beside"]
    assert "control_beside" not in codes(tmp_path / "images", "warning")  # 只是原图


def test_the_folder_one_stands_in_has_neighbours_too(tmp_path, monkeypatch):
    draw(tmp_path / "images", "a.png")
    draw(tmp_path / "control", "a.png", said="")
    monkeypatch.chdir(tmp_path / "images")
    assert codes(Path(), "warning") == ["control_beside"]


def packed(path: Path, *names: str) -> Path:
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as whole:
            for name in names:
                whole.addfile(tarfile.TarInfo(name))
        return path
    with zipfile.ZipFile(path, "w") as whole:
        for name in names:
            whole.writestr(name, b"x")
    return path


def test_names_in_gbk_are_read_as_windows_wrote_them(tmp_path):
    draw(tmp_path, "一只猫.png")
    path = packed(tmp_path / "d.zip", "xxxxxx.png")  # 六个字节，换成 GBK 的三个字
    path.write_bytes(path.read_bytes().replace(b"xxxxxx", "一只猫".encode("gbk")))
    report = inspect(tmp_path)[1]
    assert not report.errors and [p.code for p in report.notes] == ["archive"]


@pytest.mark.parametrize("name", ["d.zip", "d.tar", "d.cbz"])
def test_an_archive_with_other_pictures_stops(tmp_path, name):
    draw(tmp_path, "a.png", "b.png")
    packed(tmp_path / name, "photos/a.png", "photos/B.JPG", "photos/a.txt", "__MACOSX/._c.png")
    report = inspect(tmp_path)[1]
    assert not report.errors and [p.code for p in report.notes] == ["archive"]
    packed(tmp_path / name, "photos/a.png", "photos/c.png")
    (problem,) = inspect(tmp_path)[1].errors
    assert "1 张图这里没有（例如 photos/c.png）" in problem.reason
    (tmp_path / ".不用的").mkdir()
    (tmp_path / name).rename(tmp_path / ".不用的" / name)  # 照那句话做
    assert not inspect(tmp_path)[1].problems


def test_an_archive_beside_the_controls_is_looked_into(tmp_path):
    draw(tmp_path, "images/a.png", "images/b.png")
    draw(tmp_path, "control/a.png", "control/b.png", said="")
    packed(tmp_path / "control/c.zip", "a.png", "z.png")
    assert codes(tmp_path, "error") == ["archive"]


def test_captions_beside_the_controls_are_not_left_unsaid(tmp_path):
    """和目标图的一样就说一声；不一样、没有目标图的、描述表，都是没有用到的数据。"""
    draw(tmp_path, "images/a.png", "images/b.png", said="make it blue {}")
    draw(tmp_path, "control/a.png", "control/b.png", said="make it blue {}")
    report = inspect(tmp_path)[1]
    assert not report.errors and "control_captions" in [p.code for p in report.notes]
    (tmp_path / "control/metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}')
    (tmp_path / "control/b.txt").write_text("a cat before", encoding="utf-8")
    (problem,) = inspect(tmp_path)[1].errors
    assert problem.code == "control_captions" and "2 份" in problem.reason
    (tmp_path / "control/.不用的").mkdir()
    for name in ("metadata.jsonl", "b.txt"):
        (tmp_path / "control" / name).rename(tmp_path / "control/.不用的" / name)
    assert not inspect(tmp_path)[1].errors


SPLIT = ["x.zip.001", "x.z01", "x.7z.001", "x.r00", "x.part1.rar", "x.tar.zst", "0_mask.npy",
         "mask_0.npz"]  # fmt: skip


@pytest.mark.parametrize("name", SPLIT)
def test_volumes_and_masks_of_unread_kinds_stop(tmp_path, name):
    draw(tmp_path, "0.png", "1.png")
    (tmp_path / "0_te.npz").write_bytes(b"PK")  # 别的训练器留下的缓存
    (tmp_path / name).write_bytes(b"x")
    (problem,) = inspect(tmp_path)[1].errors
    assert problem.path.name == name and "没有用到" in problem.reason


def test_advice_about_masks_can_be_followed(tmp_path):
    draw(tmp_path, "0.png", "1.png")
    draw(tmp_path, "sub/masks/0.png", "9_mask.png", said="")
    problems = {p.code: p for p in inspect(tmp_path)[1].errors}
    assert f"就把它挪进 {tmp_path}" in problems["twins"].mend
    assert "没有叫 9 的图" in problems["caption_missing"].mend
    (tmp_path / "9_mask.png").unlink()
    (tmp_path / "sub/masks").rename(tmp_path / "masks")
    records, report = inspect(tmp_path)
    assert not report.errors and records[0].mask


@pytest.mark.parametrize("suffix", ["md", "yaml", "rtf", "docx"])
def test_a_caption_in_an_unread_kind_is_pointed_at(tmp_path, suffix):
    draw(tmp_path, "0.png", "1.png")
    (tmp_path / "0.txt").rename(tmp_path / f"0.{suffix}")
    (problem,) = inspect(tmp_path)[1].errors
    assert problem.mend.startswith(f"0.{suffix} 里写着它的描述，就存成纯文本的 0.txt")
