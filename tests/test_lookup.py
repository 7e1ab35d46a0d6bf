"""在五本里查一件事：用自己的话，头几处就是讲它的地方；点过去的那一格真的有。"""

from pathlib import Path

import nbformat
import pytest
from notebook_tools import BOOKS

from lorakit import LorakitError, lab
from lorakit.lab import lookup, spoken

HOME = BOOKS[0].parent


@pytest.fixture(scope="module")
def books():
    return list(lookup.passages(HOME))


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


SPOKEN = {  # 初学的人的说法，没有一句是标题里抄的 -> 讲它的地方：书、标题或折着的里的字，哪一处都行
    "LoRA 用在 Turbo 上": ["04 换一个家族"],
    "24G 选哪个底模": ["04 第一次选哪个底模"],
    "LoRA 里又没有照片": ["04 没有他的照片"],
    "脸不像": ["04 第七步", "04 练了几百步一点也不像", "05 排错手册"],
    "练多久": ["02 练多少步", "04 什么时候停"],
    "显卡太小": ["03 低显存", "03 显存不够"],
    "怎么停": ["03 停下，再接着练", "04 什么时候停"],
    "能不能商用": ["04 许可与门禁"],
    "手画坏了": ["05 另外二十九样常见的"],
    "颜色发灰": ["04 什么时候停", "05 排错手册"],
    "ComfyUI 里怎么用": ["05 出厂：换写法、ComfyUI", "05 在 ComfyUI、diffusers 里"],
    "两个人一起练": ["04 几个人在一张图里"],
    "效果太弱": ["05 没练够", "05 开关与强度", "05 变弱了", "05 排错手册"],
    "我没显卡咋练": ["05 没有显卡怎么用", "04 选卡，算钱"],
    "脸总长得一样": ["02 画谁都是训练图里那张脸"],
    "给图配文字": ["02 描述怎么写", "02 让机器先写一遍"],
    "自动打标签": ["02 让机器先写一遍"],
    "突然停电了": ["03 停下，再接着练", "03 被杀掉"],
    "要花多少钱": ["04 选卡，算钱"],
    "租服务器": ["04 租、装、上传", "04 选卡，算钱"],
    "照片要裁吗": ["02 分桶与裁剪", "02 练习 1"],
    "照片是横着的": ["02 照片看着是正的"],
    "会不会侵权": ["04 练明星、别人的画", "04 许可与门禁"],
    "几个 LoRA 混着用": ["05 叠加与合并"],
    "Mac 能跑吗": ["03 苹果的电脑"],
    "A 卡能用吗": ["03 AMD 的显卡"],
    "抠图背景": ["02 透明 PNG"],
    "教它修老照片": ["02 修旧照片", "02 编辑：一对一对的图"],
    "选哪个存档": ["03 该用哪个检查点", "05 挑检查点"],
    "磁盘满了": ["03 硬盘要留多少", "03 练完要腾硬盘"],
    "关了浏览器还在跑吗": ["04 关了网页"],
    "触发词没反应": ["02 只写触发词叫不出来", "05 排错手册"],
    "放到 C 站": ["05 发到 Civitai"],
    "模型忘了别的猫": ["04 遗忘与正则"],
    "字写不对": ["02 写好固定的几个字"],
    "蒙版怎么用": ["02 两样帮手"],
    "token 泄露": ["04 令牌"],
    "两张显卡一起跑": ["03 多卡与全量微调"],
    "SD1.5 的经验还管用吗": ["04 从 SD 的教程"],
    "优化器选哪个": ["03 训练循环", "03 Prodigy"],
    "lora 文件放哪": ["05 出厂：换写法", "05 不装 lorakit"],
}


@pytest.mark.parametrize("asked", SPOKEN)
def test_ones_own_words_find_it_among_the_first_three(asked, books):
    found = [f"{one.file[:2]} {one.heading} {one.fold}" for one in lookup.search(asked, books)[:3]]
    wanted = [place.split(" ", 1) for place in SPOKEN[asked]]
    assert any(one.startswith(book) and said in one for one in found for book, said in wanted), (
        found
    )


def test_none_of_them_is_a_heading(books):
    headings = "\n".join(f"{one.heading}\n{one.fold}" for one in books).lower()
    assert len(SPOKEN) >= 25 and not [asked for asked in SPOKEN if asked.lower() in headings]


def test_an_english_word_is_a_whole_word():
    assert "AMD" in spoken.ours("A 卡行吗") and "AMD" not in spoken.ours("LoRA 卡住了")


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
    for given in ((), ("",), ("  ",), (None,)):
        with pytest.raises(LorakitError, match="写在引号里"):
            lab.find(*given)


@pytest.mark.parametrize("given", ["的", "怎么用？", "我想 能不能"])
def test_filler_alone_asks_for_a_word(given):
    with pytest.raises(LorakitError, match="哪里都有：添上一个要紧的词"):
        lab.find(given)


def test_a_long_text_is_not_said_back_whole(monkeypatch):
    monkeypatch.chdir(HOME)
    with pytest.raises(LorakitError, match="没有找到") as error:
        lab.find("zq" * 5000)
    assert len(str(error.value)) < 2 * lookup.LONG


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
