"""讲解用的图：地图上的每一处都点得亮，结构图上的数就是真网络的数。"""

import pytest

from lorakit import lab
from lorakit.errors import LorakitError
from lorakit.lab import blueprint, journey
from lorakit.lab.picture import RED, render


def words(figure) -> str:
    return "\n".join(text.get_text() for axis in figure.axes for text in axis.texts)


def test_every_place_on_the_map_can_be_lit():
    for name in journey.STAGES:
        figure = journey.drawn(name)
        assert words(figure).count("你在这里") == 1
        lit = [p for p in figure.axes[0].patches if p.get_linewidth() > 2]
        assert len(lit) == 1 and _edge(lit[0]) == RED
    render(journey.drawn(*journey.STAGES))  # 缺一个字也会抛出
    assert "你在这里" not in words(journey.drawn())
    reached = {end for _, end in journey.ROADS}
    assert set(journey.STAGES) - reached == {"folder"}, "每一处都有路通到"


def _edge(patch) -> str:
    from matplotlib.colors import to_hex

    return to_hex(patch.get_edgecolor())


def test_an_unknown_place_is_told_with_the_nearest(shown):
    with pytest.raises(LorakitError, match="是不是想写“cache”"):
        lab.where("cach")
    lab.where("cache")
    assert "image/png" in shown[-1]


@pytest.mark.parametrize(
    ("preset", "parameters", "double", "single", "width", "tokens", "told"),
    [
        ("tiny-qwen-image", 3_866_112, 4, 0, 160, 64, ()),
        ("tiny-flux", 2_114_944, 2, 3, 128, 64, ("引导", "整句话")),
        ("qwen-image", 20_430_401_088, 60, 0, 3072, 4096, ()),
        ("flux-dev", 11_901_408_320, 19, 38, 3072, 4096, ("引导", "整句话")),
    ],
)
def test_the_blueprint_says_what_the_network_is(
    preset, parameters, double, single, width, tokens, told
):
    """块数、宽度与官方公布的相同；参数数目是原装的类按那份设置搭出来的。"""
    net = blueprint.facts(preset)
    assert (net.parameters, net.double, net.single) == (parameters, double, single)
    assert (net.width, net.tokens, net.told) == (width, tokens, told)
    said = words(blueprint.drawn(preset))
    assert f"双流块 × {double}" in said and ("单流块" in said) is bool(single)
    assert ("引导" in said) is bool(told)


def test_another_kind_of_network_is_refused():
    with pytest.raises(LorakitError, match="z-image 不是这样搭的"):
        blueprint.facts("z-image")
