"""照一份样子练一次、交出文件、请法官看：记录病人和读者自己的治疗，走的是同一条路。"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from lorakit import data, lora
from lorakit.config import Config, load_config
from lorakit.files import read_words
from lorakit.judge import Judge, eye_for
from lorakit.judge.drawing import Progress, Question, Studio
from lorakit.judge.tiny_eye import TinyEye
from lorakit.lab.display import Placed
from lorakit.lab.hospital import photos
from lorakit.lab.hospital.cases import Case, Plan
from lorakit.lab.hospital.handover import SCRIPTS, Script, hand_over
from lorakit.lab.runner import Run
from lorakit.lora.audit import Audit, audit
from lorakit.results import folder as run_folder
from lorakit.results.evidence import Share, mean_difference, newcombe
from lorakit.results.verdict import Verdict
from lorakit.tiny import lessons
from lorakit.tiny.edits import change
from lorakit.tiny.examiner import examine, share
from lorakit.tiny.world import Scene, caption, render

DRAW, TURNS, SEEDS = 10, 2, 4  # 画一张走几步；画几轮；认帽子时戴与不戴各画几张作对照
MOSTLY = 0.5  # 没让戴的帽子、没叫的 ohwx、照抄的，最多这么多
FIXED = (
    *("eval.every=20", "train.save_every=1000", f"sample.steps={DRAW}", "train.keep=1"),
    "train.schedule=constant",  # 病历就是这样练的
)
NAMES = {  # 主诉 -> (怎么说, 1 是越多越好，-1 是越少越好)
    "right": ("画成了要的样子", 1),
    "kept": ("说某种颜色的猫，还是普通的猫", 1),
    "leaked": ("只说“猫”，画的却是 ohwx", -1),
    "twins": ("照训练描述画的，几乎就是训练图", -1),
    "hats": ("没让戴，却戴着帽子", -1),
}
LOSSES = {  # 主诉 -> (怎么说, 第几次检验, 哪几个 t)
    "start": ("没练时，留出集的损失", 0, slice(None)),
    "end": ("练完后，留出集的损失", -1, slice(None)),
    "fine": ("练完后，t 小的一半的损失", -1, slice(4)),
}


@dataclass(frozen=True)
class Checked(Placed):
    """一次复查：法官的判断、要数的比例（NAMES 里的，没有的不在）、要看的损失（LOSSES 里的）。"""

    verdict: Verdict
    shares: dict[str, Share]
    losses: dict[str, list[float]] = field(default_factory=dict)  # 每张留出图、每个 t 一个


def cured(case: Case, before: Checked, after: Checked) -> bool:
    """治好了：法官说的对，主诉也真的好了；要少的（帽子、照抄……），还得少到一半以下。"""
    sign = NAMES.get(case.measure, ("", 1))[1]
    few = sign > 0 or after.shares[case.measure] <= MOSTLY
    return after.verdict.word in case.words and few and gained(case.measure, before, after)[1] > 0


def gained(measure: str, before: Checked, after: Checked) -> tuple[float, float, str]:
    """主诉好了多少：(好的是正的, 95% 区间的下边, 一句话)；区间不含 0 才算真的好了。"""
    if measure in LOSSES:
        one, two = before.losses[measure], after.losses[measure]
        found = mean_difference(np.log(one), np.log(two), len(one) == len(two))
        gain, low, high = (float(-np.expm1(-value)) for value in found)
        said = f"{LOSSES[measure][0]}低了 {gain:.0%}（95% 区间 {low:.0%} 到 {high:.0%}）"
    else:
        name, sign = NAMES[measure]
        one, two = (x.shares[measure] for x in ((after, before) if sign > 0 else (before, after)))
        gain, (low, high) = float(one) - float(two), newcombe(one, two)
        said = f"{name}：好了 {100 * gain:+.0f} 个百分点"
        said += f"（95% 区间 {100 * low:+.0f} 到 {100 * high:+.0f}）"
    return gain, low, f"主诉：{said}。"


def configured(plan: Plan, home: Path, mend: Callable[[Path], object] | None = None) -> Config:
    """样子 -> 设置；图写到 home 里（mend 收到那个文件夹，可以改），结果在 home/run。"""
    own = [
        f"data.folder={photos.write(plan.photos, home / 'photos')}",
        f"run.output={home / 'run'}",
    ]
    if mend is not None:
        mend(home / "photos")
    own += [f"{name}={value}" for name, value in plan.settings.items()]
    base = load_config(plan.preset, [*FIXED, *own])
    return base.model_copy(
        update={"sample": base.sample.model_copy(update={"every": base.train.steps})}
    )


def checked(
    plan: Plan, run: Run, script: Script | None = None, progress: Progress | None = None
) -> tuple[Checked, Audit]:
    """练完的 run：照脚本交出文件，再请法官看 -> (复查, 文件的体检)。

    Args:
        script: 读者自己的脚本；不给就用 plan 里的那一段。
    """
    config, family = run.config, run.family
    script = script or SCRIPTS.get(plan.script)
    if script:
        found = hand_over(script, config.run.output, family)
    else:
        found = audit(lora.find(config.run.output), family.skeleton())
    steps = [config.train.steps]
    verdict = Judge(eye_for(None, config))(config, steps, progress, family).verdicts[steps[0]]
    return Checked(verdict, shares(config, verdict, family), losses(config)), found


def losses(config: Config) -> dict[str, list[float]]:
    """要看的几组损失：每张留出图、每个 t 一个数。"""
    exams = [
        np.array(m["held_each"]) for m in run_folder.read(config.run.output) if "held_each" in m
    ]
    return {what: exams[when][:, at].ravel().tolist() for what, (_, when, at) in LOSSES.items()}


def shares(config: Config, verdict: Verdict, family) -> dict[str, Share]:
    """复查要数的几个比例。"""
    facts = {**verdict.lights[1].facts, **verdict.lights[2].facts}
    found = {name: Share(*facts[name][:2]) for name in NAMES if name in facts}
    if any("ohwx" in read_words(file) for file in _captions(config)):
        scenes = lessons.character_scenes()[:12]
        said = [caption(scene) for scene in scenes]
        plain = [one.replace("ohwx ", "") for one in said]
        found["leaked"] = share(examine(_ask(config, family, "leaked", plain)), character="ohwx")
        found["hats"] = hats(_ask(config, family, "named", said), scenes * TURNS)
    return found


def _captions(config: Config) -> list[Path]:
    return sorted(config.data.sources[0].folder.rglob("*.txt"))


def _ask(config: Config, family, name: str, said: Sequence[str]) -> list[Image.Image]:
    """练好的照几句话画，换着种子画 TURNS 轮。"""
    paper = {name: [Question(one, (config.data.resolution,) * 2) for one in said]}
    studio = Studio(config, family, paper)
    turns = [studio.draw(config.train.steps, name, turn) for turn in range(TURNS)]
    return [image for images in turns for image in images]


def drawn(config: Config, name: str) -> list[Image.Image]:
    """法官画过的一组图；没有画过是空的。"""
    home = config.run.output / "judge" / f"checkpoint-{config.train.steps}" / name
    return [data.read_image(file) for file in sorted(home.glob("*.png"))]


def hats(images: Sequence[Image.Image], scenes: Sequence[Scene]) -> Share:
    """没说帽子的 ohwx 猫，戴着帽子的有几张：离戴着的样子近，还是离没戴的近。"""
    return Share.of([wears_hat(*pair) for pair in zip(images, scenes, strict=True)])


def wears_hat(image: Image.Image, scene: Scene) -> bool:
    """这张图里的猫戴没戴帽子。"""
    eye = TinyEye()
    me = eye.features([image])

    def far(hat: bool) -> float:
        known = [render(replace(change(scene, hat=hat), seed=900 + k)) for k in range(SEEDS)]
        return float(np.linalg.norm(eye.features(known) - me, axis=1).min())

    return far(True) < far(False)
