"""方法：与手算的值比。"""

import pytest
import torch

from lorakit import flow


def test_add_noise_by_hand():
    x0, noise = torch.tensor([[[[2.0]]], [[[4.0]]]]), torch.tensor([[[[10.0]]], [[[0.0]]]])
    x_t = flow.add_noise(x0, noise, torch.tensor([0.25, 1.0]))
    assert x_t.flatten().tolist() == [0.75 * 2 + 0.25 * 10, 0.0]


def test_velocity_carries_noise_back_to_the_picture():
    x0, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    t = torch.tensor([0.2, 0.5, 0.9])
    x_t = flow.add_noise(x0, noise, t)
    back = flow.euler_step(x_t, flow.velocity(x0, noise), t, torch.zeros(3))
    torch.testing.assert_close(back, x0, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("t", "shift", "expected"), [(0.5, 3.0, 0.75), (0.5, 1.0, 0.5), (0.25, 2.0, 0.4)]
)
def test_shift_by_hand(t, shift, expected):
    assert flow.shift_t(torch.tensor(t), shift).item() == pytest.approx(expected)


def test_shift_equals_the_stock_scheduler():
    import math

    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    t = torch.linspace(0.05, 0.95, 7)
    ours = flow.shift_t(t, math.exp(0.8))
    torch.testing.assert_close(ours, scheduler.time_shift(0.8, 1.0, t))


def test_sample_t_densities():
    def draw(density, shift=1.0):
        return flow.sample_t(20000, density, shift, torch.Generator().manual_seed(0))

    uniform, normal = draw("uniform"), draw("logit-normal")
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    assert uniform.std().item() == pytest.approx(12**-0.5, abs=0.01)
    assert torch.logit(normal).std().item() == pytest.approx(1.0, abs=0.03)
    assert draw("uniform", 3.0).mean() > 0.63  # 解析值 1.5 - 0.75 ln 3 = 0.676
    assert draw("uniform", 3.0).mean().item() == pytest.approx(1.5 - 0.75 * 1.0986, abs=0.01)


def test_loss_is_per_picture():
    loss = flow.loss(torch.tensor([[[[1.0, 3.0]]], [[[0.0, 0.0]]]]), torch.zeros(2, 1, 1, 2))
    assert loss.tolist() == [5.0, 0.0]


def test_guide_by_hand():
    assert flow.guide(torch.tensor(3.0), torch.tensor(1.0), 2.5).item() == 6.0
