"""一份别的训练器的设置，逐项换成这里的：能对应的对应，没有用到的一项项说出来，少用了数据就停下。"""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lorakit.config import defaults, vocabulary
from lorakit.config.foreign import MARK
from lorakit.errors import ConfigError


class Found(NamedTuple):
    """认出来的：是谁的设置、对应成的设置、逐项说明。"""

    tool: str
    ours: dict[str, Any]
    lines: list[str]


def as_dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[dict]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _side(value: Any, several: bool) -> Any:
    """ "1024,1024"、[960, 544]、[512, 768, 1024] -> 一个边长。

    Args:
        several: 写几个是几种边长（ai-toolkit、OneTrainer），取最大的；不然两个是宽和高。
    """
    given = value if isinstance(value, list) else re.split("[,x]", str(value))
    try:
        numbers = [float(one) for one in given]
    except (TypeError, ValueError):
        return value
    side = max(numbers, default=0)
    if len(numbers) == 2 and (not several or "x" in str(value)):
        side = math.sqrt(max(numbers[0], 0) * max(numbers[1], 0))
    return round(side / 16) * 16 if math.isfinite(side) else value


class Translation:
    """一份别人的设置逐项对应过来，边走边记下每一项去了哪里。"""

    def __init__(self, tool: str, fits: Callable[[str, Any], bool]):
        self.tool, self.fits = tool, fits
        self.ours: dict[str, Any] = {}
        self.lines: list[str] = []
        self.left: list[str] = []
        self.known: set[str] = set()
        self.seen: set[str] = set()
        self.written: set[str] = set()  # 写了的设置，这里收不收都算

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
        if value is not None:
            self.written.add(target)
        if target == "data.resolution":
            value = _side(value, self.tool in ("ai-toolkit", "OneTrainer"))
        word = str(value).lower()
        value = vocabulary.WORDS.get(target, {}).get(
            word, word if target in vocabulary.WORDS else value
        )
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
        base = next((base for key, base in vocabulary.MODULES.items() if key in word), None)
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

    def unusable(self, what: str, mend: str) -> ConfigError:
        """有一份数据这里用不上：停下，别悄悄少练一份。"""
        return ConfigError(f"这是 {self.tool} 的设置，{what}。{mend}，再来一次。")

    def prior(self, name: str, place: Any):
        """同类图片：这里只放得下一个文件夹。"""
        if "class_folder" in as_dict(self.ours.get("data")):
            what = f"{name} 不止一个：{self.ours['data']['class_folder']} 和 {place}"
            raise self.unusable(what, "把这些同类图片放进同一个文件夹，只写它")
        self.put(name, "data.class_folder", place)

    def controls(self, where: Any, one: dict) -> dict:
        """一个来源的控制图文件夹。"""
        every = []
        for name in vocabulary.CONTROLS:
            given = one.get(name) or []
            every += given if isinstance(given, list) else [given]
        if len(every) > 1:
            what = f"{where} 有 {len(every)} 个控制图文件夹，这里要一个"
            mend = "把它们放进同一个文件夹，同一张图的依次叫 名字、名字_2、名字_3，只写它"
            raise self.unusable(what, mend)
        return {"control_folder": every[0]} if every else {}

    def ai_toolkit(self, tree: Mapping[str, Any]) -> Found:
        config = as_dict(tree.get("config"))
        every = as_list(config.get("process")) or [{}]
        process = every[0]
        if len(every) > 1:
            said = f"config.process 里有 {len(every)} 项，只对应第 1 项；别的各存成一份，再练一次"
            self.lines.append(said)
        kind = str(process.get("type", "sd_trainer"))
        if "sd_trainer" not in kind and "diffusion_trainer" not in kind and kind != "ui_trainer":
            self.lines.append(f"config.process 的 type 是 {kind}：这里只练 LoRA 和全量微调")
        model = as_dict(process.get("model"))
        sets = as_list(process.get("datasets"))
        priors = [one for one in sets if str(one.get("is_reg")).lower() == "true"]
        sets = [one for one in sets if one not in priors]
        given = {**process, "datasets": sets[0] if sets else {}}
        rows = []
        for one in sets:
            row = {"folder": one.get("folder_path") or one.get("dataset_path")}
            row |= {"repeats": one["num_repeats"]} if "num_repeats" in one else {}
            row |= self.controls(row["folder"], one)
            rows += [row] if row["folder"] else []
        self.sources(rows)
        for one in priors:
            self.prior("is_reg 的 datasets", one.get("folder_path") or one.get("dataset_path"))
        self.model("model.name_or_path", model.get("name_or_path"), model.get("arch", ""))
        skip = ("folder_path", "dataset_path", "num_repeats", "is_reg", "name_or_path",
                *vocabulary.CONTROLS)  # fmt: skip
        average = as_dict(as_dict(process.get("train")).get("ema_config"))
        off = str(average.get("use_ema")).lower() != "true"
        for name, value in _leaves(given):
            if name.endswith(skip) or name in ("type", "device"):
                continue
            if name.startswith("train.ema_config.") and (off or name.endswith("use_ema")):
                continue  # 写着的衰减率没有用上
            if name not in vocabulary.JOINED:
                self.one(name, value, vocabulary.AI_TOOLKIT)
        if self.ours:
            if not off and "train.ema" not in self.written:
                defaults.absent(self, "ema_decay", "train.ema", defaults.EMA)
            defaults.ai_toolkit(self, process)
        for number, one in enumerate(sets[1:], 2):  # 这里几个文件夹共用一份设置
            for name, value in _leaves(one):
                if name not in skip and as_dict(sets[0]).get(name) != value:
                    self.left.append(f"第 {number} 个 datasets 的 {name}（{value}，和第一个不同）")
        prompts = as_dict(self.ours.get("sample")).get("prompts")
        word = str(process.get("trigger_word") or "")
        if isinstance(prompts, list) and word:
            self.ours["sample"]["prompts"] = [str(p).replace("[trigger]", word) for p in prompts]
        if config.get("name") and "run" in self.ours:
            self.ours["run"]["output"] += f"/{config['name']}"
        return self.done()

    def onetrainer(self, tree: Mapping[str, Any]) -> Found:
        self.model("base_model_name", tree.get("base_model_name"), tree.get("model_type", ""))
        concepts = as_list(tree.get("concepts"))
        concepts = [one for one in concepts if one.get("path") and one.get("enabled", True)]
        rows = []
        for one in concepts:
            kind = str(one.get("type", "STANDARD")).upper()
            if kind == "PRIOR_PREDICTION":  # 同类图片
                self.prior("PRIOR_PREDICTION 的 concepts", one["path"])
                continue
            if kind == "VALIDATION":
                said = "只用来检验，没有用到（这里自己留出一部分：eval.holdout）"
                self.lines.append(f"concepts 里的 {one['path']}：{said}")
                continue
            source = str(as_dict(one.get("text")).get("prompt_source", "sample"))
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
            if name not in ("base_model_name", "concept_file_name", "__version", *vocabulary.MEANT):
                self.one(
                    name,
                    value,
                    vocabulary.ONETRAINER,
                    value in vocabulary.KEPT or name not in vocabulary.DECISIVE,
                )
        if str(tree.get("lora_decompose")).lower() == "true":  # 它的 DoRA
            self.put("lora_decompose", "lora.variant", "dora")
        if str(tree.get("ema", "OFF")).upper() != "OFF":
            if "ema_decay" in tree:
                self.put("ema_decay", "train.ema", tree["ema_decay"])
            else:
                defaults.absent(self, "ema_decay", "train.ema", defaults.EMA)
        if str(tree.get("dynamic_timestep_shifting")).lower() == "true":
            self.put("dynamic_timestep_shifting", "train.timestep.shift", "auto")
        quiet = len(self.seen - set(vocabulary.ONETRAINER) - set(vocabulary.DECISIVE))
        self.lines += [f"另有 {quiet} 项没有对应，没有用到"] if quiet else []
        if tree.get("save_every_unit") == "STEP" and "save_every" in tree:
            self.put("save_every", "train.save_every", tree["save_every"])
        if tree.keys() - {"concepts", "training_method"}:  # 不只是图片清单（concepts.json）
            self.written |= {"lora.targets"} if tree.get("layer_filter") else set()
            defaults.decay(self, as_dict(tree.get("optimizer")).get("optimizer"))
            defaults.fill(self)
            if "epochs" not in tree:
                self.lines.append("没有写 epochs：它练 100 轮，这里按步数，看看 train.steps")
        return self.done()

    def datasets(self, tree: Mapping[str, Any]) -> Found:
        """musubi、kohya 的数据设置（[general]、[[datasets]]）；底模和步数写在别处。"""
        general, rows, first = as_dict(tree.get("general")), [], {}
        parts = [
            {**general, **one, **part}
            for one in as_list(tree.get("datasets"))
            for part in as_list(one.get("subsets")) or [{}]
        ]
        for number, facts in enumerate(parts, 1):
            place = facts.get("image_directory") or facts.get("image_dir")
            if not place and facts.get("image_jsonl_file"):
                place = str(Path(str(facts["image_jsonl_file"])).parent)
            if not place:
                video = facts.get("video_directory") or facts.get("video_jsonl_file")
                what = f"是视频（{video}），这里只练图" if video else "没有写图片文件夹"
                raise self.unusable(f"第 {number} 个 datasets {what}", "从这份文件里删掉它")
            if str(facts.get("is_reg")).lower() == "true":
                self.prior("is_reg", place)
                continue
            row = {"folder": place}
            row |= {"repeats": facts["num_repeats"]} if "num_repeats" in facts else {}
            rows.append(row | self.controls(place, facts))
            self.shared(f"第 {number} 个 datasets", facts, first)
            first = first or facts
        self.sources(rows)
        defaults.fill(self, " 的数据")
        self.lines.append("这一份只写了数据：底模、步数和学习率写在训练的命令里")
        return self.done()

    def shared(self, where: str, facts: Mapping[str, Any], first: Mapping[str, Any]):
        """一个来源的其余各项：这里几个来源共用一份，照第一个的；不同的、没有对应的都说出来。"""
        for name, value in facts.items():
            if name in vocabulary.PLACED or (
                name == "caption_extension" and value in (".txt", ".caption")
            ):
                continue
            on = name == "alpha_mask" and str(value).lower() == "true"
            if first and first.get(name) != value:
                self.left.append(f"{where} 的 {name}（{value}，和第一个不同）")
            elif not first and (on or name in vocabulary.SHARED):
                self.put(name, vocabulary.KOHYA.get(name, "data.mask"), "alpha" if on else value)
            elif not first and name != "alpha_mask":
                self.left.append(f"{name}（{value}）")
        gone = [name for name in first if name not in facts and name not in vocabulary.PLACED]
        self.left += [f"{where} 没有写 {name}（第一个写了）" for name in gone]

    def kohya(self, flat: Mapping[str, Any]) -> Found:
        name = "dit" if "dit" in flat else MARK
        self.model(name, flat.get(name), flat.get("network_module", ""))
        if str(flat.get("alpha_mask")).lower() == "true":  # 图自己的透明通道
            self.put("alpha_mask", "data.mask", "alpha")
        first = {key: flat[key] for key in ("learning_rate",) if key in flat}
        table = vocabulary.KOHYA
        if self.tool == "kohya":  # musubi 练 FLUX 时总是 1
            table = table | {"guidance_scale": "train.guidance"}
        for key, value in (first | flat).items():  # unet_lr 写了就用它，不看谁先谁后
            if key in (name, "output_name", "alpha_mask", *vocabulary.JOINED):
                continue
            if key == "train_data_dir" and (rows := _counted(value)):
                self.sources(rows)
            else:
                self.one(key, value, table)
        defaults.kohya(self, flat)
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
