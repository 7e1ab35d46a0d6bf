"""几个来源：列表、重复次数；写错了说清楚；描述超过编码器的上限会说。"""

import shutil
from collections import Counter

import pytest
from PIL import Image

from lorakit import cache, cli
from lorakit.config import load_config
from lorakit.config.groups import Source
from lorakit.data import Batches, inspect, load_sources
from lorakit.errors import ConfigError, DataError, InspectionWarning
from lorakit.train import Trainer
from lorakit.training.plan import Plan


@pytest.fixture
def folders(papercut, tmp_path):
    made = []
    for name, part in (("甲", slice(0, 4)), ("乙", slice(4, 6))):
        (tmp_path / name).mkdir()
        for path in sorted(papercut.glob("*.png"))[part]:
            shutil.copy(path, tmp_path / name)
            shutil.copy(path.with_suffix(".txt"), tmp_path / name)
        made.append(tmp_path / name)
    return made


def test_three_ways_to_write_the_list_agree(tmp_path):
    wanted = (Source(folder="a"), Source(folder="b c", repeats=5))
    text = "data:\n  folder:\n  - a\n  - {folder: b c, repeats: 5}\n"
    (tmp_path / "x.yaml").write_text(text)
    assert load_config(tmp_path / "x.yaml").data.sources == wanted
    tree = {"data": {"folder": ["a", {"folder": "b c", "repeats": 5}]}}
    assert load_config(tree).data.sources == wanted
    config = load_config(None, ["data.folder=[a, {folder: b c, repeats: 5}]"])
    assert config.data.sources == wanted
    (tmp_path / "y.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(tmp_path / "y.yaml") == config
    assert load_config(None, ["data.folder=a"]).data.sources == (Source(folder="a"),)
    assert load_config().data.sources == ()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[]", "列表是空的"),
        ("[a, {folder: b, repeats: 0}]", "data.folder 的第 2 个：得到"),
        ("[a, {path: b}]", "应为：路径，或 {folder: 路径, repeats: 不小于 1 的整数}"),
        ("[[a]]", "data.folder 的第 1 个"),
    ],
)
def test_a_wrong_list_says_which_and_what(value, said):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"data.folder={value}"])
    assert said in str(caught.value)


def test_repeats_decide_how_often_each_is_seen(config, family, folders):
    first, second = folders
    settings = config(
        f"data.folder=[{first}, {{folder: {second}, repeats: 3}}]",
        "data.repeats=2",
        "eval.holdout=0",
    )
    trainer = Trainer(settings)
    batches = trainer.objective.batches
    seen = Counter(i for k in range(batches.per_epoch) for i in batches.batch(k))
    assert [seen[i] for i in range(6)] == [2, 2, 2, 2, 6, 6]
    plan = trainer.plan()
    assert plan.text().startswith("6 张图 × 重复 3.33 = 每轮 20 张，分成 10 批")
    assert plan.epochs == pytest.approx(0.4) and plan.views == pytest.approx(0.4 * 20 / 6)


def test_equal_repeats_shuffle_as_before():
    shapes = [(2, 1), (1, 2)] * 5
    one, listed = Batches(shapes, 2, 7, 3), Batches(shapes, 2, 7, [3] * 10)
    assert [one.batch(k) for k in range(20)] == [listed.batch(k) for k in range(20)]
    assert one.per_epoch == listed.per_epoch
    assert "重复 3 = 每轮 30 张" in Plan(10, 3, 2, 1, 1, 50, one.per_epoch).text()


def test_the_same_file_twice_is_refused(folders):
    first, _ = folders
    with pytest.raises(DataError, match="都能走到，会学两遍"):
        load_sources([Source(folder=first), Source(folder=first.parent)])


def test_copies_in_another_source_are_told(folders, tmp_path, capsys):
    """一字不差的、另存过的都说，体检和训练都说；没有重复的来源不说。"""
    first, second = folders
    name = sorted(path.stem for path in first.glob("*.png"))[0]
    for suffix in (".png", ".txt"):
        shutil.copy(first / (name + suffix), second / f"又一份{suffix}")
    shutil.copy(first / f"{name}.txt", second / "小的.txt")
    with Image.open(first / f"{name}.png") as image:
        image.resize((96, 96)).save(second / "小的.jpg", quality=90)
    settings = tmp_path / "x.yaml"
    settings.write_text(f"data: {{folder: ['{first}', '{second}'], resolution: 128}}\n", "utf-8")
    assert cli.main(["check", str(settings)]) == 0
    said = capsys.readouterr().out
    assert f"1 张图和 {first} 里的内容一样，会多学一遍：又一份.png" in said
    sources = [Source(folder=folder) for folder in folders]
    with pytest.warns(InspectionWarning, match=r"乙 的 1 张图和 .*甲 里的内容一样"):
        assert len(load_sources(sources)) == 8
    (second / "又一份.png").unlink()
    (second / "又一份.txt").unlink()
    with pytest.warns(InspectionWarning, match=r"乙 的 1 张图和 .*甲 里的几乎一样.*小的\.jpg"):
        load_sources(sources)


def test_every_source_is_checked(folders):
    (folders[1] / "坏.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"坏\.png"):
        load_sources([Source(folder=folder) for folder in folders])


def test_folder_names_with_counts_are_told_not_guessed(folders):
    top = folders[0].parent
    folders[0].rename(top / "10_剪纸")
    folders[1].rename(top / "2024_旅行")
    records, report = inspect(top)
    assert {r.repeats for r in records} == {1}
    wanted = f"data.folder: [{{folder: {top / '10_剪纸'}, repeats: 10}}]"
    assert [p.code for p in report.notes if wanted in p.reason] == ["folder_counted"]


# ---- 描述的长度 ----


def test_a_caption_beyond_the_encoder_is_named(folders, family, capsys):
    long = "一只红色的猫在草地上，" * 400
    path = next(folders[0].glob("*.txt"))
    path.write_text(long, encoding="utf-8")
    count = family.count_tokens([long])[0]
    assert count > family.caption_limit == 1024
    assert cli.main(["check", str(folders[0]), "--config", "tiny-qwen-image"]) == 0
    said = capsys.readouterr().out
    assert f"描述有 {count} 个词元，qwen-image 的文本编码器最多读 1024 个" in said
    assert f"约 {1 - 1024 / count:.0%} 会被截掉" in said
    path.write_text("一只猫", encoding="utf-8")
    cli.main(["check", str(folders[0]), "--config", "tiny-qwen-image"])
    assert "会被截掉" not in capsys.readouterr().out


def test_the_limit_is_where_the_encoder_stops(family):
    """超过上限的部分改成什么，文字条件都一样；上限以内的改一个字就不同。"""
    unit = "猫"
    each = family.count_tokens([unit * 10])[0] / 10
    base = unit * int(2000 / each)
    longer = family.encode_prompts([base, base + "狗" * 50])
    assert (longer[0]["text"] == longer[1]["text"]).all()
    assert len(longer[0]["text"]) <= family.caption_limit


def test_cached_captions_are_encoded_once(config, family, folders):
    for path in folders[0].glob("*.txt"):
        path.write_text("剪纸", encoding="utf-8")
    counts = {}
    settings = config(f"data.folder={folders[0]}", "eval.holdout=0")
    cache.prepare(settings, family, lambda what, i, n: counts.update({what: n}))
    assert counts["编码描述"] == 2  # 四张图同一句话，加上空描述
