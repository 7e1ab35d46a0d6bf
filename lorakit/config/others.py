"""别的训练器的设置文件（ai-toolkit、musubi、OneTrainer、kohya……）：认出来，能对应的逐项对应。"""

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lorakit.config.foreign import COMMON, MARK
from lorakit.errors import ConfigError
from lorakit.files import Unreadable, decoded, parse_json, read_small

AI_TOOLKIT = {  # config.process 的第一项里的名字 -> 这里的
    "training_folder": "run.output", "trigger_word": "data.trigger",
    "network.linear": "lora.rank", "network.linear_alpha": "lora.alpha",
    "network.type": "lora.variant",
    "save.save_every": "train.save_every", "save.max_step_saves_to_keep": "train.keep",
    "datasets.caption_dropout_rate": "data.caption_dropout",
    "datasets.resolution": "data.resolution", "datasets.flip_x": "data.flip",
    "train.batch_size": "train.batch_size", "train.steps": "train.steps",
    "train.gradient_accumulation_steps": "train.grad_accum",
    "train.gradient_accumulation": "train.grad_accum", "train.lr": "train.lr",
    "train.gradient_checkpointing": "memory.checkpointing", "train.optimizer": "train.optimizer",
    "train.dtype": "model.precision", "train.max_grad_norm": "train.max_grad_norm",
    "train.ema_config.ema_decay": "train.ema",
    "model.name_or_path": "model.path", "model.quantize": "model.quantize",
    "sample.sample_every": "sample.every", "sample.prompts": "sample.prompts",
    "sample.guidance_scale": "sample.guidance", "sample.sample_steps": "sample.steps",
    "sample.seed": "sample.seed", "sample.width": "sample.size",
}  # fmt: skip
KOHYA = COMMON | {
    "dit": "model.path", "resolution": "data.resolution",
    "train_data_dir": "data.folder", "reg_data_dir": "data.class_folder",
    "network_dim": "lora.rank", "network_alpha": "lora.alpha",
    "unet_lr": "train.lr", "lr_warmup": "train.warmup", "batch_size": "train.batch_size",
    "optimizer_type": "train.optimizer", "optimizer": "train.optimizer",
    "save_every_n_steps": "train.save_every", "gradient_checkpointing": "memory.checkpointing",
    "caption_dropout_rate": "data.caption_dropout", "prior_loss_weight": "data.class_weight",
    "flip_aug": "data.flip", "masked_loss": "data.mask",
    "discrete_flow_shift": "train.timestep.shift",
}  # fmt: skip
ONETRAINER = {
    "base_model_name": "model.path", "training_method": "lora.kind", "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha", "learning_rate": "train.lr", "batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.grad_accum", "resolution": "data.resolution",
    "output_model_destination": "run.output", "optimizer.optimizer": "train.optimizer",
    "peft_type": "lora.variant", "learning_rate_scheduler": "train.schedule",
    "learning_rate_warmup_steps": "train.warmup", "clip_grad_norm": "train.max_grad_norm",
    "masked_training": "data.mask", "unmasked_weight": "data.mask_floor",
    "train_dtype": "model.precision", "gradient_checkpointing": "memory.checkpointing",
    "timestep_shift": "train.timestep.shift",
}  # fmt: skip
MODULES = {  # network_module、model_type、arch 里的字样 -> 底模
    "qwen_image_21": "Qwen/Qwen-Image-2.1", "qwen_image_2_1": "Qwen/Qwen-Image-2.1",
    "qwen_image_edit": "Qwen/Qwen-Image-Edit", "qwen": "Qwen/Qwen-Image",
    "kontext": "black-forest-labs/FLUX.1-Kontext-dev",
    "flux_2_dev": "black-forest-labs/FLUX.2-dev", "flux2_dev": "black-forest-labs/FLUX.2-dev",
    "klein_base_9b": "black-forest-labs/FLUX.2-klein-base-9B",
    "klein_base_4b": "black-forest-labs/FLUX.2-klein-base-4B",
    "flux_2": "black-forest-labs/FLUX.2-klein-4B", "flux2": "black-forest-labs/FLUX.2-klein-4B",
    "flux": "black-forest-labs/FLUX.1-dev", "z_image": "Tongyi-MAI/Z-Image-Turbo",
    "zimage": "Tongyi-MAI/Z-Image-Turbo",
}  # fmt: skip
TRUE, FALSE = ("true", "on"), ("false", "off", "none", "null", "")
WORDS = {  # 设置 -> {他们的写法: 这里的写法}；写法都已换成小写
    "lora.variant": {"lora": "plain"}, "lora.kind": {"lora": "lora", "fine_tune": "full"},
    "model.quantize": {"true": "fp8", "false": "none"},
    "memory.checkpointing": {**dict.fromkeys((*TRUE, "cpu_offloaded"), True),
                             **dict.fromkeys(FALSE, False)},
    "data.flip": {"true": True, "false": False},
    "train.optimizer": {"adamw_8bit": "adamw8bit", "adamw8bit": "adamw8bit", "adamw": "adamw",
                        "adam": "adamw", "adafactor": "adafactor", "prodigy": "prodigy"},
    "train.schedule": {"cosine_with_restarts": "cosine", "constant_with_warmup": "constant"},
    "model.precision": {"no": "fp32", "float32": "fp32", "float_32": "fp32", "bfloat16": "bf16",
                        "bfloat_16": "bf16", "float16": "fp16", "float_16": "fp16"},
    "data.mask": {"true": "file", "false": "none"},
}  # fmt: skip


class Found(NamedTuple):
    """认出来的：是谁的设置、对应成的设置、逐项说明。"""

    tool: str
    ours: dict[str, Any]
    lines: list[str]


def read_other(path: Path) -> dict | None:
    """TOML、JSON 文件的内容；别的后缀返回 None，由 YAML 去读。"""
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".json"):
        return None
    try:
        text = decoded(read_small(path))
        if suffix == ".json":
            tree = parse_json(text, (dict, list), finite=False)
        else:
            tree = tomllib.loads(text)
    except (Unreadable, ValueError, RecursionError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"设置文件 {path} 不是合格的 {suffix[1:].upper()}：{why}。") from None
    if _concepts(tree):  # OneTrainer 的 concepts.json 单独一份
        return {"concepts": tree, "training_method": None}
    if isinstance(tree, dict) and isinstance(name := tree.get("concept_file_name"), str):
        tree["concepts"] = tree.get("concepts") or _beside(path, name)
    if not isinstance(tree, dict):
        raise ConfigError(f"设置文件 {path} 的内容不对：最外层要是“名字: 值”的样子。")
    return tree


def _concepts(tree: Any) -> bool:
    """OneTrainer 的图片清单：一个列表，每一项有图片文件夹。"""
    return isinstance(tree, list) and bool(tree) and all("path" in _dict(one) for one in tree)


def _beside(path: Path, name: str) -> list | None:
    """设置里提到的 concepts.json：从它旁边、或从当前文件夹找；找不到就是 None。"""
    for place in (path.parent / name, Path(name)):
        try:
            tree = parse_json(decoded(read_small(place)), list)
        except (Unreadable, UnicodeDecodeError):
            continue
        if _concepts(tree):
            return tree
    return None


def recognise(tree: Mapping[str, Any], fits: Callable[[str, Any], bool]) -> Found | None:
    """别的训练器的设置 -> 对应成的；认不出就是 None。

    Args:
        fits: 函数 (设置名, 值) -> 这里收不收这个值；不收的写进说明，不拦着。
    """
    datasets = _list(tree.get("datasets"))
    if "job" in tree or isinstance(_dict(tree.get("config")).get("process"), list):
        return _Translation("ai-toolkit", fits).ai_toolkit(tree)
    if "training_method" in tree or ("__version" in tree and "base_model_name" in tree):
        return _Translation("OneTrainer", fits).onetrainer(tree)
    if datasets and any("subsets" in one for one in datasets):
        return _Translation("kohya", fits).datasets(tree)
    if datasets or {"general", "cache_directory"} <= set(tree):
        return _Translation("musubi", fits).datasets(tree)
    flat = dict(_merged(tree))
    if {"network_dim", "network_module", "train_data_dir", "LoRA_type"} & set(flat):
        tool = "musubi" if "dit" in flat or "dataset_config" in flat else "kohya"
        return _Translation(tool, fits).kohya(flat)
    if "type" in _dict(tree.get("model")) and ("adapter" in tree or "dataset" in tree):
        return Found("diffusion-pipe", {}, [])
    if "data_backend_config" in flat or any(str(key).startswith("--") for key in tree):
        return Found("SimpleTuner", {}, [])
    return None


def incomplete(where: str, found: Found, lacking: list[str], text: str) -> str:
    """还缺底模或图片文件夹、不能照原样练时的一句话；text 是能照抄的设置。"""
    copy = f"能照抄的是：\n{text}" if found.ours else "没有能照抄的；"
    sets = " ".join(f"--set {name}=……" for name in lacking)
    return (
        f"“{where}”：这是 {found.tool} 的设置，不是 lorakit 的。{copy}还缺 {'、'.join(lacking)}："
        f"写进自己的 YAML（先 lorakit init qwen-image > my.yaml），或在命令后面加 {sets}。"
    )


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[dict]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _merged(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """kohya 的 TOML 可以分节，节的名字没有意义。"""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from value.items()
        else:
            yield key, value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _side(value: Any) -> Any:
    """ "1024,1024"、[960, 544]、[512, 768, 1024] -> 一个边长。"""
    given = value if isinstance(value, list) else str(value).split(",")
    try:
        numbers = [float(one) for one in given]
    except (TypeError, ValueError):
        return value
    side = max(numbers, default=0)
    if len(numbers) == 2:
        side = math.sqrt(max(numbers[0], 0) * max(numbers[1], 0))
    return round(side / 16) * 16 if math.isfinite(side) else value


class _Translation:
    """一份别人的设置逐项对应过来，边走边记下每一项去了哪里。"""

    def __init__(self, tool: str, fits: Callable[[str, Any], bool]):
        self.tool, self.fits = tool, fits
        self.ours: dict[str, Any] = {}
        self.lines: list[str] = []
        self.left: list[str] = []
        self.known: set[str] = set()
        self.seen: set[str] = set()

    def done(self) -> Found:
        for name in list(self.left):  # 写错一个字母，和不认识的混在一起就看不见了
            close = difflib.get_close_matches(name, self.known, n=1, cutoff=0.86)
            if close and name not in self.known and close[0] not in self.seen:
                self.left.remove(name)
                self.lines.insert(0, f"{name}：像是写错了，没有用到。是不是 {close[0]}？")
        if self.left:
            self.lines.append(f"没有对应的，没有用到：{'、'.join(dict.fromkeys(self.left))}")
        return Found(self.tool, self.ours, self.lines)

    def put(self, name: str, target: str, value: Any):
        """一项：换成这里的写法；这里不收的值写进说明。"""
        if target == "data.resolution":
            value = _side(value)
        word = str(value).lower()
        value = WORDS.get(target, {}).get(word, word if target in WORDS else value)
        if re.fullmatch(r"\d{1,9}", str(value)) and self.fits(target, int(value)):
            value = int(value)  # YAML 里的数先是文字
        if value is None or not self.fits(target, value):
            self.left.append(f"{name}（{value}）")
            return
        *groups, key = target.split(".")
        tree = self.ours
        for group in groups:
            tree = tree.setdefault(group, {})
        tree[key] = value
        self.lines.append(f"{name} -> {target} = {value}")

    def model(self, name: str, value: Any, hint: Any = ""):
        """底模：单个权重文件这里载入不了，看它叫什么，换成模型站上的名字。"""
        single = str(value).lower().endswith((".safetensors", ".gguf", ".sft", ".pt"))
        if value and not single:
            return self.put(name, "model.path", str(value))
        word = re.sub(r"[-. ]", "_", f"{hint} {value or ''}".lower())
        base = next((base for key, base in MODULES.items() if key in word), None)
        if base:
            self.lines.append(f"{name}：这里要 diffusers 布局的底模，不读单个权重文件")
            self.put(name, "model.path", base)
        elif value:
            self.left.append(f"{name}（单个权重文件；model.path 要写 diffusers 布局的底模）")
        return None

    def sources(self, rows: list[dict]):
        """几个图片文件夹：一个就写路径，几个或有次数就写列表。"""
        if not rows:
            return
        if len(rows) == 1 and set(rows[0]) == {"folder"}:
            return self.put("图片文件夹", "data.folder", rows[0]["folder"])
        self.put("图片文件夹", "data.folder", rows)
        return None

    def ai_toolkit(self, tree: Mapping[str, Any]) -> Found:
        config = _dict(tree.get("config"))
        process = next(iter(_list(config.get("process"))), {})
        model = _dict(process.get("model"))
        sets = _list(process.get("datasets"))
        given = {**process, "datasets": sets[0] if sets else {}}
        rows = []
        for one in sets:
            row = {"folder": one.get("folder_path") or one.get("dataset_path")}
            row |= {"repeats": one["num_repeats"]} if "num_repeats" in one else {}
            row |= {"control_folder": one["control_path"]} if one.get("control_path") else {}
            rows += [row] if row["folder"] else []
        self.sources(rows)
        self.model("model.name_or_path", model.get("name_or_path"), model.get("arch", ""))
        skip = ("folder_path", "dataset_path", "num_repeats", "control_path", "name_or_path")
        for name, value in _leaves(given):
            if name.endswith(skip) or name in ("type", "device"):
                continue
            off = str(_dict(_dict(process.get("train")).get("ema_config")).get("use_ema")).lower()
            if name.startswith("train.ema_config.") and off == "false":
                continue  # 写着的衰减率没有用上
            self.one(name, value, AI_TOOLKIT)
        for number, one in enumerate(sets[1:], 2):  # 这里几个文件夹共用一份设置
            for name, value in _leaves(one):
                if name not in skip and _dict(sets[0]).get(name) != value:
                    self.left.append(f"第 {number} 个 datasets 的 {name}（{value}，和第一个不同）")
        prompts = _dict(self.ours.get("sample")).get("prompts")
        word = str(process.get("trigger_word") or "")
        if isinstance(prompts, list) and word:
            self.ours["sample"]["prompts"] = [str(p).replace("[trigger]", word) for p in prompts]
        if config.get("name") and "run" in self.ours:
            self.ours["run"]["output"] += f"/{config['name']}"
        return self.done()

    def onetrainer(self, tree: Mapping[str, Any]) -> Found:
        self.model("base_model_name", tree.get("base_model_name"), tree.get("model_type", ""))
        concepts = _list(tree.get("concepts"))
        concepts = [one for one in concepts if one.get("path") and one.get("enabled", True)]
        rows = []
        for one in concepts:
            kind = str(one.get("type", "STANDARD")).upper()
            if kind == "PRIOR_PREDICTION":  # 同类图片
                self.put(f"concepts 里的 {one['path']}", "data.class_folder", one["path"])
                continue
            if kind == "VALIDATION":
                said = "只用来检验，没有用到（这里自己留出一部分：eval.holdout）"
                self.lines.append(f"concepts 里的 {one['path']}：{said}")
                continue
            source = str(_dict(one.get("text")).get("prompt_source", "sample"))
            if source != "sample":
                said = f"描述不在图旁边（prompt_source 是 {source}），这里要每张图一个 .txt"
                self.lines.append(f"concepts 里的 {one['path']}：{said}")
            times = one.get("balancing", one.get("repeats", 1))
            whole = isinstance(times, (int, float)) and times >= 1 and times == int(times)
            if not whole:
                self.left.append(f"{one['path']} 的 balancing（{times}）")
            repeats = {"repeats": int(times)} if whole and times > 1 else {}
            rows.append({"folder": one["path"], **repeats})
        self.sources(rows)
        if not concepts and tree.get("concept_file_name"):
            self.lines.append(f"图片文件夹写在 {tree['concept_file_name']} 里，抄到 data.folder")
        for name, value in _leaves({k: v for k, v in tree.items() if k != "concepts"}):
            if name == "output_model_destination" and value:
                value = str(Path(str(value)).with_suffix(""))
            if name not in ("base_model_name", "concept_file_name", "__version"):
                self.one(name, value, ONETRAINER, quiet=True)
        if tree.get("save_every_unit") == "STEP" and "save_every" in tree:
            self.put("save_every", "train.save_every", tree["save_every"])
        return self.done()

    def datasets(self, tree: Mapping[str, Any]) -> Found:
        """musubi、kohya 的数据设置（[general]、[[datasets]]）；底模和步数写在别处。"""
        general, rows = _dict(tree.get("general")), []
        for one in _list(tree.get("datasets")):
            whole = {**general, **one}
            for part in _list(whole.pop("subsets", None)) or [{}]:
                facts = {**whole, **part}
                place = facts.get("image_directory") or facts.get("image_dir")
                if not place and facts.get("image_jsonl_file"):
                    place = str(Path(str(facts["image_jsonl_file"])).parent)
                if not place:
                    continue
                if str(facts.get("is_reg")).lower() == "true":
                    self.put("is_reg", "data.class_folder", place)
                    continue
                row = {"folder": place}
                row |= {"repeats": facts["num_repeats"]} if "num_repeats" in facts else {}
                control = facts.get("control_directory") or facts.get("conditioning_data_dir")
                row |= {"control_folder": control} if control else {}
                rows.append(row)
                names = ("resolution", "batch_size", "flip_aug")
                for name in names if len(rows) == 1 else ():
                    if name in facts:
                        self.put(name, KOHYA[name], facts[name])
                if str(facts.get("alpha_mask")).lower() == "true":
                    self.put("alpha_mask", "data.mask", "alpha")
        self.sources(rows)
        self.lines.append("这一份只写了数据：底模、步数和学习率写在训练的命令里")
        return self.done()

    def kohya(self, flat: Mapping[str, Any]) -> Found:
        name = "dit" if "dit" in flat else MARK
        self.model(name, flat.get(name), flat.get("network_module", ""))
        if str(flat.get("alpha_mask")).lower() == "true":  # 图自己的透明通道
            self.put("alpha_mask", "data.mask", "alpha")
        first = {key: flat[key] for key in ("learning_rate",) if key in flat}
        for key, value in (first | flat).items():  # unet_lr 写了就用它，不看谁先谁后
            if key in (name, "output_name", "alpha_mask"):
                continue
            if key == "train_data_dir" and (rows := _counted(value)):
                self.sources(rows)
            else:
                self.one(key, value, KOHYA)
        if flat.get("output_name") and "run" in self.ours:
            self.ours["run"]["output"] += f"/{flat['output_name']}"
        return self.done()

    def one(self, name: str, value: Any, table: Mapping[str, str], quiet: bool = False):
        target = table.get(name)
        self.known |= set(table)
        self.seen.add(name)
        if target and target != "model.path":
            self.put(name, target, value)
        elif not quiet:
            self.left.append(name)


def _counted(value: Any) -> list[dict]:
    """kohya 的 train_data_dir：里面每个“10_名字”是一个来源，数字是次数。"""
    try:
        inside = sorted(path for path in Path(str(value)).iterdir() if path.is_dir())
    except (OSError, ValueError):
        return []
    hits = [(path, re.match(r"0*([1-9]\d{0,2})_.", path.name)) for path in inside]
    return [{"folder": str(path), "repeats": int(hit[1])} for path, hit in hits if hit]
