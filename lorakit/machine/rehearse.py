"""排练：真模型的尺寸、随机的权重、自己的图与设置，在自己的卡上把整个训练从头到尾短短走一遍。

走的就是训练自己的路：体检、编码、载入、每种形状练几步、检验、样张、存检查点、停下、接着练、画图、
导出；每个部分一个接一个地载入、放掉，与真的一样。哪一步放不下，就说改哪一项设置。
"""

import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from lorakit import infer, lora
from lorakit.config import Config, load_config
from lorakit.data.read import read_image
from lorakit.data.select import select
from lorakit.errors import InspectionWarning, LorakitError
from lorakit.families import get, open_family
from lorakit.families.imagined import open_imagined, write
from lorakit.families.open import device_for
from lorakit.lora import convert
from lorakit.lora import fused as lora_fused
from lorakit.machine import doctor, mixed, pretend
from lorakit.machine.stages import Meter, Report, Row, outside
from lorakit.machine.whole import Counts, estimate_whole, pace
from lorakit.memory import apply, compiling, devices
from lorakit.results import report as pictures
from lorakit.train import Trainer
from lorakit.training import graphs, preflight
from lorakit.training.setup import encoded
from lorakit.training.warm import warm

VISITS = 4  # 每种形状走几次：头两次编译，第三次录图，第四次多半是平常的样子
STEPS = 20  # 至少走几步
DRAWN = 4  # 画一张图只走几步，其余的按比例推算
PROMPT = "一只猫坐在窗台上"  # 没有写 sample.prompts 时，试画它


def run(
    config: Config, *, tier: float | None = None, files: Path | None = None,
    price: float | None = None, mix: bool = False, keep: Path | None = None,
    say: Callable[[str, int, int], None] = lambda *_: None,
) -> Report:  # fmt: skip
    """排练一遍；返回每个环节的账。

    Args:
        tier: 假装是一块标着这么多 GB 的显卡。
        files: 把随机的底模写成这个文件夹，从磁盘载入；写过的直接用。
        price: 每小时多少元。
        mix: 不用自己的图，用几种宽高比都有的假照片。
        keep: 每走完一个环节，把账写进这个 JSON 文件。
        say: 函数 (在做什么, 第几个, 共几个)，各环节的进度。

    Raises:
        LorakitError: 设置或数据有错；显存不够不抛出，记在账里。
    """
    with ExitStack() as undo:
        place = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="lorakit-")))
        device = device_for(config.model.path if files is None else str(files))
        limit = undo.enter_context(pretend.limited(tier, device))
        compiling.keep_compiled()  # 编译好的，真练的时候也用得上
        undo.enter_context(pretend.own_cache(place / "cache"))
        name = f"{config.model.path}（{config.model.family}，{config.data.resolution}²）"
        report = Report(devices.name_of(device), name, limit, price=price)
        spared = 0.0
        if limit is not None:
            spared = outside(device) if tier is None else tier - limit
        meter = Meter(report.rows, device, spared, lambda: keep and report.save(keep))
        _Rehearsal(config, place, report, meter, say).walk(files, mix)
        meter.keep()
        return report


class _Rehearsal:
    """一次排练：一个个环节，与各环节留下的东西。"""

    def __init__(self, config: Config, place: Path, report: Report, meter: Meter, say):
        self.asked, self.place, self.report, self.meter, self.say = (
            config, place, report, meter, say
        )  # fmt: skip
        self.device = meter.device
        self.trainer = self.dataset = self.family = None
        self.trained = False
        self.typical: dict = {}  # 形状 -> 平常的一批几秒

    # ---- 从头到尾 ----

    def walk(self, files: Path | None, mix: bool):
        """一个个环节走下来；放不下的记下，后面还走得了的照样走。"""
        self._settle(mix)
        if files is not None:
            with self.meter.watch("write", "写随机的底模") as row:
                write(self.asked, files, self.say)
            _refuse(row)
            sets = [f"model.path={files}", "model.training_adapter="]  # 排练什么也不下载
            self.config = load_config(self.config.to_dict(), sets)
        self.blank = self._open()
        with self.meter.watch("check", "体检") as row:
            self._check()
        _refuse(row)
        self._anew()
        with self.meter.watch("encode", "编码图与描述") as row:
            self._encode(row)
        if self._went(row, "encode"):
            self._train()
            self._resume()
        self._use()
        rows = {row.key: row for row in self.report.rows if row.went}
        if self.typical and {"load", "train"} <= rows.keys():
            drawn = self.config.sample.steps
            self.report.whole = estimate_whole(self.real, drawn, rows, self.counts, self.typical)

    def _settle(self, mix: bool):
        """真的设置 real（没有图就用假照片），与排练的 config：结果放在临时的地方，样张只走几步。"""
        config, sets, notes = self.asked, [], self.report.notes
        if mix or not config.data.sources:
            each = max(3, config.train.batch_size + 1)
            edits = bool(get(config.model.family).controls[0])  # 只会改图的才非要控制图不可
            home = mixed.write(self.place / "data", config.data.resolution, each, edits)
            sets = [f"data.folder={home}", "data.control_folder=null", "data.mask=none"]
            what = "、".join(f"{a}:{b}" for a, b in mixed.RATIOS)
            notes.append(f"用的是假照片（{what}，各 {each} 张）；写上 data.folder 就用你自己的图。")
        self.real = load_config(config.to_dict(), sets)
        if not config.sample.prompts:
            sets.append(f"sample.prompts=['{PROMPT}']")
            if not config.sample.count:
                notes.append("不画样张：画一句试试，不算进整个训练的时间。")
        sets += [f"run.output={self.place / 'run'}", "run.tracker=none", "eval.every=0",
                 f"sample.steps={min(DRAWN, config.sample.steps)}", "sample.every=0",
                 "train.schedule=constant", "data.repeats=1"]  # fmt: skip
        self.config = load_config(config.to_dict(), sets)

    def _open(self):
        if self.config.model.path != self.asked.model.path:
            return open_family(self.config, self.device)
        return open_imagined(self.config, self.place / "model", self.device)

    def _anew(self):
        """像新开一个进程：什么也没有载入，也没有编译过。"""
        self.trainer = self.family = None
        pretend.fresh(self.device)
        self.family = self.blank.again()

    # ---- 体检与编码 ----

    def _check(self):
        """核对设置，挑出每种形状的一批，定好走几步。"""
        config, unit = self.config, self.blank.multiple
        preflight.check(config, self.blank)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InspectionWarning)
            whole = select(self.real, self.blank)
        self.chosen = mixed.few(whole, config, unit)
        shares = mixed.shares(whole.train, self.real, unit)
        self.report.shapes = ["+".join(f"{w}x{h}" for w, h in shape) for shape in shares]
        self._say_kinds(mixed.kinds(whole.train, self.real, self.blank))
        c, n = self.blank.latent_channels, self.blank.compression
        latents = {tuple((c, h // n, w // n) for w, h in s): m for s, m in shares.items()}
        sizes = [sum(map(len, chosen[:3])) for chosen in (whole, self.chosen)]
        self.counts = Counts(latents, *sizes, len(whole.held), len(self.chosen.held))
        accum = config.train.grad_accum
        self.walked = math.ceil(max(STEPS, VISITS * len(shares)) / accum)
        self.more = math.ceil(len(shares) / accum)  # 出完样张、接着练之后，各把每种形状走一遍
        steps = self.walked + 2 * self.more
        sets = [f"train.steps={steps}", f"train.save_every={steps}"]
        self.config = load_config(config.to_dict(), sets)

    def _say_kinds(self, count: int):
        how, most = self.real.memory.compile, graphs.MOST
        if how == "graphs" and self.real.train.batch_size == 1 and count > most:
            said = f"图的形状与描述的长短有 {count} 种，CUDA 图最多录 {most} 种："
            mend = "多出来的照常走，慢一些。把描述写得差不多长，种类就少了。"
            self.report.notes.append(said + mend)

    def _encode(self, row: Row):
        times: dict[str, list[float]] = {}

        def progress(what: str, done: int, total: int):
            times.setdefault(what, []).append(time.perf_counter() / max(1, done))
            times[what][-1] *= done
            self.say(what, done, total)

        self.dataset = encoded(self.config, self.family, progress, self.chosen)
        each = [(some[-1] - some[0]) / (len(some) - 1) for some in times.values() if len(some) > 1]
        row.facts["each"] = sum(each)

    # ---- 训练：练、检验、出样张、再练、存、停、接着练 ----

    def _train(self):
        with self.meter.watch("load", "载入底模，挂上 LoRA") as row:
            self.trainer = Trainer(self.config, self.dataset, family=self.family)
        if not self._went(row, "train"):
            return
        if self.trainer.compiled:
            with self.meter.watch("compile", "编译，每种形状走一遍") as row:
                warm(self.trainer, self.say)
            self._went(row, "train")
        with self.meter.watch("first", "样张（还没有练）") as row:
            self._draw(row)
        self._went(row, "sample")
        walk = iter(self.trainer)
        with self.meter.watch("train", f"训练 {self.walked} 步") as row:
            self._steps(row, walk, self.walked)
        self.trained = self._went(row, "train") and self._look(walk)
        with self.meter.watch("save", "存检查点") as row:
            self.trainer.save()
        self._went(row, "train")
        self.trainer.stop()
        if self.trained:
            next(walk, None)  # 停在这一步
        walk.close()
        self.trainer.close()

    def _look(self, walk) -> bool:
        """检验、出样张，再练几步。"""
        with self.meter.watch("examine", "检验") as row:
            self.trainer.examine()
        self._went(row, "train")
        with self.meter.watch("sample", "样张") as row:
            self._draw(row)
        self._went(row, "sample")
        with self.meter.watch("after", f"出完样张再练 {self.more} 步") as row:
            self._steps(row, walk, self.more)
        return self._went(row, "train")

    def _steps(self, row: Row, walk, count: int):
        """走 count 步，记下每步几秒；头一回还记下每种形状平常的一批几秒。"""
        batches, accum = self.trainer.objective.batches, self.config.train.grad_accum
        graphs = self.trainer.graphs
        seconds: dict[tuple, list[tuple[float, bool]]] = {}  # 每次几秒，是不是在录图
        row.facts["steps"] = []
        for number in range(1, count + 1):
            before = len(graphs.made) if graphs else 0
            done = next(walk)
            recorded = bool(graphs) and len(graphs.made) != before
            for share in range(accum):
                chosen = batches.batch((done.step - 1) * accum + share)
                shape = self.dataset.train[chosen[0]].shapes
                seconds.setdefault(shape, []).append((done.seconds / accum, recorded))
            row.facts["steps"].append(round(done.seconds, 4))
            self.say("训练", number, count)
        if graphs:
            row.facts |= {"graphs": len(graphs.made), "refused": graphs.refused}
        row.facts["shapes"] = {str(shape): [t for t, _ in some] for shape, some in seconds.items()}
        if not self.typical:
            self.typical = {shape: usual(some) for shape, some in seconds.items()}

    def _draw(self, row: Row):
        """出一轮样张，与训练途中的一样。"""
        trainer = self.trainer
        with pretend.forwards(trainer.transformer, self.device) as marks:
            pipe = trainer.pipeline()
            with trainer.average.swapped():
                images = infer.preview(trainer.family, pipe, self.config, self.dataset)
        trainer.family.release("vae", "text")
        for number, image in enumerate(images):
            pictures.save_image(image, trainer.run / "samples" / f"{trainer.step}_{number}.png")
        self._paces(row, marks, len(images))

    def _paces(self, row: Row, marks: list[float], count: int):
        row.facts |= {"pace": pace(marks, self.config.sample.steps * count), "images": count}

    def _resume(self):
        stage = f"另开一个进程，接着练 {self.more} 步"
        if not self.trained:
            return self.meter.skip("resume", stage, "前面没有练成")
        self._anew()
        with self.meter.watch("resume", stage) as row:
            self.dataset = encoded(self.config, self.family, self.say, self.chosen)
            self.trainer = Trainer(self.config, self.dataset, family=self.family)
            assert self.trainer.step == self.walked + self.more, self.trainer.step
            warm(self.trainer, self.say)
            self._steps(row, iter(self.trainer), self.more)
        if self.trainer is not None:
            self.trainer.close()
        return self._went(row, "train")

    # ---- 用起来：画图、导出 ----

    def _use(self):
        run = self.config.run.output
        saved = any(run.glob("checkpoint-*"))
        self._anew()
        with self.meter.watch("generate", "另开一个进程，画一张图") as row:
            self._generate(row, run if saved else None)
        self._went(row, "generate")
        self._anew()
        if not saved or self.config.lora.kind == "full":
            why = "全量微调存下的就能用" if saved else "没有存下 LoRA"
            return self.meter.skip("export", "导出", why)
        with self.meter.watch("export", "导出成 ComfyUI 的写法"):
            self._export(lora.find(run))
        return None

    def _generate(self, row: Row, weights: Path | None):
        config, family = self.config, self.family
        side, said = config.sample.size or config.data.resolution, [config.sample.prompts[0]]
        how = (family, weights, config.sample.guidance, said)
        if family.controls[0]:
            record = (self.chosen.held or self.chosen.train)[0]
            seen = [[read_image(path, family.clear) for path in record.controls]]
            pipe = infer.open_for(*how, seen)
            with pretend.forwards(pipe.transformer, self.device) as marks:
                infer.edit(family, pipe, said, seen, config.sample, side)
        else:
            pipe = infer.open_for(*how)
            with pretend.forwards(pipe.transformer, self.device) as marks:
                infer.generate(family, pipe, said, config.sample, (side, side))
        self._paces(row, marks, 1)

    def _export(self, file: Path):
        """写完当场核对；DoRA 换成 ComfyUI 的要底模的权重，就写成 diffusers 的。"""
        family = self.family
        shell = family.skeleton()
        modules = [name for name, module in shell.named_modules() if isinstance(module, nn.Linear)]
        layers = convert.read(file, modules, lora_fused.slots(family.original, shell))[0]
        style = "diffusers" if self.config.lora.variant == "dora" else "comfyui"
        card = {"family": family.name, **lora.read(file)[1]}
        target, names = self.place / "exported.safetensors", convert.Names.of(family, shell)
        convert.write(layers, style, target, card, names, dtype=torch.bfloat16)

    # ---- 放不下怎么办 ----

    def _went(self, row: Row, kind: str) -> bool:
        """走成了没有；显存不够的，写下怎么改，把占着的放掉。"""
        if row.full:
            row.mend = self._advice(kind)
            if self.family is not None:
                self.family.release("vae", "text")
            pretend.fresh(self.device)
        return not row.error

    def _advice(self, kind: str) -> str:
        config = self.asked
        side = config.sample.size or config.data.resolution
        small = {
            "encode": f"先关掉占着显卡的别的程序；再不够，写 data.resolution={side // 128 * 64}。",
            "sample": f"写 sample.size={side // 128 * 64}，或 sample.prompts=[]（途中不出样张，"
            "练完再画）。",
            "generate": f"写 sample.size={side // 128 * 64}，或换小一档的 model.quantize。",
        }  # fmt: skip
        if kind in small:
            return small[kind]
        lines = apply.explain_full(config, 0).splitlines()[1:]
        other = doctor.nearest(config, self.report.limit) if self.report.limit else None
        lines += [f"  - 或换预设 {other}：doctor 说这里放得下"] if other else []
        return "\n".join(lines)


def _refuse(row: Row):
    """头几个环节没走成，后面的都没有意义：那句话就是结论。"""
    if row.error:
        raise LorakitError(row.error)


def usual(visits: list[tuple[float, bool]]) -> float:
    """一种形状走的几次（秒，是不是在录图）-> 平常的一批几秒：编译、录图的不算。"""
    plain = [seconds for seconds, recorded in visits[VISITS - 2 :] if not recorded]
    return statistics.median(plain or [min(seconds for seconds, _ in visits)])
