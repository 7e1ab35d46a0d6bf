"""一层 LoRA 的强度：B A 之外还要乘几。

先听张量旁边的 alpha（在 foreign.py 里）；没有，再依次听：我们自己的卡片（已经乘进权重）、
适配器自己的设置（文件头的 lora_adapter_metadata，或旁边的 adapter_config.json，
或一项一项写在文件头里的 lora_alpha）、kohya 一系的 ss_*；都没有就是 1。
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lorakit.errors import WeightsError
from lorakit.files import Unreadable, parse_json, read_small
from lorakit.lora import files as lora_files
from lorakit.lora import names

HEADERS = ("lora_adapter_metadata", "adapter_config", "peft_config", "lora_config")
FLAT = ("lora_alpha", "network_alpha", "alpha")  # 一项一项写在文件头里的，与它们的秩
FLAT_RANKS = ("r", "lora_rank", "network_dim", "rank", "dim")
RANKS = ("lora_rank", "network_dim")  # 单独写着也一定是秩的
ROUNDED = 1e-2  # 存成 bf16 的 alpha 差这么多
CONFIG = "adapter_config.json"  # PEFT 放在 adapter_model.safetensors 旁边
PLAIN = re.compile(r"\^?(?:[\w.]|\\\.)+\$?")  # 没有正则表达式的符号（点除外）的样式
MOST = 64  # 正则表达式最多几条
LARGEST = 1 << 20  # 设置文件最多这么多字节
KNOWN_START = ("pissa", "olora", "corda", "lora_ga")  # PEFT 能减掉开头的那一份
MOVED_BASE = (*KNOWN_START, "loftq", "milora")
VARIANTS = {  # PEFT 设置里的一项 -> 是哪一种：张量一样，算法不同
    "use_qalora": "QALoRA", "alora_invocation_tokens": "aLoRA", "arrow_config": "Arrow",
    "use_bdlora": "BD-LoRA", "kasa_config": "KaSA", "monteclora_config": "MonteCLoRA",
    "layer_replication": "复制了层的 LoRA（layer_replication）",
}  # fmt: skip
ROUTED = ("aLoRA", "Arrow")
PREFIXES = ("transformer.", "diffusion_model.", "unet.", "base_model.model.")


class Unclear(WeightsError):
    """写着强度，却读不懂。"""


@dataclass(frozen=True)
class Rule:
    """没有 alpha 张量的层听谁的；said 是给人看的。"""

    said: str = "没有写强度，照 1"
    alpha: float | None = None  # None：缩放就是 1
    rank: float | None = None  # 写着的秩；张量自己的秩比它可靠
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, float] = field(default_factory=dict)
    root: bool = False  # rslora：除以秩的平方根
    fixed: bool = False  # ss_*：用写着的秩，不看张量的
    dora: bool = False  # 设置说是 DoRA：每一层都该有长度
    strong: bool = True  # 说了强度；只写着秩的不算
    various: bool = False  # 各层的秩另有说法

    def scale(self, layer: str, rank: int | None) -> float:
        """这一层要乘几。

        Args:
            rank: 张量的秩；LoKr 没有拆开的层是 None：PEFT 听写着的，LyCORIS（ss_*）总是 1。
        """
        if self.fixed and rank is None:
            return 1.0
        alpha = self.alphas.get(_matching(self.alphas, layer), self.alpha)
        if alpha is None:
            return 1.0
        told = self.rank_of(layer)
        rank = told if self.fixed or rank is None else rank
        if not rank:
            return 1.0
        return alpha / (math.sqrt(rank) if self.root else rank)

    def rank_of(self, layer: str) -> float | None:
        """这一层写着的秩；没有写是 None。"""
        return self.ranks.get(_matching(self.ranks, layer), self.rank)


def rule(path: Path, header: Mapping[str, str], card: Mapping[str, str], keys=()) -> Rule:
    """文件与它的文件头 -> 没有 alpha 张量的层听谁的。

    Args:
        keys: 张量的名字；PEFT 的写法才看旁边的 adapter_config.json。

    Raises:
        WeightsError: 写着强度，却读不懂。
    """
    if card.get("alpha") == "folded":
        return Rule("已经乘进权重")
    told = (source() for source in _sources(path, header, keys))
    return next((one for one in told if one and one.strong), Rule())


def claims(path: Path, header: Mapping[str, str], keys=()) -> list[Rule]:
    """张量以外写着秩、强度的每一处；读不懂的不算。"""
    found = []
    for source in _sources(path, header, keys):
        try:
            found.append(source())
        except Unclear:
            continue
    return [one for one in found if one is not None]


def _sources(path: Path, header: Mapping[str, str], keys) -> Iterator[Callable[[], Rule | None]]:
    """写着强度的各处，先听的在前；用到才读。"""
    for key in HEADERS:
        if key in header:
            where = f"“{path}”文件头里的 {key} "
            yield partial(_adapter, where, header[key], f"文件头的 {key}")
    config = path.parent / CONFIG
    if _has_config(path, keys) and config.is_file():
        yield partial(_beside, config)
    yield partial(_flat, header)
    yield partial(_kohya, header)


def _beside(config: Path) -> Rule | None:
    try:
        text = read_small(config, LARGEST)
    except Unreadable as error:
        raise Unclear(f"“{config}”读不了：{error}；这个 LoRA 的强度写在里面。") from error
    return _adapter(f"“{config}”", text, f"旁边的 {CONFIG}")


def _kohya(header: Mapping[str, str]) -> Rule | None:
    alpha, dim = (_number(header.get(f"ss_network_{key}")) for key in ("alpha", "dim"))
    if dim is not None and dim <= 0:
        return None
    if alpha is None:
        return dim and Rule("文件头的 ss_network_dim", None, dim, strong=False)
    said = "文件头的 ss_network_alpha"  # 没有写秩，就用张量的
    return Rule(said, alpha, dim, fixed=dim is not None, various=_various(header))


def _various(header: Mapping[str, str]) -> bool:
    """kohya 的 network_args 里可以给各块另写秩（img_attn_dim、block_dims……）。"""
    return re.search(r"\w_dims?\b|\bdims?_from", header.get("ss_network_args", "")) is not None


def contradiction(
    told: Sequence[Rule],
    ranks: Mapping[str, tuple[int, int]],
    scales: Mapping[str, float],
    folded: bool,
) -> str:
    """张量以外写的与张量对不上的地方，一句话；都对得上就是空的。

    Args:
        ranks: 层 -> (张量的秩, 这一层并了几层：并起来的，秩是几倍都算对得上)。
        scales: 层 -> 用的强度。
        folded: 是我们写的：写的是最大的秩，别的层可以小。
    """
    for rule in told:
        wrong = [] if rule.various else [
            (layer, rank, claimed) for layer, (rank, parts) in ranks.items()
            if (claimed := rule.rank_of(layer))
            and rank not in [claimed * times for times in range(1, parts + 1)]
            and not (folded and rank <= claimed * parts)
        ]  # fmt: skip
        most = max((rank for rank, _ in ranks.values()), default=0)
        if folded and ranks and rule.rank and most < rule.rank and not wrong:
            layer = max(ranks, key=lambda one: ranks[one][0])
            wrong = [(layer, most, rule.rank)]
        if wrong:
            layer, rank, claimed = wrong[0]
            return (
                f"{rule.said} 那里写的秩是 {claimed:g}，张量的秩是 {rank}"
                f"（{lora_files.brief(layer)} 等 {len(wrong)} 层）"
            )
        silent = rule.alpha is None and not rule.alphas
        for layer in ranks if not (silent or rule.various) else ():
            scale, other = scales[layer], rule.scale(layer, ranks[layer][0])
            if not math.isclose(scale, other, rel_tol=ROUNDED):
                return (
                    f"照{rule.said}，{lora_files.brief(layer)} 的强度是 {other:.4g}，"
                    f"用的是 {scale:.4g}"
                )
    return ""


def _has_config(path: Path, keys) -> bool:
    return path.name == lora_files.PEFT_FILE or any(key.startswith("base_model.") for key in keys)


def _flat(header: Mapping[str, str]) -> Rule | None:
    """自己写的训练脚本：权重原样存，alpha 与秩另写成文件头的两项；只写一项的不知道强度。"""
    key = next((key for key in FLAT if _number(header.get(key)) is not None), None)
    rank = next((r for k in FLAT_RANKS if (r := _number(header.get(k))) is not None), None)
    if key is None:
        sure = next((r for k in RANKS if (r := _number(header.get(k))) is not None), None)
        return sure and Rule("文件头", None, sure, strong=False)
    if key == "alpha" and rank is None:
        return None
    root = str(header.get("use_rslora")).lower() == "true"
    return Rule(f"文件头的 {key}", _number(header[key]), rank, root=root)


def _adapter(where: str, text: str | bytes, said: str) -> Rule | None:
    """PEFT 的设置（JSON）-> 规则；里面没有说强度就是 None。"""
    broken = Unclear(
        f"{where}读不懂，而这个 LoRA 的强度写在里面：错了会强几倍或弱几倍。请重新下载或导出。"
    )
    try:
        config = _ours(parse_json(text))
    except Unreadable as error:
        raise broken from error
    _refuse_moved_base(where, config)
    if kind := next((said for key, said in VARIANTS.items() if config.get(key)), None):
        mend = f"请{names.MERGE}"
        if kind in ROUTED:
            mend = "它看提示词来定用不用、用哪一份，合并不进底模，这里用不上"
        raise WeightsError(f"{where}说它是 {kind}，不是普通的 LoRA，这里读不了。{mend}。")
    alpha = config.get("lora_alpha", config.get("alpha"))
    if alpha is None and not config.get("alpha_pattern"):
        return None
    alphas, ranks = (config.get(key) or {} for key in ("alpha_pattern", "rank_pattern"))
    rank, root = config.get("r"), config.get("use_rslora") or False
    patterns = (alphas, ranks)
    numbers = (alpha, rank, *(v for p in patterns if isinstance(p, dict) for v in p.values()))
    sound = all(isinstance(p, dict) for p in patterns) and isinstance(root, bool)
    if not sound or any(v is not None and not _plain_number(v) for v in numbers):
        raise broken
    written = [pattern for pattern in (*alphas, *ranks) if not PLAIN.fullmatch(pattern)]
    if len(written) > MOST:
        raise broken
    for pattern in written:
        _refuse_pattern(pattern, broken)
    return Rule(said, alpha, rank, alphas, ranks, root, dora=config.get("use_dora") is True)


def _refuse_moved_base(where: str, config: Mapping):
    """开始训练时从底模里拿走一部分的：文件里的 BA 是相对于改过的底模的。"""
    init = config.get("init_lora_weights")
    kind = next((k for k in MOVED_BASE if isinstance(init, str) and init.startswith(k)), None)
    if kind is None:
        return
    mend = f"请{names.MERGE}"
    patterns = config.get("rank_pattern") or config.get("alpha_pattern")
    lost = config.get("use_dora") or (config.get("use_rslora") and patterns)  # PEFT 减不了的
    if kind in KNOWN_START and not lost:
        mend = (
            "练之前存过一份开头的 LoRA（存之前把 init_lora_weights 改成 True），就在训练它的地方用 "
            "PEFT：save_pretrained(新文件夹, path_initial_model_for_weight_conversion=那一份)，"
            f"另存成普通的 LoRA；没有存过，就{names.MERGE}"
        )
    raise WeightsError(
        f"{where}写着 init_lora_weights={kind}：训练时底模也改过，单靠这个文件还原不出来。{mend}。"
    )


def _ours(given: dict) -> dict:
    """diffusers 在每一项前面写上 transformer.；文本编码器的那几项不要。"""
    for prefix in PREFIXES:
        mine = {k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}
        if {"lora_alpha", "alpha", "r"} & mine.keys():
            return mine
    return given


def _plain_number(value) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e9  # NaN 与无穷大也不是


def _number(text) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _refuse_pattern(pattern: str, broken: WeightsError):
    """层名的样式是正则表达式，别人写的：坏的、会越比越慢的都不用。"""
    if (
        len(pattern) > 300
        or re.search(r"\)[*+{]", pattern)
        or len(re.findall("[*+{]", pattern)) > 3
    ):
        raise broken
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise broken from error


def _matching(patterns: Mapping[str, float], layer: str) -> str | None:
    """与 PEFT 的 get_pattern_key 相同：先写的先认，样式对上层名的末尾几段。"""
    return next((pattern for pattern in patterns if _fits(pattern, layer)), None)


def _fits(pattern: str, layer: str) -> bool:
    if PLAIN.fullmatch(pattern):  # 多半是整个层名，一层一条：不必编译几百个正则表达式
        name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        return layer == name or (pattern[0] != "^" and layer.endswith(f".{name}"))
    return re.match(rf"(.*\.)?({pattern})$", layer) is not None
