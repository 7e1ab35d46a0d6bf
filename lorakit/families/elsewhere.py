"""一个家族在别的软件里：层叫什么、底模叫什么、谁读哪种写法、ComfyUI 用哪份工作流。"""

import re
from typing import ClassVar


class Elsewhere:
    """家族类里关于别的软件的事实；导出、文件头与工作流照它写。"""

    workflows: ClassVar[dict[str, str]] = {}  # ComfyUI 工作流：路径里的字样，同上 -> 名字
    # 底模名字里说它是哪一版的字样，与那一版在 ComfyUI 里的文件；"" 是工作流里写着的
    editions: str = ""
    base_files: ClassVar[dict[str, str]] = {}
    # 原作者给层起的名字 -> diffusers 里是哪一层，或按次序并成它的哪几层；{} 是块号，
    # 同一层写两遍：它的前后两半（scale 与 shift）在原作者那里对调
    original: ClassVar[dict[str, tuple[str, ...]]] = {}
    kohya_original: bool = False  # kohya 一系用不用 original 的名字；不用就是 diffusers 的
    comfyui_prefix: str = "diffusion_model."  # ComfyUI 认 diffusers 的层名，前面要加什么
    # 每种写法谁能读（写出的每个名字都照 tests/reader_names.py 核对）
    read_by: ClassVar[dict[str, tuple[str, ...]]] = {
        "diffusers": ("diffusers", "ComfyUI"),
        "comfyui": ("ComfyUI", "diffusers"),
        "kohya": ("musubi", "ComfyUI", "diffusers"),
    }
    # 别的软件怎么叫这个底模：路径里的字样 -> (modelspec.architecture, ss_base_model_version)
    called: ClassVar[dict[str, tuple[str, str]]]

    @classmethod
    def workflow_base(cls, base: str) -> str | None:
        """工作流该载入的底模文件；"" 是它自己写着的，None 是没有工作流的另一版。"""
        edition = re.search(cls.editions, base.lower()) if cls.editions else None
        return cls.base_files.get(edition[1]) if edition else ""
