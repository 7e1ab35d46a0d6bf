"""像素杯：自己想办法，在 300 步之内超过随书的像素成绩；法官看最后一个检查点，成绩只记在本机。"""

from pathlib import Path

from lorakit.judge import Judge, eye_for, open_run
from lorakit.lab.bar import waiting
from lorakit.lab.notes import best
from lorakit.results.evidence import Share
from lorakit.tiny.styles import STYLES

BUDGET = 300  # 步
BAR = Share(
    10, 13
)  # 随书的：tiny-qwen-image 的默认设置练 300 步，是像素画的有几张（lorakit demo --lesson pixel）
BLANK = '未完成：把 ... 换成你的结果文件夹，例如 Path(work / "pixel")，再运行。'


def pixel_cup(run=...) -> None:
    """判一次：步数超没超、练的是不是像素、26 张里几张是；印出成绩与本机最好的几次。"""
    if run is ...:
        print(BLANK)
        return
    config = open_run(Path(run))
    if config.train.steps > BUDGET:
        print(f"不算：train.steps 是 {config.train.steps}，最多 {BUDGET} 步。")
        return
    with waiting("考官在看：画几十张"):
        found = Judge(eye_for(None, config))(config, [config.train.steps])
    light = found.verdicts[config.train.steps].lights[1]
    if "style" not in light.facts or f"是{STYLES['pixel'][0]}" not in light.said:
        print('不算：训练图不是像素画。用 samples.write("pixel", 文件夹) 写出的那 24 张。')
        return
    print(verdict(Share(*light.facts["style"][:2]), Share(*light.facts["content"][:2])))
    print("本机最好的：", "、".join(_remember(light.facts["style"][:2], config)))


def verdict(style: Share, content: Share) -> str:
    """成绩怎么说：比例高过那条线才算过，区间的下边也高过才算确实。"""
    said = f"是像素画的 {style}，认得出画的是什么 {content}；要超过的是 {BAR}。"
    if style <= BAR:
        return f"{said}还没有超过。看看样张：格子是糊的，还是根本没变？"
    if content < 0.75:
        return f"{said}画风超过了，可是认不出画的是什么：练过头也不算。"
    sure = style.interval[0] > BAR
    tail = "，而且区间的下边也在线上" if sure else "；区间还碰着那条线，再换个种子看看"
    return f"{said}过了{tail}。"


def _row(value: object) -> bool:
    """记下的一次：对了几张、一共几张、步数、秩、学习率。"""
    numbers = isinstance(value, list) and all(type(one) in (int, float) for one in value)
    return numbers and len(value) == 5 and value[1] > 0


def _remember(style: list[int], config) -> list[str]:
    one = [style[0], style[1], config.train.steps, config.lora.rank, config.train.lr]
    rows = best("pixel_cup.json", one, _row, lambda row: (-row[0] / row[1], row[2]), 5)
    return [f"{k}/{n}（{steps} 步，秩 {rank}，学习率 {lr:g}）" for k, n, steps, rank, lr in rows]
