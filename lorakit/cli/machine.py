"""看机器的命令：doctor 体检，bench 测速。"""

import sys
from pathlib import Path


def _load(args):
    from lorakit.config import load_config

    source = Path(args.config) if Path(args.config).is_file() else args.config
    return load_config(source, args.set)


def doctor(args) -> int:
    """三色的清单；有一项红的就返回 1。"""
    from lorakit.machine import doctor as checks

    config = _load(args) if args.config else None
    found = checks.examine(config, args.tier, online=not args.offline)
    for check in found:
        print(check.text(colour=sys.stdout.isatty()))
    bad = sum(check.level == checks.BAD for check in found)
    print(f"有 {bad} 项不行（红）。" if bad else "可以练。")
    return 1 if bad else 0


def bench(args) -> int:
    """测几种走法，打印一张表，另存 JSON。"""
    import torch

    from lorakit.machine import bench as speed

    args.config = args.config or ("qwen-image" if torch.cuda.is_available() else "tiny-qwen-image")
    ways = ["ours", *([args.baseline] if args.baseline else []), *(["plain"] if args.plain else [])]
    report = speed.run(_load(args), ways, args.steps, args.warm, args.tier, args.trace)
    print(report.text())
    print(f"也写在：{report.save(args.out)}")
    return 1 if report.rows[0].error else 0
