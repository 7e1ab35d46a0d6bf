"""诊断室的病人：每一个真的练过，恰好有一处不对；治好了没有，由法官看，不背答案。"""

from collections.abc import Mapping
from dataclasses import dataclass

from lorakit.errors import LorakitError
from lorakit.lab.questions import Question, clinic

MOST = 960  # 一次治疗最多看几张图（步数乘批大小）：两个 CPU 核二十秒
STYLE = {
    "data.caption_dropout": "0.1",
    "lora.rank": "16",
    "lora.alpha": "16",
    "train.steps": "100",
    "train.batch_size": "6",
    "train.lr": "1e-3",
    "train.timestep.shift": "auto",
}
LOUD = STYLE | {"lora.alpha": "64", "train.lr": "3e-4"}
CAT = STYLE | {"train.steps": "120", "train.batch_size": "4"}
FLUX = STYLE | {"train.guidance": "1", "train.steps": "120"}
EDIT = STYLE | {
    "train.steps": "160",
    "train.batch_size": "4",
    "train.lr": "2e-3",
}


@dataclass(frozen=True)
class Plan:
    """练一次要的：预设、设置、练哪份图、练完过哪段脚本（空的是不过）。"""

    preset: str
    settings: Mapping[str, str]
    photos: str
    script: str = ""


@dataclass(frozen=True)
class Case:
    """一个病人：名字（也是病因那道题的名字）、对照、哪一处不对。

    fault 是一项：设置的名字、photos 或 script -> 不对的值。measure 是主诉：哪个数治好了要变。
    """

    name: str
    complaint: str  # 他来的时候怎么说
    control: str  # 哪一个健康的对照
    fault: tuple[str, str]
    hint: str  # 没治好时给的
    measure: str = "right"
    words: tuple[str, ...] = ("学到了",)  # 治好以后，法官说的应是其中一个

    @property
    def healthy(self) -> Plan:
        """健康的样子：治好以后就是它。"""
        return CONTROLS[self.control]

    @property
    def plan(self) -> Plan:
        """病人现在的样子。"""
        what, value = self.fault
        own = vars(self.healthy)
        if what in own:
            return Plan(**{**own, what: value})
        return Plan(**{**own, "settings": {**self.healthy.settings, what: value}})

    @property
    def cause(self) -> Question:
        """病因是什么：一道选择题，每个选项都有一句话。"""
        return clinic()[self.name]


def prescribed(plan: Plan, changes: tuple[str, ...]) -> Plan:
    """照处方（像 --set 那样，一句一项）改过的样子。

    Raises:
        LorakitError: 不是“设置=值”、单子上没有这一项、什么也没有改，或超过了二十秒的量。
    """
    settings, photos = dict(plan.settings), plan.photos
    for change in changes:
        name, equals, value = (part.strip() for part in str(change).partition("="))
        known = {"data.folder": "病人的图", **plan.settings}
        if not equals or name not in known:
            raise LorakitError(
                f"处方：得到“{change}”，应写成“设置=值”，设置是单子上有的："
                f"{'、'.join(known)}。例如 train.steps=80。"
            )
        if value == known[name]:
            raise LorakitError(f"处方：{name} 本来就是 {value}，什么也没有改。")
        if name == "data.folder":
            photos = value
        else:
            settings[name] = value
    return Plan(plan.preset, settings, photos, plan.script)


PAPER = Plan("tiny-qwen-image", STYLE, "papercut")
LOUDER = Plan("tiny-qwen-image", LOUD, "papercut")
OHWX = Plan("tiny-qwen-image", CAT, "ohwx-cat")
FLUXED = Plan("tiny-flux", FLUX, "papercut")
PAIRS = Plan("tiny-qwen-image-edit", EDIT, "edit-papercut")
CONTROLS = {
    "paper": PAPER,
    "louder": LOUDER,
    "ohwx": OHWX,
    "flux": FLUXED,
    "pairs": PAIRS,
}
ALL = (
    Case(
        "lr_high",
        "练得飞快，纸是剪纸的纸，剪的是什么却常常认不出",
        "paper",
        ("train.lr", "1e-2"),
        "看损失头 20 步，再和绿的虚线比：是一步步走下来的，还是一下子跨到底的？",
    ),
    Case(
        "four",
        "照训练的描述画，出来的就是训练图，换个种子也一样",
        "paper",
        ("photos", "few"),
        "设置怎么改，看的也还是那几张。图库里有别的：data.folder=papercut。",
        "twins",
    ),
    Case(
        "alpha",
        "训练时的样张很好，拿到别的软件里几乎没有效果",
        "louder",
        ("script", "no-alpha"),
        "练得没有错，不用改设置。file= 的函数收到结果文件夹和要写的文件："
        "lorakit export 会把缩放也写对。",
    ),
    Case(
        "swapped",
        "叫它变成剪纸，它就是不变",
        "pairs",
        ("photos", "swapped"),
        "看头两行，哪一行是改之前。photos= 的函数收到的文件夹里有 images 和 control。",
        words=("学到了", "还早"),  # 二十秒里，健康的对照也只到“还早”
    ),
    Case(
        "lr_low",
        "练完和没练一个样",
        "paper",
        ("train.lr", "1e-5"),
        "红线在往下走，只是步子太小；各块的改动比对照小多少？",
    ),
    Case(
        "shirt",
        "怎么说，它都戴着那顶红帽子",
        "ohwx",
        ("photos", "hats"),
        "训练图里有没有一张不戴的？图库里有没戴的：data.folder=ohwx-cat。",
        "hats",
    ),
    Case(
        "dropout",
        "学得比别人慢：同样的步数，红线一直在对照的上面",
        "ohwx",
        ("data.caption_dropout", "0.9"),
        "单子上哪一项管“看不看得到描述”？平常是 0.1。",
        "end",
    ),
    Case(
        "keys",
        "训练时的样张很好，拿到别处，画风只剩一点",
        "paper",
        ("script", "half-named"),
        "看日志末尾的体检：没有地方放的有几个。file= 的函数里用 lorakit export 换写法。",
    ),
    Case(
        "burst",
        "二十四张，不算少，可是照描述画，出来的还是训练图",
        "paper",
        ("photos", "burst"),
        "二十四张里真正不同的有几张？图库里有各不相同的：data.folder=papercut。",
        "twins",
    ),
    Case(
        "shift",
        "留出集的损失停在比别人高的地方，再练也下不去",
        "paper",
        ("train.timestep.shift", "8"),
        "右边那张图：t 的哪一头比对照高？单子上管 t 的是哪一项？",
        "fine",
    ),
    Case(
        "guidance",
        "FLUX，损失降得比谁都多，画出来却不比谁好",
        "flux",
        ("train.guidance", "3.5"),
        "损失从那么高的地方降下来：没练时就该猜得准的，为什么一开头这么高？",
        "start",
    ),
    Case(
        "caption",
        "像是剪纸，可是叫它画什么，常常不是什么",
        "paper",
        ("photos", "one-caption"),
        "图里有猫有车，话有几句？图库里每张有自己的描述：data.folder=papercut。",
    ),
)
CASES = {case.name: case for case in ALL}
