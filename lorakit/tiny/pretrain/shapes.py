"""微型模型的尺寸：与真模型同类、同结构，只是小。"""

import json
import shutil
from pathlib import Path

SEEN = 56  # 微型模型的 Qwen2.5-VL 看图时的边长（像素）：2x2 个词元，CPU 上也快


def qwen_vae():
    """AutoencoderKLQwenImage，8 倍压缩、16 个通道；只处理单张图，所以不要时间方向的上下采样。"""
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=16,
        dim_mult=[1, 2, 2, 3],
        num_res_blocks=1,
        temperal_downsample=[False] * 3,
    )


def qwen_transformer(layers: int = 4):
    """QwenImageTransformer2DModel：4 个头 x 40，8x8 个图像词元。"""
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        patch_size=2, in_channels=64, out_channels=16, num_layers=layers, attention_head_dim=40,
        num_attention_heads=4, joint_attention_dim=128, axes_dims_rope=(8, 16, 16),
    )  # fmt: skip


def qwen_text_encoder(tokenizer):
    """Qwen2_5_VLForConditionalGeneration：两层语言模型（宽 128）加两层视觉塔。"""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in
           ("vision_start", "vision_end", "image_pad", "video_pad")}  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
        ),
        vision_config=dict(
            depth=2, hidden_size=64, intermediate_size=128, num_heads=4, out_hidden_size=128,
            fullatt_block_indexes=[1],
        ),
        image_token_id=ids["image_pad"], video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config)


# Qwen3-VL 的对话模板，只有文字
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
)


def qwen_2_1_vae():
    """AutoencoderKLQwenImage21：RGBA，16 倍压缩、64 个通道；不要时间方向的上下采样。"""
    from diffusers import AutoencoderKLQwenImage21

    return AutoencoderKLQwenImage21(
        base_dim=24, decoder_base_dim=32, z_dim=64, dim_mult=[1, 1, 2, 2, 2], num_res_blocks=1,
        temperal_downsample=[False] * 4,
    )  # fmt: skip


def qwen_2_1_transformer(layers: int = 6):
    """QwenImage21Transformer2DModel：3 个头 x 48，8x8 个图像词元，每个 64 个通道。"""
    from diffusers import QwenImage21Transformer2DModel

    return QwenImage21Transformer2DModel(
        in_channels=64, out_channels=64, num_layers=layers, attention_head_dim=48,
        num_attention_heads=3, context_in_dim=128, axes_dims_rope=(8, 20, 20),
    )  # fmt: skip


def qwen_2_1_text_encoder(tokenizer):
    """Qwen3VLForConditionalGeneration：两层语言模型（宽 128）加一层很窄的视觉塔。"""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{mark}|>") for name, mark in
           (("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
            ("vision_end", "vision_end"))}  # fmt: skip
    text = dict(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    vision = dict(
        depth=1, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=128,
        num_position_embeddings=16, deepstack_visual_indexes=[],
    )  # fmt: skip
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    )


def qwen_2_1_pipeline(tokenizer_folder: Path, side: int):
    """随机权重的整条微型 QwenImage21Pipeline，还没有 VAE；side 是文本编码器看图的边长（像素）。"""
    from diffusers import QwenImage21Pipeline
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from lorakit.families.processor import PictureProcessor

    tokenizer = Qwen2Tokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = CHAT
    size = {"shortest_edge": 32**2, "longest_edge": side**2}
    images = Qwen2VLImageProcessorPil(size=size, patch_size=16)
    scheduler = qwen_scheduler()
    scheduler.register_to_config(shift_terminal=None)  # 2.1 的噪声一直走到 0
    return QwenImage21Pipeline(
        scheduler=scheduler, vae=None, text_encoder=qwen_2_1_text_encoder(tokenizer),
        processor=PictureProcessor(images, tokenizer, CHAT), transformer=qwen_2_1_transformer(),
    )  # fmt: skip


def qwen_scheduler():
    """与 Qwen/Qwen-Image 相同的调度器设置。"""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256, base_shift=0.5, max_image_seq_len=8192, max_shift=0.9,
        shift_terminal=0.02, use_dynamic_shifting=True, time_shift_type="exponential",
    )  # fmt: skip


def qwen_pipeline(tokenizer_folder: Path, layers: int = 4, vae=None):
    """随机权重的整条微型 QwenImagePipeline。"""
    from diffusers import QwenImagePipeline
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer.from_pretrained(tokenizer_folder)
    return QwenImagePipeline(
        scheduler=qwen_scheduler(),
        vae=vae or qwen_vae(),
        text_encoder=qwen_text_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=qwen_transformer(layers),
    )


def flux_vae(channels: tuple[int, ...] = (24, 48, 72, 72), latent_channels: int = 16):
    """AutoencoderKL，8 倍压缩、16 个通道，与 FLUX 的一样没有 quant_conv。"""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=channels, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, norm_num_groups=8,
        latent_channels=latent_channels, scaling_factor=0.3611, shift_factor=0.1159,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def flux_transformer(latent_channels: int = 16, layers: int = 2, single_layers: int = 3):
    """FluxTransformer2DModel：4 个头 x 32，双流块在前、单流块在后，引导是一个输入。"""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=4 * latent_channels, num_layers=layers, num_single_layers=single_layers,
        attention_head_dim=32, num_attention_heads=4, joint_attention_dim=96,
        pooled_projection_dim=64, guidance_embeds=True, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip


def flux_text_encoders(tokenizer, tokenizer_2):
    """CLIPTextModel（两层，宽 64）与 T5EncoderModel（两层，宽 96）。"""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=77, hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    t5 = T5Config(
        vocab_size=len(tokenizer_2), d_model=96, d_kv=24, d_ff=192, num_layers=2, num_heads=4,
        dropout_rate=0.0, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        pad_token_id=tokenizer_2.pad_token_id, eos_token_id=tokenizer_2.eos_token_id,
    )  # fmt: skip
    return CLIPTextModel(clip), T5EncoderModel(t5)


def flux_scheduler():
    """与 FLUX.1-dev 相同的调度器设置。"""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256, base_shift=0.5, max_image_seq_len=4096, max_shift=1.15, shift=3.0,
        use_dynamic_shifting=True,
    )  # fmt: skip


def flux_pipeline(folder: Path, vae=None, transformer=None):
    """随机权重的整条微型 FluxPipeline；分词器从 folder 里读。"""
    from diffusers import FluxPipeline
    from transformers import CLIPTokenizer, T5TokenizerFast

    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    tokenizer_2 = T5TokenizerFast.from_pretrained(folder, subfolder="tokenizer_2")
    text_encoder, text_encoder_2 = flux_text_encoders(tokenizer, tokenizer_2)
    return FluxPipeline(
        scheduler=flux_scheduler(),
        vae=vae or flux_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=transformer or flux_transformer(),
    )


def make_edit(folder: Path, plus: bool = False) -> Path:
    """把一个 Qwen-Image 文件夹改成编辑管线：补上 processor，改写 model_index.json。

    Args:
        plus: 要不要改成能看几张控制图的 QwenImageEditPlusPipeline。
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    target = folder / "processor"
    shutil.copytree(folder / "tokenizer", target, dirs_exist_ok=True)
    size = {"shortest_edge": SEEN**2, "longest_edge": SEEN**2}
    Qwen2VLImageProcessorPil(size=size).save_pretrained(target)
    video = {"video_processor_type": "Qwen2VLVideoProcessor", "size": size}
    (target / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2) + "\n")
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    index["_class_name"] = "QwenImageEditPlusPipeline" if plus else "QwenImageEditPipeline"
    index["processor"] = ["transformers", "Qwen2VLProcessor"]
    path.write_text(json.dumps(index, indent=2) + "\n")
    return folder
