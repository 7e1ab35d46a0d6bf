"""一格跑了几秒还没有动静，就有一行话说它还在算；有进度条的、跑得快的、没人看的，都没有这一行。"""

import re
import time
from itertools import groupby

import pytest
from IPython.core.interactiveshell import InteractiveShell

from lorakit import lab
from lorakit.lab import bar, display, pulse


@pytest.fixture
def shell(shown, watched, monkeypatch):
    monkeypatch.setattr(pulse, "PATIENCE", 0.5)
    monkeypatch.setattr(pulse, "BEAT", 0.05)
    made = InteractiveShell.instance()
    pulse.offer(made)
    pulse.offer(made)  # 第一格再运行一次
    made.user_ns.update(lab=lab, time=time, display=display)
    yield made
    InteractiveShell.clear_instance()


def lines(shown) -> list[str]:
    return [one["text/plain"] for one in shown if "text/plain" in one]


def test_a_silent_cell_says_that_it_goes_on(shell, shown):
    shell.run_cell("time.sleep(0.9)")
    said = lines(shown)
    assert said and re.search(r"这一格还在算，已经 \d+ 秒", said[0])
    assert said[-1] == "", "跑完就收起来"
    assert len(set(said)) == len(said), "一样的话不说两遍，两次登记也只说一遍"
    shell.run_cell("time.sleep(0.9); 1 / 0")
    assert lines(shown)[-1] == "", "出了错也收起来"


def test_a_quick_cell_says_nothing(shell, shown):
    shell.run_cell("1 + 1")
    shell.run_cell("time.sleep(0.05)")
    time.sleep(0.8)
    assert shown == []


def test_a_bar_speaks_for_its_cell(shell, shown):
    shell.run_cell("with lab.waiting('头一次'):\n    pass")  # 载入控件要一会儿
    shown.clear()
    shell.run_cell("with lab.waiting('载入'):\n    time.sleep(0.9)")
    shell.run_cell("with display.waiting('正在等'):\n    time.sleep(0.9)")
    assert not any("还在算" in text for text in lines(shown))
    assert not bar.talking()
    middle = "with lab.waiting('载入'):\n    time.sleep(0.9)"
    shell.run_cell(f"time.sleep(0.9)\n{middle}\ntime.sleep(0.9)")
    said = [text for text in lines(shown) if "还在算" in text or not text]
    turns = [told for told, _ in groupby(map(bool, said))]
    assert turns[-4:] == [True, False, True, False], "有进度条时让开"


def test_nobody_watching_hears_nothing(shell, shown, monkeypatch):
    monkeypatch.setattr(display, "headless", lambda: True)
    shell.events.callbacks["pre_run_cell"].clear()
    pulse.offer(shell)
    assert shell.events.callbacks["pre_run_cell"] == []
