"""别的训练器摆文件夹、写描述的习惯：认得的照做，认不准的给出要写的那几行。"""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lorakit.cli import main
from lorakit.config import load_config
from lorakit.data import inspect, load_records
from lorakit.data.load import inspect_sources
from lorakit.errors import DataError


def draw(folder: Path, *names: str, said: str = "a cat on a {} sofa"):
    """放几张内容不同的好图，各有一句描述（said 是空的就不写）。"""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(list(name.encode())).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC).save(path)
        if said:
            path.with_suffix(".txt").write_text(said.replace("{}", str(number)), encoding="utf-8")


def codes(folder: Path, severity: str, *given) -> list[str]:
    return [p.code for p in inspect(folder, *given)[1].of(severity)]


# ---- 训练图与同类图在一棵树里 ----


def kohya_tree(top: Path) -> Path:
    draw(top / "img/10_ohwx woman", *(f"{i}.png" for i in range(4)), said="ohwx woman {}")
    draw(top / "reg/1_woman", *(f"{i}.png" for i in range(6)), said="woman, photo {}")
    return top


def test_class_pictures_in_the_same_tree_are_refused_with_the_lines_to_write(tmp_path, capsys):
    top = kohya_tree(tmp_path / "d")
    assert main(["check", str(top), "--trigger", "ohwx"]) == 1
    said = capsys.readouterr().out
    train, prior = top / "img/10_ohwx woman", top / "reg/1_woman"
    listed = f"data.folder: [{{folder: {train}, repeats: 10}}]"
    assert listed in said and f"data.class_folder: {prior}" in said
    lines = yaml.safe_load(listed.removeprefix("data."))
    lines["class_folder"] = str(prior)
    data = load_config({"data": {**lines, "trigger": "ohwx"}}).data
    results = inspect_sources(data)
    assert [len(records) for records, _ in results] == [4, 6]
    assert not any(report.errors or report.notes for _, report in results[:1])


@pytest.mark.parametrize("name", ["reg", "Regularization_images", "class/5_cat", "reg_data"])
def test_other_names_of_class_folders(tmp_path, name):
    draw(tmp_path, "img/a.png", "img/b.png", f"{name}/c.png")
    assert codes(tmp_path, "error") == ["class_inside"]
    assert f"data.folder: [{tmp_path / 'img'}]" in inspect(tmp_path)[1].text()


def test_class_folders_alone_and_look_alikes_are_left_in_peace(tmp_path):
    draw(tmp_path / "a", "reg/1_cat/a.png", "reg/1_cat/b.png")
    draw(tmp_path / "b", "regatta/a.png", "region/b.png", "classic/c.png")
    draw(tmp_path / "c", "class/a.png", "b.png")
    assert "class_inside" not in codes(tmp_path / "a", "error") + codes(tmp_path / "b", "error")
    assert codes(tmp_path / "c", "error") == [] and "class_inside" in codes(
        tmp_path / "c", "warning"
    )


def test_counts_at_any_depth(tmp_path):
    draw(tmp_path / "d", "x/img/007_猫, 狗/a.png", "y/b.png")
    note = next(p for p in inspect(tmp_path / "d")[1].notes if p.code == "folder_counted")
    place = str(tmp_path / "d/x/img/007_猫, 狗")
    written = note.reason.partition("data.folder: ")[2].partition("，别的")[0]
    assert yaml.safe_load(written) == [{"folder": place, "repeats": 7}]
    assert str(tmp_path / "d/y") in note.reason
    assert "folder_counted" in codes(tmp_path / "d/x/img/007_猫, 狗", "note")


# ---- 遮罩 ----

MASKS = ["0_mask.png", "0-masklabel.png", "0.mask.png", "0-mask.PNG", "0 mask.png", "mask_0.png",
         "masks/0.png", "mask/0.jpg", "masks/0_mask.png", "masks/0.png.png"]  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_masks_under_other_names(tmp_path, name):
    draw(tmp_path, "0.png")
    draw(tmp_path, name, said="")
    records, report = inspect(tmp_path)
    assert [r.path.name for r in records] == ["0.png"] and not report.errors
    assert records[0].mask == tmp_path / name


@pytest.mark.parametrize("place", ["masks", "images_mask", "images-masks", "masks/sub"])
def test_masks_beside_the_images(tmp_path, place):
    inner = "images/sub" if place.endswith("sub") else "images"
    draw(tmp_path, f"{inner}/0.png", f"{inner}/1.png")
    draw(tmp_path, f"{place}/0.png", f"{place}/1.png", f"{place}/9.png", said="")
    records, report = inspect(tmp_path)
    assert [r.mask and r.mask.name for r in records] == ["0.png", "1.png"]
    assert "mask_orphan" in [p.code for p in report.warnings] and not report.errors
    if place == "masks":
        assert "masks_beside" in codes(tmp_path / "images", "warning")


def test_pictures_of_masks_are_pictures(tmp_path):
    draw(tmp_path, "masks/a.png", "masks/b.png", "c.png", "gasmask_1.png", "b_mask.png")
    assert len(inspect(tmp_path)[0]) == 5


def test_a_mask_of_two_pictures_is_named(tmp_path):
    draw(tmp_path, "a/0.png", "b/0.png")
    draw(tmp_path, "masks/0.png", said="")
    assert codes(tmp_path, "error") == ["mask_ambiguous"]


def test_masks_left_unused_are_an_error_unless_said_so(config, family, tmp_path):
    from lorakit.data.select import select

    draw(tmp_path / "d", "0.png", "1.png")
    draw(tmp_path / "d", "0_mask.png", said="")
    with pytest.raises(DataError, match=r"data\.mask=file"):
        select(config(f"data.folder={tmp_path / 'd'}"), family)
    with pytest.warns(UserWarning, match="没有用到"):
        select(config(f"data.folder={tmp_path / 'd'}", "data.mask=none"), family)


# ---- 触发词的位置 ----


@pytest.mark.parametrize("mark", ["[trigger]", "[name]", "{trigger}", "<trigger>",
                                  "[Trigger Word]",
                                  "{{trigger_word}}", "【触发词】",
                                  "%trigger%", "${trigger}"])  # fmt: skip
def test_placeholders_become_the_trigger(tmp_path, mark):
    draw(tmp_path, *(f"{i}.png" for i in range(4)), said=f"a photo of {mark} " + "number {}")
    (tmp_path / "3.txt").write_text("a photo of a cat", encoding="utf-8")
    with pytest.warns(UserWarning, match="有 1 份没有触发词"):
        records = load_records(tmp_path, "ohwx")
    assert [r.caption for r in records] == [
        "a photo of ohwx number 0", "a photo of ohwx number 1", "a photo of ohwx number 2",
        "ohwx, a photo of a cat",
    ]  # fmt: skip
    with pytest.raises(DataError, match="没有触发词可换"):
        load_records(tmp_path)


# ---- 下载缓存里的链接 ----


def test_links_inside_one_download_are_followed_and_others_get_one_command(tmp_path):
    home = tmp_path / "datasets--me--cats"
    snapshot, away = home / "snapshots/abc", tmp_path / "away"
    draw(tmp_path / "real", "0.png", "1.png", "2.png")
    for folder in (snapshot, away):
        folder.mkdir(parents=True)
    (home / "blobs").mkdir()
    for number, path in enumerate(sorted((tmp_path / "real").iterdir())):
        blob = path.rename(home / "blobs" / f"sha{number}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
        (away / path.name).symlink_to(blob)
    assert len(load_records(snapshot)) == 3
    (problem,) = [p for p in inspect(away)[1].errors if p.code == "link_outside"]
    assert f"cp -rL {away}" in problem.mend


# ---- 别人的描述表 ----

WANTED = {"a.png": "one cat", "in/b.png": "two, cats"}
TABLES = {
    "meta_cap.json": {"a": {"caption": "one cat"}, "b": {"caption": "two", "tags": "cats"}},
    "meta_lat.json": {"/elsewhere/a.png": {"tags": "one cat", "train_resolution": [64, 48]},
                      "/elsewhere/b.png": {"tags": "two, cats"}},
    "captions.json": {"a.png": "one cat", "in/b.png": "two, cats"},
    "list.json": [{"image": "a.png", "prompt": "one cat"},
                  {"image": "in/b.png", "prompt": "two, cats"}],
    "data.json": {"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
                  "annotations": [{"image_id": 1, "caption": "one cat"},
                                  {"image_id": 2, "caption": "two, cats"}]},
    "train.jsonl": '{"image_path": "HERE/a.png", "caption": "one cat"}\n'
                   '{"image_path": "HERE/in/b.png", "caption": "two, cats"}\n',
    "metadata.jsonl": '{"image_path": "a.png", "caption": "one cat"}\n'
                      '{"image_path": "in/b.png", "caption": "two, cats"}\n',
    "captions.tsv": "file\tcaption\na.png\tone cat\nin/b.png\ttwo, cats\n",
    "bare.tsv": "a.png\tone cat\nin/b.png\ttwo, cats\n",
    "captions.csv": 'image,text\na.png,one cat\nin/b.png,"two, cats"\n',
    "semicolon.csv": "image;text\na.png;one cat\nin/b.png;two, cats\n",
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_other_tools(tmp_path, name):
    draw(tmp_path, "a.png", "in/b.png", said="")
    table = TABLES[name]
    text = table if isinstance(table, str) else json.dumps(table)
    (tmp_path / name).write_text(text.replace("HERE", str(tmp_path)), encoding="utf-8")
    records, report = inspect(tmp_path)
    found = {r.path.relative_to(tmp_path).as_posix(): r.caption for r in records}
    assert found == WANTED and not report.errors and not report.warnings


def test_tables_never_win_over_the_captions_beside_the_pictures(tmp_path):
    draw(tmp_path, "a.png", said="mine")
    (tmp_path / "meta_cap.json").write_text('{"a": {"caption": "theirs"}}', encoding="utf-8")
    records, report = inspect(tmp_path)
    assert records[0].caption == "mine" and [p.code for p in report.warnings] == ["not_used"]


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "..\\a.png", "a.png\0", "x/../a.png"])
def test_names_in_a_table_never_leave_the_folder(tmp_path, name):
    draw(tmp_path / "d", "b.png", said="")
    draw(tmp_path, "a.png")
    (tmp_path / "d/all.json").write_text(json.dumps({name: "x", "b.png": "y"}), encoding="utf-8")
    records, report = inspect(tmp_path / "d")
    assert [r.caption for r in records] == ["y"]
    assert [p.code for p in report.warnings] == ["metadata_file"]


def test_controls_in_a_table_are_an_error_with_the_line_to_write(tmp_path):
    draw(tmp_path, "img/a.png", "before/a.png", said="")
    row = {"image_path": "a.png", "caption": "paint it", "control_path": f"{tmp_path}/before/a.png"}
    (tmp_path / "img/m.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (problem,) = inspect(tmp_path / "img")[1].errors
    assert f"data.control_folder: {tmp_path / 'before'}" in problem.mend
    records, report = inspect(tmp_path / "img", "", tmp_path / "before")
    assert len(records[0].controls) == 1 and not report.errors


@pytest.mark.parametrize("name", ["metadata.parquet", "train-00000.parquet", "x.arrow"])
def test_tables_that_cannot_be_read_say_how_to_convert(tmp_path, name):
    draw(tmp_path, "a.png")
    (tmp_path / name).write_bytes(b"PAR1")
    (problem,) = inspect(tmp_path)[1].warnings
    assert problem.code == "not_used" and "metadata.jsonl" in problem.mend


def test_other_files_are_not_tables(tmp_path):
    draw(tmp_path, "a.png")
    for name, text in {"package.json": '{"name": "x"}', "b.json": "[1, 2]", "c.json": "{",
                       "log.csv": "step,loss\n1,2\n"}.items():  # fmt: skip
        (tmp_path / name).write_text(text, encoding="utf-8")
    report = inspect(tmp_path)[1]
    assert not report.errors and not report.warnings


# ---- 别的程序的提示词写法 ----

SYNTAX = ["a (red:1.2) cat", "a cat <lora:fur:0.8>", "a cat BREAK a dog", "cat \\(animal\\), sofa",
          "a __color__ cat", "a {red|blue} cat", "a ((red)) cat", "{{red}} cat",
          "a cat --ar 16:9", "1girl, long_hair, blue_eyes", "ohwx ||| a cat"]  # fmt: skip


@pytest.mark.parametrize("caption", SYNTAX)
def test_syntax_of_other_programs_is_a_warning(tmp_path, caption):
    draw(tmp_path, "a.png", "b.png", said="a cat on sofa number {}")
    (tmp_path / "b.txt").write_text(caption, encoding="utf-8")
    assert "caption_syntax" in codes(tmp_path, "warning")


@pytest.mark.parametrize("caption", ["a poster (ratio 16:9)", "my_cat, a cat", 
                                     "a cat (left)",
                                     "file_name of a cat", "a [small] cat",
                                      "10:30, clock"])  # fmt: skip
def test_ordinary_captions_are_not_syntax(tmp_path, caption):
    draw(tmp_path, "a.png", "b.png", said="my_cat, sofa number {}")
    (tmp_path / "b.txt").write_text(caption, encoding="utf-8")
    assert "caption_syntax" not in codes(tmp_path, "warning", "my_cat")
