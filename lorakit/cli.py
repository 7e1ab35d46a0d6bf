"""命令行：只解析、调用、说中文；真正的活都在库里。"""

import logging
import os
import sys
import warnings
from io import TextIOWrapper
from pathlib import Path

from lorakit.cli_data import cache, caption, check
from lorakit.cli_files import audit, export, push
from lorakit.cli_machine import bench, doctor
from lorakit.cli_options import DONE, INTERRUPTED, WRONG_INPUT, parser
from lorakit.cli_progress import bar, first_speaks
from lorakit.cli_train import train
from lorakit.errors import LorakitError, LorakitWarning

FULL = (
    "显存不够了；已经存好的检查点都在。别的程序占着显卡就先关掉它；再不够，换小一档的预设"
    "（lorakit doctor 预设 会说放不放得下），或加 --set model.quantize=fp8。"
)


def _demo(args) -> int:
    from lorakit.tiny import demo

    args.out = args.out or demo.place(args.lesson, args.config)
    with bar() as show:
        result = demo.run(args.out, args.lesson, args.set, show, print, args.config)
    scores = "\n".join(
        f"  {what}：训练前 {result.before[what]:.0%} -> 训练后 {share:.0%}"
        for what, share in result.after.items()
    )
    print(f"""
考官打分（{result.exam}）：
{scores}
留出集损失：{result.held[0]:.3f} -> {result.held[-1]:.3f}；训练用了 {result.seconds:.0f} 秒。

接下来打开：
  {result.picture}   同样的题目和种子，训练前与训练后
  {args.out / "loss.png"}   损失曲线
  {args.out / "data"}   训练图，照这个样子放你自己的图
  {args.out / "run"}   LoRA 与模型卡
再上一课：lorakit demo --lesson ohwx-cat，或 --lesson edit-lineart、inkwash""")
    return DONE


def _sample_data(args) -> int:
    from lorakit.tiny import samples

    folder = samples.write(args.name, args.folder)
    count = len(list(folder.rglob("*.txt")))
    print(f"写好了 {count} 张图和描述：{folder}。打开看看，再试 lorakit check {folder}")
    return DONE


def _init(args) -> int:
    from lorakit.config import template

    print(template(args.preset), end="")
    return DONE


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
    from lorakit.bundled import tiny_models
    from lorakit.config import load_config, preset_for, presets

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


def _generate(args) -> int:
    from lorakit import infer, report

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


def _edit(args) -> int:
    from lorakit import infer, report
    from lorakit.data import read_image

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


def _compare(args) -> int:
    from lorakit import infer, report, xy
    from lorakit.data import read_image

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


# 名字都在 cli_options.COMMANDS 里写明
_RUN = {
    "demo": _demo,
    "sample-data": _sample_data,
    "init": _init,
    "check": check,
    "caption": caption,
    "cache": cache,
    "train": train,
    "generate": _generate,
    "edit": _edit,
    "compare": _compare,
    "export": export,
    "audit": audit,
    "push": push,
    "doctor": doctor,
    "bench": bench,
}


def _remind(message, category, filename, lineno, file=None, line=None):
    text = warnings.formatwarning(message, category, filename, lineno, line)
    ours = issubclass(category, LorakitWarning)
    print(f"提醒：{message}" if ours else text.rstrip(), file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """入口；返回退出码：0 完成，1 输入有误，2 用法错，130 被打断但已存好。"""
    for stream in (sys.stdout, sys.stderr):
        # Windows 上接到文件里是 GBK，没有“✔”：写成问号，别停下
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    args = parser().parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # 它用英文提醒的事与学的人无关
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _remind
            with first_speaks():
                return _RUN[args.command](args)
    except LorakitError as error:
        if args.debug:
            raise
        if not error.told:  # 几个进程一起停的，0 号已经说了
            print(error, file=sys.stderr)
        return WRONG_INPUT
    except RuntimeError as error:
        torch = sys.modules.get("torch")  # 这时候多半载入了；为这一句去载入太慢
        if args.debug or torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        print(FULL, file=sys.stderr)
        return WRONG_INPUT
    except BrokenPipeError:  # 输出接到 head 之类、对方先走了：不算错，也别在退出时再报一次
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        print("已停下。", file=sys.stderr)
        return INTERRUPTED
