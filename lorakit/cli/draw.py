"""画图的命令：generate、edit、compare。"""

from pathlib import Path

from lorakit.cli.options import DONE, SET, command, option, settings
from lorakit.errors import LorakitError, warn

_SOURCE = "一次训练的结果文件夹（或里面的一个 checkpoint-N），或 YAML 文件、预设名"
_PROMPT = option("--prompt", action="append", required=True, help="提示词，可以写多次")
_LORA = option("--lora", type=Path, help="LoRA 文件；不写就用结果文件夹里最新的")
_STRENGTH = option(
    "--strength",
    metavar="数",
    help="LoRA 的强度：0 是没有，1（不写）是训练时的样子；几个一起比用 compare --strengths",
)
_QUANTIZE = option(
    "--quantization",
    choices=("none", "fp8", "int8", "nf4", "fp8-matmul"),
    help="量化底模，省显存（同 --set model.quantize=）",
)
_SAME = {  # 选项 -> 它改的那一项设置
    "--steps": "sample.steps", "--guidance": "sample.guidance", "--seed": "sample.seed",
    "--seeds": "sample.seed", "--quantization": "model.quantize",
}  # fmt: skip


def _inside(source: str) -> Path | None:
    """结果文件夹、检查点、检查点里的 LoRA 文件 -> 那次训练的 config.yaml；别的就是 None。

    Raises:
        LorakitError: 是检查点、是 LoRA 文件，可是旁边没有那次训练的设置。
    """
    from lorakit.lora import steps

    place = Path(source)
    file = place.suffix == ".safetensors" and place.is_file()
    found = steps.settings_of(place) if file or place.is_dir() else None
    one = place.is_dir() and steps.step_of(place) is not None
    if found is None and (file or (one and not (place / "model_index.json").is_file())):
        raise LorakitError(
            f"“{source}”的外面没有 config.yaml，不知道它的底模是哪个。"
            f"请先写底模（预设名或 YAML 文件），再用 --lora {source} 指定它。"
        )
    return found


def _refuse_two(args, source: str | None):
    """写了两遍的、用不上的：不悄悄听其中一个。"""
    inside, wrote = source and _inside(source), {s.partition("=")[0].strip() for s in args.set}
    one = inside and inside.parent != Path(source)
    if args.lora and one:
        raise LorakitError(f"“{source}”和 --lora {args.lora} 是两个 LoRA，只能写一个。")
    if axis := getattr(args, "checkpoints", None):
        if args.lora:
            raise LorakitError(
                f"--checkpoints {axis} 画的是结果文件夹里的检查点，用不上 --lora：去掉其中一个。"
            )
        if one:
            raise LorakitError(f"--checkpoints 要写结果文件夹“{inside.parent}”，不是其中一个。")
    same = dict(_SAME)
    if getattr(args, "height", None):  # 只写一边，另一边还用得上它
        same["--width"] = "sample.size"
    for flag, name in same.items():
        if getattr(args, flag[2:], None) is not None and name in wrote:
            raise LorakitError(f"{flag} 和 --set {name} 说的是同一件事，只能写一个。")


def _open(args, source: str, sets: list[str], need_lora: bool = False):
    """结果文件夹、检查点、YAML 或预设 -> (设置, 家族, LoRA 在哪)。"""
    from lorakit.families import open_family

    inside = _inside(source)
    weights = args.lora or (Path(source) if inside else None)
    if need_lora and weights is None:
        raise LorakitError("没有 LoRA 可比较：请给一次训练的结果文件夹，或用 --lora 指定文件。")
    more = [f"model.quantize={args.quantization}"] if args.quantization else []
    config = settings(inside or source, [*sets, *more])
    return config, open_family(config), weights


def _strength(args, weights: Path | None) -> float:
    """--strength 是多少；没有 LoRA、或改的是底模自己，强度无从说起，载入之前就说。"""
    from lorakit.infer import xy
    from lorakit.lora import full

    if args.strength is None:
        return 1.0
    values = xy.numbers(args.strength, "--strength", float)
    if len(values) > 1:
        raise LorakitError("--strength 只写一个数；几个一起比用 compare --strengths 0,0.5,1。")
    if weights is None:
        raise LorakitError(
            "--strength：没有 LoRA。请给一次训练的结果文件夹，或用 --lora 指定文件。"
        )
    if full.find(weights):
        raise LorakitError(
            f"--strength：“{weights}”是全量微调，改的是底模自己，没有强度可调。"
            "不写 --strength 就是它练成的样子；只用一部分，训练时用 lora.kind=lora。"
        )
    return values[0]


def _say_long(family, prompts):
    """长过编码器上限的提示词，后面的话模型看不到：画之前说一声。"""
    for prompt, count in zip(prompts, family.count_tokens(list(prompts)), strict=True):
        if count > family.caption_limit:
            limit = f"{family.name} 最多看 {family.caption_limit} 个，后面的话不起作用"
            warn(f"“{prompt[:12]}…”有 {count} 个词元，{limit}：把要紧的写在前头。")


def _refuse_same(out: Path, pictures):
    """画好的图不能盖掉要改的那一张。"""
    if out.is_file() and any(path.is_file() and out.samefile(path) for path in pictures):
        raise LorakitError(f"--out：“{out}”就是要改的图，存了会盖掉它。换一个名字。")


def choose_base(source: str | None, base: str | None, weights: Path | None):
    """第一个词、--model_name、--lora_weights 怎么写都行 -> (读哪份设置, 要先改的几项)。"""
    from lorakit import lora
    from lorakit.config import load_config, preset_for, presets
    from lorakit.config.foreign import declared, family_of
    from lorakit.hub import REPO
    from lorakit.hub.bundled import tiny_models
    from lorakit.lora import steps

    if source and base:
        raise LorakitError(f"“{source}”和 --model_name {base} 只能写一个。")
    source = source or base
    if source is None and weights:
        if inside := steps.settings_of(weights):
            return str(inside.parent), []  # 结果文件夹里记着底模
        source = base = lora.read(weights)[1].get("base")  # 我们写的文件也记着
        there = tiny_models() + list(presets())
        if base and not (base in there or REPO.fullmatch(base) or Path(base).is_dir()):
            raise LorakitError(  # 文件里不记本地的路径
                f"“{weights}”的底模是训练那台机器上的文件夹“{base}”。"
                "请用 --model_name 写上它在这里的位置。"
            )
    if source is None:
        raise LorakitError(
            "用哪个模型画？写上一次训练的结果文件夹，或 --model_name 底模、--lora_weights 文件。"
        )
    known = source in presets() or _inside(source)
    if not base or known or Path(base).is_file() or preset_for(base):
        return source, []
    if "/" not in base and not Path(base).is_dir():
        return source, []
    # 没有预设的底模：本地的听它自己说，别的看 LoRA 里记着的，再看名字
    said, _ = family_of(base)
    if not declared(Path(base)):
        said = (lora.read(weights)[1] if weights else {}).get("family", said)
    family = said or "qwen-image"
    models = {name: load_config(name).model for name in presets()}
    near = [n for n, m in models.items() if m.family == family and m.path not in tiny_models()]
    sets = [f"model.family={family}", f"model.path={base}"]
    return near[0] if near else "qwen-image", sets


@command(
    "lorakit generate runs/mine --prompt 剪纸风格，一只猫 --out cat.png",
    option("source", nargs="?", help=_SOURCE),
    # 下划线的名字是别处的脚本常用的，意思相同
    option(
        "--model_name",
        "--model",
        dest="base",
        metavar="底模",
        help="代替第一个词；也可以写底模在站上的名字或本地文件夹，例如 Qwen/Qwen-Image",
    ),
    _PROMPT,
    option("--negative_prompt", "--negative", default="", help="不要画什么；引导大于 1 才起作用"),
    option("--lora", "--lora_weights", type=Path, help="LoRA 文件或文件夹；不写就用结果里最新的"),
    option("--width", type=int, help="图的宽（像素）；不写就和训练时一样"),
    option("--height", type=int, help="图的高（像素）"),
    option("--steps", "--num_inference_steps", metavar="数", help="步数（同 sample.steps）"),
    option("--guidance", "--true_cfg_scale", metavar="数", help="引导强度（同 sample.guidance）"),
    option("--seed", metavar="数", help="随机种子（同 sample.seed）"),
    _STRENGTH,
    _QUANTIZE,
    SET,
    option("--out", "--output_image", type=Path, default=Path("generate.png"), help="图存到哪里"),
)
def generate(args) -> int:
    """用训练好的 LoRA 画图。"""
    from lorakit import infer
    from lorakit.results import report

    given = {name: getattr(args, name) for name in ("steps", "guidance", "seed")}
    told = [f"sample.{name}={value}" for name, value in given.items() if value is not None]
    report.picture_kind(args.out)  # 画完才说存不了，就白等了
    _refuse_two(args, args.source or args.base)
    source, sets = choose_base(args.source, args.base, args.lora)
    config, family, weights = _open(args, source, [*sets, *args.set, *told])
    side = config.sample.size or config.data.resolution
    size = tuple(side if edge is None else edge for edge in (args.width, args.height))
    infer.check_size(family, size)
    strength, how = _strength(args, weights), (config.sample.guidance, args.prompt)
    pipe = infer.open_for(family, weights, *how, negative=args.negative_prompt)
    if strength != 1:
        infer.set_strength(pipe, strength)
    _say_long(family, args.prompt)
    images = infer.generate(family, pipe, args.prompt, config.sample, size, args.negative_prompt)
    for i, image in enumerate(images):
        path = args.out if len(images) == 1 else args.out.with_stem(f"{args.out.stem}_{i + 1}")
        print(f"画好了：{report.save_image(image, path)}（{args.prompt[i]}）")
    return DONE


@command(
    'lorakit edit cat.png "给它戴上一顶红帽子" --model runs/mine --out hat.png',
    option("image", type=Path, help="要改的图"),
    option("prompt", help="怎么改，一句话"),
    option(
        "--model",
        dest="source",
        default="tiny-qwen-image-edit",
        help=f"{_SOURCE}（tiny-qwen-image-edit）",
    ),
    option("--also", type=Path, action="append", default=[], help="再看一张图，可写两次（2509）"),
    _LORA,
    _STRENGTH,
    _QUANTIZE,
    SET,
    option("--out", type=Path, default=Path("edit.png"), help="图存到哪里"),
)
def edit(args) -> int:
    """照一句话改一张图。"""
    from lorakit import infer
    from lorakit.data.read import read_image
    from lorakit.results import report

    report.picture_kind(args.out)
    _refuse_same(args.out, (args.image, *args.also))
    _refuse_two(args, args.source)
    pictures = [read_image(path, True) for path in (args.image, *args.also)]
    config, family, weights = _open(args, args.source, args.set)
    how = (config.sample.guidance, [args.prompt], [pictures])
    side, strength = config.sample.size or config.data.resolution, _strength(args, weights)
    pipe = infer.open_for(family, weights, *how, size=side)
    if strength != 1:
        infer.set_strength(pipe, strength)
    _say_long(family, [args.prompt])
    (image,) = infer.edit(family, pipe, [args.prompt], [pictures], config.sample, side)
    print(f"改好了：{report.save_image(image, args.out)}（{args.prompt}）")
    return DONE


@command(
    "lorakit compare runs/mine --prompt 剪纸风格，一只猫 --out both.png",
    option("source", help=_SOURCE),
    _PROMPT,
    _LORA,
    _QUANTIZE,
    SET,
    option("--image", type=Path, action="append", help="编辑模型：要改的图，可写多次"),
    option("--strengths", metavar="0,0.5,1", help="网格：LoRA 的几个强度"),
    option("--seeds", metavar="0,1,2", help="网格：几个种子"),
    option("--checkpoints", metavar="all", help="网格：all 或几个步数；三样任选两样"),
    option("--out", type=Path, default=Path("compare.png"), help="图存到哪里"),
)
def compare(args) -> int:
    """同样的提示词和种子，比较有没有 LoRA。"""
    from lorakit import infer
    from lorakit.data.read import read_image
    from lorakit.infer import xy
    from lorakit.results import report

    report.picture_kind(args.out)
    _refuse_two(args, args.source)
    axes = xy.axes(Path(args.source), args.strengths, args.seeds, args.checkpoints)
    if axes and len(args.prompt) > 1:
        raise LorakitError(f"网格一次只画一句提示词，得到 {len(args.prompt)} 句。")
    config, family, weights = _open(args, args.source, args.set, need_lora=True)
    weights = next((axis.values[0] for axis in axes if axis.kind == "step"), weights)
    side = config.sample.size or config.data.resolution
    _refuse_same(args.out, args.image or ())
    control = args.image and [read_image(path, True) for path in args.image]
    controls = control and [control] * len(args.prompt)
    how = (config.sample.guidance, args.prompt, controls)
    pipe = infer.open_for(family, weights, *how, size=(side, side))
    _say_long(family, args.prompt)
    if axes:
        drawing = (family, pipe, args.prompt[0], config.sample, (side, side))
        sheet = xy.xy_grid(*drawing, *axes, control=control)
        named = "，".join(f"{way}是{axis.name}" for way, axis in zip("横纵", axes, strict=False))
        print(f"画好了：{report.save_image(sheet, args.out)}（{named}）")
        return DONE
    rows = infer.compare(family, pipe, args.prompt, config.sample, (side, side), controls)
    sheet = report.grid(rows, ["没有\nLoRA", "有\nLoRA"], [prompt[:10] for prompt in args.prompt])
    print(f"画好了：{report.save_image(sheet, args.out)}（上排没有 LoRA，下排有）")
    inside = None if args.lora else _inside(args.source)
    if inside and (inside.parent / "metrics.jsonl").is_file():
        print(_judged(inside.parent, weights))
    return DONE


def _judged(run: Path, weights: Path) -> str:
    """画的那个检查点的判断：多半是最后一步的。"""
    from lorakit import lora
    from lorakit.lora import steps
    from lorakit.results import folder as run_folder
    from lorakit.results import verdict

    metrics, step = run_folder.read(run), steps.step_of(lora.find(weights).parent)
    if step is None or step == verdict.last_step(metrics):
        return f"最后一步的判断——{verdict.last(run, metrics).text()}"
    return f"第 {step} 步的判断——{verdict.at(run, metrics, step).text()}"
