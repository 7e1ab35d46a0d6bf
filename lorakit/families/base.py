"""接缝：一个家族要回答的全部问题。外面只有一种约定，里面各家各样。

外面的约定：潜变量 x 为 (B, C, h, w) 且已归一化；t 在 [0, 1]，1 是纯噪声；速度 v = eps - x0。
打包、位置编号、正负号、时间刻度、模板、掩码都不出这个文件夹。
"""

import gc
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from lorakit import flow
from lorakit.errors import LorakitError
from lorakit.families.shared import Cond
from lorakit.memory import loading, streaming


@contextmanager
def _progress_bars(shown: bool):
    """载入权重时 transformers 与 diffusers 的进度条：要或不要；离开时还原。"""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    modules = (diffusers_logging, transformers_logging)
    before = [module.is_progress_bar_enabled() for module in modules]
    for module in modules:
        (module.enable_progress_bar if shown else module.disable_progress_bar)()
    try:
        yield
    finally:
        for module, enabled in zip(modules, before, strict=True):
            (module.enable_progress_bar if enabled else module.disable_progress_bar)()


def _key(prompt: str, pictures: Sequence) -> tuple:
    """一句提示词与它看着的图。"""
    return prompt, *(hash((one.size, one.tobytes())) for one in pictures)


class Family(ABC):
    """一个模型家族；`folder` 是 diffusers 布局的文件夹。"""

    name: str
    pipeline_class: str  # diffusers 里那条管线的类名
    multiple: int  # 宽和高必须是它的整数倍
    compression: int = 8  # VAE 每边缩小几倍
    targets: ClassVar[dict[str, str]]  # 预设名 -> 与线性层全名比对的正则表达式
    # 决定文字条件的文件夹，次序与 _load_text 的结果相同
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    controls: tuple[int, int] = (0, 0)  # 编辑：一次最少、最多看几张控制图
    caption_tokenizer: str = "tokenizer"  # 管着描述长短的那个分词器的文件夹
    caption_limit: int = 512  # 描述最多多少个词元，再长 stock 管线会截掉
    masks_text: bool = True  # 成批时描述长短不一，注意力要不要掩码（flash 内核没有掩码）
    embedded_guidance: bool = False  # 引导是不是训练进模型里的（FLUX）
    blank: str = ""  # 没有写负面提示词时，引导用的那一句
    # 条件里的哪一项是 stock 管线的哪个参数；负面的前面再加 negative_
    said_as: ClassVar[dict[str, str]] = {"text": "prompt_embeds"}
    # 真模型的尺寸：文件夹 -> 它的 config.json（只写与 diffusers 默认值不同的）；不下载也能测速
    full_size: ClassVar[dict[str, dict]] = {}
    distilled: ClassVar[dict[str, str]] = {}  # 蒸馏过的底模：路径里的字样 -> 该换哪个
    licences: ClassVar[dict[str, str]]  # 底模的许可：路径里的字样（"" 是其余的）-> 代号
    output: str = "images"  # stock 管线把画好的图叫什么
    # 原作者给层起的名字 -> diffusers 里是哪一层，或按次序并成它的哪几层；{} 是块号，
    # 同一层写两遍：它的前后两半（scale 与 shift）在原作者那里对调
    original: ClassVar[dict[str, tuple[str, ...]]] = {}
    kohya_original: bool = False  # kohya 一系用不用 original 的名字；不用就是 diffusers 的
    comfyui_prefix: str = "diffusion_model."  # ComfyUI 认 diffusers 的层名，前面要加什么
    # 每种写法谁能读（写出的每个名字都照 tests/reader_names.py 核对）；第二句是还要知道的
    read_by: ClassVar[dict[str, tuple[str, ...]]] = {
        "diffusers": ("diffusers", "ComfyUI"),
        "comfyui": ("ComfyUI", "diffusers"),
        "kohya": ("musubi", "ComfyUI", "diffusers"),
    }
    # 别的软件怎么叫这个底模：路径里的字样 -> (modelspec.architecture, ss_base_model_version)
    called: ClassVar[dict[str, tuple[str, str]]]

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        self.folder, self.device, self.dtype = folder, device, dtype
        self.parts: dict[str, object] = {}
        self.words: dict[tuple, Cond] = {}  # remember 编码好的提示词，在内存里
        self.transformer_folder = folder / "transformer"  # 全量微调的结果可以换掉它
        self.model = None  # hub.Model：缺的部分用到时从站上补；None 就只认文件夹里有的
        self.quantize, self.offload = "none", "none"  # model.quantize、memory.offload
        self.home = device  # 文本编码器载到哪里；显卡放不下时先载到内存，用到哪块搬哪块
        self.random_weights = False  # 不读权重、现造随机的：只为测速度与显存
        self.guidance = 1.0  # 内嵌引导的家族（FLUX）训练时喂给模型的引导值

    def load(self, part: str) -> object:
        """载入一个部分："vae"、"text" 或 "transformer"；直接以目标精度放到设备上，只载一次。"""
        if part not in self.parts:
            self.fetch(part)
            size = sum(path.stat().st_size for path in self.folder.rglob("*.safetensors"))
            tight = part == "text" and self._tight()
            self.home = torch.device("cpu") if tight else self.device
            with _progress_bars(size > 1 << 30):  # 小模型一眨眼就好，进度条只是噪音
                made = getattr(self, f"_load_{part}")()
            if tight:
                for encoder in (one for one in made if isinstance(one, nn.Module)):
                    streaming.stream(encoder, self.device)
            self.parts[part] = made
        return self.parts[part]

    def untouched(self) -> nn.Module:
        """没有改动过的 Transformer：挂过 LoRA、练过的先放掉，重新载入。"""
        made = self.parts.get("transformer")
        if made is not None and (
            getattr(made, "peft_config", None) or any(p.requires_grad for p in made.parameters())
        ):
            self.release("transformer")
        return self.load("transformer")

    def fetch(self, *parts: str):
        """保证这些部分（"vae"、"text"、"transformer"）的文件都在本地，缺的下载。"""
        folders = [f for part in parts for f in (self.text_parts if part == "text" else (part,))]
        if self.transformer_folder != self.folder / "transformer":  # 用的是全量微调的那一份
            folders = [folder for folder in folders if folder != "transformer"]
        if self.model is not None and folders:
            self.model.fetch(*folders)

    def _tight(self) -> bool:
        """文本编码器要不要随用随搬：设置要求，或剩下的显存放不下它。"""
        if self.offload != "none" or self.device.type != "cuda":
            return self.offload != "none"
        parts = [self.folder / part for part in self.text_parts]
        size = sum(f.stat().st_size for part in parts for f in part.glob("*.safetensors"))
        torch.cuda.empty_cache()
        return size + (2 << 30) > torch.cuda.mem_get_info(self.device)[0]

    def _load_vae(self):
        vae = self._class_of("vae").from_pretrained(
            self.folder, subfolder="vae", torch_dtype=self.dtype
        )
        return vae.to(self.device).eval().requires_grad_(False)

    @abstractmethod
    def _load_text(self): ...

    def _load_transformer(self):
        cls, folder = self._class_of("transformer"), self.transformer_folder
        model, place = loading.empty(cls, cls.load_config(folder)), (self.device, self.dtype)
        read = loading.random_weights(*place) if self.random_weights else loading.Shards(folder)
        if self.offload == "none":
            return loading.build(model, read, self.quantize, *place)
        model.streamer = streamer = streaming.Streamer(self.device)
        moves = set(streaming.moving(list(loading.blocks(model).values()), self.offload))
        add = lambda block: streamer.add(block) if block in moves else None  # noqa: E731
        return loading.build(model, read, self.quantize, *place, add)

    @contextmanager
    def on_cpu(self):
        """暂时把东西载入到内存：FSDP2 会一块块切开再搬上显卡，整个放不下也不要紧。"""
        device, self.device = self.device, torch.device("cpu")
        try:
            yield
        finally:
            self.device = device

    def config_of(self, part: str) -> dict:
        """一个部分的 config.json。"""
        return json.loads((self.folder / part / "config.json").read_text("utf-8"))

    @property
    def latent_channels(self) -> int:
        """潜变量 x 有几个通道。"""
        vae = self.config_of("vae")
        return vae.get("z_dim") or vae["latent_channels"]

    @abstractmethod
    def cond_shapes(self, tokens: int, side: int) -> dict[str, tuple[int, ...]]:
        """tokens 个词元的描述、边长 side 的图：条件里每个张量的形状；测速时照着造假的。"""

    def _class_of(self, part: str) -> type:
        """diffusers 里的类，由文件夹里的 config.json 说了算。"""
        import diffusers

        return getattr(diffusers, self.config_of(part)["_class_name"])

    def token_limit(self, tokenizer: str, most: int = 512) -> int:
        """总把文字补到固定长度的家族：补到几个词元，由分词器的设置说了算，最多 most。"""
        file = self.folder / tokenizer / "tokenizer_config.json"
        return min(most, json.loads(file.read_text("utf-8")).get("model_max_length", most))

    def skeleton(self) -> nn.Module:
        """没有权重的 Transformer（meta 设备）：不花内存就能核对层名与形状。"""
        cls = self._class_of("transformer")
        with torch.device("meta"):
            return cls.from_config(cls.load_config(self.folder, subfolder="transformer"))

    def refuse_distilled(self, path: str):
        """蒸馏过的底模不能直接练：说出为什么、该换哪个。"""
        for word, instead in self.distilled.items():
            if word.lower() in path.lower():
                raise distilled_error(path, instead)

    def release(self, *parts: str):
        """放掉一些部分，把内存还回去。"""
        for part in parts:
            self.parts.pop(part, None)
        if self.device.type == "cuda":
            gc.collect()  # 换过 forward 的模块自己指着自己，不收就一直占着
            torch.cuda.empty_cache()

    def count_tokens(self, captions: list[str]) -> list[int]:
        """每句描述占文字编码器几个词元（不算模板）；只读分词器，不载入模型。"""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder / self.caption_tokenizer)
        ids = tokenizer(captions, add_special_tokens=False, verbose=False)["input_ids"]
        return [len(row) for row in ids]

    @abstractmethod
    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W)、[-1, 1] -> 后验的均值与标准差，各 (B, C, h, w)，已归一化。"""

    @abstractmethod
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """归一化的潜变量 (B, C, h, w) -> 图 (B, 3, H, W)，[-1, 1]。"""

    @abstractmethod
    def encode_prompts(self, captions: list[str], refs=None) -> list[Cond]:
        """一批描述 -> 每个样本一个条件，不含补齐；编辑家族的 refs 是每句描述的几张控制图 (PIL)。"""

    @staticmethod
    def control_cond(latents: Sequence[torch.Tensor]) -> Cond:
        """几张控制图的潜变量 (C, h, w)（后验的众数）-> 条件里的几项；没有控制图就是空的。"""
        return {f"control_{i}": value for i, value in enumerate(latents, 1)}

    def guide(self, v, empty, scale: float) -> torch.Tensor:
        """有描述与没有描述的速度 (B, C, h, w) -> 引导之后的，与 stock 管线的算法相同。"""
        return flow.guide(v, empty, scale)

    @abstractmethod
    def predict_velocity(self, transformer: nn.Module, x_t, t, cond: Cond) -> torch.Tensor:
        """(B, C, h, w)、(B,)、拼好的一批条件 -> 速度 (B, C, h, w)。"""

    def remember(self, prompts: Sequence[str], refs=None):
        """先编码好这些提示词，再放掉文本编码器：画它们时，显卡上就不用同时放它与 Transformer。"""
        for prompt, pictures in zip(prompts, refs or [()] * len(prompts), strict=True):
            key = _key(prompt, pictures)
            if key not in self.words:
                (cond,) = self.encode_prompts([prompt], [pictures] if refs else None)
                self.words[key] = {name: value.cpu() for name, value in cond.items()}
        self.release("text")

    def recall(self, prompts: Sequence[str], refs=None) -> list[Cond] | None:
        """`remember` 过的条件，在设备上；有一句没有就是 None。"""
        pairs = zip(prompts, refs or [()] * len(prompts), strict=True)
        found = [self.words.get(_key(*one)) for one in pairs]
        if None in found:
            return None
        return [{name: value.to(self.device) for name, value in cond.items()} for cond in found]

    def prompt_arguments(self, conds: list[Cond], prefix: str = "") -> dict:
        """编码好的提示词 -> stock 管线的参数；prefix 是 negative_ 就是负面的。"""
        batch = self.collate(conds)
        return {prefix + name: batch[key] for key, name in self.said_as.items()}

    def pipeline(self, transformer: nn.Module | None, vae="load", text="load"):
        """stock diffusers 管线，供推理用；vae=None 就不载入 VAE，text=None 就不载入文本编码器。"""
        texts = self.load("text") if text == "load" else [None] * len(self.text_parts)
        return self._pipeline_type()(
            scheduler=self.scheduler(),
            vae=self.load("vae") if vae == "load" else vae,
            transformer=transformer,
            **dict(zip(self.text_parts, texts, strict=True)),
        )

    def _pipeline_type(self) -> type:
        import diffusers

        return getattr(diffusers, self.pipeline_class)

    @abstractmethod
    def sample_arguments(self, guidance: float, count: int) -> dict:
        """推理时传给管线的引导参数。"""

    def scheduler(self):
        """文件夹里的调度器，与推理用的相同。"""
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler.from_pretrained(self.folder, subfolder="scheduler")

    def shift(self, width: int, height: int) -> float:
        """stock 管线在这个尺寸上的时间偏移；训练时 `shift: auto` 用它。"""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        config = self.scheduler().config
        if not config.use_dynamic_shifting:
            return float(config.shift)
        tokens = (width // 16) * (height // 16)  # VAE 缩 8 倍，再 2x2 打包
        ends = (config.base_image_seq_len, config.max_image_seq_len)
        return math.exp(calculate_shift(tokens, *ends, config.base_shift, config.max_shift))

    def times(self, steps: int, width: int, height: int) -> torch.Tensor:
        """推理走过的 steps + 1 个时刻，从 1 到 0；与 stock 管线在这个尺寸上走的相同。"""
        scheduler = self.scheduler()
        shifted = scheduler.config.use_dynamic_shifting
        scheduler.set_timesteps(
            sigmas=np.linspace(1.0, 1 / steps, steps),
            mu=math.log(self.shift(width, height)) if shifted else None,
        )
        return scheduler.sigmas

    @staticmethod
    def collate(conds: list[Cond]) -> Cond:
        """一批条件 -> 补齐到一样长；长短不一时另给 `名字_mask`（True 是真词元）。"""
        batch: Cond = {}
        for key in conds[0]:
            rows = [cond[key] for cond in conds]
            if rows[0].dim() != 2:  # 不是一串词元：形状本来就一样
                batch[key] = torch.stack(rows)
                continue
            batch[key] = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, L, D)
            lengths = [len(row) for row in rows]
            if min(lengths) < max(lengths):
                place = torch.arange(max(lengths), device=rows[0].device)
                ends = torch.tensor(lengths, device=rows[0].device)
                batch[f"{key}_mask"] = place[None] < ends[:, None]
        return batch


def distilled_error(path: str, instead: str) -> LorakitError:
    """蒸馏过的底模为什么不能练、该换哪个。"""
    return LorakitError(
        f"model.path：“{path}”是蒸馏过的底模，直接练会丢掉它几步出图的本事，画面发糊。"
        f"请在 {instead} 上训练，练好的 LoRA 再拿到它上面用。"
    )
