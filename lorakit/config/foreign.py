"""读常见教程里那种扁平的训练 YAML（pretrained_model_name_or_path 打头），逐项对应到这里的设置。

底模自己说它是谁（model_index.json），说不出的才看名字。
"""

import re
from pathlib import Path
from typing import Any

from lorakit.files import ASSETS, Unreadable, read_json

MARK = "pretrained_model_name_or_path"  # 有这个名字就是那种 YAML
FAMILIES = {  # 路径里的字样 -> 家族；从上往下找第一个对得上的
    "qwen-image-2.1": "qwen-image-2.1",
    "qwen-image-edit": "qwen-image-edit",
    "qwen-image": "qwen-image",
    "kontext": "flux-kontext",
    "flux.2-dev": "flux2-dev",
    "flux2-dev": "flux2-dev",
    "flux-2-dev": "flux2-dev",
    "flux.2-klein": "flux2-klein",
    "flux2-klein": "flux2-klein",
    "flux-2-klein": "flux2-klein",
    "flux": "flux",
    "z-image": "z-image",
    "kandinsky": "kandinsky5",
}
PIPELINES = {  # model_index.json 里的管线 -> 家族
    "QwenImagePipeline": "qwen-image",
    "QwenImageEditPipeline": "qwen-image-edit",
    "QwenImageEditPlusPipeline": "qwen-image-edit",
    "QwenImage21Pipeline": "qwen-image-2.1",
    "FluxPipeline": "flux",
    "FluxKontextPipeline": "flux-kontext",
    "Flux2Pipeline": "flux2-dev",
    "Flux2KleinPipeline": "flux2-klein",
    "ZImagePipeline": "z-image",
    "Kandinsky5T2IPipeline": "kandinsky5",
}
COMMON = {  # 照 diffusers 的脚本取的名字，kohya 一系也这样叫
    MARK: "model.path",
    "mixed_precision": "model.precision",
    "train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.grad_accum",
    "max_train_steps": "train.steps",
    "learning_rate": "train.lr",
    "lr_scheduler": "train.schedule",
    "lr_warmup_steps": "train.warmup",
    "max_grad_norm": "train.max_grad_norm",
    "seed": "train.seed",
    "output_dir": "run.output",
}
RENAMED = COMMON | {
    "data_config.img_dir": "data.folder",
    "data_config.control_dir": "data.control_folder",
    "data_config.img_size": "data.resolution",
    "data_config.caption_dropout_rate": "data.caption_dropout",
    "data_config.train_batch_size": "train.batch_size",
    "quantize": "model.quantize",
    "adam8bit": "train.optimizer",
    "use_8bit_adam": "train.optimizer",
    "rank": "lora.rank",
    "report_to": "run.tracker",
    "adam_weight_decay": "train.weight_decay",
    "checkpointing_steps": "train.save_every",
    "checkpoints_total_limit": "train.keep",
    "resume_from_checkpoint": "run.resume",
}
VALUES = {
    ("model.precision", "no"): "fp32",
    ("train.optimizer", "true"): "adamw8bit",
    ("train.optimizer", "false"): "adamw",
    ("model.quantize", "true"): "fp8",
    ("model.quantize", "false"): "none",
    ("train.schedule", "cosine_with_restarts"): "cosine",
    ("train.schedule", "constant_with_warmup"): "constant",
    ("run.tracker", None): "none",
    ("run.tracker", "null"): "none",
    ("run.resume", "latest"): "auto",
    ("run.resume", None): "never",
}
BATCHES = ("data_config.train_batch_size", "train_batch_size")  # 都写了就用读图那里的
MEANINGLESS = {  # 名字的开头 -> 为什么这里不需要它
    "precompute_": "这里总是先编码再训练",
    "save_cache_on_disk": "缓存总在磁盘上",
    "data_config.num_workers": "图已编码好，不需要读图进程",
    "data_config.random_ratio": "按宽高比自动分桶",
    "data_config.caption_type": "自动认 .txt、.caption、.json 里的描述",
    "adam_beta": "固定为 0.9 和 0.999",
    "adam_epsilon": "固定为 1e-8",
    "freeze_text_encoder": "文本编码器从不训练",
    "logging_dir": "记录写在结果文件夹的 metrics.jsonl 里",
    "tracker_project_name": "记录写在结果文件夹的 metrics.jsonl 里",
    "wandb_": "wandb 的项目和密钥从它自己的环境变量里取（WANDB_PROJECT 等）",
    "num_train_epochs": "练多久由步数决定（max_train_steps -> train.steps）",
}


FIXED = {  # 这里不能改的几项，是多少
    "adam_beta1": "0.9", "adam_beta2": "0.999", "adam_epsilon": "1e-8",
    "freeze_text_encoder": "true",
}  # fmt: skip


def _same(value: Any, told: str) -> bool:
    try:
        return float(value) == float(told)
    except (TypeError, ValueError):
        return str(value).lower() == told


def translate(tree: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """扁平的 YAML 内容 -> (这里的设置, 逐项说明)；不认识的名字原样留下，交给校验去报错。"""
    flat = {}
    for name, value in tree.items():
        if name == "data_config" and isinstance(value, dict):
            flat |= {f"data_config.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    ours: dict[str, Any] = {}
    lines = []
    both = [flat[name] for name in BATCHES if name in flat]
    for name, value in flat.items():
        if name == BATCHES[1] and len(both) == 2:
            said = f"{name}：和 {BATCHES[0]} 说的是一件事"
            if str(both[0]) != str(both[1]):
                said += f"，两处写得不一样（{both[0]} 和 {both[1]}），读图的用前一个：{both[0]}"
            lines.append(said)
            continue
        why = next((text for start, text in MEANINGLESS.items() if name.startswith(start)), None)
        if name in RENAMED:
            target = RENAMED[name]
            known = (target, value if value is None else str(value).lower())
            new = VALUES.get(known, value)
            group, key = target.split(".")
            ours.setdefault(group, {})[key] = new
            changed = f"（值 {value} 改成 {new}）" if new != value else ""
            lines.append(f"{name} -> {target}{changed}")
        elif why and (told := FIXED.get(name)) and not _same(value, told):
            lines.append(f"{name}：写的是 {value}，没有用到：{why}")
        elif why:
            lines.append(f"{name}：不需要，{why}")
        else:
            ours[name] = value
    if "data_config.img_dir" in flat and "data_config.img_size" not in flat:
        ours["data"]["resolution"] = 512
        lines.append("没有写 data_config.img_size，照那边的默认值 -> data.resolution（512）")
    if "freeze_text_encoder" in flat:  # 只有全量微调的 YAML 才写它
        ours.setdefault("lora", {})["kind"] = "full"
        lines.append("lora.kind = full（有 freeze_text_encoder，说的是全量微调）")
    if "num_train_epochs" in flat and "max_train_steps" not in flat:
        lines.append("没有 max_train_steps：train.steps 用默认的，要改就自己写上")
    family, how = family_of(flat[MARK])
    if family:
        ours["model"]["family"] = family
        lines.append(f"model.family = {family}（{how}）")
    return ours, lines


def declared(folder: Path) -> str:
    """底模的 model_index.json 说自己是哪一种管线；没有、读不懂就是空的。"""
    try:
        return read_json(folder / "model_index.json", {"_class_name": str})["_class_name"]
    except Unreadable:
        return ""


def family_of(path: Any) -> tuple[str | None, str]:
    """底模 -> (家族, 怎么看出来的)；本地的听它自己说，别的看名字，下划线和空格当作连字符。"""
    text = str(path)
    try:
        folder = Path(text).expanduser()
        said = declared(ASSETS / text if re.fullmatch(r"tiny-[\w-]+", text) else folder)
    except (RuntimeError, ValueError):  # ~没有这个用户；名字里有 \\0
        said = ""
    if said in PIPELINES:
        return PIPELINES[said], f"它的 model_index.json 说是 {said}"
    name = re.sub(r"[\s_]+", "-", text.lower())
    family = next((family for word, family in FAMILIES.items() if word in name), None)
    return family, "从路径看出来的"
