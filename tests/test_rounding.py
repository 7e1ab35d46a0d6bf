"""bf16 的权重照样能练：随机舍入平均下来不偏；与 fp32 练的走得一样；断了续得上。"""

import pytest
import torch
from safetensors.torch import load_file

from lorakit.config import load_config
from lorakit.families import open_blank
from lorakit.lora import full
from lorakit.machine.estimate import GIB, measure
from lorakit.train import Trainer
from lorakit.training import rounding

FULL = ["lora.kind=full", "model.precision=bf16", "train.lr=1e-4"]


def test_rounding_goes_to_a_neighbour_and_is_right_on_average():
    source = rounding.generator(torch.device("cpu"), 0, 0)
    x = torch.tensor([1.0 + 2**-9, -3.0001, 1e-20, 0.0, 2.0]).repeat(20000, 1)
    rounded = rounding.stochastic(x, rounding.draw(x, source))
    assert rounded.dtype == torch.bfloat16
    gap = (rounded.float() - x).abs()
    assert (gap <= x.abs() * 2**-7).all() and (gap[:, 3:] == 0).all()  # 本来就是 bf16 的不动
    assert len(rounded[:, 0].unique()) == 2
    torch.testing.assert_close(rounded.double().mean(0), x[0].double(), rtol=1e-4, atol=0)
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf])
    kept = rounding.stochastic(bad, rounding.draw(bad, source)).float()
    torch.testing.assert_close(kept, bad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adafactor])
def test_tiny_updates_are_not_lost(make, monkeypatch):
    """每步只走 bf16 一格的百分之一：照常四舍五入一步也走不动，随机舍入走得和 fp32 一样远。"""
    monkeypatch.setattr(rounding, "PIECE", 3000)  # 分几块走
    ends = {}
    for how in ("fp32", "bf16", "rounded"):
        dtype = torch.float32 if how == "fp32" else torch.bfloat16
        learned = [torch.nn.Parameter(torch.ones(2000, dtype=dtype)) for _ in range(3)]
        optimizer = make(learned, lr=5e-5, weight_decay=0.0)
        if how == "rounded":
            now = iter(range(10**6))
            rounding.round_updates(optimizer, 0, lambda now=now: next(now))
        places = [p.data_ptr() for p in learned]
        for _ in range(100):
            for p in learned:
                p.grad = torch.ones_like(p)
            optimizer.step()
        assert places == [p.data_ptr() for p in learned]  # 还在原处
        assert all(p.dtype == dtype and p.grad.dtype == dtype for p in learned)
        ends[how] = 1 - float(torch.cat([p.detach() for p in learned]).double().mean())
    assert ends["bf16"] == 0 < ends["fp32"]
    assert ends["rounded"] == pytest.approx(ends["fp32"], rel=0.05)


def test_trains_resumes_exactly_and_saves_what_it_trained(config, cut_at_three):
    whole, cut = config(*FULL, output="whole"), config(*FULL, output="cut")
    trainer = Trainer(whole)
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    list(trainer)
    assert {p.dtype for p in trainer.parameters.values()} == {torch.bfloat16}
    moved = [name for name, p in trainer.parameters.items() if not torch.equal(p, before[name])]
    assert len(moved) > 0.8 * len(before)  # 只有几十个数的归一化系数，4 步里可能一个也没进位
    cut_at_three(cut)
    for file in ("weights", "optimizer"):
        a, b = (load_file(c.run.output / f"checkpoint-4/state/{file}.safetensors")
                for c in (whole, cut))  # fmt: skip
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    moments = [key for key in a if key.endswith("exp_avg")]
    assert moments and all(a[key].dtype == torch.float32 for key in moments)
    saved = load_file(full.find(whole.run.output) / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(saved[name], p) for name, p in trainer.parameters.items())


def test_full_size_fits_one_large_card(tmp_path):
    config = load_config("qwen-image-full")
    family = open_blank(config, tmp_path, torch.device("meta"), torch.bfloat16)
    asked = measure(family, config)
    assert 100 * GIB < asked.peak(config, 1.0) < 130 * GIB
