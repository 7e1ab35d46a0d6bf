"""几个进程：梯度真的同步、检查点在一个与两个进程之间通用、一起停、一个出错不让别的卡住。"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from notebook_tools import BOOKS, ROOT
from safetensors.torch import load_file, save_file
from two_processes import Ranks, command, each_rank, failing, finish, hybrid, sharded

from lorakit.config import load_config
from lorakit.errors import ConfigError, LorakitError, LorakitWarning
from lorakit.families import open_family
from lorakit.results import checkpoint
from lorakit.results import folder as run_folder
from lorakit.tiny import samples
from lorakit.train import Trainer
from lorakit.training import processes

KINDS = {
    "lora": ["train.ema=0.9", "lora.variant=dora"],
    "full": ["lora.kind=full", "lora.targets=attention", "train.lr=1e-5"],
}
SHARDED = {
    **KINDS,
    "lora": ["train.ema=0.9"],
    "lokr": ["lora.variant=lokr"],
    "adapter": ["model.training_adapter=adapter.safetensors"],  # 支路不是参数，切不切都一样
    "compiled": [  # 真模型就是这样练的
        "model.precision=bf16",
        "memory.compile=true",
        "memory.checkpointing=full",
        "eval.every=0",
        "train.batch_size=1",
    ],
}


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("shared") / "cache"


@pytest.fixture(autouse=True)
def one_cache(shared_cache, own_cache, monkeypatch):
    """这里的图都一样，编码一次就够。"""
    monkeypatch.setenv("LORAKIT_CACHE", str(shared_cache))


def state(run, step):
    folder = run / f"checkpoint-{step}"
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{f.name}|{k}": v for f in files for k, v in load_file(f).items()}


def rows(run):
    keys = ("step", "loss", "held", "grad_norm")
    return [[m.get(key) for key in keys] for m in run_folder.read(run)]


def same(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def near(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one_with_twice_the_accumulation(config, tmp_path, kind):
    two, one = (
        config(*KINDS[kind], output="two"),
        config(*KINDS[kind], "train.grad_accum=2", output="one"),
    )
    finish(tmp_path / "ranks", each_rank, two, tmp_path)
    same(load_file(tmp_path / "0.safetensors"), load_file(tmp_path / "1.safetensors"))
    seen = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert seen[0] != seen[1]  # 各看各的图
    list(Trainer(one))
    same(state(two.run.output, 4), state(one.run.output, 4))
    assert rows(two.run.output) == rows(one.run.output)


@pytest.mark.parametrize("kind", SHARDED)
def test_sharded_parameters_learn_the_same(config, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # sharded 也是
    monkeypatch.chdir(tmp_path)
    _adapter()
    shard, plain = (
        config(*SHARDED[kind], output="shard"),
        config(*SHARDED[kind], "train.grad_accum=2", output="plain"),
    )
    finish(tmp_path / "ranks", sharded, each_rank, shard, tmp_path)
    same(load_file(tmp_path / "0.safetensors"), load_file(tmp_path / "1.safetensors"))
    list(Trainer(plain))
    near(state(shard.run.output, 4), state(plain.run.output, 4))
    if kind in ("lokr", "compiled", "adapter"):  # 检查点的来回搬，与 LoRA 走同一条路
        return
    shutil.rmtree(shard.run.output / "checkpoint-4")  # 切开练的检查点，一个进程接着练
    alone = shard.model_copy(update={"train": plain.train})
    list(Trainer(alone))
    near(state(shard.run.output, 4), state(plain.run.output, 4))
    shutil.rmtree(plain.run.output / "checkpoint-4")  # 一个进程的检查点，切开接着练
    back = plain.model_copy(update={"train": shard.train})
    finish(tmp_path / "ranks", sharded, each_rank, back, tmp_path)
    near(state(plain.run.output, 4), state(shard.run.output, 4))


def _adapter():
    """随便一份给微型模型的 LoRA。"""
    shell = open_family(load_config("tiny-qwen-image")).skeleton()
    tensors, path = {}, "transformer_blocks.0.attn.to_q"
    layer = shell.get_submodule(path)
    tensors[f"transformer.{path}.lora_A.weight"] = torch.ones(1, layer.in_features)
    tensors[f"transformer.{path}.lora_B.weight"] = torch.ones(layer.out_features, 1)
    save_file(tensors, "adapter.safetensors")


def test_sharded_in_pairs_and_averaged_between_them(config, tmp_path):
    """四个进程，两个一组切开：和一个进程累积四批一样；检查点也通用。"""
    small = ["train.batch_size=1", "eval.every=0"]
    pairs, plain = (
        config(*small, output="pairs"),
        config(*small, "train.grad_accum=4", output="plain"),
    )
    finish(tmp_path / "ranks", hybrid, each_rank, pairs, tmp_path, count=4)
    same(load_file(tmp_path / "0.safetensors"), load_file(tmp_path / "3.safetensors"))
    list(Trainer(plain))
    near(state(pairs.run.output, 4), state(plain.run.output, 4))


def test_sharded_bf16_weights_learn_the_same(config, tmp_path):
    """bf16 的全量微调切开练：舍入的随机数与份数无关，所以和一个进程走得一样；检查点两边通用。"""
    how = ["lora.kind=full", "model.precision=bf16", "train.lr=1e-4"]
    shard, plain = config(*how, output="shard"), config(*how, "train.grad_accum=2", output="plain")
    finish(tmp_path / "ranks", sharded, each_rank, shard, tmp_path, 1 << 20)
    parts = (shard.run.output / "checkpoint-4/state").glob("weights-*-of-*.safetensors")
    assert len([*parts]) > 2  # 一个进程的只有一个文件，两边照样通用
    same(load_file(tmp_path / "0.safetensors"), load_file(tmp_path / "1.safetensors"))
    base = {name: p.detach().clone() for name, p in Trainer(plain).parameters.items()}
    list(Trainer(plain))

    def alike(step: int):
        homes = [r.run.output / f"checkpoint-{step}" for r in (shard, plain)]
        (ours, theirs), moments = (
            [checkpoint._read(h / "state", name, checkpoint.facts_of(h)) for h in homes]
            for name in ("weights", "optimizer")
        )
        moved = [torch.cat([(w[n] - base[n]).float().flatten() for n in base])
                 for w in (ours, theirs)]  # fmt: skip
        assert torch.cosine_similarity(*moved, dim=0) > 0.98
        assert {value.dtype for value in ours.values()} == {torch.bfloat16}
        kept = [key for key in moments[0] if key.endswith("exp_avg")]
        assert len(kept) > 0.9 * len(base) and moments[0].keys() == moments[1].keys()
        assert all(moments[0][key].dtype == torch.float32 for key in kept)

    alike(4)
    for one in (plain, shard):
        shutil.rmtree(one.run.output / "checkpoint-4")
    alone = shard.model_copy(update={"train": plain.train})
    list(Trainer(alone))  # 切开练的检查点，一个进程接着练
    back = plain.model_copy(update={"train": shard.train})
    finish(tmp_path / "ranks", sharded, each_rank, back, tmp_path, 1 << 20)  # 反过来
    alike(4)


def test_checkpoints_move_between_one_and_two_processes(config, tmp_path):
    lokr = "lora.variant=lokr"
    two, one = config(lokr, output="two"), config(lokr, "train.grad_accum=2", output="one")
    finish(tmp_path / "ranks", each_rank, two, tmp_path)
    list(Trainer(one))
    for run in (one.run.output, two.run.output):
        shutil.copytree(run, run.with_suffix(".whole"))
        shutil.rmtree(run / "checkpoint-4")
    moved = two.model_copy(update={"run": one.run})
    finish(tmp_path / "ranks", each_rank, moved, tmp_path)
    with pytest.warns(LorakitWarning, match=r"一步原来看 2 批，现在 1 批.*grad_accum 改成 2"):
        assert Trainer(two).step == 2
    again = Trainer(one.model_copy(update={"run": two.run}))
    assert again.step == 2
    list(again)
    for run in (one.run.output, two.run.output):
        same(state(run, 4), state(run.with_suffix(".whole"), 4))
        assert rows(run) == rows(run.with_suffix(".whole"))
    with pytest.raises(ConfigError, match=r"grad_accum：原来 2，现在 3"):
        Trainer(config(lokr, "train.grad_accum=3", output="two"))


def test_checkpoints_move_between_four_two_and_one(config, tmp_path):
    """四个进程存的，两个接着练，再一个接着练：与一个进程从头练到尾一样，差的只是相加的次序。"""
    sets = ["train.batch_size=1", "train.save_every=2", "train.steps=6"]
    alone = config(*sets, "train.grad_accum=4", output="alone")
    moved = config(*sets, "train.steps=2", output="moved")
    list(Trainer(alone))
    finish(tmp_path / "ranks", each_rank, moved, tmp_path, count=4)
    more = config(*sets, "train.steps=4", "train.grad_accum=2", output="moved")
    finish(tmp_path / "ranks", each_rank, more, tmp_path)
    list(Trainer(config(*sets, "train.grad_accum=4", output="moved")))
    for step in (2, 4, 6):
        near(state(alone.run.output, step), state(moved.run.output, step))
    losses = [
        [m["loss"] for m in run_folder.read(c.run.output) if m["step"]] for c in (moved, alone)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("lost", [0, 3])
def test_a_killed_rank_ends_the_others_with_one_sentence(yaml, config, tmp_path, lost):
    """不管几号、什么时候没的：别的十秒内都结束，只说一句，接得着。"""
    run = config().run.output
    file = yaml("train.batch_size=1", "train.steps=500", "eval.every=0", "train.save_every=2")
    ranks = Ranks(tmp_path / "ranks", command, ["train", str(file)], count=4)
    ranks.wait_for(run / "checkpoint-2")
    time.sleep(random.Random(lost).random())
    os.kill(ranks.all[lost].pid, signal.SIGKILL)
    start = time.time()
    codes = ranks.wait()
    assert time.time() - start < 10
    assert codes == [-signal.SIGKILL if rank == lost else 1 for rank in range(4)]
    said = [ranks.out(rank) for rank in range(4) if rank != lost]
    assert [f"{lost} 号没了" in text for text in said] == [True, False, False], said
    assert "Traceback" not in "".join(said)
    last = checkpoint.latest(run)
    again = config("train.batch_size=1", "train.grad_accum=4", "train.steps=500", "eval.every=0",
                   "train.save_every=2")  # fmt: skip
    assert Trainer(again).step == checkpoint.step_of(last)


def test_prior_preservation_and_accumulation_in_two_processes(config, tmp_path):
    kin = samples.write("inkwash", tmp_path / "kin")
    sets = [f"data.class_folder={kin}", "train.grad_accum=2", "train.steps=2"]
    two = config(*sets, output="two")
    finish(tmp_path / "ranks", each_rank, two, tmp_path)
    one = config(*sets, "train.grad_accum=4", output="one")
    list(Trainer(one))
    near(state(two.run.output, 2), state(one.run.output, 2))


@pytest.fixture
def yaml(config, tmp_path):
    def write(*more):
        file = tmp_path / "x.yaml"
        file.write_text(config(*more).to_yaml())
        return file

    return write


@pytest.mark.parametrize(
    ("how", "rank", "said"),
    [
        ("nan", 0, r"第 3 步的损失变成了 nan.*t = \[.*checkpoint-2"),
        ("memory", 1, "第 3 步显存不够"),
        ("killed", 0, "2 个进程里，1 号没了.*从 checkpoint-2 接着练"),
        ("deaf", 0, "2 个进程里，1 号没了.*从 checkpoint-2 接着练"),
    ],
)
def test_trouble_on_one_rank_does_not_hang_the_other(yaml, config, tmp_path, how, rank, said):
    ranks = Ranks(tmp_path / "ranks", failing, yaml("train.steps=50"), how)
    codes = ranks.wait()
    assert all(code != 0 for code in codes)
    assert re.search(said, ranks.out(rank)), ranks.out(rank)
    if how == "nan":  # 一起停，只说一遍
        assert codes == [1, 1] and ranks.out(1) == "" and "Traceback" not in ranks.out(0)
    assert checkpoint.latest(config().run.output).name == "checkpoint-2"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(yaml, config, tmp_path, number):
    run = config().run.output
    file = yaml("train.steps=500", "train.save_every=500", "eval.every=0", "sample.prompts=[猫]")
    ranks = Ranks(tmp_path / "ranks", command, ["train", str(file)])
    ranks.wait_for(run / "metrics.jsonl")
    while len(run_folder.read(run)) < 3:
        assert ranks.all[0].is_alive(), ranks.out(0)
    os.kill(ranks.all[1].pid, number)
    assert ranks.wait() == [130, 130]
    assert "再运行同一条命令就接着练" in ranks.out(0) and ranks.out(1) == ""
    step = run_folder.read(run)[-1]["step"]
    assert checkpoint.latest(run).name == f"checkpoint-{step}"


def test_a_failed_write_still_walks_to_the_end_with_the_others():
    """0 号写到一半磁盘满了，也要把剩下的陪着拼完，不然别的进程一直等它。"""
    walked = []

    def parts():
        for i in range(4):
            walked.append(i)
            yield {"w": torch.tensor(float(i))}

    def write(turns):
        assert next(turns) == {"w": torch.tensor(0.0)}
        raise LorakitError("磁盘满了")

    with pytest.raises(LorakitError, match="磁盘满了"):
        processes.write_in_turn(Accelerator(cpu=True), parts(), write)
    assert walked == [0, 1, 2, 3]


def test_a_mistake_is_told_once(yaml, tmp_path):
    ranks = Ranks(tmp_path / "ranks", command, ["train", str(yaml("lora.targets=nothing"))])
    assert ranks.wait() == [1, 1]
    assert ranks.out(0).count("一层也没对上") == 1 and ranks.out(1) == ""


def test_accelerate_launch(yaml, config, own_cache, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(own_cache))
    run = config().run.output
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1",
              "--num_processes=2", "--main_process_port=0", "--mixed_precision=no",
              "--dynamo_backend=no", "-m", "lorakit", "train", str(yaml("train.steps=2",
              "sample.prompts=[一只猫]", "sample.steps=2"))]  # fmt: skip
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("练完了") == 1 and "2 个进程" in done.stdout
    assert [m["step"] for m in run_folder.read(run)] == [0, 1, 2]
    assert len(list(own_cache.glob("image/*.safetensors"))) == 24  # 一份缓存，共用
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["0_0.png", "2_0.png"]


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", *BOOKS], ids=lambda page: page.name)
def test_launch_commands_people_copy_are_valid(page):
    """练习册与 CONTRIBUTING 里的 accelerate launch，accelerate 自己都认。"""
    lines = re.findall(
        r"accelerate launch ([\w\- .=]+ -m lorakit [\w. ]+)", page.read_text(encoding="utf-8")
    )
    for line in lines:
        args = launch_command_parser().parse_args(line.split())
        _validate_launch_command(args)
        assert args.num_processes > 1 and args.training_script == "lorakit"
    assert lines or page.name != "CONTRIBUTING.md"
