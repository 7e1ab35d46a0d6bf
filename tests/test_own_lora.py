"""自己写的 LoRA：标准答案拼起来的一层与 PEFT 的差不到百万分之一；写过的代码，下一本接着用。"""

import linecache

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear

from lorakit import lab
from lorakit.lab import exercises
from lorakit.lab.exercises import find, own
from lorakit.lab.exercises.own_lora import Beside


def official(name):
    return find(name).official


class LoRALinear(torch.nn.Module):
    """03 的 3.4 节那一格：五道题的答案拼成的一层。"""

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base, self.alpha = base, alpha
        first, second = official("lora_init")(base.in_features, base.out_features, rank)
        self.A, self.B = torch.nn.Parameter(first), torch.nn.Parameter(second)

    def forward(self, x):
        return official("lora_forward")(x, self.base, self.A, self.B, self.alpha)


@pytest.mark.parametrize(("rank", "alpha"), [(1, 1), (4, 4), (4, 16), (8, 2)])
def test_a_layer_of_ones_own_is_pefts(rank, alpha):
    torch.manual_seed(rank)
    base, x = torch.nn.Linear(24, 40), torch.randn(2, 5, 24)
    mine = LoRALinear(base, rank, alpha)
    assert torch.equal(mine(x), base(x)), "刚挂上，什么也不改变"
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q"])
    theirs = PeftLinear(base, "default", config=config, r=rank, lora_alpha=alpha)
    with torch.no_grad():
        mine.B.normal_()
        theirs.lora_A["default"].weight.copy_(mine.A)
        theirs.lora_B["default"].weight.copy_(mine.B)
    close = {"rtol": 1e-6, "atol": 1e-6}
    one, two = mine(x), theirs(x)
    scale = float(two.detach().abs().max())
    assert torch.allclose(one / scale, two / scale, **close)
    one.square().mean().backward(), two.square().mean().backward()
    for a, b in ((mine.A, theirs.lora_A), (mine.B, theirs.lora_B)):
        size = float(a.grad.abs().max())
        assert torch.allclose(a.grad / size, b["default"].weight.grad / size, **close)
    merged = official("lora_merge")(mine)
    theirs.merge()
    size = float(merged.weight.abs().max())
    assert torch.allclose(merged.weight / size, theirs.base_layer.weight / size, **close)


def test_code_that_passed_is_there_in_the_next_book(own_cache, capsys, shown):
    code = "def mine(x, base, A, B, alpha):\n    s = alpha / len(A)\n"
    code += "    return base(x) + s * x @ A.T @ B.T\n"
    scope = {}
    linecache.cache["<mine>"] = (len(code), None, code.splitlines(True), "<mine>")
    exec(compile(code, "<mine>", "exec"), scope)
    assert own.own("lora_forward") is not scope["mine"]
    assert "先用标准答案" in capsys.readouterr().out
    lab.check.lora_forward(scope["mine"])
    again = lab.own("lora_forward")
    assert "用你自己写的" in capsys.readouterr().out and again.__name__ == "mine"
    assert exercises.judge("lora_forward", again)[0] == "passed"
    assert lab.own("lora_forward", scope["mine"]) is scope["mine"]
    wrong = lab.own("lora_forward", lambda x, base, A, B, alpha: base(x))
    assert "先用标准答案" in capsys.readouterr().out
    layer = torch.nn.Linear(3, 2)
    near = Beside(layer)
    assert torch.equal(wrong(torch.ones(1, 3), layer, near.A, near.B, 4.0), near(torch.ones(1, 3)))


@pytest.mark.parametrize(
    "code", ["def broken(:\n", "x = 1\n", "def f(x, base, A, B, a):\n    0 / 0\n"]
)
def test_kept_code_that_no_longer_works_is_left_alone(own_cache, capsys, code):
    place = own.place("lora_forward")
    place.parent.mkdir(parents=True)
    place.write_text(code, encoding="utf-8")
    assert own.own("lora_forward").__name__ == "answer"
    assert "先用标准答案" in capsys.readouterr().out
