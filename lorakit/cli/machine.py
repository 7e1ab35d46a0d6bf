"""看机器的命令：doctor 体检，rehearse 排练，bench 测速。"""

import json
import sys
import time
from pathlib import Path

from lorakit.cli.options import DONE, SET, WRONG_INPUT, command, option, settings
from lorakit.cli.progress import encoding
from lorakit.errors import ConfigError


@command(
    "lorakit doctor qwen-image-24gb --card 4090 --price 2.5",
    option("config", nargs="?", help="YAML 文件或预设名；不写就只看机器"),
    option("--tier", type=float, metavar="GB", help="当作有一块这么大的显卡"),
    option(
        "--card",
        metavar="卡名",
        help="手边没有卡：当作有一块 4090（或 3090、H20……），估要多久；all 列出每种卡",
    ),
    option("--price", type=float, metavar="元", help="和 --card 一起用：一小时多少元，估要多少元"),
    option("--offline", action="store_true", help="不试着连模型站"),
    option("--rules", action="store_true", help="只印出哪些设置合不来、为什么、怎么改"),
    SET,
)
def doctor(args) -> int:
    """开练前的体检：机器行不行，设置放不放得下、要下载多少、要多久。"""
    from lorakit.machine import cards, rent
    from lorakit.machine import doctor as checks
    from lorakit.training import preflight

    if args.rules:
        print(preflight.table())
        return DONE
    config = settings(args.config, args.set) if args.config else None
    if args.card == "all":  # 每种卡一行
        print(rent.text(args.config or "flux-dev"))
        return DONE
    if config is None and (args.card or args.price):
        raise ConfigError(
            "--card、--price 要和预设一起写，例如 lorakit doctor flux-dev-24gb --card 4090。"
        )
    card = cards.find(args.card) if args.card else None
    if card or args.tier or args.price:
        found = rent.examine(config, args.tier, not args.offline, card, args.price)
    else:
        found = checks.examine(config, online=not args.offline)
    for check in found:
        print(check.text(colour=sys.stdout.isatty()))
    bad = sum(check.level == checks.BAD for check in found)
    print(f"有 {bad} 项不行（红）。" if bad else "可以练。")
    return WRONG_INPUT if bad else DONE


@command(
    "lorakit rehearse qwen-image-24gb --set data.folder=我的图片 --price 2.5",
    option("config", help="YAML 文件或预设名"),
    option("--tier", type=float, metavar="GB", help="只许用这么多显存，假装是小一点的卡"),
    option("--files", type=Path, metavar="文件夹",
           help="把随机的底模写成文件夹，从磁盘载入（Qwen-Image 要 57 GB）；写过的直接用"),
    option("--mixed", action="store_true", help="不用自己的图，用几种宽高比都有的假照片"),
    option("--price", type=float, metavar="元", help="一小时多少元，算出一共要多少"),
    option("--json", type=Path, metavar="文件", help="每个环节的账写到哪里"),
    SET,
)  # fmt: skip
def rehearse(args) -> int:
    """排练：随机权重、自己的图，不下载就把整个训练短短走一遍，看放不放得下、要多久。"""
    from lorakit.machine import rehearse as rehearsal

    report = rehearsal.run(
        settings(args.config, args.set), tier=args.tier, files=args.files, price=args.price,
        mix=args.mixed, keep=args.json, say=encoding(),
    )  # fmt: skip
    print(report.text())
    return DONE if report.fits else WRONG_INPUT


@command(
    "lorakit bench qwen-image-24gb --tier 24 --baseline seed",
    option("config", nargs="?", help="YAML 文件或预设名；不写就用 Qwen-Image"),
    option("--baseline", choices=("seed",), help="seed：再测每步现编码的常见写法"),
    option("--plain", action="store_true", help="再测只用 diffusers + PEFT 的循环"),
    option("--tier", type=float, metavar="GB", help="只许用这么多显存，假装是小一点的卡"),
    option("--steps", help="计时的步数（10）；和 --recipes 一起是练到哪几步各画一遍（60,120,300）"),
    option("--warm", type=int, default=3, help="先走几步热身，不计时（3）"),
    option("--trace", action="store_true", help="计时之后再走一步，看时间花在哪"),
    option("--out", type=Path, help="结果存到哪里（bench.json；--recipes 是 runs/recipes）"),
    option("--recipes", nargs="*", metavar="配方",
           help="比的不是快慢，是谁的设置学得好：在微型模型上练随包的各份配方，请考官判；写名字或 "
           "YAML 文件就只练那几份。断了再跑接着来，几个终端一起跑也行"),
    option("--lesson", action="append", default=[], metavar="课题",
           help="--recipes 只练这一课，可以写多次，例如 pixel、flux-ohwx-cat"),
    option("--seeds", type=int, default=3, metavar="几个", help="--recipes 每格练几个种子（3）"),
    option("--minutes", type=float, default=60, metavar="分钟",
           help="--recipes 最多跑多久（60），没跑完的下次接着"),
    option("--table", action="store_true",
           help="不测，只印出量过的：lorakit 与别的训练器，每档显存谁快多少"),
    option("--json", action="store_true", help="和 --table 一起用：印成 JSON"),
    SET,
)  # fmt: skip
def bench(args) -> int:
    """测速：真模型的尺寸、随机的权重，不用下载就知道练一步要多久、占多少显存。"""
    from lorakit.infer import xy

    steps = xy.numbers(args.steps, "--steps", int) if args.steps else []
    if args.recipes is not None:
        return _recipes(args, steps)
    if args.lesson:
        raise ConfigError(
            "--lesson 只和 --recipes 一起用：lorakit bench --recipes --lesson pixel。"
        )
    if len(steps) > 1:
        raise ConfigError(f"--steps：测速只要一个数，得到 {args.steps}；几个数是给 --recipes 的。")
    if args.table:
        from lorakit.machine import table

        made = table.load()
        print(json.dumps(made.data(), ensure_ascii=False) if args.json else made.text())
        return DONE
    if args.json:
        raise ConfigError(
            "--json 只和 --table 一起用；测速的结果本来就是 JSON，用 --out 说写到哪里。"
        )
    import torch

    from lorakit.machine import bench as speed

    source = args.config or ("qwen-image" if torch.cuda.is_available() else "tiny-qwen-image")
    ways = ["ours", *([args.baseline] if args.baseline else []), *(["plain"] if args.plain else [])]
    config = settings(source, args.set)
    report = speed.run(config, ways, *(steps or [10]), args.warm, args.tier, args.trace)
    print(report.text())
    print(f"也写在：{report.save(args.out or Path('bench.json'))}")
    return WRONG_INPUT if report.rows[0].error else DONE


def _recipes(args, steps: list[int]) -> int:
    """比配方：跑没跑完的格子，印出表；--table 只印跑过的。"""
    from lorakit.judge import agreement, arena, recipes, standings
    from lorakit.results import report

    steps = steps or list(arena.STEPS)
    if min(steps) < 1 or args.seeds < 1 or not args.minutes > 0:
        raise ConfigError(
            f"--steps、--seeds 至少是 1，--minutes 要大于 0；得到 {args.steps}、{args.seeds}、"
            f"{args.minutes:g}。"
        )
    out = args.out or Path("runs/recipes")
    chosen, tasks = recipes.named(args.recipes), recipes.tasks(args.lesson)
    finished = True
    if not args.table:
        until = time.monotonic() + 60 * args.minutes
        finished = arena.run(
            out, lambda rows: arena.plan(rows, chosen, tasks, args.seeds), until, steps, args.set
        )
    rows, names = arena.read(out), [task.name for task in tasks]
    made = {"table": standings.table(rows, names), "agreement": agreement.agreement(rows, names)}
    said = standings.text(made["table"]) + agreement.text(made["agreement"])
    print(json.dumps(made, ensure_ascii=False) if args.json else said)
    if any(one["lr"] for one in made["table"]):
        size = {"figsize": (8, 1 + 0.5 * len(tasks)), "dpi": 110}
        with report.figure_to(out / "standings.png", **size) as figure:
            standings.draw(figure.subplots(1, 2), made["table"])
        if not args.json:
            print(f"画成的图：{out / 'standings.png'}")
    if not finished:
        print(f"没跑完：再运行同一条命令就接着来。写好的在 {out / arena.FILE}。")
    return DONE
