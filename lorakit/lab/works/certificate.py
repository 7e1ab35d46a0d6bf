"""毕业证书：名字、日期、练之前和之后、会了什么、还差什么；连同 LoRA 与模型卡装进一个文件夹。"""

import shutil
from collections.abc import Mapping, Sequence
from datetime import date
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw

from lorakit import cache, lora
from lorakit.config import load_config
from lorakit.families import open_family
from lorakit.lab.display import pictured, publish
from lorakit.lab.exercises.judge import all_exercises, passed
from lorakit.lab.graduation import overall, still_open
from lorakit.lab.picture import missing, wall
from lorakit.results import card, report
from lorakit.results.report import font, save_image

PAGE = (1080, 1440)  # 像素：3:4，小红书、朋友圈的竖图
EDGE, INK, PALE = 70, "#25303b", "#6b7685"
FOLDER = "毕业"  # 作品的文件夹里，分享的东西放在这里
SKILLS = {  # 一本的练习全通过，就算会了
    "01": "加噪、速度、采样",
    "02": "体检、描述、步数",
    "03": "训练循环、续练",
    "04": "引导、偏移、调参",
    "05": "强度、叠加、挑检查点",
}


def certificate(
    work,
    marks: Mapping[str, float],
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
    titles: Sequence[str],
    run: Path,
    folder: Path | None = None,
    name: str = "",
) -> Path:
    """摆出证书，把它、LoRA、模型卡装进一个文件夹，返回那个文件夹。

    Args:
        work: 你的作品（lab.work()）。
        marks: 考官分 {名字: 0 到 1}。
        before: 训练前画的几张；after 是训练后的同样几张，titles 是各张的名字。
        run: 练出这个 LoRA 的结果文件夹。
        folder: 分享的文件夹；不写是作品文件夹里的“毕业”。
        name: 证书上你的名字；不写就是作品的名字。

    Raises:
        LorakitError: run 里没有 LoRA，或写不进。
    """
    folder = Path(folder or work.home / FOLDER)
    said = lines(work, marks, name)
    page = drawn(said, wall([before, after], ["训练前", "训练后"], titles, cell_for(titles)))
    save_image(page, folder / "证书.jpg")
    weights = lora.find(run)
    shutil.copy(weights, folder / weights.name)
    shutil.copy(card_of(Path(run)), folder / "README.md")
    publish(pictured(page.resize((PAGE[0] // 2, PAGE[1] // 2))))
    inside = "、".join(sorted(file.name for file in folder.iterdir()))
    tail = f"分享用的都在 {folder.name} 文件夹里：{inside}。"
    text = "\n".join([*said, tail])
    page = "<br>".join(map(escape, [*said, tail]))
    publish({"text/html": f"<p>{page}</p>", "text/plain": text})
    return folder


def card_of(run: Path) -> Path:
    """模型卡；还没有就照训练记录写一份（图编码过，直接用缓存）。"""
    made = run / "README.md"
    if made.is_file():
        return made
    config = load_config(run / "config.yaml")
    family = open_family(config)
    dataset = cache.prepare(config, family)
    report.write_run_card(run, config, dataset, 0, str(family.device))
    return card.write(run, config, family, dataset)


def lines(work, marks: Mapping[str, float], name: str = "") -> list[str]:
    """证书上的字：谁、哪天、作品、等级、会了什么、还差哪几道。"""
    left, known = still_open(), all_exercises()
    done = len(set(passed()) & known.keys())
    mastered = [skill for book, skill in SKILLS.items() if book not in left]
    said = [
        f"姓名：{name or work.name}",
        f"日期：{date.today():%Y-%m-%d}",
        f"作品：{work.name}",
        f"等级：{overall(marks) or '答完后测才评'}",
        "考官：" + "，".join(f"{what} {share:.0%}" for what, share in marks.items()),
        f"练习：通过 {done} / {len(known)} 道",
        f"会了：{'；'.join(mastered) or '还没有哪一本全做完'}",
    ]
    for book, names in left.items():
        said.append(f"{book} 还差：{'、'.join(names)}")
    return said


def cell_for(titles: Sequence[str]) -> int:
    """一张图多大，一排正好放得下。"""
    return min(300, (PAGE[0] - 2 * EDGE - 80) // len(titles) - 8)


def drawn(said: Sequence[str], pictures: Image.Image) -> Image.Image:
    """证书的样子：标题、图、字，一张竖图。"""
    page = Image.new("RGB", PAGE, "white")
    pen = ImageDraw.Draw(page)
    pen.rectangle([24, 24, PAGE[0] - 25, PAGE[1] - 25], outline="#3f6fb5", width=6)
    pen.text((PAGE[0] / 2, 110), "LoRA 毕业证书", INK, font(68), anchor="mm")
    page.paste(pictures, ((PAGE[0] - pictures.width) // 2, 190))
    top, size = 190 + pictures.height + 40, 34
    for line in said:
        for part in wrapped(line, size, PAGE[0] - 2 * EDGE):
            if top + size > PAGE[1] - 50:
                return page
            pen.text((EDGE, top), part, INK if top < PAGE[1] - 400 else PALE, font(size))
            top += round(size * 1.45)
    return page


def wrapped(text: str, size: int, width: int) -> list[str]:
    """一行放不下就折成几行；字体里没有的字画成方框，换成“〇”。"""
    lost = missing(text, fallback=False)
    text = "".join("〇" if letter in lost else letter for letter in text)
    parts, line = [], ""
    for letter in text:
        if font(size).getlength(line + letter) > width:
            parts.append(line)
            line = ""
        line += letter
    return [*parts, line]
