"""真模型的眼睛：模型站上的图像编码器（DINOv2、SigLIP），走 transformers；点名要它才载入。

量的是 DreamBooth 那几样：主体像不像（与训练图的余弦）、听不听话（图文余弦）、抄没抄、忘没忘。
DINOv2：arXiv:2304.07193；SigLIP：arXiv:2303.15343；DreamBooth：arXiv:2208.12242。
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from lorakit.data.caption import BROKEN, SAFE
from lorakit.data.color import on_white
from lorakit.errors import LorakitError
from lorakit.files import Unreadable, read_json
from lorakit.judge.drawing import Question
from lorakit.judge.looking import Seen, off
from lorakit.judge.taught import Taught
from lorakit.results.evidence import mean_difference, mean_interval
from lorakit.results.verdict import GREEN, NAMES, RED, YELLOW, Light

REPOSITORIES = {"dinov2": "facebook/dinov2-base", "siglip": "google/siglip-base-patch16-224"}
KINDS = {"dinov2": "Dinov2Model", "siglip": "SiglipModel"}  # config.json 的 model_type -> 类
BATCH = 8
LONGEST = 64  # SigLIP 的文字最多几个词元；训练时就补齐到这么多
HALFWAY = 0.5  # 从底模到训练图，走了一半以上才算像
ASKED = 4  # 最多问几句：真模型画一张要十几秒


class HubEye:
    """一个图像编码器：图 -> 单位长的特征；SigLIP 还会看图和文字合不合。"""

    copies = 6
    against_base = True

    def __init__(self, where: str):
        """
        Args:
            where: dinov2、siglip，或存着其中一种的本地文件夹。

        Raises:
            LorakitError: 不认识，或文件夹里不是这两种。
        """
        self.kind, self.where = recognise(where)
        self.name = Path(self.where).name

    @cached_property
    def model(self):
        """编码器；要看第一张图时才载入。"""
        import transformers

        from lorakit.memory import devices

        device, where = devices.pick_device(), self.where
        try:
            model, info = getattr(transformers, KINDS[self.kind]).from_pretrained(
                where, use_safetensors=True, output_loading_info=True, **SAFE
            )
            if lacking := [*info["missing_keys"], *(info.get("mismatched_keys") or ())]:
                raise ValueError(f"缺 {len(lacking)} 个权重，例如 {lacking[0]}")
        except BROKEN as error:
            raise _unreadable(where, error) from error
        return model.to(device).eval().requires_grad_(False)

    @cached_property
    def _images(self):
        import transformers

        try:
            return transformers.AutoImageProcessor.from_pretrained(self.where, **SAFE)
        except BROKEN as error:
            raise _unreadable(self.where, error) from error

    @cached_property
    def _words(self):
        import transformers

        try:
            return transformers.AutoTokenizer.from_pretrained(self.where, **SAFE)
        except BROKEN as error:
            raise _unreadable(self.where, error) from error

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """图 -> (N, 宽)，每行长 1，所以内积就是余弦。"""
        import torch

        rows = []
        for start in range(0, len(images), BATCH):
            part = [on_white(image) for image in images[start : start + BATCH]]
            pixels = self._images(images=part, return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                pixels = pixels.to(self.model.device)
                if self.kind == "siglip":
                    found = self.model.get_image_features(pixel_values=pixels).pooler_output
                else:
                    found = self.model(pixel_values=pixels).pooler_output
            rows.append(found.float().cpu().numpy())
        return _unit(np.concatenate(rows))

    def again(self, taught: Taught, questions: Sequence[Question]) -> list[list[Image.Image]]:
        """编码器不会画。"""
        return []

    def match(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """每张图与自己那句提示词的余弦 (N,)；只有 SigLIP 会。"""
        import torch

        batch = self._words(
            list(prompts), padding="max_length", max_length=LONGEST, truncation=True,
            return_tensors="pt",
        )  # fmt: skip
        with torch.no_grad():
            found = self.model.get_text_features(
                input_ids=batch["input_ids"].to(self.model.device)
            ).pooler_output
        return (self.features(images) * _unit(found.float().cpu().numpy())).sum(1)

    def questions(self, taught: Taught, prompts: Sequence[str]) -> dict[str, list[Question]]:
        """asked：你给的，或留出图、训练图的描述；plain：同样几句去掉触发词，看忘没忘。"""
        size = (taught.config.sample.size or taught.config.data.resolution,) * 2
        known = [*taught.held, *taught.train]
        step = max(1, len(known) // ASKED)
        chosen = known[::step][:ASKED]
        if prompts:
            controls = [known[i % len(known)].controls for i in range(len(prompts))]
            asked = [Question(p, size, c) for p, c in zip(prompts, controls, strict=True)]
        else:
            asked = [Question(one.caption, one.size, one.controls) for one in chosen]
        plain = []
        for one in asked if not taught.train[0].controls else []:
            without = taught.without_trigger(one.prompt)
            if without and without != one.prompt:
                plain.append(Question(without, one.size))
        return {"asked": asked, "plain": plain}

    def picture(self, taught: Taught, seen: Seen) -> Light:
        """主体像不像：与训练图的余弦，比底模近了多少，走到训练图彼此之间的几成。"""
        real = self.features([one.image for one in taught.train])
        if len(real) < 2:
            return off(NAMES[1], f"只有 {len(real)} 张训练图，说不出彼此有多像")
        ceiling = _others(real)
        now, before = (
            [float((self.features(images) @ real.T).mean(1).mean()) for images in turns]
            for turns in (_by_question(seen.drawn["asked"]), _by_question(seen.base["asked"]))
        )
        gain, low, high = mean_difference(now, before, paired=True)
        gap = ceiling - float(np.mean(before))
        facts = {
            "subject": mean_interval(now), "base": mean_interval(before), "real": ceiling,
            "gain": [gain, low, high], "n": len(now), **self._obeys(seen), **self._forgot(seen),
        }  # fmt: skip
        said = (
            f"与训练图的余弦 {np.mean(now):.2f}，底模是 {np.mean(before):.2f}，训练图彼此 "
            f"{ceiling:.2f}；近了 {gain:+.2f}（95% 区间 {low:+.2f} 到 {high:+.2f}，{len(now)} 句，"
            f"每句 {len(seen.drawn['asked'])} 个种子）"
        )
        lost = facts.get("prompt_change")
        if lost and lost[2] < 0 and abs(lost[0]) > facts["prompt_base"] / 2:
            color, end = RED, "；可是不听提示词了"
        elif high < 0:
            color, end = RED, "；比底模还不像"
        elif gap <= 0 or low <= 0:
            color, end = YELLOW, "；还看不出比底模像"
        else:
            color, end = (GREEN, "") if gain >= HALFWAY * gap else (YELLOW, "；还不到一半的路")
        return Light(NAMES[1], color, f"{said}{end}。{_tail(facts)}", facts)

    def _obeys(self, seen: Seen) -> dict:
        """听不听话：SigLIP 的图文余弦，与底模成对比。"""
        if self.kind != "siglip":
            return {}
        prompts = [one.prompt for one in seen.paper["asked"]]
        now, before = (
            np.concatenate([self.match(images, prompts) for images in turns])
            for turns in (seen.drawn["asked"], seen.base["asked"])
        )
        facts = {"prompt": mean_interval(now), "prompt_base": float(before.mean())}
        if len(now) > 1:
            facts["prompt_change"] = mean_difference(now, before, paired=True)
        return facts

    def _forgot(self, seen: Seen) -> dict:
        """忘没忘：不说触发词，同一个种子，与底模画的余弦；1 是一点没变。"""
        if not seen.paper.get("plain"):
            return {}
        pairs = zip(seen.drawn["plain"], seen.base["plain"], strict=True)
        same = [
            float(value)
            for now, before in pairs
            for value in (self.features(now) * self.features(before)).sum(1)
        ]
        return {"kept": mean_interval(same)}


def _tail(facts: dict) -> str:
    said = ""
    if "prompt" in facts:
        said += f"图文余弦 {facts['prompt'][0]:.2f}，底模 {facts['prompt_base']:.2f}。"
    if "kept" in facts:
        said += f"不说触发词，与底模画的余弦 {facts['kept'][0]:.2f}（1 是没有忘）。"
    return said


def recognise(where: str) -> tuple[str, str]:
    """--eye 写的 -> (哪一种, 从哪里载入)。"""
    if where in REPOSITORIES:
        return where, REPOSITORIES[where]
    folder = Path(where).expanduser()
    try:
        kind = read_json(folder / "config.json", {"model_type": str})["model_type"]
    except Unreadable as error:
        raise LorakitError(
            f"--eye：不认识“{where}”。可选：tiny（小世界的考官）、dinov2、siglip，"
            "或存着 DINOv2、SigLIP 的本地文件夹（里面要有 config.json）。"
        ) from error
    if kind not in KINDS:
        raise LorakitError(f"--eye：“{folder}”里是 {kind}，这里能用的是 {'、'.join(KINDS)}。")
    return kind, str(folder)


def _unreadable(where: str, error: Exception) -> LorakitError:
    if Path(where).is_dir():
        said = [line for line in str(error).splitlines() if line.strip()]
        why = (said or [type(error).__name__])[0]
        return LorakitError(
            f"--eye：“{where}”读不出来，多半没有下载完：{why}。这里只读 safetensors。"
        )
    return LorakitError(
        f"--eye：“{where}”不在本地，也没能从模型站下载。检查网络（可设 HF_ENDPOINT 用镜像），"
        "也可以先下载好，把文件夹写给 --eye。"
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _others(real: np.ndarray) -> float:
    """训练图彼此的平均余弦，不算自己和自己。"""
    whole, n = real @ real.T, len(real)
    return float((whole.sum() - np.trace(whole)) / (n * (n - 1)))


def _by_question(turns: Sequence[Sequence[Image.Image]]) -> list[list[Image.Image]]:
    """[种子][题] -> [题][种子]。"""
    return [list(one) for one in zip(*turns, strict=True)]
