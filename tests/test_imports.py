"""房子的样子：顶层只有几个文件和十五个文件夹，导入只朝一个方向，没有圈；入口不载入 torch。"""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lorakit.families.registry import REGISTRY, get

ROOT = Path(__file__).parent.parent / "lorakit"
# 从下到上；同一层的互不相识，每一层只用得到下面的
FLOORS = (
    {"inert", "flow"},
    {"errors"},
    {"files"},
    {"config", "memory"},
    {"hub", "lora", "data"},
    {"families"},
    {"results"},
    {"cache"},
    {"infer"},
    {"training"},
    {"train"},
    {"machine", "tiny"},
    {"judge"},
    {"cli", "lab"},
    {"__main__"},
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# 读懂它只要读这些：README_CN.md 的目录树里说的核心
CORE = (
    *("flow", "train", "training/objective", "training/optim", "training/setup"),
    *("families/base", "families/shared", "families/qwen_image"),
    *("config/groups", "config/load"),
    *("data/record", "data/read", "data/captions", "data/crops", "data/load"),
    *("cache/build", "lora/attach", "infer/pipeline", "infer/draw"),
)


def modules():
    return sorted(p for p in ROOT.rglob("*.py") if "assets" not in p.parts)


def place(path: Path) -> str:
    """顶层的名字：文件夹，或文件自己。"""
    inside = path.relative_to(ROOT)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported(path: Path) -> set[Path]:
    """一个文件导入的 lorakit 里的文件；写在函数里的、只为类型的也算。"""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        for name in names:
            inside = name.split(".")
            if inside[0] == "lorakit":
                home = ROOT.joinpath(*inside[1:])
                choices = (home.with_suffix(".py"), home / "__init__.py")
                found |= {one for one in choices if one.is_file()}
    return found - {ROOT / "__init__.py", path}


def test_the_tree_and_the_first_lines_name_what_is_there():
    readme = (ROOT.parent / "README_CN.md").read_text(encoding="utf-8")
    named = {}
    for folder, said in re.findall(r"^  (\w+)/ +(.+)$", readme, re.MULTILINE):
        named[ROOT / folder] = re.findall(r"(?<![-\w])[a-z]\w+(?![-\w])", said)
    assert set(named) == {p for p in ROOT.iterdir() if p.is_dir() and p.name != "__pycache__"}
    for folder, words in named.items():
        there = {p.stem for p in folder.iterdir()}
        assert set(words) <= there, f"README 的目录树说 {folder.name} 里有 {set(words) - there}"
    core = readme.partition("读懂它只要读这些")[2].partition("\n\n")[0]
    assert all(name.rpartition("/")[2] in core for name in CORE)
    for path in modules():
        for told in re.findall(r"(?<![\w.-])([a-z_/]+\.py)\b", path.read_text(encoding="utf-8")):
            places = (path.parent / told, ROOT / told, ROOT.parent / told)
            assert any(p.is_file() for p in places), f"{path.relative_to(ROOT)} 说的 {told} 不在"


def test_the_top_shows_the_architecture():
    there = {p.stem for p in ROOT.iterdir() if p.name != "__pycache__"}
    assert there == set(FLOOR) | {"__init__", "assets"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    mine = place(path)
    if mine == "__init__":  # 只把名字交出去，用到才导入
        return
    for target in {place(one) for one in imported(path)} - {mine}:
        assert FLOOR[target] < FLOOR[mine], f"{path.relative_to(ROOT)} 不该导入 {target}"


def test_there_is_no_circle():
    graph = {path: imported(path) for path in modules()}
    faces = {path for path in graph if path.name == "__init__.py"}  # 门面只交出名字
    graph = {path: {t for t in found if t not in faces} for path, found in graph.items()}
    done: set[Path] = set()

    def walk(path: Path, above: tuple[Path, ...]):
        circle = [str(p.relative_to(ROOT)) for p in (*above, path)]
        assert path not in above, f"绕成了圈：{' -> '.join(circle)}"
        if path not in done:
            for target in sorted(graph[path]):
                walk(target, (*above, path))
            done.add(path)

    for path in sorted(graph):
        walk(path, ())


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{path.name}:{node.name}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lorakit"):
            private = [a.name for a in node.names if re.match("_[^_]", a.name)]
            assert not private, f"{path.name} 导入了别处私有的 {private}"


def test_the_heart_stays_small():
    def lines(name: str) -> int:
        return (ROOT / f"{name}.py").read_text(encoding="utf-8").count("\n")

    assert lines("flow") < 100
    assert lines("train") <= 155
    assert lines("families/base") <= 180
    assert sum(map(lines, CORE)) <= 3000


def test_a_family_is_one_file():
    """没有家族导入另一个家族；同一个模型的另一版可以，它继承自那一家。"""
    homes = {Path(inspect.getfile(cls)): cls for cls in map(get, REGISTRY)}
    for path in modules():
        named = imported(path) & set(homes)
        if place(path) == "families":
            elder = homes[path].__mro__[1:] if path in homes else ()
            assert named <= {home for home, cls in homes.items() if cls in elder}, path
        elif place(path) != "tiny":
            assert not named, f"{path.relative_to(ROOT)} 认识 {named}"


def test_import_is_light():
    code = "import sys, lorakit.cli, lorakit.data; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names_exist():
    import lorakit

    assert len(lorakit.__all__) <= 17
    for name in (*lorakit.__all__, *lorakit._MOVED):
        assert getattr(lorakit, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = lorakit.nothing
