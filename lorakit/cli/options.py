"""命令行的样子：有哪些命令、各有什么选项、怎么说中文；做事的函数在 cli。"""

import argparse
import sys
from pathlib import Path

# 退出码：完成、输入有误、命令写错了、被打断但已存好
DONE, WRONG_INPUT, USAGE, INTERRUPTED = 0, 1, 2, 130
_CHINESE = {
    "usage: ": "用法：",
    "positional arguments": "参数",
    "options": "选项",
    "show this help message and exit": "显示这份说明",
    "the following arguments are required: %s": "还缺：%s",
    "unrecognized arguments: %s": "不认识：%s",
    "expected one argument": "后面要跟一个值",
    "expected at least one argument": "后面至少要跟一个值",
    "argument %(argument_name)s: %(message)s": "%(argument_name)s：%(message)s",
    "invalid %(type)s value: %(value)r": "%(value)r 不是合适的值（要 %(type)s）",
    "invalid choice: %(value)r (choose from %(choices)s)": "没有 %(value)r，可选：%(choices)s",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.print_usage(sys.stderr)
        message = message.replace("要 int", "要整数").replace("要 float", "要数字")
        print(f"命令写错了：{message}。用 {self.prog} --help 看说明和例子。", file=sys.stderr)
        sys.exit(USAGE)


def parser() -> argparse.ArgumentParser:
    """全部命令的解析器；argparse 自己的话也说中文。"""
    argparse._ = lambda text: _CHINESE.get(text, text)
    whole = _Parser(prog="lorakit", description="用中文学会图像模型的 LoRA 微调。先试 lorakit demo")
    whole.add_argument("--debug", action="store_true", help="出错时打印完整的调用栈")
    commands = whole.add_subparsers(
        dest="command", metavar="命令", required=True, parser_class=_Parser
    )
    for name, (about, example, options) in COMMANDS.items():
        sub = commands.add_parser(name, help=about, description=about, epilog=f"例子：{example}")
        for flags, details in (*options, _DEBUG):
            sub.add_argument(*flags, **details)
    return whole


def _option(*flags: str, **details):
    return flags, details


# 写在命令后面也认；默认不填，免得盖掉写在命令前面的
_DEBUG = _option("--debug", action="store_true", default=argparse.SUPPRESS, help="打印调用栈")
_SET = _option("--set", action="append", default=[], metavar="名字=值", help="改一项设置，可多次")
_QUANTIZE = _option(
    "--quantization",
    choices=("none", "fp8", "int8", "nf4", "fp8-matmul"),
    help="量化底模，省显存（同 --set model.quantize=）",
)
_DRAW = (
    _option("source", help="一次训练的结果文件夹，或 YAML 文件、预设名"),
    _option("--prompt", action="append", required=True, help="提示词，可以写多次"),
    _option("--lora", type=Path, help="LoRA 文件；不写就用结果文件夹里最新的"),
    _QUANTIZE,
    _SET,
)
_GENERATE = (  # 下划线的名字是别处的脚本常用的，意思相同
    _option("source", nargs="?", help="一次训练的结果文件夹，或 YAML 文件、预设名"),
    _option(
        "--model_name",
        "--model",
        dest="base",
        metavar="底模",
        help="代替第一个词；也可以写底模在站上的名字或本地文件夹，例如 Qwen/Qwen-Image",
    ),
    _option("--prompt", action="append", required=True, help="提示词，可以写多次"),
    _option("--negative_prompt", "--negative", default="", help="不要画什么；引导大于 1 才起作用"),
    _option("--lora", "--lora_weights", type=Path, help="LoRA 文件或文件夹；不写就用结果里最新的"),
    _option("--width", type=int, help="图的宽（像素）；不写就和训练时一样"),
    _option("--height", type=int, help="图的高（像素）"),
    _option("--steps", "--num_inference_steps", metavar="数", help="步数（同 sample.steps）"),
    _option("--guidance", "--true_cfg_scale", metavar="数", help="引导强度（同 sample.guidance）"),
    _option("--seed", metavar="数", help="随机种子（同 sample.seed）"),
    _QUANTIZE,
    _SET,
    _option("--out", "--output_image", type=Path, default=Path("generate.png"), help="图存到哪里"),
)
_FILE = (
    _option("file", type=Path, help="LoRA 文件，或一次训练的结果文件夹"),
    _option("--model", help="底模：预设名或 YAML 文件；不写就用文件里记着的"),
)
_CAPTIONERS = "qwen2.5-vl（会中文）、florence-2（最快）、blip-2，或存着这种模型的本地文件夹"
COMMANDS = {  # 名字 -> (一句话, 例子, 选项)
    "demo": (
        "一分钟演示：画样例图、训练、比较前后",
        "lorakit demo --out my-demo",
        (
            _option("--out", type=Path, help="结果文件夹（runs/demo；别的课是 runs/demo-课名）"),
            _option(
                "--lesson",
                "--style",
                default="papercut",
                help="学什么：papercut inkwash pixel lineart porcelain（画风）、ohwx-cat（角色）、"
                "edit-lineart edit-hat edit-night edit-blue（改图）",
            ),
            _option("--config", help="换一个预设，例如 tiny-flux（ohwx-cat 这一课）"),
            _SET,
        ),
    ),
    "sample-data": (
        "写出一个样例数据集，看看训练数据该长什么样",
        "lorakit sample-data papercut my-data",
        (
            _option("name", help="papercut、inkwash、ohwx-cat、cats、edit-hat 等；写错会列出全部"),
            _option("folder", type=Path, help="写到哪个文件夹（要是空的）"),
        ),
    ),
    "init": (
        "打印一份带说明的配置模板",
        "lorakit init qwen-image > my.yaml",
        (_option("preset", help="预设名，例如 qwen-image、tiny-qwen-image"),),
    ),
    "check": (
        "体检数据：哪张图、哪句描述有问题，怎么修",
        "lorakit check my-data --html report.html",
        (
            _option("source", help="图片文件夹，或训练用的 YAML 文件（它写的每个文件夹都看）"),
            _option("--trigger", metavar="词", help="触发词；给了就检查每句描述里有没有它"),
            _option(
                "--control",
                type=Path,
                metavar="文件夹",
                help="编辑数据：控制图的文件夹；images 旁的 control 不用写",
            ),
            _option(
                "--config",
                metavar="YAML",
                help="或预设名：照它的分辨率、底模再看这个文件夹合不合适",
            ),
            _SET,
            _option("--fix", action="store_true", help="替你做安全的修改，原件都留着"),
            _option("--undo", action="store_true", help="撤销最近一次 --fix，一字节不差"),
            _option("--html", type=Path, metavar="文件", help="另写一份带缩略图的网页报告"),
            _option("--resolution", type=int, metavar="边长", help="训练分辨率：看各图裁掉多少"),
        ),
    ),
    "caption": (
        "用看图说话的模型替图片写描述；写一张存一张，断了再运行就接着写",
        "lorakit caption my-data --model qwen2.5-vl --prefix 'ohwx 猫'",
        (
            _option("folder", type=Path, help="图片文件夹，或写着 data.folder 的 YAML 文件"),
            _option("--model", default="qwen2.5-vl", help=_CAPTIONERS),
            _option(
                "--prefix", metavar="话", help="写在每句最前面，例如触发词；YAML 里写了就不用写"
            ),
            _option("--language", help="zh 或 en；不写就用模型最拿手的"),
            _option("--length", default="medium", help="short、medium（默认）或 long"),
            _option("--overwrite", action="store_true", help="已经有 .txt 的也重写"),
        ),
    ),
    "cache": (
        "编码缓存：build 先编码好，why 看一张图会不会重编，clean 清理",
        "lorakit cache why my-data/01_cat.png",
        (
            _option("action", choices=("build", "why", "clean"), help="build、why 或 clean"),
            _option("what", type=Path, nargs="?", help="why：哪张图；build：YAML 或图片文件夹"),
            _option("--config", default="tiny-qwen-image", help="YAML 文件或预设名"),
            _option("--days", type=float, default=0.0, help="clean：只删这么多天没用过的"),
            _SET,
        ),
    ),
    "train": (
        "训练一个 LoRA；断了再运行同一条命令就接着练",
        "lorakit train tiny-qwen-image --set data.folder=my-data --set run.output=runs/mine",
        (_option("config", help="YAML 文件或预设名"), _SET),
    ),
    "generate": (
        "用训练好的 LoRA 画图",
        "lorakit generate runs/mine --prompt 剪纸风格，一只猫 --out cat.png",
        _GENERATE,
    ),
    "edit": (
        "照一句话改一张图",
        'lorakit edit cat.png "给它戴上一顶红帽子" --model runs/mine --out hat.png',
        (
            _option("image", type=Path, help="要改的图"),
            _option("prompt", help="怎么改，一句话"),
            _option(
                "--model",
                dest="source",
                default="tiny-qwen-image-edit",
                help="一次训练的结果文件夹，或 YAML 文件、预设名（tiny-qwen-image-edit）",
            ),
            _option(
                "--also",
                type=Path,
                action="append",
                default=[],
                help="再看一张图，可写两次（2509）",
            ),
            *_DRAW[2:],
            _option("--out", type=Path, default=Path("edit.png"), help="图存到哪里"),
        ),
    ),
    "compare": (
        "同样的提示词和种子，比较有没有 LoRA",
        "lorakit compare runs/mine --prompt 剪纸风格，一只猫 --out both.png",
        (
            *_DRAW,
            _option("--image", type=Path, action="append", help="编辑模型：要改的图，可写多次"),
            _option("--strengths", metavar="0,0.5,1", help="网格：LoRA 的几个强度"),
            _option("--seeds", metavar="0,1,2", help="网格：几个种子"),
            _option("--checkpoints", metavar="all", help="网格：all 或几个步数；三样任选两样"),
            _option("--out", type=Path, default=Path("compare.png"), help="图存到哪里"),
        ),
    ),
    "export": (
        "把 LoRA 换成别家的写法，或叠加、缩秩、合并进底模",
        "lorakit export runs/mine --to kohya --out mine-kohya.safetensors",
        (
            *_FILE,
            _option(
                "--to",
                choices=("diffusers", "comfyui", "kohya"),
                help="写成谁的写法（diffusers）",
            ),
            _option("--out", type=Path, help="写到哪里；--merge 时是文件夹"),
            _option(
                "--workflow",
                type=Path,
                metavar="文件",
                help="写 ComfyUI 工作流：x.json 拖进网页用，x.api.json 给程序用",
            ),
            _option("--family", help="工作流给哪个家族：不写就用文件里记着的"),
            _option("--prompt", help="工作流里的提示词；没有触发词会自动加上"),
            _SET,
            _option("--also", type=Path, action="append", default=[], help="再叠一个 LoRA，可多次"),
            _option("--weight", type=float, action="append", help="每个 LoRA 的份量，按次序写"),
            _option("--rank", type=int, help="缩到这个秩"),
            _option("--merge", action="store_true", help="合并进底模，写出 transformer 文件夹"),
        ),
    ),
    "audit": (
        "体检一个 LoRA 文件：对不对得上底模、改了多少、有没有坏数",
        "lorakit audit runs/mine",
        _FILE,
    ),
    "push": (
        "把 LoRA 连同模型卡、样张发布到模型站；不写 --yes 只预演",
        "lorakit push runs/mine --to modelscope --repo zhangsan/papercut-lora",
        (
            _option("source", type=Path, help="一次训练的结果文件夹，或一个 LoRA 文件"),
            _option("--to", choices=("modelscope", "huggingface"), required=True, help="哪个站"),
            _option("--repo", required=True, metavar="用户名/模型名", help="仓库的名字"),
            _option("--public", action="store_true", help="公开；不写就是私有的"),
            _option("--yes", action="store_true", help="真的上传"),
        ),
    ),
    "doctor": (
        "开练前的体检：机器行不行，设置放不放得下、要下载多少、要多久",
        "lorakit doctor qwen-image-24gb",
        (
            _option("config", nargs="?", help="YAML 文件或预设名；不写就只看机器"),
            _option("--tier", type=float, metavar="GB", help="当作有一块这么大的显卡"),
            _option("--offline", action="store_true", help="不试着连模型站"),
            _SET,
        ),
    ),
    "bench": (
        "测速：真模型的尺寸、随机的权重，不用下载就知道练一步要多久、占多少显存",
        "lorakit bench qwen-image-24gb --tier 24 --baseline seed",
        (
            _option("config", nargs="?", help="YAML 文件或预设名；不写就用 Qwen-Image"),
            _option("--baseline", choices=("seed",), help="seed：再测每步现编码的常见写法"),
            _option("--plain", action="store_true", help="再测只用 diffusers + PEFT 的循环"),
            _option("--tier", type=float, metavar="GB", help="只许用这么多显存，假装是小一点的卡"),
            _option("--steps", type=int, default=10, help="计时的步数（10）"),
            _option("--warm", type=int, default=3, help="先走几步热身，不计时（3）"),
            _option("--trace", action="store_true", help="计时之后再走一步，看时间花在哪"),
            _option("--out", type=Path, default=Path("bench.json"), help="结果存到哪里"),
            _SET,
        ),
    ),
}
