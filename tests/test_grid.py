"""秩与学习率的九格：每格两个种子都记着，书里说的每一句差别都从记录里算得出来。"""

import pytest
from PIL import Image

from lorakit.files import read_json
from lorakit.results.evidence import claim
from lorakit.tiny import grid, samples
from lorakit.tiny.matrix import ask, record, teach


def test_every_cell_has_two_trainings():
    kept = grid.recorded()
    assert list(kept.held) == list(kept.cat) == list(grid.cells()) and len(kept.held) == 9
    for cell in grid.cells():
        assert list(kept.held[cell]) == list(kept.cat[cell]) == list(grid.SEEDS)
        assert len(grid.SEEDS) >= 2 and kept.share(cell).n == 12 * len(grid.SEEDS)
        assert len(kept.pictures[cell]) == len(grid.SEEDS)
        sizes = {seed: len(values) for seed, values in kept.held[cell].items()}
        assert sizes == {seed: len(values) for seed, values in kept.blank.items()}
    assert sum(f.stat().st_size for f in grid.PLACE.glob(f"{grid.NAME}.*")) < 50_000


def test_what_the_book_says_about_the_nine_cells():
    """4.7 节的每一句：成立的真的成立，说不出的真的说不出。"""
    kept = grid.recorded()
    champion, thin = kept.best(), kept.best(rank=2)
    slow, fast = kept.best(rate=1e-4), kept.best(rate=1e-2)
    assert champion == (32, 1e-3) and thin == (2, 1e-3)
    held, cat = kept.held, kept.cat
    worse = [(slow, champion), (fast, champion), (thin, champion), (fast, thin)]
    for one, other in worse:
        found = claim(held[one], held[other])
        assert found.holds and found.difference > 0
    assert not claim(held[slow], held[thin]).holds
    above = claim(held[32, 1e-2], kept.blank)
    assert above.holds and above.difference > 0, "比没练还高"
    assert claim(cat[slow], cat[thin]).holds and kept.share(slow) == 0
    more = claim(cat[8, 1e-2], cat[8, 1e-3])
    assert more.holds and more.difference > 0, "50 步偏爱大的学习率"


def test_a_cell_can_be_trained_again(tmp_path):
    folder = samples.write("ohwx-cat", tmp_path / "ohwx")
    config = grid.settings(folder, tmp_path / "run", (8, 1e-3), 1, "train.steps=2")
    assert (config.lora.rank, config.train.lr, config.train.seed) == (8, 1e-3, 1)
    trainer = teach(config)
    assert len(grid.held(trainer)) == len(grid.recorded().blank[1])
    assert len(ask(trainer, ["一只大ohwx 猫在中间，背景是草地"])) == 1


def test_a_recording_is_written_where_asked(tmp_path, capsys):
    seen = []

    def measured(home):
        seen.append(list(home.iterdir()))
        return {"剪纸": [1]}, Image.new("RGB", (8, 8))

    record("lorakit.tiny.grid", "说明", "name", measured, [str(tmp_path / "新的")])
    assert seen == [[]] and read_json(tmp_path / "新的" / "name.json", dict) == {"剪纸": [1]}
    assert Image.open(tmp_path / "新的" / "name.webp").size == (8, 8)
    with pytest.raises(SystemExit):
        record("lorakit.tiny.grid", "说明", "name", measured, [])
    assert "python -m lorakit.tiny.grid" in capsys.readouterr().err
