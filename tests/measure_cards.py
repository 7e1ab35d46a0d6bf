"""在一张显卡上重新量 `lorakit bench --table` 里我们的行：量完一行就写下一行，半路停下也不白量。

    python tests/measure_cards.py 新的.json "qwen-image --baseline seed" "qwen-image-24gb --tier 24"

每个参数是 `lorakit bench` 后面的那些；写下的每一行与随包的 assets/bench/measured.json 格式相同。
内存只有头一行算数。
"""

import datetime
import json
import shlex
import sys
from pathlib import Path

import torch

from lorakit.cli.main import COMMANDS
from lorakit.cli.options import parser
from lorakit.config import load_config
from lorakit.errors import LorakitError
from lorakit.machine import bench

SIZES = (12, 16, 24, 32, 40, 48, 80, 96, 140)  # 卡上标的 GB


def measure(line: str, first: bool) -> tuple[dict, str]:
    """`lorakit bench line` -> (measured.json 的一行, 给人看的表)。

    Raises:
        LorakitError: 放不下，或设置合不来。
    """
    args = parser(COMMANDS).parse_args(["bench", *shlex.split(line)])
    ways = ["ours", *([args.baseline] if args.baseline else []), *(["plain"] if args.plain else [])]
    config = load_config(args.config, args.set)
    steps = int(args.steps or 10)
    report = bench.run(config, ways, steps, args.warm, args.tier, args.trace)
    ours, *others = report.rows
    if ours.error:
        raise LorakitError(ours.error)
    total = torch.cuda.mem_get_info()[1] / 2**30
    row = {
        "date": datetime.date.today().isoformat(),
        "card": report.device,
        "memory": min(SIZES, key=lambda size: abs(size - total)),
        "preset": args.config,
        "set": args.set,
        "tier": args.tier,
        "command": f"lorakit bench {line}",
        "ceiling": round(report.ceiling, 1),
        "torch": torch.__version__,
        "bus": round(bench.copy_speed(torch.device("cuda")), 1),
        "step": round(ours.step, 4),
        "allocated": round(ours.allocated, 2),
        "host": round(ours.host, 2) if first else None,
    }
    for other in (one for one in others if not one.error):  # 放不下的就没有数
        row |= {other.way: round(other.step, 4)}
        row |= {f"{other.way}_allocated": round(other.allocated, 2)}
    return row, report.text()


def main(target: Path, lines: list[str]) -> int:
    """量完 lines，返回没量成的有几行。"""
    rows, failed = [], 0
    for line in lines:
        try:
            row, table = measure(line, first=not rows)
        except LorakitError as error:
            failed += 1
            print(f"没量成：{line}（{error}）", flush=True)
            continue
        rows.append(row)
        whole = ",\n".join(json.dumps(one, ensure_ascii=False) for one in rows)
        target.write_text(f"[\n{whole}\n]\n", encoding="utf-8")
        print(f"== lorakit bench {line}\n{table}\n", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
