"""十一种训练，三个灯各该是什么颜色：真的练一遍、画一遍、判一遍，记进 lights.json。

用法：python tests/measure_lights.py lights.json [哪几种……]
每一种练一次，看最后的检查点；两个 CPU 核上一种约一分钟。
"""

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from lorakit.config import load_config
from lorakit.judge import Judge, eye_for
from lorakit.tiny import samples
from lorakit.train import Trainer

RECORDED = Path(__file__).parent / "lights.json"


@dataclass(frozen=True)
class Case:
    """一种训练的一个检查点：怎么练、看第几步、三个灯（损失、画面、抄没抄）该是什么、为什么。"""

    preset: str
    data: str
    step: int
    lights: tuple[str, ...]  # 每个灯许可的颜色，一个或几个字
    word: str
    why: str
    sets: tuple[str, ...] = ()
    count: int = samples.COUNT
    prompts: tuple[str, ...] = field(default=())


PAPER = dict(preset="tiny-qwen-image", data="papercut")
CAT = dict(preset="tiny-character", data="ohwx-cat")
ASKED = tuple(
    f"一只白色的{size}猫在{side}，背景是{place}"
    for size, side, place in (
        ("大", "左边", "房间"), ("小", "右边", "草地"), ("大", "中间", "沙滩"),
        ("小", "左边", "夜空"), ("大", "右边", "雪地"), ("小", "中间", "大海"),
    )
)  # fmt: skip
CASES = {
    "12 步": Case(
        **PAPER, step=12, sets=("train.steps=12",), lights=("绿", "红黄", "绿"), word="还早",
        why="损失先为平均的纸色付了钱，画面还是一锅粥：只看损失就上当",
    ),
    "120 步": Case(
        **PAPER, step=120, sets=("train.steps=120",), lights=("绿", "绿", "绿"), word="学到了",
        why="没练过的主体也画成剪纸，训练图还没有背下来",
    ),
    "300 步": Case(
        **PAPER, step=300, sets=("train.steps=300",), lights=("黄", "绿", "黄"), word="开始抄了",
        why="留出集过了最低点；没练过的照画，照训练描述画的却已经是训练图",
    ),
    "学习率 x100": Case(
        **PAPER, step=120, sets=("train.lr=7e-2", "train.steps=120"), lights=("绿红", "红", "绿"),
        word="画坏了", why="损失比不练低了四成，画出来是彩色的碎片：只猜平均也能降损失",
    ),
    "四张图背下来": Case(
        **PAPER, step=400, count=4, lights=("灭", "绿黄", "红"), word="抄了训练图",
        sets=("train.steps=400", "train.batch_size=4", "eval.holdout=0", "data.caption_dropout=0"),
        why="四张不够留出，损失没有灯；照训练描述画的就是那四张",
    ),
    "触发词写错": Case(
        **CAT, step=300, prompts=ASKED, lights=("绿", "黄", "绿"), word="还早",
        why="练的是 ohwx，问的是“白色的猫”：损失照降，叫出来的是普通的猫",
    ),
    "画风": Case(
        preset="tiny-qwen-image", data="inkwash", step=100, sets=("train.steps=100",),
        lights=("绿", "绿", "绿"), word="学到了", why="水墨没有自己的颜色，笔画又粗，学得快",
    ),
    "角色": Case(
        **CAT, step=300, lights=("绿", "绿", "绿"), word="学到了",
        why="说触发词是那只猫，不说还是普通的猫；有同类图陪着，没有背",
    ),
    "改图": Case(
        preset="tiny-qwen-image-edit", data="edit-papercut", step=300, lights=("绿黄", "绿", "绿"),
        word="学到了", why="没练过的图也改成了剪纸，还认得出是什么",
    ),
    "FLUX": Case(
        preset="tiny-flux", data="ohwx-cat", step=300, lights=("绿", "绿", "绿"), word="学到了",
        why="换一个家族，同一个法官：那只猫学会了，普通的猫没有忘",
    ),
    "全量微调": Case(
        preset="tiny-qwen-image-full", data="papercut", step=100, sets=("train.steps=100",),
        lights=("绿", "绿", "绿"), word="学到了", why="每个权重都练，灯的看法不变",
    ),
}  # fmt: skip


def trained(case: Case, home: Path):
    """照这一种练一遍 -> 设置。"""
    samples.write(case.data, home / "data", count=case.count)
    more = []
    if case.data == "ohwx-cat":
        samples.write("cats", home / "cats")
        more = [f"data.class_folder={home / 'cats'}"]
    own = [f"data.folder={home / 'data'}", f"run.output={home / 'run'}", "sample.every=0"]
    config = load_config(case.preset, [*own, *more, *case.sets])
    for _ in Trainer(config):
        pass
    return config


def measure(name: str, home: Path) -> dict:
    """练、画、判一种。"""
    case = CASES[name]
    config = trained(case, home)
    found = Judge(eye_for(None, config), prompts=case.prompts)(config, [case.step])
    verdict = found.verdicts[case.step]
    return {
        "step": case.step,
        "word": verdict.word,
        "lights": [light.color for light in verdict.lights],
        "said": [light.said for light in verdict.lights],
        "facts": [light.facts for light in verdict.lights],
    }


def main():
    out, names = Path(sys.argv[1]), sys.argv[2:] or list(CASES)
    done = json.loads(out.read_text("utf-8")) if out.exists() else {}
    for name in names:
        with tempfile.TemporaryDirectory() as home:
            done[name] = measure(name, Path(home))
        print(name, done[name]["word"], *done[name]["lights"], flush=True)
        whole = {name: done[name] for name in CASES if name in done}
        out.write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
