"""眼睛的样子：谁来看都行，只要会出题、会把图变成特征、会亮画面那个灯。"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from lorakit.judge.drawing import Question
from lorakit.judge.taught import Taught
from lorakit.results.verdict import OFF, Light

Paper = Mapping[str, Sequence[Question]]  # 题的名字 -> 这一组题
Drawn = Mapping[str, Sequence[Sequence[Image.Image]]]  # 题的名字 -> [第几轮种子][第几题]


@dataclass(frozen=True)
class Seen:
    """一个检查点的全部图：题、它画的、没有 LoRA 的底模用同样种子画的（眼睛要才有）。"""

    paper: Paper
    drawn: Drawn
    base: Drawn


class Eye(Protocol):
    """会看图的：小世界的考官，或模型站上的编码器。"""

    name: str
    copies: int  # 看抄没抄，问几句训练描述
    against_base: bool  # 要不要底模用同样的种子画的图作对照

    def questions(self, taught: Taught, prompts: Sequence[str]) -> dict[str, list[Question]]:
        """出题：asked 看画面；plain 看忘没忘，可以没有。给了 prompts 就用它们作 asked。"""

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """图 -> (N, 宽)；两行的距离近，就是看着像。"""

    def again(self, taught: Taught, questions: Sequence[Question]) -> list[list[Image.Image]]:
        """同一句话换种子，真正该有多不同：每题几张；不会画就是空的，用检查点自己的另一个种子。"""

    def picture(self, taught: Taught, seen: Seen) -> Light:
        """画成了要的样子没有。"""


def off(name: str, why: str) -> Light:
    """亮不了的灯，说为什么。"""
    return Light(name, OFF, f"{why}。")
