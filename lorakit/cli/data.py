"""与数据打交道的命令：check 体检，caption 写描述，cache 编码缓存。"""

import json
from pathlib import Path

from lorakit.cli.options import DONE, SET, WRONG_INPUT, command, option
from lorakit.cli.progress import encoding
from lorakit.errors import LorakitError

_CAPTIONERS = "qwen2.5-vl（会中文）、florence-2（最快）、blip-2，或存着这种模型的本地文件夹"


def _is_yaml(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml", ".toml", ".json")


def _chosen(args):
    """命令里写的 -> (完整的设置或 None, 数据那一组)；写明的选项盖过 YAML 里的。"""
    from lorakit.config import load_config, presets
    from lorakit.config.groups import Data

    if not args.source.strip():
        raise LorakitError("没有写文件夹：得到的是空的。要查当前文件夹就写一个点（.）。")
    source, config = Path(args.source), None
    is_file = _is_yaml(source) or (args.source in presets() and not source.exists())
    if is_file and args.config:
        raise LorakitError(f"“{source}”已经是设置，不用再写 --config；要改一项用 --set。")
    if is_file or args.config:
        config = load_config(args.source if is_file else args.config, args.set)
    elif args.set:
        raise LorakitError("--set 是改设置的，要和 YAML 文件（或 --config）一起用。")
    data = config.data if config else Data()
    trigger = args.trigger and load_config({"data": {"trigger": args.trigger}}).data.trigger
    told = {"trigger": trigger, "control_folder": args.control, "resolution": args.resolution}
    told = {key: value for key, value in told.items() if value is not None}
    if not is_file:
        several = isinstance(data.folder, list)  # 那时控制图写在每一个里，这个文件夹用不上
        told = {"folder": source, **({"control_folder": None} if several else {}), **told}
    elif args.control and isinstance(data.folder, list):
        raise LorakitError("--control 说不清是哪个文件夹的：控制图写在 YAML 的每个 folder 里。")
    data = data.model_copy(update=told)
    if not data.sources:
        raise LorakitError("data.folder：还没有指定图片文件夹。请加 --set data.folder=我的图片。")
    return config.model_copy(update={"data": data}) if config else None, data


@command(
    "lorakit check my-data --html report.html",
    option("source", help="图片文件夹，或训练用的 YAML 文件（它写的每个文件夹都看）"),
    option("--trigger", metavar="词", help="触发词；给了就检查每句描述里有没有它"),
    option(
        "--control",
        type=Path,
        metavar="文件夹",
        help="编辑数据：控制图的文件夹；images 旁的 control 不用写",
    ),
    option("--config", metavar="YAML", help="或预设名：照它的分辨率、底模再看这个文件夹合不合适"),
    SET,
    option("--fix", action="store_true", help="替你做安全的修改，原件都留着"),
    option("--undo", action="store_true", help="撤销最近一次 --fix，一字节不差"),
    option("--html", type=Path, metavar="文件", help="另写一份带缩略图的网页报告"),
    option("--resolution", type=int, metavar="边长", help="训练分辨率：看各图裁掉多少"),
)
def check(args) -> int:
    """体检数据：哪张图、哪句描述有问题，怎么修。"""
    from lorakit.data import html as data_html
    from lorakit.data.crops import framing
    from lorakit.data.limits import MULTIPLE
    from lorakit.data.load import inspect_sources

    if args.fix and args.undo:
        raise LorakitError("--fix 和 --undo 只能写一个：先 --fix 看结果，不满意再 --undo。")
    config, data = _chosen(args)
    if args.fix or args.undo:
        _mend(data, args.undo)
    if config:
        from lorakit.training import forecast

        family = forecast.open_light(config)
        results = forecast.examine(config, family, encoding())
    else:
        results = inspect_sources(data, encoding())
        if args.resolution is not None:
            side = args.resolution
            results = [
                (records, report.plus(framing(records, side, MULTIPLE, report.folder)))
                for records, report in results
            ]
    for number, (records, report) in enumerate(results):
        print("\n" * bool(number) + report.text())
        if args.html:
            page = args.html.with_stem(f"{args.html.stem}-{number + 1}") if number else args.html
            shown = data.resolution if config or args.resolution is not None else None
            print(f"网页写好了：{data_html.write(page, records, report, shown)}")
    if any(report.errors for _, report in results):
        print("\n错误改好之前不能训练；警告看一眼，觉得没事就不用管。")
        return WRONG_INPUT
    if config:
        print(f"\n照这份设置：{forecast.forecast(config, family)}")
    return DONE


def _mend(data, undo: bool):
    """对每个文件夹、连同放在别处的控制图，做 --fix 或 --undo；照着设置，它要用的不动。"""
    from lorakit.data import fix as data_fix
    from lorakit.data.load import places

    triggers, clear = {}, data.clear or data.mask == "alpha"
    for source, word in places(data):
        home, control, prior = source.folder.resolve(), source.control_folder, data.class_folder
        # 同类图片也在里面：它们的描述不能有触发词
        word = "" if prior and prior.resolve().is_relative_to(home) else word
        triggers.setdefault(source.folder, word)
        if control and not control.resolve().is_relative_to(home):
            triggers.setdefault(control, word)  # 那里的描述常和目标图的一样：一起改，还是一样
    for folder, trigger in triggers.items():
        if not undo:
            print(data_fix.fix(folder, trigger, clear))
        elif len(triggers) == 1 or (folder / data_fix.UNDO).is_dir():
            print(data_fix.undo(folder))
        else:
            print(f"{folder} 没有改过，不用撤销。")


@command(
    "lorakit caption my-data --model qwen2.5-vl --prefix 'ohwx 猫'",
    option("folder", type=Path, help="图片文件夹，或写着 data.folder 的 YAML 文件"),
    option("--model", default="qwen2.5-vl", help=_CAPTIONERS),
    option("--prefix", metavar="话", help="写在每句最前面，例如触发词；YAML 里写了就不用写"),
    option("--language", help="zh 或 en；不写就用模型最拿手的"),
    option("--length", default="medium", help="short、medium（默认）或 long"),
    option("--overwrite", action="store_true", help="已经有 .txt 的也重写"),
)
def caption(args) -> int:
    """用看图说话的模型替图片写描述；写一张存一张，断了再运行就接着写。"""
    from lorakit.config import load_config
    from lorakit.data.caption import Captioner, caption_folder
    from lorakit.data.load import places

    todo = [(args.folder, "", None)]
    if _is_yaml(args.folder):
        data = load_config(args.folder).data
        todo = [(source.folder, word, source.control_folder) for source, word in places(data)]
        if not todo:
            raise LorakitError(f"“{args.folder}”里没有写 data.folder：不知道给哪些图写描述。")
    captioner = Captioner(args.model, args.language, args.length)
    failed = 0
    for folder, trigger, control in todo:
        prefix = trigger if args.prefix is None else args.prefix
        done = caption_folder(folder, captioner, prefix, args.overwrite, encoding(), control)
        print(f"{folder}：{done.text()}")
        failed += len(done.failed)
        if done.written:
            print("模型会看错：打开读一遍，改掉说错的。")
    return WRONG_INPUT if failed else DONE


@command(
    "lorakit cache why my-data/01_cat.png",
    option("action", choices=("build", "why", "clean"), help="build、why 或 clean"),
    option("what", type=Path, nargs="?", help="why：哪张图；build：YAML 或图片文件夹"),
    option("--config", default="tiny-qwen-image", help="YAML 文件或预设名"),
    option("--days", type=float, default=0.0, help="clean：只删这么多天没用过的"),
    SET,
)
def cache(args) -> int:
    """编码缓存：build 先编码好，why 看一张图会不会重编，clean 清理。"""
    from lorakit import cache
    from lorakit.cache import why as cache_why
    from lorakit.config import load_config
    from lorakit.families import open_family
    from lorakit.files import cache_root

    source, sets = args.config, args.set
    if args.action == "why" and args.what is None:
        raise LorakitError("要看哪张图？例如 lorakit cache why my-data/01_cat.png")
    if args.action == "clean" and args.what:
        raise LorakitError("clean 不分是谁的：后面不用写文件。只删很久没用的，加 --days 30。")
    if args.action == "build" and args.what:
        if _is_yaml(args.what):
            source = args.what
        else:
            # 写成带引号的：名字里有冒号、方括号也不会被当成 YAML 的写法
            sets = [*sets, f"data.folder={json.dumps(str(args.what))}"]
    if args.action == "clean":
        count, size = cache_why.clean(args.days)
        print(f"删掉了 {count} 个缓存文件，腾出 {size / 1e6:.1f} MB（{cache_root()}）。")
        return DONE
    config = load_config(source, sets)
    family = open_family(config)
    if args.action == "why":
        print(cache_why.why(config, family, args.what))
        return DONE
    dataset = cache.prepare(config, family, encoding())
    count, held = len(dataset.train), len(dataset.held)
    print(f"都编码好了：训练 {count} 张，留出 {held} 张（{cache_root()}）。")
    return DONE
