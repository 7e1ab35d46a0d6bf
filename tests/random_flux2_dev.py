"""随机权重的微型 FLUX.2 dev：真正的类、diffusers 布局，只为对照，不会画画。"""

import json
from pathlib import Path

import random_flux2_klein
import torch
from diffusers import DiffusionPipeline, Flux2Transformer2DModel
from random_zimage import TOKENIZER
from transformers import AutoTokenizer, Mistral3Config, Mistral3ForConditionalGeneration

to_latents = random_flux2_klein.to_latents
# 与 Mistral 的模板一样：系统、用户各一段，内容是一串 {"type": "text"}
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
)


def build(folder: Path) -> Path:
    """写一条随机权重的管线到 folder 并返回它；每次写出的权重都一样。"""
    pipe = DiffusionPipeline.from_pretrained(random_flux2_klein.build(folder))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        tokenizer.chat_template, tokenizer.model_max_length = CHAT, 160
        text = {  # 管线要取第 10、20、30 层，所以只能窄，不能浅
            "model_type": "mistral", "vocab_size": len(tokenizer), "hidden_size": 16,
            "intermediate_size": 16, "num_hidden_layers": 30, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.5,
        }  # fmt: skip
        vision = {
            "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "image_size": 32,
        }  # fmt: skip
        encoder = Mistral3ForConditionalGeneration(
            Mistral3Config(text_config=text, vision_config=vision, image_token_index=0)
        )
        config = dict(pipe.transformer.config) | {"guidance_embeds": True}
        transformer = Flux2Transformer2DModel.from_config(config)
        for name, parameter in transformer.named_parameters():
            if "modulation" in name or "guidance_embedder" in name:
                torch.nn.init.normal_(parameter, std=0.3)  # 默认的初值太小，几乎不起作用
    for part, made in (("text_encoder", encoder), ("tokenizer", tokenizer),
                       ("transformer", transformer)):  # fmt: skip
        made.save_pretrained(folder / part)
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index["_class_name"] = "Flux2Pipeline"
    index.pop("is_distilled", None)
    index["text_encoder"] = ["transformers", "Mistral3ForConditionalGeneration"]
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder
