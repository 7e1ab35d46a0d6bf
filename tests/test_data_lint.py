"""整个数据集的警告：几乎一样的图找得到、不同的图不冤枉；描述的写法。"""

import io
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit.data import Record, inspect
from lorakit.data.color import matrix_profile
from lorakit.data.fix import fix
from lorakit.data.lint import lint
from lorakit.data.lookalike import look, near_duplicates
from lorakit.files import readings
from lorakit.tiny import samples
from lorakit.tiny.styles import STYLES
from lorakit.tiny.world import TRAINED, random_scene, render, style_scenes


def again(image: Image.Image, kind: str = "JPEG", **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file).convert("RGB")


COPIES = {
    "jpeg 90": lambda image: again(image, quality=90),
    "jpeg 60": lambda image: again(image, quality=60),
    "webp 80": lambda image: again(image, "WEBP", quality=80),
    "half": lambda image: image.resize((64, 64), Image.Resampling.LANCZOS),
    "three times": lambda image: image.resize((384, 384), Image.Resampling.BICUBIC),
}


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    rng = np.random.default_rng(5)
    drawn = [s for style in STYLES for s in style_scenes(style, TRAINED, 16, 11)]
    drawn += [random_scene(rng) for _ in range(40)]
    # 同一个角色在同样的背景、位置、大小里，画出来本来就几乎一样，只留一张
    characters = [samples.character_scene(rng) for _ in range(40)]
    places = {(s.background, s.things[0].side, s.things[0].size): s for s in characters}
    drawn += places.values()
    return [render(scene) for scene in drawn]


def test_different_scenes_are_not_duplicates(scenes):
    assert near_duplicates([look(image) for image in scenes]) == []


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found(scenes, kind):
    looks = [look(image) for image in scenes]
    pairs = near_duplicates([*looks, *(look(COPIES[kind](image)) for image in scenes)])
    count = len(scenes)
    assert all(copy == original + count for copy, original in pairs)  # 找到的都是对的
    assert len(pairs) >= 0.97 * count


def test_same_pose_in_another_color_is_different():
    rng = np.random.default_rng(3)
    scene = random_scene(rng, two=0.0)
    thing = scene.things[0]
    images = [render(replace(scene, things=(replace(thing, color=c),))) for c in ("red", "blue")]
    assert near_duplicates([look(image) for image in images]) == []


def test_plain_colors_are_different():
    plain = [look(Image.new("RGB", (64, 64), c)) for c in ("red", "white", "black", "red")]
    assert near_duplicates(plain) == [(3, 0)]


def test_ten_thousand_are_quick():
    rng = np.random.default_rng(0)
    looks = [rng.bytes(224) for _ in range(10_000)]
    looks[9_000] = looks[20]
    start = time.process_time()
    assert near_duplicates(looks) == [(9_000, 20)]
    assert near_duplicates(looks[:1] * 10_000) == [(i, 0) for i in range(1, 10_000)]
    assert time.process_time() - start < 20  # 逐对比较要几分钟


def test_folder_names_the_copy(tmp_path, scenes):
    for name, image in [("a.png", scenes[0]), ("b.jpg", scenes[0]), ("c.png", scenes[50])]:
        image.save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"图 {name}", encoding="utf-8")
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes())  # 一个字节也不差，另算
    (tmp_path / "d.txt").write_text("图四", encoding="utf-8")
    _, report = inspect(tmp_path)
    assert [(p.code, p.path.name) for p in report.problems] == [
        ("duplicate", "d.png"), ("near_duplicate", "b.jpg"),
    ]  # fmt: skip
    assert "b.jpg：和 a.png 几乎一样" in report.text()


# ---- 描述 ----


def said(captions: list[str], trigger: str = "") -> dict[str, str]:
    """代号 -> 原因。"""
    records = [Record(Path(f"{i}.png"), c, (64, 64), str(i)) for i, c in enumerate(captions)]
    problems = lint(records, trigger, Path("."))
    assert all(p.severity == "warning" or p.code == "trigger_guess" for p in problems)
    return {p.code: p.reason for p in problems}


CATS = ["剪纸风格，一只红猫", "剪纸风格，两只狗在跑", "剪纸风格，屋顶上的鸟", "剪纸风格，蓝色的鱼"]
GLASSES = ["sks，在海边，戴着眼镜", "sks，戴着眼镜看书", "sks，跑步，戴着眼镜", "sks，戴着眼镜"]
ENGLISH = ["sks dog on a beach, white background", "sks dog asleep, white background",
           "sks dog, running, white background", "a sks dog, white background"]  # fmt: skip


def test_good_captions_are_quiet():
    assert said(CATS, "剪纸风格") == {}
    assert said([c.removeprefix("剪纸风格，") for c in CATS]) == {}
    assert said([]) == {} and said(["一只猫"], "sks") == {}


def test_trigger_is_guessed_when_not_given():
    assert said(CATS).keys() == {"trigger_guess"} and "“剪纸风格”" in said(CATS)["trigger_guess"]


@pytest.mark.parametrize(
    ("caption", "buried"),
    [
        ("sks, a dog", False),
        ("a photo of sks dog, running", False),
        ("一只狗，sks", True),
        ("a dog on the beach, in sks style", True),
        ("，sks", True),
        ("a dog, he asks", False),  # 没有触发词，由别处报
    ],
)
def test_buried_trigger(caption, buried):
    assert ("trigger_buried" in said([caption], "sks")) is buried


def test_unchanging_phrase():
    reason = said(GLASSES, "sks")["caption_unchanging"]
    assert "“戴着眼镜”" in reason and "会被学进描述而不是触发词里" in reason
    reason = said(ENGLISH, "sks")["caption_unchanging"]
    assert "“white background”" in reason and "dog" not in reason
    assert said(GLASSES[:3], "sks") == {}  # 太少，看不出
    assert said([GLASSES[0]] * 4, "sks") == {}  # 全都一样的另外报过


def test_function_words_are_not_a_phrase():
    captions = [f"{a}，背景是{b}" for a, b in zip("猫狗鸟鱼", "山海天云", strict=True)]
    assert said(captions) == {}
    assert said([f"{a} on the {a}" for a in ("cat", "dog", "fish", "bird")]) == {}


def test_unchanging_phrase_is_quick():
    captions = [f"剪纸风格，一只猫坐在窗台上看着第 {i} 朵云" for i in range(10_000)]
    start = time.process_time()
    assert "猫坐在窗台上看着第" in said(captions, "剪纸风格")["caption_unchanging"]
    assert time.process_time() - start < 10


def test_long_captions():
    assert "caption_long" not in said(["猫" * 400]) and "caption_long" in said(["猫" * 401])
    assert "caption_long" not in said(["cat " * 300]) and "caption_long" in said(["cat " * 301])


def test_mixed_languages():
    assert "1 份是英文；英文的是 2.png" in said(["一只猫", "一只狗", "a bird"])["caption_mixed"]
    assert "中文的是 0.png" in said(["一只猫", "a dog", "a bird"])["caption_mixed"]
    assert "caption_mixed" not in said(["一只 cat", "一只狗"])
    assert "caption_mixed" not in said(["剪纸，a cat", "剪纸，a dog"], "剪纸")
    assert "caption_mixed" not in said(["ohwx，a cat", "a dog"])


@pytest.mark.parametrize("caption", ["一只猫", "小猫"])
def test_gbk_that_passes_for_utf8(tmp_path, caption):
    garbled = caption.encode("gbk").decode("utf-8")
    assert f"按它读是“{caption}”" in said([garbled])["caption_garbled"]


FOREIGN = {  # 编码 -> (认得准的, 认不准的)：认不准的不猜，给出每一种读法
    "gb18030": (
        ["橘猫", "红苹果，白背景", "黑白照片", "一条狗", "ohwx 女孩，灰色背景"],
        ["飞机"],
    ),
    "euc_kr": (
        ["고양이", "창가에 앉아 있는 빨간 고양이", "나무", "거리", "a photo of 고양이"],
        ["집"],
    ),
    "big5": (["貓", "一隻紅色的貓坐在窗台上"], []),
    "euc_jp": (["窓辺に座っている赤い猫", "赤いリンゴ、白い背景"], []),
    "cp932": (["窓辺に座っている赤い猫", "赤いリンゴ、白い背景"], []),
}
NAMES = {"gb18030": "GBK", "euc_kr": "EUC-KR", "big5": "Big5", "euc_jp": "EUC-JP",
         "cp932": "Shift-JIS"}  # fmt: skip


@pytest.mark.parametrize("encoding", FOREIGN)
def test_what_is_not_utf8_is_named_and_only_the_sure_is_mended(tmp_path, encoding):
    """韩文、日文、繁体的描述不会当成 GBK；分不出来的不替用户换。"""
    name = NAMES[encoding]
    render(random_scene(np.random.default_rng(1))).save(tmp_path / "a.png")
    for sure, captions in zip((True, False), FOREIGN[encoding], strict=True):
        for caption in captions:
            raw = caption.encode(encoding)
            (tmp_path / "a.txt").write_bytes(raw)
            (problem,) = inspect(tmp_path)[1].errors
            assert problem.code == "caption_encoding"
            assert f"多半是 {name}（按它读是“{caption[:14]}" in problem.reason or not sure
            assert ("认不准" in problem.reason) != sure and ("--fix" in problem.mend) == sure
            fix(tmp_path)
            now = (tmp_path / "a.txt").read_bytes()
            assert now == (caption.encode() if sure else raw), caption


@pytest.mark.parametrize("words", ["niño pequeño jugando", "une fille à la plage, été", "Müller"])
def test_western_words_are_not_taken_for_chinese(tmp_path, words):
    assert readings(words.encode("cp1252")) == {}


@pytest.mark.parametrize(
    "caption", ["a café, naïve", "кошка на окне", "γάτα", "猫，café", "über ÿ"]
)
def test_other_scripts_are_not_garbled(caption):
    assert "caption_garbled" not in said([caption])


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        (r"{\\rtf1\\ansi\\ansicpg936 \\'bc\\'f4}", "富文本（RTF）"),
        ("<p>一只猫&nbsp;</p>", "网页的代码“<p>”"),
        ("一只猫&nbsp;在草地", "网页的代码“&nbsp;”"),
        ("A cat<br/>on grass", "“<br/>”"),
    ],
)
def test_markup_in_a_caption_is_named(tmp_path, caption, said):
    render(random_scene(np.random.default_rng(1))).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(caption.replace("\\\\", "\\"), encoding="utf-8")
    found = [p for p in inspect(tmp_path)[1].warnings if p.code == "caption_markup"]
    assert len(found) == 1 and said in found[0].reason


@pytest.mark.parametrize("caption", ["<s0><s1> cat", "a & b; c", "<lora:x:1> 猫", "3 < 4 > 2"])
def test_other_brackets_are_left_alone(tmp_path, caption):
    render(random_scene(np.random.default_rng(1))).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(caption, encoding="utf-8")
    assert not [p for p in inspect(tmp_path)[1].warnings if p.code == "caption_markup"]


def test_a_blank_picture_is_named(tmp_path):
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "a.png")
    Image.new("L", (64, 64), 7).save(tmp_path / "b.png")
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"第{name}张", encoding="utf-8")
    found = {p.path.name: p.reason for p in inspect(tmp_path)[1].warnings if p.path}
    assert "整张都是透明的" in found["a.png"] and "只有一种颜色" in found["b.png"]


def noisy_jpeg(side=320) -> bytes:
    rng, file = np.random.default_rng(0), io.BytesIO()
    smooth = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    pixels = np.asarray(smooth).astype(int) + rng.integers(-9, 9, (side, side, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.mark.parametrize("turned", [False, True])
def test_a_jpeg_that_lost_its_second_half_is_named(tmp_path, turned):
    """结尾的标记还在，解码器不报错，只是下面一片灰。"""
    content = noisy_jpeg()
    half = content[: len(content) // 2]
    spoiled = {"cut": half + content[-2:], "zeros": half + bytes(len(half) - 2) + content[-2:]}
    for name, data in {"whole": content, **spoiled}.items():
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(data)
        if turned:
            tags = Image.Exif()
            tags[0x0112] = 6
            path.write_bytes(data[:2] + b"\xff\xe1" + _segment(tags.tobytes()) + data[2:])
        path.with_suffix(".txt").write_text(f"图 {name}", encoding="utf-8")
    found = [p.path.name for p in inspect(tmp_path)[1].warnings if p.code == "picture_grey"]
    assert found == ["cut.jpg", "zeros.jpg"]


@pytest.mark.parametrize("mode", ["CMYK", "L", "wide"])
def test_half_a_jpeg_is_named_whatever_its_colours(tmp_path, mode):
    """印刷色、带颜色配置的：换过颜色以后就不是正中间的灰了。"""
    image = Image.open(io.BytesIO(noisy_jpeg()))
    icc, file = gamma_one() if mode == "wide" else None, io.BytesIO()
    image.convert("RGB" if mode == "wide" else mode).save(file, "JPEG", icc_profile=icc)
    path = tmp_path / "a.jpg"
    path.write_bytes(file.getvalue()[: len(file.getvalue()) // 2] + b"\xff\xd9")
    path.with_suffix(".txt").write_text("一张图", encoding="utf-8")
    assert "picture_grey" in [p.code for p in inspect(tmp_path)[1].warnings]


def gamma_one() -> bytes:
    """一份线性的 RGB 配置：128 换成 sRGB 是 188。"""
    corners = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
    return matrix_profile(corners, (0.3127, 0.3290), 1.0)


@pytest.mark.parametrize("kind", ["WEBP", "HEIF", "AVIF"])
def test_a_file_that_ends_in_zeros_is_named(tmp_path, kind):
    """下载的程序先占好了地方、没有写满：这几种的解码器不报错。"""
    image, file = Image.open(io.BytesIO(noisy_jpeg())), io.BytesIO()
    image.save(file, kind)
    whole = file.getvalue()
    for name, data in (
        ("whole", whole),
        ("cut", whole[: len(whole) // 2].ljust(len(whole), b"\0")),
    ):
        path = tmp_path / f"{name}.{'heic' if kind == 'HEIF' else kind.lower()}"
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(f"图 {name}", encoding="utf-8")
    problems = inspect(tmp_path)[1].problems
    told = ("picture_hollow", "picture_broken", "picture_unknown")
    assert [p.path.stem for p in problems if p.code in told] == ["cut"]


def _segment(body: bytes) -> bytes:
    return (len(body) + 2).to_bytes(2, "big") + body


@pytest.mark.parametrize(
    ("caption", "word"),
    [
        ("a", "只是文件名"),
        ("https://example.com/a.jpg", "“https://example.com/”"),
        ("好的！以下是这张图的描述：一只猫", "“好的！”"),
        ("Sure, here is a caption: a cat", "“Sure,”"),
        ("I'm sorry, but I can't assist with that.", "“I'm sorry”"),
        ("Sorry, I cannot help", "“Sorry,”"),
        ("抱歉，我看不清", "“抱歉”"),
        ("我无法识别图里的人", "“我无法识别”"),
        ('["a cat", "a dog"]', '“["a cat", "a dog"]”'),
        ("IMG_0001.JPG", "“IMG_0001.JPG”"),
        ("一只猫在草地上。希望对你有帮助！", "“希望对你有帮助”"),
        ("**主体**：一只猫", "“**”"),
    ],
)
def test_captions_that_do_not_speak_of_the_picture(caption, word):
    record = Record(Path("a.png"), caption, (64, 64), "0")
    (found,) = [p for p in lint([record], "", Path(".")) if p.code == "caption_hollow"]
    assert word in found.reason


@pytest.mark.parametrize("caption", ["当然的主角是一只猫", "a sure-footed goat", "2 * 3 的格子"])
def test_other_openings_are_left_alone(caption):
    assert "caption_hollow" not in said([caption])


@pytest.mark.parametrize("fake", ["ｏｈｗｘ", "оhwх", "OHWX", "Οhwx"])
def test_a_trigger_in_look_alike_letters_is_named(tmp_path, scenes, fake):
    for i, name in enumerate("abcd"):
        scenes[i].save(tmp_path / f"{name}.png")
        word = fake if name == "c" else "ohwx"
        (tmp_path / f"{name}.txt").write_text(f"{word} 猫，第 {i} 张", encoding="utf-8")
    (found,) = [p for p in inspect(tmp_path, "ohwx")[1].warnings if p.code == "trigger_missing"]
    assert "1 份没有触发词“ohwx”：c.png；c.png 里写的看着像它" in found.reason


@pytest.mark.parametrize(
    "caption", ["一只橘猫坐在窗台上", "你好", "猫", "沙发上的两只猫，正在睡觉"]
)
@pytest.mark.parametrize("read_as", ["latin-1", "gb18030", "cp1252"])
def test_utf8_read_as_something_else_and_saved_again(caption, read_as):
    wrecked = caption.encode().decode(read_as, "replace")
    assert "caption_garbled" in said([wrecked])


@pytest.mark.parametrize(
    "caption", ["锟斤拷一只猫", "a \ufffd cat", "一只\ue1f5", "猫".encode("gbk").decode()]
)
def test_letters_that_were_lost(caption):
    assert "caption_garbled" in said([caption])


@pytest.mark.parametrize(
    "caption",
    [
        "图片",
        "你好，世界",
        "日本の猫",
        "고양이",
        "“quotes” — dash…",
        "Ångström café’s",
        "😀 一只猫",
    ],
)
def test_letters_that_only_look_odd(caption):
    assert "caption_garbled" not in said([caption])
