"""别的训练器的叫法 -> 这里的：几张表，由 translation.py 照着逐项对应。"""

from lorakit.config.foreign import COMMON

AI_TOOLKIT = {  # config.process 的第一项里的名字 -> 这里的
    "training_folder": "run.output", "trigger_word": "data.trigger",
    "network.linear": "lora.rank",
    "network.type": "lora.variant",
    "save.save_every": "train.save_every", "save.max_step_saves_to_keep": "train.keep",
    "datasets.caption_dropout_rate": "data.caption_dropout",
    "datasets.resolution": "data.resolution", "datasets.flip_x": "data.flip",
    "train.batch_size": "train.batch_size", "train.steps": "train.steps",
    "train.gradient_accumulation_steps": "train.grad_accum",
    "train.gradient_accumulation": "train.grad_accum", "train.lr": "train.lr",
    "train.gradient_checkpointing": "memory.checkpointing", "train.optimizer": "train.optimizer",
    "train.dtype": "model.precision", "train.max_grad_norm": "train.max_grad_norm",
    "train.ema_config.ema_decay": "train.ema",
    "train.optimizer_params.weight_decay": "train.weight_decay",
    "model.name_or_path": "model.path", "model.quantize": "model.quantize",
    "model.assistant_lora_path": "model.training_adapter",
    "sample.sample_every": "sample.every", "sample.prompts": "sample.prompts",
    "sample.guidance_scale": "sample.guidance", "sample.sample_steps": "sample.steps",
    "sample.seed": "sample.seed", "sample.width": "sample.size",
}  # fmt: skip
KOHYA = COMMON | {
    "dit": "model.path", "resolution": "data.resolution",
    "train_data_dir": "data.folder", "reg_data_dir": "data.class_folder",
    "network_dim": "lora.rank", "network_alpha": "lora.alpha",
    "unet_lr": "train.lr", "lr_warmup": "train.warmup", "batch_size": "train.batch_size",
    "optimizer_type": "train.optimizer", "optimizer": "train.optimizer",
    "save_every_n_steps": "train.save_every", "gradient_checkpointing": "memory.checkpointing",
    "caption_dropout_rate": "data.caption_dropout", "prior_loss_weight": "data.class_weight",
    "flip_aug": "data.flip", "masked_loss": "data.mask",
}  # fmt: skip
ONETRAINER = {
    "base_model_name": "model.path", "training_method": "lora.kind", "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha", "learning_rate": "train.lr", "batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.grad_accum", "resolution": "data.resolution",
    "output_model_destination": "run.output", "optimizer.optimizer": "train.optimizer",
    "peft_type": "lora.variant", "learning_rate_scheduler": "train.schedule",
    "learning_rate_warmup_steps": "train.warmup", "clip_grad_norm": "train.max_grad_norm",
    "masked_training": "data.mask", "unmasked_weight": "data.mask_floor",
    "train_dtype": "model.precision", "gradient_checkpointing": "memory.checkpointing",
    "timestep_shift": "train.timestep.shift", "optimizer.weight_decay": "train.weight_decay",
    "timestep_distribution": "train.timestep.density",
    "text_encoder.dropout_probability": "data.caption_dropout",
}  # fmt: skip
# OneTrainer 的文件有几百项，多半是没有动过的默认值；只点这些会改变结果的名
DECISIVE = ("epochs", "layer_filter", "dropout_probability", "timestep_distribution",
            "noising_weight", "noising_bias", "loss_weight_fn", "loss_scaler",
            "train_any_embedding", "additional_embeddings", "custom_conditioning_image",
            "masked_prior_preservation_weight", "learning_rate_scaler")  # fmt: skip
KEPT = (None, "", 0, 0.0, False, [], {}, "NONE", "CONSTANT")  # 写着等于没有写
CONTROLS = ("control_path", *(f"control_path_{n}" for n in range(10)), "control_directory",
            "conditioning_data_dir")  # fmt: skip
PLACED = ("image_directory", "image_dir", "image_jsonl_file", "num_repeats", "is_reg", "subsets",
          *CONTROLS)  # fmt: skip
# 要看着别的一项才知道意思的；JOINED 的意思在 defaults.py 里
MEANT = ("lora_decompose", "ema", "ema_decay", "dynamic_timestep_shifting")
JOINED = ("network.linear_alpha", "network.alpha", "network.rank", "train.timestep_type",
          "timestep_sampling", "discrete_flow_shift")  # fmt: skip
SHARED = ("resolution", "batch_size", "flip_aug", "caption_dropout_rate")  # 数据设置里有对应的
MODULES = {  # network_module、model_type、arch 里的字样 -> 底模
    "qwen_image_21": "Qwen/Qwen-Image-2.1", "qwen_image_2_1": "Qwen/Qwen-Image-2.1",
    "qwen_image_edit": "Qwen/Qwen-Image-Edit", "qwen": "Qwen/Qwen-Image",
    "kontext": "black-forest-labs/FLUX.1-Kontext-dev",
    "flux_2_dev": "black-forest-labs/FLUX.2-dev", "flux2_dev": "black-forest-labs/FLUX.2-dev",
    "klein_base_9b": "black-forest-labs/FLUX.2-klein-base-9B",
    "klein_base_4b": "black-forest-labs/FLUX.2-klein-base-4B",
    "flux_2": "black-forest-labs/FLUX.2-klein-4B", "flux2": "black-forest-labs/FLUX.2-klein-4B",
    "flux": "black-forest-labs/FLUX.1-dev", "z_image": "Tongyi-MAI/Z-Image-Turbo",
    "zimage": "Tongyi-MAI/Z-Image-Turbo",
}  # fmt: skip
TRUE, FALSE = ("true", "on"), ("false", "off", "none", "null", "")
WORDS = {  # 设置 -> {他们的写法: 这里的写法}；写法都已换成小写
    "lora.variant": {"lora": "plain"}, "lora.kind": {"lora": "lora", "fine_tune": "full"},
    "model.quantize": {"true": "fp8", "false": "none"},
    "memory.checkpointing": {**dict.fromkeys((*TRUE, "cpu_offloaded"), True),
                             **dict.fromkeys(FALSE, False)},
    "data.flip": {"true": True, "false": False},
    "train.optimizer": {"adamw_8bit": "adamw8bit", "adamw8bit": "adamw8bit", "adamw": "adamw",
                        "adam": "adamw", "adafactor": "adafactor", "prodigy": "prodigy"},
    "train.schedule": {"cosine_with_restarts": "cosine", "constant_with_warmup": "constant"},
    "model.precision": {"no": "fp32", "float32": "fp32", "float_32": "fp32", "bfloat16": "bf16",
                        "bfloat_16": "bf16", "float16": "fp16", "float_16": "fp16"},
    "data.mask": {"true": "file", "false": "none"},
    "train.timestep.density": {"logit_normal": "logit-normal"},
}  # fmt: skip
