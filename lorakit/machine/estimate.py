"""估计：不载入权重、不碰显卡，算出一步要多少次乘加、多少显存。

用 PyTorch 的假张量（只有形状）把真模型的前向走一遍：乘加次数由每个算子的形状得出，
中间结果就是自动求导为反向留下的那些张量（要编译，就是编译器决定留下的那些）；不是公式，
所以每个家族、每种尺寸都一样准。
"""

import copy
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import nn

from lorakit import lora
from lorakit.infer.decoding import DECODING
from lorakit.memory import loading
from lorakit.memory.quantize import NF4_BYTES
from lorakit.memory.recompute import SHREDS
from lorakit.memory.streaming import SLOTS, moving
from lorakit.training import adapter
from lorakit.training.rounding import PIECE

GIB = 2**30
TOKENS = 128  # 一句描述大约多少词元
DECODED = 3700  # bf16 整张解码一个像素另要几字节：H200 上 1024² 的Qwen 3.1、FLUX 与 Z-Image 3.5 GiB
MOMENTS = {"adamw": 8, "adamw8bit": 2, "adafactor": 1, "prodigy": 16}  # 优化器每个参数另记几字节


def usable(tier: float) -> float:
    """标着 tier GB 的显卡，PyTorch 能用多少 GiB：驱动与 CUDA 自己要占一点。"""
    return 0.98 * tier - 0.6


@dataclass(frozen=True)
class Estimate:
    """一步训练要的东西；字节数都是显卡上的，乘加次数按一张图算。"""

    parameters: int  # Transformer 的参数个数
    trained: int  # 要学的参数个数
    weights: int  # 底模的权重占多少字节（量化之后）
    block: int  # 最大的一块权重占多少字节
    moved: int  # 放在内存里、用到才搬的权重占多少字节
    kept: int  # 不重算时，一张图的中间结果
    inputs: int  # 每块都重算时，一张图要存的各块的输入
    blocks: int
    linear: int  # 前向里线性层的浮点运算次数（一次乘加算两次）
    attention: int  # 前向里注意力的
    number: int  # 没有量化的，每个数几字节

    def floor(self, config) -> int:
        """一步至少要的浮点运算：前向，再加反向（线性层与前向一样多，注意力 2.5 倍）。

        全量微调还要对权重的梯度，线性层再加一份。
        """
        passes = 3 if config.lora.kind == "full" else 2
        images = _batch(config) * config.train.grad_accum
        return images * round(passes * self.linear + 3.5 * self.attention)

    def state(self, config) -> int:
        """要学的参数：值与梯度（fp32，或 bf16 的权重），加上优化器的状态。"""
        small = config.bf16_weights
        each = (4 if small else 8) + MOMENTS[config.train.optimizer]
        each += 4 if config.train.ema else 0  # 滑动平均另有一份
        return self.trained * each + small * 8 * PIECE

    def peak(self, config, again: float) -> int:
        """一步的显存峰值（字节）；again 是重算的块占几成，1 是每块都重算。"""
        acts = again * self.inputs + (1 - again) * self.kept + (1 + (again > 0)) * self.one
        return round(self._held(config) + _batch(config) * acts)

    def largest(self, config, again: float, capacity: float) -> int:
        """整个训练里最大的一个环节（字节）：出样张时，放得下就整张解码，可能比一步还多。"""
        pixels = self.number / 2 * (config.sample.size or config.data.resolution) ** 2
        drawn, step = self._held(config) + DECODED * pixels, self.peak(config, again)
        whole = config.sample.every and self._held(config) + DECODING * pixels <= capacity
        return max(step, round(drawn)) if whole else step

    def _held(self, config) -> int:
        """一直在显卡上的：底模，与要学的参数。"""
        held = self.weights
        if self.moved:
            held += SLOTS * self.block - self.moved
        if config.lora.kind == "full":  # 权重自己就是要学的参数
            held = 0
        return held + self.state(config)

    @property
    def one(self) -> int:
        """一块的中间结果，字节。"""
        return self.kept // self.blocks

    def recomputed(self, config, capacity: float) -> float:
        """memory.checkpointing 会让几成的块重算；auto 就是 capacity 字节里放不下的那几成。"""
        how = config.memory.checkpointing
        fixed = {True: 1.0, "full": 1.0, "selective": 0.5, False: 0.0, "off": 0.0}
        if self.moved:
            return 1.0
        if how in fixed:
            return fixed[how]
        most, least = self.peak(config, 0.0), self.peak(config, 1.0)
        spare = self.one * _batch(config)  # memory.Recompute 多留的余地
        gained = (1 + SHREDS) * (most - least)
        if least + gained <= capacity:
            return 0.0
        return min(1.0, (least + gained + 2 * spare - capacity) / max(1, gained))

    def work(self, config, again: float) -> float:
        """一步真正要做的浮点运算：floor 加上重算的。"""
        images = _batch(config) * config.train.grad_accum
        return self.floor(config) + images * again * (self.linear + self.attention)


def _batch(config) -> int:
    """一次前向、反向一共几张图：有陪练的同类图片就多一倍。"""
    return config.train.batch_size * (2 if config.data.class_folder else 1)


def measure(family, config) -> Estimate:
    """按设置估计；与显卡无关，一两秒，同一个底模的下一档更快；精度是 family.dtype。"""
    shell = family.skeleton()
    whole = loading.blocks(shell)
    parameters = sum(p.numel() for p in shell.parameters())
    size = family.dtype.itemsize
    each = [
        _weights(block, name, shell, config.model.quantize, size) for name, block in whole.items()
    ]
    inside = {id(p) for block in whole.values() for p in block.parameters()}
    outside = sum(size * p.numel() for p in shell.parameters() if id(p) not in inside)
    if config.model.training_adapter:
        pairs = adapter.imagined(family, "meta").values()
        outside += sum(size * part.numel() for pair in pairs for part in pair)
    trained, linear, attention, kept, inputs = _walked(_Question.of(family, config))
    return Estimate(
        parameters=parameters,
        trained=trained,
        weights=sum(each) + outside,
        block=max(each),
        moved=sum(moving(each, config.memory.offload)),
        kept=kept * size // 2,  # 走的是 bf16 的
        inputs=inputs * size // 2,
        blocks=len(whole),
        linear=linear,
        attention=attention,
        number=size,
    )


@dataclass(frozen=True)
class _Question:
    """走一遍前向要的东西；只按 shapes（形状由什么决定）比，量化、搬运、重算都不在里面。"""

    shapes: str
    family: object = field(compare=False)
    config: object = field(compare=False)

    @classmethod
    def of(cls, family, config) -> "_Question":
        side = config.data.resolution
        conds = family.cond_shapes(TOKENS, side, config.data.paired)
        shapes = (family.latent_channels, family.compression, conds)
        how = (side, config.lora, config.memory.compile, config.bf16_weights)
        facts = (type(family), family.config_of("transformer"), shapes, how)
        return cls(repr(facts), family.again(), config)  # 记着的这一份不占权重


@cache
def _walked(asked: _Question) -> tuple[int, ...]:
    """要学的参数个数与 `_walk` 的四样；同一个底模的各档只走一遍。"""
    family, shell = asked.family, asked.family.skeleton()
    learned = _attach(shell, family, asked.config.lora)
    trained = sum(p.numel() for name, p in shell.named_parameters() if name in learned)
    return trained, *_totals(family, asked.config)


def _totals(family, config) -> list[int]:
    """`_walk` 的四样，全长的模型的。

    同一串里的块都一样，所以只走一两块，再按块数推到全长：总数 = 各留一块的 + 每串多一块的差。
    """
    shell = family.skeleton()
    lengths = Counter(name.rpartition(".")[0] for name in loading.blocks(shell))  # 哪一串 -> 几块
    chains = {chain: list(shell.get_submodule(chain)) for chain in lengths}

    def walk(longer: str | None) -> tuple[int, ...]:
        for chain, members in chains.items():
            shell.set_submodule(chain, nn.ModuleList(members[: 2 if chain == longer else 1]))
        return _walk(shell, family, config)

    base = walk(None)
    total = list(base)
    for chain, length in lengths.items():
        if length > 1:
            more = walk(chain)
            total = [
                sum_ + (length - 1) * (b - a) for sum_, a, b in zip(total, base, more, strict=True)
            ]
    return total


def _weights(block: nn.Module, name: str, model: nn.Module, kind: str, size: int) -> int:
    """一块的权重占多少字节，和 quantize.build 做出来的一样；没有量化的每个数占 size 字节。"""
    precise = set(model._keep_in_fp32_modules or ())
    total = 0
    for path, module in block.named_modules(prefix=name):
        keep = not precise.isdisjoint(path.split("."))
        for key, value in module.named_parameters(recurse=False):
            packed = key == "weight" and isinstance(module, nn.Linear) and not keep
            if kind == "none" or not packed:
                total += value.numel() * (4 if keep else size)
            elif kind == "nf4":
                total += round(value.numel() * NF4_BYTES)
            else:  # 一个字节一个数，每行一个 fp32 的缩放
                total += value.numel() + 4 * value.shape[0]
    return total


def _walk(shell: nn.Module, family, config) -> tuple[int, int, int, int]:
    """用假张量走一遍：线性层与注意力的浮点运算、不重算与每块都重算时留下的字节。"""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    known = {on_cpu: lambda q, k, v, *rest, **more: sdpa_flop_count(q, k, v)}
    flops = FlopCounterMode(display=False, custom_mapping=known)
    plain, model = copy.deepcopy(shell), copy.deepcopy(shell)
    learned = _attach(model, family, config.lora)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16):
        given = _inputs(family, config.data)
        x, t, cond = given
        still = {name: value.detach() for name, value in cond.items()}
        with flops, torch.no_grad():
            family.predict_velocity(_filled(plain), x.detach(), t, still)
        exact = torch.bfloat16 if config.bf16_weights else torch.float32
        filled = _filled(model, learned, exact)
        saved = _activations(filled, family, given, config.memory.compile)
    counts = flops.get_flop_counts()["Global"]
    attention = sum(n for op, n in counts.items() if "scaled_dot_product" in str(op))
    return sum(counts.values()) - attention, attention, *saved


def _attach(shell: nn.Module, family, settings) -> set[str]:
    """要学的参数名；LoRA 真的挂一遍，所以每种变体都准，只有形状，不占内存。"""
    if settings.kind == "full":
        return {name for name, _ in shell.named_parameters()}
    with torch.device("meta"):
        return set(lora.attach(shell, family, settings, 0))


def _filled(model: nn.Module, learned=(), exact: torch.dtype = torch.float32) -> nn.Module:
    """骨架 -> 假张量的模型：底模 bf16、冻住，要学的是 exact。"""

    def read(name, shape):
        return torch.empty(shape.shape, dtype=torch.bfloat16)

    loading.build(model, read, "none", "cpu", torch.bfloat16, shown=False)
    for name in learned:
        path, _, key = name.rpartition(".")
        owner = model.get_submodule(path)
        owner._parameters[key] = nn.Parameter(
            torch.empty(owner._parameters[key].shape, dtype=exact)
        )
    return model


def _inputs(family, data):
    """一张图的假输入；LoRA 让每一块的词元都带梯度，而整句话的那一个向量 (D,) 不带。"""
    side = data.resolution
    shape = (1, family.latent_channels, side // family.compression, side // family.compression)
    cond = {
        name: torch.randn(1, *size, dtype=torch.bfloat16, requires_grad=len(size) > 1)
        for name, size in family.cond_shapes(TOKENS, side, data.paired).items()
    }
    return torch.randn(shape, requires_grad=True), torch.rand(1), cond


def _activations(model: nn.Module, family, given, compiled: bool) -> tuple[int, int]:
    """自动求导留下的字节数：不重算时、每块都重算时。"""
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}

    def saved() -> int:
        seen = {}

        def keep(value: torch.Tensor):
            seen[value.untyped_storage()._cdata] = value  # 拿着它，号码才不会被别人重用
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            family.predict_velocity(model, *given)
        return sum(v.untyped_storage().nbytes() for k, v in seen.items() if k not in own)

    model.training = True  # 只改它自己：lokr 的层在训练时要掷骰子，假张量没有数
    model.enable_gradient_checkpointing()
    inputs = saved()
    model.disable_gradient_checkpointing()
    if compiled:  # 只要编译器的取舍（留下哪些、重算哪些），不生成代码
        model.compile_repeated_blocks(backend="aot_eager_decomp_partition")
    return saved(), inputs


def random_vae(family) -> nn.Module:
    """VAE，尺寸照 config.json，权重随机，直接造在设备上（设备是 meta 就只有形状）。"""
    cls = family.class_of("vae")
    with torch.device(family.device):
        vae = cls.from_config(family.config_of("vae"))
    for parameter in vae.parameters():
        parameter.data = parameter.data.to(family.dtype)
    return vae.eval().requires_grad_(False)


def random_encoders(family) -> list[nn.Module]:
    """几个文本编码器，尺寸照 config.json，权重随机，直接造在设备上。"""
    import transformers

    encoders = []
    for part in family.text_parts:
        if not (family.folder / part / "config.json").is_file():
            continue  # 分词器没有 config.json
        settings = transformers.AutoConfig.from_pretrained(family.folder / part)
        cls = getattr(transformers, settings.architectures[0])
        with torch.device(family.device):
            encoder = cls._from_config(settings, dtype=family.dtype)
        encoders.append(encoder.eval().requires_grad_(False))
    return encoders
