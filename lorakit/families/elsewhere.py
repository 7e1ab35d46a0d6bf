"""一个家族在别的软件里：层和底模叫什么、哪种写法谁能读、ComfyUI 用哪个工作流。"""

import re
from collections.abc import Iterable
from typing import ClassVar

BLOCK = re.compile(r"(blocks|layers|refiner)\.\d+\.")


class Elsewhere:
    """导出时要问的事实；没有的就留空，照 diffusers 的名字写。"""

    full_size: ClassVar[dict[str, dict]]
    workflows: ClassVar[dict[str, str]] = {}  # ComfyUI 工作流：路径里的字样，同上 -> 名字
    # 底模名字里说它是哪一版的字样，与那一版在 ComfyUI 里的文件；"" 是工作流里写着的
    editions: str = ""
    base_files: ClassVar[dict[str, str]] = {}
    # 几步出图的那一版怎么画：字样 -> sample 组的几项，写进工作流
    quick: ClassVar[dict[str, dict[str, float]]] = {}
    # 原作者给层起的名字 -> diffusers 里是哪一层，或按次序并成它的哪几层；{} 是块号，
    # 同一层写两遍：它的前后两半（scale 与 shift）在原作者那里对调
    original: ClassVar[dict[str, tuple[str, ...]]] = {}
    kohya_original: bool = False  # kohya 一系用不用 original 的名字；不用就是 diffusers 的
    comfyui_prefix: str = "diffusion_model."  # ComfyUI 认 diffusers 的层名，前面要加什么
    # 块外的层（x_embedder 之类）谁漏掉哪些："软件" 或 "写法 软件" -> 正则表达式；没写的都认
    misses: ClassVar[dict[str, str]] = {"musubi": "."}
    # 每种写法谁能读（写出的每个名字都照 tests/reader_names.py 核对）
    read_by: ClassVar[dict[str, tuple[str, ...]]] = {
        "diffusers": ("diffusers", "ComfyUI"),
        "comfyui": ("ComfyUI", "diffusers"),
        "kohya": ("musubi", "ComfyUI", "diffusers"),
    }
    # 别人练好的训练适配器（model.training_adapter）：底模路径里的字样 -> 站上的那个文件
    training_adapters: ClassVar[dict[str, str]] = {}
    # 别的软件怎么叫这个底模：路径里的字样 -> (modelspec.architecture, ss_base_model_version)
    called: ClassVar[dict[str, tuple[str, str]]]

    @classmethod
    def workflow_base(cls, base: str) -> str | None:
        """工作流该载入的底模文件；"" 是它自己写着的，None 是没有工作流的另一版。"""
        edition = cls._edition(base)
        return cls.base_files.get(edition) if edition else ""

    @classmethod
    def workflow_sample(cls, base: str) -> dict[str, float]:
        """工作流里的步数、引导要换成的；没有就照工作流自己的。"""
        return cls.quick.get(cls._edition(base), {})

    @classmethod
    def _edition(cls, base: str) -> str:
        found = re.search(cls.editions, base.lower()) if cls.editions else None
        return found[1] if found else ""

    @classmethod
    def skipped(cls, style: str, paths: Iterable[str]) -> dict[str, list[str]]:
        """块外的层不是人人都认：read_by 里的软件 -> 它会漏掉的层。"""
        outside = [path for path in paths if not BLOCK.search(path)]
        found = {}
        for name in cls.read_by[style]:
            rule = cls.misses.get(f"{style} {name}", cls.misses.get(name))
            found[name] = [path for path in outside if rule and re.search(rule, path)]
        return {name: lost for name, lost in found.items() if lost}

    @classmethod
    def full_shift(cls, side: int, steps: int = 50) -> float:
        """真模型走 steps 步画 side² 的图时的时间偏移：照 full_size 算，不用下载。"""
        from diffusers import FlowMatchEulerDiscreteScheduler

        config = FlowMatchEulerDiscreteScheduler(**cls.full_size["scheduler"]).config
        return cls._shift_of(config, side, side, steps)
