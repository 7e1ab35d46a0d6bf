"""微型底模是怎样炼成的：从自己画的图出发，一步一步炼，每一步都可以单独重做。

用法：python -m lorakit.tiny.pretrain tiny-qwen-image --part vae --out DIR
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lorakit.families.qwen_image import single_frame
from lorakit.tiny.pretrain import base_edit, base_flux, base_qwen, base_qwen_2_1, vae
from lorakit.tiny.pretrain.calibrate import calibrate
from lorakit.tiny.pretrain.examiner import train_examiner
from lorakit.tiny.pretrain.tokenizer_flux import LENGTH

PARTS = {
    "tiny-qwen-image": {"vae": vae.train_vae, "base": base_qwen.train_base},
    "tiny-flux": {
        "vae": base_flux.train_vae,
        "base": base_flux.train_base,
        "distill": base_flux.train_distill,
    },
    "tiny-qwen-image-2.1": {"vae": base_qwen_2_1.train_vae, "base": base_qwen_2_1.train_base},
    "tiny-qwen-image-edit": {"base": base_edit.train_edit},  # VAE 与文生图底模共用
}
SAMPLING = {  # 打分时怎么画：一批几句 -> 管线的参数
    "tiny-qwen-image": lambda n: {"true_cfg_scale": 3.0, "negative_prompt": [" "] * n},
    "tiny-flux": lambda n: {"guidance_scale": 3.5, "max_sequence_length": LENGTH},
}


@torch.no_grad()
def measure(name: str, folder: Path, device, count: int = 200, sheet: Path | None = None) -> dict:
    """底模的成绩：count 句随机描述、20 步、stock 管线，由考官打分。"""
    from diffusers import DiffusionPipeline

    from lorakit.tiny.examiner import examine, share
    from lorakit.tiny.world import caption, random_scene

    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(device)
    single_frame(pipe.vae)  # 只换视频 VAE 的卷积；别的 VAE 没有，就什么也不变
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(4321)
    scenes = [random_scene(rng, two=0.0) for _ in range(count)]
    prompts = [caption(scene, english=i % 3 == 2) for i, scene in enumerate(scenes)]
    images = []
    for start in range(0, count, 40):
        part = prompts[start : start + 40]
        images += pipe(
            prompt=part, width=128, height=128, num_inference_steps=20,
            generator=torch.Generator("cpu").manual_seed(start), **SAMPLING[name](len(part)),
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


def jobs(args, device) -> dict:
    """要做的几步：步名 -> 做它的函数；--part 只挑其中一步。"""
    common = dict(device=device, steps=args.steps, minutes=args.minutes, workers=args.workers)
    common |= {"size": args.size} if args.size else {}
    if args.name == "examiner":
        steps = {
            "examiner": lambda: train_examiner(args.out, **common),
            "calibrate": lambda: calibrate(args.out, args.size or 2000, args.workers),
        }
        return {args.part: steps[args.part]} if args.part else steps
    learned = dict(batch=args.batch, start=args.start, **common)
    steps = {
        part: partial(train, args.out, **(common if part == "vae" else learned))
        for part, train in PARTS[args.name].items()
    }
    sheet = args.out / "samples.png"
    if args.name == "tiny-qwen-image-edit":
        steps["measure"] = partial(base_edit.measure_edit, args.out, device, sheet=sheet)
    elif args.name == "tiny-qwen-image-2.1":
        steps["measure"] = partial(base_qwen_2_1.measure, args.out, device, args.count, sheet)
    else:
        steps["measure"] = partial(measure, args.name, args.out, device, args.count, sheet)
    return {args.part: steps[args.part]} if args.part else steps


def main():
    parser = argparse.ArgumentParser(description="训练随包的微型模型")
    parser.add_argument("name", choices=[*PARTS, "examiner"])
    parser.add_argument(
        "--part",
        choices=["vae", "base", "distill", "measure", "examiner", "calibrate"],
        help="只做其中一步；不写就从头到尾",
    )
    parser.add_argument("--out", type=Path, required=True, help="写到哪个文件夹")
    parser.add_argument("--minutes", type=float, default=9, help="每一步最多几分钟")
    parser.add_argument("--steps", type=int, default=30_000, help="每一步最多几步")
    parser.add_argument("--size", type=int, help="画多少张图（试运行时改小）")
    parser.add_argument("--batch", type=int, default=256, help="底模一步看几张图（CPU 上用 64）")
    parser.add_argument("--start", type=Path, help="底模接着这个文件夹里的权重练")
    parser.add_argument("--workers", type=int, help="渲染用几个进程")
    parser.add_argument("--count", type=int, default=200, help="打分时画几张")
    args = parser.parse_args()
    known = [*PARTS.get(args.name, {}), "measure"]
    known = ["examiner", "calibrate"] if args.name == "examiner" else known
    if args.part and args.part not in known:
        parser.error(f"{args.name} 没有 {args.part} 这一步；它的步骤：{'、'.join(known)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # torch 2.11 起 cuDNN 的注意力遇到带偏置的输入（T5）会算出 NaN 的梯度：pytorch#196678
    torch.backends.cuda.enable_cudnn_sdp(False)
    args.out.mkdir(parents=True, exist_ok=True)
    report = args.out / "training.json"
    for part, job in jobs(args, device).items():
        done = job()
        facts = json.loads(report.read_text()) if report.exists() else {}  # 别的进程也在写
        facts[part] = done
        report.write_text(json.dumps(facts, indent=1, ensure_ascii=False))
    print(json.dumps(facts, ensure_ascii=False))


if __name__ == "__main__":
    main()
