"""画判断用的图：底模只开一次，一个个检查点换上去；画过的放在结果文件夹的 judge 里，下次直接取。"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from PIL import Image

from lorakit import infer, lora
from lorakit.cache.whole import whole as digest_of
from lorakit.config import Config
from lorakit.data import read_image
from lorakit.data.color import on_white
from lorakit.files import Unreadable, read_json, write_text
from lorakit.lora import full
from lorakit.results import checkpoint, report

BASE = 0  # 第 0 步：没有 LoRA 的底模
APART = 1000  # 两轮种子隔这么远：一轮里第 i 题用的是 起点 + i
KEYS = "drawn.json"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Question:
    """一道题：说什么、画多大（宽, 高）、照着哪几张图改（不是编辑就没有）、希望看到什么。"""

    prompt: str
    size: tuple[int, int]
    controls: tuple[Image.Image, ...] = ()
    wanted: Mapping[str, str] = field(default_factory=dict)  # 考官要看到的，如 object: cat
    answer: Image.Image | None = None  # 改对了应是这样

    @property
    def kind(self) -> tuple:
        """能一起画的：一样大，都是画的或都是改的。"""
        return self.size, bool(self.controls)


class Studio:
    """画室：`draw(第几步, 题的名字, 第几轮种子)` -> 一串图。"""

    def __init__(
        self,
        config: Config,
        family,
        paper: Mapping[str, Sequence[Question]],
        progress: Progress | None = None,
    ):
        """
        Args:
            paper: 题的名字（也是文件夹名）-> 这一组题。
            progress: 函数 (在做什么, 第几张, 共几张)。
        """
        self.config, self.family, self.paper = config, family, paper
        self.run, self.progress = config.run.output, progress or (lambda *_: None)
        self._pipe, self._on = None, None

    def draw(self, step: int, name: str, turn: int) -> list[Image.Image]:
        """第 step 步的检查点（0 是底模）画 name 这一组题，用第 turn 轮种子。"""
        questions = self.paper[name]
        place = f"checkpoint-{step}" if step else "base"
        home = self.run / "judge" / place / f"{name}-{turn}"
        key, files = self._key(step, questions, turn), _files(home, len(questions))
        with suppress(Unreadable):
            if read_json(home / KEYS, {"key": str})["key"] == key and all(
                file.is_file() for file in files
            ):
                return [read_image(file) for file in files]
        pipe, images = self._open(step), []
        seed = self.config.sample.seed + APART * (turn + 1)
        for _, group in groupby(enumerate(questions), key=lambda one: one[1].kind):
            part = list(group)
            settings = self.config.sample.model_copy(update={"seed": seed + part[0][0]})
            images += self._few(pipe, [question for _, question in part], settings)
            self.progress(f"画 {place} 的 {name}", len(images), len(questions))
        for image, file in zip(images, files, strict=True):
            report.save_image(image, file)
        write_text(home / KEYS, json.dumps({"key": key}))
        return [on_white(image) for image in images]  # 透明的存着，眼睛看的是白底上的

    def _few(self, pipe, questions: Sequence[Question], settings) -> list[Image.Image]:
        prompts, size = [one.prompt for one in questions], questions[0].size
        controls = [one.controls for one in questions]
        if questions[0].controls:
            return infer.edit(self.family, pipe, prompts, controls, settings, size)
        return infer.generate(self.family, pipe, prompts, settings, size)

    def _key(self, step: int, questions: Sequence[Question], turn: int) -> str:
        """什么都一样才能用画过的：权重、底模、题、怎么画。"""
        folder = checkpoint.folder_of(self.run, step)
        weights = checkpoint.facts_of(folder).get(checkpoint.SUM) or _sizes(folder)
        sample, model = self.config.sample, self.config.model
        asked = [
            [
                one.prompt,
                *one.size,
                *(_digest(c.tobytes()) for c in one.controls),
            ]
            for one in questions
        ]
        how = [sample.steps, sample.guidance, sample.seed, turn]
        base = [model.family, model.path, model.quantize, model.precision]
        base += ["clear"] * self.family.clear
        base += [digest_of(home) for home in [self.family.folder / "transformer"] if home.is_dir()]
        text = json.dumps([weights if step else "", base, how, asked], ensure_ascii=False)
        return _digest(text.encode())

    def _open(self, step: int):
        """这个检查点的管线；LoRA 只换文件，全量微调的换整个 Transformer。"""
        if self._on == step:
            return self._pipe
        folder = checkpoint.folder_of(self.run, step) if step else None
        whole = folder is not None and full.find(folder) is not None
        if self._pipe is None or self.config.lora.kind == "full":
            asked = [one for questions in self.paper.values() for one in questions]
            looks = [infer.seen(self.family, one.controls, one.size) for one in asked]
            controls = looks if all(looks) else None  # 不全是改图的，要看图的那几句画时再编码
            prompts = [one.prompt for one in asked]
            weights = folder if whole else None
            self._pipe = infer.open_for(
                self.family, weights, self.config.sample.guidance, prompts, controls
            )
        if not whole:
            if getattr(self._pipe.transformer, "peft_config", None):
                self._pipe.unload_lora_weights()
            if folder is not None:
                file = checkpoint.exported(folder)
                lora.put_on(self._pipe, file, original=self.family.original)
        self._on = step
        return self._pipe


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _files(home: Path, count: int) -> list[Path]:
    return [home / f"{i + 1:02d}.png" for i in range(count)]


def _sizes(folder: Path) -> str:
    """没有记指纹的检查点（别处拷来的）：看各个文件的大小与时间。"""
    facts = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")]
    return str(sorted(facts))
