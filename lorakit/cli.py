"""命令行：只解析、调用、说中文；真正的活都在库里。"""

import argparse
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from lorakit.errors import LorakitError

DONE, WRONG_INPUT, USAGE, INTERRUPTED = 0, 1, 2, 130
_CHINESE = {
    "usage: ": "用法：",
    "positional arguments": "参数",
    "options": "选项",
    "show this help message and exit": "显示这份说明",
    "the following arguments are required: %s": "还缺：%s",
    "unrecognized arguments: %s": "不认识：%s",
    "expected one argument": "后面要跟一个值",
    "expected at least one argument": "后面至少要跟一个值",
    "argument %(argument_name)s: %(message)s": "%(argument_name)s：%(message)s",
    "invalid %(type)s value: %(value)r": "%(value)r 不是合适的值（要 %(type)s）",
    "invalid choice: %(value)r (choose from %(choices)s)": "没有 %(value)r，可选：%(choices)s",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.print_usage(sys.stderr)
        print(f"命令写错了：{message}。用 {self.prog} --help 看说明和例子。", file=sys.stderr)
        sys.exit(USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lorakit", description="用中文学会图像模型的 LoRA 微调。先试 lorakit demo"
    )
    parser.add_argument("--debug", action="store_true", help="出错时打印完整的调用栈")
    commands = parser.add_subparsers(
        dest="command", metavar="命令", required=True, parser_class=_Parser
    )
    for name, (run, about, example, options) in _COMMANDS.items():
        sub = commands.add_parser(name, help=about, description=about, epilog=f"例子：{example}")
        sub.set_defaults(run=run)
        for flags, details in (*options, _DEBUG):
            sub.add_argument(*flags, **details)
    return parser


def _demo(args) -> int:
    from lorakit.tiny import demo
    from lorakit.tiny.styles import STYLES

    if args.style not in STYLES:
        raise LorakitError(f"没有叫“{args.style}”的画风。可选：{'、'.join(STYLES)}。")
    with _bar() as show:
        result = demo.run(args.out, args.style, args.set, show, say=print)
    b, a = result.before, result.after
    print(f"""
考官打分（13 种训练时没画过的主体）：
  是{STYLES[args.style][0]}的：训练前 {b.style:.0%} -> 训练后 {a.style:.0%}
  认得出画的是什么：训练前 {b.content:.0%} -> 训练后 {a.content:.0%}
留出集损失：{result.held[0]:.3f} -> {result.held[-1]:.3f}；训练用了 {result.seconds:.0f} 秒。

接下来打开：
  {result.picture}   上排是训练前，下排是训练后
  {args.out / "loss.png"}   损失曲线
  {args.out / "data"}   训练图，照这个样子放你自己的图
  {args.out / "run"}   LoRA 与模型卡
再试一种画风：lorakit demo --style inkwash --out runs/ink""")
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


def _check(args) -> int:
    from lorakit.data import inspect, unpacked

    if args.fix and args.undo:
        raise LorakitError("--fix 和 --undo 只能写一个：先 --fix 看结果，不满意再 --undo。")
    if args.fix or args.undo:
        from lorakit import data_fix

        print(data_fix.undo(args.folder) if args.undo else data_fix.fix(args.folder, args.trigger))
    records, report = inspect(unpacked(args.folder), args.trigger)
    if args.config:
        from lorakit import cache_tools

        report = cache_tools.check_length(args.config, records, report)
    print(report.text())
    if args.html:
        from lorakit import data_html

        print(f"网页写好了：{data_html.write(args.html, records, report, args.resolution)}")
    return WRONG_INPUT if report.errors else DONE


def _caption(args) -> int:
    from lorakit.caption import Captioner, caption_folder

    captioner = Captioner(args.model, args.language, args.length)
    done = caption_folder(args.folder, captioner, args.prefix, args.overwrite, _say_encoding)
    print(f"{done.text()}\n模型会看错：打开读一遍，改掉说错的。")
    return WRONG_INPUT if done.failed else DONE


def _train(args) -> int:
    from lorakit import infer, report
    from lorakit.config import load_config
    from lorakit.train import Trainer

    source = Path(args.config) if Path(args.config).is_file() else args.config
    config = load_config(source, args.set)
    trainer = Trainer(config, progress=_say_encoding)
    print(trainer.plan().text())
    if trainer.step:
        print(f"从第 {trainer.step} 步接着练（要从头来，换一个 run.output）。")
    run, size = config.run.output, config.sample.size or config.data.resolution
    pictures: list[str] = []

    def sample():
        pipe = trainer.family.pipeline(trainer.transformer.eval())
        pipe.set_progress_bar_config(disable=True)
        images = infer.generate(
            trainer.family, pipe, config.sample.prompts, config.sample, (size, size)
        )
        for i, image in enumerate(images):
            path = report.save_image(image, run / "samples" / f"{trainer.step}_{i}.png")
            pictures.append(str(path.relative_to(run)))
        trainer.family.release("vae", "text")
        trainer.transformer.train()

    seconds = 0.0
    with _bar(trainer.step) as show, _interrupt(trainer) as interrupted:
        for step in trainer:
            seconds += step.seconds
            show(step, config.train.steps)
            due = config.sample.every and step.step % config.sample.every == 0
            if config.sample.prompts and due and step.step < config.train.steps:
                sample()
    if interrupted:
        print(f"\n已停在第 {trainer.step} 步并存好。再运行同一条命令就接着练。")
        return INTERRUPTED
    if config.sample.prompts:
        sample()
    report.plot_loss(run)
    report.write_run_card(run, config, trainer.dataset, seconds, str(trainer.accelerator.device))
    report.write_model_card(
        run, config, trainer.dataset, pictures[-len(config.sample.prompts) :] if pictures else []
    )
    print(f"\n练完了：{run / f'checkpoint-{trainer.step}'}")
    print(f'试试：lorakit compare {run} --prompt "你的提示词"')
    return DONE


def _open(args, need_lora: bool):
    """结果文件夹、YAML 或预设 -> (设置, 家族, 管线)。"""
    from lorakit import infer
    from lorakit.config import load_config
    from lorakit.families import open_family

    source = Path(args.source)
    inside = source / "config.yaml"
    weights = args.lora or (source if inside.is_file() else None)
    if need_lora and weights is None:
        raise LorakitError("没有 LoRA 可比较：请给一次训练的结果文件夹，或用 --lora 指定文件。")
    path = inside if inside.is_file() else (source if source.is_file() else args.source)
    config = load_config(path, args.set)
    family = open_family(config)
    return config, family, infer.open_pipeline(family, weights)


def _generate(args) -> int:
    from lorakit import infer, report

    config, family, pipe = _open(args, need_lora=False)
    side = config.sample.size or config.data.resolution
    images = infer.generate(family, pipe, args.prompt, config.sample, (side, side))
    for i, image in enumerate(images):
        path = args.out if len(images) == 1 else args.out.with_stem(f"{args.out.stem}_{i + 1}")
        print(f"画好了：{report.save_image(image, path)}（{args.prompt[i]}）")
    return DONE


def _compare(args) -> int:
    from lorakit import infer, report

    config, family, pipe = _open(args, need_lora=True)
    side = config.sample.size or config.data.resolution
    rows = infer.compare(family, pipe, args.prompt, config.sample, (side, side))
    sheet = report.grid(rows, ["没有\nLoRA", "有\nLoRA"], [prompt[:10] for prompt in args.prompt])
    print(f"画好了：{report.save_image(sheet, args.out)}（上排没有 LoRA，下排有）")
    return DONE


def _cache(args) -> int:
    from lorakit import cache, cache_tools
    from lorakit.config import load_config
    from lorakit.families import open_family

    if args.action == "clean":
        count, size = cache_tools.clean(args.days)
        print(f"删掉了 {count} 个缓存文件，腾出 {size / 1e6:.1f} MB（{cache.root()}）。")
        return DONE
    config = load_config(args.config, args.set)
    family = open_family(config)
    if args.action == "why":
        if args.picture is None:
            raise LorakitError("要看哪张图？例如 lorakit cache why my-data/01_cat.png")
        print(cache_tools.why(config, family, args.picture))
        return DONE
    dataset = cache.prepare(config, family, _say_encoding)
    print(
        f"都编码好了：训练 {len(dataset.train)} 张，留出 {len(dataset.held)} 张（{cache.root()}）。"
    )
    return DONE


def _say_encoding(what: str, done: int, total: int):
    print(
        f"\r{what}：{done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True
    )


@contextmanager
def _bar(start: int = 0):
    """训练进度条：步数、损失、预计剩余时间。"""
    from tqdm import tqdm

    bar = None

    def show(step, total: int):
        nonlocal bar
        if bar is None:
            form = (
                "训练 {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} 步，"
                "已用 {elapsed}，还要 {remaining}{postfix}"
            )
            bar = tqdm(total=total, initial=start, bar_format=form, mininterval=0.5)
        held = {} if step.held is None else {"留出集": f"{step.held:.3f}"}
        bar.set_postfix({"损失": f"{step.loss:.3f}", **held}, refresh=False)
        bar.update()

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


@contextmanager
def _interrupt(trainer):
    """Ctrl-C 或 SIGTERM：练完手头这一步再停；产出的列表非空就是被打断过。"""
    hits: list[int] = []

    def stop(number, frame):
        hits.append(number)
        trainer.stop()

    old = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield hits
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


def _option(*flags: str, **details):
    return flags, details


# 写在命令后面也认；默认不填，免得盖掉写在命令前面的
_DEBUG = _option("--debug", action="store_true", default=argparse.SUPPRESS, help="打印调用栈")
_SET = _option("--set", action="append", default=[], metavar="名字=值", help="改一项设置，可多次")
_DRAW = (
    _option("source", help="一次训练的结果文件夹，或 YAML 文件、预设名"),
    _option("--prompt", action="append", required=True, help="提示词，可以写多次"),
    _option("--lora", type=Path, help="LoRA 文件；不写就用结果文件夹里最新的"),
    _SET,
)
_CAPTIONERS = "qwen2.5-vl（会中文）、florence-2（最快）、blip-2，或存着这种模型的本地文件夹"
_COMMANDS = {  # 名字 -> (函数, 一句话, 例子, 选项)
    "demo": (
        _demo,
        "一分钟演示：画样例图、训练、比较前后",
        "lorakit demo --out my-demo",
        (
            _option("--out", type=Path, default=Path("runs/demo"), help="结果文件夹（runs/demo）"),
            _option("--style", default="papercut", help="papercut inkwash pixel lineart porcelain"),
            _SET,
        ),
    ),
    "sample-data": (
        _sample_data,
        "写出一个样例数据集，看看训练数据该长什么样",
        "lorakit sample-data papercut my-data",
        (
            _option("name", help="papercut、inkwash、ohwx-cat、cats、edit-hat 等；写错会列出全部"),
            _option("folder", type=Path, help="写到哪个文件夹（要是空的）"),
        ),
    ),
    "init": (
        _init,
        "打印一份带说明的配置模板",
        "lorakit init qwen-image > my.yaml",
        (_option("preset", help="预设名，例如 qwen-image、tiny-qwen-image"),),
    ),
    "check": (
        _check,
        "体检数据：哪张图、哪句描述有问题，怎么修",
        "lorakit check my-data",
        (
            _option("folder", type=Path, help="图片文件夹"),
            _option("--trigger", default="", help="触发词；给了就检查每句描述里有没有它"),
            _option("--config", help="YAML 或预设名；给了就看描述有没有超过文字编码器的上限"),
            _option("--fix", action="store_true", help="替你做安全的修改，原件都留着"),
            _option("--undo", action="store_true", help="撤销最近一次 --fix，一字节不差"),
            _option("--html", type=Path, metavar="文件", help="另写一份带缩略图的网页报告"),
            _option("--resolution", type=int, metavar="边长", help="网页里的裁切框按它画"),
        ),
    ),
    "caption": (
        _caption,
        "用看图说话的模型替图片写描述；写一张存一张，断了再运行就接着写",
        "lorakit caption my-data --model qwen2.5-vl --prefix 'ohwx 猫'",
        (
            _option("folder", type=Path, help="图片文件夹"),
            _option("--model", default="qwen2.5-vl", help=_CAPTIONERS),
            _option("--prefix", default="", help="写在每句最前面的话，例如触发词"),
            _option("--language", help="zh 或 en；不写就用模型最拿手的"),
            _option("--length", default="medium", help="short、medium（默认）或 long"),
            _option("--overwrite", action="store_true", help="已经有 .txt 的也重写"),
        ),
    ),
    "cache": (
        _cache,
        "编码缓存：build 先编码好，why 看一张图会不会重编，clean 清理",
        "lorakit cache why my-data/01_cat.png",
        (
            _option("action", choices=("build", "why", "clean"), help="build、why 或 clean"),
            _option("picture", type=Path, nargs="?", help="why：哪张图"),
            _option("--config", default="tiny-qwen-image", help="YAML 文件或预设名"),
            _option("--days", type=float, default=0.0, help="clean：只删这么多天没用过的"),
            _SET,
        ),
    ),
    "train": (
        _train,
        "训练一个 LoRA；断了再运行同一条命令就接着练",
        "lorakit train tiny-qwen-image --set data.folder=my-data --set run.output=runs/mine",
        (_option("config", help="YAML 文件或预设名"), _SET),
    ),
    "generate": (
        _generate,
        "用训练好的 LoRA 画图",
        "lorakit generate runs/mine --prompt 剪纸风格，一只猫 --out cat.png",
        (*_DRAW, _option("--out", type=Path, default=Path("generate.png"), help="图存到哪里")),
    ),
    "compare": (
        _compare,
        "同样的提示词和种子，比较有没有 LoRA",
        "lorakit compare runs/mine --prompt 剪纸风格，一只猫 --out both.png",
        (*_DRAW, _option("--out", type=Path, default=Path("compare.png"), help="图存到哪里")),
    ),
}


def main(argv: list[str] | None = None) -> int:
    """入口；返回退出码：0 完成，1 输入有误，2 用法错，130 被打断但已存好。"""
    argparse._ = lambda text: _CHINESE.get(text, text)  # argparse 自己的话也说中文
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except LorakitError as error:
        if args.debug:
            raise
        print(error, file=sys.stderr)
        return WRONG_INPUT
    except BrokenPipeError:  # 输出接到 head 之类、对方先走了：不算错，也别在退出时再报一次
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        print("已停下。", file=sys.stderr)
        return INTERRUPTED
