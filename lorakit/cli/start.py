"""头一次用的命令：demo、sample-data、init。"""

import shlex
from pathlib import Path

from lorakit.cli.options import DONE, SET, command, option
from lorakit.cli.progress import bar


@command(
    "lorakit demo --out my-demo",
    option("--out", type=Path, help="结果文件夹（runs/demo；别的课是 runs/demo-课名）"),
    option(
        "--lesson",
        "--style",
        default="papercut",
        help="学什么：papercut inkwash pixel lineart porcelain（画风）、ohwx-cat（角色）、"
        "edit-lineart edit-hat edit-night edit-blue（改图）、sticker（透明底）",
    ),
    option(
        "--config",
        help="换一个预设，例如 tiny-flux（ohwx-cat 这一课）、tiny-qwen-image-2.1（改图的课）",
    ),
    SET,
)
def demo(args) -> int:
    """一分钟演示：画样例图、训练、比较前后。"""
    from lorakit.tiny import demo

    out = args.out or demo.place(args.lesson, args.config)
    with bar() as show:
        result = demo.run(out, args.lesson, args.set, show, print, args.config)
    scores = "\n".join(
        f"  {what}：训练前 {result.before[what]} -> 训练后 {share}"
        for what, share in result.after.items()
    )
    print(f"""
考官打分（{result.exam}）：
{scores}
留出集损失：{result.held[0]:.3f} -> {result.held[-1]:.3f}；训练用了 {result.seconds:.0f} 秒。

接下来打开：
  {result.picture}   同样的题目和种子，训练前与训练后
  {out / "loss.png"}   损失曲线
  {out / "data"}   训练图，照这个样子放你自己的图
  {out / "run"}   LoRA 与模型卡
画面像不像、抄没抄、该用哪个检查点：lorakit judge {out / "run"}
再上一课：lorakit demo --lesson ohwx-cat，或 --lesson edit-lineart、inkwash""")
    return DONE


@command(
    "lorakit sample-data papercut my-data",
    option("name", help="papercut、inkwash、ohwx-cat、cats、edit-hat 等；写错会列出全部"),
    option("folder", type=Path, help="写到哪个文件夹（要是空的）"),
)
def sample_data(args) -> int:
    """写出一个样例数据集，看看训练数据该长什么样。"""
    from lorakit.tiny import samples

    folder = samples.write(args.name, args.folder)
    count = len(list(folder.rglob("*.txt")))
    again = f"lorakit check {shlex.quote(str(folder))}"
    print(f"写好了 {count} 张图和描述：{folder}。打开看看，再试 {again}")
    return DONE


@command(
    "lorakit init qwen-image > my.yaml",
    option("preset", help="预设名，例如 qwen-image、tiny-qwen-image"),
)
def init(args) -> int:
    """打印一份带说明的配置模板。"""
    from lorakit.config import template

    print(template(args.preset), end="")
    return DONE
