"""开练之前能发现的都先说：合不来的设置、不能练的底模、没装的库、不起作用的设置。"""

import os
import warnings
from importlib.util import find_spec
from pathlib import Path

from lorakit import lora
from lorakit.config import Config
from lorakit.config.groups import Data, Lora
from lorakit.errors import ConfigError, LorakitWarning
from lorakit.lora import full
from lorakit.memory import compiling, devices
from lorakit.training.times import draw_times, train_times

FAR = 0.1  # 训练与推理的平均 t 相差多少算远；各家训练脚本之间相差 0.2
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "swanlab": "swanlab"}  # 名字 -> 包
OFFLINE = {"offline", "disabled", "dryrun", "local"}  # 不联网就不用登录


def check(config: Config, family, processes: int = 1, sharded: bool = False):
    """编码和载入之前核对一遍；processes 是进程数，sharded 是用 FSDP 把参数切开了。

    Raises:
        LorakitError: 这份设置练不了。
    """
    family.refuse_distilled(config.model.path)
    check_tracker(config.run.tracker)
    refuse(config, processes)
    if config.lora.kind == "full":
        _full(config, 1 if sharded else processes)
    else:
        lora.plan(family.skeleton(), family, config.lora)
    if sharded and config.train.optimizer != "adamw":
        raise ConfigError(
            f"train.optimizer：FSDP 把参数切开了，这时只能用 adamw，得到 {config.train.optimizer}。"
            "改成 adamw，或不用 --use_fsdp 启动。"
        )
    if sharded and config.model.quantize != "none":
        raise ConfigError(
            f"model.quantize：FSDP 切不开 {config.model.quantize} 的底模。"
            "改成 none（切开以后本来就省），或不用 --use_fsdp 启动。"
        )
    _idle(config, family, processes)
    _density(config, family)


def check_tracker(name: str):
    """记录到哪里：包要装好；要登录的，密钥只从环境里取，不写进设置。

    Raises:
        ConfigError: 没有装，或没有密钥。
    """
    if name == "none":
        return
    package = TRACKERS[name]
    if find_spec(package) is None and not (name == "tensorboard" and find_spec("tensorboardX")):
        raise ConfigError(
            f"run.tracker：{name} 还没有装。请运行 pip install {package}，或写 run.tracker=none。"
        )
    variable, mode = f"{name.upper()}_API_KEY", os.environ.get(f"{name.upper()}_MODE", "")
    if name == "tensorboard" or mode in OFFLINE or os.environ.get(variable) or _logged_in(name):
        return
    raise ConfigError(
        f"run.tracker：{name} 要登录。请设环境变量 {variable}（密钥不要写进设置文件），"
        f"或设 {name.upper()}_MODE=offline 只记在本地。"
    )


def _logged_in(name: str) -> bool:
    """用它们自己的 login 命令登录过：密钥存在用户的 ~/.netrc 里。"""
    file = Path.home() / ".netrc"
    if name == "swanlab":
        file = Path(os.environ.get("SWANLAB_SAVE_DIR", Path.home() / ".swanlab")) / ".netrc"
    return file.is_file() and name in file.read_text(encoding="utf-8", errors="replace")


def _tell(sentence: str):
    warnings.warn(sentence, LorakitWarning, stacklevel=2)


def _idle(config: Config, family, processes: int):
    """写了却不起作用的设置。"""
    data, plain = config.data, Data()
    if config.train.guidance != 1 and not family.embedded_guidance:
        _tell(f"train.guidance 对 {family.name} 不起作用。")
    if config.lora.variant == "lokr" and config.lora.init != Lora().init:
        _tell("lora.init 不起作用：lokr 有自己的初值（w1 随机，w2 是零）。")
    missing = compiling.cannot_compile(family.device) if config.memory.compile else ""
    if missing:
        _tell(f"memory.compile 不起作用：{missing}。照常练，慢一些。")
    graphs = config.memory.compile == "graphs" and not missing
    if graphs and not compiling.can_replay(family.device, processes):
        _tell("memory.compile=graphs 只编译，不录图：录图重放要一块 NVIDIA 显卡，只能有一个进程。")
    if (
        config.model.precision == "bf16"
        and family.device.type == "cuda"
        and not devices.has_bf16(family.device)
    ):
        _tell("model.precision=bf16：这块显卡只能模拟 bf16，多半很慢；写 auto 会用 fp32。")
    if data.class_folder is None and data.class_weight != plain.class_weight:
        _tell("data.class_weight 不起作用：没有写 data.class_folder。")
    if data.mask == "none" and data.mask_floor != plain.mask_floor:
        _tell("data.mask_floor 不起作用：data.mask 是 none。")


def _full(config: Config, copies: int):
    """全量微调时合不来的、不起作用的设置，和多半是抄错的学习率；copies 是几个进程各有一份权重。"""
    if config.bf16_weights:
        clashes = {
            f"现在有 {copies} 个进程。请用 --use_fsdp 启动，把权重切开": copies > 1,
            "prodigy 要一次看全部参数。请写 train.optimizer=adamw8bit": (
                config.train.optimizer == "prodigy"
            ),
            "train.ema 会被舍入吃掉。请写 train.ema=0": config.train.ema > 0,
        }
        for why in (why for why, wrong in clashes.items() if wrong):
            raise ConfigError(
                f"model.precision：全量微调用不了 bf16 的权重：{why}，或写 model.precision=auto。"
            )
    ours, plain = config.lora, Lora(kind="full")
    idle = [f"lora.{key}" for key, value in plain if getattr(ours, key) != value]
    if idle:
        _tell(f"{'、'.join(idle)} 不起作用：lora.kind 是 full，每个权重都练。")
    if config.train.lr > full.HIGH_LR:
        _tell(f"train.lr 是 {config.train.lr:g}，全量微调多半会把底模练坏；常用 1e-5。")


def _density(config: Config, family):
    """训练时多练哪些 t，要和推理时走过的差不多，否则画的时候用的正是没怎么练过的。"""
    train = float(train_times(config, family).mean())
    draw = float(draw_times(config, family).mean())
    if abs(train - draw) > FAR:
        side = "偏向细节（噪声少）" if train < draw else "偏向构图（噪声多）"
        _tell(
            f"train.timestep：训练时 t 平均 {train:.2f}，画图时平均 {draw:.2f}，训练{side}。"
            "这是有意的就不用管；否则把 train.timestep.shift 写成 auto。"
        )


def refuse(config, processes: int = 1):
    """合不来的选择，载入之前就说清楚为什么。

    Raises:
        ConfigError: 两项设置合不来。
    """
    model, how, lora = config.model, config.memory, config.lora
    off = how.checkpointing in (False, "off", "selective")
    moves = how.offload != "none"
    clashes = {  # 为什么不行、怎么改 -> 是不是这样
        f"model.quantize：{model.quantize} 的底模只能冻住，不能全量微调：一小步的改动比量化的一格"
        "还小，加上去等于没加。请写 lora.kind=lora，或 model.quantize=none。": (
            model.quantize != "none" and lora.kind == "full"
        ),
        f"lora.variant：dora 要随时算出底模每一行的长度，{model.quantize} 的底模做不到。"
        "请写 lora.variant=plain 或 rslora，或 model.quantize=none。": (
            model.quantize != "none" and lora.variant == "dora"
        ),
        "lora.variant：lokr 要知道底模每一层的形状，nf4 把它打包了。"
        "请写 model.quantize=fp8 或 int8，或 lora.variant=plain。": (
            model.quantize == "nf4" and lora.variant == "lokr"
        ),
        "lora.variant：dora 要一开始就看得到底模的权重，memory.offload 搬走的不在显卡上。"
        "请写 lora.variant=plain 或 rslora。": (
            moves and lora.variant == "dora" and model.quantize == "none"
        ),
        "memory.offload：只能搬冻住的权重，全量微调的权重每步都在变。"
        "请写 memory.offload=none，或 lora.kind=lora。": (moves and lora.kind == "full"),
        "memory.offload：训练时，反向传播要把每一块再搬来一次，所以每块都得重算。"
        "请写 memory.checkpointing=full。": moves and off,
        f"memory.offload：边算边搬只能在一个进程里用，现在有 {processes} 个。": (
            moves and processes > 1
        ),
    }
    if said := [why for why, wrong in clashes.items() if wrong]:
        raise ConfigError("\n".join(said))
