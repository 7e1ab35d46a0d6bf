"""与 LoRA 文件打交道的命令：export 转换、合并、缩秩，audit 体检，push 发布。"""

import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path

from lorakit.cli.options import DONE, SET, WRONG_INPUT, command, option, settings
from lorakit.errors import ConfigError, LorakitError

MOST = 100.0  # 份量再大就是写错了
_FILE = (
    option("file", type=Path, help="LoRA 文件，或一次训练的结果文件夹、里面的一个 checkpoint-N"),
    option("--model", help="底模：预设名或 YAML 文件；不写就用文件里记着的"),
)


def _family(args, file: Path):
    """--model 指定的底模，没写就用文件或结果文件夹里记着的。"""
    from lorakit import lora
    from lorakit.config import load_config
    from lorakit.families import open_family
    from lorakit.hub import REPO
    from lorakit.hub.bundled import tiny_models
    from lorakit.lora import steps

    if args.model:
        config = settings(args.model)
    elif inside := steps.settings_of(file):
        config = settings(inside)
    else:
        card = lora.read(file)[1]
        if "family" not in card or "base" not in card:
            raise LorakitError("文件里没有写是给哪个底模的。请用 --model 写上预设名或 YAML 文件。")
        base = card["base"]
        named = base in tiny_models() or REPO.fullmatch(base) or Path(base).is_dir()
        if not named:  # 文件里不记本地的路径
            raise LorakitError(
                f"它的底模是训练那台机器上的文件夹“{base}”。请用 --model 写上预设名或 YAML 文件"
                "（里面的 model.path 是那个文件夹）。"
            )
        sets = [f"model.family={card['family']}", f"model.path={card['base']}"]
        config = load_config("tiny-qwen-image", sets)
    return open_family(config)


def _workflow(args) -> int:
    """写一份填好的 ComfyUI 工作流，说清楚文件放在哪里。"""
    from lorakit import lora
    from lorakit.config import load_config
    from lorakit.families.registry import workflow_of
    from lorakit.lora import comfyui, convert, names
    from lorakit.results import checkpoint

    file = checkpoint.exported(args.file)
    made = convert.named(args.out) if args.out else file
    tensors, card = lora.read(made)
    kinds = {place.kind for key in tensors if (place := names.parse(key))}
    if "moved" in kinds:  # 它不报错，只用上 BA
        raise LorakitError(
            f"“{made}”是 DoRA，ComfyUI 会丢掉它的长度。请先换算成 ComfyUI 的写法，"
            "同一条命令里加上 --to comfyui --out 名字.safetensors。"
        )
    family = args.family or card.get("family")
    if not family:
        raise LorakitError(
            f"“{file}”里没有写是给哪个家族的。请用 --family 写一个：{'、'.join(comfyui.names())}。"
        )
    base = card.get("base", "")
    name, cls = workflow_of(family, base)
    if cls and card.get("family", cls.name) != cls.name:
        raise LorakitError(f"--family：“{file}”是给 {card['family']} 练的，不是 {family}；去掉它。")
    style = args.to or "diffusers"
    if cls and args.out and "ComfyUI" not in cls.read_by[style]:
        raise LorakitError(f"{family} 的 {style} 写法 ComfyUI 读不了：改成 --to comfyui。")
    unet = cls.workflow_base(base) if cls and family == cls.name else ""
    comfyui.refuse_unknown(name if unet is not None else base, unet is not None)
    drawn = comfyui.defaults(name) | (cls.workflow_sample(base) if cls else {})
    sets = [f"sample.{key}={value}" for key, value in drawn.items()]
    sample = load_config(None, [*sets, *args.set]).sample
    prompt = args.prompt or "一只猫"
    words = card.get("trigger", "").split("，")  # 叠了几份的有几个
    prompt = "，".join([*(word for word in words if word not in prompt), prompt])
    folder = args.file if args.file.is_dir() else file.parent
    called = made.name
    if called == lora.FILE:  # 大家都叫这个名字，放进 ComfyUI 会认不出谁是谁
        called = f"{folder.resolve().name}.safetensors"
    plain = {key: getattr(sample, key) for key in ("steps", "guidance", "size", "seed")}
    shift = cls.full_shift(sample.size, sample.steps)
    filled = comfyui.Fill(called, prompt, **plain, shift=shift, unet=unet)
    nodes = comfyui.fill(name, filled)
    print(f"工作流写好了：{comfyui.write(nodes, args.workflow)}（{name}，提示词：{prompt}）")
    print(f"1. 把 {made} 复制成 ComfyUI/models/loras/{called}")
    print("2. ComfyUI 里还要有这些底模文件（没有就去它们的主页下载）：")
    for needed in comfyui.files(nodes):
        if "/loras/" not in needed:
            print(f"   ComfyUI/{needed}")
    print("3. 把工作流文件拖进 ComfyUI 的网页，点运行。")
    if (edits := cls.workflows.get("edit", name)) != name:
        print(f"这是画图的；改图的那一份，加上 --family {edits}。")
    if cls.full_size["scheduler"].get("shift_terminal"):
        print("ComfyUI 的噪声表收尾与 diffusers 的不同：同一个种子，两边画的不是同一张图。")
    if "tiny" in base:
        print(f"提醒：它是给微型模型 {base} 练的，ComfyUI 里没有这个模型；换真模型练出来的才能用。")
    return DONE


@command(
    "lorakit export runs/mine --to kohya --out mine-kohya.safetensors",
    *_FILE,
    option(
        "--to",
        choices=("diffusers", "comfyui", "kohya"),
        help="写成谁的写法（diffusers）；kohya 是 sd-scripts 与 musubi-tuner 的，写完会说谁能读。"
        "FLUX 的 kohya 把几层并成一层、空的地方补零，文件大一倍半",
    ),
    option(
        "--dtype",
        choices=("bf16", "fp16", "fp32"),
        help="存成哪种精度（bf16）：先按 fp32 核对 ΔW，再舍入",
    ),
    option("--out", type=Path, help="写到哪里；--merge 时是文件夹"),
    option(
        "--workflow",
        type=Path,
        metavar="文件",
        help="写 ComfyUI 工作流：x.json 拖进网页用，x.api.json 给程序用",
    ),
    option("--family", help="工作流给哪个家族：不写就用文件里记着的"),
    option("--prompt", help="工作流里的提示词；没有触发词会自动加上"),
    SET,
    option("--also", type=Path, action="append", default=[], help="再叠一个 LoRA，可多次"),
    option("--weight", type=float, action="append", help="每个 LoRA 的份量，按次序写"),
    option("--rank", type=int, help="缩到这个秩"),
    option("--merge", action="store_true", help="合并进底模，写出 transformer 文件夹"),
)
def export(args) -> int:
    """把 LoRA 换成别家的写法，或叠加、缩秩、合并进底模。"""
    if args.out is None and args.workflow is None:
        raise LorakitError("写到哪里？加上 --out 文件名，或 --workflow 工作流.json。")
    if args.workflow and args.merge:
        raise LorakitError("--workflow 用的是 LoRA 文件，不能和 --merge 一起写；去掉其中一个。")
    if args.workflow and args.workflow.suffix != ".json":
        raise LorakitError(f"--workflow 的文件名要以 .json 结尾，得到“{args.workflow.name}”。")
    _refuse_idle(args)
    if args.out is not None:
        _convert(args)
    return _workflow(args) if args.workflow else DONE


def _refuse_idle(args):
    """写了却用不上的选项：多半是漏写了另一个。"""
    for_out = (args.also, args.weight, args.rank is not None, args.merge, args.to, args.dtype)
    idle = {
        "--prompt、--family、--set 只写进工作流，请加上 --workflow 工作流.json": (
            args.workflow is None and (args.prompt or args.family or args.set)
        ),
        "--also、--weight、--rank、--merge、--to、--dtype 管的是 --out 的文件，请加上 --out": (
            args.out is None and any(for_out)
        ),
        "--merge 写的是整个 Transformer，没有几种写法：去掉 --to、--dtype": (
            args.merge and (args.to or args.dtype)
        ),
    }
    for said in (said for said, wrong in idle.items() if wrong):
        raise LorakitError(f"{said}。")


def _convert(args):
    from torch import nn

    from lorakit.lora import audit as lora_audit
    from lorakit.lora import convert, mixture
    from lorakit.lora import fused as lora_fused
    from lorakit.results import checkpoint

    if args.rank is not None and args.rank < 1:
        raise ConfigError(f"--rank：秩至少是 1，得到 {args.rank}。")
    files = [checkpoint.exported(path) for path in (args.file, *args.also)]
    weights = args.weight or [1.0] * len(files)
    if strange := [weight for weight in weights if not abs(weight) <= MOST]:
        raise ConfigError(f"--weight：份量是 0.5、1 这样的数，得到 {strange[0]:g}。")
    if len(weights) != len(files):
        raise LorakitError(
            f"--weight 要写 {len(files)} 个（每个文件一个），得到 {len(weights)} 个。"
        )
    made = mixture.Mixture(files, weights, args.rank)
    _refuse_harm(args, files)
    family = _family(args, args.file)
    shell = family.skeleton()
    places = lora_fused.slots(family.original, shell)
    modules = [name for name, module in shell.named_modules() if isinstance(module, nn.Linear)]
    several = []
    for file, weight in zip(files, weights, strict=True):
        lora_audit.refuse(lora_audit.audit(file, shell, places), file)
        found = convert.meaning(file, modules, places)
        several.append((found.layers, weight))
    dora = any(isinstance(layer, convert.Dora) for one, _ in several for layer in one.values())
    if dora and not made.whole:
        raise LorakitError(
            "DoRA 改的还有每行的长度，不能叠加、缩秩、改份量；去掉 --also、--weight、--rank。"
        )
    if args.merge and args.rank is None:  # 展开成整个权重再加，LoKr 的秩多大都行
        _merge(args, family, several)
        return
    layers = several[0][0] if made.same else convert.combine(several)
    if not made.whole:
        mixture.refuse_nothing(layers)
    if args.rank is not None:
        layers, kept = convert.resize(layers, args.rank)
        made = replace(made, kept=kept)
        print(f"缩到秩 {args.rank}，保住了 {kept:.1%} 的能量（ΔW 的平方和）。")
    if args.merge:
        _merge(args, family, [(layers, 1.0)])
        return
    _write(args, made, family, shell, layers, made.whole and found.is_plain)


def _refuse_harm(args, files):
    """--out 不能盖掉正在读的文件，也不能写进底模、一次训练的结果里。"""
    from lorakit.lora import convert, steps

    out = args.out if args.merge else convert.named(args.out)
    if not args.merge and out.is_file() and any(out.samefile(file) for file in files):
        raise LorakitError(f"--out：“{out}”就是要读的文件，写了会盖掉它。换一个名字。")
    holds = (out / "model_index.json").is_file() or steps.settings_of(out)
    if args.merge and (holds or steps.all_of(out)):
        raise LorakitError(
            f"--out：“{out}”是一个底模或一次训练的结果，合并好的 transformer 写进去会顶替它。"
            "换一个新的文件夹名。"
        )


def _merge(args, family, several):
    """几份 LoRA 与份量 -> 合并好的 Transformer；说清楚舍入丢了多少。"""
    from lorakit.lora import convert, full

    # 训练时底模可以量化、放在内存里；合并总是进原来精度的权重
    transformer = family.again(quantize="none", offload="none").load("transformer")
    lost = convert.merge(several, transformer)
    kind = str(transformer.dtype).removeprefix("torch.")
    merged = full.files_of(transformer.state_dict())
    said = f"{kind} 舍入之后，加进去的与 ΔW 差 {lost:.2%}"
    print(f"合并好了：{full.save(args.out, family, merged.items())}（{said}）")


def _write(args, made, family, shell, layers, raw: bool):
    """写成一个 LoRA 文件；说清楚核对了什么、谁能读。

    Args:
        made: 由哪几份做成（lora/mixture.py）。
        raw: 原文件就是 diffusers 的写法，强度是 1：读得了这种写法的，原文件也读得了。
    """
    from lorakit.lora import convert, metadata
    from lorakit.memory import loading
    from lorakit.results.card import licence

    @cache
    def shards():  # 只有 DoRA 换算法才用得上，用到才下载
        family.fetch("transformer")
        return loading.Shards(family.transformer_folder)

    def weight(path: str):
        return shards()(f"{path}.weight", shell.get_submodule(path).weight)

    card = {"family": family.name, **made.card()}
    style, kind = args.to or "diffusers", args.dtype or "bf16"
    base, names = card.get("base", family.folder.name), convert.Names.of(family, shell)
    told = {"trigger": card.get("trigger", ""), "licence": licence(family, base)}
    about = metadata.describe(family, base, made.files[0].stem, **told) | made.about()
    given = {"dtype": convert.DTYPES[kind], "about": about, "weight": weight}
    file, rounded = convert.write(layers, style, args.out, card, names, **given)
    checked = "重读核对过，每层的 ΔW 都没有变"
    if kind != "fp32":
        checked = f"fp32 重读核对过，每层的 ΔW 都没有变；再舍入成 {kind}，最多差 {rounded:.2%}"
    print(f"写好了：{file}（{style}，{len(layers)} 层；{checked}）")
    if not made.whole:
        print(f"文件头里记着由什么做成：{made.made}；原来的留出集损失说的不是它，没有带过来。")
    _say_readers(family, style, layers, raw)
    if style == "kohya" and names.fused:
        print("原作者把 q、k、v 等并成一层，拆开练的要补零才放得进去，所以文件大一倍半。")


def _say_readers(family, style: str, layers, raw: bool):
    """谁能读刚写的这一份；读不了的用哪一种写法。"""
    from lorakit.lora import convert

    doras = [layer for layer in layers.values() if isinstance(layer, convert.Dora)]
    only = any(layer.columns for layer in doras)  # 按列的只有 ComfyUI 有

    def reads(style: str) -> list[str]:
        if doras and style == "kohya":  # 没有这种写法
            return []
        lost = family.skipped(style, layers)
        known = (family.read_by[style][0],) if doras else family.read_by[style]
        return [name for name in known if len(lost.get(name, ())) < len(layers)]

    readers, said = reads(style), []
    own = {"ComfyUI": "comfyui", "diffusers": "diffusers"}  # 用它自己名字的写法；别的用头一种
    for name in dict.fromkeys([*own, *(one for some in family.read_by.values() for one in some)]):
        known = [way for way in convert.FORMATS if name in reads(way) and way != style and not only]
        way = own[name] if own.get(name) in known else next(iter(known), "")
        ways = [f"--to {way}"] * bool(way)
        ways += ["原文件"] if raw and name in reads("diffusers") else []
        if name not in readers and ways:
            said.append(f"{name} 请用 {' 或'.join(ways)}")
    print("；".join(["、".join(readers) + " 能读" if readers else "没有软件能读", *said]) + "。")
    for name, missed in family.skipped(style, layers).items():
        if name in readers:
            print(f"{name} 会漏掉块外的层：{missed[0]} 等 {len(missed)} 层。")


@command("lorakit audit runs/mine", *_FILE)
def audit(args) -> int:
    """体检一个 LoRA 文件：对不对得上底模、改了多少、有没有坏数。"""
    from lorakit.lora import audit as lora_audit
    from lorakit.lora import fused as lora_fused
    from lorakit.results import checkpoint

    if (args.file / "metrics.jsonl").is_file():
        print(_held(args.file))
    file, family = checkpoint.exported(args.file), _family(args, args.file)
    shell = family.skeleton()
    result = lora_audit.audit(file, shell, lora_fused.slots(family.original, shell))
    print(result.text())
    return DONE if result.good else WRONG_INPUT


@command(
    "lorakit push runs/mine --to modelscope --repo zhangsan/papercut-lora",
    option(
        "source", type=Path, help="一次训练的结果文件夹，或里面的一个 checkpoint-N、一个 LoRA 文件"
    ),
    option("--to", choices=("modelscope", "huggingface"), required=True, help="哪个站"),
    option("--repo", required=True, metavar="用户名/模型名", help="仓库的名字"),
    option("--public", action="store_true", help="公开；不写就是私有的"),
    option("--yes", action="store_true", help="真的上传"),
)
def push(args) -> int:
    """把 LoRA 连同模型卡、样张发布到模型站；不写 --yes 只预演。"""
    from lorakit.results import publish

    wanted = publish.plan(args.source, args.to, args.repo, not args.public)
    print(wanted.text())
    if not args.yes:
        print("\n这只是预演，什么也没有上传。看过没问题，再加上 --yes。")
        return DONE
    print(f"\n传好了：{publish.upload(wanted)}")
    return DONE


def _held(run: Path) -> str:
    """一次训练的各个检查点与它们的留出集损失。"""
    from lorakit.results import checkpoint, heldout, verdict
    from lorakit.results import folder as run_folder

    metrics = run_folder.read(run)
    other = {m["step"]: m.get("held") for m in heldout.measured(metrics)}
    steps = [checkpoint.step_of(path) for path in checkpoint.all_of(run)]
    held, best = verdict.held_by_step(metrics), verdict.best_of(metrics, steps)
    judged = verdict.read(run)
    words = {step: [one.word] for step, one in judged.verdicts.items()} if judged else {}
    lines = ["检查点  留出集损失"]
    for step in steps:
        loss = held.get(step, other.get(step))
        loss = "没有检验" if loss is None else f"{loss:.4f}"
        notes = ["量的是另一批留出图，和别的不能比"] * (step in other and step not in held)
        notes += [*["留出集损失最低"] * (step == best), *words.get(step, [])]
        lines.append("  ".join([f"checkpoint-{step}", loss, *notes]))
    if not judged:
        lines.append(f"画得怎样、抄没抄：lorakit judge {shlex.quote(str(run))}")
    return "\n".join(lines) + "\n"
