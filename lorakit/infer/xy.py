"""XY 网格：强度、种子、检查点任选一两样作横轴与纵轴，画成一张带标签的图；底模只载入一次。"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from PIL import Image

from lorakit import lora
from lorakit.config.groups import Sample
from lorakit.errors import ConfigError, WeightsError
from lorakit.infer import draw as infer_draw
from lorakit.infer.compare import set_strength
from lorakit.infer.edit import edit
from lorakit.lora.steps import whole
from lorakit.results import checkpoint, report

NAMES = {"strength": "强度", "step": "检查点", "seed": "种子"}


@dataclass(frozen=True)
class Axis:
    """一条轴：哪一种（NAMES 里的）、各格的值、各格的标签。"""

    kind: str
    values: tuple
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        """给人看的名字。"""
        return NAMES[self.kind]


def numbers(text: str, option: str, kind: type) -> list:
    """“0,0.5,1” -> 数；中文逗号也认。

    Raises:
        ConfigError: 有一项不是数，或者超出范围。
    """
    found = []
    for word in text.replace("，", ",").split(","):
        try:
            value = kind(word)
        except ValueError:
            value = None
        low, high = (0, 2**32 - 1) if kind is int else (-10, 10)
        if value is None or not low <= value <= high:
            raise ConfigError(
                f"{option}：“{word.strip()}”不行，每一项要是 {low} 到 {high} 的"
                f"{'整数' if kind is int else '数'}，用逗号隔开，例如 {option} 0,1,2。"
            )
        found.append(value)
    return found


def checkpoints(run: Path, text: str) -> Axis:
    """“all”或“100,200” -> 结果文件夹里的检查点。

    Raises:
        WeightsError: 文件夹里没有检查点、没有要的那个、或里面没有 LoRA。
    """
    saved = {checkpoint.step_of(path): path for path in checkpoint.all_of(run)}
    lost = {p for p in saved.values() if checkpoint.is_ours(p) and not whole(p)}  # 用到它才说
    saved = {s: p for s, p in saved.items() if p in lost or (p / lora.FILE).is_file()}
    wanted = (
        list(saved) if text == "all" else list(dict.fromkeys(numbers(text, "--checkpoints", int)))
    )
    missing = [step for step in wanted if step not in saved]
    if missing or not wanted:
        have = "、".join(map(str, saved)) or "一个也没有"
        what = f"没有第 {missing[0]} 步的检查点" if missing else "没有带 LoRA 的检查点"
        raise WeightsError(f"--checkpoints：“{run}”里{what}。有的是：{have}；也可以写 all。")
    files = tuple(checkpoint.exported(saved[step]) for step in wanted)
    return Axis("step", files, tuple(f"第 {step} 步" for step in wanted))


def axes(run: Path, strengths: str | None, seeds: str | None, steps: str | None) -> list[Axis]:
    """命令行的三项 -> 一两条轴，先写的次序是强度、检查点、种子；都没写就是空的。"""
    found = []
    if strengths is not None:
        values = tuple(numbers(strengths, "--strengths", float))
        found.append(Axis("strength", values, tuple(f"强度 {value:g}" for value in values)))
    if steps is not None:
        found.append(checkpoints(run, steps))
    if seeds is not None:
        values = tuple(numbers(seeds, "--seeds", int))
        found.append(Axis("seed", values, tuple(f"种子 {value}" for value in values)))
    if len(found) > 2:
        raise ConfigError("网格只有横纵两条轴：--strengths、--seeds、--checkpoints 最多写两样。")
    return found


def xy_grid(
    family, pipe, prompt: str, settings: Sample, size, x: Axis, y: Axis | None = None, control=None
) -> Image.Image:
    """横轴 x、纵轴 y 的每一格各画一张，拼成一张图；同一个种子与 generate 画的一样。

    Args:
        control: 编辑模型的几张控制图，没有就是从文字画起。
    """
    y = y or Axis("", (None,), (" ",))
    files = next((axis.values for axis in (x, y) if axis.kind == "step"), ())
    if files:
        pipe.unload_lora_weights()  # 只卸下 LoRA，底模不动
    for file in files:
        lora.check_fits(file, pipe.transformer, family.original)
    for file in files:
        with warnings.catch_warnings():  # PEFT 提醒“挂了不止一个”：这里正是要挂好几个
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            lora.put_on(pipe, file, _adapter(file), family.original)

    def draw(row, column) -> Image.Image:
        chosen = {y.kind: row, x.kind: column}
        strength = chosen.get("strength", 1.0)
        if files:
            pipe.set_adapters([_adapter(chosen["step"])], [strength])
        else:
            set_strength(pipe, strength)
        how = settings.model_copy(update={"seed": chosen.get("seed", settings.seed)})
        if control is None:
            return infer_draw.generate(family, pipe, [prompt], how, size)[0]
        return edit(family, pipe, [prompt], [control], how, size)[0]

    cells = [draw(row, column) for row, column in product(y.values, x.values)]
    wide = len(x.values)
    rows: Sequence = [cells[i : i + wide] for i in range(0, len(cells), wide)]
    names = ["\n".join(label.rsplit(" ", 1)) for label in y.labels]  # 左边窄，分两行
    return report.grid(rows, names, x.labels)


def _adapter(file: Path) -> str:
    return file.parent.name.replace("-", "_")  # checkpoint-100 -> checkpoint_100
