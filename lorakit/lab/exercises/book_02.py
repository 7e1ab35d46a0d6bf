"""02 的练习：描述怎么写、分到哪个桶、要练多少步、改了什么要重新编码。"""

import random
import re

from lorakit.data.crops import bucket_for
from lorakit.data.trigger import has_trigger
from lorakit.lab.exercises.answers import is_number, pair
from lorakit.lab.exercises.judge import Exercise, picked

# 那只猫永远不变的样子；白色的地、睁大的眼睛是会变的，不在里面
FIXED = re.compile(
    r"斑|戴|围巾|铃铛|项圈|[左右]眼|眼圈|[左右]耳|(?<!竖起)(?<!竖着)耳朵|橙|毛色|[白花]毛"
    r"|[白花黑黄橘灰]色?的?[大小]?\s*(ohwx\s*)?猫"
    r"|(?<!背景是)(?<!背景)(?<!地是)白色(?!的?(雪|地|背景|冬))"
    r"|\b(spots?|spotted|patch\w*|scarf|bells?|collar|orange|fur|ears?|eye ?patch|calico)\b"
    r"|\bwhite\b(?! (snow|ground|field|back|floor|winter|land))|\bblack\b",
    re.IGNORECASE,
)
DENIED = re.compile(r"(?i)不是|不在|没有|没在|并非|而非|\bnot\b|n't\b|\bno\b|\bwithout\b")
ELSEWHERE = re.compile(
    r"草|海|沙滩|夜|星空|房间|室内|屋|客厅|灰底|森林|树林|街"
    r"|\b(grass\w*|meadow|lawn|sea|ocean|beach|night|starry|(bed)?room|indoors?|forest|woods|street)\b",
    re.IGNORECASE,
)
ASIDE = re.compile(
    r"左(?!右)|(?<!左)右|角落|旁边|\b(on|to|at) (the|its) (left|right)\b|\b(left|right)[ -]side"
    r"|(?<!look )(?<!looks )(?<!looking )(?<!faces )(?<!facing )(?<!facing the )\bleft\b"
    r"|\bcorner\b",
    re.IGNORECASE,
)
SNOW = re.compile(r"雪|冬|白色的地|snow|winter", re.IGNORECASE)
CENTER = re.compile(r"(?i)中间|中央|正中|居中|当中|中心|中部|\b(cent(er|re)\w*|middle)\b")
CAT = re.compile(r"(?<!熊)(?<!狸)猫(?!头鹰|鼬|科|熊|眼石)|\b(cats?|kitten|kitty)\b", re.IGNORECASE)
OTHERS = re.compile(
    r"狗|犬|兔|熊|虎|豹|狮|狼|狐|鹰|鸟|鸡|鸭|鱼|鼠|马(?!上)|牛|羊|猪|猴|龙|人(?!像)|女|男|孩|皮卡丘|车|船|(?<!雪)花(?!猫|斑)"
    r"|\b(dogs?|pupp(y|ies)|rabbit|bunny|bear|tiger|leopard|lion|wolf|fox|birds?|owl|fish|mouse|horse"
    r"|man|woman|person|boy|girl|pikachu|car|boat|flowers?)\b",
    re.IGNORECASE,
)
LEFT_OVER = re.compile(r"ohwx|\bcats?\b|\b(a|an|the|photo|picture|of)\b|[一只张的猫咪\s，。,.]")

CAPTION = Exercise(
    "caption",
    (
        (lambda text: isinstance(text, str), "描述是一句话，要写在引号里。"),
        (
            lambda text: has_trigger(text, "ohwx") or not has_trigger(text.lower(), "ohwx"),
            "触发词的大小写要一样：写小写的 ohwx。换了大小写，模型看到的是另一个词。",
        ),
        (lambda text: has_trigger(text, "ohwx"), "没有触发词 ohwx：模型不知道这只猫叫什么。"),
        (
            lambda text: not OTHERS.search(text),
            "大类写错了：图里只有一只猫，没有别的。写上别的东西，模型会把猫的样子学到那个词上。",
        ),
        (
            lambda text: LEFT_OVER.sub("", text),
            "只有触发词：加上别的词就叫不出它来。把这张图里会变的东西说出来。",
        ),
        (
            lambda text: CAT.search(text),
            "没有说它是什么：触发词后面跟上大类“猫”，模型才不用从头学猫是什么。",
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
    (
        (pair, "答案是一对数，写成 (宽, 高)，例如 (512, 512)：两个数，不加引号。"),
        (lambda size: all(side % 16 == 0 for side in pair(size)), "宽和高都要是 16 的倍数。"),
        (
            lambda size: pair(size) != (1024, 1024),
            "正方形要把左右裁掉很多；选一个和 1600x900 差不多扁的桶。",
        ),
        (
            lambda size: pair(size)[0] > pair(size)[1],
            "这张图是横的，宽应该比高大；你是不是写反了？",
        ),
        (
            lambda size: 0.85 < pair(size)[0] * pair(size)[1] / 1024**2 < 1.15,
            "面积要和 1024×1024 差不多，显存才一样；不能直接用原来的大小。",
        ),
        (
            lambda size: pair(size) == bucket_for((1600, 900), 1024, 16),
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


def _plan(chance: random.Random) -> tuple[int, int, int, int]:
    """随机的图数、批大小、累积、遍数；步数除得尽，取整的写法也对。"""
    batch, accum, share = chance.randint(1, 8), chance.randint(1, 4), chance.randint(1, 20)
    return batch * accum * share, batch, accum, chance.randint(1, 200)


STEPS = Exercise(
    "steps",
    (
        (lambda f: is_number(f(20, 4, 1, 50)), "要返回一个数：训练多少步。"),
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
    _plan,
)

RECODE = Exercise(
    name="recode",
    **picked(
        wrong={
            "C": "学习率是训练的设置，和图片的编码没有关系：缓存里存的是图和文字，不是训练。",
            "D": "缓存认的是内容，不是名字：改文件名不用重新编码。",
        },
        right={
            "A": "图的内容变了，旧的编码就不是这张图了，要重来。",
            "B": "分辨率变了，潜变量的大小都不一样了，要重来。",
        },
    ),
    praise="图的内容、尺寸、编码器变了才重编；名字和训练设置都不算。",
    hints=(
        "缓存里存的是“这张图编码成的潜变量”。什么会让它不一样？",
        "键里有：图片内容、训练尺寸、编码器、精度、家族。",
        "A 和 B。",
    ),
    solution='answer = {"A", "B"}',
)

EXERCISES = (CAPTION, BUCKET, STEPS, RECODE)
