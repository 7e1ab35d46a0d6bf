"""Kandinsky 5（文生图）：图像流交叉注意文字，Qwen2.5-VL 与 CLIP 两个文本编码器，通道在最后。"""

from contextlib import contextmanager, nullcontext
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from lorakit.families.base import Family
from lorakit.families.shared import CLIP_L, FLUX_VAE, QWEN_VL_7B, Cond, KLVae

# out_layer 到处都有（时间、调制、前馈、出口），所以层名一律从块写起、整名比对
ATTENTION = r"(self|cross)_attention\.(to_query|to_key|to_value|out_layer)"
LINEAR = rf"({ATTENTION}|feed_forward\.(in|out)_layer|(text|visual)_modulation\.out_layer)"
BASE = "kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers"


class Kandinsky5(KLVae, Family):
    """Kandinsky 5.0 T2I Lite（6 B）；时间参数是 1000 t，输出就是 v，没有内嵌引导。"""

    name = "kandinsky5"
    pipeline_class = "Kandinsky5T2IPipeline"
    called: ClassVar = {"": ("Kandinsky-5", "kandinsky5")}
    read_by: ClassVar = {  # diffusers 的 Kandinsky 管线只认 transformer. 开头的
        "diffusers": ("diffusers", "ComfyUI"),
        "comfyui": ("ComfyUI",),
        "kohya": ("musubi", "ComfyUI"),
    }
    pipeline_class = "Kandinsky5T2IPipeline"
    licences: ClassVar = {"": "mit"}
    multiple = 16
    output = "image"
    masks_text = False
    subtract_shift = False  # VAE 的配置里有 shift_factor（它本是 FLUX 的），但 stock 管线只乘不减
    targets: ClassVar = {
        "attention": rf"(text|visual)_transformer_blocks\.\d+\.{ATTENTION}",
        "image-attention": rf"visual_transformer_blocks\.\d+\.{ATTENTION}",
        "all-linear": rf"(text|visual)_transformer_blocks\.\d+\.{LINEAR}",
    }
    distilled: ClassVar = {"distilled": BASE, "nocfg": BASE}
    # 官方文件夹里是 Qwen2VLProcessor，它还要 torchvision 处理视频；只编码文字，有分词器就够
    text_parts: ClassVar = {
        "text_encoder": "Qwen2_5_VLForConditionalGeneration", "tokenizer": "Qwen2Tokenizer",
        "text_encoder_2": "CLIPTextModel", "tokenizer_2": "CLIPTokenizer",
    }  # fmt: skip
    said_as: ClassVar = {"text": "prompt_embeds_qwen", "pooled": "prompt_embeds_clip"}

    full_size: ClassVar = {
        "transformer": {
            "_class_name": "Kandinsky5Transformer3DModel", "in_visual_dim": 16,
            "out_visual_dim": 16, "model_dim": 2560, "ff_dim": 10240, "num_visual_blocks": 50,
            "num_text_blocks": 2, "axes_dims": [32, 48, 48], "time_dim": 512,
        },
        "vae": FLUX_VAE,
        "text_encoder": QWEN_VL_7B,
        "text_encoder_2": CLIP_L,
        "scheduler": {"shift": 5.0},
    }  # fmt: skip

    def _load_transformer(self):
        model = real_tokens_only(super()._load_transformer())
        # stock 每次 forward 都把这张表从内存抄到显卡上，录 CUDA 图时不许
        model.time_embeddings.freqs = model.time_embeddings.freqs.to(self.device)
        return model

    @torch.no_grad()
    def encode_prompts(self, captions: list[str], refs=None) -> list[Cond]:
        pipe = self.pipeline(transformer=None, vae=None)
        conds = []
        # 一句句来：stock 成批编码时，只要有一句超长，短句的末尾也会被当成多余的截掉
        for caption in captions:
            text, pooled, _ = pipe.encode_prompt([caption], device=self.device)
            conds.append({"text": text[0], "pooled": pooled[0]})
        return conds

    def text_shapes(self, tokens):
        config = self.config_of("transformer")
        text = (tokens, config.get("in_text_dim", 3584))
        return {"text": text, "pooled": (config.get("in_text_dim2", 768),)}

    def recompute_context(self, transformer):
        # 重算不经过 forward；有陪练的图时，反向之前已经走过两次 forward，长度要换回那一次的
        processor = _shared_processor(transformer)
        return lambda: (nullcontext(), _lengths_of(processor))

    def predict_velocity(self, transformer, x_t, t, cond):
        _, _, h, w = x_t.shape
        text, mask = cond["text"], cond.get("text_mask")
        lengths = {} if mask is None else {"text_lengths": mask.sum(1).tolist()}
        out = transformer(
            hidden_states=x_t.permute(0, 2, 3, 1)[:, None],  # (B, C, h, w) -> (B, 1, h, w, C)
            encoder_hidden_states=text,
            pooled_projections=cond["pooled"],
            timestep=1000 * t,
            visual_rope_pos=[torch.arange(n, device=x_t.device) for n in (1, h // 2, w // 2)],
            text_rope_pos=torch.arange(text.shape[1], device=x_t.device),
            return_dict=False,
            **lengths,
        )
        return out[:, 0].permute(0, 3, 1, 2)  # (B, 1, h, w, C) -> (B, C, h, w)

    def _pipeline_type(self) -> type:
        return _pipeline_class()

    def prompt_arguments(self, conds, prefix=""):
        lengths = torch.tensor([0, *(len(cond["text"]) for cond in conds)], device=self.device)
        ends = lengths.cumsum(0, dtype=torch.int32)
        return {**super().prompt_arguments(conds, prefix), f"{prefix}prompt_cu_seqlens": ends}

    def sample_arguments(self, guidance, count):
        # 负面提示词不给就是空的，与训练时丢掉描述一致；不引导也要明说，它的默认值是 3.5
        return {"guidance_scale": max(1.0, guidance)}


def real_tokens_only(transformer):
    """让文字的补齐不参与注意力：forward 多收一个可选的 text_lengths（每个样本的真词元数）。

    stock 的 forward 没有掩码，成批时短句会看到补齐的词元，与单独算不同。没有给长度时一切照旧。
    """
    processor = _processor_class()()
    for block in transformer.text_transformer_blocks:
        block.self_attention.set_processor(processor)
    for block in transformer.visual_transformer_blocks:
        block.cross_attention.set_processor(processor)
    transformer.register_forward_pre_hook(_note_lengths, with_kwargs=True)
    return transformer


def _shared_processor(transformer):
    return transformer.visual_transformer_blocks[0].cross_attention.processor


def _lengths_of(processor):
    """记住现在的长度；进去时换成它，出来时换回。"""
    lengths = processor.lengths

    @contextmanager
    def swapped():
        now, processor.lengths = processor.lengths, lengths
        try:
            yield
        finally:
            processor.lengths = now

    return swapped()


def _note_lengths(transformer, args, kwargs):
    # 每次 forward 都重设，所以 stock 管线不会用到训练留下的
    _shared_processor(transformer).lengths = kwargs.pop("text_lengths", None)
    return args, kwargs


@cache
def _processor_class():
    from diffusers.models.transformers.transformer_kandinsky import Kandinsky5AttnProcessor

    class RealTokens(Kandinsky5AttnProcessor):
        """逐个样本切掉补齐的词元再做 stock 的注意力；不用掩码，所以哪种注意力内核都能用。"""

        lengths: list[int] | None = None

        def __call__(
            self, attn, hidden_states, encoder_hidden_states=None, rotary_emb=None, **options
        ):
            stock, rows = super().__call__, []
            if self.lengths is None:
                return stock(attn, hidden_states, encoder_hidden_states, rotary_emb, **options)
            for i, n in enumerate(self.lengths):
                x = hidden_states[i : i + 1]
                if encoder_hidden_states is None:  # 文字自己看自己
                    out = stock(attn, x[:, :n], rotary_emb=rotary_emb[:, :n])
                    rows.append(F.pad(out, (0, 0, 0, x.shape[1] - n)))  # (1, n, D) -> (1, L, D)
                else:  # 图像看文字
                    rows.append(stock(attn, x, encoder_hidden_states[i : i + 1, :n]))
            return torch.cat(rows)

    return RealTokens


@cache
def _pipeline_class():
    from diffusers import Kandinsky5T2IPipeline
    from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

    class Kandinsky5Pipeline(Kandinsky5T2IPipeline):
        """stock 管线，只补三处：不改尺寸、成批与单张一样、结果叫 images。"""

        def __call__(self, prompt=None, *, width=1024, height=1024, generator=None, **options):
            # stock 只认七种 1024 级的尺寸，别的会悄悄换掉
            self.resolutions = [(width, height)]
            options.update(width=width, height=height)
            draw = super().__call__
            if not isinstance(prompt, list):
                images = draw(prompt, generator=generator, **options).image
            else:  # stock 成批时没有掩码，一句句画才与单独画一样
                sources = generator if isinstance(generator, list) else [generator] * len(prompt)
                drawn = (
                    draw(line, generator=source, **options).image[0]
                    for line, source in zip(prompt, sources, strict=True)
                )
                images = list(drawn)
                if options.get("output_type") == "np":
                    images = np.stack(images)  # (B, H, W, 3)，与 stock 的其他管线一样
            return ImagePipelineOutput(images=images)

    return Kandinsky5Pipeline
