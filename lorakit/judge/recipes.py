"""配方：一份设置的改动，是谁推荐的写在文件里；课题：哪个微型模型学哪一课。

配方只管怎么学（层、秩、学习率、噪声、权重衰减……），学什么、学多久、每步几张大家都一样。
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lorakit.config import Config, load_config
from lorakit.config.explain import close_to
from lorakit.config.read import bounded
from lorakit.errors import ConfigError
from lorakit.files import ASSETS, Unreadable, read_words
from lorakit.tiny import lessons, samples
from lorakit.tiny.lessons import CharacterLesson
from lorakit.tiny.styles import STYLES

PLACE = ASSETS / "recipes"
RECORDED = ASSETS / "recordings" / "recipes"  # 跑过的格子：从前的预设与现在的，三个种子
PUBLISHED = RECORDED / "published"  # 别的训练器推荐的配方跑过的格子
OURS = "lorakit"
GRID = (3.5e-4, 7e-4, 1.4e-3, 2.8e-3)  # 大家都试的学习率
HIGHEST = 0.05  # 最好的在格子边上就再加倍，最多到这里
BATCH = 8  # 每步看几张，大家一样；陪着同类图片的，两样各一半


class Recipe(BaseModel):
    """一份配方。"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    about: str
    """一句话：谁的，什么地方与众不同。"""
    source: str = ""
    """出处：文件在哪、哪一次提交；自己的就空着。"""
    seen: date | None = None
    """哪天看的。"""
    settings: dict[str, Any] = {}
    """改哪些设置：{设置名: 值}；没写的与预设一样。"""
    families: dict[str, dict[str, Any]] = {}
    """只对一个家族的改动：{家族: {设置名: 值}}。"""

    def sets(self, family: str) -> list[str]:
        """写成 --set 的样子。"""
        chosen = {**self.settings, **self.families.get(family, {})}
        return [f"{key}={json.dumps(value)}" for key, value in chosen.items()]


@dataclass(frozen=True)
class Task:
    """一道课题：哪个预设学哪一课；sets 是这道课题另外的设置。"""

    name: str
    lesson: str
    preset: str
    sets: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """图上的名字。"""
        _, edit, style = self.lesson.rpartition("edit-")
        if self.lesson == CharacterLesson.name:
            said = "角色" + ("，不陪练" if self.name.endswith("-alone") else "，陪练")
        else:
            said = ("改图：" if edit else "") + STYLES[style][0]
        return f"FLUX {said}" if self.family == "flux" else said

    @property
    def family(self) -> str:
        """预设是哪一家的。"""
        return load_config(self.preset).model.family

    def data(self, home: Path) -> list[str]:
        """写好这一课的样例图（写过的直接用），返回要改的设置。"""
        own = {setting.partition("=")[0] for setting in self.sets}
        places = []
        for key, name in lessons.lesson(self.lesson).data.items():
            if key in own:  # 不用同类图片的那一道
                continue
            if not (home / name).exists():
                samples.write(name, home / name)
            places.append(f"{key}={home / name}")
        return places


def _tasks() -> dict[str, Task]:
    alone = ("data.class_folder=null", f"train.batch_size={BATCH}")
    both = (f"train.batch_size={BATCH // 2}",)
    cat, styles = CharacterLesson.name, list(samples.STYLES)
    made = [Task(style, style, "tiny-qwen-image", (f"train.batch_size={BATCH}",))
            for style in styles]  # fmt: skip
    made += [Task(cat, cat, "tiny-character", both),
             Task(f"{cat}-alone", cat, "tiny-character", alone)]  # fmt: skip
    made += [Task(f"edit-{name}", f"edit-{name}", "tiny-qwen-image-edit",
                  (f"train.batch_size={BATCH}",)) for name in ("papercut", "lineart")]  # fmt: skip
    made += [Task(f"flux-{style}", style, "tiny-flux", (f"train.batch_size={BATCH}",))
             for style in styles]  # fmt: skip
    made += [Task(f"flux-{cat}", cat, "tiny-flux", both),
             Task(f"flux-{cat}-alone", cat, "tiny-flux", alone)]  # fmt: skip
    return {task.name: task for task in made}


TASKS = _tasks()


def load(path: Path) -> Recipe:
    """读一份配方。

    Raises:
        ConfigError: 读不懂，或里面的设置哪个微型模型也不认得。
    """
    try:
        tree = bounded(read_words(path))
        recipe = Recipe.model_validate(tree)
    except (Unreadable, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(
            f"配方“{path}”读不懂：{str(error).splitlines()[0]}。应为 YAML：name、about、"
            "source、seen、settings（设置名: 值）、families。照着 lorakit/assets/recipes 里的写。"
        ) from error
    for preset in {task.preset for task in TASKS.values()}:
        load_config(preset, recipe.sets(load_config(preset).model.family))
    return recipe


def shipped() -> list[str]:
    """随包的配方名，自己的在最前。"""
    return sorted((path.stem for path in PLACE.glob("*.yaml")), key=lambda name: name != OURS)


def named(names: Sequence[str]) -> list[Recipe]:
    """几个名字或文件 -> 配方；一个也不写就是随包的全部。

    Raises:
        ConfigError: 没有这个配方。
    """
    found = []
    for name in names or shipped():
        path = PLACE / f"{name}.yaml" if name in shipped() else Path(name)
        if not path.is_file():
            raise ConfigError(_unknown("配方", name, shipped()) + "也可以写一个 YAML 文件。")
        found.append(load(path))
    return found


def tasks(names: Sequence[str]) -> list[Task]:
    """几个课题名 -> 课题；一个也不写就是全部。

    Raises:
        ConfigError: 没有这个课题。
    """
    for name in names:
        if name not in TASKS:
            raise ConfigError(_unknown("--lesson：课题", name, list(TASKS)))
    return [TASKS[name] for name in names or TASKS]


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    near = close_to(name, dict.fromkeys(known))
    guess = f"是不是想写 {near[0]}？" if near else ""
    return f"{what}：没有“{name}”。{guess}可选：{'、'.join(known)}。"


def settings(task: Task, recipe: Recipe, extra: Sequence[str], home: Path) -> Config:
    """一道课题、一份配方 -> 完整的设置；extra 最后盖上去。"""
    quiet = ["sample.every=0", "sample.prompts=[]"]
    given = [*recipe.sets(task.family), *task.data(home), *task.sets, *quiet, *extra]
    return load_config(task.preset, given)


def published_rate(task: Task, recipe: Recipe) -> float:
    """这份配方自己写的学习率。"""
    return load_config(task.preset, recipe.sets(task.family)).train.lr
