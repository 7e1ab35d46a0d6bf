"""公开的表：量过的每一行都在，倍数与手算的相同，列对得齐、不超过 100 格。"""

import json
import re

import pytest

from lorakit.cli import main
from lorakit.errors import LorakitError
from lorakit.machine import table

MEASURED = json.loads((table.PLACE / "measured.json").read_text("utf-8"))
PEERS = json.loads((table.PLACE / "peers.json").read_text("utf-8"))
# 档、最近的训练器、它最好的一步
NEAREST = [
    ("qwen-80", "OneTrainer", 0.363), ("qwen-48", "OneTrainer", 0.402),
    ("qwen-24", "OneTrainer", 0.994), ("qwen-12", "musubi-tuner", 1.241),
    ("flux-24", "OneTrainer", 0.420),
]  # fmt: skip


@pytest.fixture(scope="module")
def made():
    return table.load()


def test_every_measured_row_is_printed(capsys):
    assert main(["bench", "--table"]) == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    for row in [*MEASURED, *PEERS["rows"]]:
        best = f"{row['best']:.3f} " if row.get("best") else ""
        assert f"{best}{row['step']:.3f} {row['allocated']:.1f}" in said, row
        if "seed" in row:
            assert f"{row['seed']:.3f} {row['seed_allocated']:.1f}" in said
    for peer in PEERS["peers"]:
        assert peer["commit"] in said and peer["repo"] in said
    assert PEERS["card"] in said and PEERS["date"] in said


def test_columns_line_up_and_lines_fit(made):
    text = made.text().splitlines()
    assert max(map(table.width, text)) <= 100
    heads = [line for line in text if line.startswith("训练器")]
    assert len(heads) == len(made.groups) and len(set(heads)) == 1
    place = table.width(heads[0].partition("中位")[0])
    for line in text:
        if re.match(r"\S.* \d\d-\d\d [A-Z]\d{3} ", line):
            cells, column = "".join(x * table.width(x) for x in line), place
            assert re.match(r"\d+\.\d{3}( |$)", cells[column:]), line
            assert cells[column - 2 : column] == "  ", line


@pytest.mark.parametrize(("key", "name", "best"), NEAREST)
def test_the_nearest_peer_is_compared_by_its_best_step(made, key, name, best):
    group = made.group(key)
    preset = next(one for one in PEERS["classes"] if one["key"] == key)["presets"][0]
    asis = [row for row in MEASURED if row["preset"] == preset and not row["set"]]
    mine = min(asis, key=lambda row: row["card"] != PEERS["card"])  # 没有就是别的卡上的
    assert (group.ours.trainer, group.ours.step) == (table.OURS, mine["step"])
    assert (group.nearest.trainer, group.nearest.best) == (name, best)
    assert group.nearest.ratio == pytest.approx(best / mine["step"])
    loses = best < mine["step"]
    assert ("还不如它" in group.verdict()) == loses
    assert f"{best / mine['step']:.2f} 倍" in group.verdict()
    assert ("在 H200 上量的" in group.verdict()) == (mine["card"] != PEERS["card"])


def test_what_does_not_fit_is_not_the_nearest(made):
    """27 GiB 的那一行最快，可是放不进 24 GB 的卡。"""
    lines = made.group("qwen-24").lines
    too_big = [line for line in lines if not line.fits]
    assert too_big and min(line.best for line in too_big) < made.group("qwen-24").nearest.best
    assert all("放不进" in line.settings for line in too_big)


def test_programs_can_read_it(capsys, made):
    assert main(["bench", "--table", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert sum(len(group["lines"]) for group in said["groups"]) == sum(
        len(group.lines) for group in made.groups
    )
    assert said["groups"][0]["nearest"]["trainer"] == "OneTrainer"
    assert {"peers", "threats", "unmeasured", "versions"} <= said.keys()
    assert main(["bench", "--json"]) == 1
    assert "--table" in capsys.readouterr().err


def test_every_row_belongs_to_a_class_and_a_known_peer():
    keys, names = {one["key"] for one in PEERS["classes"]}, {one["name"] for one in PEERS["peers"]}
    for row in PEERS["rows"]:
        assert row["class"] in keys and row["peer"] in names | {table.OURS}
        if row["best"] is not None:
            assert row["best"] <= row["step"] <= row["worst"]
        assert row["allocated"] <= row["reserved"]


def test_a_broken_file_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(table, "PLACE", tmp_path)
    (tmp_path / "measured.json").write_text('[{"date": 3}]', "utf-8")
    with pytest.raises(LorakitError, match=r"measured\.json"):
        table.load()
