"""一个法官：对每个检查点画图、请眼睛看，亮三个灯，说该用哪一个、为什么。

教程：notebooks/03_train_qwen.ipynb
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lorakit.config import Config, load_config
from lorakit.errors import LorakitError
from lorakit.families import open_family
from lorakit.hub.bundled import tiny_models
from lorakit.judge import copying
from lorakit.judge.drawing import BASE, Progress, Question, Studio
from lorakit.judge.hub_eye import HubEye
from lorakit.judge.looking import Eye, Seen
from lorakit.judge.taught import Taught, taught
from lorakit.judge.tiny_eye import TinyEye
from lorakit.lora import full
from lorakit.results import checkpoint, heldout, verdict
from lorakit.results import folder as run_folder
from lorakit.results.evidence import Share, newcombe
from lorakit.results.verdict import RED, Judgement, Verdict

STARTED = "开始抄了"  # 画面对了，还能用，只是晚了一点
SEEDS = 2  # 每题几个种子；少于两个，抄没抄就没有对照


def eye_for(name: str | None, config: Config) -> Eye:
    """--eye 写的 -> 眼睛；不写就看底模：微型模型用考官。

    Raises:
        LorakitError: 真模型没有点名用哪只眼睛：那要下载。
    """
    if name == TinyEye.name or (name is None and config.model.path in tiny_models()):
        return TinyEye()
    if name is None:
        raise LorakitError(
            "真模型画的图，小世界的考官看不懂。请加 --eye dinov2（看像不像、抄没抄，下载约 350 MB）"
            "或 --eye siglip（还看听不听话，约 800 MB），也可以写一个下载好的文件夹。"
        )
    return HubEye(name)


class Judge:
    """用一只眼睛看一次训练的检查点：`Judge(eye)(结果文件夹)` -> Judgement。"""

    def __init__(self, eye: Eye, seeds: int = SEEDS, prompts: Sequence[str] = ()):
        """
        Args:
            seeds: 每题画几遍，换着种子；至少 2。
            prompts: 用这几句看画面；不写就由眼睛照训练图与描述出题。

        Raises:
            LorakitError: 种子少于两个。
        """
        if seeds < SEEDS:
            raise LorakitError(f"--seeds：至少 {SEEDS} 个种子，抄没抄才有对照；得到 {seeds}。")
        self.eye, self.seeds, self.prompts = eye, seeds, tuple(prompts)

    def __call__(
        self,
        config: Config,
        steps: Sequence[int] = (),
        progress: Progress | None = None,
        family=None,
    ) -> Judgement:
        """看 config.run.output 里的检查点，把判断写进 judge.json 并返回。

        Args:
            steps: 只看这几步的；不写就全看。
            progress: 函数 (在做什么, 第几张, 共几张)。

        Raises:
            LorakitError: 没有检查点，或训练图不在了。
        """
        run = config.run.output
        chosen = _steps(run, steps)
        family = family or open_family(config)
        about = taught(config, family)
        paper = self.questions(about)
        studio = Studio(config, family, paper, progress)
        compared = [name for name in paper if name != copying.NAME and self.eye.against_base]
        base = {name: self._draw(studio, BASE, name) for name in compared}
        metrics, verdicts = run_folder.read(run), {}
        for step in chosen:
            drawn = {name: self._draw(studio, step, name) for name in paper}
            picture = self.eye.picture(about, Seen(paper, drawn, base))
            copied = copying.light(self.eye, about, paper, drawn)
            verdicts[step] = verdict.judge(metrics, step, picture, copied, _views(about, step))
        judgement = choose(self.eye.name, verdicts)
        verdict.save(run, judgement)
        return judgement

    def questions(self, about: Taught) -> dict[str, list[Question]]:
        """全部的题：眼睛出的，加看抄没抄用的训练描述；空的组不画。"""
        paper = self.eye.questions(about, self.prompts)
        paper[copying.NAME] = copying.questions(about, self.eye.copies)
        return {name: questions for name, questions in paper.items() if questions}

    def _draw(self, studio: Studio, step: int, name: str):
        return [studio.draw(step, name, turn) for turn in range(self.seeds)]


def choose(eye: str, verdicts: dict[int, Verdict]) -> Judgement:
    """该用哪一个：学到了的里面，画面不比最好的差的，取留出集损失最低的；都没有就说为什么。"""
    later = {step: [verdicts[s] for s in verdicts if s > step] for step in verdicts}
    for step, one in verdicts.items():  # 后来的检查点认得出了，它就不是坏了，是还早
        if one.word == "画坏了" and any(v.lights[1].color != RED for v in later[step]):
            said = "画的还认不出来，后面的检查点就认得出了。"
            verdicts[step] = replace(one, word="还早", sentence=said)
    good = [step for step, one in verdicts.items() if one.word == "学到了"]
    if not good:
        started = [step for step, one in verdicts.items() if one.word == STARTED]
        return Judgement(eye, verdicts, min(started, default=None), _none(verdicts, started))
    top = max(good, key=lambda step: _done(verdicts[step]))
    tied = [step for step in good if not _clearly_less(verdicts[step], verdicts[top])]
    take, because = _lowest({step: verdicts[step].lights[0].facts for step in tied})
    why = "三个灯都好"
    if len(good) > 1:
        why += f"；第 {'、'.join(map(str, tied))} 步的画面分不出高下，{because}"
    others = [f"第 {step} 步{one.word}" for step, one in verdicts.items() if step not in good]
    return Judgement(eye, verdicts, take, f"{why}。{'，'.join(others)}{'。' * bool(others)}")


def _views(about: Taught, step: int) -> float:
    """练到第 step 步，每张训练图看了几遍。"""
    train = about.config.train
    return step * train.batch_size * train.grad_accum / about.total


def _none(verdicts: dict[int, Verdict], started: list[int]) -> str:
    """没有一个三个灯都好的原因与办法，看最后一个检查点。"""
    final = verdicts[max(verdicts)]
    words = "，".join(f"第 {step} 步{one.word}" for step, one in verdicts.items())
    said = f"没有一个三个灯都好：{words}。"
    if started:
        return f"{said}第 {min(started)} 步画面对了，抄得最少；下次多存几个早一点的检查点。"
    return f"{said}最后一个{final.word}：{final.sentence}"


def _done(one: Verdict) -> float:
    facts = one.lights[1].facts
    return facts["right"][0] / facts["right"][1] if "right" in facts else facts["gain"][0]


def _clearly_less(one: Verdict, top: Verdict) -> bool:
    """画面明显不如最好的：差的区间不含 0。"""
    mine, best = one.lights[1].facts, top.lights[1].facts
    if "right" in mine:
        low, _ = newcombe(Share(*best["right"][:2]), Share(*mine["right"][:2]))
        return low > 0
    return mine["gain"][2] < best["gain"][1]


def _lowest(tied: dict[int, dict]) -> tuple[int, str]:
    """(取哪一步, 为什么)：留出集损失最低的；没有量过，或量的不是同一批留出图，就取最早的。"""
    change = {step: facts["change"] for step, facts in tied.items() if "change" in facts}
    if not change:
        return min(tied), "没有留出集的损失可比，取最早的"
    if len({str(facts.get(heldout.MARK)) for facts in tied.values()}) > 1:
        return min(tied), "它们的留出集损失量的不是同一批图，不能比，取最早的"
    return min(tied, key=lambda step: (change.get(step, 0.0), step)), "它的留出集损失最低"


def _steps(run: Path, steps: Sequence[int]) -> list[int]:
    have = [checkpoint.step_of(path) for path in checkpoint.all_of(run)]
    missing = [step for step in steps if step not in have]
    if missing or not have:
        what = f"没有第 {missing[0]} 步的检查点" if have else "没有检查点"
        known = "、".join(map(str, have)) or "一个也没有"
        raise LorakitError(f"“{run}”里{what}；有的是：{known}。先练完，或换一个结果文件夹。")
    chosen = sorted(steps) if steps else have
    for step in chosen:  # 画到一半才说有一个坏了，就白等了；全部权重的太大，轮到它再核对
        folder = checkpoint.folder_of(run, step)
        if full.find(folder) is None:
            checkpoint.exported(folder)
    return chosen


def scope(place: Path, steps: Sequence[int] = ()) -> tuple[Path, Sequence[int]]:
    """结果文件夹，或里面的一个检查点（就只看它）-> (结果文件夹, 只看哪几步)。

    Raises:
        LorakitError: 写了一个检查点，又要看别的步。
    """
    step = checkpoint.step_of(place)
    if step is None or (place / "config.yaml").is_file():
        return place, steps
    if set(steps) - {step}:
        raise LorakitError(
            f"“{place}”是第 {step} 步的检查点，又要看第 {'、'.join(map(str, steps))} 步："
            f"写结果文件夹“{place.parent}”，或不写要看哪几步。"
        )
    return place.parent, (step,)


def open_run(run: Path, sets: Sequence[str] = ()) -> Config:
    """结果文件夹 -> 它的设置；文件夹搬过家，就用现在的地方。

    Raises:
        LorakitError: 不是一次训练的结果。
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise LorakitError(
            f"“{run}”里没有 config.yaml，不是一次训练的结果文件夹。"
            "请写训练时的 run.output，例如 lorakit judge runs/mine。"
        )
    return load_config(file, [*sets, f"run.output={run}"])
