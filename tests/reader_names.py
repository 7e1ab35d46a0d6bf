"""别的软件认得的 LoRA 层名：从它们的代码里读来的事实，只为核对我们写出的名字。

读的是这些版本：
  ComfyUI 0.33.0（2026-08）comfy/lora.py 的 model_lora_keys_unet、comfy/utils.py 的 *_to_diffusers
  sd-scripts 48d368f（2026-02）networks/lora_flux.py：只给双流块、单流块造层
  musubi-tuner 30c658c（2026-06）networks/lora_{qwen_image,zimage,kandinsky,flux_2}.py：只给块造层
  DiffSynth-Studio fed7b18（2026-08）utils/lora/general.py、flux.py，各个 DiT 的层名
  Qwen-Image 2.1 后来才有：ComfyUI 17358c8 的 comfy/lora.py（0.37 起），musubi-tuner 960b201 的
  lora_qwen_image_21.py，DiffSynth-Studio 14180a6 的 qwen_image_21_dit.py
  diffusers 0.42.1 loaders/lora_pipeline.py：transformer. 之后照层名，其余经各家的转换函数
"""

import re

from lorakit.families.registry import get

ATTN = "to_q|to_k|to_v|to_out.0|add_q_proj|add_k_proj|add_v_proj|to_add_out"
BFL = "<img|txt>_<attn.qkv|attn.proj|mlp.0|mlp.2"
CROSS = "to_query|to_key|to_value|out_layer"
# <a|b> 是几个里的一个，<0-59> 是块号
QWEN = [
    f"transformer_blocks.<0-59>.attn.<{ATTN}>",
    "transformer_blocks.<0-59>.<img|txt>_<mlp.net.0.proj|mlp.net.2|mod.1>",
]
FLUX = [
    f"transformer_blocks.<0-18>.attn.<{ATTN}>",
    "transformer_blocks.<0-18>.<ff|ff_context>.<net.0.proj|net.2>",
    "transformer_blocks.<0-18>.<norm1|norm1_context>.linear",
    "single_transformer_blocks.<0-37>.<attn.to_q|attn.to_k|attn.to_v>",
    "single_transformer_blocks.<0-37>.<proj_mlp|proj_out|norm.linear>",
]
FLUX_FUSED = [
    f"double_blocks.<0-18>.{BFL}|mod.lin>",
    "single_blocks.<0-37>.<linear1|linear2|modulation.lin>",
]


def flux2(double: str, single: str) -> tuple[list[str], list[str]]:
    """FLUX.2 的层名：diffusers 的、并起来的；双流块、单流块的块号。"""
    apart = [
        f"transformer_blocks.<{double}>.attn.<{ATTN}>",
        f"transformer_blocks.<{double}>.<ff|ff_context>.<linear_in|linear_out>",
        f"single_transformer_blocks.<{single}>.attn.<to_qkv_mlp_proj|to_out>",
    ]
    joined = [f"double_blocks.<{double}>.{BFL}>", f"single_blocks.<{single}>.<linear1|linear2>"]
    return apart, joined


KLEIN, KLEIN_FUSED = flux2("0-4", "0-19")
DEV, DEV_FUSED = flux2("0-7", "0-47")
QWEN_21_ATTN = "transformer_blocks.<0-31>.attn.<to_q|to_k|to_v|to_out.0>"
QWEN_21 = [QWEN_21_ATTN, "transformer_blocks.<0-31>.img_mlp.<proj|gate_layer|out>"]
# ComfyUI 载入时把 gate_layer 与 proj 并成 gate_up；diffusers 拆不开 lora_unet_ 里的 gate_layer
QWEN_21_FUSED = [QWEN_21_ATTN, "transformer_blocks.<0-31>.img_mlp.<gate_up|out>"]
QWEN_21_APART = [QWEN_21_ATTN, "transformer_blocks.<0-31>.img_mlp.<proj|out>"]
Z_BLOCKS = ("layers.<0-29>", "noise_refiner.<0-1>", "context_refiner.<0-1>")
Z_REST = [f"{block}.feed_forward.<w1|w2|w3>" for block in Z_BLOCKS]
Z_REST += [f"{block}.adaLN_modulation.0" for block in Z_BLOCKS[:2]]
Z_IMAGE = [*(f"{block}.attention.<to_q|to_k|to_v|to_out.0>" for block in Z_BLOCKS), *Z_REST]
Z_FUSED = [*(f"{block}.attention.<qkv|out>" for block in Z_BLOCKS), *Z_REST]
KANDINSKY = [
    f"text_transformer_blocks.<0-1>.self_attention.<{CROSS}>",
    f"visual_transformer_blocks.<0-49>.<self|cross>_attention.<{CROSS}>",
    "<text_transformer_blocks.<0-1>|visual_transformer_blocks.<0-49>>.feed_forward.<in|out>_layer",
    "text_transformer_blocks.<0-1>.text_modulation.out_layer",
    "visual_transformer_blocks.<0-49>.visual_modulation.out_layer",
]

# 块外的层；musubi、DiffSynth 的 FLUX 一个也不认
QWEN_REST = ["img_in", "txt_in", "proj_out", "norm_out.linear",
             "time_text_embed.timestep_embedder.linear_<1-2>"]  # fmt: skip
FLUX_REST = ["x_embedder", "context_embedder", "proj_out", "norm_out.linear",
             "time_text_embed.<timestep|guidance|text>_embedder.linear_<1-2>"]  # fmt: skip
FLUX_IN = ["img_in", "txt_in", "<time|guidance|vector>_in.<in|out>_layer"]
LAST = ["final_layer.linear", "final_layer.adaLN_modulation.1"]
KLEIN_REST = FLUX_REST[:4]
KLEIN_TIME = ["time_guidance_embed.timestep_embedder.linear_<1-2>"]
MODULATIONS = "<double_stream_modulation_<img|txt>|single_stream_modulation>"
GUIDANCE = ["time_guidance_embed.guidance_embedder.linear_<1-2>"]  # 只有 dev 有
QWEN_21_REST = ["img_in", "txt_in.<in|out>_layer", "modulation.1", "proj_out", "norm_out.linear",
                "time_text_embed.timestep_embedder.linear_<1-2>"]  # fmt: skip
Z_ENDS = ["all_x_embedder.2-1", "all_final_layer.2-1.<linear|adaLN_modulation.1>",
          "cap_embedder.1", "t_embedder.mlp.<0|2>"]  # fmt: skip
KANDINSKY_REST = [
    "<time|text|pooled_text|visual>_embeddings.in_layer", "time_embeddings.out_layer",
    "out_layer.<modulation.out_layer|out_layer>",
]  # fmt: skip

DOTS, KOHYA = ("", "transformer.", "diffusion_model."), ("lora_unet_",)
# 软件 -> 家族 -> ((前缀, 层名), ...)；以 _ 结尾的前缀之后，点换成了下划线
READERS = {
    "ComfyUI": {
        "qwen-image": ((*DOTS, *KOHYA, "lycoris_"), QWEN),
        "qwen-image-2.1": (("", "transformer.", "lycoris_"), QWEN_21,
                           ("diffusion_model.", *KOHYA), QWEN_21_FUSED),
        "flux": (("", "transformer.", "lycoris_", "lora_transformer_"), FLUX,
                 ("diffusion_model.", *KOHYA), FLUX_FUSED),
        "flux2-klein": (("", "transformer.", "lycoris_", "lora_transformer_"), KLEIN,
                        ("diffusion_model.", *KOHYA), KLEIN_FUSED),
        "flux2-dev": (("", "transformer.", "lycoris_", "lora_transformer_"), DEV,
                      ("diffusion_model.", *KOHYA), DEV_FUSED),
        "z-image": ((*DOTS, "lycoris_"), Z_IMAGE, ("diffusion_model.", *KOHYA), Z_FUSED),
        "kandinsky5": ((*DOTS, *KOHYA), KANDINSKY),
    },
    "sd-scripts": {"flux": (KOHYA, FLUX_FUSED)},
    "musubi": {
        "qwen-image": (KOHYA, QWEN),
        "qwen-image-2.1": (KOHYA, QWEN_21),
        "flux-kontext": (KOHYA, FLUX_FUSED),
        "flux2-klein": (KOHYA, KLEIN_FUSED),
        "flux2-dev": (KOHYA, DEV_FUSED),
        "z-image": (KOHYA, Z_IMAGE),
        "kandinsky5": (KOHYA, KANDINSKY),
    },
    "DiffSynth": {
        "qwen-image": (("", "diffusion_model."), QWEN),
        "qwen-image-2.1": (("", "diffusion_model."), QWEN_21),
        "flux": (("transformer.",), FLUX, KOHYA, FLUX_FUSED),
        "flux2-klein": (("", "diffusion_model."), KLEIN),
        "flux2-dev": (("", "diffusion_model."), DEV),
        "z-image": (("", "diffusion_model."), Z_IMAGE),
    },
    "diffusers": {
        "qwen-image": ((*DOTS[1:], *KOHYA), QWEN),
        "qwen-image-2.1": (DOTS[1:], QWEN_21, KOHYA, QWEN_21_APART),
        "flux": (("transformer.",), FLUX, ("diffusion_model.", *KOHYA), FLUX_FUSED),
        "flux2-klein": (("transformer.",), KLEIN, ("diffusion_model.", *KOHYA), KLEIN_FUSED),
        "flux2-dev": (("transformer.",), DEV, ("diffusion_model.", *KOHYA), DEV_FUSED),
        "z-image": ((*DOTS[1:], *KOHYA), Z_IMAGE),
        "kandinsky5": (("transformer.",), KANDINSKY),
    },
}  # fmt: skip

OUTSIDE = {
    "ComfyUI": {
        "qwen-image": ((*DOTS, *KOHYA), QWEN_REST),
        "qwen-image-2.1": (("", "transformer."), QWEN_21_REST),
        "flux": (("", "transformer."), FLUX_REST, ("diffusion_model.", *KOHYA), [*FLUX_IN, *LAST]),
        "flux2-klein": (("", "transformer."), KLEIN_REST, ("diffusion_model.", *KOHYA),
                        ["<img|txt>_in", "time_in.<in|out>_layer", f"{MODULATIONS}.lin", *LAST]),
        "flux2-dev": (("", "transformer."), KLEIN_REST, ("diffusion_model.", *KOHYA),
                      ["<img|txt>_in", "<time|guidance>_in.<in|out>_layer", f"{MODULATIONS}.lin",
                       *LAST]),
        "z-image": (DOTS, Z_ENDS),
        "kandinsky5": ((*DOTS, *KOHYA), KANDINSKY_REST),
    },
    "sd-scripts": {"flux": (KOHYA, FLUX_IN)},
    "musubi": {},
    "DiffSynth": {
        "qwen-image": (("", "diffusion_model."), QWEN_REST),
        "qwen-image-2.1": (("", "diffusion_model."), QWEN_21_REST),
        "flux2-klein": (("", "diffusion_model."),
                        [*KLEIN_REST, *KLEIN_TIME, f"{MODULATIONS}.linear"]),
        "flux2-dev": (("", "diffusion_model."),
                      [*KLEIN_REST, *KLEIN_TIME, *GUIDANCE, f"{MODULATIONS}.linear"]),
        "z-image": (("", "diffusion_model."), Z_ENDS),
    },
    "diffusers": {
        "qwen-image": ((*DOTS[1:], *KOHYA), QWEN_REST),
        "qwen-image-2.1": (("transformer.",), QWEN_21_REST),
        "flux": (("transformer.",), FLUX_REST),
        "flux2-klein": (("transformer.",), [*KLEIN_REST, *KLEIN_TIME, f"{MODULATIONS}.linear"],
                        KOHYA, ["<img|txt>_in", "time_in.<in|out>_layer", "final_layer.linear"]),
        "flux2-dev": (("transformer.",),
                      [*KLEIN_REST, *KLEIN_TIME, *GUIDANCE, f"{MODULATIONS}.linear"], KOHYA,
                      ["<img|txt>_in", "time_in.<in|out>_layer", "final_layer.linear"]),
        "z-image": ((*DOTS[1:], *KOHYA), Z_ENDS),
        "kandinsky5": (("transformer.",), KANDINSKY_REST),
    },
}  # fmt: skip


# ai-toolkit 27a03a9（2026-08）接着练别人的文件（pretrained_lora_path）时认得的：
# toolkit/lora_special.py 只给块造层，load_weights 之前各家把 diffusion_model. 换成 transformer.
# （FLUX.1、Kontext 不换）；Z-Image 只有 layers，FLUX.2 是原作者并起来的；
# 没有 Qwen-Image 2.1 与 Kandinsky 5
CONTINUES = {
    "qwen-image": (DOTS[1:], QWEN),
    "flux": (("transformer.",), FLUX),
    "flux2-klein": (DOTS[1:], KLEIN_FUSED),
    "flux2-dev": (DOTS[1:], DEV_FUSED),
    "z-image": (DOTS[1:], [one for one in Z_IMAGE if one.startswith("layers")]),
}


def pattern(template: str) -> str:
    """模板 -> 正则表达式。"""
    text = re.escape(template).replace(r"\|", "|")
    numbers = lambda m: f"<{'|'.join(map(str, range(int(m[1]), int(m[2]) + 1)))}>"  # noqa: E731
    return re.sub(r"<(\d+)\\-(\d+)>", numbers, text).replace("<", "(?:").replace(">", ")")


def known(reader: str, family: str, table=READERS) -> re.Pattern | None:
    """这个软件给这个家族认得的层名；不认这个家族就是 None。"""
    table = CONTINUES if reader == "ai-toolkit" else table[reader]
    # 同一个模型的另一版（改图的）继承自它，层名相同
    names = (getattr(cls, "name", "") for cls in get(family).__mro__)
    rules = next((table[name] for name in names if name in table), None)
    if rules is None:
        return None
    choices = []
    for prefixes, table in zip(rules[::2], rules[1::2], strict=True):
        dotted = "|".join(map(pattern, table))
        flat = dotted.replace(r"\.", "_")
        choices += [f"{re.escape(p)}(?:{flat if p.endswith('_') else dotted})" for p in prefixes]
    return re.compile("|".join(choices))
