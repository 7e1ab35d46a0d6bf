"""开练之前的核对：合不来的设置只写在 RULES 这一张表里，训练、体检、表单和练习册都读它。

什么都在载入底模之前说完。`lorakit doctor --rules` 把整张表印出来。
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lorakit import lora
from lorakit.config import Config
from lorakit.config.groups import Data, Lora
from lorakit.errors import ConfigError, warn
from lorakit.families.registry import REGISTRY, get
from lorakit.lora import full
from lorakit.memory import attention, compiling, devices, loading, quantize
from lorakit.training import adapter, optim
from lorakit.training.times import draw_times, train_times

FAR = 0.1  # 训练与推理的平均 t 相差多少算远；各家训练脚本之间相差 0.2
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "swanlab": "swanlab"}  # 名字 -> 包
OFFLINE = {"offline", "disabled", "dryrun", "local"}  # 不联网就不用登录


@dataclass(frozen=True)
class Case:
    """要核对的情形：知道多少，就核对多少；case.memory 就是 config.memory，别的组也一样。"""

    config: Config
    processes: int = 1
    sharded: bool = False  # 用 FSDP 把参数切开了
    family: Any = None  # 只用它的事实与骨架，不载入权重
    device: torch.device | None = None

    def __getattr__(self, group: str):
        return getattr(self.config, group)

    def knows(self, asks: str) -> bool:
        needed = {"machine": self.device, "family": self.family}.get(asks, self.config)
        return needed is not None


@dataclass(frozen=True)
class Rule:
    """一条规矩：哪一项设置、遇上什么、怎么判断、为什么、怎么改。

    holds 给出真就是撞上了；给出字典，就拿去填话里的花括号；{model.quantize} 这样的设置也能填。
    """

    field: str
    meets: str
    holds: Callable[[Case], Any]
    why: str
    mend: str = ""
    stops: bool = True  # False 只是提醒：设置不起作用，或多半抄错了
    asks: str = "config"  # 要看什么才知道：设置（config）、这台机器（machine）、底模（family）

    def said(self, case: Case) -> str:
        """撞上了就是那一句话，没有就是空的。"""
        found = self.holds(case)
        if not found:
            return ""
        facts = {group: getattr(case.config, group) for group in type(case.config).model_fields}
        facts |= {"processes": case.processes, "family": case.family}
        facts |= found if isinstance(found, dict) else {}
        said = f"{self.field}：{self.why}{self.mend}" if self.stops else f"{self.why}{self.mend}"
        return said.format(**facts)


def _moves(case: Case) -> bool:
    return case.memory.offload != "none"


def _orthogonal(case: Case) -> bool:
    ours = case.lora.kind == "lora" and case.lora.variant != "lokr"
    return ours and case.lora.init == "orthogonal"


def _bf16_full(case: Case) -> bool:
    return case.config.bf16_weights


def _on_card(case: Case) -> bool:
    return case.device.type == "cuda"


def _too_old_for_fp8(case: Case):
    kind = case.model.quantize
    old = quantize.done_as(kind, case.device) != kind
    return {"card": devices.name_of(case.device)} if old else None


def _optimizer_lacks(case: Case):
    package = optim.lacks(case.train.optimizer, case.device)
    return {"package": package} if package else None


def _too_many_blocks(case: Case):
    wanted = case.memory.offload
    total = len(loading.blocks(case.family.skeleton())) if isinstance(wanted, int) else 0
    return {"total": total} if total and wanted > total else None


def _wrong_kernel(case: Case):
    """指名要的内核在这块显卡上算得对不对；auto 会自己避开算错的。"""
    name, family = case.memory.attention, case.family
    if name in ("auto", "native") or not _on_card(case) or _maskless(case):
        return None
    masked = family.masks_text and case.train.batch_size > 1
    kind, errors = attention.choose(family, family.config_of("transformer"), name, masked)
    return None if kind else {"name": name, "errors": errors}


def _maskless(case: Case) -> bool:
    return case.memory.attention == "flash" and case.family.masks_text


def _compiler_missing(case: Case):
    missing = compiling.cannot_compile(case.device) if case.memory.compile else ""
    return {"missing": missing} if missing else None


def _cannot_record(case: Case) -> bool:
    asked = case.memory.compile == "graphs" and not compiling.cannot_compile(case.device)
    return asked and not compiling.can_replay(case.device, case.processes)


def _idle_lora(case: Case):
    plain = Lora(kind="full")
    idle = [f"lora.{key}" for key, value in plain if getattr(case.lora, key) != value]
    return {"idle": "、".join(idle)} if case.lora.kind == "full" and idle else None


def _opaque(case: Case):
    """要学透明，底模的 VAE 却没有透明通道。"""
    if not case.data.clear or get(case.model.family).sees_alpha:
        return None
    return {"able": "、".join(name for name in REGISTRY if get(name).sees_alpha)}


def _far(case: Case):
    """训练时多练哪些 t，要和推理时走过的差不多，否则画的时候用的正是没怎么练过的。"""
    train = float(train_times(case.config, case.family).mean())
    draw = float(draw_times(case.config, case.family).mean())
    side = "偏向细节（噪声少）" if train < draw else "偏向构图（噪声多）"
    return {"t": train, "used": draw, "side": side} if abs(train - draw) > FAR else None


def _no_tracker(case: Case):
    package = TRACKERS.get(case.run.tracker)
    other = package == "tensorboard" and find_spec("tensorboardX")
    return {"package": package} if package and find_spec(package) is None and not other else None


def _no_login(case: Case):
    name = case.run.tracker
    variable, mode = f"{name.upper()}_API_KEY", os.environ.get(f"{name.upper()}_MODE", "")
    if name in ("none", "tensorboard") or mode in OFFLINE or _no_tracker(case):
        return None
    known = os.environ.get(variable) or _logged_in(name)
    return None if known else {"variable": variable, "mode": f"{name.upper()}_MODE"}


def _logged_in(name: str) -> bool:
    """用它们自己的 login 命令登录过：密钥存在用户的 ~/.netrc 里。"""
    file = Path.home() / ".netrc"
    if name == "swanlab":
        file = Path(os.environ.get("SWANLAB_SAVE_DIR", Path.home() / ".swanlab")) / ".netrc"
    return file.is_file() and name in file.read_text(encoding="utf-8", errors="replace")


def _distilled(case: Case):
    """几步就出图的底模，没有写训练适配器。"""
    path, folder = case.model.path, case.family and case.family.folder
    cls = get(case.model.family)
    instead = cls.undistilled(path, folder)
    if case.model.training_adapter or not instead:
        return None
    known = (name for word, name in cls.training_adapters.items() if word in path.lower())
    return {"instead": instead, "adapter": next(known, "给它练的训练适配器（一份 LoRA）")}


RULES = (
    Rule("model.path", "蒸馏过的底模，没有写 model.training_adapter", _distilled,
         "“{model.path}”是蒸馏过的底模，直接练会丢掉它几步出图的本事，画面发糊。",
         "请在 {instead} 上训练，练好的 LoRA 再拿到它上面用；"
         "要在它上面练，就写 model.training_adapter={adapter}。"),
    Rule("model.quantize", "lora.kind=full",
         lambda c: c.model.quantize != "none" and c.lora.kind == "full",
         "{model.quantize} 的底模只能冻住，不能全量微调：一小步的改动比量化的一格还小，"
         "加上去等于没加。", "请写 lora.kind=lora，或 model.quantize=none。"),
    Rule("lora.variant", "dora 与 model.quantize",
         lambda c: c.model.quantize != "none" and c.lora.variant == "dora",
         "dora 要随时算出底模每一行的长度，{model.quantize} 的底模做不到。",
         "请写 lora.variant=plain 或 rslora，或 model.quantize=none。"),
    Rule("lora.variant", "lokr 与 model.quantize=nf4",
         lambda c: c.model.quantize == "nf4" and c.lora.variant == "lokr",
         "lokr 要知道底模每一层的形状，nf4 把它打包了。",
         "请写 model.quantize=fp8 或 int8，或 lora.variant=plain。"),
    Rule("lora.variant", "dora 与 memory.offload",
         lambda c: _moves(c) and c.lora.variant == "dora" and c.model.quantize == "none",
         "dora 要一开始就看得到底模的权重，memory.offload 搬走的不在显卡上。",
         "请写 lora.variant=plain 或 rslora。"),
    Rule("lora.init", "orthogonal，秩是单数",
         lambda c: _orthogonal(c) and c.lora.rank % 2,
         "orthogonal 把正交的方向一半给 A、一半给 B，秩要是双数，得到 {lora.rank}。",
         "请把 lora.rank 加 1，或写 lora.init=gaussian。"),
    Rule("lora.init", "orthogonal 与 model.quantize",
         lambda c: _orthogonal(c) and c.model.quantize != "none",
         "orthogonal 照底模权重的精度造初值，{model.quantize} 的底模不是浮点数。",
         "请写 lora.init=gaussian，或 model.quantize=none。"),
    Rule("data.alpha", "keep，VAE 没有透明通道", _opaque,
         "{model.family} 的 VAE 没有透明通道，学不了透明。",
         "请写 data.alpha=white（合成在白底上），或换会画透明的底模：{able}。"),
    Rule("data.alpha", "keep 与 data.mask=alpha",
         lambda c: c.data.clear and c.data.mask == "alpha",
         "透明的地方都遮住不算进损失，就学不到透明。",
         "想学透明写 data.mask=none，只学不透明的写 data.alpha=white。"),
    Rule("memory.offload", "lora.kind=full", lambda c: _moves(c) and c.lora.kind == "full",
         "只能搬冻住的权重，全量微调的权重每步都在变。",
         "请写 memory.offload=none，或 lora.kind=lora。"),
    Rule("memory.offload", "memory.checkpointing=off 或 selective",
         lambda c: _moves(c) and c.memory.checkpointing in (False, "off", "selective"),
         "训练时，反向传播要把每一块再搬来一次，所以每块都得重算。",
         "请写 memory.checkpointing=full。"),
    Rule("memory.offload", "几个进程", lambda c: _moves(c) and c.processes > 1,
         "边算边搬只能在一个进程里用，现在有 {processes} 个。"),
    Rule("memory.offload", "比底模的块数还多", _too_many_blocks,
         "底模一共 {total} 块，搬不了 {memory.offload} 块。",
         "请写 1 到 {total}，或写 blocks（全部都搬）。", asks="family"),
    Rule("train.optimizer", "不是 adamw，用 FSDP 启动",
         lambda c: c.sharded and c.train.optimizer != "adamw",
         "FSDP 把参数切开了，这时只能用 adamw，得到 {train.optimizer}。",
         "改成 adamw，或不用 --use_fsdp 启动。"),
    Rule("model.quantize", "用 FSDP 启动", lambda c: c.sharded and c.model.quantize != "none",
         "FSDP 切不开 {model.quantize} 的底模。",
         "改成 none（切开以后本来就省），或不用 --use_fsdp 启动。"),
    Rule("model.precision", "全量微调 bf16，几个进程各有一份权重",
         lambda c: _bf16_full(c) and c.processes > 1 and not c.sharded,
         "全量微调用不了 bf16 的权重：现在有 {processes} 个进程。",
         "请用 --use_fsdp 启动，把权重切开，或写 model.precision=auto。"),
    Rule("model.precision", "全量微调 bf16，train.optimizer=prodigy",
         lambda c: _bf16_full(c) and c.train.optimizer == "prodigy",
         "全量微调用不了 bf16 的权重：prodigy 要一次看全部参数。",
         "请写 train.optimizer=adamw8bit，或写 model.precision=auto。"),
    Rule("model.precision", "全量微调 bf16，train.ema",
         lambda c: _bf16_full(c) and c.train.ema > 0,
         "全量微调用不了 bf16 的权重：train.ema 会被舍入吃掉。",
         "请写 train.ema=0，或写 model.precision=auto。"),
    Rule("train.lr", "train.optimizer=prodigy",
         lambda c: c.train.optimizer == "prodigy" and c.train.lr < optim.PRODIGY_LR,
         "prodigy 自己找学习率，lr 只是倍数，应当是 1 左右，得到 {train.lr:g}。"),
    Rule("train.optimizer", "要用的库没有装", _optimizer_lacks,
         "这个优化器要用 {package}，还没有装。", "请运行 pip install {package}，或改用 adamw。",
         asks="machine"),
    Rule("model.quantize", "nf4，没有装 bitsandbytes",
         lambda c: quantize.lacks(c.model.quantize, c.device),
         *quantize.LACKS["nf4"], asks="machine"),
    Rule("memory.attention", "cudnn，没有显卡",
         lambda c: c.memory.attention == "cudnn" and not _on_card(c),
         "cudnn 要有 NVIDIA 显卡；", "这里请写 auto。", asks="machine"),
    Rule("memory.attention", "flash，成批时要掩码", _maskless,
         "{family.name} 成批时注意力要用掩码，flash 没有掩码。", "请写 auto。", asks="family"),
    Rule("memory.attention", "这块显卡上算得不对", _wrong_kernel, *attention.WRONG, asks="family"),
    Rule("run.tracker", "要用的包没有装", _no_tracker,
         "{run.tracker} 还没有装。", "请运行 pip install {package}，或写 run.tracker=none。"),
    Rule("run.tracker", "没有登录", _no_login,
         "{run.tracker} 要登录。", "请设环境变量 {variable}（密钥不要写进设置文件），"
         "或设 {mode}=offline 只记在本地。"),
    # 下面的只提醒
    Rule("train.guidance", "引导不在模型里的家族",
         lambda c: c.train.guidance != 1 and not c.family.embedded_guidance,
         "train.guidance 对 {family.name} 不起作用。", stops=False, asks="family"),
    Rule("lora.init", "lora.variant=lokr",
         lambda c: c.lora.variant == "lokr" and c.lora.init != Lora().init,
         "lora.init 不起作用：lokr 有自己的初值（w1 随机，w2 是零）。", stops=False),
    Rule("lora.*", "lora.kind=full", _idle_lora,
         "{idle} 不起作用：lora.kind 是 full，每个权重都练。", stops=False),
    Rule("train.lr", "lora.kind=full",
         lambda c: c.lora.kind == "full" and c.train.lr > full.HIGH_LR,
         "train.lr 是 {train.lr:g}，全量微调多半会把底模练坏；", "常用 1e-5。", stops=False),
    Rule("train.optimizer", "adamw8bit，没有显卡",
         lambda c: c.train.optimizer == "adamw8bit" and not _on_card(c),
         "没有 NVIDIA 显卡，adamw8bit 换成 adamw 来练。", stops=False, asks="machine"),
    Rule("model.quantize", "fp8-matmul，显卡太旧", _too_old_for_fp8, quantize.NO_FP8,
         stops=False, asks="machine"),
    Rule("memory.compile", "这台机器不能编译", _compiler_missing,
         "memory.compile 不起作用：{missing}。照常练，慢一些。", stops=False, asks="machine"),
    Rule("memory.compile", "graphs，不是一块显卡一个进程", _cannot_record,
         "memory.compile=graphs 只编译，不录图：录图重放要一块 NVIDIA 显卡，只能有一个进程。",
         stops=False, asks="machine"),
    Rule("model.precision", "bf16，显卡只能模拟",
         lambda c: c.model.precision == "bf16" and _on_card(c) and not devices.has_bf16(c.device),
         "model.precision=bf16：这块显卡只能模拟 bf16，多半很慢；", "写 auto 会用 fp32。",
         stops=False, asks="machine"),
    Rule("data.class_weight", "没有 data.class_folder",
         lambda c: c.data.class_folder is None and c.data.class_weight != Data().class_weight,
         "data.class_weight 不起作用：没有写 data.class_folder。", stops=False),
    Rule("data.mask_floor", "data.mask=none",
         lambda c: c.data.mask == "none" and c.data.mask_floor != Data().mask_floor,
         "data.mask_floor 不起作用：data.mask 是 none。", stops=False),
    Rule("train.timestep", "和推理走过的 t 差得远", _far,
         "train.timestep：训练时 t 平均 {t:.2f}，画图时平均 {used:.2f}，训练{side}。"
         "这是有意的就不用管；", "否则把 train.timestep.shift 写成 auto。",
         stops=False, asks="family"),
)  # fmt: skip


def clashes(case: Case, stops: bool = True) -> Iterator[tuple[Rule, str]]:
    """撞上的那些规矩，各带一句话；stops 是 True 是不能练的，False 是只提醒的。"""
    for rule in RULES:
        if rule.stops is stops and case.knows(rule.asks) and (said := rule.said(case)):
            yield rule, said


def refuse(config: Config, processes: int = 1, sharded: bool = False, family=None):
    """合不来的设置，载入之前就说清楚为什么；给了 family 就连这台机器和这个底模一起看。

    Raises:
        ConfigError: 有设置合不来；几条一起说。
    """
    case = Case(config, processes, sharded, family, family and family.device)
    if found := [said for _, said in clashes(case)]:
        raise ConfigError("\n".join(found))


def check(config: Config, family, processes: int = 1, sharded: bool = False):
    """编码和载入之前全部核对一遍，不起作用的设置也提醒。

    Raises:
        LorakitError: 这份设置练不了。
    """
    refuse(config, processes, sharded, family)
    adapter.check(config.model, family)
    if config.lora.kind == "lora":
        lora.plan(family.skeleton(), family, config.lora)
    for _, said in clashes(Case(config, processes, sharded, family, family.device), stops=False):
        warn(said)


def table() -> str:
    """整张表，给人看。"""
    rows = []
    for stops, title in ((True, "不能一起用，开练之前就停下"), (False, "能练，只是提醒")):
        rows += ["", title] if rows else [title]
        for rule in RULES:
            if rule.stops is stops:
                rows.append(f"  {rule.field} × {rule.meets}\n      {rule.why}{rule.mend}")
    return re.sub(r"\{([^}:]+)[^}]*\}", r"〈\1〉", "\n".join(rows))  # 要填的地方写成〈设置名〉
