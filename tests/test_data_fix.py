"""--fix 只做安全的修改，--undo 一字节不差地改回去；中断、被人改过、写不进都不丢东西。"""

import json
import os
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit.cli import main
from lorakit.data import fix as data_fix
from lorakit.data import inspect, read_image
from lorakit.data.fix import fix, undo
from lorakit.errors import DataError, LorakitError

CAT = "一只红色的猫坐在窗台上"


def noise(seed: int, mode: str = "RGB") -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC).convert(mode)


def turned() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags


def snapshot(folder: Path) -> dict:
    """文件夹里的一切：内容、时间、权限；隐藏的也算。"""
    return {
        path.relative_to(folder).as_posix(): (
            path.is_file() and path.read_bytes(),
            path.is_file() and path.stat().st_mtime_ns,
            path.stat().st_mode,
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def messy(tmp_path) -> Path:
    """什么毛病都有一点的文件夹。"""
    folder = tmp_path / "我的 图"
    (folder / "里面").mkdir(parents=True)
    noise(0).save(folder / "good.png")
    noise(1).save(folder / "turned.jpg", exif=turned(), quality=95)
    noise(2, "CMYK").save(folder / "print.jpg", quality=95)
    Image.fromarray(np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))).save(
        folder / "里面/deep.png"
    )
    noise(3, "P").save(folder / "palette.png")
    clear = noise(4, "RGBA")
    clear.putalpha(100)
    clear.save(folder / "里面/clear.webp", lossless=True)
    frames = [noise(5), noise(6)]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    (folder / "half.png").write_bytes((folder / "good.png").read_bytes()[:60])
    (folder / "page.jpg").write_bytes(b"<!DOCTYPE html>404")
    noise(7).resize((8, 8)).save(folder / "tiny.png")
    for i, path in enumerate(sorted(folder.rglob("*.*"))):
        path.with_suffix(".txt").write_text(f"{CAT}，第 {i} 张\n", encoding="utf-8")
    (folder / "good.txt").write_bytes(f"{CAT}\r\n".encode("gbk"))
    (folder / "turned.txt").write_bytes(f"ohwx，{CAT}".encode("utf-16"))
    (folder / "print.txt").write_bytes(b"\xef\xbb\xbf" + CAT.encode())
    (folder / "palette.txt").write_bytes("un café déjà vu".encode("latin-1"))  # 认不准
    (folder / "里面/deep.txt").unlink()
    (folder / "里面/deep.json").write_text('{"seed": 3, "caption": "灰色渐变"}', encoding="utf-8")
    (folder / "readme.txt").write_bytes("不是描述，别碰它".encode("gbk"))
    os.chmod(folder / "good.txt", 0o600)
    for path in folder.rglob("*.*"):
        os.utime(path, ns=(10**18, 10**18 + 123_456_789))
    return folder


def test_check_alone_changes_nothing(messy, capsys):
    before = snapshot(messy)
    assert main(["check", str(messy), "--trigger", "ohwx"]) == 1
    assert snapshot(messy) == before


def test_fix_then_undo_is_byte_for_byte(messy, capsys):
    before = snapshot(messy)
    pixels = {p.name: np.asarray(read_image(p), int) for p in messy.rglob("*.[pjw]*g*")
              if p.stem not in ("half", "page", "tiny")}  # fmt: skip
    main(["check", str(messy), "--fix", "--trigger", "ohwx"])
    said = capsys.readouterr().out
    for words in ("从 GBK 换成 UTF-8", "从 UTF-16 换成", "带 BOM", "按 EXIF 转正", "从 CMYK 换成",
                  "从 16 位换成", "从 P 模式换成", "去掉透明", "移走：",
                  "--undo"):  # fmt: skip
        assert words in said, words
    records, report = inspect(messy, "ohwx")
    errors = {(p.code, p.path.name) for p in report.errors}
    assert errors == {("caption_encoding", "palette.txt")}  # 认不准的不猜
    assert all(r.caption.startswith("ohwx，") for r in records)
    assert (messy / "turned.txt").read_text(encoding="utf-8") == f"ohwx，{CAT}"  # 不加第二个
    assert (messy / "good.txt").read_bytes() == f"ohwx，{CAT}\r\n".encode()
    assert json.loads((messy / "里面/deep.json").read_text(encoding="utf-8")) == {
        "seed": 3, "caption": "ohwx，灰色渐变",
    }  # fmt: skip
    assert {p.name for p in (messy / ".lorakit-moved").iterdir()} == {
        "half.png", "half.txt", "page.jpg", "page.txt", "tiny.png", "tiny.txt",
    }  # fmt: skip
    assert {p.code for p in report.notes} <= {"animation", "others"}
    for name, array in pixels.items():  # 看上去没有变：无损的一点不差，JPEG 差得看不出
        path = next(messy.glob(f"**/{name}"))
        apart = np.abs(np.asarray(read_image(path), int) - array)
        assert apart.mean() < 1.5 if path.suffix == ".jpg" else apart.max() == 0
    after = snapshot(messy)
    untouched = {"readme.txt", "good.png", "moving.webp", "palette.txt"}
    assert {name for name in before if after.get(name) == before[name]} >= untouched
    main(["check", str(messy), "--undo"])
    assert "还原了" in capsys.readouterr().out
    assert snapshot(messy) == before


def test_a_clock_set_back_keeps_the_order_of_mending(tmp_path, monkeypatch):
    """第二次修之前钟往回拨了一天：撤销仍然从最近的一次开始，一步步回到原样。"""
    hours, real = iter([24, 0, 0]), data_fix.datetime

    class Clock(real):
        @classmethod
        def now(cls):
            return real.now() + timedelta(hours=next(hours))

    monkeypatch.setattr(data_fix, "datetime", Clock)
    noise(0).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("一只红色的猫坐着".encode("gbk"))
    states = [snapshot(tmp_path)]
    for word in ("", "ohwx", "剪纸"):
        assert "改好了" in fix(tmp_path, word)
        states.append(snapshot(tmp_path))
    assert (tmp_path / "a.txt").read_text("utf-8").startswith("剪纸")
    for state in states[-2::-1]:
        undo(tmp_path)
        assert snapshot(tmp_path) == state


def test_fix_twice_then_undo_twice(messy):
    first = snapshot(messy)
    fix(messy)
    second = snapshot(messy)
    assert "没有可以自动修的" in fix(messy)
    assert snapshot(messy) == second
    assert "ohwx" in fix(messy, "ohwx")
    assert "更早还有 1 次" in undo(messy)
    assert snapshot(messy) == second
    undo(messy)
    assert snapshot(messy) == first
    with pytest.raises(DataError, match="没有可以撤销"):
        undo(messy)


TABLES = {
    "metadata.jsonl": (
        '{"file_name": "a.png", "text": "一只猫", "label": 1}\r\n坏的\r\n\r\n'
        '{"file_name": "b.png", "text": "ohwx 狗"}\r\n',
        '{"file_name": "a.png", "text": "ohwx，一只猫", "label": 1}\r\n坏的\r\n\r\n'
        '{"file_name": "b.png", "text": "ohwx 狗"}\r\n',
    ),
    "metadata.csv": (
        'file_name,text,label\n"a.png",一只猫,1\nb.png,"ohwx, ""狗""",2\n',
        'file_name,text,label\na.png,ohwx，一只猫,1\nb.png,"ohwx, ""狗""",2\n',
    ),
}


@pytest.mark.parametrize(
    "content",
    [
        "一只红色的猫坐在窗台上，看着外面的雨".encode()[:-1],  # 复制时少了最后一个字节
        "剪纸风格，一只红猫".encode().replace("红".encode(), b"\xc8"),
        "un café, déjà vu à côté".encode("latin-1"),
        b"\xff\xfea",  # 半个 UTF-16
    ],
)
def test_unsure_encodings_are_left_alone(tmp_path, content):
    noise(0).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(content)
    before = snapshot(tmp_path)
    assert "什么也没有改" in fix(tmp_path, "ohwx")
    assert snapshot(tmp_path) == before


ZEROS = {  # 文件里的字节 -> --fix 之后的；两种都读得通的不动
    b"a cat\0 dog": b"a cat dog", "一只\0猫，在沙发上".encode(): "一只猫，在沙发上".encode(),
    b"a cat dog\0": None, "一只猫".encode("utf-32"): "一只猫".encode(),
    b"\0\0\xfe\xff" + "a 猫".encode("utf-32-be"): "a 猫".encode(),
}  # fmt: skip


@pytest.mark.parametrize("raw", ZEROS)
def test_zero_bytes_and_utf32_never_become_other_words(tmp_path, raw):
    """按 UTF-16 读 a cat dog 加一个零字节，会变成五个汉字。"""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(raw)
    assert [p.code for p in inspect(tmp_path)[1].errors] == ["caption_encoding"]
    assert main(["check", str(tmp_path), "--fix"]) == (ZEROS[raw] is None)
    assert (tmp_path / "a.txt").read_bytes() == (ZEROS[raw] or raw)


@pytest.mark.parametrize(
    "text", ["猫在跑", CAT, "水墨，山水", f"A cat，{CAT}", "a red cat, 猫咪在睡觉"]
)
@pytest.mark.parametrize("encoding", ["gbk", "utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_sure_encodings_become_utf8(tmp_path, text, encoding):
    noise(0).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(f"{text}\n".encode(encoding))
    fix(tmp_path)
    assert (tmp_path / "a.txt").read_bytes() == f"{text}\n".encode()


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "utf-16"])
def test_trigger_in_tables(tmp_path, name, encoding):
    for i, stem in enumerate("ab"):
        noise(i).save(tmp_path / f"{stem}.png")
    content, expected = TABLES[name]
    (tmp_path / name).write_bytes(content.encode(encoding))
    before = snapshot(tmp_path)
    fix(tmp_path, "ohwx")
    assert (tmp_path / name).read_bytes().decode() == expected
    undo(tmp_path)
    assert snapshot(tmp_path) == before


def test_a_look_alike_trigger_is_left_to_the_report(tmp_path):
    noise(0).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("ｏｈｗｘ 猫", encoding="utf-8")
    assert "没有可以自动修的" in fix(tmp_path, "ohwx")  # 前面再加一个就重了
    assert (tmp_path / "a.txt").read_text("utf-8") == "ｏｈｗｘ 猫"


def test_row_of_a_moved_picture_is_a_warning(tmp_path):
    noise(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    rows = [{"file_name": f"{n}.png", "text": f"{CAT}{n}"} for n in "ab"]
    text = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8")
    fix(tmp_path)
    records, report = inspect(tmp_path)
    assert len(records) == 1 and not report.errors
    assert [p.code for p in report.warnings] == ["metadata_moved"]
    assert "第 2 行" in report.text()


def test_moved_twice_keeps_both(tmp_path):
    for content in (b"", b"<html>"):
        (tmp_path / "a.png").write_bytes(content)
        fix(tmp_path)
    moved = tmp_path / ".lorakit-moved"
    assert {p.name: p.read_bytes() for p in moved.iterdir()} == {"a.png": b"", "a-2.png": b"<html>"}
    undo(tmp_path)
    with pytest.raises(DataError, match=r"a\.png 在修改之后又变了"):
        undo(tmp_path)  # 先前那张要放回的地方已经有了另一张


def test_shared_caption_and_links_stay(tmp_path):
    noise(0).save(tmp_path / "a.png")
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "a.txt").write_text(CAT, encoding="utf-8")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    fix(tmp_path)
    assert (tmp_path / "a.txt").is_file() and (tmp_path / "b.png").is_symlink()
    assert (tmp_path / "b.txt").is_symlink() and not (tmp_path / "a.jpg").exists()


def test_undo_refuses_to_lose_later_edits(messy):
    fix(messy)
    (messy / "good.txt").write_text("我又改了一遍", encoding="utf-8")
    after = snapshot(messy)
    with pytest.raises(DataError, match=r"good\.txt 在修改之后又变了"):
        undo(messy)
    assert snapshot(messy) == after
    (messy / "good.txt").unlink()
    undo(messy)
    assert (messy / "good.txt").read_bytes().decode("gbk") == f"{CAT}\r\n"


def test_undo_refuses_without_the_originals(messy):
    fix(messy)
    (messy / ".lorakit-moved/half.png").unlink()
    next(messy.glob(".lorakit-undo/*/old/good.txt")).write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        undo(messy)
    assert "half.png 的原件" in str(caught.value) and "good.txt 的原件" in str(caught.value)
    next(messy.glob(".lorakit-undo/*/manifest.json")).write_text("{")
    with pytest.raises(DataError, match="清单"):
        undo(messy)


class Killed(BaseException):
    """当作断电：谁也不该接住它。"""


def killing(real, after: int):
    """第 after 次调用时断电的 real。"""
    calls = iter(range(after))

    def call(*args):
        if next(calls, None) is None:
            raise Killed
        return real(*args)

    return call


@pytest.mark.parametrize("stop", [0, 1, 4, 9, 13])
def test_killed_in_the_middle_can_be_undone(messy, monkeypatch, stop):
    """换到第几个时断掉都能全部还原；还原到一半断掉，再来一次也行。"""
    before = snapshot(messy)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killing(os.replace, stop))
        with pytest.raises(Killed):
            fix(messy, "ohwx")
    if stop:  # 第一次改名让原件和清单生效；在它之前什么也没有改
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killing(os.replace, stop // 2))
            with pytest.raises(Killed) if stop > 1 else nullcontext():
                undo(messy)
        if stop > 1:
            undo(messy)
        assert snapshot(messy) == before
    now = snapshot(messy)
    assert {name: now.get(name) for name in before} == before


def test_full_disk_changes_nothing(messy, monkeypatch, capsys):
    before = snapshot(messy)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data_fix.shutil, "copy2", full)
    assert main(["check", str(messy), "--fix"]) == 1
    assert "写不进" in capsys.readouterr().err
    now = snapshot(messy)
    assert {name: now.get(name) for name in before} == before


def test_stopped_while_changing_says_how_to_undo(messy, monkeypatch):
    before, real = snapshot(messy), os.replace

    def refuse(source, target):
        if Path(target).name == "good.txt":
            raise PermissionError(13, "Permission denied")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(LorakitError, match=r"good\.txt 时停下了.*--undo"):
            fix(messy)
    undo(messy)
    assert snapshot(messy) == before


def test_missing_folder_and_both_options(tmp_path, capsys):
    assert main(["check", str(tmp_path / "没有"), "--fix"]) == 1
    assert not (tmp_path / "没有").exists()
    assert main(["check", str(tmp_path / "没有"), "--undo"]) == 1
    assert "没有可以撤销" in capsys.readouterr().err
    assert main(["check", str(tmp_path), "--fix", "--undo"]) == 1
    assert "只能写一个" in capsys.readouterr().err


def test_longest_names(tmp_path):
    name = "长" * 83  # 249 字节，加上后缀正好到文件系统的上限附近
    noise(0).save(tmp_path / f"{name}.png", exif=turned())
    (tmp_path / f"{name}.txt").write_bytes(CAT.encode("gbk"))
    before = snapshot(tmp_path)
    assert "2 个文件" in fix(tmp_path)
    undo(tmp_path)
    assert snapshot(tmp_path) == before
