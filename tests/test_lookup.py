"""在五本里查一件事：用自己的话，头几处就是讲它的地方；点过去的那一格真的有。"""

from pathlib import Path

import nbformat
import pytest
from notebook_tools import BOOKS

from lorakit import LorakitError, lab
from lorakit.lab import lookup

HOME = BOOKS[0].parent


@pytest.mark.parametrize(
    "asked, book, section, fold",
    [
        ("爆显存", "03", "低显存", ""),
        ("OOM", "05", "排错手册", "日志、别的软件里的英文"),
        ("内存要多大", "03", "低显存", "主机的内存要多大"),
        ("ComfyUI 全黑", "05", "排错手册", ""),
        ("要多少张照片", "02", "你要教什么", ""),
        ("打标", "02", "描述", ""),  # 社区的叫法
        ("画出来的图能不能卖", "04", "许可与门禁", "能不能卖"),
        ("set_adapters", "05", "叠加与合并", ""),
        ("关电脑 接着练", "03", "接着练", ""),
        ("学习率", "01", "学习率", ""),
        ("断点续训", "03", "接着练", ""),  # 口头的说法
        ("model.precision", "05", "排错手册", ""),
        ("ModuleNotFoundError", "05", "排错手册", "明明装好了"),  # 报错的原话
        ("No space left on device", "05", "排错手册", "显卡、内存、硬盘"),
        ("WinError 1455", "03", "低显存", "页面文件"),
        ("UnicodeDecodeError", "02", "体检", "换成英文就能跑"),
        ("model_index.json", "03", "下载", "单个底模文件"),
        ("mapping values are not allowed", "03", "正式开练", "YAML"),
        ("张张一样", "05", "四个旋钮", "种子没换"),  # 问的人自己的话
        ("电费", "03", "面板", "电费"),
        ("暂停", "03", "面板", "暂停"),
        ("webui", "05", "ComfyUI", "webui"),
        ("练完自动关机", "03", "面板", "自动关机"),
        ("不戴眼镜", "02", "", "摘得掉"),
    ],
)
def test_finds_where_it_is_taught(asked, book, section, fold):
    found = lookup.search(asked, lookup.passages(HOME))
    assert 0 < len(found) <= lookup.MOST
    assert any(
        one.file.startswith(book) and section in one.heading and fold in one.fold
        for one in found[:4]
    ), [one.place for one in found]


def test_nothing_is_left_out():
    """每一段都在：折着的一段不少，文字几乎全在；网址指到的那一格真的有。"""
    for book in BOOKS:
        cells = nbformat.read(book, as_version=4).cells
        said = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        mine = [one for one in lookup.passages(HOME) if one.file == book.name]
        assert len({one.heading for one in mine}) > 10
        assert sum(bool(one.fold) and one.first for one in mine) == said.count("<details>")
        assert sum(map(len, (one.text for one in mine))) > 0.8 * len(said)
        assert {one.link for one in mine} <= {f"{book.name}#cell-id={cell.id}" for cell in cells}


def test_what_the_reader_sees(capsys, monkeypatch, shown):
    monkeypatch.chdir(HOME)
    lab.find("显存 <b>")
    bundle = shown[-1]
    assert "03 的“3.9 低显存”" in bundle["text/plain"]
    assert 'href="03_train_qwen.ipynb#cell-id=' in bundle["text/html"]
    assert "<b>" not in bundle["text/html"].replace("<b></b>", "")


def test_without_words_it_says_how():
    for given in ((), ("",), ("  ",)):
        with pytest.raises(LorakitError, match="写在引号里"):
            lab.find(*given)


@pytest.mark.parametrize("nothing", ["？？", "zzqqx"])
def test_nothing_found_says_so(nothing, monkeypatch):
    monkeypatch.chdir(HOME)
    with pytest.raises(LorakitError, match="换一种说法"):
        lab.find(nothing)


def test_without_the_books(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lookup._home() == HOME, "在别的文件夹里运行，用仓库里的"
    monkeypatch.setattr(lookup, "ROOT", Path(tmp_path))
    with pytest.raises(LorakitError, match="没有找到练习册"):
        lab.find("显存")


def test_a_wrecked_book_is_named(tmp_path, monkeypatch):
    (tmp_path / "01_concepts.ipynb").write_text('{"cells": [{"cell_type"', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LorakitError, match="读不出来"):
        lab.find("显存")
