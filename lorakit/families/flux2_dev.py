"""FLUX.2 dev：结构与 klein 相同，大得多；文字条件取自 Mistral 3，引导训练在模型里。"""

from typing import ClassVar

from lorakit.families.flux2_klein import TIME, Flux2Klein

GUIDANCE = TIME.replace("timestep", "guidance")


class Flux2Dev(Flux2Klein):
    """black-forest-labs/FLUX.2-dev（32 B）：画图、照参考图改图；训练时引导喂 train.guidance。"""

    name = "flux2-dev"
    called: ClassVar = {"": ("Flux.2-dev", "flux_2_dev")}
    pipeline_class = "Flux2Pipeline"
    # stock 的是 PixtralProcessor，要装 torchvision；只编文字时它也只是套模板、查这个分词器
    text_parts: ClassVar = {
        "text_encoder": "Mistral3ForConditionalGeneration",
        "tokenizer": "AutoTokenizer",
    }
    licences: ClassVar = {"": "flux-dev-non-commercial-license"}
    workflows: ClassVar = {"": "flux2-dev"}
    controls = (0, 6)
    embedded_guidance = True
    full_size: ClassVar = {
        **Flux2Klein.full_size,
        "transformer": {
            "_class_name": "Flux2Transformer2DModel", "guidance_embeds": True,
            "joint_attention_dim": 15360,
        },
        "text_encoder": {  # 24 B；它的尺寸就是 transformers 的默认值
            "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
        },
    }  # fmt: skip
    other_sizes: ClassVar = {}
    original: ClassVar = {
        **Flux2Klein.original,
        "guidance_in.in_layer": (f"{GUIDANCE}linear_1",),
        "guidance_in.out_layer": (f"{GUIDANCE}linear_2",),
    }
    misses: ClassVar = {
        **Flux2Klein.misses, "kohya diffusers": "stream_modulation|norm_out|guidance_embedder",
    }  # fmt: skip
    distilled: ClassVar = {"turbo": "black-forest-labs/FLUX.2-dev"}

    def sample_arguments(self, guidance, count):
        return {"guidance_scale": guidance, "max_sequence_length": self.text_length}
