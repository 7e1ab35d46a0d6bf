"""练习册用的小工具：图与滑块、先猜后看、练习、术语、训练面板、设置表单；只有这里用 ipywidgets。

用到哪个才载入哪个，所以 `import lorakit` 和命令行都不需要装 Jupyter。
"""

import os
import warnings
from importlib import import_module

from lorakit.errors import InspectionWarning

# 没装 torchvision 时 transformers 每次都要说一遍，和练习册无关；它一载入就读这个，所以要早
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# 两个核上开着浏览器、别的程序也在算时，线程空转着等会把训练拖慢几倍；torch 一载入就读这个，所以要早
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# 练习册常故意拿有毛病的数据做对照，毛病在正文里讲；体检的提醒就不每次打在格子下面了
warnings.simplefilter("ignore", InspectionWarning)
# 05 正是要在一个模型上挂几个 LoRA
warnings.filterwarnings("ignore", message="Already found a `peft_config`")

_PUBLIC = {
    "Board": "board",
    "Run": "runner",
    "album": "practice",
    "attention": "regions",
    "blueprint": "blueprints",
    "chart": "picture",
    "cards": "hire",
    "certificate": "works.certificate",
    "check": "exercises",
    "choice": "explorer",
    "claim": "evidence",
    "clinic": "hospital.desk",
    "each": "bar",
    "explore": "explorer",
    "form": "forms",
    "from_scratch": "empty_cell",
    "find": "lookup",
    "fresh": "notes",
    "fresh_cache": "notes",
    "healed": "healing",
    "hint": "exercises",
    "judge": "lights",
    "lineup": "unlabelled",
    "my_picture": "mine",
    "open_model": "models",
    "own": "exercises.own",
    "patient": "healing",
    "pixel_cup": "capstone",
    "predict": "quiz",
    "pretest": "quiz",
    "ready": "setup",
    "recall": "quiz",
    "recorded": "recordings",
    "report_card": "graduation",
    "reveal": "quiz",
    "share": "evidence",
    "show": "display",
    "slider": "explorer",
    "source": "display",
    "term": "glossary",
    "to_image": "picture",
    "to_tensor": "picture",
    "treat": "hospital.desk",
    "upload": "mine",
    "waiting": "bar",
    "wall": "picture",
    "where": "journey",
    "work": "works.work",
    "workplace": "notes",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f"lorakit.lab.{_PUBLIC[name]}"), name)
    raise AttributeError(f"lorakit.lab 里没有 {name}；有的是：{'、'.join(_PUBLIC)}")


def __dir__():
    return sorted(__all__)
