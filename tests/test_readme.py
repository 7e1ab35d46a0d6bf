"""README 三分钟读得完，里面的每条命令、预设、链接和数都是真的；放不下的都在 CONTRIBUTING。"""

import re
import shlex
from pathlib import Path

import pytest

from lorakit.cli.main import COMMANDS
from lorakit.cli.options import parser
from lorakit.config import load_config
from lorakit.machine import table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README_CN.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
TEST_COMMAND = 'pip install -c constraints.txt -e ".[test]" && pytest'


def commands(text: str) -> list[str]:
    """代码块与行内代码里写全了的 lorakit 命令，不要注释。"""
    blocks = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
              for line in block.splitlines()]  # fmt: skip
    lines = [line.split("#")[0].split("&& ")[-1].split(" > ")[0].strip() for line in blocks]
    return [line for line in lines if line.startswith("lorakit ")]


def test_it_is_read_in_three_minutes():
    assert README.count("\n") <= 90
    assert len(re.findall(r"[\u4e00-\u9fff]", README)) <= 1200
    assert README.count("pytest") == 1 and TEST_COMMAND in README.splitlines()
    assert "pip install -c constraints.txt -e . && lorakit demo" in README.splitlines()


@pytest.mark.parametrize("page", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_every_command_is_understood(page):
    found = commands(page)
    assert len(found) >= 4
    for line in found:
        args = parser(COMMANDS).parse_args(shlex.split(line)[1:])
        assert callable(args.run)


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) >= 8
    for link in links:
        name, _, heading = link.partition("#")
        assert (ROOT / name).is_file(), link
        if heading:
            assert f"## {heading}\n" in (ROOT / name).read_text("utf-8"), link


def test_presets_and_minutes_are_what_was_measured():
    """五行：预设名真有，分钟数是 H100（没有就是 H200）上量到的一步的时间乘预设的步数。

    写着“约”的，是预设后来又改过一项，量的是改之前的。
    """
    steps: dict[str, float] = {}
    for group in table.load().groups:
        for line in group.lines:
            name, changed = line.settings.split()[0], "--set" in line.settings
            if line.trainer == table.OURS and line.call is None:
                steps.setdefault(("约" if changed else "") + name, line.step)
    cell = r"`(.+?)`，(约? ?\d+) 分钟 \|"
    rows = re.findall(rf"^\| (\d+) GB \| {cell} {cell}$", README, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [12, 16, 24, 48, 80]
    many = [int(one.replace(",", "")) for one in re.findall(r"，([\d,]+) 步 \|", README)]
    for _, *told in rows:
        for name, minutes, times in zip(told[::2], told[1::2], many, strict=True):
            assert load_config(name).train.steps == times
            about, minutes = ("约" if minutes.startswith("约") else ""), minutes.strip("约 ")
            assert int(minutes) == round(steps[about + name] * times / 60), name


def test_it_names_the_nearest_trainer_and_by_how_much():
    (line,) = re.findall(r"最近的训练器是 (\w+)：Qwen-Image (.+)；", README)
    name, told = line
    said = re.findall(r"(\d+) GB[^\d]*([\d.]+) 倍", told)
    assert [size for size, _ in said] == ["80", "24", "48"]
    made = table.load()
    for size, times in said:
        near = made.group(f"qwen-{size}").nearest
        assert near.trainer == name
        assert float(times) == pytest.approx(near.ratio, abs=0.006)
        assert ("只有" in told.split(f"{size} GB")[1].split("倍")[0]) == (near.ratio < 1)
    assert "lorakit bench --table" in README
