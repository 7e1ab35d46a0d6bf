"""在一张显卡上排练各预设的整个训练：五种宽高比的假照片、检验、样张、接着练；写下峰值、余量与用时。

    python tests/measure_whole_runs.py 结果文件夹 [预设 …]

每个预设自成一个进程，当作它名字里那么大的卡（没写多大的就用整块）；不写预设就走遍 12 到 80 GB 的。
`预设:设置=值,设置=值` 另改几项。每个预设的账写成 结果文件夹/预设.json，走完一个环节就写一次；
合起来的一行行写在 结果文件夹/rows.json，doctor 的预告也在里面。放不下、出错都是一行，不会停下。
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from lorakit.config import load_config, presets
from lorakit.families import open_blank
from lorakit.machine import doctor, estimate

MOST = 600  # 一个预设最多几秒


def named(job: str) -> tuple[str, list[str], float | None]:
    """`预设:设置=值,…` -> (预设, 设置, 当作多大的卡)。"""
    name, _, sets = job.partition(":")
    found = re.search(r"-(\d+)gb$", name)
    return name, [one for one in sets.split(",") if one], float(found[1]) if found else None


def predicted(name: str, sets: list[str], tier: float | None) -> float:
    """doctor 预告的显存峰值，GiB。"""
    config = load_config(name, sets)
    total = torch.cuda.mem_get_info()[1] / 2**30 if torch.cuda.is_available() else 80.0
    capacity = estimate.usable(tier) if tier else total
    with tempfile.TemporaryDirectory() as folder:
        family = open_blank(config, Path(folder), torch.device("meta"), torch.bfloat16)
        asked = estimate.measure(family, config)
        again, _ = doctor.fitting(asked, config, capacity)
        return asked.largest(config, again, capacity * estimate.GIB) / estimate.GIB


def measure(job: str, out: Path) -> dict:
    """排练一个预设 -> 一行。"""
    name, sets, tier = named(job)
    file, log = out / f"{name}.json", out / f"{name}.log"
    command = [sys.executable, "-m", "lorakit", "rehearse", name, "--mixed", "--json", str(file)]
    command += [part for one in sets for part in ("--set", one)]
    command += ["--tier", f"{tier:g}"] if tier else []
    start = time.time()
    with log.open("w", encoding="utf-8") as said:
        try:
            code = subprocess.run(command, stdout=said, stderr=said, timeout=MOST).returncode
        except subprocess.TimeoutExpired:
            code = -1
    row = {"preset": name, "set": sets, "tier": tier, "code": code}
    row["wall"] = round(time.time() - start, 1)
    row["doctor"] = round(predicted(name, sets, tier), 2)
    if file.is_file():
        found = json.loads(file.read_text("utf-8"))
        stages = [one for one in found["rows"] if not one["skipped"]]
        worst = max(stages, key=lambda one: one["need"], default={"stage": "", "need": 0.0})
        row |= {"fits": found["fits"], "margin": found["margin"], "largest": worst["stage"]}
        row |= {"need": worst["need"], "step": (found["whole"] or {}).get("each")}
        row["compiling"] = {one["key"]: round(one["compiling"], 1) for one in stages}
        row["errors"] = {one["key"]: one["error"] for one in stages if one["error"]}
    return row


def main(out: Path, jobs: list[str]) -> int:
    """走完 jobs，返回没有走完的有几个。"""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for job in jobs or [n for n in presets() if not n.startswith("tiny-") and "full" not in n]:
        rows.append(measure(job, out))
        text = json.dumps(rows, ensure_ascii=False, indent=1)
        (out / "rows.json").write_text(text, encoding="utf-8")
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
        print((out / f"{rows[-1]['preset']}.log").read_text("utf-8")[-2500:], flush=True)
    return sum(row["code"] != 0 for row in rows)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
