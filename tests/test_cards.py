"""没有卡也能估：卡的表有来处，推到量过的卡上对得上，坏的输入说清楚。"""

import re

import pytest

from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import ConfigError
from lorakit.machine import cards, rent
from lorakit.machine.doctor import WARN


def spread(name: str, card: str):
    """(最快, 最慢) 秒一步。"""
    card, config = cards.find(card), load_config(name)
    asked = rent._measured(name, *rent._changes(config, card))
    return rent.pace(rent._able(config, card), asked, card)


def test_every_card_says_where_its_numbers_are_from():
    assert {"RTX 3060", "RTX 3090", "RTX 4070", "RTX 4090", "RTX 5090"} < set(cards.table())
    assert {"A100", "L20", "H20", "H100"} < set(cards.table())
    for card in cards.table().values():
        assert "NVIDIA" in card.source
        assert re.search(r"20[12]\d", card.source), "来处要写哪一年"
        assert card.bf16 is None or 1.5 < card.bf16 / card.fp32 < 20


@pytest.mark.parametrize("name", [
    "4060ti 16gb", "4060 Ti 8GB", "4070 Ti Super", "5060ti16gb", "5070", "RTX5080", "2080ti",
    "A10", "A40", "A6000", "L4", "L40S", "T4",
])  # fmt: skip
def test_cards_people_have_are_there(name):
    """同一代的算力与核心数、频率成正比：游戏卡的 bf16（FP32 累加）是 fp32 的两倍，专业卡四倍。"""
    card = cards.find(name)
    if card.bf16:
        times = 2 if card.name.startswith("RTX") and card.name != "RTX A6000" else 4
        assert card.bf16 / card.fp32 == pytest.approx(times, rel=0.02)
    assert card.fp8 == bool(re.match(r"RTX [45]|L4", card.name))


def test_a_size_is_told_by_its_slowest_and_fastest_card():
    told = {tier: [card.name for card in cards.with_memory(tier)] for tier in (12, 16, 24, 48)}
    assert told[24] == ["RTX 3090", "RTX 4090"] and told[16] == ["RTX 4060 Ti 16GB", "RTX 5080"]
    assert told[12] == ["RTX 3060", "RTX 5070"] and told[48] == ["L20", "L40S"]
    assert [card.name for card in cards.with_memory(30)] == ["RTX 5090"]
    assert cards.with_memory(500) == []


def test_names_as_people_write_them():
    for name in ("4090", "rtx4090", "RTX 4090", "GeForce RTX-4090"):
        assert cards.find(name).name == "RTX 4090"
    with pytest.raises(ConfigError, match=r"是不是想写“RTX 4090”.*--tier"):
        cards.find("409")


def test_what_was_measured_elsewhere_lies_in_the_estimate(monkeypatch):
    """H100 上量过的推到 H200：H200 自己量到的在范围里（把那一次藏起来）。"""
    truth = spread("qwen-image", "H200")
    assert truth[0] == truth[1]
    rows = tuple(one for one in cards._measured() if "H200" not in one[0]["card"])
    monkeypatch.setattr(cards, "_measured", lambda: rows)
    low, high = spread("qwen-image", "H200")
    assert low < truth[0] < high


def test_a_better_card_is_faster_and_a_range_is_not_too_wide():
    pace = [spread("flux-dev-24gb", card) for card in ("5090", "4090", "3090")]
    assert [p[0] for p in pace] == sorted(p[0] for p in pace)
    assert all(1 < high / low < 2 for low, high in pace)


def test_hours_and_money_on_the_command_line(capsys):
    assert main(["doctor", "flux-dev-24gb", "--card", "4090", "--price", "2", "--offline"]) == 0
    said = capsys.readouterr().out
    low, high = spread("flux-dev-24gb", "4090")
    assert f"每步约 {cards.told(low, high)} 秒" in said and "估计" in said
    assert f"约 {cards.told(low * 4000 / 3600, high * 4000 / 3600)} 元" in said
    assert main(["doctor", "flux-dev-24gb", "--tier", "24", "--offline"]) == 0
    assert "RTX 3090 上每步约" in capsys.readouterr().out
    for bad, why in ((["--card", "409"], "是不是"), (["--price", "2"], "--card")):
        assert main(["doctor", "flux-dev-24gb", "--offline", *bad]) == 1
        assert why in capsys.readouterr().err
    assert main(["doctor", "--card", "4090"]) == 1


def test_a_card_without_bf16_or_fp8_says_so():
    found = rent.examine(load_config("flux-dev-12gb"), online=False, card=cards.find("T4"))
    assert [c.level for c in found if c.key == "gpu" and "bf16" in c.said] == [WARN]
    matmul = load_config("flux-dev-24gb", ["model.quantize=fp8-matmul"])
    found = rent.examine(matmul, online=False, card=cards.find("3090"))
    assert any(c.level == WARN and "RTX 3090 没有 fp8 的矩阵乘法" in c.said for c in found)
    plain = load_config("flux-dev-24gb", ["model.quantize=fp8"])
    same = rent.examine(plain, online=False, card=cards.find("3090"))
    assert [c.said for c in found if c.key == "time"] == [c.said for c in same if c.key == "time"]


def test_each_card_gets_the_roomiest_preset_that_fits():
    some = [cards.find(name) for name in ("3060", "4090", "H100")]
    found = rent.plans("flux-dev", some, {"4090": 2.0}, steps=1000)
    assert [plan.preset for plan in found] == ["flux-dev-12gb", "flux-dev-24gb", "flux-dev"]
    assert found[1].yuan == pytest.approx(tuple(2 * h for h in found[1].hours))
    assert found[0].yuan is None and found[2].measured
