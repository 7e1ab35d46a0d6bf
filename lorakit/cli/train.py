"""命令 train：训练、途中出样张、练完写报告；几个进程时都走这里，只有 0 号写文件、说话。"""

import shlex
import statistics

from lorakit.cli.options import DONE, INTERRUPTED, SET, command, option, settings
from lorakit.cli.progress import bar, encoding, interrupt
from lorakit.errors import LorakitError

STARTING = 10  # 编译、挑内核、录图都在头几步里


@command(
    "lorakit train tiny-qwen-image --set data.folder=my-data --set run.output=runs/mine",
    option("config", help="YAML 文件或预设名"),
    SET,
)
def train(args) -> int:
    """训练一个 LoRA；断了再运行同一条命令就接着练。"""
    from lorakit import infer
    from lorakit.results import card, track
    from lorakit.train import Trainer
    from lorakit.training import processes
    from lorakit.training.warm import warm

    trainer = Trainer(settings(args.config, args.set), progress=encoding())
    config = trainer.config  # 样张的提示词这时才挑好
    print(trainer.plan().text())
    print(trainer.describe())
    print(infer.cost(trainer.config, trainer.family, trainer.step))
    if trainer.step:
        said = f"从第 {trainer.step} 步接着练"
        if trainer.step >= config.train.steps:
            said = f"已经练到 {trainer.step} 步，train.steps 是 {config.train.steps}：还想练就改大"
        print(f"{said}（要从头来，换一个 run.output）。")
    if trainer.compiled:
        print("先编译，一分钟上下，显得卡住了；编译好的留在缓存里，下一次快得多。")
    try:
        with trainer.peers.explaining():
            warm(trainer, encoding())
            times = _loop(trainer)
        if trainer.step < config.train.steps:
            if trainer.step:
                processes.by_first(trainer.accelerator, lambda: card.keep(trainer, bool(times)))
            print(f"\n已停在第 {trainer.step} 步并存好。再运行同一条命令就接着练。")
            return INTERRUPTED
        if config.sample.prompts:
            _sample(trainer)
        processes.by_first(trainer.accelerator, lambda: _report(trainer, sum(times)))
        if trainer.compiled and times:
            print(warmup(times))
    finally:
        track.finish(trainer.accelerator)
    return DONE


def warmup(times: list[float]) -> str:
    """各步的秒数 -> 正常的一步要多久，开头的准备（编译、挑内核、录图）多用了多久。"""
    usual = statistics.median(times)
    extra = sum(max(0.0, time - usual) for time in times[:STARTING])
    return (
        f"正常的一步 {usual:.3g} 秒；头 {len(times[:STARTING])} 步编译等准备多用了 {extra:.0f} 秒。"
    )


def _loop(trainer) -> list[float]:
    """练到完或被叫停；返回各步用了几秒。"""
    sample, times = trainer.config.sample, []
    with interrupt(trainer), bar(trainer.step) as show:
        if sample.prompts and trainer.step == 0:
            _sample(trainer)  # 没有 LoRA 时的样子，留作对照
        for step in trainer:
            times.append(step.seconds)
            show(step, trainer.config.train.steps)
            due = sample.every and step.step % sample.every == 0
            if sample.prompts and due and step.step < trainer.config.train.steps:
                _sample(trainer)
    return times


def _sample(trainer):
    """出一轮样张。每个进程都画（FSDP 切开的模型要大家一起算），只有 0 号存。"""
    import torch

    from lorakit import infer
    from lorakit.results import board, shots, track
    from lorakit.training import processes

    config, family = trainer.config, trainer.family
    pipe = trainer.pipeline()
    try:
        with trainer.average.swapped():
            images = infer.preview(family, pipe, config, trainer.dataset)
    except LorakitError as error:
        last = trainer.last_good()
        said = f"第 {trainer.step} 步出样张时：{error}最后一个好的检查点：{last or '还没有'}。"
        raise LorakitError(said) from error
    except torch.OutOfMemoryError as error:
        raise LorakitError(_too_full(trainer)) from error
    family.release("vae", "text")

    def write():
        shots.keep(trainer.run, trainer.step, images, infer.columns(config, trainer.dataset))
        board.plot(trainer.run)

    processes.by_first(trainer.accelerator, write)
    track.pictures(trainer.accelerator, images, trainer.step)


def _too_full(trainer) -> str:
    """出样张时显存不够：先存好练到的，再说怎么办。"""
    trainer.family.release("vae", "text")
    if trainer.step and trainer.accelerator.num_processes == 1:  # 存的时候大家要一起
        trainer.save()
    last = trainer.last_good()
    return (
        f"第 {trainer.step} 步出样张时显存不够了。最后一个好的检查点：{last or '还没有'}。"
        "写 sample.prompts=[] 和 sample.every=0（途中不出样张，练完再画），再运行同一条命令接着练。"
    )


def _report(trainer, seconds: float):
    """练完：曲线、运行卡、模型卡、看板，和最后几句话。"""
    from lorakit.results import board, card, checkpoint, report, verdict
    from lorakit.results.folder import read

    config, run = trainer.config, trainer.run
    report.plot_loss(run)
    card.keep(trainer, bool(seconds))
    board.plot(run)
    metrics = read(run)
    judged = verdict.judge(metrics)
    print(f"\n{judged.phrase}：{judged.sentence}看板：{run / 'board.png'}")
    print(f"练完了：{checkpoint.folder_of(run, trainer.step)}")
    kept = [checkpoint.step_of(path) for path in checkpoint.all_of(run)]
    best = verdict.best_of(metrics, kept)
    if best is not None and best != trainer.step:
        print(f"留出集损失最低的检查点是 {checkpoint.folder_of(run, best)}；画得最好的不一定是它。")
    verb = "compare" if config.lora.kind == "lora" else "generate"
    place = shlex.quote(str(run))
    command = f'lorakit {verb} {place} --prompt "你的提示词"'
    if trainer.dataset.edits:
        command = f'lorakit edit 要改的图.png "怎么改" --model {place}'
    print(f"试试：{command}")
    print(f"画面像不像、抄没抄：lorakit judge {place}")
