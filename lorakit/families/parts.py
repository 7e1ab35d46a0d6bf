"""一个底模的各部分（VAE、文本编码器、Transformer）：从哪里来，载到哪里，什么时候放掉。"""

import copy
import gc
import logging
import re
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import psutil
import torch
from torch import nn

from lorakit.errors import WeightsError
from lorakit.files import Unreadable, read_json
from lorakit.memory import devices, encoders, loading, streaming

# 描述、提示词太长时 stock 管线用英文贴出一大段；我们自己用中文说
logging.getLogger("diffusers.pipelines").setLevel(logging.ERROR)
REPEATS = re.compile(r"layers|blocks|depth")  # 设置里说有几层的项
NUMBERS = dict.fromkeys(
    ("shift?", "base_shift?", "max_shift?", "base_image_seq_len?", "max_image_seq_len?"), float
)  # 调度器的设置里要拿来算的


def _size(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 16


SHAPES = {  # 小文件该是什么样；别的只要是“名字: 值”
    "scheduler/scheduler_config.json": NUMBERS,
    "vae/config.json": {"z_dim?": _size, "latent_channels?": _size},
}
MOST = 1000  # 没有哪个底模有这么多层：坏了的设置会一直造下去


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


class Parts:
    """diffusers 布局的文件夹 `folder` 里的各部分：用到才载入，只载一次。

    Args:
        model: hub.Model，缺的文件用到时从站上补；None 就只认文件夹里有的。
        quantize, offload: model.quantize、memory.offload。
        random_weights: 不读 Transformer 的权重、现造随机的，只为测速度与显存。
    """

    text_parts: ClassVar[dict[str, str]]  # 决定文字条件的文件夹 -> transformers 里的类
    caption_tokenizer: str = "tokenizer"  # 管着描述长短的那个分词器的文件夹

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, *, model=None,
        quantize: str = "none", offload: str | int = "none", random_weights: bool = False,
    ):  # fmt: skip
        self.folder, self.device, self.dtype, self.model = folder, device, dtype, model
        self.quantize, self.offload, self.random_weights = quantize, offload, random_weights
        self.transformer_folder = folder / "transformer"
        self.parts: dict[str, object] = {}
        self.streamer: streaming.Streamer | None = None  # 搬着 Transformer 的那个

    def again(self, **changes):
        """同一个底模再来一份，什么都还没有载入；changes 是要换的属性，例如 quantize="none"。"""
        made = copy.copy(self)
        vars(made).update({"parts": {}, "streamer": None, **changes})
        return made

    def config_of(self, part: str) -> dict:
        """一个部分的 config.json。"""
        return self.small(f"{part}/config.json")

    def small(self, name: str) -> dict:
        """文件夹里的一个小文件，例如 vae/config.json。

        Raises:
            WeightsError: 没有、坏了，或数大得离谱。
        """
        try:
            found = read_json(self.folder / name, SHAPES.get(name, dict))
        except Unreadable as error:
            raise WeightsError(f"model.path：{error}请删掉它重新下载。") from error
        inner = [pair for one in found.values() if isinstance(one, dict) for pair in one.items()]
        for key, value in (*found.items(), *inner):
            if REPEATS.search(key) and type(value) is int and value > MOST:
                raise WeightsError(
                    f"model.path：“{self.folder / name}”里 {key} 是 {value}，不会有这么多层。"
                    "文件坏了，请删掉它重新下载。"
                )
        return found

    def check_small(self):
        """载入之前先看一遍各部分的小文件：真模型要等几分钟才读到它们。"""
        for part in ("transformer", "vae"):
            if (self.folder / part).is_dir():
                self.class_of(part)
        texts = (f"{p}/config.json" for p in self.text_parts)
        for part in ("model_index.json", "scheduler/scheduler_config.json", *texts):
            if (self.folder / part).exists():
                self.small(part)

    def class_of(self, part: str) -> type:
        """diffusers 里的类，由文件夹里的 config.json 说了算。"""
        import diffusers

        name = self.config_of(part).get("_class_name")
        made = getattr(diffusers, name, None) if isinstance(name, str) else None
        if not (isinstance(made, type) and issubclass(made, diffusers.ModelMixin)):
            raise WeightsError(
                f"model.path：“{self.folder / part / 'config.json'}”说它是 {str(name)[:60]}，"
                "diffusers 里没有这个模型。文件坏了，或要更新 diffusers。"
            )
        return made

    def skeleton(self) -> nn.Module:
        """没有权重的 Transformer（meta 设备）：不花内存就能核对层名与形状。"""
        return self._empty(self.folder / "transformer")

    def _empty(self, folder: Path) -> nn.Module:
        cls = self.class_of("transformer")
        with loading.explaining(folder):
            return loading.empty(cls, cls.load_config(folder, local_files_only=True))

    def token_limit(self, tokenizer: str, most: int = 512) -> int:
        """总把文字补到固定长度的家族：补到几个词元，由分词器的设置说了算，最多 most。"""
        said = self.small(f"{tokenizer}/tokenizer_config.json").get("model_max_length", most)
        return int(min(most, said)) if isinstance(said, int | float) and said >= 1 else most

    def count_tokens(self, captions: list[str]) -> list[int]:
        """每句描述占文本编码器几个词元（不算模板）；只读分词器，不载入模型。"""
        from transformers import AutoTokenizer

        with loading.explaining(self.folder / self.caption_tokenizer):
            tokenizer = AutoTokenizer.from_pretrained(
                self.folder / self.caption_tokenizer, trust_remote_code=False, local_files_only=True
            )
        ids = tokenizer(captions, add_special_tokens=False, verbose=False)["input_ids"]
        return [len(row) for row in ids]

    def fetch(self, *parts: str):
        """保证这些部分（"vae"、"text"、"transformer"）的文件都在本地，缺的下载。"""
        folders = [f for part in parts for f in (self.text_parts if part == "text" else (part,))]
        if self.transformer_folder != self.folder / "transformer":  # 用的是全量微调的那一份
            folders = [folder for folder in folders if folder != "transformer"]
        if self.model is not None and folders:
            self.model.fetch(*folders)

    def load(self, part: str) -> object:
        """载入一个部分："vae"、"text" 或 "transformer"；直接以目标精度放到设备上，只载一次。"""
        if part not in self.parts:
            self.fetch(part)
            size = sum(path.stat().st_size for path in self.folder.rglob("*.safetensors"))
            with _progress_bars(size > 1 << 30):  # 小模型一眨眼就好，进度条只是噪音
                self.parts[part] = getattr(self, f"_load_{part}")()
        return self.parts[part]

    def _load_vae(self) -> nn.Module:
        cls = self.class_of("vae")
        if self.random_weights:
            vae = loading.fill(self.shell("vae"), self._random(), self.device)
        else:
            vae = loading.whole_from(cls, self.folder, "vae", torch_dtype=self.dtype)
        return vae.to(self.device).eval().requires_grad_(False)

    def _random(self) -> loading.Read:
        return loading.random_weights(self.device, self.dtype)

    def _load_text(self) -> tuple:
        """text_parts 的各部分；文本编码器怎么放，看 `text_kind` 和此刻的显存。"""
        import transformers

        # 4 位的缩放不跟着块搬，所以只放在显卡上
        moved, made = self.text_kind != "nf4" and self._tight(), []
        where = torch.device("cpu") if moved else self.device
        for part, name in self.text_parts.items():
            cls = getattr(transformers, name)
            if issubclass(cls, nn.Module):
                made.append(self._load_encoder(cls, part, where).eval().requires_grad_(False))
                if moved:
                    streaming.stream(made[-1], self.device)
                continue
            with loading.explaining(self.folder / part):  # 分词器、图片处理器
                made.append(cls.from_pretrained(self.folder, subfolder=part, local_files_only=True))
        return tuple(made)

    def _load_encoder(self, cls: type, part: str, where: torch.device) -> nn.Module:
        kind = self.text_kind
        if self.random_weights:
            fill = partial(encoders.fill, kind=kind) if kind != "none" else loading.fill
            return fill(self.shell(part), self._random(), device=where)
        if kind != "none":
            return encoders.read(cls, self.folder, part, kind, self.dtype, where)
        how = {"dtype": self.dtype, "device_map": {"": where}}
        return loading.whole_from(cls, self.folder, part, **how)

    @cached_property
    def text_kind(self) -> str:
        """文本编码器压成 none、int8 还是 nf4；只看机器有多大，不看此刻剩多少，缓存的键才不会变。"""
        if self.device.type != "cuda" or psutil.virtual_memory().total > encoders.SMALL_HOST:
            return "none"  # 内存大的不必去数有多少权重
        capacity, host = devices.whole_memory(self.device), psutil.virtual_memory().total
        found = encoders.kept_as(self._text_size(), self.dtype.itemsize, capacity, host)
        return "none" if found == "moved" else found

    def _text_size(self) -> encoders.Size:
        if not all((self.folder / part / "config.json").is_file() for part in self.encoders):
            self.fetch("text")
        return encoders.Size.of(self.shell(part) for part in self.encoders)

    def shell(self, part: str) -> nn.Module:
        """一个部分（transformer、vae、文本编码器的文件夹）没有权重的样子：尺寸照 config.json。"""
        import transformers
        from accelerate import init_empty_weights

        with loading.explaining(self.folder / part):
            if part not in self.text_parts:
                return loading.empty(self.class_of(part), self.config_of(part))
            cls = getattr(transformers, self.text_parts[part])
            settings = cls.config_class.from_pretrained(self.folder / part, local_files_only=True)
            with init_empty_weights():
                made = cls._from_config(settings, dtype=self.dtype)
            made.tie_weights()  # 共用的两份词表只有一份
            return made

    @property
    def encoders(self) -> list[str]:
        """text_parts 里有权重的那几个文件夹；其余是分词器、图片处理器。"""
        import transformers

        kinds = {part: getattr(transformers, name) for part, name in self.text_parts.items()}
        return [part for part, cls in kinds.items() if issubclass(cls, nn.Module)]

    def _tight(self) -> bool:
        """文本编码器要不要放在内存里、随用随搬：剩下的显存放不下；没有显卡时照 memory.offload。"""
        if self.device.type != "cuda":
            return self.offload != "none"
        torch.cuda.empty_cache()
        return self._text_bytes() + encoders.ROOM > devices.free_memory(self.device)

    def _text_bytes(self) -> float:
        if self.random_weights or self.text_kind != "none":
            return self._text_size().bytes(self.text_kind, self.dtype.itemsize)
        files = [f for p in self.text_parts for f in (self.folder / p).glob("*.safetensors")]
        return sum(file.stat().st_size for file in files)

    def _load_transformer(self) -> nn.Module:
        folder = self.transformer_folder
        model, place = self._empty(folder), (self.device, self.dtype)
        read = self._random() if self.random_weights else loading.Shards(folder)
        moves = streaming.moving(list(loading.blocks(model).values()), self.offload)
        self.streamer = streaming.Streamer(self.device) if moves else None

        def finished(block: nn.Module):
            if block in moves:
                self.streamer.add(block)

        return loading.build(model, read, self.quantize, *place, finished)

    @contextmanager
    def on_cpu(self):
        """暂时把东西载入到内存：FSDP2 会一块块切开再搬上显卡，整个放不下也不要紧。"""
        device, self.device = self.device, torch.device("cpu")
        try:
            yield
        finally:
            self.device = device

    def use_transformer(self, folder: Path | None = None):
        """Transformer 从 folder（全量微调的结果）载入，None 就是底模自己的；换了就放掉手上的。"""
        wanted = folder or self.folder / "transformer"
        if self.transformer_folder != wanted:
            self.transformer_folder = wanted
            self.release("transformer")

    def untouched(self) -> nn.Module:
        """没有改动过的 Transformer：挂过 LoRA、练过的先放掉，重新载入。"""
        made = self.parts.get("transformer")
        if made is not None and (
            getattr(made, "peft_config", None)
            or getattr(made, "assisted", False)  # 加过训练适配器
            or any(p.requires_grad for p in made.parameters())
        ):
            self.release("transformer")
        return self.load("transformer")

    def release(self, *parts: str):
        """放掉一些部分，把内存还回去。"""
        for part in parts:
            self.parts.pop(part, None)
        if "transformer" in parts:
            self.streamer = None
        if self.device.type == "cuda":
            gc.collect()  # 换过 forward 的模块自己指着自己，不收就一直占着
            torch.cuda.empty_cache()
