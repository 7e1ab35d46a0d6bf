"""02 的练习：描述怎么写、分到哪个桶、要练多少步、改了什么要重新编码。"""

import re

from lorakit.data.crops import bucket_for
from lorakit.data.trigger import has_trigger
from lorakit.lab.exercises.judge import Exercise, picked

# 那只猫永远不变的样子；白色的地、睁大的眼睛是会变的，不在里面
FIXED = re.compile(
    r"斑|戴|围巾|铃铛|项圈|[左右]眼|眼圈|[左右]耳|(?<!竖起)(?<!竖着)耳朵|橙|毛色|[白花]毛"
    r"|[白花黑黄橘灰]色?的?[大小]?\s*(ohwx\s*)?猫"
    r"|(?<!背景是)(?<!背景)(?<!地是)白色(?!的?(雪|地|背景|冬))"
)
DENIED = re.compile("不是|不在|没有|没在|并非|而非")
ELSEWHERE = re.compile("草|海|沙滩|夜|星空|房间|室内|屋|客厅|灰底|森林|树林|街")
ASIDE = re.compile("左(?!右)|(?<!左)右|角落|旁边")
SNOW = re.compile("雪|冬|白色的地")
CENTER = re.compile("中间|中央|正中|居中|当中|中心|中部")

CAPTION = Exercise(
    "caption",
    lambda text: text or None,
    (
        (lambda text: isinstance(text, str), "描述是一句话，要写在引号里。"),
        (lambda text: has_trigger(text, "ohwx"), "没有触发词 ohwx：模型不知道这只猫叫什么。"),
        (
            lambda text: re.sub(r"ohwx|[一只的猫\s，。,.]", "", text),
            "只有触发词：加上别的词就叫不出它来。把这张图里会变的东西说出来。",
        ),
        (
            lambda text: not FIXED.search(text),
            "你写了这只猫固定的样子（毛色、斑、耳朵、戴的东西）。说出来的会归到那些词上，"
            "没说的才归到 ohwx 上：把它删掉。",
        ),
        (
            lambda text: not DENIED.search(text),
            "只写图里有什么：写“不是草地”，模型听见的还是草地。",
        ),
        (
            lambda text: not ELSEWHERE.search(text),
            "背景写错了：这张图是在雪地里。写错的话，模型会把雪地学到别的词上。",
        ),
        (lambda text: not ASIDE.search(text), "位置写错了：这张图里，猫在中间。"),
        (
            lambda text: SNOW.search(text),
            "背景没说到：这张图是在雪地里，背景每张都不同，要写出来。",
        ),
        (
            lambda text: CENTER.search(text),
            "就差位置了：猫有时在左边，有时在右边，这张在中间，也要写出来。",
        ),
    ),
    "触发词有了，会变的写出来，不变的不写。",
    (
        "先写上触发词，它是这只猫的名字。",
        "再写这张图和别的图不一样的地方：在哪里、什么位置。",
        "ohwx 猫在中间，背景是雪地",
    ),
    'answer = "ohwx 猫在中间，背景是雪地"',
)

BUCKET = Exercise(
    "bucket",
    lambda size: tuple(size),
    (
        (lambda size: len(size) == 2, "答案是一对数 (宽, 高)。"),
        (lambda size: all(side % 16 == 0 for side in size), "宽和高都要是 16 的倍数。"),
        (
            lambda size: tuple(size) != (1024, 1024),
            "正方形要把左右裁掉很多；选一个和 1600x900 差不多扁的桶。",
        ),
        (lambda size: size[0] > size[1], "这张图是横的，宽应该比高大；你是不是写反了？"),
        (
            lambda size: 0.85 < size[0] * size[1] / 1024**2 < 1.15,
            "面积要和 1024×1024 差不多，显存才一样；不能直接用原来的大小。",
        ),
        (
            lambda size: tuple(size) == bucket_for((1600, 900), 1024, 16),
            "面积对了，形状还可以更近：在 data.buckets(1024, 16) 里找宽高比最接近 16:9 的。",
        ),
    ),
    "宽高比最接近、面积差不多：裁掉的最少，显存也一样。",
    (
        "1600 / 900 约是 1.78，找一个宽除以高也差不多的。",
        "列出来看：[b for b in data.buckets(1024, 16) if b[0] > b[1]]",
        "data.bucket_for((1600, 900), 1024, 16) 会替你挑。",
    ),
    "from lorakit import data\nanswer = data.bucket_for((1600, 900), 1024, 16)",
)


STEPS = Exercise(
    "steps",
    lambda f: f(20, 4, 1, 50),
    (
        (lambda f: isinstance(f(20, 4, 1, 50), (int, float)), "要返回一个数：训练多少步。"),
        (
            lambda f: f(20, 4, 1, 50) != 20 * 50,
            "忘了一步不只看一张图：要除以每步看几张（批大小 × 累积）。",
        ),
        (
            lambda f: f(20, 4, 2, 50) != f(20, 4, 1, 50),
            "梯度累积没有用上：攒两批才更新一步，一步就看了两倍的图。",
        ),
        (lambda f: f(20, 4, 2, 50) < f(20, 4, 1, 50), "方向反了：一步看得越多，需要的步数越少。"),
        (lambda f: f(40, 4, 1, 50) == 2 * f(20, 4, 1, 50), "图多一倍，步数也该多一倍。"),
        (lambda f: f(20, 4, 1, 50) == 250, "20 张图看 50 遍是 1000 张次，每步 4 张，是 250 步。"),
    ),
    "步数 = 图数 × 遍数 ÷ (批大小 × 累积)。",
    ("一共要看多少张次？", "每一步看掉多少张次？", "pictures * views / (batch * accum)"),
    "def answer(pictures, batch, accum, views):\n    return pictures * views / (batch * accum)",
)

RECODE = Exercise(
    "recode",
    lambda chosen: chosen if chosen else None,
    picked(
        wrong={
            "C": "学习率是训练的设置，和图片的编码没有关系：缓存里存的是图和文字，不是训练。",
            "D": "缓存认的是内容，不是名字：改文件名不用重新编码。",
        },
        right={
            "A": "图的内容变了，旧的编码就不是这张图了，要重来。",
            "B": "分辨率变了，潜变量的大小都不一样了，要重来。",
        },
    ),
    "图的内容、尺寸、编码器变了才重编；名字和训练设置都不算。",
    (
        "缓存里存的是“这张图编码成的潜变量”。什么会让它不一样？",
        "键里有：图片内容、训练尺寸、编码器、精度、家族。",
        "A 和 B。",
    ),
    'answer = {"A", "B"}',
)

EXERCISES = (CAPTION, BUCKET, STEPS, RECODE)
