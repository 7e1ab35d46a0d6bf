"""毕业证书：名字、日期、练之前和之后、会了什么、还差什么；连同 LoRA 与模型卡装进一个文件夹。"""

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from lorakit import cache
from lorakit.config import load_config
from lorakit.errors import DataError
from lorakit.families import open_family
from lorakit.files import read_words, write_text, write_whole
from lorakit.inert import in_html, inert
from lorakit.lab.bar import waiting
from lorakit.lab.display import pictured, publish
from lorakit.lab.exercises.judge import all_exercises, passed
from lorakit.lab.graduation import overall, still_open, told
from lorakit.lab.picture import missing, wall
from lorakit.lora import metadata
from lorakit.results import card, checkpoint, report, sameness
from lorakit.results.report import font, save_image

PAGE = (1080, 1440)  # 像素：3:4，小红书、朋友圈的竖图
EDGE, INK, NAMES = 70, "#25303b", 28
NO_CARD = (
    "模型卡没有写成：这一次练的时候没有留下它，照片、描述现在又和那时不一样了。"
    "运行 作品.check() 看看，改回来再运行这一格；或再练一次，练完就有。"
)
CHINESE = re.compile(r"cjk|sourcehan|pingfang|heiti|hiragino|msyh|simhei|simsun|wqy|fallback", re.I)
HEAVY = re.compile(r"bold|black|heavy|medium|light|thin", re.I)
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
    pair = [before, after], ["训练前", "训练后"], titles
    page = drawn(said, wall(*pair, cell_for(titles), NAMES))
    save_image(page, folder / "证书.jpg")
    weights = checkpoint.exported(run)
    write_whole(folder / weights.name, lambda to: shutil.copyfile(weights, to))
    try:
        with waiting("正在写模型卡"):
            told = carried(read_words(card_of(Path(run))), Path(run))
        told = told.replace(f"# {Path(run).name}\n", f"# {work.name}\n", 1)
        write_text(folder / "README.md", told)
        lost = []
    except DataError:  # 练完以后又添了、删了照片：别的照样给，上一次的卡不留
        (folder / "README.md").unlink(missing_ok=True)
        lost = [NO_CARD]
    publish(pictured(page.resize((PAGE[0] // 2, PAGE[1] // 2))))
    inside = "、".join(sorted(file.name for file in folder.iterdir()))
    tail = f"分享用的都在 {folder.name} 文件夹里：{inside}。"
    said += [f"{book} 还开着：{'、'.join(names)}" for book, names in still_open().items()]
    said += [*lost, tail]
    text, page = "\n".join(said), "<br>".join(map(in_html, said))
    publish({"text/html": f"<p>{page}</p>", "text/plain": text})
    return folder


def card_of(run: Path) -> Path:
    """模型卡，训练结束时写下的；没有（练到一半断了电），照片又还是那些，就现在写一份。

    Raises:
        DataError: 照片、描述和练的时候不一样了：写出来就不是真的。
    """
    found = checkpoint.latest(run)
    step = checkpoint.step_of(found)
    if made := card.of_step(run, step):
        return made
    config = card.up_to(load_config(run / "config.yaml"), step)
    family = open_family(config)
    dataset = cache.prepare(config, family)
    if moved := sameness.data_moved(found, config, dataset):
        raise DataError(f"{run}：{'；'.join(moved)}。")
    report.write_run_card(run, config, dataset, card.spent(run), str(family.device))
    return card.write(run, config, family, dataset)


def carried(text: str, run: Path) -> str:
    """模型卡里载入 LoRA 的两处换成“这个文件夹”：拿到的人没有你的路径，也不该看见它。"""
    place = shlex.quote(inert(str(run), line=True))
    base = metadata.base_of(load_config(run / "config.yaml").model.path)
    given = f"lorakit generate --model_name {shlex.quote(base)} --lora_weights ."
    text = text.replace(f"lorakit generate {place}", given).replace(place, ".")
    return re.sub(r'^lora = ".*"$', 'lora = "."  # 在这个文件夹里运行', text, flags=re.M)


def lines(work, marks: Mapping[str, float], name: str = "") -> list[str]:
    """证书上的字：谁、哪天、作品、等级、会了什么、还差几道。"""
    left, known = still_open(), all_exercises()
    done = len(set(passed()) & known.keys())
    mastered = [skill for book, skill in SKILLS.items() if book not in left]
    said = [
        f"姓名：{name or work.name}",
        f"日期：{date.today():%Y-%m-%d}",
        f"作品：{work.name}",
        f"等级：{overall(marks) or '答完后测才评'}",
        "考官：" + "，".join(f"{what} {told(mark)}" for what, mark in marks.items()),
        f"练习：通过 {done} / {len(known)} 道",
        f"会了：{'；'.join(mastered) or '还没有哪一本全做完'}",
    ]
    if left:
        counts = "，".join(f"{book} {len(names)} 道" for book, names in left.items())
        said.append(f"还开着：{counts}")
    return [inert(one, line=True) for one in said]  # 名字里的换行、控制符只显示


def cell_for(titles: Sequence[str]) -> int:
    """一张图多大，一排正好放得下；左边留给行名。"""
    return min(300, (PAGE[0] - 2 * EDGE - 130) // len(titles) - 8)


def drawn(said: Sequence[str], pictures: Image.Image) -> Image.Image:
    """证书的样子：标题、图、字，一张竖图。"""
    page = Image.new("RGB", PAGE, "white")
    pen = ImageDraw.Draw(page)
    pen.rectangle([24, 24, PAGE[0] - 25, PAGE[1] - 25], outline="#3f6fb5", width=6)
    pen.text((PAGE[0] / 2, 110), "LoRA 毕业证书", INK, font(68), anchor="mm")
    page.paste(pictures, ((PAGE[0] - pictures.width) // 2, 190))
    top, size = 190 + pictures.height + 40, 34
    for line in said:
        letters, line = lettering(line, size)
        for part in wrapped(line, letters, PAGE[0] - 2 * EDGE):
            pen.text((EDGE, top), part, INK, letters)
            top += round(size * 1.45)
    return page


def lettering(text: str, size: int) -> tuple[ImageFont.FreeTypeFont, str]:
    """写这行字的字体：随包的字体没有某个字（多半在名字里），就借系统的中文字体；都没有，那个字写成点。"""
    lost = missing(text, fallback=False)
    if not lost:
        return font(size), text
    for path in system_fonts():
        if not lost - {c for c in lost if ord(c) in font_manager.get_font(path).get_charmap()}:
            return ImageFont.truetype(path, size), text
    return font(size), "".join("·" if letter in lost else letter for letter in text)


def system_fonts() -> list[str]:
    """系统里的中文字体，粗细正常的在前。"""
    found = (one for one in font_manager.findSystemFonts() if CHINESE.search(Path(one).name))
    return sorted(found, key=lambda one: (bool(HEAVY.search(Path(one).name)), one))


def wrapped(text: str, letters: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """一行放不下就折成几行。"""
    parts, line = [], ""
    for letter in text:
        if letters.getlength(line + letter) > width:
            parts.append(line)
            line = ""
        line += letter
    return [*parts, line]
