"""各组设置：每一项的名字、默认值、范围和一句说明，都只写在这里；load.py 把它们合成一份。"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator
from pydantic import Field as setting
from pydantic_core import PydanticCustomError

from lorakit.config.explain import is_group, kinds_of, one_line, quoted
from lorakit.errors import ConfigError
from lorakit.files import user_path

OWN = 3  # 没有写样张的提示词，从描述里挑几句
LARGEST = 10**9 * 5  # 种子可以到 2³²


class Group(BaseModel):
    """一组设置：建好就不能改，不认识的名字一律报错，数字必须有限。"""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _tidy(cls, value: Any, info: Any) -> Any:
        """统一写法：空的组取默认值，1e3 可以当整数，~ 是家目录；true 不能当数字 1。"""
        annotation = cls.model_fields[info.field_name].annotation
        kinds = dict(kinds_of(annotation))
        if value is None and is_group(annotation):
            return {}
        if (isinstance(value, bool) and bool not in kinds) or (Path in kinds and value == ""):
            raise PydanticCustomError("not_here", "wrong kind")
        if isinstance(value, str) and int in kinds:
            try:
                value = float(value) if "e" in value.lower() else value
            except ValueError:
                return value
        if int in kinds or float in kinds:
            return _countable(value)
        if isinstance(value, str):
            return _written(value, info.field_name, Path in kinds or info.field_name == "path")
        return value


def _countable(value: Any) -> Any:
    """大得没有意义的数（400 位的步数）不收：后面的算术装不下它。"""
    digits = isinstance(value, str) and len(value.strip()) > 40
    whole = isinstance(value, int) and abs(value) > LARGEST
    if digits or whole or (isinstance(value, float) and LARGEST < abs(value) < float("inf")):
        raise PydanticCustomError("not_here", "too large")
    return value


def _written(value: str, name: str, is_path: bool) -> str | Path:
    """写不进名字的路径，现在就说；~ 是家目录。"""
    try:
        path = user_path(value, name)
    except ConfigError as error:
        if is_path:
            raise PydanticCustomError("not_path", "{said}", {"said": str(error)}) from None
        return value
    return path if is_path and name != "path" else value


class Model(Group):
    """底模：在哪个模型上训练"""

    family: str = setting("qwen-image", min_length=1)
    """模型家族：决定怎么编码图片和文字，要和 path 指的模型一致，例如 qwen-image。"""
    path: str = setting("tiny-qwen-image", min_length=1)
    """底模在哪：自带的 tiny-qwen-image、本地文件夹，或模型站上的 Qwen/Qwen-Image。"""
    source: Literal["auto", "modelscope", "huggingface"] = "auto"
    """从哪个站下载：auto 先用下载过的，再试 ModelScope，再试 Hugging Face；也可以指定一个。"""
    training_adapter: str = ""
    """训练适配器：一份别人练好的 LoRA，只在训练时加在底模上，画图时不加，也不存进结果；蒸馏过的底模
    （Z-Image-Turbo）加着它才练得。写 LoRA 文件，或站上的 作者/仓库/文件.safetensors；空着不用。"""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """计算精度：auto 在支持的显卡上用 bf16，在 CPU 上用 fp32；fp16 容易溢出成黑图。全量微调时
    权重总是 fp32，写 bf16 就连权重也用 bf16 练：省一半多显存，更新时随机舍入，小改动不会白加。"""
    quantize: Literal["none", "fp8", "int8", "nf4", "fp8-matmul"] = "none"
    """量化底模（LoRA 不受影响）：fp8、int8 省一半权重，nf4 省七成多、误差大些，压坏的层改存 int8，
    都会慢一点；fp8-matmul 也省一半，RTX 40 系、H100 以后的显卡上还更快。none 不量化。"""


class Source(Group):
    """一个图片文件夹、里面每张图的重复次数、编辑训练时它的控制图"""

    folder: Path
    repeats: int = setting(1, ge=1)
    control_folder: Path | None = None


class Data(Group):
    """数据：用哪些图片、怎么读"""

    folder: Path | list[Source] | None = None
    """图片文件夹，训练时必填；描述写在同名的 .txt、.caption、.json，
    或 metadata.jsonl、metadata.csv 里。几个文件夹写成列表，
    每个写路径或 {folder: 路径, repeats: 次数}；也认 datasets 存下的文件夹。"""
    control_folder: Path | None = None
    """控制图（改之前的图）的文件夹，教改图才要：和目标图同名，后缀随意；Edit-2509 / 2511 可有
    两三张，依次叫 名字、名字_2、名字_3。folder 里 images 和 control 并排时不用写；
    folder 是列表时，写在每一个里：{folder: 路径, control_folder: 路径}。"""
    resolution: int = setting(1024, ge=64, le=4096, multiple_of=16)
    """训练分辨率（像素边长）：真模型用 512 到 1024，微型模型用 128；
    翻倍，中间结果约四倍，时间至少四倍。"""
    trigger: str = ""
    """触发词：训练时加进描述，生成时写上它就能唤出学到的东西。选个平时不用的词，空着表示不加。"""
    caption_dropout: float = setting(0.1, ge=0, le=1)
    """把描述换成空白的概率：让模型也学会没有提示词时怎么画，引导才有对照。常用 0 到 0.2。"""
    repeats: int = setting(1, ge=1)
    """每张图在一轮里出现几次：一般保持 1。步数由 train.steps 定，改它只改一轮有多长；
    要让几个文件夹看的次数差不多，写在 data.folder 的列表里。"""
    class_folder: Path | None = None
    """同类图片的文件夹：练一只特定的猫，就放些普通的猫，描述里不写触发词。
    每看一张训练图就陪看一张，免得普通的猫也变成它；一步约慢一倍。null 表示不用。"""
    class_weight: float = setting(1.0, gt=0, le=10)
    """同类图片的损失乘多少：1 和训练图一样重要（一般不用改）；越大越不忘旧的，学新的越慢。"""
    alpha: Literal["white", "keep"] = "white"
    """图里透明的地方：white 合成在白底上；keep 把透明也教给模型，画出来也带透明（存成 png）。
    keep 要 VAE 有透明通道的底模，现在只有 Qwen-Image 2.1。"""
    mask: Literal["none", "alpha", "file"] = "none"
    """遮罩：只让画面的一部分算进损失。alpha 用图自己的透明通道（不透明处要学），
    file 用旁边的 猫_mask.png（白处要学、黑处不学），none 不用。"""
    mask_floor: float = setting(0.1, ge=0, lt=1)
    """遮罩外面还算多少：0 完全不管（背景可能变乱），0.1 稍微管一点（推荐）。"""
    flip: bool = False
    """左右翻转：每张图另编码一份镜像，训练时随机取一份。画里有文字、描述里写了左右就不要开。"""
    crops: int = setting(1, ge=1, le=16)
    """每张图编码几种裁切：1 只从中间裁；多出来的裁在随机的位置、边长 0.8 到 1 倍，训练时随机取。"""

    @field_validator("trigger")
    @classmethod
    def _visible(cls, value: str) -> str:
        return value and one_line(value, "data.trigger").strip()

    @field_validator("folder", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        """列表里每一个写路径，或 {folder: 路径, repeats: 次数}。"""
        if not isinstance(value, (list, tuple)):
            return value
        sources = []
        for number, one in enumerate(value, 1):
            tree = {"folder": one} if isinstance(one, (str, Path)) else one
            try:
                sources.append(Source.model_validate(tree))
            except ValidationError:
                wants = "路径，或 {folder: 路径, repeats: 不小于 1 的整数}"
                said = f"data.folder 的第 {number} 个：得到 {quoted(one)}，应为：{wants}。"
                raise PydanticCustomError("combination", said) from None
        if not sources:
            raise PydanticCustomError("combination", "data.folder：列表是空的，至少写一个文件夹。")
        return sources

    @property
    def clear(self) -> bool:
        """图里透明的地方留着，也教给模型。"""
        return self.alpha == "keep"

    @property
    def paired(self) -> bool:
        """设置里点名了控制图的文件夹：练的是改图。"""
        return any(source.control_folder for source in self.sources)

    @property
    def sources(self) -> tuple[Source, ...]:
        """一个或几个来源，统一成列表；没有指定就是空的。"""
        if self.folder is None:
            return ()
        if isinstance(self.folder, list):
            return tuple(self.folder)
        return (Source(folder=self.folder, control_folder=self.control_folder),)

    @model_validator(mode="after")
    def _controls_belong(self) -> "Data":
        """几个文件夹共用一个控制图文件夹，说不清哪张配哪张。"""
        if isinstance(self.folder, list) and self.control_folder is not None:
            said = "data.control_folder：data.folder 是列表时，控制图写在每一个里："
            mend = "{folder: 路径, control_folder: 路径}；images 和 control 并排的不用写。"
            raise PydanticCustomError("combination", said + mend)
        return self


class Lora(Group):
    """LoRA：加在哪些层上、有多大；也可以不用它，改练全部权重"""

    kind: Literal["lora", "full"] = "lora"
    """练什么：lora 只练外加的一点点（推荐）；full 练 Transformer 的全部权重，显存、磁盘都要多得多，
    学习率用 1e-5 左右，这一组其他的设置都不起作用。"""
    rank: int = setting(16, ge=1, le=1024)
    """秩：能学多少东西。画风常用 8 到 32，人物 16 到 64；越大文件越大，也越容易死记硬背。"""
    alpha: float | None = setting(None, gt=0)
    """缩放：LoRA 的作用要乘 alpha / rank。null 表示和 rank 一样（乘 1），一般不用改。"""
    targets: str | list[str] = setting("attention", min_length=1)
    """加在哪些层：attention（真模型的预设都用它）、image-attention（只加图像一侧）、all-linear（全部
    线性层，微型模型的预设用它），也可以写层名结尾的列表，或一个正则表达式。层越多学得越多，也越占显存。"""
    variant: Literal["plain", "rslora", "dora", "lokr"] = "plain"
    """变体：plain 是普通 LoRA；rslora 除以秩的平方根，秩很大时更稳；dora 另学每行长度，细而慢；
    lokr 用两个小矩阵的克罗内克积，文件小得多，每步更慢（微型模型上慢四成）、多占显存，
    学习率常要大三四倍。"""
    init: Literal["gaussian", "default", "orthogonal"] = "gaussian"
    """初值：gaussian 正态分布，default 是 PEFT 的 kaiming，orthogonal 各方向不重复；差别很小。"""


class Timestep(Group):
    """时间步：每次练习加多少噪声"""

    density: Literal["logit-normal", "uniform"] = "logit-normal"
    """噪声多少怎么抽：logit-normal 多练中间段（推荐），uniform 从少到多一样多。"""
    shift: Literal["auto"] | Annotated[float, setting(gt=0, le=100)] = "auto"
    """往高噪声偏多少：1 不偏，3 左右更重视构图；auto 按模型和分辨率算，一般不用改。"""


class Train(Group):
    """训练：练多久、多快"""

    steps: int = setting(1000, ge=1)
    """总共更新多少步：真模型练画风常用 1000 到 3000；看样张，够好了就可以停。"""
    batch_size: int = setting(1, ge=1)
    """每次同时看几张图：越大越稳，也越占显存；显存不够就用 1，再把 grad_accum 调大。"""
    grad_accum: int = setting(1, ge=1)
    """攒几批的梯度才更新一步：用时间换显存，4 相当于 batch_size 乘 4。常用 1 到 8。"""
    lr: float = setting(1e-4, gt=0, le=1)
    """学习率：每一步改多大。LoRA 常用 1e-4 到 4e-4；太大会花屏，太小学不动。"""
    optimizer: Literal["adamw", "adamw8bit", "adafactor", "prodigy"] = "adamw"
    """优化器：adamw 最稳；adamw8bit 和 adafactor 省显存；prodigy 自己找学习率，这时 lr 写 1。"""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """学习率怎么变：constant 不变（真模型的 LoRA 预设都用它），linear 直线降到 0，cosine 沿余弦曲线
    降到 0（微型模型的预设用它）。"""
    warmup: int = setting(10, ge=0)
    """热身步数：学习率在这么多步里从小升到 lr，免得一开始就走偏。常用 0 到 100。"""
    weight_decay: float = setting(0.01, ge=0, le=1)
    """权重衰减：每步把 LoRA 的数值往 0 拉一点点，防止越长越大。常用 0 到 0.1。"""
    max_grad_norm: float = setting(1.0, gt=0)
    """梯度裁剪：一步的梯度太长就缩到这个长度，防止一张怪图带偏训练。一般保持 1。"""
    ema: float = setting(0, ge=0, lt=1)
    """权重的滑动平均：写 0.99 左右，存下来的是最近一百来步的平均，画面更稳；0 表示不用。"""
    timestep: Timestep = Timestep()
    weighting: Literal["none", "sigma_sqrt", "cosmap"] = "none"
    """各个 t 的损失占多大份量：none 一样重（推荐）；sigma_sqrt 偏重细节，cosmap 偏重中间段。"""
    guidance: float = setting(1.0, ge=0, le=100)
    """训练时喂给模型的引导值：只有引导训练在模型里的 FLUX 用得到，一般是 1；推理时才用 3.5。"""
    seed: int = setting(0, ge=0, le=2**32 - 1)
    """随机种子：种子、数据和设置都一样，训练过程就一样。任选一个非负整数。"""
    save_every: int = setting(250, ge=1)
    """每多少步存一次检查点，断了从那里接着练；最后一步总会存。常用 100 到 500。"""
    keep: int = setting(10, ge=1)
    """最多留下最新的几个检查点，更旧的会删掉。磁盘紧张就用 2 或 3。"""

    @model_validator(mode="after")
    def _room_after_warmup(self) -> "Train":
        """会下降的学习率，在热身之后必须还有步数可降。"""
        if self.schedule != "constant" and self.warmup >= self.steps:
            mend = f"请把 train.warmup 改到 {self.steps} 以下，或把 train.schedule 改成 constant"
            said = (
                f"train.warmup：热身 {self.warmup} 步，可是 train.steps 一共只有 {self.steps} 步，"
            )
            why = f"学习率来不及按 train.schedule={self.schedule} 下降。{mend}。"
            raise PydanticCustomError("combination", said + why)
        return self


class Sample(Group):
    """样张：训练途中画几张图看看"""

    prompts: list[str] = setting([])
    """样张的提示词，每句画一张，例如 [一只猫, 雨中的城市]；写训练图里没有的，才看得出真学会了。"""
    every: int = setting(0, ge=0)
    """每多少步画一次样张，0 表示只画开头（没有 LoRA 时）和最后。没有写 prompts 就从描述里
    挑三句，最后一句去掉触发词；两样都不写就不画。画图也花时间，常用 100 到 1000。"""
    steps: int = setting(30, ge=2, le=1000)
    """画一张图走几步：越多越细，也越慢。常用 20 到 50，至少 2。"""
    guidance: float = setting(4.0, ge=0, le=100)
    """引导强度：多听提示词的话。1 不引导，常用 2.5 到 5；太大颜色会过饱和。"""
    size: int | None = setting(None, ge=64, le=4096, multiple_of=16)
    """样张的边长（像素），null 表示和 data.resolution 一样。"""
    seed: int = setting(0, ge=0, le=2**32 - 1)
    """样张的随机种子：每次从同一份噪声画起，前后才好比较。任选一个非负整数。"""

    @property
    def count(self) -> int:
        """一轮画几张。"""
        return len(self.prompts) or (OWN if self.every else 0)


class Eval(Group):
    """检验：用没练过的图片看它是不是真的在学"""

    every: int = setting(50, ge=0)
    """每多少步在留出的图片上算一次损失，0 表示不算。常用 50 到 250。"""
    holdout: float = setting(0.1, ge=0, le=0.5)
    """留出多少图片只检验、不训练：0.1 是十分之一；图很少、一张也舍不得时写 0。"""


class Memory(Group):
    """显存：放不下时用时间换空间"""

    checkpointing: bool | Literal["auto", "full", "selective", "off"] = False
    """梯度检查点：中间结果用到时重算，省很多显存，大约慢四五成。true 就是 full（每块都重算），
    selective 隔一块重算一块，auto 看剩下的显存，能不重算就不重算；false 就是 off。"""
    compile: bool | Literal["graphs"] = False
    """用 torch.compile 编译：开头多等一会儿，之后更快；只练几百步就不值得开。graphs 再把一步录成
    CUDA 图重放，省掉 CPU 一个个派活的时间，只在一块 NVIDIA 显卡上起作用。"""
    offload: Literal["none", "blocks"] | Annotated[int, setting(ge=1)] = "none"
    """底模放在哪：none 全在显卡上；blocks 放在内存里，用到哪一块才搬来哪一块，显存省得最多，
    快慢看内存到显卡的速度；写一个数就只搬这么多块，其余留在显卡上。训练时要开 checkpointing。"""
    attention: Literal["auto", "native", "flash", "cudnn"] = "auto"
    """注意力的内核：auto 由快到慢地试，用头一个算得对的；native 由 PyTorch 挑；flash、cudnn
    指定一种，开练前会和参考算法对一遍。"""


class Run(Group):
    """运行：结果放在哪里"""

    output: Path = Path("runs/my-lora")
    """结果文件夹：检查点、样张和记录都在里面；每次训练用一个自己的文件夹。"""
    resume: Literal["auto", "never"] = "auto"
    """auto：结果文件夹里有检查点就接着练；never：有检查点就停下来问你，免得混在一起。"""
    tracker: Literal["none", "tensorboard", "wandb", "swanlab"] = "none"
    """另外记到哪里：none 只记在结果文件夹里（够用）；后三个要先装；密钥只从环境变量里取。"""

    @field_validator("output")
    @classmethod
    def _visible(cls, value: Path) -> Path:
        for part in value.parts:
            one_line(part, "run.output")
        return value
