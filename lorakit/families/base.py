"""接缝：一个家族要回答的全部问题。外面只有一种约定，里面各家各样。

外面的约定：潜变量 x 为 (B, C, h, w) 且已归一化；t 在 [0, 1]，1 是纯噪声；速度 v = eps - x0。
打包、位置编号、正负号、时间刻度、模板、掩码都不出这个文件夹。载入与放掉各部分见 parts.py。

方法按一次运行里被问到的次序写：
    核对    undistilled、skeleton、targets；体检与测速还问 latent_channels、text_shapes
    编码    load("vae") 与 encode_images，load("text") 与 encode_prompts、control_cond；都放掉
    训练    load("transformer")、recompute_context、shift；每一步 collate、predict_velocity
    画图    pipeline（scheduler、times），sample_arguments、prompt_arguments、guide、decode
    导出    别的软件怎么叫它、谁能读，见 elsewhere.py
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from lorakit import flow
from lorakit.families import shared
from lorakit.families.elsewhere import Elsewhere
from lorakit.families.parts import Parts
from lorakit.families.shared import Cond
from lorakit.memory import loading


class Family(Parts, Elsewhere, ABC):
    """一个模型家族；`folder` 是 diffusers 布局的文件夹。

    Args:
        guidance: 内嵌引导的家族（FLUX）训练时喂给模型的引导值。
        clear: data.alpha=keep：图的透明通道也编码，画出来的图也带着它。
    """

    name: str
    pipeline_class: str  # diffusers 里那条管线的类名
    multiple: int  # 宽和高必须是它的整数倍
    compression: int = 8  # VAE 每边缩小几倍
    targets: ClassVar[dict[str, str]]  # 预设名 -> 与线性层全名比对的正则表达式
    controls: tuple[int, int] = (0, 0)  # 一次最少、最多看几张控制图；(0, 4) 是画图、改图都会
    text_sees: str = ""  # 文本编码器看不看控制图："" 不看，whole 看原样的，fitted 看与 VAE 一样大的
    caption_limit: int = 512  # 描述最多多少个词元，再长 stock 管线会截掉
    masks_text: bool = True  # 成批时描述长短不一，注意力要不要掩码（flash 内核没有掩码）
    stock_batches: bool = True  # stock 管线一批画几句长短不一的，与一句句画的一不一样
    embedded_guidance: bool = False  # 引导是不是训练进模型里的（FLUX）
    sees_alpha: bool = False  # VAE 有没有透明通道
    blank: str = ""  # 没有写负面提示词时，引导用的那一句
    # 条件里的哪一项是 stock 管线的哪个参数；负面的前面再加 negative_
    said_as: ClassVar[dict[str, str]] = {"text": "prompt_embeds"}
    # 真模型的尺寸：文件夹 -> 它的 config.json（只写与 diffusers 默认值不同的）；不下载也能测速
    full_size: ClassVar[dict[str, dict]] = {}
    other_sizes: ClassVar[dict[str, dict[str, dict]]] = {}  # 另一种大小：路径里的字样 -> 要换的几份
    distilled: ClassVar[dict[str, str]] = {}  # 蒸馏过的底模：路径里的字样 -> 该换哪个
    licences: ClassVar[dict[str, str]]  # 底模的许可：路径里的字样（"" 是其余的）-> 代号
    output: str = "images"  # stock 管线把画好的图叫什么

    def __init__(self, *place, guidance: float = 1.0, clear: bool = False, **how):
        super().__init__(*place, **how)
        self.guidance, self.clear = guidance, clear

    @classmethod
    def undistilled(cls, path: str, folder: Path | None = None) -> str:
        """蒸馏过的底模不能直接练：该换哪个；没有蒸馏过就是空的。folder 是它在本地的文件夹。"""
        return next((to for word, to in cls.distilled.items() if word.lower() in path.lower()), "")

    @classmethod
    def size_of(cls, path: str) -> dict[str, dict]:
        """这个底模的 full_size；一家有几种大小的，看路径里的字样。"""
        other = (parts for word, parts in cls.other_sizes.items() if word in path.lower())
        return cls.full_size | next(other, {})

    @property
    def latent_channels(self) -> int:
        """潜变量 x 有几个通道。"""
        vae = self.config_of("vae")
        return vae.get("z_dim") or vae["latent_channels"]

    @abstractmethod
    def text_shapes(self, tokens: int) -> dict[str, tuple[int, ...]]:
        """tokens 个词元的描述：条件里每个张量的形状；测速时照着造假的。"""

    def cond_shapes(self, tokens: int, side: int, controls: int = 0) -> dict[str, tuple[int, ...]]:
        """同上，还有与边长 side 的目标图一样大的控制图；它最少要几张就至少几张。"""
        one = (self.latent_channels, side // self.compression, side // self.compression)
        count = max(controls, self.controls[0])
        return self.text_shapes(tokens) | {f"control_{i}": one for i in range(1, count + 1)}

    @abstractmethod
    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3 或 4, H, W)、[-1, 1] -> 后验的均值与标准差，各 (B, C, h, w)，已归一化。"""

    @abstractmethod
    def encode_prompts(self, captions: list[str], refs=None) -> list[Cond]:
        """一批描述 -> 每个样本一个条件，不含补齐；编辑家族的 refs 是每句描述的几张控制图 (PIL)。"""

    @staticmethod
    def control_cond(latents: Sequence[torch.Tensor]) -> Cond:
        """几张控制图的潜变量 (C, h, w)（后验的众数）-> 条件里的几项，shared.controls 再取出来。"""
        return {f"control_{i}": value for i, value in enumerate(latents, 1)}

    def recompute_context(self, transformer: nn.Module) -> Callable | None:
        """torch.utils.checkpoint 的 context_fn：重算时还要还原什么；多半没有。"""
        return None

    def shift(self, width: int, height: int, steps: int = 50) -> float:
        """stock 管线在这个尺寸、走这么多步时的时间偏移；训练时 `shift: auto` 用它。"""
        return self._shift_of(self.scheduler().config, width, height, steps)

    @staticmethod
    def _shift_of(config, width: int, height: int, steps: int) -> float:
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        if not config.use_dynamic_shifting:
            return float(config.shift)
        tokens = (width // 16) * (height // 16)  # VAE 缩 8 倍，再 2x2 打包
        ends = (config.base_image_seq_len, config.max_image_seq_len)
        return math.exp(calculate_shift(tokens, *ends, config.base_shift, config.max_shift))

    collate = staticmethod(shared.collate)

    @abstractmethod
    def predict_velocity(self, transformer: nn.Module, x_t, t, cond: Cond) -> torch.Tensor:
        """(B, C, h, w)、(B,)、拼好的一批条件 -> 速度 (B, C, h, w)。"""

    def pipeline(self, transformer: nn.Module | None, vae="load", text="load"):
        """stock diffusers 管线，供推理用；vae=None 就不载入 VAE，text=None 就不载入文本编码器。"""
        texts = self.load("text") if text == "load" else text or [None] * len(self.text_parts)
        return self._pipeline_type()(
            scheduler=self.scheduler(),
            vae=self.load("vae") if vae == "load" else vae,
            transformer=transformer,
            **dict(zip(self.text_parts, texts, strict=True)),
        )

    def _pipeline_type(self) -> type:
        import diffusers

        return getattr(diffusers, self.pipeline_class)

    def scheduler(self):
        """文件夹里的调度器，与推理用的相同。"""
        from diffusers import FlowMatchEulerDiscreteScheduler

        with loading.explaining(self.folder / "scheduler"):
            return FlowMatchEulerDiscreteScheduler.from_pretrained(
                self.folder, subfolder="scheduler", local_files_only=True
            )

    def times(self, steps: int, width: int, height: int) -> torch.Tensor:
        """推理走过的 steps + 1 个时刻，从 1 到 0；与 stock 管线在这个尺寸上走的相同。"""
        scheduler = self.scheduler()
        shifted = scheduler.config.use_dynamic_shifting
        scheduler.set_timesteps(
            sigmas=np.linspace(1.0, 1 / steps, steps),
            mu=math.log(self.shift(width, height, steps)) if shifted else None,
        )
        return scheduler.sigmas

    @abstractmethod
    def sample_arguments(self, guidance: float, count: int) -> dict:
        """推理时传给管线的引导参数。"""

    def prompt_arguments(self, conds: list[Cond], prefix: str = "") -> dict:
        """编码好的提示词 -> stock 管线的参数；prefix 是 negative_ 就是负面的。"""
        batch = self.collate(conds)
        return {prefix + name: batch[key] for key, name in self.said_as.items()}

    def guide(self, v, empty, scale: float) -> torch.Tensor:
        """有描述与没有描述的速度 (B, C, h, w) -> 引导之后的，与 stock 管线的算法相同。"""
        return flow.guide(v, empty, scale)

    @abstractmethod
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """归一化的潜变量 (B, C, h, w) -> 图 (B, 3 或 4, H, W)，[-1, 1]。"""
