"""微型底模是怎样炼成的：从自己画的图出发，一步一步炼，每一步都可以单独重做。

用法：python -m lorakit.tiny.pretrain tiny-qwen-image --part vae --out DIR
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lorakit.families.qwen_image import single_frame
from lorakit.tiny.pretrain_base import train_base
from lorakit.tiny.pretrain_edit import measure_edit, train_edit
from lorakit.tiny.pretrain_examiner import train_examiner
from lorakit.tiny.pretrain_vae import train_vae


@torch.no_grad()
def measure_base(
    folder: Path, device, count: int = 200, guidance: float = 3.0, sheet: Path | None = None
) -> dict:
    """底模的成绩：count 句随机描述、20 步、stock 管线，由考官打分。"""
    from diffusers import QwenImagePipeline

    from lorakit.tiny.examiner import examine, share
    from lorakit.tiny.world import caption, random_scene

    pipe = QwenImagePipeline.from_pretrained(folder, torch_dtype=torch.float32).to(device)
    single_frame(pipe.vae)
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(4321)
    scenes = [random_scene(rng, two=0.0) for _ in range(count)]
    prompts = [caption(scene, english=i % 3 == 2) for i, scene in enumerate(scenes)]
    images = []
    for start in range(0, count, 40):
        part = prompts[start : start + 40]
        images += pipe(
            part, negative_prompt=[" "] * len(part), true_cfg_scale=guidance, width=128, height=128,
            num_inference_steps=20, generator=torch.Generator("cpu").manual_seed(start),
        ).images  # fmt: skip
    if sheet:
        tiles = [np.asarray(image) for image in images[: len(images) // 12 * 12]]
        rows = [np.concatenate(tiles[i : i + 12], 1) for i in range(0, len(tiles), 12)]
        Image.fromarray(np.concatenate(rows, 0)).save(sheet)
    verdicts = examine(images)
    things = [scene.things[0] for scene in scenes]
    return {
        "object": share(verdicts, object=[t.kind for t in things]),
        "color": share(verdicts, color=[t.color for t in things]),
        "background": share(verdicts, background=[s.background for s in scenes]),
        "side": share(verdicts, side=[t.side for t in things]),
        "size": share(verdicts, size=[t.size for t in things]),
    }


def main():
    parser = argparse.ArgumentParser(description="训练随包的微型模型")
    parser.add_argument("name", choices=["tiny-qwen-image", "tiny-qwen-image-edit", "examiner"])
    parser.add_argument(
        "--part", choices=["vae", "base", "measure"], help="只做其中一步；不写就从头到尾"
    )
    parser.add_argument("--out", type=Path, required=True, help="写到哪个文件夹")
    parser.add_argument("--minutes", type=float, default=9, help="每一步最多几分钟")
    parser.add_argument("--steps", type=int, default=30_000, help="每一步最多几步")
    parser.add_argument("--size", type=int, help="画多少张图（试运行时改小）")
    parser.add_argument("--batch", type=int, default=256, help="底模一步看几张图（CPU 上用 64）")
    parser.add_argument("--start", type=Path, help="底模接着这个文件夹里的权重练")
    parser.add_argument("--workers", type=int, help="渲染用几个进程")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    common = dict(device=device, steps=args.steps, minutes=args.minutes, workers=args.workers)
    common |= {"size": args.size} if args.size else {}
    jobs = {
        "examiner": lambda: train_examiner(args.out, **common),
        "vae": lambda: train_vae(args.out, **common),
        "base": lambda: train_base(args.out, batch=args.batch, start=args.start, **common),
        "measure": lambda: measure_base(args.out, device, sheet=args.out / "samples.png"),
    }
    wanted = ["vae", "base", "measure"]
    if args.name == "tiny-qwen-image-edit":  # VAE 与文生图底模共用，不另炼
        sheet = args.out / "samples.png"
        jobs["base"] = lambda: train_edit(args.out, batch=args.batch, start=args.start, **common)
        jobs["measure"] = lambda: measure_edit(args.out, device, sheet=sheet)
        wanted = ["base", "measure"]
    if args.name == "examiner":
        wanted = ["examiner"]
    elif args.part:
        wanted = [args.part]
    args.out.mkdir(parents=True, exist_ok=True)
    report = args.out / "training.json"
    facts = json.loads(report.read_text()) if report.exists() else {}
    for part in wanted:
        facts[part] = jobs[part]()
        report.write_text(json.dumps(facts, indent=1, ensure_ascii=False))
    print(json.dumps(facts, ensure_ascii=False))


if __name__ == "__main__":
    main()
