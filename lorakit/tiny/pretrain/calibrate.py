"""考官的门槛：什么时候说“看不出”。温度、把握、距离都在没练过的图上定，再在另一批上量误判。

用法：python -m lorakit.tiny.pretrain examiner --part calibrate --out DIR
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from lorakit import infer
from lorakit.config import load_config
from lorakit.families import open_family, pixels
from lorakit.results.evidence import Share
from lorakit.tiny import examiner
from lorakit.tiny.examiner import CALIBRATION, HEADS, UNSURE, WEIGHTS, Calibration
from lorakit.tiny.pretrain import corpus
from lorakit.tiny.world import caption, random_scene

WRONG = 0.01  # 小世界的图，主体被说成“看不出”的最多这么多
HALF = 0.5  # 别的头：把握不到一半就不说
FAR = 0.999  # 小世界的图，这么多都不该被当成外来的
RIDGE = 1e-3  # 协方差的对角线加一点，免得求逆时不稳
OTHERS = 200  # 每一种外来的图几张


def calibrate(out: Path, size: int, workers: int | None) -> dict:
    """定门槛，写 out/examiner-calibration.safetensors；返回在另一批图上的误判，各带 n 与区间。"""
    family = open_family(load_config("tiny-qwen-image"), torch.device("cpu"))
    mine = out / WEIGHTS.name  # 刚练好的；没有就是随包的
    model = examiner.load(mine if mine.exists() else WEIGHTS)
    fit, known = _pictures(family, size, 777, workers)
    scores, features = _look(model, fit)
    temperature = {name: _temperature(scores[name], known[:, i]) for i, name in enumerate(HEADS)}
    mean, covariance = features.mean(0), torch.cov(features.T)
    covariance += RIDGE * covariance.diagonal().mean() * torch.eye(len(mean))
    whiten = torch.linalg.cholesky(torch.linalg.inv(covariance))
    far = ((features - mean) @ whiten).norm(dim=1)
    sure = (scores["object"] / temperature["object"]).softmax(-1).amax(-1)
    limits = Calibration(
        temperature,
        dict.fromkeys(HEADS, HALF) | {"object": float(sure.quantile(WRONG))},
        mean.contiguous(),
        whiten.contiguous(),
        float(far.quantile(FAR)),
    )
    facts = {name: getattr(limits, name) for name in ("temperature", "least", "farthest")}
    tensors = {"mean": limits.mean, "whiten": limits.whiten}
    facts["rates"] = rates(model, limits, family, size, workers)
    about = {"facts": json.dumps(facts, ensure_ascii=False)}
    save_file(tensors, out / CALIBRATION.name, about)
    return facts


def rates(model, limits: Calibration, family, size: int, workers: int | None) -> dict[str, str]:
    """误判：小世界的图被说成看不出的、认错的，外来的图被认出来的；每种各有几张、区间多宽。"""
    seen, truth = _pictures(family, size, 778, workers)

    def ask(images: np.ndarray) -> list[str]:
        return _objects(images, limits, model)

    said = ask(seen)
    right = [HEADS["object"][label] for label in truth[:, 0]]
    answered = [(a, b) for a, b in zip(said, right, strict=True) if a != UNSURE]
    found = {
        "小世界的图，主体说看不出": Share.of([one == UNSURE for one in said]),
        "说出来的，主体说错": Share.of([a != b for a, b in answered]),
        "底模画的图，主体说看不出": Share.of([o == UNSURE for o in ask(_drawn(family))]),
    }
    for name, images in outsiders(seen).items():
        found[f"{name}，却说出了主体"] = Share.of([o != UNSURE for o in ask(images)])
    return {name: str(share) for name, share in found.items()}


def outsiders(world: np.ndarray) -> dict[str, np.ndarray]:
    """外来的图，每种 OTHERS 张 (N, 128, 128, 3) uint8：像照片的，和弄坏的小世界的图。"""
    rng, side = np.random.default_rng(5), world.shape[1]

    def grown(cells: int) -> np.ndarray:
        small = rng.integers(0, 256, (OTHERS, cells, cells, 3)).astype(np.uint8)
        rows = [
            Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC) for one in small
        ]
        return np.stack([np.asarray(row) for row in rows])

    flat = rng.integers(0, 256, (OTHERS, 1, 1, 3)).astype(np.uint8)
    part = world[:OTHERS].astype(int)
    leaves = [corpus.dead_leaves(rng, 2 * side).resize((side, side)) for _ in range(OTHERS)]
    return {
        "噪声": rng.integers(0, 256, (OTHERS, side, side, 3)).astype(np.uint8),
        "纯色": np.broadcast_to(flat, (OTHERS, side, side, 3)),
        "渐变": grown(2),
        "色块": grown(8),
        "像照片的（落叶模型）": np.stack([np.asarray(one) for one in leaves]),
        "字、纹理、落叶": np.stack([corpus.other_picture(rng) for _ in range(OTHERS)]),
        "颜色反过来的": 255 - world[:OTHERS],
        "两张叠在一起的": ((part + part[::-1]) // 2).astype(np.uint8),
    }


def _pictures(family, size: int, seed: int, workers) -> tuple[np.ndarray, np.ndarray]:
    """没练过的渲染图与标签；前四分之一换成 VAE 的重建，和画出来的图一样糊。"""
    images, labels = corpus.examiner_corpus(size, seed=seed, workers=workers)
    with torch.no_grad():
        for i in range(size // 4):
            x = pixels.to_pixels(Image.fromarray(images[i]))
            images[i] = np.asarray(pixels.to_image(family.decode(family.encode_images(x)[0])[0]))
    return images, labels


def _drawn(family, count: int = 100) -> np.ndarray:
    """底模照随机的描述画的图。"""
    rng = np.random.default_rng(4321)
    said = [caption(random_scene(rng, two=0.0)) for _ in range(count)]
    sample = load_config("tiny-qwen-image").sample
    pipe = infer.open_pipeline(family)
    return np.stack([np.asarray(i) for i in infer.generate(family, pipe, said, sample, (128, 128))])


@torch.no_grad()
def _look(model, images: np.ndarray):
    scores, features = [], []
    for part in torch.from_numpy(images).split(200):
        score, mean = model.look(part.permute(0, 3, 1, 2).float() / 127.5 - 1)
        scores.append(score)
        features.append(mean)
    return {name: torch.cat([one[name] for one in scores]) for name in HEADS}, torch.cat(features)


def _temperature(score: torch.Tensor, labels: np.ndarray) -> float:
    """让说出的把握与说对的比例最相称的温度：知道答案的图上，交叉熵最小。"""
    truth = torch.from_numpy(labels)
    known = truth != -100
    choices = torch.linspace(0.25, 4, 376)  # 全对的头没有最好的温度，到 0.25 为止
    losses = [F.cross_entropy(score[known] / t, truth[known]).item() for t in choices]
    return float(choices[int(np.argmin(losses))])


def _objects(images: np.ndarray, limits: Calibration, model) -> list[str]:
    """每张图，考官说主体是什么。"""
    return [
        verdict.object
        for start in range(0, len(images), 200)
        for verdict in examiner.examine(
            [Image.fromarray(image) for image in images[start : start + 200]], limits, model
        )
    ]
