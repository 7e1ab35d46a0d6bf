"""描述的几种来源：各读得对；metadata 里每一种写错都指出是哪一行；写了两次不悄悄挑一个。"""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit.data import Record, inspect, load_records
from lorakit.data.fix import fix, undo
from lorakit.errors import DataError


def draw(folder: Path, *names: str):
    """放几张内容不同的好图，不写描述。"""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(list(name.encode())).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC).save(path)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def said(records: list[Record], folder: Path) -> dict[str, str]:
    return {r.path.relative_to(folder).as_posix(): r.caption for r in records}


def lines(*rows: dict | str) -> str:
    return "\n".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows)


ONE = {"file_name": "a.png", "text": "一只猫"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.caption", "一只猫\n"),
        ("a.CAPTION", "\ufeff一只猫"),
        ("a.json", '{"caption": "一只猫", "text": "一只猫", "seed": 3}'),
        ("a.json", '{"text": "一只猫\\n"}'),
        ("a.json", '{"prompt": " 一只猫 ", "caption": null}'),
        ("metadata.jsonl", lines(ONE) + "\r\n\n"),
        ("metadata.jsonl", "\ufeff" + lines({"file_name": "./a.png", "prompt": "一只猫"})),
        ("metadata.csv", "file_name,text\r\na.png,一只猫\r\n"),
        ("metadata.csv", "\ufefflabel,caption,file_name\n3,一只猫,a.png\n,,\n"),
        ("metadata.csv", 'file_name,text\n"a.png","一只猫"'),
    ],
)
def test_each_source_is_read(tmp_path, name, content):
    draw(tmp_path, "a.png")
    write(tmp_path / name, content)
    records, report = inspect(tmp_path)
    assert said(records, tmp_path) == {"a.png": "一只猫"} and not report.problems
    assert [r.caption for r in load_records(tmp_path, "剪纸")] == ["剪纸，一只猫"]


def test_tables_in_nested_folders(tmp_path):
    draw(tmp_path, "a.png", "images/b.png", "images/深/か\u3099.png", "images/a.png")
    write(tmp_path / "metadata.jsonl", lines(ONE, {"file_name": "images/b.png", "text": "二"}))
    rows = 'file_name,text\na.png,"三，""引号"", 逗号\n换行"\n深\\が.png,四\n'
    write(tmp_path / "images/metadata.csv", rows)
    records, report = inspect(tmp_path)
    assert not report.problems
    assert said(records, tmp_path) == {
        "a.png": "一只猫", "images/b.png": "二", "images/深/か\u3099.png": "四",
        "images/a.png": '三，"引号", 逗号，换行',
    }  # fmt: skip


BAD_LINES = {
    "bad json": ('{"file_name": "b.png", "text": "少了括号"', "metadata_line", "JSON"),
    "python": ("{'file_name': 'b.png', 'text': '二'}", "metadata_line", "JSON"),
    "list": ('["b.png", "二"]', "metadata_line", "{}"),
    "deep": ("[" * 100_000, "metadata_line", "太深"),
    "half a character": ('{"file_name": "b.png", "text": "\\ud800"}', "metadata_line", "半个字"),
    "number": ("1" * 5000, "metadata_line", "JSON"),
    "no name": ('{"image": "b.png", "text": "二"}', "metadata_line", "image、text"),
    "absolute": ('{"file_name": "/data/b.png", "text": "二"}', "metadata_path", "绝对路径"),
    "windows": ('{"file_name": "C:\\\\x\\\\b.png", "text": "二"}', "metadata_path", "绝对路径"),
    "parent": ('{"file_name": "../b.png", "text": "二"}', "metadata_path", "“..”"),
    "parent 2": ('{"file_name": "x\\\\..\\\\b.png", "text": "二"}', "metadata_path", "“..”"),
    "missing": ('{"file_name": "gone.png", "text": "二"}', "metadata_file", "找不到"),
    "case": ('{"file_name": "B.PNG", "text": "二"}', "metadata_file", "是不是 b.png"),
    "no suffix": ('{"file_name": "b", "text": "二"}', "metadata_file", "是不是 b.png"),
    "nul": ('{"file_name": "b\\u0000.png", "text": "二"}', "metadata_file", "找不到"),
    "format": ('{"file_name": "c.gif", "text": "二"}', "metadata_file", "格式"),
    "twice": (lines(ONE), "metadata_twice", "第 1 行"),
    "kind": ('{"file_name": "b.png", "text": ["二"]}', "caption_kind", "一句话"),
    "empty": ('{"file_name": "b.png", "text": " \\u200b"}', "caption_empty", "空的"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_line_is_one_error_naming_it(tmp_path, name):
    line, code, words = BAD_LINES[name]
    draw(tmp_path, "a.png", "b.png")
    if name == "format":
        write(tmp_path / "c.gif", b"GIF89a")
    write(tmp_path / "b.txt", "二")
    table = write(tmp_path / "metadata.jsonl", lines(ONE, "", line))
    records, report = inspect(tmp_path)
    assert [(p.code, p.path) for p in report.errors if p.code != "not_used"] == [(code, table)]
    assert "metadata.jsonl：第 3 行" in report.text() and words in report.text()
    assert "a.png" in said(records, tmp_path)
    with pytest.raises(DataError, match="第 3 行"):
        load_records(tmp_path)


def test_line_without_caption(tmp_path):
    draw(tmp_path, "a.png", "b.png")
    write(tmp_path / "b.txt", "标签表里可以没有描述")
    table = lines({"file_name": "a.png", "label": 1}, {"file_name": "b.png", "label": 2})
    write(tmp_path / "metadata.jsonl", table)
    records, report = inspect(tmp_path)
    assert [p.code for p in report.problems] == ["caption_missing"] and len(records) == 1
    assert "metadata.jsonl 第 1 行" in report.text()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("file_name,text\na.png,一只猫\nb.png,a cat, sitting\n", "第 3 行有 3 格"),
        ("file_name,text\na.png,一只猫\nb.png,\n", "第 3 行的描述是空的"),
        ("file_name,text\na.png,一只猫\n,二\n", "第 3 行没有 file_name"),
        ("file_name,text\na.png,一只猫\n../b.png,二\n", "第 3 行的 file_name 里有“..”"),
        ("name;text\na.png;一只猫\n", "第 1 行是列名，里面没有 file_name"),
        ('file_name,text\na.png,"' + "长" * 140_000 + "\n", "第 2 行读不懂"),
        ("file_name,text\na.png,一只红猫坐着\n".encode("gbk"), "GBK"),
        ("", "空的"),
    ],
)
def test_bad_csv(tmp_path, content, words):
    draw(tmp_path, "a.png", "b.png")
    write(tmp_path / "b.caption", "二")
    write(tmp_path / "metadata.csv", content)
    _, report = inspect(tmp_path)
    assert report.errors and words in report.text()


def test_unreadable_table_is_told_once(tmp_path):
    """一行也读不懂时只说一次；每张图都有自己的描述，就说可以移走。"""
    draw(tmp_path, "a.png")
    write(tmp_path / "metadata.jsonl", "不是 JSON\n" * 1000)
    report = inspect(tmp_path)[1]
    assert [p.code for p in report.errors] == ["not_used", "caption_missing"]
    assert "第 1 行不是合格的 JSON" in report.text()
    write(tmp_path / "a.txt", "一只猫")
    report = inspect(tmp_path)[1]
    (problem,) = report.problems
    assert (problem.severity, problem.code) == ("error", "not_used") and "移走" in problem.mend


def test_same_caption_twice_is_fine(tmp_path):
    draw(tmp_path, "a.png")
    for name in ("a.txt", "a.caption"):
        write(tmp_path / name, "一只猫\n")
    write(tmp_path / "a.json", '{"text": "一只猫"}')
    write(tmp_path / "metadata.jsonl", lines(ONE))
    records, report = inspect(tmp_path)
    assert said(records, tmp_path) == {"a.png": "一只猫"} and not report.problems


def test_two_captions_that_differ(tmp_path):
    draw(tmp_path, "a.png", "in/b.png")
    write(tmp_path / "a.txt", "一只狗")
    write(tmp_path / "metadata.jsonl", lines(ONE, {"file_name": "in/b.png", "text": "二"}))
    write(tmp_path / "in/metadata.csv", "file_name,text\nb.png,三\n")
    report = inspect(tmp_path)[1]
    assert [(p.code, p.path.name) for p in report.problems] == [
        ("caption_conflict", "a.png"), ("caption_conflict", "b.png"),
    ]  # fmt: skip
    assert "a.txt（“一只狗”）和 metadata.jsonl 第 1 行（“一只猫”）" in report.text()
    with pytest.raises(DataError, match="描述写了两次"):
        load_records(tmp_path)


def test_sidecars_that_differ_are_an_error(tmp_path):
    draw(tmp_path, "a.png")
    write(tmp_path / "a.json", '{"caption": "三"}')
    write(tmp_path / "a.caption", "二")
    write(tmp_path / "a.txt", "一")
    records, report = inspect(tmp_path)
    assert said(records, tmp_path) == {"a.png": "一"}
    assert {(p.code, p.path.name) for p in report.errors} == {
        ("caption_conflict", "a.caption"), ("caption_conflict", "a.json")
    }  # fmt: skip
    assert all("移走" in p.mend for p in report.errors)


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("a.caption", "一只红猫坐着".encode("gbk"), "caption_encoding", "GBK"),
        ("a.caption", " \n", "caption_empty", "空"),
        ("a.json", '{"caption": "一只猫"', "caption_json", "第"),
        ("a.json", "一只猫", "caption_json", "caption"),
        ("a.json", '{"caption": 3}', "caption_kind", "一句话"),
        ("a.json", '{"caption": ""}', "caption_empty", "空"),
        ("a.json", '{"tags": []}', "caption_missing", "a.json 里没有"),
        ("a.json", '["一只猫"]', "caption_missing", "a.json 里没有"),
        ("a.json", '{"caption": "一只猫"}'.encode("utf-16"), "caption_encoding", "UTF-16"),
    ],
)
def test_bad_sidecar_is_one_error(tmp_path, name, content, code, words):
    draw(tmp_path, "a.png")
    write(tmp_path / name, content)
    records, report = inspect(tmp_path)
    assert not records and [p.code for p in report.problems] == [code]
    assert words in report.text() and "怎么改" in report.text()


ROWS = {
    "metadata.csv": "file_name,text,caption\na.png,一只猫,{}\n",
    "a.json": '{{"caption": "一只猫", "prompt": "{}"}}',
    "m.jsonl": '{{"image": "a.png", "text": "一只猫", "prompt": "{}"}}\n',
}


@pytest.mark.parametrize("name", ROWS)
def test_two_captions_in_one_row_have_to_agree(tmp_path, name):
    draw(tmp_path, "a.png")
    write(tmp_path / name, ROWS[name].format("一只狗"))
    assert "caption_conflict" in [p.code for p in inspect(tmp_path)[1].errors]
    write(tmp_path / name, ROWS[name].format("一只猫"))
    records, report = inspect(tmp_path)
    assert said(records, tmp_path) == {"a.png": "一只猫"} and not report.errors


def test_json_without_caption_beside_txt(tmp_path):
    draw(tmp_path, "a.png")
    write(tmp_path / "a.txt", "一只猫")
    write(tmp_path / "a.json", '{"tags": ["cat"]}')
    write(tmp_path / "dataset.json", "{}")  # 不和图同名，不看
    write(tmp_path / "lonely.caption", "没有图")
    records, report = inspect(tmp_path)
    assert len(records) == 1 and not report.warnings
    found = {(p.code, p.path.name) for p in report.errors}
    assert found == {("not_used", "a.json"), ("caption_orphan", "lonely.caption")}
    assert [p.code for p in report.notes] == ["others"]


def test_table_link_outside(tmp_path):
    draw(tmp_path / "in", "a.png")
    write(tmp_path / "metadata.jsonl", lines(ONE))
    (tmp_path / "in/metadata.jsonl").symlink_to(tmp_path / "metadata.jsonl")
    report = inspect(tmp_path / "in")[1]
    assert [p.code for p in report.errors] == ["link_outside", "caption_missing"]


def test_relative_folder(tmp_path, monkeypatch):
    draw(tmp_path / "in", "a.png")
    write(tmp_path / "in/metadata.jsonl", lines(ONE))
    monkeypatch.chdir(tmp_path)
    assert not inspect("in")[1].problems and not inspect("./in/")[1].problems
    monkeypatch.chdir(tmp_path / "in")
    assert not inspect(".")[1].problems


SEEDS = {
    "metadata.jsonl": lines(ONE, {"file_name": "b.png", "text": "二 🐱", "n": [1, {"x": None}]}),
    "metadata.csv": 'file_name,text\na.png,"一, ""只""\n猫"\nb.png,二 🐱\n',
    "a.json": '{"caption": "一只猫 \\ud83d\\udc31", "tags": [1, 2]}',
    "a.caption": "一只猫 🐱\n第二行",
}


@pytest.mark.parametrize("name", SEEDS)
def test_random_damage_never_escapes(tmp_path, name):
    """随机改坏：报告总写得出来、存得下，--fix 不会让报告变糟，--undo 总能还原。"""
    draw(tmp_path, "a.png", "b.png")
    write(tmp_path / "b.txt", "二 🐱")
    chance = random.Random(name)
    for _ in range(60):
        bad = bytearray(
            SEEDS[name].encode(chance.choice(["utf-8", "utf-8-sig", "utf-16", "gb18030"]))
        )
        for _ in range(chance.randint(0, 4)):
            bad[chance.randrange(len(bad))] = chance.choice([0, 10, 34, 44, 92, 123, 200, 255])
        content = bytes(bad[: chance.choice([len(bad), chance.randrange(len(bad))])])
        write(tmp_path / name, content)
        report = inspect(tmp_path, "ohwx")[1]
        assert report.text().encode()
        if fix(tmp_path, "ohwx").startswith("改好了"):
            assert inspect(tmp_path, "ohwx")[1].usable >= report.usable
            undo(tmp_path)
        assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize(
    "stray", ["A.txt", "a .txt", "a(1).txt", "a（1）.txt", "a - 副本.txt", "ａ.txt", "a.png.txt",
              "a.heic.txt", "a.HIF.txt", "a.avif.caption",
              "a.txt.txt", "a (2).caption"]
)  # fmt: skip
def test_a_caption_named_a_little_differently_is_pointed_to(tmp_path, stray):
    draw(tmp_path, "a.png", "ab.png")
    write(tmp_path / "ab.txt", "二")
    write(tmp_path / stray, "一")
    _, report = inspect(tmp_path)
    (error,) = report.errors
    assert (error.code, error.path.name) == ("caption_missing", "a.png")
    assert error.mend == f"把 {stray} 改名为 a{Path(stray).suffix}"
    (tmp_path / stray).rename(tmp_path / "b.txt")  # 别的名字不乱猜
    assert "改名" not in inspect(tmp_path)[1].errors[0].mend


def test_a_folder_in_the_place_of_a_caption(tmp_path):
    draw(tmp_path, "a.png")
    (tmp_path / "a.txt").mkdir()
    assert "a.txt 是文件夹，不是文件" in inspect(tmp_path)[1].text()


@pytest.mark.parametrize(
    ("start", "kind"), [(b"PK\3\4", "压缩包或 Word"), (b"%PDF-1.7", "PDF"), (b"\x89PNG", "PNG"),
                        (b"\xd0\xcf\x11\xe0", "旧版 Word"), (b"\xff\xd8\xff\xe0", "JPEG")]
)  # fmt: skip
def test_a_caption_that_is_another_kind_of_file(tmp_path, start, kind):
    draw(tmp_path, "a.png")
    write(tmp_path / "a.txt", start + bytes(range(200)))
    (error,) = inspect(tmp_path)[1].errors
    assert error.code == "caption_kind" and kind in error.reason and "纯文本" in error.mend


TWICE = {  # 同一个名字写着两个值：各种解析的库都悄悄用后一个
    "metadata.jsonl": '{"file_name": "a.png", "text": "甲", "text": "乙"}',
    "a.json": '{"caption": "甲", "caption": "乙"}',
    "all.json": '{"a.png": "甲", "a.png": "乙"}',
    "list.json": '[{"image": "a.png", "caption": "甲", "caption": "乙"}]',
    "rows.jsonl": '{"image": "a.png", "caption": "甲", "caption": "乙"}',
    "metadata.csv": "file_name,text,text\na.png,甲,乙\n",
    "all.csv": "image,caption,caption\na.png,甲,乙\n",
}


@pytest.mark.parametrize("name", TWICE)
def test_a_name_with_two_values_is_never_chosen_in_silence(tmp_path, name):
    draw(tmp_path, "a.png")
    write(tmp_path / name, TWICE[name])
    records, report = inspect(tmp_path)
    assert records == [] and "写了两次" in report.text(("error", "warning"))


def test_the_same_value_twice_is_fine(tmp_path):
    draw(tmp_path, "a.png")
    write(tmp_path / "metadata.jsonl", '{"file_name": "a.png", "text": "甲", "text": "甲"}')
    assert said(load_records(tmp_path), tmp_path) == {"a.png": "甲"}


@pytest.mark.parametrize("encoding", ["gbk", "utf-8-sig"])
def test_a_csv_of_a_spreadsheet(tmp_path, encoding):
    """中文版的 Excel：分号隔开，GBK 或带 BOM；GBK 的说清楚、--fix 换好以后读得对。"""
    draw(tmp_path, "a.png")
    write(
        tmp_path / "metadata.csv", 'file_name;text\r\na.png;"一只猫；在睡觉"\r\n'.encode(encoding)
    )
    if encoding == "gbk":
        assert inspect(tmp_path)[1].errors[0].code == "caption_encoding"
        fix(tmp_path)
    assert said(load_records(tmp_path), tmp_path) == {"a.png": "一只猫；在睡觉"}


@pytest.mark.parametrize("stray", ["\x1a", "\u202e", "\u200b", "\xad", "\x07", "\U000e0041"])
@pytest.mark.parametrize("name", ["a.txt", "a.json", "metadata.jsonl", "all.csv"])
def test_letters_nobody_sees_do_not_reach_the_model(tmp_path, stray, name):
    draw(tmp_path, "a.png")
    caption = f"一只{stray}猫{stray}"
    row = {"file_name": "a.png", "text": caption}
    text = {"a.txt": caption, "all.csv": f"file_name,text\na.png,{caption}\n"}
    write(tmp_path / name, text.get(name, json.dumps(row)))
    assert said(load_records(tmp_path), tmp_path) == {"a.png": "一只猫"}
