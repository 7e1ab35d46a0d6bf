"""别人的设置里没有写的：它有自己的默认值，照它的补上；这里写不出的，一条条说出来。

各家的默认值出自它们的参数表：sd-scripts 与 musubi-tuner 的命令行，ai-toolkit 的
config_modules，OneTrainer 的 TrainConfig。
"""

import re
from collections.abc import Mapping
from typing import Any

Defaults = dict[str, tuple[str, Any]]  # 它的叫法 -> (这里的设置, 它的默认值)
NO_DROPOUT: Defaults = {"caption_dropout_rate": ("data.caption_dropout", 0.0)}
KOHYA: Defaults = NO_DROPOUT | {
    "network_dim": ("lora.rank", 4), "network_alpha": ("lora.alpha", 1.0),
    "learning_rate": ("train.lr", 2e-6), "max_train_steps": ("train.steps", 1600),
    "lr_warmup_steps": ("train.warmup", 0),
}  # fmt: skip
MISSING: dict[str, Defaults] = {  # 只列与这里的默认值不同的
    "kohya": KOHYA | {"guidance_scale": ("train.guidance", 3.5)},
    "musubi": KOHYA,
    "kohya 的数据": NO_DROPOUT,
    "musubi 的数据": NO_DROPOUT | {"resolution": ("data.resolution", [960, 544])},
    "ai-toolkit": {
        "network.linear": ("lora.rank", 4), "train.lr": ("train.lr", 1e-6),
        "热身的步数": ("train.warmup", 0), "datasets.resolution": ("data.resolution", 512),
        "datasets.caption_dropout_rate": ("data.caption_dropout", 0.0),
        "train.gradient_checkpointing": ("memory.checkpointing", True),
    },
    "OneTrainer": {
        "lora_alpha": ("lora.alpha", 1.0), "learning_rate": ("train.lr", 3e-6),
        "learning_rate_warmup_steps": ("train.warmup", 200), "resolution": ("data.resolution", 512),
        "描述换成空白的概率": ("data.caption_dropout", 0.0),
        "timestep_distribution": ("train.timestep.density", "uniform"),
        "timestep_shift": ("train.timestep.shift", 1.0),
        "gradient_checkpointing": ("memory.checkpointing", True),
    },
}  # fmt: skip
EMA = 0.999  # 开了滑动平均、没有写衰减率：ai-toolkit 和 OneTrainer 都是它
GIVEN = None  # 偏移照 discrete_flow_shift
SAMPLING = {  # timestep_sampling、timestep_type -> 噪声怎么抽、偏移多少
    "sigma": ("uniform", GIVEN), "shift": ("logit-normal", GIVEN),
    "uniform": ("uniform", 1.0), "sigmoid": ("logit-normal", 1.0),
    **dict.fromkeys(("flux_shift", "flux2_shift", "qwen_shift"), ("logit-normal", "auto")),
}  # fmt: skip
TYPES = {
    "sigmoid": ("logit-normal", 1.0), "linear": ("uniform", 1.0),
    **dict.fromkeys(("shift", "flux_shift", "lumina2_shift"), ("uniform", "auto")),
}  # fmt: skip
LAYERS = {  # 它默认练哪些层
    "kohya": "Transformer 块里的全部线性层", "musubi": "块里除了调制、归一化的全部线性层",
    "ai-toolkit": "Transformer 块里的全部线性层", "OneTrainer": "Transformer 的全部线性层",
}  # fmt: skip
KINDS = {  # 没有写精度时它用什么
    "kohya": ("mixed_precision", "照 accelerate 的设置，没有就是 fp32"),
    "musubi": ("mixed_precision", "照 accelerate 的设置"),
    "ai-toolkit": ("train.dtype", "是 fp32"), "OneTrainer": ("train_dtype", "是 fp16"),
}  # fmt: skip
DECAYED = (
    "adamw",
    "adamw_8bit",
    *(f"{p}adamw{n}bit" for p in ("", "paged") for n in (8, 32)),
    "pagedadamw",
)  # 默认的权重衰减是 0.01，与这里相同；别的是 0


def fill(one, about: str = ""):
    """照它的默认值补上没有写的，每一项都说一句。

    Args:
        one: 对应到一半的设置（translation.Translation）。
        about: 只写了一部分的文件（“的数据”），没有就是整份的。
    """
    full = one.ours.get("lora", {}).get("kind") == "full"
    for name, (target, value) in MISSING[f"{one.tool}{about}"].items():
        if target not in one.written and not (full and target.startswith("lora.")):
            absent(one, name, target, value)
    if not about:
        _say_the_rest(one, full)


def absent(one, name: str, target: str, value: Any):
    one.put(f"没有写{_spaced(name)}，照 {one.tool} 的默认值", target, value)


def _spaced(text: str) -> str:
    """英文和前面的汉字之间空一格。"""
    return f" {text}" if text[0].isascii() else text


def decay(one, optimizer: Any):
    """没有写权重衰减：AdamW 以外的几种，它们默认是 0，这里是 0.01。"""
    other = optimizer and str(optimizer).lower() not in DECAYED
    if other and "train.weight_decay" not in one.written:
        absent(one, f"{optimizer} 的 weight_decay", "train.weight_decay", 0.0)


def kohya(one, flat: Mapping[str, Any]):
    """sd-scripts 与 musubi-tuner：几项要连起来看的。"""
    _sampling(one, flat)
    if str(flat.get("lr_scheduler", "constant")).lower() == "constant":
        if flat.get("lr_warmup_steps"):
            one.lines.append("lr_warmup_steps：lr_scheduler 是 constant 时它不热身，没有用到")
        one.put("lr_scheduler 是 constant，不热身", "train.warmup", 0)
    found = re.search(r"weight_decay\s*=\s*([\d.eE+-]+)", str(flat.get("optimizer_args", "")))
    if found:
        one.put("optimizer_args 的 weight_decay", "train.weight_decay", found[1])
    kind = flat.get("optimizer_type") or flat.get("optimizer")
    decay(one, kind)
    if str(kind).lower() == "adafactor" and "relative_step=false" not in _tight(flat):
        one.lines.append("Adafactor：它默认自己定学习率（relative_step），这里照 train.lr")
    if epochs := flat.get("max_train_epochs") or flat.get("epoch"):  # 轮数优先
        one.written.add("train.steps")
        one.lines.append(f"它练 {epochs} 轮，这里按步数：看看 train.steps 是不是你要的")
    fill(one)
    if one.tool == "kohya":
        if str(flat.get("model_prediction_type", "")) != "raw":
            one.lines.append("model_prediction_type：没有写它是 sigma_scaled，这里总是 raw")
        if str(flat.get("network_train_unet_only", "")).lower() != "true":
            one.lines.append("它还练文本编码器（没有写 network_train_unet_only），这里从不练")
    one.lines.append("写在命令行里的，这里看不到：以那里的为准，用 --set 改过来")


def _tight(flat: Mapping[str, Any]) -> str:
    return str(flat.get("optimizer_args", "")).replace(" ", "").lower()


def _sampling(one, flat: Mapping[str, Any]):
    """它怎么抽噪声：timestep_sampling、weighting_scheme、discrete_flow_shift 连起来的意思。"""
    way = str(flat.get("timestep_sampling") or "sigma").lower()
    said = f"{'' if flat.get('timestep_sampling') else '没有写 '}timestep_sampling（{way}）"
    shift, mine = "discrete_flow_shift", flat.get("discrete_flow_shift")
    if way not in SAMPLING:
        one.left.append(f"timestep_sampling（{way}）")
        return
    density, moved = SAMPLING[way]
    if way == "sigma" and str(flat.get("weighting_scheme")).lower() == "logit_normal":
        density = "logit-normal"
    one.put(said, "train.timestep.density", density)
    if moved is not GIVEN:
        if mine is not None:
            one.lines.append(f"{shift}：timestep_sampling 是 {way} 时它用不到")
        one.put(said, "train.timestep.shift", moved)
    elif mine is not None:
        one.put(shift, "train.timestep.shift", mine)
    else:
        absent(one, shift, "train.timestep.shift", 3.0 if one.tool == "kohya" else 1.0)


def ai_toolkit(one, process: Mapping[str, Any]):
    """ai-toolkit：几项要连起来看的。"""
    given = (process.get(name) for name in ("network", "train"))
    network, train = (one if isinstance(one, Mapping) else {} for one in given)
    if "rank" in network:  # 旧的写法，写了就用它
        one.put("network.rank", "lora.rank", network["rank"])
    for name in ("alpha", "linear_alpha"):
        if name in network:
            why = "在这些底模上它自己也不用，缩放总是 1（alpha 等于 rank）；这里也一样"
            one.lines.append(f"network.{name}（{network[name]}）：{why}")
    full = str(network.get("lokr_full_rank", True)).lower() == "true"
    if str(network.get("type")).lower() == "lokr" and full:
        one.lines.append("network.type = lokr：它默认是满秩的，rank 不起作用；这里照 lora.rank")
    way = str(train.get("timestep_type") or "sigmoid").lower()
    if way in TYPES:
        said = f"{'' if train.get('timestep_type') else '没有写 '}train.timestep_type（{way}）"
        for key, value in zip(("density", "shift"), TYPES[way], strict=True):
            one.put(said, f"train.timestep.{key}", value)
    else:
        one.left.append(f"train.timestep_type（{way}）")
    small = re.fullmatch(r"0?\.0\d*|\d[\d.]*e-\d+", str(train.get("lr", "1e-6")).lower())
    if small and str(train.get("optimizer")).lower() == "prodigy":
        one.put("train.lr，用 Prodigy 时不到 0.1 的它当作 1", "train.lr", 1.0)
    decay(one, train.get("optimizer"))
    fill(one)


def _say_the_rest(one, full: bool):
    """补不了的几项：练哪些层、精度、种子。"""
    if not full and "lora.targets" not in one.written:
        said = f"没有写练哪些层：它练{_spaced(LAYERS[one.tool])}，这里只练注意力"
        one.lines.append(f"{said}；要和它一样多，加上 --set lora.targets=all-linear")
    name, kind = KINDS[one.tool]
    if "model.precision" not in one.written:
        one.lines.append(f"没有写 {name}：它{kind}；这里是 auto（显卡上用 bf16）")
    if "train.seed" not in one.written and one.tool != "OneTrainer":
        one.lines.append("没有写种子：它每次随机，这里总是 0")
