"""挑图的相册与像素杯：毛病各有几张、成绩怎么说。"""

from lorakit import lab
from lorakit.lab import capstone, practice
from lorakit.results.evidence import Share


def test_the_album_has_every_fault_and_a_good_choice():
    kinds = [photo.fault for photo in practice.photos().values()]
    assert len(kinds) == practice.COUNT and kinds.count("session") == practice.SESSION
    assert all(kinds.count(kind) == count for kind, (count, _) in practice.FAULTS.items())
    assert practice.places(set(practice.good())) >= practice.PLACES


def test_the_cup_wants_more_than_the_bar_and_things_still_known(capsys):
    assert "还没有超过" in capstone.verdict(Share(16, 26), Share(26, 26))
    assert "认不出" in capstone.verdict(Share(24, 26), Share(10, 26))
    assert "还碰着" in capstone.verdict(Share(22, 26), Share(24, 26))
    assert "也在线上" in capstone.verdict(Share(25, 26), Share(24, 26))
    lab.pixel_cup()
    assert "未完成" in capsys.readouterr().out
