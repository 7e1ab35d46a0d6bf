"""命令 judge：给一次训练的每个检查点亮三个灯，说该用哪一个。"""

import json
from dataclasses import asdict
from pathlib import Path

from lorakit.cli.options import DONE, SET, command, option
from lorakit.cli.progress import encoding
from lorakit.errors import LorakitError
from lorakit.files import Unreadable, read_words, user_path


@command(
    "lorakit judge runs/mine",
    option(
        "folder",
        type=Path,
        metavar="结果文件夹",
        help="一次训练的结果文件夹，或里面的一个 checkpoint-N（只看它）",
    ),
    option(
        "--eye",
        metavar="眼睛",
        help="谁来看：tiny 是小世界的考官（微型模型不写就用它）；真模型写 dinov2、siglip，"
        "或存着它们的本地文件夹",
    ),
    option("--seeds", type=int, default=2, metavar="几个", help="每题画几个种子（2）"),
    option(
        "--prompts",
        action="append",
        default=[],
        metavar="提示词",
        help="用这句看画面，可以写多次，或写一个一行一句的 .txt；不写就照训练图与描述出题",
    ),
    option(
        "--steps",
        metavar="100,300",
        help="只看这几步的检查点；不写就全看。真模型一个检查点要画二三十张，先只看几个",
    ),
    SET,
    option("--json", action="store_true", help="打印 JSON（给程序读）"),
)
def judge(args) -> int:
    """看每个检查点：损失、画面、抄没抄，三个灯，说该用哪一个。"""
    from lorakit.infer import xy
    from lorakit.judge import Judge, eye_for, open_run, scope
    from lorakit.results import board
    from lorakit.results.verdict import FILE

    steps = xy.numbers(args.steps, "--steps", int) if args.steps else ()
    run, steps = scope(args.folder, steps)
    config = open_run(run, args.set)
    bench = Judge(eye_for(args.eye, config), args.seeds, _prompts(args.prompts))
    found = bench(config, steps, encoding())
    board.plot(run)
    if args.json:
        print(json.dumps(asdict(found), ensure_ascii=False, indent=1))
        return DONE
    for step, one in found.verdicts.items():
        print(f"checkpoint-{step}  {one.text()}\n")
    if found.take is None:
        print(f"该用哪一个：{found.why}")
    else:
        print(f"该用哪一个：checkpoint-{found.take}。{found.why}")
    print(f"画的图：{run / 'judge'}；判断也写进了 {run / FILE} 和 board.png。")
    return DONE


def _prompts(given: list[str]) -> list[str]:
    """--prompts 写的几句；一个 .txt 就读里面的每一行。"""
    said = []
    for one in given:
        if one.endswith(".txt"):
            try:
                text = read_words(user_path(one, "--prompts"))
            except Unreadable as error:
                raise LorakitError(f"--prompts：{error}") from error
            said += [line.strip() for line in text.splitlines() if line.strip()]
        elif one.strip():
            said.append(one.strip())
    if given and not said:
        raise LorakitError("--prompts：一句提示词也没有。")
    return said
