"""练习册的第一格：看看还缺哪些包；缺的装上，已经有的一个也不动，太旧的告诉你怎么办。

只用标准库：这时候别的包可能都还没有。
"""

import importlib
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from lorakit.errors import LorakitError

WANTED = re.compile(r"([\w.-]+)>=([\w.]+)(?:; extra == \"(\w+)\")?$")
# 练习册已经打开了，前端和它的中文就不用再装（Colab、VS Code 有自己的）
FRONT = {"jupyterlab", "jupyterlab-language-pack-zh-cn"}
HEAVY = "lorakit.train", "lorakit.lab.models", "lorakit.lab.picture"  # 后面都要用，一起载入
RESTART = "Colab 选“代码执行程序 > 重启会话”，JupyterLab 选 Kernel > Restart，VS Code 点“重启”"


def ready(extra: str = "notebook"):
    """练习册要的包都在就载入它们，说一声好了；缺的装上（已有的不换版本）。

    Raises:
        LorakitError: 有的包太旧，或装不上；会说运行哪一行、怎么重启。
    """
    missing, old = lacking(metadata.requires("lorakit"), installed(), extra)
    if old:
        listed = "、".join(f"{name} {has}（要 {least} 以上）" for name, has, least in old)
        wanted = " ".join(f'"{name}>={least}"' for name, _, least in old)
        raise LorakitError(
            f"这些包太旧，没有替你换：{listed}。新开一格运行\n    %pip install -U {wanted}\n"
            f"再重启内核（{RESTART}），从第一格重新运行。"
        )
    if missing:
        print(f"正在安装还缺的：{'、'.join(name for name, _ in missing)}……")
        install([f"{name}>={least}" for name, least in missing])
        importlib.invalidate_caches()
        print("装好了，不用重启。")
    from lorakit.lab.bar import waiting
    from lorakit.lab.display import enlarging

    with waiting("正在载入要用的工具，第一次要十几秒"):
        from lorakit.lab.lost import say_where  # 它要载入 torch，好几秒：先摆出进度条

        for name in HEAVY:
            importlib.import_module(name)
    say_where()
    enlarging()
    print("好了，可以往下走：点下一格，按 Shift+Enter。")


def installed() -> dict[str, str]:
    """已经装好的包 {规范名: 版本}；同一个包有几份，用先找到的那份。"""
    found: dict[str, str] = {}
    for one in metadata.distributions():
        found.setdefault(_plain(one.name), one.version)
    return found


def lacking(wanted: list[str], have: dict[str, str], extra: str = ""):
    """需求（名字>=版本）与已有的 -> 缺的 [(名字, 最低版本)]、太旧的 [(名字, 现有, 最低)]。"""
    missing, old = [], []
    for line in wanted:
        name, least, group = WANTED.match(line).groups()
        if group not in (None, extra) or _plain(name) in FRONT:
            continue
        has = have.get(_plain(name))
        if has is None:
            missing.append((name, least))
        elif _numbers(has) < _numbers(least):
            old.append((name, has, least))
    return missing, old


def install(packages: list[str]):
    """装上这些包；已有的每一个都锁在现在的版本上。"""
    with tempfile.TemporaryDirectory() as folder:
        keep = Path(folder) / "keep.txt"
        keep.write_text("\n".join(f"{name}=={version}" for name, version in installed().items()))
        command = [sys.executable, "-m", "pip", "install", "-q", "-c", str(keep), *packages]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or [done.stderr]
        raise LorakitError(
            f"没装上 {'、'.join(packages)}：\n{said[0].strip()}\n"
            "检查网络（国内可加 -i https://pypi.tuna.tsinghua.edu.cn/simple），"
            f"或在终端里运行 {sys.executable} -m pip install {' '.join(packages)}，看它说什么。"
        )


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])
