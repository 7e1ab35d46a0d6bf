"""头一次用的命令：demo、sample-data、init。"""

from lorakit.cli.options import DONE
from lorakit.cli.progress import bar


def demo(args) -> int:
    from lorakit.tiny import demo

    args.out = args.out or demo.place(args.lesson, args.config)
    with bar() as show:
        result = demo.run(args.out, args.lesson, args.set, show, print, args.config)
    scores = "\n".join(
        f"  {what}：训练前 {result.before[what]:.0%} -> 训练后 {share:.0%}"
        for what, share in result.after.items()
    )
    print(f"""
考官打分（{result.exam}）：
{scores}
留出集损失：{result.held[0]:.3f} -> {result.held[-1]:.3f}；训练用了 {result.seconds:.0f} 秒。

接下来打开：
  {result.picture}   同样的题目和种子，训练前与训练后
  {args.out / "loss.png"}   损失曲线
  {args.out / "data"}   训练图，照这个样子放你自己的图
  {args.out / "run"}   LoRA 与模型卡
再上一课：lorakit demo --lesson ohwx-cat，或 --lesson edit-lineart、inkwash""")
    return DONE


def sample_data(args) -> int:
    from lorakit.tiny import samples

    folder = samples.write(args.name, args.folder)
    count = len(list(folder.rglob("*.txt")))
    print(f"写好了 {count} 张图和描述：{folder}。打开看看，再试 lorakit check {folder}")
    return DONE


def init(args) -> int:
    from lorakit.config import template

    print(template(args.preset), end="")
    return DONE
