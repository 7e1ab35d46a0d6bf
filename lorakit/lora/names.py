"""LoRA 文件里的一个名字：哪一层的哪一样；不是 LoRA 的，说出它是什么。

各家的写法（路径是 diffusers 的层名，或原作者的，见 fused.py）：
  diffusers   transformer.<路径>.lora_A.weight / lora_B.weight，DoRA 另有 lora_magnitude_vector
  PEFT        base_model.model.<路径>.lora_A[.适配器名].weight
  DiffSynth   [pipe.dit.]<路径>.lora_A.default.weight
  ComfyUI     diffusion_model.<路径>.lora_A.weight，DoRA 另有 dora_scale
  ai-toolkit  同 diffusers 或 ComfyUI，DoRA 另有 magnitude
  kohya       lora_unet_<路径，点换成下划线>.lora_down / lora_up.weight 加 .alpha
  OneTrainer  lora_transformer_<路径，点换成下划线>，其余同 kohya
  LyCORIS     lycoris_<路径，点换成下划线>.lokr_w1 / lokr_w2 加 .alpha（LoKr，见 lokr.py）
  XLabs       double_blocks.0.processor.qkv_lora1.down / up.weight（1 是图像流，2 是文字流）
  别的        <路径>_lora.down / lora_linear_layer.down.weight，<路径>.lora_A（没有 .weight）
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

TENSOR = re.compile(
    r"(.+?)(?:\.lora[._](?P<lora>A|B|down|up)(?P<adapter>\.[^.]+)?\.weight|\.lora_(?P<bare>A|B)"
    r"|(?:_lora|\.lora_linear_layer)\.(?P<side>down|up)\.weight|\.(?P<alpha>alpha)"
    r"|\.(?P<moved>lora_magnitude_vector(?:\.[^.]+){0,2}|magnitude)|\.(?P<dora>dora_scale)"
    r"|\.lokr_(?P<lokr>w[12](?:_[ab])?)(?P<product>\.[^.]+)?)"
)
# torch.compile、FSDP、重算一块一块套的壳，写在名字中间
WRAPPED = re.compile(r"(?<![^.])_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
XLABS = re.compile(r"(.*?)(double|single)_blocks\.(\d+)\.processor\.(qkv|proj)_lora([12]?)\.")
PROCESSOR = re.compile(r"(.+)\.processor\.(to_[qkv]|to_out|add_[qkv]_proj|to_add_out)_lora\.")
SIDES = {"down": "A", "up": "B"}
# 前缀 -> 是谁的写法
DOTTED = {
    "base_model.model.": "PEFT",
    "transformer.": "diffusers",
    "diffusion_model.": "ComfyUI",
    "pipe.dit.": "DiffSynth",
    "model.": "ComfyUI",
    "unet.": "diffusers",
    "dit.": "DiffSynth",
    "pipe.": "diffusers",
    "net.": "",  # 多卡、torch.compile、别的框架的外壳
    "denoiser.": "",
    "module.": "",
    "_orig_mod.": "",
}
FLAT = {"lora_unet_": "kohya", "lora_transformer_": "OneTrainer", "lycoris_": "LyCORIS"}
# Transformer 以外的部分：文本编码器、VAE、附带的触发词
OTHERS = re.compile(
    r"(base_model\.model\.)?(text_encoders?(_\d)?\.|text_model\.|(clip_[lg]|t5|t5xxl)\.|vae\.)"
    r"|lora_(prior_)?te\d*_|lora_vae_|lycoris_(te\d*|text_model)_|conditioner\.|cond_stage_model\.|bundle_emb\."
)
# 名字里有什么 -> 它是什么；先写的先认
KINDS = {
    r"\.lora_[ab](\.|$)": "MLX 的 LoRA（名字小写，矩阵是转置的）",
    r"\.hada_[wt]\d": "LoHa（LyCORIS 的一种）",
    r"\.lokr_t2|\.lora_mid": "卷积层的 LoCon 或 LoKr（Tucker 分解）",
    r"\.(oft_\w+|boft_\w+)": "OFT",
    r"\.(a1|a2|b1|b2|bm1|bm2)\.weight$": "GLoRA",
    r"\.ia3_|\.on_input$": "(IA)³",
    r"\.(diff|diff_b|set_weight|w_norm|b_norm)$": "权重的差（full、diff），不是 LoRA",
    r"\.vera_lambda": "VeRA",
    r"\.lora_E(\.|$)|\.ranknum": "AdaLoRA",
    r"\.lora[._](B|up)(\.[^.]+)?\.bias$": "带偏置的 LoRA（lora_bias）",
    r"\.reshape_weight$": "换了底模形状的 LoRA（reshape_weight）",
    r"\.lora_embedding_[AB]": "词嵌入的 LoRA",
    r"\.(SCB|absmax|quant_\w+|scale_weight|weight_scale|qweight|qzeros)(\.|$)": "量化过的权重",
    r"\.lora_(down|up)$|\.wscales$|\.smooth(_factor\w*)?$": "Nunchaku 的量化格式（SVDQuant）",
    r"\.bone_block": "Bone（PEFT 的一种）",
    r"lllite": "ControlLLLite",
    r"controlnet|control_model\.|control_net": "ControlNet",
    r"ip_adapter|^image_proj\.": "IP-Adapter",
    r"^emb_params$|string_to_(param|token)|^clip_[lg]$|^<.*>$": "文本反演（textual inversion）",
    r"^(first_stage_model\.|vae\.)?(encoder|decoder)\.(conv_in|conv1|down|up|mid)": "VAE",
    r"^(text_model|encoder\.block|shared|model\.embed_tokens)\.": "文本编码器",
    r"(_blocks|layers|blocks|_refiner)\.\d+\..+\.weight$|^x_embedder\.": "整个模型",
}  # fmt: skip
WHOLE = (
    "整个模型",
    "VAE",
    "文本编码器",
    "ControlNet",
    "ControlLLLite",
    "IP-Adapter",
    "文本反演（textual inversion）",
)  # 不是加在底模上的一点点
OWN = ("lora_", "lokr_")  # 这里读得了的
ROUTED = re.compile(r"(LILY|SHADOW|POLY|XLORA|CARTRIDGE|CPT|\w*(PROMPT|PREFIX)\w*|P_TUNING)（PEFT")
MERGE = (
    "在训练它的地方用 PEFT：merge_and_unload()，再用 save_pretrained(文件夹) 把整个 transformer "
    "存下来，换掉底模文件夹里的 transformer，model.path 写那个底模文件夹"
)
# 一层也放不上的文件，名字里有什么 -> 给什么模型练的；先写的先认，. 是点或下划线
MODELS = {
    r"(down|up|input|output)_blocks.\d|mid_block.|middle_block.": "SD 1.5 或 SDXL",
    r"joint_blocks.\d": "SD 3",
    r"(visual|text)_transformer_blocks.\d": "Kandinsky 5",
    r"(^|\.|_)blocks.\d+.(self|cross)_attn.": "Wan",
    r"(layers|noise_refiner|context_refiner).\d+.(attention|feed_forward|adaLN)": "Z-Image",
    r"img_mlp.(proj|gate_layer|gate_up|out)(\.|_|$)": "Qwen-Image 2.1",
    r"(img|txt)_mlp.net.|(img|txt)_mod.1(\.|_|$)": "Qwen-Image",
    r"to_qkv_mlp_proj|ff(_context)?.linear_|single_transformer_blocks.\d+.attn.to_out": "FLUX.2",
    r"single_transformer_blocks.\d|(img|txt)_mod.lin|(vector|guidance)_in.": "FLUX.1",
    r"(double|single)_blocks.\d": "FLUX.1 或 FLUX.2",
    r"transformer_blocks.((3[2-9]|[45]\d).attn.to_|(19|[2-5]\d).attn.add_)": "Qwen-Image",
    r"transformer_blocks.(19|2\d|3[01]).attn.to_": "Qwen-Image 2.1 或 Qwen-Image",
}  # fmt: skip


class Place(NamedTuple):
    """一个张量：层名（没有去前缀）、是哪一样（A、B、alpha、moved、dora、w1 …）、适配器的名字。"""

    layer: str
    kind: str
    adapter: str = ""


def parse(key: str) -> Place | None:
    """张量的名字 -> 它是哪一层的什么；不是 LoRA 的张量就是 None。"""
    key = WRAPPED.sub("", key)
    side = re.search(r"_lora[12]?\.(down|up)\.weight$", key)
    if side and (found := XLABS.match(key)):
        return Place(_xlabs(*found.groups()), SIDES[side[1]])
    if side and (found := PROCESSOR.match(key)):
        called = found[2].replace("to_out", "to_out.0")
        return Place(f"{found[1]}.{called}", SIDES[side[1]])
    found = TENSOR.fullmatch(key)
    if found is None:
        return None
    lora = found["lora"] or found["bare"] or found["side"]
    kind = found["alpha"] or (found["moved"] and "moved") or (found["dora"] and "dora")
    adapter = found["adapter"] or found["product"] or ""
    return Place(found[1], SIDES.get(lora, lora) or kind or found["lokr"], adapter)


def _xlabs(prefix: str, block: str, number: str, what: str, stream: str) -> str:
    if block == "single":
        return f"{prefix}single_blocks.{number}.linear{'1.qkv' if what == 'qkv' else '2'}"
    side = "txt" if stream == "2" else "img"
    return f"{prefix}double_blocks.{number}.{side}_attn.{what}"


def resolve(
    layer: str, known: Iterable[str], flat: Mapping[str, str]
) -> tuple[str | None, str | None]:
    """去掉前缀 -> (模型里的层名, 谁的写法)；哪里也放不上，层名就是 None。"""
    whose = ""
    for _ in range(len(DOTTED) + 1):
        if layer in known:
            return layer, whose
        prefix = next((p for p in (*FLAT, *DOTTED) if layer.startswith(p)), None)
        if prefix is None:
            break
        layer, whose = layer.removeprefix(prefix), whose or (FLAT | DOTTED)[prefix]
    return flat.get(layer.replace(".", "_")), whose  # 点与下划线也有混着写的


def is_other(key: str) -> bool:
    """是不是 Transformer 以外那一部分的张量。"""
    return OTHERS.match(key) is not None


def kind_of(keys: Iterable[str]) -> str | None:
    """读不了的几个名字 -> 它是什么；认不出来就是 None。"""
    keys = list(keys)
    if (kind := _first(KINDS, keys)) is not None and kind != "整个模型":
        return kind
    others = (item for item in PEFT_TYPE_TO_PREFIX_MAPPING.items() if item[1] not in OWN)
    peft = {rf"\.{prefix}": f"{method.value}（PEFT 的一种）" for method, prefix in others}
    return _first(peft, keys) or kind


def mend_of(keys: Iterable[str], kind: str | None) -> str:
    """读不了的是 kind 的文件：还能怎么办，一句话；没有办法也直说。"""
    if kind and ROUTED.match(kind):
        return "它看输入来定怎么改，合并不进底模，这里用不上"
    if kind and "量化" in kind:
        return "请换没有量化的那一份"
    if any(key.startswith("base_model.") for key in keys):
        return f"请{MERGE}"
    return "请用训练它的工具合并进底模，或换成普通 LoRA"


def model_of(keys: Iterable[str]) -> str | None:
    """一层也放不上的文件像是给什么模型练的；看不出来就是 None。"""
    return _first(MODELS, list(keys))


def _first(table: Mapping[str, str], keys: list[str]) -> str | None:
    hits = (said for pattern, said in table.items() if any(re.search(pattern, k) for k in keys))
    return next(hits, None)


def is_lora(keys: Iterable[str]) -> bool:
    """有没有一个张量是读得了的 LoRA 或 LoKr 的。"""
    return any((place := parse(key)) and place.kind not in ("alpha", "dora") for key in keys)
