"""录 CUDA 图的规矩：什么时候录、什么时候重放、什么时候让地方；真的录与重放在 test_cuda.py。"""

from types import SimpleNamespace

import pytest
import torch

from lorakit.cli import train as cli_train
from lorakit.errors import LorakitWarning
from lorakit.families import open_family
from lorakit.memory import devices
from lorakit.memory.recompute import Recompute
from lorakit.train import Trainer
from lorakit.training import graphs, preflight
from lorakit.training.objective import Batch

GIB = 2**30


@pytest.fixture
def card(monkeypatch):
    """一块假的显卡：记着占了多少、还剩多少。"""
    now = SimpleNamespace(peak=10 * GIB, used=8 * GIB, reserved=8 * GIB, free=4 * GIB)
    fakes = {
        "graph_pool_handle": object, "empty_cache": lambda: None,
        "max_memory_allocated": lambda device: now.peak,
        "memory_allocated": lambda device: now.used,
        "memory_reserved": lambda device: now.reserved,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(devices, "free_memory", lambda device: now.free)
    return now


class Tape:
    """录下的图的替身：重放就是照着固定位置上的输入再算一遍。"""

    def __init__(self, work, held, layout):
        self.work, self.held, self.layout, self.loss = work, held, layout, torch.zeros(())

    def replay(self):
        self.loss.copy_(self.work(graphs.pytree.tree_unflatten(self.held, self.layout)))


@pytest.fixture
def made(card, monkeypatch):
    """损失是 (w x)² 的平均：x 的尺寸、描述的长短由批的号码决定；记下录了几次。"""
    weight = torch.nn.Parameter(torch.tensor(2.0))

    class Square:
        device = torch.device("cpu")

        def batch(self, number, *keys):
            x = torch.full((number % 10, 1, 1, 1), float(keys[0]))  # 末位是图的尺寸
            words = torch.zeros(number // 10, 2)  # 前面几位是描述的长短
            return Batch([((x, words), torch.ones(1))], torch.zeros(1), [])

        def total(self, parts):
            return sum(((weight * x).square().mean() * share).mean() for (x, _), share in parts)

    made = graphs.Graphs(Square(), Recompute("off", [], Square.device), 2)
    made.weight, made.recorded = weight, 0

    def record(given, layout):
        made.recorded += 1
        held = [None if x is None else x.clone() for x in given]
        tape = Tape(made._work, held, layout)
        return held, tape, tape.loss

    monkeypatch.setattr(made, "_record", record)
    return made


def test_third_time_is_recorded_and_every_result_is_the_same(made):
    for time, key in enumerate((1, 2, 3, 4, 5)):
        made.weight.grad = torch.zeros(())
        loss, _, _ = made.draw(3, key)
        assert float(loss) == pytest.approx((2 * key) ** 2)
        assert float(made.weight.grad) == pytest.approx(2 * 2 * key**2 / 2)  # 累积两份，各除以 2
        assert made.recorded == (time >= graphs.WARM)
    kept = made.draw(3, 1)[0]
    made.draw(3, 9)
    assert float(kept) == pytest.approx(4)  # 后来的重放不改先前的损失


def test_each_shape_has_its_own_graph(made):
    for number in (3, 4, 3, 4, 3, 4, 3):
        made.draw(number, 1)
    assert made.recorded == len(made.made) == 2
    made.forget()
    made.draw(3, 1)  # 已经热过身，马上重录
    assert made.recorded == 3 and len(made.made) == 1


def test_a_new_length_of_a_known_size_is_recorded_at_once(made):
    for number in (3, 13, 23, 33, 3):
        made.draw(number, 1)
    assert made.recorded == len(made.made) == 3  # 头两次照常走，之后长短不同的各录一张


@pytest.mark.parametrize("error", [RuntimeError("recompile"), torch.OutOfMemoryError("full")])
def test_a_new_length_that_cannot_be_recorded_at_once_walks_first(made, monkeypatch, error):
    """别的长短不受牵连：录好的还在（显存不够才让出来），没见过的照样头一次就录。"""
    record, failed = made._record, []

    def fail_once(given, layout):
        if len(given[1]) == 2 and not failed:  # 描述长 2 的头一次录不成
            failed.append(1)
            raise error
        return record(given, layout)

    monkeypatch.setattr(made, "_record", fail_once)
    losses = [float(made.draw(number, 1)[0]) for number in (3, 13, 13, 23)]
    kept = len(made.made)
    losses += [float(made.draw(number, 1)[0]) for number in (33, 23, 23)]
    assert losses == [4] * 7 and failed and not made.refused
    assert kept == (0 if isinstance(error, torch.OutOfMemoryError) else 1)
    assert len(made.made) == kept + 2 and made.recorded == 3


@pytest.mark.parametrize(("free", "kept"), [(5 * GIB, 1), (3 * GIB, 0)])
def test_graphs_make_room_for_an_unknown_shape(made, card, free, kept):
    """照常走一步另要 2 GiB，再留 1 GiB；图占着 1 GiB，所以空闲 5 GiB 够，3 GiB 就要让出来。"""
    for _ in range(3):
        made.draw(3, 1)
    card.reserved, card.free = card.used + GIB, free
    made.draw(5, 1)
    assert made.need == 2 * GIB and len(made.made) == kept


def test_streamed_blocks_are_in_place_before_every_replay(made, monkeypatch):
    calls = []
    made.streamer = SimpleNamespace(
        settle=lambda: calls.append("settle"), drop=lambda: calls.append("drop")
    )
    for key in range(5):
        made.draw(3, key)
    assert calls == ["settle"] * 3  # 头两次照常走

    def fail(given, layout):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(made, "_record", fail)
    with pytest.warns(LorakitWarning, match="没有录图"):
        for key in range(3):
            made.draw(4, key)
    assert calls[3:] == ["drop"]  # 录到一半，格子里的不算数


def test_what_cannot_be_recorded_trains_as_usual(made, monkeypatch):
    def fail(given, layout):
        raise RuntimeError("Cannot copy between CPU and CUDA tensors\nmore")

    monkeypatch.setattr(made, "_record", fail)
    made.draw(3, 1), made.draw(3, 1)
    with pytest.warns(LorakitWarning, match="没有录图，照常练.*Cannot copy") as told:
        assert [float(made.draw(3, key)[0]) for key in (1, 2)] == [4, 16]
    assert len(told) == 1 and not made.made


def test_shapes_beyond_the_limit_walk_and_the_rest_stay_recorded(made, card, monkeypatch):
    monkeypatch.setattr(graphs, "MOST", 2)
    card.free = 5 * GIB
    for number in (3, 4, 5):
        for _ in range(4):
            assert float(made.draw(number, 1)[0]) == 4
    assert len(made.made) == 2 and not made.refused
    card.free = 2 * GIB  # 让出来也只是再录一遍，所以不录了
    with pytest.warns(LorakitWarning, match="2 种以上"):
        made.draw(5, 1)
    assert made.refused and not made.made


def test_graphs_without_a_card_are_said_to_do_nothing(config):
    settings = config("memory.compile=graphs")
    family = open_family(settings, torch.device("cpu"))
    with pytest.warns(LorakitWarning, match="不录图.*一块 NVIDIA"):
        preflight.check(settings, family)
    assert Trainer(settings, family=family).graphs is None


def test_warmup_is_told_apart_from_a_usual_step():
    said = cli_train.warmup([40.0, 2.0, 3.0, *[0.5] * 17])
    assert "正常的一步 0.5 秒" in said and "头 10 步" in said and "多用了 44 秒" in said
    assert "头 2 步" in cli_train.warmup([3.0, 1.0])
