"""练习册的小工具：没人看时走遍极端值，练习分得清对错，后台的错误交得到读者手里。"""

import base64
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from html import escape

import numpy as np
import pytest
from notebook_tools import BOOKS, ROOT, prose, read
from PIL import Image

from lorakit import flow, lab
from lorakit.config import fields, load_config
from lorakit.errors import DataError, LorakitError
from lorakit.lab import (
    bar,
    display,
    exercises,
    explorer,
    glossary,
    lost,
    mine,
    picture,
    questions,
    quiz,
    runner,
)
from lorakit.tiny import samples
from lorakit.tiny.world import Scene, Thing, render
from lorakit.train import Trainer

SCENE = Scene((Thing("cat", "red", "center", "big"),), "meadow")


def open_static(bundle) -> Image.Image:
    kind = next(key for key in bundle if key.startswith("image/"))
    return Image.open(io.BytesIO(base64.b64decode(bundle[kind])))


def test_lab_is_lazy():
    code = "import sys, lorakit.lab; print('ipywidgets' in sys.modules, 'torch' in sys.modules)"
    code += "; import lorakit.lab.bar"  # 第一格先摆出进度条，再载入 torch
    code += "; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 4
    code = "import sys, lorakit.lab.bar as bar\ndef seen(what): sys.exit('torch' in sys.modules)"
    code += "\nbar.waiting = seen\nfrom lorakit import lab\nlab.ready()"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0, "第一格先摆出进度条"
    quiet = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    code = "import os, lorakit.lab; print(os.environ['OMP_WAIT_POLICY'])"
    for given, found in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "active")):
        told = subprocess.run([sys.executable, "-c", code], env=quiet | given, capture_output=True)
        assert told.stdout.decode().strip() == found, "torch 载入之前就设好；读者自己设的不动"
    with pytest.raises(AttributeError, match="explore"):
        _ = lab.nothing


def test_no_public_name_is_also_a_file_of_the_same_name():
    """载入过的文件会盖住同名的函数：第二次用就成了“module 不能调用”。"""
    for name, home in lab._PUBLIC.items():
        assert not (ROOT / "lorakit" / "lab" / f"{name}.py").exists(), (name, home)


def test_pixels_survive_the_round_trip():
    image = render(SCENE)
    x = lab.to_tensor(image)
    assert x.shape == (1, 3, 128, 128) and float(x.min()) >= -1 and float(x.max()) <= 1
    assert np.array_equal(np.asarray(lab.to_image(x)), np.asarray(image))


def test_show_gives_picture_and_words(shown):
    figure, axes = lab.chart()
    axes.plot([0, 1], [0, 1], label="损失")
    axes.legend()
    lab.show(render(SCENE), figure)
    assert [next(iter(b)) for b in shown] == ["image/jpeg", "image/png"]
    assert open_static(shown[0]).size == (128, 128)
    assert "128x128" in shown[0]["text/plain"]
    with pytest.raises(LorakitError, match="str"):
        lab.show("图")


@pytest.mark.parametrize(
    ("size", "width"),
    [
        ((300, 100), 600),
        ((640, 200), 850),
        ((1000, 300), 850),
        ((500, 600), 583),
        ((400, 900), 400),
    ],
)
def test_pictures_are_as_wide_as_the_column(size, width, shown):
    """到一栏那么宽；最多放大一倍，高不过一屏。"""
    said = {"image/jpeg": "…", "text/plain": "〔图 {}x{}，指纹 ff〕".format(*size)}
    assert display.widths(said) == {"image/jpeg": {"width": width}}
    assert display.widths({"text/plain": "好了"}) == {} == display.widths({"image/png": "…"})


def test_missing_glyph_is_caught(shown):
    assert picture.missing("损失 t = 1，α") == set()
    figure, axes = lab.chart()
    axes.set_title("龘")
    with pytest.raises(LorakitError, match="龘"):
        lab.show(figure)


def test_fingerprint_knows_content():
    image = render(SCENE)
    other = render(Scene((Thing("boat", "blue", "left", "small"),), "night"))

    def distance(a, b):
        return picture.distance(picture.fingerprint(a), picture.fingerprint(b))

    assert distance(image, image.resize((96, 96))) <= 3
    assert distance(image, other) > picture.SAME + 2
    assert picture.distance("ffff", "fffc") == 2


def test_wall_wastes_no_room():
    cats = [render(SCENE)] * 2
    named, bare = (lab.wall([cats], rows, ["甲", "乙"], cell=50) for rows in (["猫"], [""]))
    assert bare.width == 2 * 56 and named.width > bare.width
    assert bare.tobytes() == named.crop((named.width - bare.width, 0, *named.size)).tobytes()


def test_charts_keep_their_colours(shown):
    figure, axes = lab.chart()
    axes.scatter(range(9), range(9), color=picture.BLUE)
    axes.scatter([4], [4], color=picture.RED, s=60)
    lab.show(figure)
    colours = {c for _, c in open_static(shown[0]).convert("RGB").getcolors()}
    assert (0xC4, 0x38, 0x2C) in colours and (255, 255, 255) in colours and len(colours) <= 20


def test_headless_sweep_finds_the_crash(shown):
    def draw(t):
        assert t < 1, "最大值会崩"
        return render(SCENE)

    with pytest.raises(AssertionError) as caught:
        lab.explore(draw, t=lab.slider("时间", 0.0, 1.0, 0.1))
    assert any("'t': 1.0" in note for note in caught.value.__notes__)


def test_explorer_redraws_and_shows_errors(shown, watched):
    seen = []

    def draw(t, name):
        seen.append((t, name))
        if t == 3:
            raise ValueError("三不行")
        return Image.new("RGB", (8, 8), (t * 20, 0, 0))

    panel = lab.explore(draw, t=lab.slider("时间", 0, 9, 1), name=lab.choice("谁", ["甲", "乙"]))
    assert seen == [(0, "甲")], "有人看时不必先走一遍极端值"
    assert display.VIEW in shown[1] and 'src="data:image/jpeg' in shown[0]["text/html"]
    before = panel.image.value
    panel.boxes["t"].value = 9
    assert panel.image.value != before and panel.message.value.endswith("></span>")
    panel.boxes["t"].value = 3
    assert "三不行" in panel.message.value
    assert panel.values == {"t": 3, "name": "甲"}


def test_cases_reach_every_corner():
    controls = {"a": lab.slider("a", 0, 5, 1, 2), "b": lab.choice("b", ["x", "y"])}
    tried = list(explorer.cases(controls))
    for wanted in ((0, "x"), (5, "x"), (2, "y"), (5, "y")):
        assert {"a": wanted[0], "b": wanted[1]} in tried
    with pytest.raises(LorakitError, match="起始值"):
        lab.slider("a", 0, 5, 1, 9)
    with pytest.raises(LorakitError, match="至少要一个控件"):
        lab.explore(lambda: None)


def test_no_answer_is_in_sight_before_a_choice(shown, watched):
    for question in questions.bank().values():
        lab.predict(question.name)
        lab.reveal(question.name)
        for bundle in shown:
            told = bundle.get("text/plain", "") + bundle.get("text/html", "")
            assert not any(said in told for _, said in question.options), question.name
        guess = quiz._asked[question.name]
        assert guess.reveal.disabled and guess.ask.page.value == "", "先选，才揭晓"
    with pytest.raises(LorakitError, match="是不是想写“half”"):
        lab.reveal("halff")


def test_a_guess_and_its_answer(shown, watched):
    for question in questions.bank().values():
        assert len({said for _, said in question.options}) == len(question.options) >= 3
        for pick, (option, reply) in enumerate(question.options):
            lab.predict(question.name)
            guess = quiz._asked[question.name]
            guess.ask.radio.value = pick
            assert not guess.reveal.disabled
            guess.reveal.click()
            said = guess.ask.page.value
            assert escape(question.why) in said and escape(reply) in said and option in said
            assert ("你选对了" in said) == (pick == question.right)
            assert guess.ask.radio.disabled and guess.buttons.layout.display == "none"
    lab.predict("half")
    quiz._asked["half"].skip.click()
    assert "答案：" in quiz._asked["half"].ask.page.value
    assert "你选" not in quiz._asked["half"].ask.page.value


def test_a_guess_is_kept_when_the_cell_runs_again(shown, watched):
    lab.predict("half")
    quiz._asked["half"].ask.radio.value = 1
    lab.predict("half")
    again = quiz._asked["half"]
    assert again.ask.choice == 1 and not again.reveal.disabled
    again.reveal.click()
    lab.predict("half")
    assert quiz._asked["half"].ask.choice is None, "揭晓过的，重新猜"


def test_options_are_shuffled_for_each_reader_and_stay(shown, own_cache, monkeypatch):
    def orders():
        return [tuple(quiz._order(question)) for question in questions.bank().values()]

    assert set(orders()) == {(0, 1, 2)}, "没人看时照题库的次序"
    monkeypatch.setattr(quiz, "headless", lambda: False)
    one = orders()
    assert one == orders() and len(set(one)) == 6
    (own_cache / "reader.json").unlink()
    assert one != orders()


def groups_of_questions():
    """一组一组的题：先猜后看的、前测、后测、每本开头的回想。"""
    pre, post = map(questions.exam, questions.MOMENTS)
    return list(questions.bank().values()), pre, post, sum(questions.recall().values(), ())


def test_right_letters_are_balanced():
    groups = groups_of_questions()
    assert [len(some) for some in groups[1:]] == [12, 12, 12] and len(groups[0]) >= 40
    everything = [question for some in groups for question in some]
    for some in (*groups, everything):
        for letter in range(3):
            share = sum(question.right == letter for question in some) / len(some)
            assert 0.30 <= share <= 0.37, (letter, share)


def test_before_and_after_ask_the_same_things_in_other_words():
    pre, post = map(questions.exam, questions.MOMENTS)
    assert [one.name for one in pre] == [one.name for one in post]
    for one, two in zip(pre, post, strict=True):
        assert one.text != two.text
        assert not {text for text, _ in one.options} & {text for text, _ in two.options}
    told = "".join(question.why for question in (*pre, *post))
    assert all(f"{book} 的" in told for book in ("01", "02", "03", "04", "05"))


def test_the_right_option_does_not_stand_out():
    """最长的那一项不多半是对的；每个选项都有自己的解释。"""
    for some in groups_of_questions()[1:]:
        longest = [max(range(3), key=lambda i, q=q: len(q.options[i][0])) for q in some]
        hits = sum(pick == q.right for pick, q in zip(longest, some, strict=True))
        assert hits <= len(some) / 2, hits
        assert all(len({said for _, said in q.options}) == len(q.options) == 3 for q in some)


def test_explanations_point_to_sections_that_exist():
    books = {book.name[:2]: prose(read(book)) for book in BOOKS}
    for question in [question for some in groups_of_questions() for question in some]:
        for _, said in question.options:
            for book, sections in re.findall(r"(0[1-5]) 的 ([\d.、]+) 节", said):
                for section in sections.split("、"):
                    assert f"\n## {section} " in books[book], (question.name, section)


def test_recall_is_about_earlier_books(shown):
    assert list(questions.recall()) == ["02", "03", "04", "05"]
    for book, asked in questions.recall().items():
        lab.recall(book)
        page = shown[-1]["text/plain"]
        assert page.count("回想") == len(asked) == 3
        told = [said for question in asked for _, said in question.options]
        assert not any(said in page for said in told)
        named = re.findall(r"（(0[1-5]) 的", "".join(told))
        assert named and max(named) < book
    with pytest.raises(LorakitError, match="02、03、04、05"):
        lab.recall("01")


def test_pretest_keeps_answers_and_gain(shown, own_cache):
    lab.pretest()
    assert shown[0]["text/plain"].count("题：") == 12 and "你先猜" not in shown[0]["text/plain"]
    right = [question.right for question in questions.exam("pre")]
    test = quiz.Test("pre")
    assert "已记下 0 / 12" in test.said.value and quiz.score("pre") is None
    test.asks[0].radio.value = right[0]
    assert quiz.score("pre") == pytest.approx(1 / 12) and quiz.gain() is None
    again = quiz.Test("pre")
    assert [ask.choice for ask in again.asks] == [right[0], *[None] * 11]
    assert "已记下 1 / 12" in again.said.value and again.show.layout.display == "none"
    again.asks[1].radio.value = (right[1] + 1) % 3
    assert quiz.picks("pre")[:2] == [right[0], (right[1] + 1) % 3], "再运行一遍，答过的还在"
    post, right = quiz.Test("post"), [question.right for question in questions.exam("post")]
    for ask, letter in zip(post.asks, [*right[:11], (right[11] + 1) % 3], strict=True):
        ask.radio.value = letter
    assert "已记下 12 / 12" in post.said.value and post.show.layout.display == ""
    assert quiz.gain() == pytest.approx((11 / 12 - 1 / 12) / (11 / 12))
    post.show.click()
    told = [ask.page.value for ask in post.asks]
    assert [("你选对了" in said) for said in told] == [True] * 11 + [False]
    (own_cache / "quiz_pre.json").write_text("[1, 0, 2, 1, 2]")  # 旧的五道题，换了就不算
    assert quiz.score("pre") is None
    with pytest.raises(LorakitError, match="pre 或 post"):
        lab.pretest("after")


def test_report_card_counts_what_was_done(shown):
    lab.report_card({"画风": 1.0})
    said = shown[-1]["text/plain"]
    assert (
        "前测：还没有答" in said
        and "练习：0 /" in said
        and "还差：后测、练习（01 差 5 道，" in said
    )
    assert "等级：答完后测才评" in said
    known = exercises.all_exercises()
    for name, exercise in known.items():
        scope = {}
        exec(exercise.solution, scope)
        getattr(lab.check, name)(scope["answer"])
        getattr(lab.check, name)(...)  # 再留空也不会把它变回没通过
    assert exercises.passed() == list(known)
    for moment, count in (("pre", 3), ("post", 12)):
        picks = {one.name: one.right for one in questions.exam(moment)[:count]}
        (quiz.notes() / f"quiz_{moment}.json").write_text(json.dumps(picks))
    lab.report_card({"画风": 0.8})
    said = shown[-1]["text/plain"]
    assert "前测：25%" in said and "后测：100%" in said and "归一化的进步：100%" in said
    assert f"练习：{len(known)} / {len(known)} 道" in said
    assert "等级：优" in said and "祝贺" in said  # (1 + 1 + 0.8) / 3
    assert "<table>" in shown[-1]["text/html"]


def test_glossary(shown):
    assert len({english for english, _ in glossary.TERMS.values()}) == len(glossary.TERMS)
    lab.term("latent")
    assert shown[0]["text/plain"].startswith("潜变量（latent）")
    lab.term()
    assert shown[1]["text/plain"].count("\n") == len(glossary.TERMS) - 1
    with pytest.raises(LorakitError, match="潜变量"):
        lab.term("潜")
    for theirs, ours in {
        "打标": "描述",
        "正则化图": "同类图片",
        "预热": "热身",
        "卸载": "搬运",
    }.items():
        lab.term(theirs)
        assert shown[-1]["text/plain"].startswith(f"{ours}（") and theirs in shown[-1]["text/plain"]
    lab.term("权重")
    assert "多半指强度" in shown[-1]["text/plain"] and "<lora" not in shown[-1]["text/html"]


def test_source_shows_the_real_code(shown):
    lab.source(flow.velocity)
    assert shown[0]["text/plain"].startswith("# lorakit/flow.py\ndef velocity(")
    assert "return noise - x0" in shown[0]["text/html"]
    with pytest.raises(LorakitError, match="函数或类"):
        lab.source(3)


def test_my_picture_is_remembered(tmp_path, watched):
    default = lab.my_picture()
    assert default.size == (256, 256)
    Image.new("RGB", (400, 200), "purple").save(tmp_path / "我.png")
    assert lab.my_picture(tmp_path / "我.png").getpixel((5, 5)) == (128, 0, 128)
    assert lab.my_picture().getpixel((5, 5)) == (128, 0, 128), "下一本还用它"
    with pytest.raises(DataError, match="没有"):
        lab.my_picture(tmp_path / "没有.png")


def test_upload_values_of_both_versions(shown):
    assert mine.uploaded({"a.png": {"content": b"1"}}) == b"1"
    assert mine.uploaded(({"name": "a.png", "content": memoryview(b"2")},)) == b"2"
    assert mine.uploaded({}) is None and mine.uploaded(()) is None
    lab.upload()
    assert "上传" in shown[0]["text/plain"]


def test_form_is_the_config(shown):
    form = lab.form()
    assert form.config == load_config() and set(form.inputs) == {f.name for f in fields()}
    assert all(field.sentence in shown[0]["text/plain"] for field in fields())
    assert form.set("sample.prompts", "[甲, 乙]") == ""
    assert form.config.sample.prompts == ["甲", "乙"]
    said = form.set("train.steps", "很多")
    assert "train.steps" in said and "整数" in said and form.config.train.steps == 1000
    form.set("train.steps", "77")
    assert form.config.train.steps == 77 and "steps: 77" in form.yaml.value
    form.inputs["memory.compile"].value = "true"
    assert form.config.memory.compile is True
    form.inputs["data.flip"].value = True
    assert form.config.data.flip is True
    ways = form.inputs["memory.checkpointing"].options
    assert list(ways) == ["false", "true", "auto", "full", "selective", "off"]
    form.inputs["memory.compile"].value = "graphs"
    assert form.config.memory.compile == "graphs"
    some = form.inputs["memory.offload"]  # 几选一，或一个数
    assert some.options == ("none", "blocks")
    for wanted in (30, "blocks"):
        some.value = str(wanted)
        assert form.config.memory.offload == wanted
    assert "每块都得重算" in form.message.value, "每一项都对，合在一起练不了，也当场说"
    form.read_yaml("train: {stps: 3}")
    assert "train.steps" in form.message.value and form.config.train.steps == 77
    form.read_yaml("lora: {rank: [1")
    assert re.search("第 1 行写错了.*括号没有配对", form.message.value), "报错也要是中文"
    form.read_yaml("只有一句话")
    assert "YAML" in form.message.value and form.config.train.steps == 77
    assert form.inputs["data.trigger"].value == "", "空的文字不写成一对引号"
    assert form.box.children[0].selected_index == 0, "一摆出来就看得见第一组"
    form.read_yaml(load_config("tiny-qwen-image").to_yaml())
    assert form.config == load_config("tiny-qwen-image")
    assert form.inputs["train.batch_size"].value == "8"
    with pytest.raises(LorakitError, match="没有叫"):
        lab.form(groups=("nothing",))


def test_run_headless_matches_trainer(shown, config):
    prompts = "sample.prompts=[剪纸风格，一只大狗在中间]"
    run = lab.Run(config(prompts, "sample.steps=2", "sample.every=2", output="a")).start()
    plain = [step.loss for step in Trainer(config(prompts, "sample.steps=2", output="b"))]
    assert run.board.losses == plain, "中途出样张不许打乱训练"
    assert [step for step, _ in run.board.samples] == [0, 2, 4]
    assert [step for step, _ in run.board.held] == [0, 2, 4]
    losses = run.board.by_t[-1][1]
    assert len(losses) == 8 and np.mean(losses) == pytest.approx(run.board.held[-1][1], rel=1e-5)
    assert run.board.bar.value == 4 and "练完了" in run.board.status.value
    static = open_static(shown[-1])
    assert static.height > 500 and display.VIEW in shown[-1]


def test_stop_and_continue_equal_an_unbroken_run(shown, watched, config):
    run = lab.Run(config("train.steps=6", output="a"))
    first = threading.Event()
    show = run.board.show

    def stop_at_two(step):
        show(step)
        if step.step == 2:
            run.stop_button_pressed = run.board.stop_button.click()
            first.set()

    run.board.show = stop_at_two
    run.start()
    assert first.wait(60)
    run.result()
    assert run.step == 2 and not run.board.continue_button.disabled
    run.board.show = show
    run.board.continue_button.click()
    run.result()
    plain = [step.loss for step in Trainer(config("train.steps=6", output="b"))]
    assert run.board.losses == plain and run.board.stop_button.disabled


def test_error_in_the_thread_reaches_the_reader(shown, watched, wait_for, config, tmp_path):
    run = lab.Run(config(f"data.folder={tmp_path / 'none'}"))
    with pytest.raises(LorakitError, match=r"run\.start"):
        run.result()
    run.start()
    with pytest.raises(DataError, match="没有这个文件夹"):
        run.result()
    wait_for(lambda: "没有这个文件夹" in run.board.status.value)


def test_error_headless_stops_the_cell(shown, config, tmp_path):
    with pytest.raises(DataError):
        lab.Run(config(f"data.folder={tmp_path / 'none'}")).start()
    assert len(shown) == 1, "面板仍要摆出来，错误写在上面"


def test_starting_again_shows_the_same_running_panel(shown, watched, config):
    run = lab.Run(config("train.steps=500")).start()
    folder = run.config.run.output
    assert lab.fresh(folder) == folder, "正在练的不动"
    again = lab.Run(config("train.steps=500", "train.lr=0.1")).start()  # 那一格又运行了一遍
    assert again.board is run.board and sum(display.VIEW in one for one in shown) == 2
    assert "先前那一次" in run.board.note.value, "设置改过了，要说一声"
    with pytest.raises(LorakitError, match="还在跑"):
        lab.fresh(folder.parent)
    run.stop()
    assert again.result().step == run.step < 500
    assert "原定 500 步" in again.summary()
    assert not lab.fresh(folder).exists()


def test_stop_while_loading_then_continue_keeps_one_first_row(shown, watched, config):
    run = lab.Run(config("sample.prompts=[一只猫]", "sample.steps=2"))
    go = run._train

    def stop_first():
        run._halt.set()
        go()

    run._train = stop_first
    run.start().result()
    assert run.step == 0 and [step for step, _ in run.board.samples] == [0]
    run._train = go
    run.go_on().result()
    assert [step for step, _ in run.board.samples] == [0, 4]
    assert [step for step, _ in run.board.by_t] == [0, 4]


def test_the_panel_is_drawn_while_a_step_is_half_written_down():
    """训练在另一个线程：步数记下了，损失还没有，这时再摆一次面板也画得出。"""
    panel = lab.Board(10)
    panel.steps, panel.losses = [1, 2, 3], [0.5, 0.4]
    assert panel.picture().size[0] > 300


def test_estimates_settle(shown, monkeypatch):
    from lorakit.lab import board as boards
    from lorakit.train import Step

    now = [0.0]
    monkeypatch.setattr(boards.time, "monotonic", lambda: now[0])
    panel, said = lab.Board(400), []
    for number in range(1, 200):
        now[0] += 2
        panel.show(Step(number, 1.0, 1e-3, 1.0, 0.5, 9.0 if number % 25 == 0 else 0.1))
        said.append(panel.status.value)
    assert "正在估计" in said[0]
    minutes = [int(m[1]) for m in map(re.compile(r"还要 (\d+) 分钟").search, said) if m]
    assert minutes == sorted(minutes, reverse=True), "一步慢了，估计不跟着跳"


def test_the_step_is_told_twice_a_second_however_long_the_curves_take(shown, monkeypatch):
    from lorakit.lab import board as boards
    from lorakit.train import Step

    now, drawn, told = [0.0], [], []
    monkeypatch.setattr(boards.time, "monotonic", lambda: now[0])
    panel = lab.Board(1000)

    def slow():
        drawn.append(now[0])
        now[0] += 0.7  # 忙的机器上画一次曲线要这么久
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr(panel, "curves", slow)
    panel.status.observe(lambda change: told.append(now[0]), names="value")
    for number in range(1, 200):
        now[0] += 0.1
        panel.show(Step(number, 1.0, 1e-3, 1.0, None, 0.1))
    assert max(np.diff(told)) < 1.5 and min(np.diff(drawn)) > 7


def test_film_scrubs_the_strip(shown):
    panel = lab.Board(100, ["一只大狗在中间"])
    for step in (0, 50, 25, 100, 50):
        panel.show_samples(step, [Image.new("RGB", (16, 16), (step * 2, 0, 0))])
    film = panel.film
    assert [step for step, _ in film.rows] == [0, 25, 50, 100]
    assert [name for name, _ in film.slider.options] == ["训练前", "25 步", "50 步", "100 步"]
    assert film.slider.value == 3, "跟着走到最新的一行"
    last = film.image.value
    film.slider.value = 1
    assert film.image.value != last
    panel.show_samples(75, [Image.new("RGB", (16, 16))])
    assert film.slider.value == 1, "有人在看前面的，就不跳走"
    moving = Image.open(io.BytesIO(base64.b64decode(film.animation())))
    assert moving.format == "WEBP" and moving.n_frames == 5


def test_waiting_says_so_and_leaves_the_panel_of_the_same_cell(shown, watched, config, monkeypatch):
    monkeypatch.setattr(runner, "BEAT", 0.05)
    run = lab.Run(config("train.steps=2")).start()
    run.result()
    said = [one.get("text/plain") for one in shown]
    told = [i for i, text in enumerate(said) if text and "等它练完" in text]
    assert "停止" in said[told[0]] and "■" in said[told[0]]
    assert "" in said[told[-1] :], "等完了，那行字擦掉，面板还在"
    steps = [said[i] for i in told if "现在：" in said[i]]
    assert any("正在载入模型" in one for one in steps), "等的时候也看得见练到哪里"
    assert len(set(steps)) > 1


def test_what_is_left_without_a_kernel(shown, watched):
    """静态的那份自己是一份输出；样式表藏起坏掉的控件；最后的样子留得下来。"""
    panel = lab.explore(
        lambda t: Image.new("RGB", (8, 8), (t * 20, 0, 0)), t=lab.slider("时间", 0, 9, 1)
    )
    still, view = shown[:2]
    assert list(view) == [display.VIEW] and display.VIEW not in still
    assert display.AGAIN in still["text/html"] and display.LIVE in panel.box._dom_classes
    panel.boxes["t"].value = 9
    assert shown[-1]["text/html"] != still["text/html"]


def test_board_previews_edits(shown, tmp_path):
    data = samples.write("edit-hat", tmp_path / "data", count=8)
    chosen = [f"data.folder={data}", f"run.output={tmp_path / 'run'}", "train.steps=1"]
    chosen += ["train.batch_size=1", "sample.steps=2", "sample.prompts=[给它戴上一顶红帽子]"]
    run = lab.Run(load_config("tiny-qwen-image-edit", chosen)).start()
    assert [step for step, _ in run.board.samples] == [0, 1]
    assert run.board.samples[0][1][0].size == (128, 128)


def test_a_bar_shows_life_and_an_estimate(shown, watched, monkeypatch):
    monkeypatch.setattr(bar, "BEAT", 0.02)
    made, real = [], bar.Bar
    monkeypatch.setattr(bar, "Bar", lambda *given: made.append(real(*given)) or made[-1])
    labels = []
    for _ in lab.each(["a", "b", "c"], "三次训练"):
        time.sleep(0.06)
        labels.append(made[0].label.value)
    assert "第 1 / 3 个" in labels[0] and "正在估计" in labels[0]
    assert "第 3 / 3 个" in labels[2] and "大约还要 0 秒" in labels[2]
    assert "做好了" in made[0].label.value and made[0].bar.value == 3
    assert shown[0]["text/plain"] == "〔进度条：三次训练〕"
    still = next(one["text/plain"] for one in shown[1:] if "text/html" in one)
    assert still.startswith("三次训练：做好了，用了"), "隔天打开，看见的是结局"
    with pytest.raises(ValueError), lab.waiting("载入"):
        raise ValueError
    assert "停下了" in made[1].label.value
    for _ in lab.each("ab", "外面"):
        assert list(lab.each("cd", "里面")) == ["c", "d"]
    assert len(made) == 3, "套在里面的不再摆一条"
    threads = [thread for thread in threading.enumerate() if thread.name == "bar"]
    for thread in threads:
        thread.join(2)
        assert not thread.is_alive()


def test_a_bar_ends_with_its_cell(shown, watched):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    try:
        shell.user_ns["lab"] = lab
        done = shell.run_cell("for k in lab.each(range(3), '三次'):\n    1 / 0", silent=False)
        assert done.error_in_exec is not None and bar._running == []
        assert not shell.events.callbacks["post_run_cell"]
    finally:
        InteractiveShell.clear_instance()


def test_a_bar_says_nothing_when_nobody_looks(shown):
    assert list(lab.each(iter("abc"), "三次")) == ["a", "b", "c"]
    with lab.waiting("载入"):
        pass
    assert shown == []


def test_the_workplace_of_a_book_stays(tmp_path):
    place = lab.workplace("01")
    (place / "kept").mkdir(exist_ok=True)
    assert lab.workplace("01") == place and "lorakit-01-" in place.name
    assert lab.workplace("02") != place


def test_a_missing_name_is_told_how_to_go_on():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    try:
        lost.say_where()
        with pytest.MonkeyPatch.context() as patch:
            told = []
            patch.setattr(shell, "_showtraceback", lambda kind, error, lines: told.append(lines))
            done = shell.run_cell("pictrue = 1\nprint(picture)")
            shell.run_cell("def f():\n    return a\n    a = 1\nf()")
        assert isinstance(done.error_in_exec, NameError), "仍然算出错，Run All 会停下"
        said = "\n".join(told[0])
        assert "没有叫 picture 的东西" in said and "是不是想写 pictrue" in said
        assert "第 2 行 `print(picture)`" in said and "Run All Above" in said
        assert "Traceback" not in said
        assert "UnboundLocalError" in "".join(told[1])
    finally:
        InteractiveShell.clear_instance()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = 1\nprint((1, 2)\n\n\nx", "第 2 行：括号 ( 没有配上"),
        ("print((1, 2)", "还没有写完"),
        ("print(1))", "多了一个 )"),
        ("print([1))", "前面开的是 [，后面关的却是 )"),
        ("print（1）", "中文输入法的 （"),
        ("print(“你好”)", "中文输入法的 “"),
        ("def f(x)\n    return x", "少了一个冒号"),
        ("print('a)", "引号没有配上"),
        ("x = [1 2]", "少了一个逗号"),
        ("if x = 1:\n    pass", "比一比是不是相等写 =="),
        ("def f(x):\nreturn x", "第 2 行：冒号下面的一行要往里缩进"),
        ("def f(x):\n    y = x\n  return y", "对不齐"),
        ("return 1", "写到了函数外面"),
        ("for in range(3): pass", "^ 指着的地方"),
    ],
)
def test_code_that_python_cannot_read_is_told_in_chinese(code, said, capsys):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    try:
        lost.say_where()
        lost.say_where()  # 第一格运行了两次
        done = shell.run_cell(code)
        assert isinstance(done.error_before_exec, SyntaxError), "仍然算出错，Run All 会停下"
        told = capsys.readouterr().out
        assert said in told and told.count("改好再运行这一格") == 1
    finally:
        InteractiveShell.clear_instance()


def test_the_home_of_a_missing_name_is_known(tmp_path):
    book = str(ROOT / "notebooks" / "01_concepts.ipynb")
    assert lost.home_of("latent", book).startswith("1.2 ")
    assert lost.home_of("noisy", book).startswith("1.3 ")
    assert lost.home_of("nothing_like_it", book) == ""
    assert lost.home_of("latent", "") == "" == lost.home_of("latent", str(tmp_path))
