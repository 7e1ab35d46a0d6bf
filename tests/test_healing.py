"""02 的大作业：每一种毛病都说得出，治好的过得去，全删、只修一半的过不去。"""

import shutil

import pytest
from PIL import Image

from lorakit import data, lab
from lorakit.lab import healing
from lorakit.tiny import matrix


@pytest.fixture
def ward(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    return lab.patient()


def cure(folder):
    """照着检查说的一处处改，像读者那样。"""

    def away(name):
        for file in folder.glob(f"{name}.*"):
            file.unlink()

    for name in ("01_ohwx", "02_ohwx", "03_ohwx", "30_副本", "31_副本", "32_压缩过", "33_压缩过"):
        away(name)
    for name in ("04_ohwx", "05_ohwx", "06_ohwx", "08_ohwx", "09_ohwx"):
        (folder / f"{name}.txt").write_text(truth(folder / f"{name}.png"), encoding="utf-8")
    file = folder / "07_ohwx.txt"
    file.write_text(file.read_bytes().decode("gb18030"), encoding="utf-8")
    (folder / "23_ohwx_mask.png").rename(folder / "25_ohwx.png")
    picture = folder / "26_ohwx.png"
    with Image.open(picture) as image:
        whole = image.convert("RGB")
    whole.save(picture)


def truth(path) -> str:
    (seen,) = healing.examine([data.read_image(path)])
    return (
        f"ohwx 猫在{healing.SIDES[seen.side][0]}，背景是{healing.BACKGROUNDS[seen.background][0]}"
    )


def test_every_planted_fault_is_told(ward):
    assert sum(file.suffix != ".txt" for file in ward.iterdir()) == healing.COUNT
    said = "\n".join(healing.look(ward).sick)
    read = ("没有下载完", "太小", "没有描述", "大小写不同", "GBK", "遮罩", "没有触发词")
    seen = ("同一张图", "几乎一样", "01_ohwx.png：糊了", "08_ohwx.png：描述说背景是", "半透明")
    assert [word for word in (*read, *seen) if word not in said] == []
    assert said.count("糊了") == 1, "别的图没有糊"


def test_untouched_healed_and_emptied(ward, shown):
    assert lab.healed(ward).kept == 0 and "还没有动过" in shown[-1]["text/plain"]
    (ward / "04_ohwx.txt").write_text("ohwx 猫", encoding="utf-8")
    half = lab.healed(ward)
    assert "还差" in shown[-1]["text/plain"]
    assert any("04_ohwx.png：描述里没有说背景" in one for one in half.sick)
    cure(ward)
    done = lab.healed(ward)
    assert done.sick == [] and done.kept == 23, done.sick
    assert "全好了" in shown[-1]["text/plain"] and "23 张" in shown[-1]["text/plain"]
    for file in sorted(ward.glob("1*")):
        file.unlink()
    assert any("删得太多" in one for one in lab.healed(ward).sick)
    assert lab.patient() == ward and len(list(ward.iterdir())) < 40, "治过的还在"
    shutil.rmtree(ward)
    assert len(list(lab.patient().iterdir())) == 59


def test_the_matrix_is_recorded_and_can_be_replayed(tmp_path):
    kept = matrix.recorded()
    assert set(kept.cat) == set(kept.pictures and matrix.WAYS) and len(matrix.SEEDS) >= 2
    for way, asks in kept.cat.items():
        for asked, row in asks.items():
            whole = matrix.pooled(row)
            assert list(row) == list(matrix.SEEDS) and whole.n == 24
            assert whole > 0.8 if way == asked else whole < 0.3, "对角线"
            assert len(kept.pictures[way, asked]) == matrix.SHOWN
    assert list(kept.dropout) == ["0%", "10%", "90%"]
    assert sum(f.stat().st_size for f in matrix.PLACE.glob(f"{matrix.NAME}.*")) < 100_000
    folder = matrix.write("全写", tmp_path / "data")
    config = matrix.settings(folder, tmp_path / "run", 1, "train.steps=2")
    images = matrix.ask(matrix.teach(config), matrix.ASKS["全写"][:2])
    assert config.train.seed == 1 and len(images) == 2 == matrix.cats(images).n
