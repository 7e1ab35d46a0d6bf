"""存成检查点、从检查点接着练；写文件的事由 results/checkpoint.py 做。"""

from collections.abc import Iterable
from pathlib import Path

from lorakit import lora
from lorakit.cache.keys import fingerprint
from lorakit.cache.whole import whole
from lorakit.errors import LorakitError, warn
from lorakit.files import digest
from lorakit.lora import full, metadata
from lorakit.memory import devices
from lorakit.memory.sharded import Tensors
from lorakit.results import checkpoint, heldout, sameness, verdict
from lorakit.results.card import licence
from lorakit.results.folder import read
from lorakit.training import adapter, optim, processes


def save(trainer) -> Path:
    """把 trainer 当前这一步存成检查点（已经存过就不重复）；几个进程要一起调用。"""
    run, step, config = trainer.run, trainer.step, trainer.config
    target = checkpoint.folder_of(run, step)
    if trainer._saved == step:
        if trainer._back == step:
            _mend(trainer, target)
        return target
    live, average = trainer.parameters, trainer.average.values
    files, plain = checkpoint.snapshot(live, trainer.optimizer, average)
    facts = {"optimizer": plain, "processes": trainer.accelerator.num_processes}
    facts[sameness.KEY] = trainer.trained_on
    exported = _exported(trainer)

    def write(turns):
        others = zip(exported, turns, strict=False)  # 名字用完就停，不会多取一份
        ours = zip(files, turns, strict=False)

        def export(folder: Path):
            _export(trainer, folder, others)

        checkpoint.save(run, step, ours, facts, export, config.train.keep)

    parts = [*exported.values(), *files.values()]
    processes.write_in_turn(trainer.accelerator, parts, write)
    trainer._saved = step
    return target


def _exported(trainer) -> dict[str, Tensors]:
    """给别人用的：一个个文件名与其中的张量；LoRA 自成一个文件，用不着这些名字。"""
    whole = trainer.config.lora.kind == "full"
    live = trainer.transformer.state_dict() if whole else trainer.parameters
    return full.files_of({**live, **trainer.average.values})


def _mend(trainer, target: Path):
    """早就练完、又运行了一遍：给别人用的那一份丢了、坏了，就从刚读回来的状态重新写一份。"""
    trainer._back = None
    wrong = processes.by_first(trainer.accelerator, lambda: checkpoint.changed(target))
    if not wrong:
        return
    exported = _exported(trainer)

    def write(turns):
        others = zip(exported, turns, strict=False)
        trainer._held = verdict.held_by_step(read(trainer.run)).get(trainer.step)
        judged = verdict.read(trainer.run)
        checkpoint.mend(target, lambda folder: _export(trainer, folder, others))
        if judged:  # 权重还是那些，看过的照样作数
            verdict.save(trainer.run, judged)
        warn(
            f"“{target}”里的 {'、'.join(wrong)} 不见了，或和存的时候不一样了："
            "已经从存着的状态重新写好，可以照常用了。"
        )

    processes.write_in_turn(trainer.accelerator, exported.values(), write)


def _export(trainer, folder: Path, files: Iterable[tuple[str, Tensors]]):
    """给别人用的那一份：LoRA 文件，或全量微调的权重。"""
    config, held = trainer.config, trainer._held
    facts = {"base": config.model.path, "family": config.model.family, "steps": str(trainer.step)}
    facts["trigger"] = config.data.trigger
    facts |= {} if held is None else {"held": f"{held:.6f}"}
    if config.lora.kind == "full":
        full.save(folder, trainer.family, files)
    else:
        values = {name: value for _, part in files for name, value in part.items()}
        about = metadata.describe(
            trainer.family,
            config.model.path,
            trainer.run.name,
            trigger=config.data.trigger,
            resolution=config.data.resolution,
            licence=licence(trainer.family, config.model.path),
            captions=[item.record.caption for item in trainer.dataset.train],
        )
        lora.save(folder, trainer.transformer, config.lora, facts, values, about)


def trained_on(trainer) -> dict:
    """这一次照什么设置、用哪些图、在哪份底模上练；接着练时拿来比。"""
    family = trainer.family
    folders = {part: family.folder / part for part in ("transformer", "vae", *family.text_parts)}
    here = {part: home for part, home in folders.items() if home.is_dir()}
    base = {part: fingerprint(home) for part, home in here.items()}
    if trainer.config.model.training_adapter and not family.random_weights:
        base[sameness.ADAPTER] = digest(adapter.find(trainer.config.model))
    precision = str(family.dtype).removeprefix("torch.")
    machine = {"设备": devices.name_of(family.device), "精度": precision}
    facts = sameness.facts(trainer.config, trainer.dataset, base, machine)
    return facts | {"whole": {part: whole(home) for part, home in here.items()}}


def newest(run: Path) -> Path | None:
    """接着哪个检查点练。

    Raises:
        LorakitError: 有检查点却一个也读不出；停下，别悄悄从头练。
    """
    found = checkpoint.latest(run)
    if found is None and (broken := checkpoint.all_of(run)):
        raise LorakitError(
            f"“{run}”里的 {len(broken)} 个检查点都不完整，接不上（{broken[-1].name} 等）。"
            "要从头练，就换一个 run.output，或把这些检查点挪走。"
        )
    steps = checkpoint.step_of
    newer = [p.name for p in checkpoint.all_of(run) if found and steps(p) > steps(found)]
    if newer:
        warn(f"“{run}”里的 {'、'.join(newer)} 坏了或被改过，退回 {found.name} 接着练。")
    return found


def go_on(trainer, found: Path):
    """接着 found 练：先核对是不是同一件事，该补量的补量，再放回权重；几个进程要一起调用。"""
    accelerator, record = trainer.accelerator, trainer.record
    given = (found, trainer.trained_on, trainer.dataset)
    processes.by_first(accelerator, lambda: sameness.content(*given))
    processes.by_first(accelerator, lambda: _tell_rate(found, trainer.config.train))
    if processes.by_first(accelerator, lambda: _lacks_base(trainer, checkpoint.step_of(found))):
        # 还没有放回权重：此刻就是没有 LoRA 的样子，和从头练的第 0 步一样
        base = {"step": 0, **trainer.examine(), heldout.MARK: record.held_of}
        record.kept = sorted([*record.kept, base], key=lambda row: row["step"])
    processes.together(accelerator, lambda: restore(trainer, found))


def _tell_rate(found: Path, train):
    """学习率按总步数下降，总步数改了，接上的那一步就会跳：从多少到多少，说一声。"""
    before, step = sameness.config_of(found), checkpoint.step_of(found)
    if not before or before.train.steps == train.steps or train.schedule == "constant":
        return
    if step < train.steps:
        last, following = optim.lr_at(max(0, step - 1), before.train), optim.lr_at(step, train)
        warn(
            f"train.steps 原来是 {before.train.steps}，现在是 {train.steps}："
            f"train.schedule={train.schedule} 的学习率按总步数下降，前 {step} 步照原来的总数降。"
            f"接着练的头一步，学习率从 {last:.2g} 跳到 {following:.2g}；接得上，和一口气练完不同。"
        )


def _lacks_base(trainer, step: int) -> bool:
    """要不要补量没有 LoRA 时的留出集损失：后面还要检验，记录里却没有同一批图的第 0 步。"""
    config, record = trainer.config, trainer.record
    record.recall(step)
    later = config.eval.every > 0 and step < config.train.steps
    known = heldout.of(record.kept, record.held_of)
    if not later or not trainer.dataset.held or any(row["step"] == 0 for row in known):
        return False
    marks = {row.get(heldout.MARK) for row in heldout.measured(record.kept)}
    if marks - {None, record.held_of}:
        warn(
            "留出的图和以前检验用的不是同一批：没有 LoRA 时的损失在现在这一批上补量一遍，"
            "往后只和它比。以前各步的损失还记着，量的是另一批图，不放在一起比。"
        )
    else:
        warn("记录里没有现在这批留出图在第 0 步（没有 LoRA 时）的损失：补量一遍，好和后面的比。")
    return True


def restore(trainer, found: Path):
    """把检查点里的权重、优化器与滑动平均放回去，从那一步接着练。"""
    state = (trainer.parameters, trainer.optimizer, trainer.average.values)
    trainer.step = trainer._saved = trainer._back = checkpoint.load(found, *state)
