"""想象出来的底模：真模型的尺寸、随机的权重，不用下载；排练用它。

载入时现造（`random_weights`），或写成 diffusers 布局的文件夹，连从磁盘载入也走一遍。
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from lorakit.errors import LorakitError
from lorakit.families.open import open_blank
from lorakit.files import read_json
from lorakit.hub.bundled import bundled
from lorakit.lora.tensors import sharded, write_tensors
from lorakit.memory import loading

MARK = "lorakit-random.json"  # 写在文件夹里：权重是随机的，别当真的用
STEMS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
PROCESSOR = "Qwen2VLImageProcessorPil"
# transformers 里的类 -> 借哪个微型模型的哪个文件夹；词表小，长短差不多，真模型的词表装得下
BORROWED = {
    "Qwen2Tokenizer": ("tiny-qwen-image", "tokenizer"),
    "AutoTokenizer": ("tiny-qwen-image", "tokenizer"),
    "CLIPTokenizer": ("tiny-flux", "tokenizer"),
    "T5TokenizerFast": ("tiny-flux", "tokenizer_2"),
    PROCESSOR: ("tiny-qwen-image-edit", "processor"),
}
CHAT = (  # 要对话模板的编码器：一轮轮发言（一句话，或一串带类型的），然后轮到助手
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}  # Qwen2.5-VL 看的图，面积
PICTURES = {
    f"{name}_token_id": f"<|{word}|>" for name, word in (
        ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
        ("vision_end", "vision_end"),
    )
}  # fmt: skip
CHATTY = ("Qwen3", "Mistral3")  # 管线自己套分词器里的对话模板


def open_imagined(config, folder: Path, device: torch.device | None = None):
    """权重随机的家族：每个部分都能载入，尺寸是真的；folder 是空文件夹，小文件写在里面。"""
    family = open_blank(config, folder, device)
    if family.folder == folder:  # 本地没有这个模型：小文件都是照 full_size 写的
        _furnish(family)
    return family


def _furnish(family):
    """补上分词器、图片处理器、完整的 model_index.json，stock 的 from_pretrained 才打得开。"""
    folder, places = family.folder, {}
    for part, kind in family.text_parts.items():
        places[part] = ["transformers", kind]
        if kind in BORROWED:
            _borrow(folder / part, kind, family)
    for part in ("transformer", "vae"):
        places[part] = ["diffusers", family.config_of(part)["_class_name"]]
    places["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    _change(folder / "scheduler" / "scheduler_config.json", _class_name=places["scheduler"][1])
    _change(folder / "model_index.json", _class_name=family.pipeline_class, **places)
    if "processor" in family.text_parts:  # 文本编码器也看图：图的位置在借来的词表里是几号
        _borrow(folder / "processor", PROCESSOR, family)
        words = read_json(folder / family.caption_tokenizer / "tokenizer.json")["added_tokens"]
        ids = {word["content"]: word["id"] for word in words}
        known = {key: ids[word] for key, word in PICTURES.items()}
        _change(folder / "text_encoder" / "config.json", **known)


def _borrow(place: Path, kind: str, family):
    """照 kind 借一份分词器或图片处理器；真模型写明的长短照旧。"""
    said = family.full_size.get(place.name, {})
    model, part = BORROWED[kind]
    shutil.copytree(bundled(model) / part, place, dirs_exist_ok=True)
    if kind == PROCESSOR:
        _change(place / "preprocessor_config.json", size=PIXELS, **said)
    elif place.name.startswith("tokenizer"):
        _change(place / "tokenizer_config.json", **said)
    if any(name.startswith(CHATTY) for name in family.text_parts.values()):
        _change(place / "tokenizer_config.json", chat_template=CHAT)


def _change(file: Path, **facts):
    found = read_json(file) if file.is_file() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found | facts, ensure_ascii=False), encoding="utf-8")


def write(config, folder: Path, progress: Callable[[str, int, int], None] | None = None) -> Path:
    """把权重随机的底模写成完整的 diffusers 文件夹；写过的（同一个底模）直接用。

    Args:
        progress: 函数 (在做什么, 第几个文件, 共几个)。

    Raises:
        LorakitError: 文件夹里有别的东西，或磁盘放不下。
    """
    wanted = {"family": config.model.family, "path": config.model.path}
    if folder.is_dir() and any(folder.iterdir()):
        if (folder / MARK).is_file() and read_json(folder / MARK) == wanted:
            return folder
        raise LorakitError(
            f"“{folder}”里已经有别的东西，或上一次没有写完。请换一个空的文件夹，或删掉它再来。"
        )
    folder.mkdir(parents=True, exist_ok=True)
    family = open_imagined(config, folder)
    if family.folder != folder:  # 本地有这个模型：抄它的小文件
        _copy_small(family.folder, folder)
        family = family.again(folder=folder, transformer_folder=folder / "transformer")
    files = list(_files(family))
    _refuse_full_disk(folder, sum(v.nbytes for *_, part in files for v in part.values()))
    read, places = loading.random_weights(family.device, family.dtype), {}
    for number, (part, name, tensors) in enumerate(files, 1):
        made = {key: _made(read, key, value) for key, value in tensors.items()}
        write_tensors(folder / part / name, made, {"format": "pt"})
        places.setdefault(part, {}).update(dict.fromkeys(made, name))
        if progress:
            progress("写随机的底模", number, len(files))
    for part, map_ in places.items():
        if len(set(map_.values())) > 1:
            index = folder / part / f"{STEMS.get(part, 'model')}.safetensors.index.json"
            index.write_text(json.dumps({"metadata": {}, "weight_map": map_}), encoding="utf-8")
    _change(folder / MARK, **wanted)
    return folder


def _copy_small(source: Path, folder: Path):
    for file in source.rglob("*"):
        if file.is_file() and ".safetensors" not in file.name:
            (folder / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / file.relative_to(source))


def _files(family) -> Iterator[tuple[str, str, dict[str, torch.Tensor]]]:
    """每个权重文件的 (部分, 文件名, {名字: 只有形状的张量})。"""
    for part in ("transformer", "vae", *family.encoders):
        shell = family.shell(part)
        tensors = {name: value.to(family.dtype) for name, value in _kept(shell).items()}
        for name, one in sharded(STEMS.get(part, "model"), tensors).items():
            yield part, name, one


def _kept(shell: nn.Module) -> dict[str, torch.Tensor]:
    """要写进文件的：参数（共用的只写一份）与会存下来的统计量。"""
    state = shell.state_dict()
    own = {name for name, _ in shell.named_parameters()} | {
        name for name, _ in shell.named_buffers()
    }
    return {name: value for name, value in state.items() if name in own}


def _made(read: loading.Read, name: str, value: torch.Tensor) -> torch.Tensor:
    return read(name, value) if value.is_meta else value


def _refuse_full_disk(folder: Path, need: int):
    free = shutil.disk_usage(folder).free
    if need > free:
        raise LorakitError(
            f"磁盘不够：随机的底模要写 {need / 1e9:.0f} GB，“{folder}”所在的盘只剩 "
            f"{free / 1e9:.0f} GB。请换一个盘，或去掉 --files（不从磁盘载入）。"
        )
