"""画图的命令：generate、edit、compare。"""

import logging
import warnings
from pathlib import Path

from lorakit.cli.options import DONE
from lorakit.errors import LorakitError, LorakitWarning


def _open(args, need_lora: bool):
    """结果文件夹、YAML 或预设 -> (设置, 家族, LoRA 在哪)。"""
    from lorakit.config import load_config
    from lorakit.families import open_family

    # 提示词太长，stock 管线用英文提醒；我们自己说
    logging.getLogger("diffusers.pipelines").setLevel(logging.ERROR)
    source = Path(args.source)
    inside = source / "config.yaml"
    weights = args.lora or (source if inside.is_file() else None)
    if need_lora and weights is None:
        raise LorakitError("没有 LoRA 可比较：请给一次训练的结果文件夹，或用 --lora 指定文件。")
    path = inside if inside.is_file() else (source if source.is_file() else args.source)
    more = [f"model.quantize={args.quantization}"] if args.quantization else []
    config = load_config(path, [*args.set, *more])
    return config, open_family(config), weights


def _say_long(family, prompts):
    """长过编码器上限的提示词，后面的话模型看不到：画之前说一声。"""
    for prompt, count in zip(prompts, family.count_tokens(list(prompts)), strict=True):
        if count > family.caption_limit:
            limit = f"{family.name} 最多看 {family.caption_limit} 个，后面的话不起作用"
            said = f"“{prompt[:12]}…”有 {count} 个词元，{limit}：把要紧的写在前头。"
            warnings.warn(said, LorakitWarning, stacklevel=2)


def _choose_base(args):
    """第一个词、--model_name、--lora_weights 怎么写都行：都变成 _open 认得的 source。"""
    from lorakit import lora
    from lorakit.config import load_config, preset_for, presets
    from lorakit.hub.bundled import tiny_models

    if args.source and args.base:
        raise LorakitError(f"“{args.source}”和 --model_name {args.base} 只能写一个。")
    args.source = args.source or args.base
    if args.source is None and args.lora and (args.lora / "config.yaml").is_file():
        args.source = str(args.lora)  # 结果文件夹里记着底模
    elif args.source is None and args.lora:
        args.source = args.base = lora.read(args.lora)[1].get("base")  # 我们写的文件也记着
    if args.source is None:
        raise LorakitError(
            "用哪个模型画？写上一次训练的结果文件夹，或 --model_name 底模、--lora_weights 文件。"
        )
    known = args.source in presets() or (Path(args.source) / "config.yaml").is_file()
    if not args.base or known or Path(args.base).is_file():
        return
    if preset_for(args.base):
        return
    if "/" in args.base or Path(args.base).is_dir():  # 没有预设的底模：家族看 LoRA 里记着的
        family = (lora.read(args.lora)[1] if args.lora else {}).get("family", "qwen-image")
        models = {name: load_config(name).model for name in presets()}
        near = [n for n, m in models.items() if m.family == family and m.path not in tiny_models()]
        args.source = near[0] if near else "qwen-image"
        args.set = [f"model.family={family}", f"model.path={args.base}", *args.set]


def generate(args) -> int:
    from lorakit import infer
    from lorakit.results import report

    given = {name: getattr(args, name) for name in ("steps", "guidance", "seed")}
    args.set = [*args.set, *(f"sample.{k}={v}" for k, v in given.items() if v is not None)]
    report.picture_kind(args.out)  # 画完才说存不了，就白等了
    _choose_base(args)
    config, family, weights = _open(args, need_lora=False)
    side = config.sample.size or config.data.resolution
    size = tuple(side if edge is None else edge for edge in (args.width, args.height))
    infer.check_size(family, size)
    how = (config.sample.guidance, args.prompt)
    pipe = infer.open_for(family, weights, *how, negative=args.negative_prompt)
    _say_long(family, args.prompt)
    images = infer.generate(family, pipe, args.prompt, config.sample, size, args.negative_prompt)
    for i, image in enumerate(images):
        path = args.out if len(images) == 1 else args.out.with_stem(f"{args.out.stem}_{i + 1}")
        print(f"画好了：{report.save_image(image, path)}（{args.prompt[i]}）")
    return DONE


def edit(args) -> int:
    from lorakit import infer
    from lorakit.data.read import read_image
    from lorakit.results import report

    report.picture_kind(args.out)
    pictures = [read_image(path) for path in (args.image, *args.also)]
    config, family, weights = _open(args, need_lora=False)
    how = (config.sample.guidance, [args.prompt], [pictures])
    pipe = infer.open_for(family, weights, *how)
    _say_long(family, [args.prompt])
    side = config.sample.size or config.data.resolution
    (image,) = infer.edit(family, pipe, [args.prompt], [pictures], config.sample, side)
    print(f"改好了：{report.save_image(image, args.out)}（{args.prompt}）")
    return DONE


def compare(args) -> int:
    from lorakit import infer
    from lorakit.data.read import read_image
    from lorakit.infer import xy
    from lorakit.results import report

    report.picture_kind(args.out)
    axes = xy.axes(Path(args.source), args.strengths, args.seeds, args.checkpoints)
    if axes and len(args.prompt) > 1:
        raise LorakitError(f"网格一次只画一句提示词，得到 {len(args.prompt)} 句。")
    config, family, weights = _open(args, need_lora=True)
    side = config.sample.size or config.data.resolution
    control = args.image and [read_image(path) for path in args.image]
    controls = control and [control] * len(args.prompt)
    pipe = infer.open_for(family, weights, config.sample.guidance, args.prompt, controls)
    _say_long(family, args.prompt)
    if axes:
        drawing = (family, pipe, args.prompt[0], config.sample, (side, side))
        sheet = xy.xy_grid(*drawing, *axes, control=control)
        named = "，".join(
            f"{way}是{axis.name}" for way, axis in zip(("横", "纵"), axes, strict=False)
        )
        print(f"画好了：{report.save_image(sheet, args.out)}（{named}）")
        return DONE
    rows = infer.compare(family, pipe, args.prompt, config.sample, (side, side), controls)
    sheet = report.grid(rows, ["没有\nLoRA", "有\nLoRA"], [prompt[:10] for prompt in args.prompt])
    print(f"画好了：{report.save_image(sheet, args.out)}（上排没有 LoRA，下排有）")
    return DONE
