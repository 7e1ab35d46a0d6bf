"""模型卡：结果文件夹里的 README.md；人看得懂，两个模型站也认得，里面的代码真能运行。"""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from lorakit.config import Config
from lorakit.config.read import bounded
from lorakit.errors import LorakitError, warn
from lorakit.files import Unreadable, parse_json, read_json, read_words, write_text
from lorakit.hub import REPO
from lorakit.hub.bundled import tiny_models
from lorakit.inert import in_markdown, inert
from lorakit.lora import FILE, metadata
from lorakit.lora.steps import folder_of
from lorakit.results import folder as run_folder
from lorakit.results import report
from lorakit.results.shots import alike
from lorakit.results.verdict import UNSEEN, at, last_step

NAME = "README.md"
TERMS = {  # 许可的代号 -> 一句话；代号是 Hugging Face 的写法，前两个它认得
    "apache-2.0": "Apache-2.0：可以商用、可以修改，要保留版权与许可声明。",
    "mit": "MIT：可以商用、可以修改，要保留版权与许可声明。",
    "flux-1-dev-non-commercial-license": "FLUX.1 [dev] 非商用许可：底模和在它上面练的 LoRA "
    "都不能商用，发布时要带上这份许可。",
    "flux-dev-non-commercial-license": "FLUX.2 [dev] 非商用许可：底模和在它上面练的 LoRA "
    "都不能商用，发布时要带上这份许可。",
    "qwen-research": "Qwen 研究许可：只能用于非商用的研究与评测，底模和在它上面练的 LoRA "
    "要商用得另外取得许可，发布时要带上这份许可。",
    "flux-non-commercial-license": "FLUX 非商用许可：底模和在它上面练的 LoRA "
    "都不能商用，发布时要带上这份许可。",
}
RUN = {"data": str, "versions": {str: (str, type(None))}, "device": str, "seconds": float}
KNOWN = ("apache-2.0", "mit")
BASE_LINE = re.compile(r'^base = (".*")$', re.MULTILINE)
STEPS_ROW = re.compile(r"^\| 步数 \| (\d{1,9})，", re.MULTILINE)
SECONDS = re.compile(r"^(\| 设备与用时 \| .*，)\d+ 秒 \|", re.MULTILINE)
LEARNED = re.compile(r"^(用 lorakit 训练（[^（）]*）。).*", re.MULTILINE)
# 只看有限的几个字：别人的卡再怎么写，时间也有限
LINKS = re.compile(r"!\[(?:\\.|[^\[\]\\\n]){0,2000}\]\(([^)\s]{1,500})\)")
LORA_LINE = re.compile(r"^lora = .*$", re.MULTILINE)  # 代码里写着 LoRA 在哪的那一行


def licence(family, path: str) -> str:
    """底模的许可的代号；随包的微型模型与 lorakit 相同。"""
    if path in tiny_models():
        return "apache-2.0"
    return next(code for word, code in family.licences.items() if word in path.lower())


def keep(trainer, walked: bool):
    """训练一结束（练完，或停在半路）就写运行卡与模型卡：照片以后再变，卡上说的还是练的那些。

    Args:
        walked: 这一次走过步没有；早就练完、又运行一遍的，卡已经在了就照旧。
    """
    run, step = trainer.run, trainer.step
    if not walked and of_step(run, step):
        return
    config, device = up_to(trainer.config, step), str(trainer.accelerator.device)
    shots = [f"samples/{step}_{i}.png" for i in range(len(config.sample.prompts))]
    there = [one for one in shots if (run / one).is_file()]
    try:
        report.write_run_card(run, config, trainer.dataset, spent(run), device)
        write(run, config, trainer.family, trainer.dataset, there)
    except LorakitError as error:
        warn(f"训练都存好了，只有模型卡没有写成：{error}")


def of_step(run: Path, step: int) -> Path | None:
    """已经写好的、说的正是第 step 步的模型卡；停过又接着练的，先前那张不算。"""
    made = run / NAME
    if not made.is_file():
        return None
    return made if told_step(read_words(made)) == step else None


def spent(run: Path, step: int | None = None) -> float:
    """练了几秒，停下以前的也算；写了 step 就只到那一步。"""
    rows = run_folder.read(run)
    return sum(r.get("seconds") or 0.0 for r in rows if step is None or r["step"] <= step)


def told_step(text: str) -> int | None:
    """模型卡说的是第几步；不是我们写的就是 None。"""
    found = STEPS_ROW.search(text)
    return int(found[1]) if found else None


def restated(text: str, run: Path, step: int) -> str:
    """说另一步的模型卡 -> 说第 step 步的：步数、用时、判断、样张（那一步没有画就不放）。"""
    old = told_step(text)
    said = learned(run, step) if (run / "metrics.jsonl").is_file() else ""
    text = STEPS_ROW.sub(f"| 步数 | {step}，", text)
    text = SECONDS.sub(lambda found: f"{found[1]}{spent(run, step):.0f} 秒 |", text)
    text = LEARNED.sub(lambda found: found[1] + said, text)
    lost = rf"samples/{old}_(\d{{1,9}})\.png"

    def there(found: re.Match) -> str:
        new = f"samples/{step}_{found[1]}.png"
        same = alike(run, (old, step), int(found[1]))  # 中途换过提示词的，那张画的是别的话
        return new if same and (run / new).is_file() else found[0]

    text = re.sub(lost, there, text)
    text = LINKS.sub(lambda found: "" if re.fullmatch(lost, found[1]) else found[0], text)
    return _without_lost(text, old)


def _without_lost(text: str, old: int) -> str:
    """YAML 头的 widget 里，去掉第 old 步的样张。"""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    head = bounded(found[1]) if found else None
    if not isinstance(head, dict) or not isinstance(head.get("widget"), list):
        return text
    lost = f"samples/{old}_"
    kept = [row for row in head["widget"] if lost not in str(row)]
    if kept == head["widget"]:
        return text
    head = {k: v for k, v in {**head, "widget": kept}.items() if v != []}
    told = yaml.safe_dump(head, allow_unicode=True, sort_keys=False).strip()
    return f"---\n{told}\n---\n{text[found.end() :]}"


def up_to(config: Config, step: int) -> Config:
    """只练到第 step 步的设置：停在半路的，卡上写真的步数、真有的检查点。"""
    train = config.train.model_copy(update={"steps": step})
    return config.model_copy(update={"train": train})


def write(run: Path, config: Config, family, dataset, pictures: Sequence[str] = ()) -> Path:
    """写 README.md。

    Args:
        pictures: 样张相对于 run 的路径，与 sample.prompts 一一对应；张数对不上就当总的样张。
    """
    facts = read_json(run / "run.json", RUN)
    captions = "\n".join(f"- {in_markdown(item.record.caption)}" for item in dataset.train[:3])
    edits = dataset.edits
    first = dataset.train[0].record.caption
    prompts = config.sample.prompts
    paired = len(prompts) == len(pictures)
    named = list(zip(pictures, prompts if paired else [first] * len(pictures), strict=True))
    place, said = (shlex.quote(inert(one, line=True)) for one in (run, first))
    command = f"lorakit generate {place} --prompt {said}"
    if edits:
        command = f"lorakit edit 要改的图.png {said} --model {place}"
    whole = config.lora.kind == "full"
    text = f"""---
{front(config, family, named, first, edits).strip()}
---

# {in_markdown(run.name)}

用 lorakit 训练（{"全量微调" if whole else f"LoRA，秩 {config.lora.rank}"}）。{learned(run)}

{shots(named)}
- 底模：{base_link(config.model.path)}（家族 {config.model.family}）
- 触发词：{in_markdown(config.data.trigger) or "（没有；用训练描述里的说法即可）"}
- 底模的许可：{terms(family, config.model.path)}

## 训练描述的例子
{captions}

## 怎么用
```bash
{command}
```

diffusers（不用装 lorakit{"，除了载入随包的微型模型那一行" if in_package(config) else ""}）：

```python
{snippet(run, config, family, first, edits)}
```

{elsewhere(whole, in_package(config), config.lora.variant == "dora")}

## 怎么练的
{table(config, facts, dataset)}
"""
    return write_text(run / NAME, without_paths(text))


def without_paths(text: str) -> str:
    """代码里底模的文件夹只留最后一段：别人没有那个文件夹，还会露出你的用户名。"""

    def strip(line: re.Match) -> str:
        try:
            path = parse_json(line[1], str)
        except Unreadable:  # 手改过，不是 JSON 的写法
            path = line[1].strip('"')
        short = json.dumps(metadata.base_of(path), ensure_ascii=False)
        local = metadata.base_of(path) != path
        return f"base = {short}  # 换成底模在你机器上的文件夹" if local else line[0]

    return BASE_LINE.sub(strip, text)


def in_package(config: Config) -> bool:
    """底模是不是随包的微型模型。"""
    return config.model.path in tiny_models()


def public(path: str) -> bool:
    """底模是不是模型站上的名字（而不是本地的文件夹）。"""
    return bool(REPO.fullmatch(path)) and not Path(path).expanduser().is_dir()


def front(config: Config, family, named, first: str, edits: bool) -> str:
    """YAML 头：两个站用来分类、显示触发词和样张。"""
    path, code = config.model.path, licence(family, config.model.path)
    whole = config.lora.kind == "full"
    task = "image-to-image" if edits else "text-to-image"
    head = {"license": code if code in KNOWN else "other"}
    if code not in KNOWN:
        head["license_name"] = code
        if public(path):
            head["license_link"] = f"https://huggingface.co/{path}/blob/main/LICENSE.md"
    if public(path):
        head |= {"base_model": path, "base_model_relation": "finetune" if whole else "adapter"}
    kind = [] if whole else ["lora", "template:diffusion-lora"]
    head |= {
        "library_name": "diffusers",
        "pipeline_tag": task,
        "tags": [task, "diffusers", *kind, config.model.family, "lorakit"],
        "instance_prompt": inert(config.data.trigger) or None,
        "widget": [{"text": inert(said), "output": {"url": url}} for url, said in named],
        # 这两项是 ModelScope 的
        "frameworks": ["pytorch"],
        "tasks": ["image-to-image-synthesis" if edits else "text-to-image-synthesis"],
    }
    kept = {key: value for key, value in head.items() if value != []}
    return yaml.safe_dump(kept, allow_unicode=True, sort_keys=False)


def learned(run: Path, step: int | None = None) -> str:
    """第 step 步（不写就是最后一步）的判断：看过的灯各说了什么。"""
    metrics = run_folder.read(run)
    judged = at(run, metrics, last_step(metrics) if step is None else step)
    said = (f"{light.name}：{light.said}" for light in judged.lights if light.said != UNSEEN)
    return in_markdown(f"{judged.phrase}。{''.join(said)}")


def shots(named) -> str:
    """样张，路径相对于这份卡。"""
    return "".join(f"![{in_markdown(said)}]({url})\n" for url, said in named)


def base_link(path: str) -> str:
    """底模的名字；站上的带链接，本地的不泄露文件夹。"""
    if public(path):
        return f"[{path}](https://huggingface.co/{path})"
    if path in tiny_models():
        return f"{path}（lorakit 随包的微型模型）"
    return in_markdown(Path(path).name)


def terms(family, path: str) -> str:
    """许可的一句话。"""
    said = TERMS[licence(family, path)]
    local = not public(path) and path not in tiny_models()
    return said + ("（这是它这一家通常的许可，以你手里那份为准。）" if local else "")


def snippet(run: Path, config: Config, family, prompt: str, edits: bool) -> str:
    """载入并画一张的代码：只用 diffusers；有测试真的运行它。"""
    side = config.sample.size or config.data.resolution
    extra = family.sample_arguments(config.sample.guidance, 1)
    given = {"prompt": prompt, "num_inference_steps": config.sample.steps}
    if not edits:
        given |= {"width": side, "height": side}
    given |= {k: v[0] if isinstance(v, list) else v for k, v in extra.items()}
    rows = [f"    {name}={_literal(v)}," for name, v in given.items()]
    if edits:
        kind = "RGBA" if family.clear else "RGB"
        rows.insert(0, f'    image=Image.open("要改的图.png").convert("{kind}"),')
    whole, lokr = config.lora.kind == "full", config.lora.variant == "lokr"
    tiny = in_package(config)
    base = f'str(locate("{config.model.path}"))' if tiny else _literal(config.model.path)
    imports = ["import torch", f"from diffusers import {'AutoModel, ' * whole}DiffusionPipeline"]
    imports += ["from lorakit.hub import locate"] * tiny
    imports += ["from PIL import Image"] * edits
    lines = [
        *imports,
        "",
        f"base = {base}",
        f"lora = {_literal(str(folder_of(run, config.train.steps)))}",
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        'dtype = torch.bfloat16 if device == "cuda" else torch.float32',
    ]
    if whole:
        lines += [
            "transformer = AutoModel.from_pretrained("
            'lora, subfolder="transformer", torch_dtype=dtype)',
            "pipe = DiffusionPipeline.from_pretrained("
            "base, transformer=transformer, torch_dtype=dtype)",
        ]
    else:
        # LoKr 多数管线不收，模型自己收
        load = "transformer.load_lora_adapter" if lokr else "load_lora_weights"
        lines += [
            "pipe = DiffusionPipeline.from_pretrained(base, torch_dtype=dtype)",
            f'pipe.{load}(lora, weight_name="{FILE}")',
        ]
    return "\n".join(
        [
            *lines,
            "pipe.to(device)  # 显存放不下就换成 pipe.enable_model_cpu_offload()",
            "picture = pipe(",
            *rows,
            f'    generator=torch.Generator("cpu").manual_seed({config.sample.seed}),',
            f").{family.output}[0]",
            'picture.save("picture.png")',
        ]
    )


def _literal(value) -> str:
    """代码里的一个值；左右颠倒、看不见的字写成 \\u202e，读代码的人看到的就是运行的。"""
    return inert(json.dumps(value, ensure_ascii=False))


def elsewhere(whole: bool, tiny: bool, dora: bool = False) -> str:
    """别的软件里怎么用。"""
    if tiny:
        return "微型模型只用来学习：ComfyUI 没有它的底模；换成真模型练出来的就能直接放进去。"
    if whole:
        return "`transformer` 文件夹是完整的权重，替换底模里的那一个；ComfyUI 里当扩散模型载入。"
    if dora:
        return (
            "ComfyUI：DoRA 的长度它算法不同，先换算一份："
            "`lorakit export 文件 --to comfyui --out 名字.safetensors`，放进 `models/loras`。"
        )
    return (
        f"ComfyUI：把 `{FILE}` 改个好认的名字放进 `models/loras`，"
        "在载入底模之后接一个“LoRA 加载器（仅模型）”节点，强度先用 1。"
    )


def table(config: Config, facts: dict, dataset) -> str:
    """设置、数据、设备，各一行。"""
    train, lora, data = config.train, config.lora, config.data
    rows = {
        "数据": f"训练 {len(dataset.train)} 张，留出 {len(dataset.held)} 张，"
        f"分辨率 {data.resolution}",
        "数据指纹": f"{in_markdown(facts['data'][:16])}（完整的在 run.json）",
        "步数": f"{train.steps}，每步 {train.batch_size * train.grad_accum} 张",
        "学习率": f"{train.lr:g}（{train.schedule}，热身 {train.warmup} 步），{train.optimizer}",
        "LoRA": f"秩 {lora.rank}，alpha {lora.alpha or lora.rank:g}，加在 {lora.targets}，"
        f"{lora.variant}",
        "时间步": f"{train.timestep.density}，偏移 {train.timestep.shift}",
        "精度、种子": f"{config.model.precision}，{train.seed}",
        "设备与用时": f"{in_markdown(facts['device'])}，{facts['seconds']:.0f} 秒",
        "版本": "，".join(in_markdown(f"{name} {v}") for name, v in facts["versions"].items()),
    }
    if config.model.training_adapter:
        name = metadata.bare(config.model.training_adapter)
        rows["训练适配器"] = f"{in_markdown(name)}：只在训练时加在底模上，画图时不用"
    if lora.kind == "full":
        rows.pop("LoRA")
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| 项目 | 值 |", "|---|---|", *lines])
