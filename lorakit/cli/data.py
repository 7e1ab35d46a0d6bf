"""与数据打交道的命令：check 体检，caption 写描述，cache 编码缓存。"""

import json
from pathlib import Path

from lorakit.cli.progress import say_encoding
from lorakit.errors import LorakitError


def _is_yaml(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml")


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
    told = {"trigger": args.trigger, "control_folder": args.control, "resolution": args.resolution}
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


def check(args) -> int:
    """体检；错误都改好之前返回 1。"""
    from lorakit.data.crops import framing
    from lorakit.data.limits import MULTIPLE
    from lorakit.data.load import doctor, places

    if args.fix and args.undo:
        raise LorakitError("--fix 和 --undo 只能写一个：先 --fix 看结果，不满意再 --undo。")
    config, data = _chosen(args)
    if args.fix or args.undo:
        _mend(places(data), args.undo)
    if config:
        from lorakit.training import forecast

        family = forecast.open_light(config)
        results = forecast.examine(config, family, say_encoding)
    else:
        results = doctor(data, say_encoding)
        if args.resolution is not None:
            side = args.resolution
            results = [
                (records, report.plus(framing(records, side, MULTIPLE, report.folder)))
                for records, report in results
            ]
    for number, (records, report) in enumerate(results):
        print("\n" * bool(number) + report.text())
        if args.html:
            from lorakit.data import html as data_html  # 它要 torch；不写网页就不必等它载入

            page = args.html.with_stem(f"{args.html.stem}-{number + 1}") if number else args.html
            shown = data.resolution if config or args.resolution is not None else None
            print(f"网页写好了：{data_html.write(page, records, report, shown)}")
    if any(report.errors for _, report in results):
        print("\n错误改好之前不能训练；警告看一眼，觉得没事就不用管。")
        return 1
    if config:
        print(f"\n照这份设置：{forecast.forecast(config, family)}")
    return 0


def _mend(places, undo: bool):
    """对每个文件夹、连同放在别处的控制图，做 --fix 或 --undo。"""
    from lorakit.data import fix as data_fix

    triggers = {}
    for source, trigger in places:
        triggers.setdefault(source.folder, trigger)
        control = source.control_folder
        if control and not control.resolve().is_relative_to(source.folder.resolve()):
            triggers.setdefault(control, "")
    for folder, trigger in triggers.items():
        if not undo:
            print(data_fix.fix(folder, trigger))
        elif len(triggers) == 1 or (folder / data_fix.UNDO).is_dir():
            print(data_fix.undo(folder))
        else:
            print(f"{folder} 没有改过，不用撤销。")


def caption(args) -> int:
    """替还没有描述的图各写一份；YAML 就是它写的每个文件夹，触发词写在最前面。"""
    from lorakit.config import load_config
    from lorakit.data.caption import Captioner, caption_folder
    from lorakit.data.load import places

    todo = [(args.folder, "")]
    if _is_yaml(args.folder):
        todo = [(source.folder, word) for source, word in places(load_config(args.folder).data)]
        if not todo:
            raise LorakitError(f"“{args.folder}”里没有写 data.folder：不知道给哪些图写描述。")
    captioner = Captioner(args.model, args.language, args.length)
    failed = 0
    for folder, trigger in todo:
        prefix = trigger if args.prefix is None else args.prefix
        done = caption_folder(folder, captioner, prefix, args.overwrite, say_encoding)
        print(f"{folder}：{done.text()}")
        failed += len(done.failed)
        if done.written:
            print("模型会看错：打开读一遍，改掉说错的。")
    return 1 if failed else 0


def cache(args) -> int:
    """先编码好、说清楚一张图会不会重编、清理。"""
    from lorakit import cache
    from lorakit.cache import why as cache_why
    from lorakit.config import load_config
    from lorakit.families import open_family
    from lorakit.files import cache_root

    source, overrides = args.config, args.set
    if args.action == "why" and args.what is None:
        raise LorakitError("要看哪张图？例如 lorakit cache why my-data/01_cat.png")
    if args.action == "clean" and args.what:
        raise LorakitError("clean 不分是谁的：后面不用写文件。只删很久没用的，加 --days 30。")
    if args.action == "build" and args.what:
        if _is_yaml(args.what):
            source = args.what
        else:
            # 写成带引号的：名字里有冒号、方括号也不会被当成 YAML 的写法
            overrides = [*overrides, f"data.folder={json.dumps(str(args.what))}"]
    if args.action == "clean":
        count, size = cache_why.clean(args.days)
        print(f"删掉了 {count} 个缓存文件，腾出 {size / 1e6:.1f} MB（{cache_root()}）。")
        return 0
    config = load_config(source, overrides)
    family = open_family(config)
    if args.action == "why":
        print(cache_why.why(config, family, args.what))
        return 0
    dataset = cache.prepare(config, family, say_encoding)
    print(
        f"都编码好了：训练 {len(dataset.train)} 张，留出 {len(dataset.held)} 张（{cache_root()}）。"
    )
    return 0
