"""Qwen-Image 2.1：画图、改图是同一个单流模型，Qwen3-VL 编码，VAE 缩 16 倍、有透明通道。"""

from itertools import groupby
from typing import ClassVar

import torch

from lorakit.families import shared
from lorakit.families.base import Family
from lorakit.families.processor import PictureProcessor
from lorakit.families.shared import Cond
from lorakit.memory import loading

BASE = "Qwen/Qwen-Image-2.1"
SLOT = 4  # Qwen3-VL 的一个图像词元占 2x2 个潜变量词元的位置


class QwenImage21(Family):
    """Qwen/Qwen-Image-2.1（7 B）；时间参数是 t，输出就是 v，引导训练在模型里（不是它的输入）。

    一串词元里先是文字与控制图（它们总看见 t = 0），最后是要画的图；一个潜变量就是一个词元。
    """

    name = "qwen-image-2.1"
    called: ClassVar = {"": ("Qwen-Image-2.1", "qwen_image_2.1")}
    pipeline_class = "QwenImage21Pipeline"
    licences: ClassVar = {"": "qwen-research"}
    workflows: ClassVar = {"edit": "qwen-image-2.1-edit", "": "qwen-image-2.1"}
    multiple = 32
    compression = 16
    controls = (0, 3)
    text_sees = "fitted"
    sees_alpha = True
    stock_batches = False  # 补齐会挪动排在后面的图的位置编号
    text_parts: ClassVar = {
        "text_encoder": "Qwen3VLForConditionalGeneration", "processor": "Qwen2Tokenizer",
    }  # fmt: skip
    caption_tokenizer = "processor"
    caption_limit = 1024
    blank = " "  # stock 管线也把空的换成一个空格
    full_size: ClassVar = {
        "transformer": {"_class_name": "QwenImage21Transformer2DModel", "context_in_dim": 4096},
        "vae": {"_class_name": "AutoencoderKLQwenImage21", "z_dim": 64},
        "text_encoder": {
            "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl",
            "text_config": {
                "model_type": "qwen3_vl_text", "hidden_size": 4096, "intermediate_size": 12288,
                "num_hidden_layers": 36, "num_key_value_heads": 8,
                "rope_parameters": {
                    "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]
                },
            },
            "vision_config": {"model_type": "qwen3_vl_vision", "out_hidden_size": 4096},
        },
        "processor": {"patch_size": 16},
        "scheduler": {
            "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9,
            "max_image_seq_len": 8192,
        },
    }  # fmt: skip
    targets: ClassVar = {
        "attention": r".*\.attn\.(to_q|to_k|to_v|to_out\.0)",
        "image-attention": r".*\.attn\.(to_q|to_k|to_v|to_out\.0)",  # 单流：图与文字共用
        "all-linear": r"transformer_blocks\..*",
    }
    # ComfyUI 在 diffusion_model. 之后只认并起来的 gate_up，DiffSynth 不认 transformer.
    comfyui_prefix = ""
    read_by: ClassVar = {
        "diffusers": ("diffusers", "ComfyUI"),
        "comfyui": ("ComfyUI", "DiffSynth"),
        "kohya": ("musubi",),  # 只有注意力的，ComfyUI 与 diffusers 也读得了；前馈的不行
    }
    # 只用来读：ComfyUI 载入时把两层并成一层
    original: ClassVar = {
        "transformer_blocks.{}.img_mlp.gate_up": (
            "transformer_blocks.{}.img_mlp.gate_layer", "transformer_blocks.{}.img_mlp.proj",
        ),
    }  # fmt: skip
    distilled: ClassVar = {"Turbo": BASE, "Lightning": BASE}

    def _load_text(self):
        encoder, _ = super()._load_text()
        return encoder, self._processor()

    def _load_transformer(self):
        made = super()._load_transformer()
        positions = made.pos_embed
        positions.freqs = [table.to(self.device) for table in positions.freqs]
        return made

    def _processor(self) -> PictureProcessor:
        from transformers import Qwen2Tokenizer, Qwen2VLImageProcessorPil

        place = {"subfolder": "processor", "local_files_only": True}
        with loading.explaining(self.folder / "processor"):
            made = (Qwen2VLImageProcessorPil, Qwen2Tokenizer)
            images, tokenizer = (cls.from_pretrained(self.folder, **place) for cls in made)
        return PictureProcessor(images, tokenizer, tokenizer.chat_template)

    def pipeline(self, transformer, vae="load", text="load"):
        # 管线一造就要数模板有几个词元，所以没有编码器也要给它处理器
        return super().pipeline(
            transformer, vae, (None, self._processor()) if text is None else text
        )

    @torch.no_grad()
    def encode_images(self, pixels):
        pixels = pixels.to(self.device, self.dtype)
        if pixels.shape[1] == 3:  # 没有透明通道：处处不透明
            pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
        posterior = self.load("vae").encode(pixels[:, :, None]).latent_dist
        mean, std = shared.latent_scales(self.load("vae"), posterior.mean)
        return (posterior.mean[:, :, 0] - mean) / std, posterior.std[:, :, 0] / std

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """归一化的潜变量 (B, C, h, w) -> 图 (B, 3, H, W)，[-1, 1]，透明的地方露出白底；
        clear 是 True 就连透明通道 (B, 4, H, W)。"""
        latents = latents.to(self.device, self.dtype)
        mean, std = shared.latent_scales(self.load("vae"), latents)
        drawn = self.load("vae").decode((latents * std + mean)[:, :, None]).sample[:, :, 0]
        drawn = drawn.clamp(-1, 1)
        color, alpha = drawn.split([3, 1], dim=1)
        return drawn if self.clear else 1 - (1 - color) * (alpha + 1) / 2

    @torch.no_grad()
    def encode_prompts(self, captions, refs=None) -> list[Cond]:
        pipe = self.pipeline(transformer=None, vae=None)
        if not any(refs or ()):
            embeds, mask, _ = pipe.encode_prompt(list(captions), device=self.device)
            if mask is None:
                return [{"text": row} for row in embeds]
            return [{"text": row[keep.bool()]} for row, keep in zip(embeds, mask, strict=True)]
        conds = []
        for caption, pictures in zip(captions, refs, strict=True):  # 一句句来：图的张数可以不同
            image = [one.convert("RGBA") for one in pictures]
            embeds, _, slots = pipe.encode_prompt([caption], image=image, device=self.device)
            # 图在文字里占的位置是几个数，记成空张量的形状：训练时不必从显卡上读回来
            conds.append({"text": embeds[0], "gaps": torch.empty(*_gaps(slots[0].tolist()), 0)})
        return conds

    def text_shapes(self, tokens):
        return {"text": (tokens, self.config_of("transformer").get("context_in_dim", 4096))}

    def cond_shapes(self, tokens, side, controls=0):
        length = tokens + controls * (side // self.multiple) ** 2
        shapes = super().cond_shapes(length, side, controls)
        return shapes | ({"gaps": (8, 6, 0)} if controls else {})

    def predict_velocity(self, transformer, x_t, t, cond):
        if "text_mask" in cond:  # 长短不一，见 stock_batches
            return self._by_length(transformer, x_t, t, cond)
        b, _, h, w = x_t.shape
        pictures = [*shared.controls(cond, x_t), x_t]  # 控制图在前，要画的图在最后
        text = transformer.txt_in(cond["text"])
        gaps = cond["gaps"].shape[1:3] if "gaps" in cond else ()
        parts, places, runs = [], [], []
        cursor = position = start = 0  # 文字用到第几个；位置编号到几；整串排到第几个
        for i, x in enumerate(pictures):
            end = cursor + gaps[min(i, 1)] if i < len(pictures) - 1 else text.shape[1]
            image = transformer.img_in(x.flatten(2).transpose(1, 2))  # (B, C, h, w) -> (B, hw, C)
            parts += [text[:, cursor:end], image]
            places += _places(position, end - cursor, x)
            position += end - cursor + max(x.shape[2:])
            for length, said in ((end - cursor, True), (image.shape[1], False)):
                runs += [(start, start + length, said)] * bool(length)
                start += length
            cursor = end + image.shape[1] // SLOT
        out = self._blocks(transformer, torch.cat(parts, 1), torch.cat(places, 1), t, runs)
        return out[:, -h * w :].transpose(1, 2).reshape(b, -1, h, w)

    @staticmethod
    def _blocks(transformer, x, places, t, runs):
        """stock 的 forward，只是排法 (起, 止, 是不是文字) 事先就是数，不用从显卡上读回来。"""
        target = torch.arange(x.shape[1], device=x.device) >= runs[-1][0]
        # 文字与控制图总看见 t = 0
        time = torch.cat([t.to(x.dtype), t.new_zeros(1, dtype=x.dtype)])
        embedded = transformer.time_text_embed(time, x)
        modulation = transformer.modulation(embedded)
        tables = transformer.pos_embed.freqs
        turned = [table[place] for table, place in zip(tables, places, strict=True)]
        rotary = torch.cat(turned, dim=-1)
        again = torch.is_grad_enabled() and transformer.gradient_checkpointing
        for block in transformer.transformer_blocks:
            given = (x, modulation, rotary, None, target, None, None, None, runs[:-1], None)
            x = transformer._gradient_checkpointing_func(block, *given) if again else block(*given)
        return transformer.proj_out(transformer.norm_out(x, embedded, target))

    def _by_length(self, transformer, x_t, t, cond):
        """文字一样长的一起算，去掉补齐，再排回原来的次序。"""
        lengths, made = cond["text_mask"].sum(1).tolist(), {}
        for length in sorted(set(lengths)):
            rows = [i for i, one in enumerate(lengths) if one == length]
            given = {k: v[rows] for k, v in cond.items() if not k.endswith("_mask")}
            given["text"] = given["text"][:, :length]
            drawn = self.predict_velocity(transformer, x_t[rows], t[rows], given)
            made.update(zip(rows, drawn.split(1), strict=True))
        return torch.cat([made[i] for i in range(len(x_t))])

    def prompt_arguments(self, conds, prefix=""):
        batch = self.collate(conds)
        said = {f"{prefix}prompt_embeds": batch["text"]}
        if "text_mask" in batch:
            said[f"{prefix}prompt_embeds_mask"] = batch["text_mask"]
        return said

    def sample_arguments(self, guidance, count):
        # 没有负面提示词管线就不做引导
        negative = {"negative_prompt": [self.blank] * count} if guidance > 1 else {}
        return {"true_cfg_scale": guidance, **negative}


def _gaps(slots: list[bool]) -> tuple[int, int]:
    """哪些词元是图的 -> 第一张图前面有几个文字词元，相邻两张图之间有几个（只有一张就是 0）。"""
    runs = [(is_image, len(list(group))) for is_image, group in groupby(slots)]
    lengths = [length for is_image, length in runs[:-1] if not is_image]
    return lengths[0], lengths[1] if len(lengths) > 1 else 0


def _places(position: int, length: int, x: torch.Tensor) -> list[torch.Tensor]:
    """length 个文字词元与接着的一张图 (B, C, h, w)：三维位置 (帧, 行, 列)，各 (3, L)。

    文字的三维一样，一个接一个；图的帧不动，行列以零为中心。与 stock 的 QwenImage21Rope 相同。
    """
    h, w = x.shape[2:]
    said = torch.arange(position, position + length, device=x.device).expand(3, -1)
    sides = ((position + length, position + length + 1), (h // 2 - h, h // 2), (w // 2 - w, w // 2))
    return [said, torch.cartesian_prod(*(torch.arange(*s, device=x.device) for s in sides)).T]
