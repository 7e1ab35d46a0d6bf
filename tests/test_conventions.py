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
from lorakit.data.select import select
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


@pytest.mark.parametrize(
    "name", ["reg", "Regularization_images", "class/5_cat", "reg_data", "class_images", "正则图"]
)
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


# ---- 没有描述的图，多半是谁的什么 ----


@pytest.mark.parametrize("name", ["source", "control_images", "原图", "alpha"])
def test_a_folder_of_twins_is_one_error_with_the_lines_to_write(tmp_path, name):
    draw(tmp_path, "target/a.png", "target/b.png")
    draw(tmp_path, f"{name}/a.png", f"{name}/b.png", said="")
    (problem,) = inspect(tmp_path)[1].errors
    assert problem.code == "twins" and problem.path == tmp_path / name
    assert (
        f"data.folder: {tmp_path / 'target'} 和 data.control_folder: {tmp_path / name}"
        in problem.mend
    )


@pytest.mark.parametrize("name", ["a_depth.png", "a-condlabel.png", "a_alpha.png"])
def test_a_part_of_a_picture_says_how_to_name_it(tmp_path, name):
    draw(tmp_path, "a.png", "b.png")
    draw(tmp_path, name, said="")
    (problem,) = inspect(tmp_path)[1].errors
    assert "改名为 a_mask.png" in problem.mend and "data.control_folder" in problem.mend


def test_captions_in_a_folder_of_their_own(tmp_path):
    draw(tmp_path, "images/a.png", said="")
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions/a.txt").write_text("a cat", encoding="utf-8")
    (problem,) = inspect(tmp_path)[1].errors
    assert problem.mend.startswith("captions/a.txt 是它的描述，就挪到它旁边")


def test_pictures_kept_for_testing_and_folders_that_are_captions(tmp_path):
    draw(tmp_path / "d", "train/a.png", "val/b.png", "test/c.png")
    (problem,) = [p for p in inspect(tmp_path / "d")[1].warnings if p.code == "folder_split"]
    assert "2 张" in problem.reason and f"data.folder: {tmp_path / 'd/train'}" in problem.mend
    draw(tmp_path / "k", "10_ohwx cat/a.png", said="")
    (note,) = [p for p in inspect(tmp_path / "k")[1].notes if p.code == "folder_counted"]
    assert "--prefix 'ohwx cat'" in note.reason


UNREAD = ["a.tif", "a.png ", "a.jpg!w500", "a.jpg_large", "a.gif"]


@pytest.mark.parametrize("name", UNREAD)
def test_a_picture_that_is_not_read_is_an_error(tmp_path, name):
    draw(tmp_path, "b.png")
    (tmp_path / name).write_bytes(b"x")
    (problem,) = inspect(tmp_path)[1].errors
    assert problem.code == "not_used" and "也有描述" not in problem.reason
    (tmp_path / "a.txt").write_text("a cat", encoding="utf-8")
    (problem,) = inspect(tmp_path)[1].errors
    assert problem.code == "not_used" and problem.path.name == name and "也有描述" in problem.reason


def test_what_systems_leave_is_not_looked_at(tmp_path):
    draw(tmp_path, "a.png")
    draw(tmp_path, "@eaDir/a.png/SYNO.jpg", "$RECYCLE.BIN/x.png", "#recycle/y.png", said="")
    assert not inspect(tmp_path)[1].problems


def test_several_lines_are_told_and_empty_words_too(tmp_path):
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_text("a cat\na feline\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("nan", encoding="utf-8")
    report = inspect(tmp_path)[1]
    assert [p.code for p in report.notes] == ["caption_lines"] and "a.png" in report.notes[0].reason
    assert [p.code for p in report.warnings] == ["caption_hollow"]


def test_a_row_with_several_captions_is_told_once_and_truly(tmp_path):
    draw(tmp_path, "a.png", "b.png", said="")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": ["x", "y"]}\n')
    (tmp_path / "b.json").write_text('{"caption": ["x"]}')
    text = inspect(tmp_path)[1].text()
    assert "第 1 行 写错了" in text and "里没有 caption" not in text
    assert "b.json：caption 要是一句话" in text


def test_a_foreign_table_in_gbk_is_not_promised_to_be_fixed(tmp_path):
    draw(tmp_path, "a.png", said="")
    (tmp_path / "captions.csv").write_bytes("image,text\na.png,一只猫坐着看\n".encode("gbk"))
    (problem,) = [p for p in inspect(tmp_path)[1].errors if p.code == "not_used"]
    assert "--fix" not in problem.mend and "另存为 UTF-8" in problem.mend


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
    assert [(p.code, p.path.name) for p in report.errors] == [("mask_orphan", "9.png")]
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
    "Metadata.jsonl": '{"image": "a.png", "text": "one cat"}\n'
                      '{"image": "in/b.png", "text": "two, cats"}\n',
    "metadata.csv": "file_name;text\na.png;one cat\nin/b.png;two, cats\n",
    "kohya.json": {"TREE/a.png": {"caption": "one cat"}, "TREE/in/b.png": {"caption": "two, cats"}},
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_other_tools(tmp_path, name):
    draw(tmp_path, "a.png", "in/b.png", said="")
    table = TABLES[name]
    text = table if isinstance(table, str) else json.dumps(table)
    text = text.replace("HERE", str(tmp_path)).replace(
        "TREE", f"{tmp_path.parent.name}/{tmp_path.name}"
    )
    (tmp_path / name).write_text(text, encoding="utf-8")
    records, report = inspect(tmp_path)
    found = {r.path.relative_to(tmp_path).as_posix(): r.caption for r in records}
    assert found == WANTED and not report.errors and not report.warnings


def test_tables_never_win_over_the_captions_beside_the_pictures(tmp_path):
    draw(tmp_path, "a.png", said="mine")
    (tmp_path / "meta_cap.json").write_text('{"a": {"caption": "theirs"}}', encoding="utf-8")
    records, report = inspect(tmp_path)
    assert records[0].caption == "mine" and [p.code for p in report.errors] == ["caption_conflict"]


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "..\\a.png", "a.png\0", "x/../a.png"])
def test_names_in_a_table_never_leave_the_folder(tmp_path, name):
    draw(tmp_path / "d", "b.png", said="")
    draw(tmp_path, "a.png")
    (tmp_path / "d/all.json").write_text(json.dumps({name: "x", "b.png": "y"}), encoding="utf-8")
    records, report = inspect(tmp_path / "d")
    assert [r.caption for r in records] == ["y"]
    assert [p.code for p in report.errors] == ["metadata_file"]


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
    (problem,) = inspect(tmp_path)[1].errors
    assert problem.code == "not_used" and "metadata.jsonl" in problem.mend


@pytest.mark.parametrize(
    ("name", "text"),
    [("c.csv", "文件,描述\na.png,一只猫\n"), ("c.tsv", "图\t话\na.png\t一只猫\n"),
     ("c.jsonl", '{"文件": "a.png", "描述": "一只猫"}\n')],
)  # fmt: skip
def test_a_table_whose_columns_are_not_understood_is_told(tmp_path, name, text):
    draw(tmp_path, "a.png")
    (tmp_path / name).write_text(text, encoding="utf-8")
    (problem,) = inspect(tmp_path)[1].errors
    assert problem.code == "not_used" and "file_name,text" in problem.mend


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
          "a cat <|im_end|>", "</s> a cat", "<wildcard:animal> sofa", "red::2 cat",
          "a cat Negative prompt: bad Steps: 20, Sampler: Euler", "a cat --ar 16:9",
          "1girl, long_hair, blue_eyes", "ohwx ||| a cat", "a (cat)++ on sofa", "(cat)1.3, sofa",
          "1.2::red cat::, sofa", "a {red} cat", "a [class] on sofa", "[filewords]", "<style> cat",
          "\x1b[31ma cat\x1b[0m", "a cat\\non a sofa", "{}"]  # fmt: skip


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


TEMPLATES = [
    "［trigger］",
    "｛触发词｝",
    "（触发词）",
    "「触发词」",
    "[V]",
    "<subject>",
    "{identifier}",
]


@pytest.mark.parametrize("mark", TEMPLATES)
def test_more_placeholders(tmp_path, mark):
    draw(tmp_path, "a.png", "b.png", said=f"{mark} 在沙发上，第" + " {} 张")
    assert [r.caption for r in load_records(tmp_path, "ohwx")] == [
        "ohwx 在沙发上，第 0 张", "ohwx 在沙发上，第 1 张"
    ]  # fmt: skip
    with pytest.raises(DataError, match="没有触发词可换"):
        load_records(tmp_path)


# ---- 没有用到的数据 ----


def test_a_linked_folder_of_pictures_is_an_error(tmp_path):
    draw(tmp_path / "d", "a.png")
    draw(tmp_path / "more/deep", "b.png")
    (tmp_path / "empty").mkdir()
    for name, target in {"more": "more", "nothing": "empty", "round": "d"}.items():
        (tmp_path / "d" / name).symlink_to(tmp_path / target)
    report = inspect(tmp_path / "d")[1]
    assert [(p.code, p.path.name) for p in report.errors] == [("link_folder", "more")]
    assert {p.path.name for p in report.warnings} == {"nothing", "round"}


def test_what_stands_beside_the_pictures_is_told(tmp_path):
    draw(tmp_path / "img/10_ohwx", "a.png", "b.png")
    draw(tmp_path / "reg/1_cat", "c.png")
    draw(tmp_path / "control", "a.png", "b.png", said="")
    for folder in (tmp_path / "img", tmp_path / "img/10_ohwx"):
        report = inspect(folder)[1]
        (control,) = [p for p in report.warnings if p.code == "control_beside"]
        assert f"data.control_folder: {tmp_path / 'control'}" in control.mend
        assert f"data.class_folder: {tmp_path / 'reg'}" in report.text(("note",))
    assert "control_beside" not in codes(
        tmp_path / "img/10_ohwx", "warning", "", tmp_path / "control"
    )
    data = load_config(
        {"data": {"folder": str(tmp_path / "img"), "class_folder": str(tmp_path / "reg")}}
    )
    assert "class_beside" not in [p.code for p in inspect_sources(data.data)[0][1].problems]


def test_a_video_with_a_caption_is_an_error(tmp_path):
    draw(tmp_path, "a.png")
    for name in ("a.mov", "b.mp4"):  # a 是苹果手机的实况照片
        (tmp_path / name).write_bytes(b"\0\0\0\x20ftypisom")
    (tmp_path / "b.txt").write_text("一段视频", encoding="utf-8")
    (problem,) = inspect(tmp_path)[1].errors
    assert problem.path.name == "b.mp4" and "只练图" in problem.reason


def test_a_control_picture_that_is_not_read_is_named(tmp_path):
    draw(tmp_path / "images", "a.png")
    (tmp_path / "control").mkdir()
    (tmp_path / "control/a.tif").write_bytes(b"II*\0")
    (problem,) = inspect(tmp_path)[1].errors
    assert problem.code == "control_missing" and "a.tif 这种文件不读" in problem.mend
