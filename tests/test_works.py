"""我的作品：问一次，记得住；照片收得下，描述写得成，每一次训练各有各的文件夹，证书装得齐。"""

import io
import json
import re
import shlex
import subprocess
import sys
import unicodedata
from concurrent.futures import Future

import pytest
from PIL import Image

from lorakit import data, lab
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import LorakitError
from lorakit.lab.exercises import book_01
from lorakit.lab.notes import notes
from lorakit.lab.works import certificate, checkup, editor, panel, shelf, table, tries, words
from lorakit.results import card, lock
from lorakit.tiny import samples


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """一件作品：十二张照片，还没有描述。"""
    monkeypatch.chdir(tmp_path)
    made = shelf.keep("小橘", trigger="ohwx")
    source = samples.write("ohwx-cat", tmp_path / "source", count=12)
    for number, file in enumerate(sorted(source.glob("*.png"))):
        (made.photos / f"猫 {number:02}.png").write_bytes(file.read_bytes())
    return made


def told(work, count=12):
    """给前 count 张写上描述。"""
    spots = ("左边", "右边", "中间")
    places = ("草地", "大海", "雪地", "夜空")
    for number, path in enumerate(work.pictures()[:count]):
        text = f"一只ohwx 猫在{spots[number % 3]}，背景是{places[(number + number // 6) % 3]}"
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return work


# ---- 问一次，记得住 ----


def test_sample_changes_nothing(shown):
    work = lab.work()
    assert work.sample and "样例" in shown[-1]["text/plain"]
    assert work.prompts(["甲"]) == ["甲"] and work.titles(["乙"]) == ["乙"]
    assert (
        work.folder("这里") == "这里"
        and work.word("ohwx") == "ohwx"
        and work.lora("那里") == "那里"
    )
    work.clean()
    assert "不用改" in shown[-1]["text/plain"]
    for speak in (work.check, work.tries, work.captions):
        speak()
        assert "lab.work()" in shown[-1]["text/plain"]


def test_named_work_is_remembered_by_the_next_book(mine, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    again = shelf.current()
    assert (
        again == mine and again.home == tmp_path / "runs" / "小橘" and len(again.pictures()) == 12
    )
    assert shelf.keep("小橘", trigger="sks").trigger == "sks"
    assert shelf.keep("小橘").trigger == "sks", "没有写的照旧"
    shelf.use_sample()
    assert shelf.current().sample and shelf.names() == ["小橘"]
    assert shelf.keep("小橘").photos == mine.photos, "换回来，什么也没丢"


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", "样例", "长" * 41, 'a"b', "末尾.", "con", "LPT1.x"]
)
def test_names_that_cannot_be_folders_are_refused(name):
    with pytest.raises(LorakitError, match="当不了作品的名字"):
        shelf.keep(name)


@pytest.mark.parametrize("word", ["a, b", "ohwx，猫", '"x', "a\\b", "a\tb", "x" * 41])
def test_triggers_that_would_be_cut_apart_are_refused(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LorakitError, match="触发词要是看得见的一个词"):
        shelf.keep("小橘", trigger=word)
    assert shelf.names() == [] and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "word",
    [
        "cat",
        "Cats",
        "猫",
        "girl",
        "照片",
        "one",
        "my dog",
        "一只小猫",
        "Ｃａｔ",
        "cat_2",
        "女孩",
        "my cat!",
    ],
)
def test_an_ordinary_word_as_a_trigger_is_told_kindly(word, tmp_path, monkeypatch, shown):
    monkeypatch.chdir(tmp_path)
    assert lab.work("小橘", trigger=word).trigger == word, "说一声，不拦着"
    for kind in shown[-1].values():
        assert f"“{word}”是平常的词" in kind and "例如 ohwx" in kind
    board = panel.Panel(shelf.Work())
    board.name.value, board.trigger.value = "小黑", word
    board.set.click()
    assert f"“{word}”是平常的词" in board.said.value and board.work.trigger == word
    board.trigger.value = "ohwx"
    board.set.click()
    assert "平常的词" not in board.said.value


@pytest.mark.parametrize(
    "word",
    [
        "",
        "ohwx",
        "sks",
        "ohwx cat",
        "小橘",
        "zxq7",
        "剪纸风格",
        "catx",
        "猫" * 39 + "龘",
        "Wes",
        "Ames",
    ],
)
def test_a_word_of_ones_own_is_not_remarked_on(word, tmp_path, monkeypatch, shown):
    monkeypatch.chdir(tmp_path)
    lab.work("小橘", trigger=word)
    assert "平常的词" not in shown[-1]["text/plain"]


def test_a_place_where_nothing_can_be_made_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("这里有一个文件", encoding="utf-8")
    with pytest.raises(LorakitError, match="建不了照片的文件夹"):
        shelf.keep("小橘")
    board = panel.Panel(shelf.Work())
    board.name.value = "小橘"
    board.set.click()
    assert "建不了照片的文件夹" in board.said.value, "按了按钮，总要有一句话"


def test_photos_that_went_away_are_missed(mine):
    mine.photos.rename(mine.home / "搬走了")
    assert "不见了" in shelf.current().text() and 'photos="新的地方"' in mine.text()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LorakitError, match="没有这个文件夹"):
        shelf.keep("小橘", photos=tmp_path / "没有")
    assert shelf.names() == []


# ---- 收照片 ----


def photo(kind: str = "JPEG", size=(60, 40), turned: bool = False) -> bytes:
    file, marks = io.BytesIO(), Image.Exif()
    if turned:
        marks[274] = 6
    image = Image.effect_noise(size, 90).convert("RGB")
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
        image.save(file, kind)
    else:
        image.save(file, kind, exif=marks)
    return file.getvalue()


def test_phone_photos_are_taken_as_they_are(mine):
    board = panel.Panel(mine)
    sent = [
        {"name": "IMG_1.HEIC", "content": photo("HEIF", (64, 64))},
        {"name": "小橘 在窗台.jpg", "content": memoryview(photo(turned=True))},
        {"name": "文档.pdf", "content": b"%PDF"},
        {"name": "坏.jpg", "content": b"\xff\xd8\xff"},
    ]
    board.receive(tuple(sent))
    assert "收下了 2 张" in board.said.value and "文档.pdf" in board.said.value
    assert len(mine.pictures()) == 14 and not (mine.photos / "坏.jpg").exists()
    assert data.read_image(mine.photos / "小橘 在窗台.jpg").size == (40, 60), "按拍摄方向转正"
    board.receive({"小橘 在窗台.jpg": {"content": photo()}})
    assert (mine.photos / "小橘 在窗台_2.jpg").exists(), "同名的另一张，两张都留"


def test_odd_photos_are_refused_by_their_own_name_or_fitted(mine):
    board = panel.Panel(mine)
    sent = {"假.jpg": b"%PDF-1.4", "长" * 100 + ".jpg": photo(), "猫 00.jpg": photo()}
    board.receive({name: {"content": content} for name, content in sent.items()})
    said = board.said.value
    assert "收下了 2 张" in said and "没有收“假.jpg”" in said and not board.upload.disabled
    assert str(mine.home) not in said and ".txt 一起删掉" not in said
    assert (mine.photos / f"{'长' * 60}.jpg").is_file(), "太长的名字截短"
    assert (mine.photos / "猫 00_2.jpg").is_file(), "已经有 猫 00.png：同名的会共用一份描述"
    board.receive({"猫 00.jpg": {"content": (mine.photos / "猫 00_2.jpg").read_bytes()}})
    assert len(mine.pictures()) == 14, "同一张再传一次，不多出来"


def test_whatever_goes_wrong_the_button_can_be_pressed_again(mine, monkeypatch):
    board = panel.Panel(mine)
    monkeypatch.setattr(panel, "store", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        board.receive({"a.jpg": {"content": photo()}})
    assert not board.upload.disabled


def test_panel_makes_the_work_that_later_cells_hold(tmp_path, monkeypatch, shown):
    monkeypatch.chdir(tmp_path)
    held = shelf.Work()
    board = panel.Panel(held)
    assert board.second.layout.display == "none"
    board.name.value, board.trigger.value = "a/b", "ohwx"
    board.set.click()
    assert "当不了" in board.said.value and held.sample
    board.name.value = "小橘"
    board.set.click()
    assert not held.sample and held.trigger == "ohwx" and board.second.layout.display == ""
    assert "10 MB" in board.said.value and "runs/小橘/照片" in board.said.value
    board.back.click()
    assert held.sample


def test_photos_are_looked_at_after_the_panel_is_there(mine, shown):
    board, told = panel.Panel(mine), []
    board.said.observe(lambda change: told.append((len(shown), change["new"])), names="value")
    assert not shown and not told, "还没有摆出来，就先不看：十几张大照片要看好几秒"
    board.display()
    assert all(before for before, _ in told), "先摆出面板，再看"
    said = [text for _, text in told]
    assert any("正在看图，第 7 / 12 张" in text for text in said)
    assert any("正在摆小图，第 7 / 12 张" in text for text in said)
    assert "共 12 张照片" in said[-1] and board.sheet.layout.display == ""


# ---- 体检、描述 ----


def test_equal_faults_are_one_line(mine, shown):
    mine.check()
    said = shown[-1]["text/plain"]
    line = next(one for one in said.splitlines() if "没有描述" in one)
    assert "没有描述，12 张" in line and "猫 00.png" in line and said.count("没有描述") == 1
    assert "先改好" in said
    told(mine).check()
    assert checkup.READY in shown[-1]["text/plain"]


def test_editor_writes_one_caption_at_a_time(mine, shown, family):
    board = editor.Editor(mine, mine.pictures(), load_config("tiny-qwen-image"), family, None)
    assert board.text.value == "ohwx " and "还没有写" in board.verdict.value
    assert board.back.value and board.cut.value and board.image.value
    board.next()
    assert board.at == 0 and not list(mine.photos.glob("*.txt")), "空的不写"
    board.text.value = "猫在窗台上"
    assert "没有触发词" in board.verdict.value
    board.text.value = "OHWX 猫在窗台上"
    assert "一字不差" in board.verdict.value
    board.text.value = "ohwx 猫在窗台上，背景是雨天"
    assert "写得好" in board.verdict.value
    board.text._handle_custom_msg({"event": "submit"}, [])
    assert board.at == 1 and editor.said_of(mine.pictures()[0]) == "ohwx 猫在窗台上，背景是雨天"
    board.text.value = "ohwx 猫在草地上，背景是树"
    board.slider.value = 4  # 翻走之前，写了的先存下
    assert board.at == 3 and editor.said_of(mine.pictures()[1]).endswith("背景是树")
    told(mine)
    board.go(11)
    board.text.value = "ohwx 猫在左边，背景是沙滩"
    said = []
    board.saved.observe(lambda change: said.append(change["new"]), names="value")
    board.next()
    assert checkup.READY in board.saved.value
    assert any("都写好了，正在体检：第 5 / 12 张" in one for one in said), "体检的几秒里也有动静"


def test_the_next_photo_is_ready_while_one_writes(mine, family):
    photos = mine.pictures()
    board = editor.Editor(mine, photos, load_config("tiny-qwen-image"), family, None)
    path, job = board._ahead
    assert path == photos[1] and len(job.result()) == 3
    first = board.image.value
    photos[1].unlink()  # 备好的不用再读
    photos[2].write_bytes(b"\xff\xd8\xff")
    board.go(1)
    assert board.saved.value == "" and board.image.value != first
    board.go(2)
    assert photos[2].name in board.saved.value and board.back.layout.display == "none"
    board.go(8)  # 跳着翻
    assert board.back.layout.display == "" and board._ahead[0] == photos[9]


def test_editor_lets_a_model_write_first(mine, family):
    board = editor.Editor(mine, mine.pictures(), None, None, lambda image: "一只猫")
    board.propose()
    assert board.text.value == "ohwx，一只猫" and not list(mine.photos.glob("*.txt"))


def test_editor_opens_at_the_first_without_words(mine):
    told(mine, 5)
    assert editor.Editor(mine, mine.pictures(), None, None, None).at == 5


@pytest.mark.parametrize("size", [(10000, 10), (10, 10000), (1, 1)])
def test_photos_of_any_shape_can_be_looked_at(mine, size):
    Image.new("RGB", size).save(mine.pictures()[0])
    assert len(editor.looks(mine.pictures()[0], None, None)) == 2


def test_two_editors_of_one_work_do_not_undo_each_other(mine):
    told(mine)
    one, two = (editor.Editor(mine, mine.pictures(), None, None, None) for _ in range(2))
    one.text.value = "ohwx 猫在左边，背景是沙滩"
    one.next()
    two.go(1)
    assert editor.said_of(mine.pictures()[0]).endswith("沙滩"), "没有动过的，翻走时不存"


def test_what_cannot_be_saved_stays_in_the_box(mine, monkeypatch):
    board = editor.Editor(mine, mine.pictures(), None, None, None)

    def full(path, text):
        raise LorakitError("写不进：盘满了")

    monkeypatch.setattr(editor, "write_text", full)
    board.text.value = "ohwx 猫在左边，背景是沙滩"
    board.slider.value = 4
    assert board.at == 0 and board.slider.value == 1 and "沙滩" in board.text.value
    assert "盘满了" in board.saved.value


def test_cleaning_can_be_taken_back(mine, shown):
    path = mine.pictures()[0]
    path.with_suffix(".txt").write_bytes("ohwx 猫在窗台上".encode("gbk"))
    before = path.with_suffix(".txt").read_bytes()
    mine.clean()
    assert editor.said_of(path) == "ohwx 猫在窗台上" and "改好" in shown[-1]["text/plain"]
    mine.clean(undo=True)
    assert path.with_suffix(".txt").read_bytes() == before


def test_a_named_work_says_at_once_whether_it_can_train(mine, shown):
    told(mine)
    assert lab.work("小橘") == mine and checkup.READY in shown[-1]["text/plain"]


# ---- 样张说的是自己的作品 ----


def test_prompts_and_titles_come_from_the_captions(mine):
    told(mine)
    asked = mine.prompts(["剪纸风格，一只大狗在中间"])
    said = {record.caption for record in mine.records()}
    assert 2 <= len(asked) <= words.ASKED and not set(asked[:-1]) & said, "没练过的搭配"
    assert "剪纸" not in "".join(asked) and "ohwx" not in asked[-1]
    titles = mine.titles(["狗"])
    assert len(titles) == len(asked) == len(set(titles)) and titles[-1] == "不说触发词"
    assert words.titles(["龘", "龘"], "") == ["第 1 句", "第 2 句"], "字体里没有的字不画"


# ---- 一次次训练 ----


def trained(work, config, *changes, steps=4):
    places = [f"data.folder={work.photos}", f"run.output={work.output('没有用到')}"]
    asked = [f"sample.prompts={work.prompts([])[:1]}", "sample.steps=2", f"train.steps={steps}"]
    return lab.Run(config("eval.holdout=0.3", *places, *asked, *changes)).start()


def test_every_training_is_a_try_and_a_changed_setting_is_no_refusal(mine, config, shown):
    told(mine)
    first = trained(mine, config)
    assert first.config.run.output == mine.home / "第 1 次"
    second = trained(mine, config, "train.lr=0.002")
    assert second.config.run.output.name == "第 2 次" and mine.lora() == mine.home / "第 2 次"
    mine.tries()
    said = shown[-1]["text/plain"]
    assert "train.lr" in said and "0.002" in said and said.count("次") >= 4
    assert "data:image/jpeg" in shown[-1]["text/html"]
    again = mine.again(1, "train.steps=6")
    assert again.train.lr == first.config.train.lr and again.train.steps == 6
    assert again.run.output.name == "第 3 次"
    mine.compare(1, 2)
    assert "image/jpeg" in shown[-1]
    with pytest.raises(LorakitError, match="没有第 9 次"):
        mine.compare(1, 9)


def test_table_runs_the_settings_of_one_try_again(mine, config, shown):
    told(mine)
    trained(mine, config, "train.lr=0.002")
    view = table.Table(mine, tries.all_of(mine.home))
    view.button.click()
    assert view.run.result().config.run.output.name == "第 2 次"
    assert view.run.config.train.lr == 0.002 and view.box.children[-1] is view.run.board.box
    titles = words.titles(view.run.config.sample.prompts, mine.trigger)
    assert view.run.board.film.names == titles, "列名和别处的面板一样"
    assert "什么也没改" in table.page(tries.all_of(mine.home))["text/plain"]


def test_the_table_shown_again_keeps_the_panel_of_what_is_training(mine, config, monkeypatch):
    told(mine)
    run = trained(mine, config)
    assert table.Table(mine, tries.all_of(mine.home)).run is None, "练完了，没有在练的"
    run._job = Future()  # 像还在练
    monkeypatch.setitem(table.RUNS, run.config.run.output.resolve(), run)
    monkeypatch.setitem(table.RUNS, (mine.home.parent / "别的" / "第 1 次").resolve(), run)
    view = table.Table(mine, tries.all_of(mine.home))
    assert view.run is run and view.box.children[-1] is run.board.box
    view.button.click()
    assert "第 1 次还在练" in view.said.value, "停了才能再来"
    saved = run.config.run.output / "config.yaml"
    saved.write_text(saved.read_text("utf-8").replace("steps: 4", "steps: 6"), "utf-8")
    run.board.total = 6  # 按了停止
    run._ended(None)
    assert "还在练" not in view.said.value and "停在第 4 步" in view.said.value
    assert "停在第 4 步（原定 6 步）" in view.rows.value


def test_what_another_panel_trains_is_watched_too(mine, config, monkeypatch, shown):
    told(mine)
    run = trained(mine, config)
    view = table.Table(mine, tries.all_of(mine.home))
    run._job = Future()  # 摆好表以后，在别的面板上又练了起来
    monkeypatch.setitem(table.RUNS, run.config.run.output.resolve(), run)
    view.button.click()
    assert "第 1 次还在练" in view.said.value and view.box.children[-1] is run.board.box
    run._ended(None)
    assert "还在练" not in view.said.value and "练完了" in view.said.value
    view.display()
    view.button.click()
    view.run.result()
    assert view.run is not run and "第 2 次" in view.said.value
    run._ended(None)  # 先前那一次在自己的面板上又停了一回：说的是它
    assert "第 1 次" in view.said.value and "第 2 次" not in view.said.value


def test_a_try_just_done_is_in_the_table_by_itself(mine, config, shown):
    told(mine)
    trained(mine, config)
    view = table.Table(mine, tries.all_of(mine.home))
    view.display()
    view.button.click()
    view.run.result()
    assert "第 2 次" in view.said.value and "练完了" in view.said.value
    assert [number for _, number in view.which.options] == [1, 2] and view.which.value == 1
    assert "什么也没改" in view.rows.value


def test_a_run_cut_off_is_offered_and_goes_on(mine, config, shown):
    told(mine)
    run = trained(mine, config, steps=4)
    saved = run.config.run.output / "config.yaml"
    saved.write_text(saved.read_text("utf-8").replace("steps: 4", "steps: 6"), "utf-8")  # 像没练完
    assert "第 1 次停在第 4 步" in mine.text()
    on = lab.Run(mine.resume()).start()
    assert on.step == 6 and on.config.run.output == mine.home / "第 1 次"
    assert on.board.steps == [1, 2, 3, 4, 5, 6], "先前的线也在"
    assert on.board.samples[0][0] == 0 and "练过 1 次。" in mine.text()
    with pytest.raises(LorakitError, match="没有停在半路"):
        mine.resume()


def test_a_try_that_saved_nothing_gives_its_number_back(mine):
    (mine.home / "第 1 次").mkdir(parents=True)
    assert tries.following(mine.home).name == "第 1 次"


def test_a_try_of_another_book_is_left_alone(mine, monkeypatch):
    last = mine.home / "第 1 次"
    last.mkdir(parents=True)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(lock, "busy", lambda folder: {"pid": sleeper.pid})
    try:
        assert tries.following(mine.home).name == "第 2 次"
    finally:
        sleeper.kill()
        sleeper.wait()


# ---- 证书 ----


def test_certificate_folder_has_everything(mine, config, shown, monkeypatch):
    told(mine)
    run = trained(mine, config)
    pair = [Image.new("RGB", (64, 64), "red")], [Image.new("RGB", (64, 64), "blue")]
    folder = lab.certificate(mine, {"画风": 0.9}, *pair, ["猫"], run.config.run.output, name="小明")
    assert folder == mine.home / "毕业"
    names = {file.name for file in folder.iterdir()}
    assert names == {"证书.jpg", "README.md", "pytorch_lora_weights.safetensors"}
    page = Image.open(folder / "证书.jpg")
    assert page.size == certificate.PAGE
    said = shown[-1]["text/plain"]
    assert "姓名：小明" in said and "作品：小橘" in said and "日期：20" in said
    assert "01 还开着：add_noise" in said and "画风 90%" in said
    card = (folder / "README.md").read_text("utf-8")
    assert "# 小橘\n" in card and str(mine.home) not in card, "别人没有你的路径，也不该看见它"
    assert 'lora = "."' in card and "--lora_weights ." in card
    order = shlex.split(re.search(r"^lorakit (generate .*)$", card, re.M)[1])
    monkeypatch.chdir(folder)  # 照卡上写的，在这个文件夹里画得出来
    assert main([*order, "--steps", "2", "--out", "画好.png"]) == 0
    (notes() / "exercises.json").write_text(json.dumps([one.name for one in book_01.EXERCISES]))
    assert "会了：加噪、速度、采样" in "\n".join(certificate.lines(mine, {"画风": 1}))


def changed(work, how):
    if how == "moved":
        work.photos.rename(work.home / "搬走了")
    elif how == "more":
        for name in ("新 01", "新 02"):
            Image.new("RGB", (64, 64), "red").save(work.photos / f"{name}.png")
            (work.photos / f"{name}.txt").write_text("后来添的", encoding="utf-8")
    elif how == "fewer":
        for path in work.pictures()[:3]:
            path.unlink()
            path.with_suffix(".txt").unlink()
    elif how == "rewritten":
        for path in work.pictures():
            path.with_suffix(".txt").write_text("后来改的", encoding="utf-8")
    else:
        (work.photos / how).unlink()


HOWS = ["猫 03.txt", "moved", "more", "fewer", "rewritten"]


@pytest.mark.parametrize("how", HOWS)
def test_the_card_is_of_the_photos_that_were_trained_on(how, mine, config, shown):
    told(mine)
    run = trained(mine, config)
    assert len(run.trainer.dataset.train) + len(run.trainer.dataset.held) == 12
    changed(mine, how)
    pair = [Image.new("RGB", (64, 64), "red")], [Image.new("RGB", (64, 64), "blue")]
    folder = lab.certificate(mine, {"画风": 0.9}, *pair, ["猫"], run.config.run.output)
    said = (folder / "README.md").read_text("utf-8")
    assert f"训练 {len(run.trainer.dataset.train)} 张" in said and "后来" not in said
    assert run.trainer.dataset.train[0].record.caption in said
    assert "模型卡没有写成" not in shown[-1]["text/plain"]


def test_the_card_of_a_stopped_run_has_its_true_steps(mine, config, shown):
    told(mine)
    run = trained(mine, config, steps=4)
    run.trainer.config = card.up_to(run.config, 9)  # 原定九步，停在第四步
    card.keep(run.trainer, True)
    made = run.config.run.output / "README.md"
    said = made.read_text("utf-8")
    assert "| 步数 | 4，" in said and "checkpoint-4" in said
    assert card.of_step(run.config.run.output, 4) == made
    assert card.of_step(run.config.run.output, 9) is None  # 停下时的卡，不是接着练之后的
    made.write_text(f"{said}\n早先写的", "utf-8")
    card.keep(run.trainer, False)  # 又运行一遍，一步也没有走：照片变没变，卡都照旧
    assert made.read_text("utf-8").endswith("早先写的")
    assert 0 < card.spent(run.config.run.output) < 600


def test_photos_whose_names_differ_only_in_letters_case_are_both_kept(tmp_path):
    shots = [encoded(color) for color in ("red", "blue")]
    one = panel.store(tmp_path, "IMG_1.JPG", shots[0])
    two = panel.store(tmp_path, "img_1.jpg", shots[1])
    three = panel.store(tmp_path, unicodedata.normalize("NFD", "é.jpg"), shots[0])
    four = panel.store(tmp_path, "é.jpg", shots[1])
    assert len({unicodedata.normalize("NFC", path.name).casefold()
                for path in (one, two, three, four)}) == 4  # fmt: skip
    assert one.read_bytes() == shots[0] and two.read_bytes() == shots[1]
    assert panel.store(tmp_path, "IMG_1.JPG", shots[0]) == one  # 同一张，不必多留


def encoded(color: str) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(made, "JPEG")
    return made.getvalue()


def test_a_run_that_left_no_card_gets_one_while_the_photos_are_the_same(mine, config, shown):
    told(mine)
    run = trained(mine, config).config.run.output
    kept = (run / "README.md").read_text("utf-8")
    (run / "README.md").unlink()
    again = certificate.card_of(run).read_text("utf-8")
    rows = [text[text.index("## 训练描述") : text.index("| 设备与用时")] for text in (kept, again)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("how", HOWS)
def test_photos_changed_since_the_training_cost_only_the_card(how, mine, config, shown):
    told(mine)
    run = trained(mine, config)
    (run.config.run.output / "README.md").unlink()  # 像断了电，没有写成
    changed(mine, how)
    pair = [Image.new("RGB", (64, 64), "red")], [Image.new("RGB", (64, 64), "blue")]
    folder = lab.certificate(mine, {"画风": 0.9}, *pair, ["猫"], run.config.run.output)
    names = {file.name for file in folder.iterdir()}
    assert names == {"证书.jpg", "pytorch_lora_weights.safetensors"}
    assert "模型卡没有写成" in shown[-1]["text/plain"] and "作品.check()" in shown[-1]["text/plain"]
    assert "image/" in str([*shown[-2]]), "证书照样摆出来"


def test_a_borrowed_font_is_not_a_bold_one(monkeypatch):
    names = ["/f/NotoSansCJK-Bold.ttc", "/f/NotoSansCJK-Regular.ttc", "/f/DejaVuSans.ttf"]
    monkeypatch.setattr(certificate.font_manager, "findSystemFonts", lambda: names)
    assert certificate.system_fonts() == names[1::-1]


def test_a_name_with_rare_letters_never_becomes_boxes(monkeypatch):
    monkeypatch.setattr(certificate, "system_fonts", lambda: [])
    letters, text = certificate.lettering("姓名：龘", 30)
    assert text == "姓名：·"
    assert certificate.lettering("姓名：小明", 30)[1] == "姓名：小明"
    assert all(
        letters.getlength(part) <= 200 for part in certificate.wrapped("字" * 50, letters, 200)
    )
