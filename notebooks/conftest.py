"""nbval 运行这里的练习册时用的规矩：没人看的方式、自己的缓存、图按内容比；读者用不到它。"""

import os
import re
import tempfile

import pytest

from lorakit.lab.picture import SAME, distance

PRINT = re.compile(r"指纹 ([0-9a-f]{16})")
QUIET = 120  # 秒；nbval 只等输出 5 秒，慢的电脑上画一墙图就不够
CACHE = tempfile.TemporaryDirectory(prefix="lorakit-nbval-")  # 退出时删掉


def pytest_configure(config):
    """在别的文件夹里运行 pytest，也找得到那份正则表达式。"""
    rules = getattr(config.option, "nbval_sanitize_with", None)
    if rules:
        config.option.nbval_sanitize_with = str(config.rootpath / rules)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    """内核在第一格的准备阶段启动，从这里拿到环境变量。"""
    item.output_timeout = QUIET
    paths = [str(item.config.rootpath), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAKIT_HEADLESS", "1")
        patch.setenv("LORAKIT_CACHE", CACHE.name)
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("OMP_NUM_THREADS", "1")  # 小模型用不着两个线程；机器忙时两个线程互相等，慢十倍
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """nbval 不比 PNG 和 JPEG，文字里的指纹又差一位就算错：在这里按内容比。"""
    result = yield
    was, now = (PRINT.findall(_said(outputs)) for outputs in (item.cell.outputs, item.test_outputs))
    for old, new in zip(was, now, strict=True):
        if distance(old, new) > SAME:
            item.raise_cell_error(f"图变了：指纹 {old} -> {new}，差 {distance(old, new)} 位")
    return result


def _said(outputs) -> str:
    return "\n".join(output.get("data", {}).get("text/plain", "") for output in outputs)
