"""02 的大作业：一个生病的文件夹，30 张图，没有现成的代码；治到检查的人挑不出毛病。

毛病是用代码种下的；检查只看现在的图和话，不认文件名，怎么治都行。
"""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from lorakit import data
from lorakit.inert import in_html
from lorakit.lab.display import headless, publish
from lorakit.lab.notes import best, notes
from lorakit.tiny import samples
from lorakit.tiny.examiner import UNSURE, examine
from lorakit.tiny.world import BACKGROUNDS, SIDES

TRIGGER, COUNT, LEAST = "ohwx", 30, 20  # 触发词；一共几张；治完至少留下几张（7 张救不回来）
BLURRED = 0.7  # 清晰度不到大家的中位数这么多，就是糊了
TOLD = 6  # 一次最多说几条
BEST = "best_healing.json"


def patient(again: bool = False) -> Path:
    """生病的文件夹：头一次写出来，以后还是它；again=True 换一个没治过的。"""
    folder = notes() / "生病的文件夹"
    if again:
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.is_dir():
        plant(folder)
    where = folder.name if headless() else folder  # 提交的输出里不写这台机器的路径
    count = len(data.inspect(folder, TRIGGER)[0])
    publish({"text/plain": f"{where}：写出来时一共 {COUNT} 张图，现在有 {count} 张读得了。"})
    return folder


def plant(folder: Path):
    """写出 30 张 ohwx 猫，种下十几种毛病。"""
    samples.write("ohwx-cat", folder, count=26, seed=5)
    files = sorted(folder.glob("*.png"))
    text = {file: file.with_suffix(".txt") for file in files}
    Image.open(files[0]).filter(ImageFilter.GaussianBlur(9)).save(files[0])
    files[1].write_bytes(files[1].read_bytes()[:1500])  # 下载到一半
    Image.open(files[2]).resize((24, 24)).save(files[2])  # 缩略图
    text[files[3]].unlink()  # 忘了写
    text[files[4]].write_text("一只猫", encoding="utf-8")  # 没有触发词
    said = text[files[5]].read_text("utf-8")
    text[files[5]].write_text(said.replace("ohwx", "Ohwx"), encoding="utf-8")
    text[files[6]].write_bytes(text[files[6]].read_text("utf-8").encode("gb18030"))
    one, two = _different(files[7:], text)
    swapped = text[one].read_bytes(), text[two].read_bytes()
    text[one].write_bytes(swapped[1]), text[two].write_bytes(swapped[0])
    picture = Image.open(files[-1]).convert("RGBA")
    picture.putalpha(Image.new("L", picture.size, 255).point(lambda v: 200))
    picture.save(files[-1])
    files[-2].rename(files[-4].with_stem(files[-4].stem + "_mask"))  # 一张正经的图，名字像遮罩
    marks = Image.Exif()
    marks[274] = 6  # 标记：请把我转正
    Image.open(files[-3]).convert("RGB").rotate(90).save(files[-3].with_suffix(".jpg"), exif=marks)
    files[-3].unlink()
    for k, source in enumerate((files[9], files[10])):  # 同一张又存了一遍；几乎一样的
        copy = folder / f"{30 + k}_副本.png"
        Image.open(source).point(lambda v, k=k: min(255, v + 3 * k)).save(copy)
        shutil.copy(text[source], copy.with_suffix(".txt"))
    for k, source in enumerate((files[11], files[12])):
        copy = folder / f"{32 + k}_压缩过.jpg"
        Image.open(source).convert("RGB").resize((120, 120)).save(copy, quality=60)
        shutil.copy(text[source], copy.with_suffix(".txt"))


def _different(files, text) -> tuple[Path, Path]:
    """两张背景不同的图：描述放反了，看得出来。"""

    def place(file: Path) -> str:
        return text[file].read_text("utf-8").rpartition("背景是")[2]

    return files[0], next(file for file in files if place(file) != place(files[0]))


@dataclass(frozen=True)
class Health:
    """检查的结果：还有哪些毛病（一条一句）、留下几张能练的。"""

    sick: list[str]
    kept: int


def look(folder: Path) -> Health:
    """检查一遍：体检的错误与警告，再加体检看不出、人看得出的。"""
    records, report = data.inspect(folder, TRIGGER)
    sick = [problem.line(folder) for problem in (*report.errors, *report.warnings)]
    sick += [
        f"{problem.reason}。怎么改：它要是一张正经的图，改个不带 _mask 的名字。"
        for problem in report.notes if "遮罩" in problem.reason
    ]  # fmt: skip
    images = [data.read_image(record.path) for record in records]
    sick += _unclear(records, images) + _untrue(records, images) + _clear(records)
    if len(records) < LEAST:
        said = f"只剩 {len(records)} 张能练：删得太多了，至少治好、留下 {LEAST} 张。"
        sick.append(said)
    return Health(sick, len(records))


def _unclear(records, images) -> list[str]:
    """糊的：边缘比大家弱得多。"""
    sharp = [float(np.asarray(i.convert("L").filter(ImageFilter.FIND_EDGES)).std()) for i in images]
    middle = float(np.median(sharp)) if sharp else 0.0
    return [
        f"{record.path.name}：糊了，边缘只有大家的 {value / middle:.0%}。怎么改：换一张清楚的，"
        "没有就移走；锐化变不回来。"
        for record, value in zip(records, sharp, strict=True)
        if value < BLURRED * middle
    ]


def _untrue(records, images) -> list[str]:
    """描述和图对不上的：背景、位置说的是另一张。"""
    found = []
    for record, seen in zip(records, examine(images) if images else [], strict=True):
        for kind, names in (("background", BACKGROUNDS), ("side", SIDES)):
            saw = getattr(seen, kind)
            said = [name for name, words in names.items() if words[0] in record.caption]
            what = {"background": "背景", "side": "位置"}[kind]
            if saw == UNSURE:
                continue
            if not said:
                found.append(f"{record.path.name}：描述里没有说{what}，图里看着是{names[saw][0]}。")
            elif saw not in said:
                found.append(
                    f"{record.path.name}：描述说{what}是{names[said[0]][0]}，图里看着是"
                    f"{names[saw][0]}。怎么改：打开看一眼，是不是和另一张放反了。"
                )
    return found


def _clear(records) -> list[str]:
    """还留着透明的。"""
    found = []
    for record in records:
        with Image.open(record.path) as image:
            if image.mode in ("RGBA", "LA", "PA") and image.getchannel("A").getextrema()[0] < 255:
                said = "有半透明的地方，读出来会发白。怎么改：存成不透明的，或移走。"
                found.append(f"{record.path.name}：{said}")
    return found


def healed(folder: Path) -> Health:
    """检查治得怎样：还有什么毛病、怎么改；全好了就记进这台机器的最好成绩。"""
    folder = Path(folder)
    if _same(folder):
        said = "未完成：文件夹还没有动过。先自己看一遍，治几处，再运行这一格。"
        publish({"text/html": f"<p>{said}</p>", "text/plain": said})
        return Health([said], 0)
    health = look(folder)
    if health.sick:
        head = f"还差 {len(health.sick)} 处；现在有 {health.kept} 张能练。"
        lines = [head, *(f"  · {one}" for one in health.sick[:TOLD])]
        if len(health.sick) > TOLD:
            lines.append(f"  ……还有 {len(health.sick) - TOLD} 处，改好这些再看。")
    else:
        lines = [f"✓ 全好了：{health.kept} 张，一处毛病也没有。", *_ranked(health.kept)]
    page = "".join(f"<p>{in_html(line)}</p>" for line in lines)
    publish({"text/html": page, "text/plain": "\n".join(lines)})
    return health


def _same(folder: Path) -> bool:
    """和刚写出来时一字节不差。"""
    seen = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in _files(folder)}
    fresh = notes() / "生病的文件夹-原样"
    plant(fresh)
    same = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in _files(fresh)} == seen
    shutil.rmtree(fresh)
    return same


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value <= 30


def _ranked(count: int) -> list[str]:
    """记下这一次留了几张，列出这台机器上最好的三次。"""
    shown = "、".join(f"{score} 张" for score in best(BEST, count, _count))
    return [f"这台机器上最好的几次（留下的张数，越多越好）：{shown}。"]
