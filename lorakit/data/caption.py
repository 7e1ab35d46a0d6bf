"""替图片写描述：Florence-2、BLIP-2、Qwen2.5-VL，都走 transformers；写一张存一张，断了接着来。

教程：notebooks/02_dataset.ipynb
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError

from lorakit.data import pairs
from lorakit.data.captions import read_sidecar
from lorakit.data.folder import Found, captions_in, key_of, walk
from lorakit.data.read import read_image
from lorakit.data.report import Fault
from lorakit.data.trigger import apply_trigger
from lorakit.errors import DataError, LorakitError
from lorakit.files import Unreadable, read_json, user_path, write_text

SAFE = {"trust_remote_code": False}  # 模型自己带的代码一律不运行
# transformers 读坏了的文件，什么都抛得出来
BROKEN = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError,
    ImportError, AssertionError, SafetensorError,
)  # fmt: skip
LENGTHS = {"short": 40, "medium": 100, "long": 220}  # 最多写多少个词元
LANGUAGES = ("zh", "en")
PLAIN = ("metadata_file", "caption_empty")  # 表读懂了：没有那张图，或那一行没有描述
# Qwen2.5-VL 的对话格式：<|image_pad|> 是图的位置
PLACE = "<|image_pad|>"
QWEN = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@dataclass(frozen=True)
class Kind:
    """一种看图说话的模型：默认下载哪个、transformers 里的类、会写哪些语言、怎么问。"""

    repository: str
    architecture: str
    languages: tuple[str, ...]
    prompts: dict[tuple[str, str], str]  # (语言, 长短) -> 问什么


KINDS = {
    "florence-2": Kind(
        "florence-community/Florence-2-base-ft",
        "Florence2ForConditionalGeneration",
        ("en",),
        {
            ("en", "short"): "<CAPTION>",
            ("en", "medium"): "<DETAILED_CAPTION>",
            ("en", "long"): "<MORE_DETAILED_CAPTION>",
        },
    ),
    "blip-2": Kind(
        "Salesforce/blip2-opt-2.7b",
        "Blip2ForConditionalGeneration",
        ("en",),
        {
            ("en", "short"): "a photo of",
            ("en", "medium"): "a photo of",
            ("en", "long"): "a detailed photo of",
        },
    ),
    "qwen2.5-vl": Kind(
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "Qwen2_5_VLForConditionalGeneration",
        ("zh", "en"),
        {
            ("zh", "short"): "用一句不超过二十个字的话说出图里有什么，直接写，不要开场白。",
            ("zh", "medium"): "用一两句话说出图里的主体、动作、背景和光线，直接写，不要开场白。",
            (
                "zh",
                "long",
            ): "详细描述这张图：主体、动作、衣着、背景、构图、光线和颜色，连成一段话。",
            ("en", "short"): "Say what is in the picture in one short sentence. No preamble.",
            ("en", "medium"): "Describe subject, action, background and light in two sentences.",
            ("en", "long"): "Describe the picture in detail in one paragraph: subject, action, "
            "clothing, background, composition, light and colours.",
        },
    ),
}


class Captioner:
    """看一张图，写一句描述。"""

    def __init__(
        self, model: str, language: str | None = None, length: str = "medium", precision="auto"
    ):
        """
        Args:
            model: florence-2、blip-2、qwen2.5-vl，或存着其中一种的本地文件夹。
            language: zh 或 en；None 用这种模型最拿手的。

        Raises:
            LorakitError: 不认识的模型、它不会的语言、没有的长短。
        """
        name, where = _recognise(model)
        kind = KINDS[name]
        language = language or kind.languages[0]
        if length not in LENGTHS:
            raise LorakitError(f"--length：没有“{length}”。可选：{'、'.join(LENGTHS)}。")
        if language not in LANGUAGES:
            raise LorakitError(f"--language：没有“{language}”。可选：{'、'.join(LANGUAGES)}。")
        if language not in kind.languages:
            raise LorakitError(
                f"{name} 只会写英文。要中文请用 --model qwen2.5-vl，或写 --language en。"
            )
        self.name, self.where, self.prompt = name, where, kind.prompts[language, length]
        self.length, self.precision = LENGTHS[length], precision

    @cached_property
    def model(self):
        """模型；要写第一句时才载入：文件夹写错了、没有要写的，都不必先下载几个 GB。"""
        where = self.where
        try:
            return self._load(KINDS[self.name].architecture)
        except BROKEN as error:
            if isinstance(error, LorakitError) or type(error).__name__ == "OutOfMemoryError":
                raise
            if Path(where).is_dir():
                said = [line for line in str(error).splitlines() if line.strip()]
                why = (said or [type(error).__name__])[0]
                raise LorakitError(
                    f"“{where}”里的模型读不出来，多半是没有下载完：{why}。这里只读 safetensors。"
                ) from error
            raise LorakitError(
                f"“{where}”不在本地，也没能从模型站下载。检查网络（可设 HF_ENDPOINT 用镜像），"
                "也可以先下载好，把文件夹写给 --model。"
            ) from error

    def _load(self, architecture: str):
        import transformers

        from lorakit.memory import devices

        self.device, where = devices.pick_device(), self.where
        self.dtype = devices.pick_dtype(self.precision, self.device)
        if self.name == "qwen2.5-vl":
            # AutoProcessor 会连视频的部分一起载入，那要另装 torchvision；看图用不着
            self.images = transformers.AutoImageProcessor.from_pretrained(where, **SAFE)
            self.processor = transformers.AutoTokenizer.from_pretrained(where, **SAFE)
        else:
            self.processor = transformers.AutoProcessor.from_pretrained(where, **SAFE)
        words = getattr(self.processor, "tokenizer", self.processor)
        if not words(self.prompt)["input_ids"]:  # 没有词表的文件，它也造得出一个空的
            raise ValueError("没有词表（tokenizer.json）")
        model, info = getattr(transformers, architecture).from_pretrained(
            where, dtype=self.dtype, use_safetensors=True, output_loading_info=True, **SAFE
        )
        if lacking := [*info["missing_keys"], *(info.get("mismatched_keys") or ())]:
            raise ValueError(f"缺 {len(lacking)} 个权重，例如 {lacking[0]}")
        return model.to(self.device).eval().requires_grad_(False)

    def __call__(self, image: Image.Image) -> str:
        """RGB 图 -> 一行描述（不带前缀）；什么也没写出来是空的。

        Raises:
            LorakitError: 模型载入失败。
        """
        model = self.model  # 处理图和文字的部分也随它一起载入
        if self.name == "qwen2.5-vl":
            batch = self._qwen(image)
        else:
            batch = self.processor(images=image, text=self.prompt, return_tensors="pt")
        inputs = {
            key: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for key, value in batch.items()
        }
        tokens = model.generate(**inputs, max_new_tokens=self.length, do_sample=False)
        asked = inputs["input_ids"]
        if tokens[:, : asked.shape[1]].equal(asked):  # 只会接着写的模型，开头是问题本身
            tokens = tokens[:, asked.shape[1] :]
        said = self.processor.batch_decode(tokens, skip_special_tokens=True)[0]
        return " ".join(said.split())

    def _qwen(self, image: Image.Image) -> dict:
        """图与问题 -> 模型的输入；图占多少个词元由它的大小决定。"""
        seen = self.images(images=image, return_tensors="pt")
        count = int(seen["image_grid_thw"][0].prod()) // self.images.merge_size**2
        text = QWEN.format(self.prompt).replace(PLACE, PLACE * count)
        words = self.processor(text, return_tensors="pt")
        marks = (words["input_ids"] == self.model.config.image_token_id).int()  # 1 是图
        return {**words, **seen, "mm_token_type_ids": marks}


def _recognise(model: str) -> tuple[str, str]:
    """--model 写的 -> (哪一种, 从哪里载入)；本地文件夹看它的 config.json。"""
    if model in KINDS:
        return model, KINDS[model].repository
    folder = user_path(model, "--model")
    config = folder / "config.json"
    if config.is_file():
        try:
            names = read_json(config, {"architectures": [str]})["architectures"]
        except Unreadable:
            names = []
        for name, kind in KINDS.items():
            if kind.architecture in names:
                return name, str(folder)
        wanted = "、".join(kind.architecture for kind in KINDS.values())
        raise LorakitError(
            f"--model：“{folder}”里是 {'、'.join(names) or '认不出的模型'}，这里能用的是 {wanted}。"
        )
    raise LorakitError(
        f"--model：不认识“{model}”。可选：{'、'.join(KINDS)}，"
        "或一个存着这种模型的本地文件夹（里面要有 config.json）。"
    )


@dataclass(frozen=True)
class Done:
    """写完一个文件夹的结果。"""

    written: int
    kept: int  # 已经有描述，没有动
    failed: tuple[str, ...]  # 没写成的图，各一句原因

    def text(self) -> str:
        """几句话的总结。"""
        lines = [f"写好了 {self.written} 份描述；{self.kept} 张图已经有描述，没有动。"]
        lines += [f"{len(self.failed)} 张没有写成：", *(f"  · {line}" for line in self.failed)]
        return "\n".join(lines if self.failed else lines[:1])


def caption_folder(
    folder: str | Path,
    write: Callable[[Image.Image], str],
    prefix: str = "",
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    control: Path | None = None,
) -> Done:
    """给文件夹（含子文件夹）里还没有描述的图各写一个同名 .txt；写一张存一张，可以随时停下。

    Args:
        write: 函数 图 -> 描述，例如 Captioner。
        prefix: 写在每句最前面的话，例如触发词；描述里已经有它就不再加。
        overwrite: 已经有 .txt 的也重写；不写就一个字也不动。描述写在别处（表、.caption、.json）的
            总不动：再写一份 .txt，就成了两种写法。
        control: 设置里写的控制图的文件夹。

    Raises:
        DataError: 没有这个文件夹，或里面没有图；是编辑训练的成对图片；有描述表还读不懂。
        LorakitError: 写不进。
    """
    folder = user_path(folder)
    if pairs.locate(folder, control):
        where = f"有控制图（{control}）" if control else "里 images 和 control 并排"
        raise DataError(
            f"“{folder}”{where}，是编辑数据：描述要写“怎么改”，"
            "看一张图写不出来。请自己写，每张目标图旁边放一个同名 .txt。"
        )
    found = walk(folder)
    if not found.pictures:
        problems = [p.line(folder) for p in found.problems if p.severity == "error"]
        raise DataError("\n".join(problems) or f"“{folder}”里没有图片。")
    todo = _todo(found, overwrite)
    written, failed, taken = 0, [], {}
    for number, path in enumerate(todo, 1):
        first = taken.setdefault(key_of(path), path)
        try:
            if first != path:  # 两张图共用一个 .txt，写了也说不清是哪一张的
                reason = f"和 {first.name} 同名，只差后缀"
                raise Fault("caption_shared", path, reason, "给其中一张改个名字")
            said = write(read_image(path))
            if said:
                write_text(path.with_suffix(".txt"), apply_trigger(said, prefix) + "\n")
                written += 1
            else:
                raise Fault("caption_empty", path, "模型什么也没写", "换一个 --length 或 --model")
        except Fault as fault:
            failed.append(fault.problem.line(folder))
        if progress:
            progress("写描述", number, len(todo))
    return Done(written, len(found.pictures) - len(todo), tuple(failed))


def _todo(found: Found, overwrite: bool) -> list[Path]:
    """要写的图：体检和训练认得的描述，这里都认；读不懂的表可能正写着它们，先不写。"""
    told, wrong = captions_in(found)
    todo = []
    for path in found.pictures:
        beside = found.captions.get(key_of(path), ())
        if overwrite:
            beside = [one for one in beside if one.suffix.lower() != ".txt"]
        if path not in told and not any(map(_says, beside)):
            todo.append(path)
    unread = [one.line(found.folder) for one in wrong if one.code not in PLAIN]
    if todo and unread:
        raise DataError(
            "描述表还有没读懂的地方，一句也没有写：它说的也许正是这些图，再写就成了两种写法。\n"
            + "\n".join(f"  · {line}" for line in unread)
            + "\n改好，或移走它，再写。"
        )
    return todo


def _says(path: Path) -> bool:
    """这份描述里有没有字；读不懂的也算有，免得盖掉用户的东西。"""
    try:
        return bool(read_sidecar(path))
    except Fault as fault:
        return fault.problem.code != "caption_empty" and path.stat().st_size > 0
