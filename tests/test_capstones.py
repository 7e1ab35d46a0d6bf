"""空格子里写训练、没有标签的检查点：对的通过，几种典型的错各说得出错在哪。"""

import pytest
import torch

import lorakit
from lorakit import cache, flow, lab, lora
from lorakit.lab import empty_cell, unlabelled
from lorakit.lab.recordings import recorded
from lorakit.training.objective import Objective, generator


def by_hand(config, lr=None, train=lambda net, learned: learned):
    """不用 Trainer 的训练，二十来行；几个参数用来故意写错。"""
    family = lorakit.open_family(config)
    data = cache.prepare(config, family)
    net = family.load("transformer").train()
    learned = train(net, list(lora.attach(net, family, config.lora, seed=1).values()))
    optimizer = torch.optim.AdamW(learned, lr=config.train.lr if lr is None else lr)
    order = Objective(config, family, data, net, family.device)
    for step in range(config.train.steps):
        rng = generator(7, step)
        items = [data.train[i] for i in order.batches.batch(step)]
        x0 = torch.stack([item.mean for item in items])
        noise = torch.randn(x0.shape, generator=rng)
        t = flow.sample_t(len(items), config.train.timestep.density, order.shift, rng)
        cond = family.collate([item.cond for item in items])
        v = family.predict_velocity(net, flow.add_noise(x0, noise, t), t, cond)
        flow.loss(v, flow.velocity(x0, noise)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return net


def unfrozen(net, learned):
    net.requires_grad_(True)
    return list(net.parameters())


@pytest.fixture
def quick(monkeypatch, own_cache):
    monkeypatch.setattr(empty_cell, "STEPS", 4)
    monkeypatch.setattr(empty_cell, "COUNT", 8)


def test_a_loop_of_ones_own_passes(quick, capsys):
    lab.from_scratch(by_hand)
    said = capsys.readouterr().out
    assert "✓ 通过" in said and "本机最好的" in said


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (lambda config: by_hand(config, lr=0.0), "什么也没学到"),
        (lambda config: by_hand(config, train=unfrozen), "冻住"),
        (lambda config: lorakit.open_family(config).load("vae"), "找不到"),
        (lambda config: "学完了", "要返回练好的网络"),
        (lambda config: print("学完了"), "返回了 None"),
        (lambda config: config.nothing, "先让它能跑起来"),
        (lambda config: ..., "未完成"),
        (..., "未完成"),
    ],
)
def test_what_went_wrong_is_said(quick, capsys, train, said):
    lab.from_scratch(train)
    assert said in capsys.readouterr().out


def test_how_much_was_learned():
    assert "越练越差" in empty_cell.verdict(-0.2, -1.0)
    assert "只学到训练器的 50%" in empty_cell.verdict(0.2, 0.5)
    assert "✓" in empty_cell.verdict(0.2, 1.02)


def test_unlabelled_checkpoints(own_cache, shown, capsys):
    record = recorded(unlabelled.NAME)
    where = unlabelled.order(record)
    assert sorted(where.values()) == sorted(record.checkpoints) and len(where) == 6
    assert list(where.values()) != sorted(where.values()), "不能照步数排"
    lab.lineup()
    assert "未完成" in capsys.readouterr().out and "第" not in shown[-1]["text/plain"]
    colors = {
        one: [light.color for light in record.checkpoints[step][1]] for one, step in where.items()
    }
    good = [one for one in where if set(colors[one]) == {"绿"}]
    guilty = "".join(one for one in where if colors[one][2] != "绿")
    assert good and guilty, "有好的，也有抄的"
    lab.lineup(最好的=good[0], 抄的=guilty)
    said = capsys.readouterr().out
    assert said.count("✓") == 2 and "本机最好的（两问对几问）： 2" in said
    lab.lineup(最好的=guilty[0], 抄的="".join(good))
    said = capsys.readouterr().out
    assert "✗ 最好的" in said and "漏了" in said and "冤枉了" in said
    lab.lineup(最好的="子", 抄的="")
    assert "都从 甲、乙" in capsys.readouterr().out
