"""自己写 LoRA 的五步：前向、开头的值（01），挂一层、挂全部、合并（03）。"""

import random
from collections.abc import Callable

import torch
from torch import nn

from lorakit.lab.exercises.answers import same
from lorakit.lab.exercises.judge import Exercise


class Beside(nn.Module):
    """判题用的 LoRA 层：原来的一层 base，旁边的 A (秩, 入)、B (出, 秩)，缩放 alpha。"""

    def __init__(self, base: nn.Linear, rank: int = 2, alpha: float = 4.0, seed: int = 0):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.base, self.alpha = base, alpha
        self.A = nn.Parameter(torch.randn(rank, base.in_features, generator=rng))
        self.B = nn.Parameter(torch.randn(base.out_features, rank, generator=rng))

    def forward(self, x):
        return self.base(x) + x @ self.A.T @ self.B.T * (self.alpha / len(self.A))


def _linear(d_in: int, d_out: int, seed: int = 0) -> nn.Linear:
    """一个线性层，数由种子定，不动全局的随机数。"""
    rng, layer = torch.Generator().manual_seed(seed), nn.Linear(d_in, d_out)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=rng))
    return layer


def _net(seed: int = 0) -> nn.Module:
    """一个两块的小网络：名字像真的，一块里两个线性层。"""
    block = [nn.ModuleDict({"q": _linear(6, 6, seed + i), "out": _linear(6, 4, seed + 9 + i)})
             for i in range(2)]  # fmt: skip
    return nn.ModuleDict({"blocks": nn.ModuleList(block), "head": _linear(4, 3, seed + 20)})


# ---- 1 前向 ----

BASE, X = _linear(5, 3), torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
A, B = (
    torch.randn(*shape, generator=torch.Generator().manual_seed(2)) for shape in ((2, 5), (3, 2))
)


def _beside(scale: float) -> torch.Tensor:
    return X @ A.T @ B.T * scale


FORWARD = Exercise(
    "lora_forward",
    (
        (lambda f: torch.is_tensor(f(X, BASE, A, B, 4.0)), "要返回一个张量：这一层的输出。"),
        (
            lambda f: not same(f(X, BASE, A, B, 4.0), _beside(2.0)),
            "只有旁边的小路：原来那一层的结果 base(x) 也要加上。",
        ),
        (
            lambda f: not same(f(X, BASE, A, B, 4.0), BASE(X)),
            "只有原来的一层：旁边的小路（先过 A，再过 B）还没有加上。",
        ),
        (
            lambda f: not same(f(X, BASE, A, B, 4.0), BASE(X) + _beside(4.0)),
            "缩放忘了除以秩：乘的是 alpha / 秩，秩就是 A 有几行，len(A)。",
        ),
        (
            lambda f: not same(f(X, BASE, A, B, 4.0), BASE(X) + _beside(1.0)),
            "缩放没有乘上：小路的结果还要乘 alpha / 秩。",
        ),
        (
            lambda f: same(f(X, BASE, A, B, 4.0), BASE(X) + _beside(2.0)),
            "base(x) 加上 alpha / 秩 倍的小路：x 先和 A 乘（压成秩个数），再和 B 乘。",
        ),
        (
            lambda f: f(X[None], BASE, A, B, 4.0).shape == (1, 4, 3),
            "x 前面多几维（几张图、几个词元）也要能算：用 @ 和 .T，别写死形状。",
        ),
    ),
    "这就是 LoRA 的全部前向：原来的一层不动，旁边多一条窄窄的小路。",
    (
        "两项相加：base(x)，和小路的结果乘 alpha / 秩。",
        "x 的每一行是一个词元，所以过 A 是 x @ A.T，过 B 再 @ B.T；秩是 len(A)。",
        "base(x) + x @ A.T @ B.T * (alpha / len(A))",
    ),
    "def answer(x, base, A, B, alpha):\n    return base(x) + x @ A.T @ B.T * (alpha / len(A))",
    lambda chance: _forward_given(chance),
)


def _forward_given(chance: random.Random) -> tuple:
    wide, out, rank = chance.randint(2, 6), chance.randint(2, 6), chance.randint(1, 4)
    rng = torch.Generator().manual_seed(chance.randint(0, 10**6))
    x, a, b = (torch.randn(*s, generator=rng) for s in ((3, wide), (rank, wide), (out, rank)))
    return x, _linear(wide, out, chance.randint(0, 99)), a, b, chance.uniform(0.5, 8)


# ---- 2 开头的值 ----

ALONE = 0.02  # 最小的奇异值至少是最大的几倍，几行才算各有各的方向


def _parts(f, d_in=6, d_out=4, rank=2) -> tuple:
    a, b = f(d_in, d_out, rank)
    return a, b


def _apart(a: torch.Tensor) -> bool:
    """几行各有各的方向：最小的奇异值不比最大的小太多；随机的 4 x 64 大约是一半。"""
    most, *_, least = torch.linalg.svdvals(a.double())
    return bool(least > ALONE * most)


def _like_start(made, want) -> bool:
    (a, b), (other, zero) = made, want
    return a.shape == other.shape and same(b, zero) and bool(a.any())


INIT = Exercise(
    "lora_init",
    (
        (
            lambda f: all(map(torch.is_tensor, _parts(f))),
            "要返回两个张量，先 A 后 B：return A, B。",
        ),
        (
            lambda f: [tuple(p.shape) for p in _parts(f)] != [(4, 2), (2, 6)],
            "A 和 B 的次序反了：先过的是 A。",
        ),
        (
            lambda f: tuple(_parts(f)[0].shape) == (2, 6),
            "A 的形状是 (秩, 输入)：它把 d_in 个数压成 rank 个。",
        ),
        (
            lambda f: tuple(_parts(f)[1].shape) == (4, 2),
            "B 的形状是 (输出, 秩)：它把 rank 个数放大成 d_out 个。",
        ),
        (
            lambda f: bool(_parts(f)[0].any() or _parts(f)[1].any()),
            "两个都是 0：B 的梯度要乘上 A，A 的梯度要乘上 B，都是 0 就永远学不动。",
        ),
        (
            lambda f: not (_parts(f)[1].any() and not _parts(f)[0].any()),
            "反过来了：通常 A 随机、B 是 0（PEFT 也是），这样文件才互相认得。",
        ),
        (
            lambda f: not _parts(f)[1].any(),
            "刚挂上就该什么也不改变：有一个要全是 0，照惯例是 B。",
        ),
        (
            lambda f: f(64, 8, 4)[0].unique().numel() > 32,
            "A 的数要各不相同：都一样的话，秩再大也等于 1。用 torch.randn。",
        ),
        (
            lambda f: _apart(f(64, 8, 4)[0]),
            "A 的几行太像了：排着规律的数（例如 torch.arange）各不相同，几行合起来却只顶一两行，"
            "秩再大也白费。用 torch.randn，每一行随机，各管各的。",
        ),
        (
            lambda f: f(4000, 8, 4)[0].std() < 2,
            "A 的数太大了：几分之一就好，例如 torch.randn(...) / rank。",
        ),
    ),
    "B 是 0，所以刚挂上什么也不改变；A 不是 0，所以第一步 B 就有梯度。",
    (
        "刚挂上时 B·A 要等于 0，可是不能两个都是 0。",
        "A 用 torch.randn(rank, d_in)，小一点；B 用 torch.zeros(d_out, rank)。",
        "A, B = torch.randn(rank, d_in) / rank, torch.zeros(d_out, rank)",
    ),
    "import torch\n\n\ndef answer(d_in, d_out, rank):\n"
    "    return torch.randn(rank, d_in) / rank, torch.zeros(d_out, rank)",
    lambda chance: tuple(chance.randint(1, 40) for _ in range(3)),
    alike=_like_start,
)


# ---- 3 挂一层 ----


def _layers(net: nn.Module) -> dict[str, type]:
    """线性层与 LoRA 层的名字 -> 类；LoRA 层里面的不算。"""
    found = {}
    for name, module in net.named_modules():
        if type(module) in (nn.Linear, Beside) and not name.endswith(".base"):
            found[name] = type(module)
    return found


def _hung(net: nn.Module) -> list[str]:
    return [name for name, kind in _layers(net).items() if kind is Beside]


def _alike_nets(made, want) -> bool:
    return isinstance(made, nn.Module) and _layers(made) == _layers(want)


def _one(f, name="blocks.1.q"):
    return f(_net(), name, Beside)


ATTACH = Exercise(
    "lora_attach",
    (
        (lambda f: isinstance(_one(f), nn.Module), "要返回网络：最后一行写 return net。"),
        (
            lambda f: not isinstance(_one(f), Beside),
            "返回的是那一层，不是整个网络：换好以后 return net。",
        ),
        (
            lambda f: _hung(_one(f)) != [],
            "网络里还是原来的层：光有 wrap(...) 的结果不够，要用 setattr 放回它待的地方。",
        ),
        (
            lambda f: "blocks.1.q" in _hung(_one(f)),
            "放错了地方：名字最后一段（q）是属性名，前面那一段（blocks.1）是它待的模块。",
        ),
        (lambda f: _hung(_one(f)) == ["blocks.1.q"], "只换这一层，别的层不要动。"),
        (
            lambda f: same(_one(f).blocks[1].q.base.weight, _net().blocks[1].q.weight),
            "原来那一层要包在里面：wrap(原来的层)，不是包一个新的。",
        ),
        (
            lambda f: _hung(_one(f, "head")) == ["head"],
            "名字里没有点（head）的也要能换：get_submodule('') 就是网络自己。",
        ),
    ),
    "PEFT 的 add_adapter 做的就是这件事：找到那一层，包起来，放回原处。",
    (
        "名字分两段：'blocks.1.q' 待在 'blocks.1' 里，叫 'q'。用 name.rpartition('.')。",
        "net.get_submodule(名字) 拿到一个模块；setattr(模块, 'q', 新的) 换掉它。",
        "setattr(net.get_submodule(home), last, wrap(net.get_submodule(name)))",
    ),
    "def answer(net, name, wrap):\n"
    "    home, _, last = name.rpartition('.')\n"
    "    setattr(net.get_submodule(home), last, wrap(net.get_submodule(name)))\n"
    "    return net",
    lambda chance: (
        _net(chance.randint(1, 99)),
        chance.choice(["blocks.0.q", "blocks.0.out", "blocks.1.out", "head"]),
        Beside,
    ),
    alike=_alike_nets,
)


# ---- 4 挂全部 ----

NAMES = ["blocks.0.q", "blocks.1.q"]


def _official_attach(net: nn.Module, name: str, wrap: Callable) -> nn.Module:
    home, _, last = name.rpartition(".")
    setattr(net.get_submodule(home), last, wrap(net.get_submodule(name)))
    return net


def _all(f, names=NAMES):
    return f(_net(), names, Beside, _official_attach)


def _wrapped(f) -> list[Beside]:
    """答完以后，它包起来的那几层：网络是抄给它的，靠 wrap 认出来。"""
    made = []

    def wrap(base):
        made.append(Beside(base))
        return made[-1]

    f(_net(), NAMES, wrap, _official_attach)
    return made


def _shapes(parameters) -> list[tuple]:
    return [tuple(p.shape) for p in parameters]


WANTED = [(2, 6), (6, 2)]  # 一层：A、B

ATTACH_ALL = Exercise(
    "lora_all",
    (
        (
            lambda f: isinstance(_all(f), (list, tuple)) and all(map(torch.is_tensor, _all(f))),
            "要返回一个列表，里面是要学的参数。",
        ),
        (
            lambda f: _shapes(_all(f)) != [],
            "一个要学的也没有：多半先挂、后冻，把 A、B 也冻住了。先冻整个网络，再挂。",
        ),
        (
            lambda f: len(_all(f)) <= 4,
            "底模的参数也混了进来：先 net.requires_grad_(False) 冻住它，再挂 LoRA。",
        ),
        (lambda f: len(_all(f)) == 4, "每个名字都要挂：两层，各有 A、B，一共四个。"),
        (
            lambda f: all(p.requires_grad for one in _wrapped(f) for p in (one.A, one.B)),
            "挑出来的 A、B 已经冻住了，学不动：先冻整个网络，再挂。",
        ),
        (
            lambda f: (
                not any(p.requires_grad for one in _wrapped(f) for p in one.base.parameters())
            ),
            "底模没有冻住：挂之前先 net.requires_grad_(False)。",
        ),
        (lambda f: _shapes(_all(f)) == WANTED * 2, "每层先 A 后 B，层照网络里的次序。"),
        (lambda f: _shapes(_all(f, ["head"])) == [(2, 4), (3, 2)], "只挂给的那几个名字。"),
    ),
    "冻住，逐个挂，留下要学的：这就是 lora.attach 的三步。",
    (
        "三步：冻住整个网络；每个名字 attach 一次；收集还要学的参数。",
        "net.requires_grad_(False)；for name in names: attach(net, name, wrap)。",
        "[p for p in net.parameters() if p.requires_grad]",
    ),
    "def answer(net, names, wrap, attach):\n"
    "    net.requires_grad_(False)\n"
    "    for name in names:\n"
    "        attach(net, name, wrap)\n"
    "    return [p for p in net.parameters() if p.requires_grad]",
    lambda chance: (
        _net(chance.randint(1, 99)),
        chance.sample(["blocks.0.q", "blocks.0.out", "blocks.1.q", "head"], chance.randint(1, 4)),
        Beside,
        _official_attach,
    ),
    alike=lambda made, want: _shapes(made) == _shapes(want),
)


# ---- 5 合并 ----


def _merged(f, seed=3) -> tuple:
    layer = Beside(_linear(5, 3, seed), seed=seed)
    return f(layer), layer


def _weight_is(f, times: Callable[[Beside], torch.Tensor]) -> bool:
    made, layer = _merged(f)
    return same(made.weight, layer.base.weight + times(layer))


MERGE = Exercise(
    "lora_merge",
    (
        (
            lambda f: isinstance(_merged(f)[0], nn.Linear),
            "要返回一个普通的线性层（nn.Linear）：合并以后，旁边就没有小路了。",
        ),
        (lambda f: not _weight_is(f, lambda one: 0), "权重没有变：B @ A 还没有加进去。"),
        (
            lambda f: not _weight_is(f, lambda one: one.B @ one.A),
            "缩放忘了：加进去的是 alpha / 秩 倍的 B @ A。",
        ),
        (
            lambda f: _weight_is(f, lambda one: one.alpha / len(one.A) * one.B @ one.A),
            "新的权重是 W + alpha / 秩 · B @ A；形状 (出, 入)，和 W 一样。",
        ),
        (
            lambda f: same(_merged(f)[0].bias, _merged(f)[1].base.bias),
            "偏置（bias）也要留着：输出 = W·x + 偏置，合并只改 W。",
        ),
        (lambda f: _same_output(f), "同样的 x，合并前后的输出应该一样。"),
    ),
    "合并以后，谁也看不出它挂过 LoRA：一样快，一样大。",
    (
        "输出 W·x + s·B·(A·x) = (W + s·B·A)·x，s 是 alpha / 秩。",
        "layer.base 就是原来的线性层：改它的 weight.data，再把它还回去，偏置就一直在。",
        "layer.base.weight.data += layer.alpha / len(layer.A) * layer.B @ layer.A",
    ),
    "def answer(layer):\n"
    "    layer.base.weight.data += layer.alpha / len(layer.A) * (layer.B @ layer.A).detach()\n"
    "    return layer.base",
    lambda chance: (
        Beside(
            _linear(chance.randint(2, 6), chance.randint(2, 6), chance.randint(0, 99)),
            rank=chance.randint(1, 4),
            alpha=chance.uniform(0.5, 8),
            seed=chance.randint(0, 99),
        ),
    ),
    alike=lambda made, want: (
        isinstance(made, nn.Linear)
        and same(made.weight, want.weight)
        and same(made.bias, want.bias)
    ),
)


def _same_output(f) -> bool:
    made, layer = _merged(f)
    return same(made(X), layer(X))


IN_01, IN_03 = (FORWARD, INIT), (ATTACH, ATTACH_ALL, MERGE)
