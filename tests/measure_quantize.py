"""量化的底模学得怎么样：ΔW 的方向与不量化时的余弦，练出的 LoRA 放回不量化的底模，留出集损失差多少。

    python tests/measure_quantize.py 5    # 几个种子；两个 CPU 核上每个种子约两分钟

每种量化练 120 步剪纸，在第 20、60、120 步比；一个种子一行，最后是平均与种子之间的标准差。
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from lorakit.config import load_config
from lorakit.tiny import samples
from lorakit.train import Trainer

KINDS = ("fp8", "fp8-matmul")
LOOKS = (20, 60, 120)


def trainer(home: Path, kind: str, seed: int) -> Trainer:
    quiet = ["eval.every=0", "sample.every=0", "sample.prompts=[]"]
    place = [f"data.folder={home / 'data'}", f"run.output={home / f'{kind}-{seed}'}"]
    how = [f"model.quantize={kind}", f"train.steps={LOOKS[-1]}", f"train.seed={seed}"]
    return Trainer(load_config("tiny-qwen-image", [*place, *how, *quiet]))


def changes(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
    """全部层的 ΔW 接成一条。"""
    pairs = [(name.replace("lora_A", "lora_B"), name) for name in parameters if "lora_A" in name]
    return torch.cat([(parameters[b] @ parameters[a]).detach().flatten() for b, a in pairs])


def walk(made: Trainer) -> dict[int, torch.Tensor]:
    """练完，返回 {第几步: ΔW}。"""
    return {step.step: changes(made.parameters) for step in made if step.step in LOOKS}


def measure(home: Path, seed: int) -> dict:
    plain = trainer(home, "none", seed)
    wanted, row = walk(plain), {"seed": seed, "none": plain.evaluate()}
    for kind in KINDS:
        made = trainer(home, kind, seed)
        got = walk(made)
        cosines = [torch.cosine_similarity(got[n], wanted[n], 0).item() for n in LOOKS]
        row[f"{kind} 余弦"] = [round(one, 3) for one in cosines]
        row[kind] = made.evaluate()
        with torch.no_grad():
            for name, value in plain.parameters.items():
                value.copy_(made.parameters[name])
        row[f"{kind} 放回"] = plain.evaluate()
    return row


def main(seeds: int):
    with tempfile.TemporaryDirectory() as folder:
        samples.write("papercut", Path(folder) / "data")
        rows = [measure(Path(folder), seed) for seed in range(seeds)]
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))
    base = [row["none"] for row in rows]
    spread = statistics.stdev(base) if seeds > 1 else 0.0
    print(f"不量化：{statistics.mean(base):.4f}，种子之间的标准差 {spread:.4f}")
    for kind in (*KINDS, *(f"{kind} 放回" for kind in KINDS)):
        worse = [row[kind] - row["none"] for row in rows]
        spread = statistics.stdev(worse) if seeds > 1 else 0.0
        print(f"{kind}：高 {statistics.mean(worse):+.4f}，标准差 {spread:.4f}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
