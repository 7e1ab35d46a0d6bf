"""练习：对的各种写法都过，错的说得出错在哪；改了输入、停不下来、出了错，都伤不到下一次。"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from lorakit import lab
from lorakit.errors import LorakitError
from lorakit.families.shared import pack
from lorakit.lab import exercises
from lorakit.lab import practice as album
from lorakit.lab.exercises import hints, mishaps, trial

ALL = exercises.all_exercises()
FUNCTIONS = [name for name, exercise in ALL.items() if exercise.draw]


def _everywhere(net, name, wrap):
    for path, module in list(net.named_modules()):
        if isinstance(module, nn.Linear):
            home, _, last = path.rpartition(".")
            setattr(net.get_submodule(home), last, wrap(module))
    return net


def _brand_new(net, name, wrap):
    home, _, last = name.rpartition(".")
    old = net.get_submodule(name)
    setattr(net.get_submodule(home), last, wrap(nn.Linear(old.in_features, old.out_features)))
    return net


def _elsewhere(net, name, wrap):
    net.add_module("q", wrap(net.get_submodule(name)))
    return net


def _hang_then_freeze(net, names, wrap, attach):
    for name in names:
        attach(net, name, wrap)
    net.requires_grad_(False)
    return [p for p in net.parameters() if p.requires_grad]


def _never_freeze(net, names, wrap, attach):
    for name in names:
        attach(net, name, wrap)
    return list(net.parameters())


def _freeze_last_by_name(net, names, wrap, attach):
    for name in names:
        attach(net, name, wrap)
    net.requires_grad_(False)
    return [p for name, p in net.named_parameters() if name.endswith((".A", ".B"))]


def _never_freeze_by_name(net, names, wrap, attach):
    for name in names:
        attach(net, name, wrap)
    return [p for name, p in net.named_parameters() if name.endswith((".A", ".B"))]


def _only_first(net, names, wrap, attach):
    net.requires_grad_(False)
    attach(net, names[0], wrap)
    return [p for p in net.parameters() if p.requires_grad]


def _add(layer, change):
    layer.base.weight.data += change.detach()
    return layer.base


def _no_bias(layer):
    made = nn.Linear(layer.base.in_features, layer.base.out_features)
    change = layer.alpha / len(layer.A) * layer.B @ layer.A
    made.weight = nn.Parameter((layer.base.weight + change).detach())
    return made


WRONG = {  # 每题的几种常见的错，和话里应该点到的词
    "add_noise": [
        (lambda x0, noise, t: t * x0 + (1 - t) * noise, "方向反了"),
        (lambda x0, noise, t: (1 - t) ** 0.5 * x0 + t**0.5 * noise, "平方根"),
        (lambda x0, noise, t: x0 + t * noise, "一点图也不剩"),
        (lambda x0, noise: x0, "出错"),
    ],
    "velocity": [
        (lambda x0, noise: x0 - noise, "正负号"),
        (lambda x0, noise: noise, "减去图"),
        (lambda x0, noise: noise + x0, "正好到噪声"),
    ],
    "euler": [
        (lambda x, v, t, t_next: x + (t - t_next) * v, "走反了"),
        (lambda x, v, t, t_next: x - v, "整条路"),
        (lambda x, v, t, t_next: x, "落在"),
    ],
    "caption": [
        ("一只猫在雪地里", "没有触发词"),
        ("ohwx", "只有触发词"),
        ("ohwx 猫", "加上别的词"),
        ("ohwx 猫戴着红围巾，背景是雪地", "固定的样子"),
        ("ohwx 白猫在雪地里", "固定的样子"),
        ("ohwx 猫，白色，背景是雪地", "固定的样子"),
        ("ohwx 花猫在雪地", "固定的样子"),
        ("ohwx 猫戴着项圈在中间，背景是雪地", "固定的样子"),
        ("一只白色的 ohwx 猫在雪地中间", "固定的样子"),
        ("ohwx 猫，左眼有一圈黑，在雪地中间", "固定的样子"),
        ("ohwx 猫，背景不是雪地，在草地右边", "只写图里有"),
        ("ohwx 猫在中间，背景是草地", "背景写错"),
        ("ohwx 猫在右边，背景是雪地", "位置写错"),
        ("ohwx 猫在中间", "背景没说到"),
        ("ohwx 猫，背景是雪地", "就差位置"),
    ],
    "bucket": [((1024, 1024), "正方形"), ((768, 1360), "写反"), ((1600, 900), "16 的倍数"),
               ((1600, 896), "面积")],
    "steps": [
        (lambda n, b, a, v: n * v, "一步不只看一张"),
        (lambda n, b, a, v: n * v / b, "梯度累积没有用上"),
        (lambda n, b, a, v: n * v * a / b, "方向反了"),
    ],
    "recode": [({"A", "B", "C"}, "学习率"), ({"A", "D"}, "名字"), ({"A"}, "分辨率"),
               ({"E"}, "可以选")],
    "unknown": [
        (lambda names, layers: len(names), "一组名字"),
        (lambda names, layers: [n for n in names if n not in layers], "去掉开头"),
        (lambda names, layers: [], "放过去了"),
        (
            lambda names, layers: sorted(
                {n.removeprefix("transformer.").split(".lora_")[0] for n in names} - set(layers)
            ),
            "名字要完整",
        ),
        (lambda names, layers: [n for n in names if not any(x in n for x in layers)], "整个相等"),
    ],
    "strength": [
        (lambda w, a, b, s: s * (w + b @ a), "不乘 W"),
        (lambda w, a, b, s: w, "没有加上去"),
        (lambda w, a, b, s: w + (s * b) @ (s * a), "各乘一次"),
        (lambda w, a, b, s: s * b @ a, "W 自己"),
    ],
    "size": [
        (lambda w, h, u: (w // u * u, h // u * u), "四舍五入"),
        (lambda w, h, u: (round(w / u) * u, round(h / u) * u), "变成了 0"),
        (lambda w, h, u: (-(-w // u) * u, -(-h // u) * u), "往大里取"),
        (lambda w, h, u: (w, h), "倍数"),
        (lambda w, h, u: (max(u, round(h / u) * u), max(u, round(w / u) * u)), "写反"),
    ],
    "combine": [
        (lambda a1, b1, a2, b2, v, w: (a1[: len(a2)] + a2, b1[:, : len(a2)] + b2), "上下接"),
        (lambda a1, b1, a2, b2, v, w: (torch.cat([a1, a2]), torch.cat([b1, b2], 1)), "份量"),
        (
            lambda a1, b1, a2, b2, v, w: (
                torch.cat([v * a1, w * a2]), torch.cat([v * b1, w * b2], 1)
            ),
            "只乘一次",
        ),
        (lambda a1, b1, a2, b2, v, w: (torch.cat([a1, a2]), torch.cat([b1, b2])), "左右接"),
    ],
    "pick": [
        (lambda log: log[-1]["step"], "在背图"),
        (lambda log: min(log, key=lambda row: row["loss"])["step"], "在背图"),
        (lambda log: min(log, key=lambda row: row["held"] or 0)["step"], "没有检验过"),
        (lambda log: min(r["held"] for r in log if r["held"]), "步数"),
    ],
    "lora_forward": [
        (lambda x, base, a, b, alpha: x @ a.T @ b.T * alpha / len(a), "原来那一层"),
        (lambda x, base, a, b, alpha: base(x), "还没有加上"),
        (lambda x, base, a, b, alpha: base(x) + alpha * x @ a.T @ b.T, "除以秩"),
        (lambda x, base, a, b, alpha: base(x) + x @ a.T @ b.T, "没有乘上"),
        (lambda x, base, a, b, alpha: base(x) - x @ a.T @ b.T, "再和 B 乘"),
        (lambda x, base, a, b, alpha: base(x) + alpha * x @ a @ b, "不能相乘"),
    ],
    "lora_init": [
        (lambda i, o, r: (torch.zeros(r, i), torch.zeros(o, r)), "学不动"),
        (lambda i, o, r: (torch.zeros(o, r), torch.randn(r, i)), "次序反了"),
        (lambda i, o, r: (torch.randn(i, r), torch.zeros(r, o)), "(秩, 输入)"),
        (lambda i, o, r: (torch.randn(r, i), torch.zeros(r, o)), "(输出, 秩)"),
        (lambda i, o, r: (torch.zeros(r, i), torch.randn(o, r)), "反过来了"),
        (lambda i, o, r: (torch.randn(r, i) / r, torch.randn(o, r)), "全是 0"),
        (lambda i, o, r: (torch.ones(r, i) / r, torch.zeros(o, r)), "各不相同"),
        (lambda i, o, r: (9 * torch.randn(r, i), torch.zeros(o, r)), "太大了"),
        (lambda i, o, r: (torch.arange(r * i).view(r, i) / (r * i), torch.zeros(o, r)), "太像"),
        (lambda i, o, r: (torch.arange(r * i).view(r, i).sin(), torch.zeros(o, r)), "太像"),
        (lambda i, o, r: (torch.randn(r, 1) @ torch.randn(1, i), torch.zeros(o, r)), "太像"),
        (lambda i, o, r: torch.zeros(o, r), "两个张量"),
    ],
    "lora_attach": [
        (lambda net, name, wrap: wrap(net.get_submodule(name)), "不是整个网络"),
        (lambda net, name, wrap: (wrap(net.get_submodule(name)), net)[1], "还是原来的层"),
        (_everywhere, "只换这一层"),
        (_brand_new, "包一个新的"),
        (_elsewhere, "放错了地方"),
    ],
    "lora_all": [
        (_hang_then_freeze, "先挂、后冻"),
        (_never_freeze, "混了进来"),
        (_only_first, "每个名字"),
        (_freeze_last_by_name, "已经冻住了"),
        (_never_freeze_by_name, "没有冻住"),
        (lambda net, names, wrap, attach: net, "一个列表"),
    ],
    "lora_merge": [
        (lambda layer: layer, "普通的线性层"),
        (lambda layer: layer.base, "没有变"),
        (lambda layer: _add(layer, layer.B @ layer.A), "缩放忘了"),
        (lambda layer: _add(layer, -layer.B @ layer.A), "新的权重"),
        (_no_bias, "偏置"),
    ],
    "take": [
        (lambda rows: min(rows, key=lambda row: row["held"])["step"], "都是抄的"),
        (lambda rows: rows[0]["step"], "一张也没有做到"),
        (lambda rows: next((r["step"] for r in rows if r["right"] > 0.5), 0), "合格的才比损失"),
        (lambda rows: rows[2]["step"], "就返回 0"),
        (lambda rows: min(rows, key=lambda row: row["held"]), "一个步数"),
    ],
    "tokens": [(lambda side: (side / 8) ** 2, "2x2"), (lambda side: side * side, "像素"),
               (lambda side: side / 16, "一条边"), (lambda side: (side // 32) ** 2, "一条边")],
    "rescue": [({"A", "B"}, "学习率"), ({"A", "C", "D"}, "步数"), ({"C"}, "省得最多"),
               ("AD", "步数")],
    "pack": [
        (lambda x: x.reshape(len(x), -1, 4 * x.shape[1]), "不相邻"),
        (lambda x: x.flatten(2).transpose(1, 2), "2x2"),
        (lambda x: x[:, :, ::2, ::2], "一个数也不丢"),
        (lambda x: pack(x.transpose(2, 3)), "次序不对"),
    ],
    "positions": [
        (lambda rows, cols: [[0, c, r] for r in range(rows) for c in range(cols)], "写反"),
        (lambda rows, cols: [[r, c] for r in range(rows) for c in range(cols)], "三个数"),
        (lambda rows, cols: [[0, r, c] for c in range(cols) for r in range(rows)], "次序"),
        (lambda rows, cols: [[0, r, r] for r in range(rows)], "行数"),
    ],
    "shift": [
        (lambda t, s: s * t, "超过 1"),
        (lambda t, s: t / (s - (s - 1) * t), "方向反了"),
        (lambda t, s: t, "方向反了"),
        (lambda t, s: t ** (1 / s), "中间的值"),
    ],
    "two_guidances": [((3.5, 1.0), "写反"), ((3.5, 3.5), "真实的图"), ((1.0, 1.0), "没有加强"),
                      ((1.0, 20.0), "2 到 5"), (3.5, "两个数")],
    "album": [
        (list(range(1, 21)), "张"),
        ([n for n, p in album.photos().items() if not p.fault][:19], "正好 20 张"),
        ([n for n, p in album.photos().items() if p.fault == "session"], "同一次拍的"),
        ([n for n, p in album.photos().items() if p.fault == "blur"], "糊了"),
        ([81], "从 1 到 80"),
        (5, "一组号码"),
    ],
    "best_cell": [
        (lambda table: min(table.values()), "损失"),
        (lambda table: max(table, key=lambda k: (k[0], -k[1])), "秩最大"),
        (lambda table: min(table, key=table.get), "第一格"),
        (lambda table: (16, 1e-2), "练坏"),
        (lambda table: (4, 1e-4), "越小越好"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_exercise(name, shown, capsys):
    exercise = ALL[name]
    assert len(exercise.properties) >= 3 and len(exercise.hints) == 3
    assert exercises.judge(name, exercise.official)[0] == "passed"
    getattr(lab.check, name)(...)
    assert capsys.readouterr().out.startswith("未完成")
    assert exercises.judge(name, None)[0] == "blank"
    if exercise.draw:
        assert exercises.judge(name, lambda *a: ...)[0] == "blank"
        verdict, said = exercises.judge(name, 12)
        assert verdict == "wrong" and "不加括号" in said
    else:
        assert "函数" in exercises.judge(name, lambda: 1)[1]
    assert len(WRONG[name]) >= 2
    for answer, word in WRONG[name]:
        verdict, said = exercises.judge(name, answer)
        assert verdict == "wrong" and word in said, said


# ---- 每次都拿到新抄的输入 ----


def _mix(x0, noise, t):
    x0 *= 1 - t
    x0 += t * noise
    return x0


def _less(x0, noise):
    noise -= x0
    return noise


def _step(x, v, t, t_next):
    x += v.mul_(t_next - t)
    return x


def _pack(x):
    made = pack(x).clone()
    x.zero_()
    return made


def _best(table):
    for cell in [cell for cell, loss in table.items() if loss != loss]:
        del table[cell]
    return min(table, key=table.get)


def _unknown(names, layers):
    names, layers = list(names), set(layers)
    for name in list(names):
        if name.removeprefix("transformer.").split(".lora_")[0] in layers:
            names.remove(name)
    return names


def _weight(w, a, b, strength):
    w += strength * (b @ a)
    return w


def _combine(a1, b1, a2, b2, w1, w2):
    b1 *= w1
    b2 *= w2
    return torch.cat([a1, a2]), torch.cat([b1, b2], 1)


def _pick(log):
    for row in list(log):
        if row["held"] is None:
            log.remove(row)
    log.sort(key=lambda row: row["held"])
    return log[0]["step"]


def _size(width, height, unit):
    width, height = (max(1, round(side / unit)) for side in (width, height))
    width *= unit
    height *= unit
    return [width, height]


def _tokens(side):
    side //= 16
    side *= side
    return side


def _rows(rows, cols):
    table = []
    table += [[0, r, c] for r in range(rows) for c in range(cols)]
    return table


def _forward(x, base, a, b, alpha):
    a *= alpha / len(a)
    return base(x) + x @ a.T @ b.T


def _start(d_in, d_out, rank):
    a, b = torch.empty(rank, d_in), torch.ones(d_out, rank)
    a.normal_().div_(10), b.zero_()
    return [a, b]


def _walk(net, name, wrap):
    *path, last = name.split(".")
    home = net
    for part in path:
        home = getattr(home, part)
    setattr(home, last, wrap(getattr(home, last)))
    return net


def _hang(net, names, wrap, attach):
    for p in net.parameters():
        p.requires_grad = False
    found = []
    while names:
        attach(net, names.pop(), wrap)
    found += [p for p in net.parameters() if p.requires_grad]
    return found


def _merge(layer):
    new = nn.Linear(layer.base.in_features, layer.base.out_features)
    with torch.no_grad():
        layer.B *= layer.alpha / len(layer.A)
        new.weight.copy_(layer.base.weight + layer.B @ layer.A)
        new.bias.copy_(layer.base.bias)
    return new


def _take(rows):
    for row in list(rows):
        if row["right"] <= 0.5 or row["copied"] > 0.5:
            rows.remove(row)
    rows.sort(key=lambda row: row["held"])
    return rows[0]["step"] if rows else 0


IN_PLACE = {
    "lora_forward": _forward, "lora_init": _start, "lora_attach": _walk, "lora_all": _hang,
    "lora_merge": _merge, "take": _take,
    "add_noise": _mix, "velocity": _less, "euler": _step, "pack": _pack, "best_cell": _best,
    "unknown": _unknown, "strength": _weight, "combine": _combine, "pick": _pick, "size": _size,
    "tokens": _tokens, "positions": _rows,
    "steps": lambda n, b, a, v: n / b / a * v,
    "shift": lambda t, s: torch.tensor(t, dtype=torch.float64) * s / (1 + t * (s - 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("forks", [True, False])
def test_an_answer_that_changes_its_input_harms_nobody(name, forks, monkeypatch):
    monkeypatch.setattr(trial, "FORKS", forks and trial.FORKS)
    for _ in range(2):
        verdict, said = exercises.judge(name, IN_PLACE[name])
        assert verdict == "passed", said
    assert exercises.judge(name, ALL[name].official)[0] == "passed"
    wrong, word = WRONG[name][0]
    verdict, said = exercises.judge(name, wrong)
    assert verdict == "wrong" and word in said


ONCE_WRONG = [
    ("best_cell", _best, lambda table: min(table, key=table.get)),
    ("pick", _pick, lambda log: min(log, key=lambda row: row["held"])["step"]),
    ("add_noise", _mix, lambda x0, noise, t: t * x0 + (1 - t) * noise),
]


@pytest.mark.parametrize("name, right, wrong", ONCE_WRONG)
def test_a_wrong_answer_stays_wrong_after_a_right_one(name, right, wrong):
    assert exercises.judge(name, wrong)[0] == "wrong"
    assert exercises.judge(name, right)[0] == "passed"
    assert exercises.judge(name, wrong)[0] == "wrong"


# ---- 停不下来的、崩溃的 ----


def _forever(rows, cols):
    table, r = [], 0
    while r < rows:
        table = [[0, r, c] for c in range(cols)]
    return table


@pytest.mark.parametrize("forks", [True, False])
def test_an_endless_loop_is_stopped_for_good(forks, monkeypatch):
    monkeypatch.setattr(trial, "FORKS", forks and trial.FORKS)
    monkeypatch.setattr(trial, "LIMIT", 0.6)
    began = time.monotonic()
    verdict, said = exercises.judge("positions", _forever)
    assert verdict == "wrong" and "循环停不下来" in said and "0.6 秒" in said
    assert time.monotonic() - began < 5
    cpu = time.process_time() + sum(os.times()[2:4])
    time.sleep(0.4)
    assert time.process_time() + sum(os.times()[2:4]) - cpu < 0.2, "停了就不再占着处理器"
    monkeypatch.setattr(trial, "LIMIT", 5)
    assert exercises.judge("positions", ALL["positions"].official)[0] == "passed"
    assert exercises.judge("tokens", ALL["tokens"].official)[0] == "passed"


def _stubborn(side):
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


@pytest.mark.skipif(not trial.FORKS, reason="子进程只在 Linux 上用")
def test_what_a_thread_cannot_stop_is_killed_too(monkeypatch):
    monkeypatch.setattr(trial, "LIMIT", 0.5)
    mark = f"77{os.getpid()}"

    def spawns(side):
        subprocess.Popen(["sleep", mark])
        time.sleep(60)

    for answer in (_stubborn, lambda side: time.sleep(60)):
        assert "停不下来" in exercises.judge("tokens", answer)[1]
    assert "它另开了进程" in exercises.judge("tokens", spawns)[1]
    running = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
    assert not [line for line in running if mark.encode() in line], "它另开的进程也要停"
    monkeypatch.setattr(trial, "LIMIT", 5)
    for answer, word in (
        (lambda side: os._exit(3), "退出码 3"),
        (lambda side: os.kill(os.getpid(), 11), "SIGSEGV"),
        (lambda side: [0] * 10**10, "内存太多"),
        (lambda side: exit(), "exit"),
        (lambda side: input(), "input"),
    ):
        verdict, said = exercises.judge("tokens", answer)
        assert verdict == "wrong" and word in said, said
    assert exercises.judge("tokens", ALL["tokens"].official)[0] == "passed"


def _apart(side):
    subprocess.Popen(["sleep", f"88{os.getppid()}"], start_new_session=True)
    return (side // 16) ** 2


def _orphan(side):
    code = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
    subprocess.run([sys.executable, "-c", code, "sleep", f"88{os.getppid()}"], check=True)
    return (side // 16) ** 2


def _forked(side):
    os.fork()
    return (side // 16) ** 2


def _forked_and_wrong(side):
    return 1 if os.fork() else (side // 16) ** 2


def _waits(side):
    subprocess.run(["sleep", f"88{os.getppid()}"], start_new_session=True, check=True)


@pytest.mark.skipif(not trial.FORKS, reason="子进程只在 Linux 上用")
@pytest.mark.parametrize(
    "answer, verdict, word",
    [
        (_apart, "passed", trial.STARTED_MORE),
        (_orphan, "passed", trial.STARTED_MORE),
        (_forked, "passed", trial.STARTED_MORE),
        (_forked_and_wrong, "wrong", "还差一点"),
        (_waits, "wrong", "另开了进程"),
    ],
)
def test_what_an_answer_starts_ends_with_it(answer, verdict, word, monkeypatch):
    monkeypatch.setattr(trial, "LIMIT", 3)
    found, said = exercises.judge("tokens", answer)
    assert found == verdict and word in said and "循环" not in said, said
    running = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
    assert not [line for line in running if f"88{os.getpid()}".encode() in line]
    assert not psutil.Process().children()


# ---- 答案打印的话 ----


def _shows(side):
    print("边长", side)
    return (side // 16) ** 2


def _printed(side):
    print((side // 16) ** 2)


def _shows_and_breaks(side):
    print("到了这里\x1b[2J")
    return side / 0


def _shows_forever(side):
    while True:
        print("还在转", end="\n" * 2)


def _shows_a_lot(side):
    for number in range(3000):
        print("第", number, "行", "长" * 500)


@pytest.mark.parametrize("forks", [True, False])
@pytest.mark.parametrize(
    "answer, words",
    [
        (_shows, ("✓ 通过", "你打印的", "边长 ")),
        (_shows_and_breaks, ("除以了 0", "你打印的：到了这里\x1b[2J")),
        (_shows_forever, ("循环停不下来", "最后 8 行", "\n  还在转\n")),
        (_printed, ("print 只是给人看", "你打印的：4096")),
        (_shows_a_lot, ("这是最后", "  第 2999 行 长长")),
    ],
)
def test_what_an_answer_prints_is_shown_under_the_verdict(answer, words, forks, monkeypatch):
    monkeypatch.setattr(trial, "FORKS", forks and trial.FORKS)
    monkeypatch.setattr(trial, "LIMIT", 1)
    said = exercises.judge("tokens", answer)[1]
    for word in words:
        assert word in said, said
    assert said.count("\n") <= 9 and len(said) < 1500


def test_what_is_printed_only_shows(capsys, shown):
    lab.check.tokens(_shows_and_breaks)
    assert "\\x1b[2J" in capsys.readouterr().out
    assert "打印" not in exercises.judge("tokens", ALL["tokens"].official)[1]


def test_a_generator_without_an_end_is_cut():
    def answer(rows, cols):
        while True:
            yield [0, 0, 0]

    assert "行数不对" in exercises.judge("positions", answer)[1]


# ---- 出了错：中文、第几行、那一行写着什么 ----


def _no_name(side):
    wide = side // 16  # noqa: F841
    return wdie**2  # noqa: F821


def _later(side):
    if side < 0:
        count = 1
    return count


MISHAPS = [
    ("tokens", _no_name, ("没有叫 wdie 的东西", "是不是想写 wide", "`return wdie**2")),
    ("tokens", _later, ("用到 count 的时候它还没有值",)),
    ("tokens", lambda side: side / 0, ("除以了 0", "side / 0")),
    ("tokens", lambda side: [1][side], ("位置超出去了",)),
    ("tokens", lambda side: side + "1", ("int 和 str 不能用 + 算",)),
    ("tokens", lambda side: side(2), ("int 不是函数", "乘号不能省")),
    ("tokens", lambda side: side[0], ("不能用方括号",)),
    ("tokens", lambda a, b: a, ("少给了参数", "b")),
    ("add_noise", lambda a: a, ("你的函数只收 1 个", "给了 3 个")),
    ("tokens", lambda side: {}[side], ("字典里没有 1024",)),
    ("tokens", lambda side: "a".cut(), ("str 没有 cut",)),
    ("tokens", lambda side: int("x"), ("变不成整数",)),
    ("tokens", lambda side: min([]), ("空的",)),
    ("strength", lambda w, a, b, s: w + s * (a @ b), ("不能相乘", "2x4 和 3x2")),
    ("strength", lambda w, a, b, s: w + a, ("形状对不上", "一个是 3，一个是 2")),
    ("pack", lambda x: x.reshape(7, 7), ("reshape 不成",)),
    ("combine", lambda *g: torch.cat([g[0], g[1]]), ("拼不起来",)),
    ("add_noise", lambda x0, noise, t: x0 if x0 > 0 else noise, ("一整块数", ".all()")),
    ("add_noise", lambda x0, noise, t: x0 if x0.numpy() > 0 else noise, ("一整块数", ".all()")),
]  # fmt: skip


@pytest.mark.parametrize("forks", [True, False])
@pytest.mark.parametrize("name, answer, words", MISHAPS)
def test_errors_are_told_in_chinese_with_the_line(name, answer, words, forks, monkeypatch):
    monkeypatch.setattr(trial, "FORKS", forks and trial.FORKS)
    verdict, said = exercises.judge(name, answer)
    assert verdict == "wrong" and "出错了" in said and "英文原话" in said
    for word in words:
        assert word in said, said
    if answer.__code__.co_firstlineno and "判题时" not in said and "少给" not in said:
        assert f"第 {answer.__code__.co_firstlineno}" in said or "第 " in said


def _endless_self(side):
    return _endless_self(side)


def test_recursion_is_named():
    assert "一直在调用自己" in exercises.judge("tokens", _endless_self)[1]


def _forgot(side):
    count = (side // 16) ** 2  # noqa: F841


def _sometimes(side):
    if side < 1000:
        return (side // 16) ** 2
    return None


@pytest.mark.parametrize(
    "answer, word",
    [
        (_forgot, "最后一行要写 return"),
        (_printed, "print 只是给人看"),
        (_sometimes, "有一条路没有写 return"),
        (lambda side: [].append(side), "不给结果"),
    ],
)
def test_what_comes_back_as_nothing_is_named(answer, word):
    verdict, said = exercises.judge("tokens", answer)
    assert verdict == "wrong" and word in said, said


# ---- 写法不同、意思一样的 ----

ALIKE = [
    ("bucket", [1344, 784]),
    ("bucket", (1344.0, 784.0)),
    ("bucket", np.array([1344, 784])),
    ("bucket", torch.tensor([1344, 784])),
    ("two_guidances", [1, 3.5]),
    ("two_guidances", torch.tensor([1.0, 3.5])),
    *(("recode", one) for one in ({"a", "b"}, "AB", "a、b", "A, B", ["B", "a"], "ＡＢ")),
    *(("rescue", one) for one in ({"a", "c"}, "AC", "C A")),
    ("tokens", lambda side: torch.tensor((side / 16) ** 2)),
    ("tokens", lambda side: np.int64(side // 16) ** 2),
    ("add_noise", lambda x0, noise, t: torch.lerp(x0, noise, t)),
    ("add_noise", lambda x0, noise, t: (x0 * (1 - t) + noise * t).numpy()),
    ("velocity", lambda x0, noise: (noise - x0).requires_grad_()),
    *(("lora_init", lambda i, o, r, fill=fill: (fill(torch.empty(r, i)), torch.zeros(o, r)))
      for fill in (nn.init.orthogonal_, nn.init.uniform_, nn.init.kaiming_uniform_,
                   lambda a: a.normal_(generator=torch.Generator().manual_seed(0)))),
    ("positions", lambda rows, cols: ((0, r, c) for r in range(rows) for c in range(cols))),
    ("positions", lambda rows, cols: torch.cartesian_prod(
        torch.arange(1), torch.arange(rows), torch.arange(cols))),
    ("positions", lambda rows, cols: map(lambda k: (0, k // cols, k % cols), range(rows * cols))),
    ("best_cell", lambda table: list(ALL["best_cell"].official(table))),
    ("unknown", lambda names, layers: set(ALL["unknown"].official(names, layers))),
    ("unknown", lambda names, layers: (n for n in ALL["unknown"].official(names, layers))),
    ("size", lambda w, h, u: np.maximum(u, np.round(np.array([w, h]) / u) * u)),
    ("combine", lambda a1, b1, a2, b2, v, w: [
        torch.cat([v * a1, a2]), torch.cat([b1, w * b2], 1)]),
    ("pick", lambda log: float(ALL["pick"].official(log))),
    ("steps", lambda n, b, a, v: n * v // (b * a)),
    *(("album", make(album.good())) for make in (
        np.array, torch.tensor, iter, lambda good: dict.fromkeys(good).keys(),
        lambda good: set(np.array(good)))),
    *(("recode", one) for one in (np.array(["A", "B"]), iter("ab"), {"A": 1, "B": 2}.keys(),
                                  "A和B", "A 和 B")),
    ("positions", lambda rows, cols: [
        torch.tensor([0, r, c]) for r in range(rows) for c in range(cols)]),
    ("positions", lambda rows, cols: (
        np.array([0, r, c]) for r in range(rows) for c in range(cols))),
    ("lora_all", lambda *given: tuple(ALL["lora_all"].official(*given))),
]  # fmt: skip


@pytest.mark.parametrize("name, answer", ALIKE)
def test_right_but_different_answers_pass(name, answer):
    verdict, said = exercises.judge(name, answer)
    assert verdict == "passed", said


SLY = [  # 过去会放过的，或说得不对的
    ("tokens", lambda side: {1024: 4096, 512: 1024, 128: 64}.get(side, 0), "写死"),
    ("euler", lambda x, v, t, t_next: x + v, "没有乘时间"),
    ("euler", lambda x, v, t, t_next: (t_next - t) * v, "还要加上 x"),
    ("euler", lambda x, v, t, t_next: x + t_next * v, "时间用成了 t_next"),
    ("euler", lambda x, v, t, t_next: x - t * v, "时间用成了 t，"),
    ("caption", "ohwx 狗在中间，背景是雪地", "大类写错了"),
    ("caption", "ohwx 雪地 中间 皮卡丘", "大类写错了"),
    ("caption", "ohwx 猫头鹰在中间，背景是雪地", "大类写错了"),
    ("caption", "ohwx 在中间，背景是雪地", "大类“猫”"),
    ("caption", "OHWX猫，雪，居中", "大小写要一样"),
    ("caption", "雪地中间有一只白色的ohwx 猫", "固定的样子"),
    ("caption", "ohwx cat with a red scarf, in the snow, centered", "固定的样子"),
    ("caption", "ohwx cat on the left, in the snow", "位置写错"),
    ("caption", "ohwx dog, in the snow, centered", "大类写错了"),
    ("caption", "ohwx cat, in the middle", "背景没说到"),
    ("caption", "ohwx cat, not on grass, in the snow, centered", "只写图里有"),
    ("caption", 3, "引号"),
    ("bucket", ("1360", "768"), "不加引号"),
    ("bucket", 1360, "(宽, 高)"),
    ("bucket", {"宽": 1360, "高": 768}, "(宽, 高)"),
    ("bucket", "1360x768", "不加引号"),
    ("bucket", (1360, 768, 3), "(宽, 高)"),
    ("two_guidances", {1.0, 3.5}, "圆括号"),
    ("recode", {1, 2}, "可以选"),
    ("recode", 5, "一组字母"),
    ("best_cell", lambda table: "(16, 0.001)", "(秩, 学习率)"),
    ("size", lambda w, h, u: w, "(宽, 高)"),
    ("strength", lambda w, a, b, s: 1.0, "一样大的矩阵"),
    ("positions", lambda rows, cols: [[0, 0], [0]], "一张表"),
    ("unknown", lambda names, layers: [1, 2], "放不上|还差一点"),
]  # fmt: skip


@pytest.mark.parametrize("name, answer, word", SLY)
def test_wrong_answers_are_told_what_is_wrong(name, answer, word):
    verdict, said = exercises.judge(name, answer)
    assert verdict == "wrong" and any(one in said for one in word.split("|")), said


def test_other_inputs_are_told_without_the_words_of_python():
    def by_name(net, names, wrap, attach):
        net.requires_grad_(False)
        layers = [wrap(net.get_submodule(name)) for name in sorted(names)]
        return [p for layer in layers for p in (layer.A, layer.B)]

    said = exercises.judge("lora_all", by_name)[1]
    said += exercises.judge(
        "lora_forward", lambda x, base, a, b, s: base(x) + x @ a.T @ b.T * s / 2
    )[1]
    assert "换一组输入" in said and "样子一样，里面的数不一样" in said
    assert not any(word in said for word in ("tensor(", "<class", "<function", "0x", "\n")), said


def test_hints_are_a_button_under_the_check(shown, capsys):
    hints._given.clear()
    lab.check.velocity(...)
    assert "按下面的“提示”" in capsys.readouterr().out
    assert hints.STATIC in shown[-1]["text/plain"] and "提示 1" not in str(shown[-1]["text/html"])
    box = exercises.Hints(ALL["velocity"])
    for level in (1, 2, 3):
        assert box.page.value.count("提示") == level - 1 and "noise - x0" not in box.page.value
        assert f"{level} / 3" in box.button.description
        box.button.click()
    assert "提示 3：noise - x0" in box.page.value and box.button.description == "看答案"
    box.button.click()
    assert "<details" in box.page.value and "return noise - x0" in box.page.value
    assert exercises.Hints(ALL["velocity"]).page.value == box.page.value, "再运行一遍，要过的还在"
    count = len(shown)
    lab.check.velocity(ALL["velocity"].official)
    assert len(shown) == count, "通过了就不摆提示"


def test_unknown_exercise_lists_the_known():
    with pytest.raises(LorakitError, match="add_noise"):
        lab.check.nothing(1)


@pytest.mark.parametrize(
    "text",
    [
        "ohwx 猫在中间，背景是雪地",
        "一只大ohwx 猫在中间，背景是雪地",
        "雪地中央有一只大的 ohwx 猫",
        "ohwx 猫睁大眼睛，坐在雪地正中",
        "ohwx 猫在中间，背景是白色的地",
        "ohwx，一只大猫在中间，背景是白色的雪地",
        "ohwx cat, in the snow, centered",
        "a photo of ohwx cat sitting in the middle of a snowy field",
        "ohwx 猫咪在雪地正中，雪花飘落",
        "ohwx cat in the center, white snow background",
        "ohwx cat, centered, in the snow, looking left",
        "ohwx cat in the center of the snow, facing the left",
        "ohwx cat in the middle of a snowy field, it looks left",
        "ohwx 猫在雪地正中，马上要跳起来，人像摄影",
    ],
)
def test_good_captions_pass(text):
    verdict, said = exercises.judge("caption", text)
    assert verdict == "passed", said


def test_an_answer_whose_shape_changes_with_its_input_is_told_so():
    """见过的输入都对，换一组就变了样子：说差在哪，不是“Python 整个停掉了”。"""

    def answer(rows, cols):
        right = [[0, r, c] for r in range(rows) for c in range(cols)]
        return right if (rows, cols) == (2, 3) else "不会了"

    verdict, said = exercises.judge("positions", answer)
    assert verdict == "wrong" and "换一组输入" in said


def test_a_long_list_of_tensors_is_told_in_a_few_words():
    assert len(mishaps.brief([torch.zeros(2, 3)] * 500)) < 120
