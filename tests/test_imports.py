"""导入的次序与速度：底层不认识上层；import lorakit 不载入 torch。"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "lorakit"
LAYER = {
    "errors": 0, "config_text": 0, "config_seed": 0, "config_groups": 0,
    "config": 0, "flow": 0, "arithmetic": 0,
    "data": 1, "data_check": 1, "data_read": 1, "data_report": 1, "data_sources": 1,
    "data_lint": 1, "data_mend": 1, "data_fix": 1, "data_html": 1, "data_pairs": 1,
    "data_mask": 1, "data_views": 1, "data_datasets": 1, "cache_lock": 1, "checkpoint": 1,
    "lora": 1, "lokr": 1, "full": 1, "optim": 1, "memory": 1, "families": 1, "bundled": 1, "hub": 1,
    "hub_sites": 1, "transfer": 1, "sampler": 1, "lora_files": 1, "lora_fused": 1, "comfyui": 1,
    "processes": 1, "choices": 2, "track": 2, "cli_train": 4,
    "record": 2, "cache": 2, "cache_masks": 2, "cache_tools": 2, "caption": 2, "objective": 2,
    "train": 2, "infer": 2, "report": 2, "verdict": 2, "board": 2, "card": 2, "push": 2, "xy": 2,
    "tiny": 3, "cli_options": 4, "cli_progress": 4, "cli_files": 4, "cli": 4, "data_seen": 1,
    "cache_root": 1, "data_select": 1, "data_doctor": 2, "cli_data": 4,
    "quantize": 1, "streaming": 1, "estimate": 2, "bench": 2, "doctor": 2, "cli_machine": 4,
    "trace": 1, "graphs": 2, "rounding": 1, "cudnn_attention": 1,
    "lab": 4, "__main__": 5, "__init__": 5,
}  # fmt: skip


def modules():
    return sorted(p for p in ROOT.rglob("*.py") if "assets" not in p.parts)


def part(path: Path) -> str:
    inside = path.relative_to(ROOT)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported(path: Path, top_only: bool = False):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else list(ast.walk(tree))
    for node in nodes:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [node.module]
                if node.module != "lorakit"
                else [f"lorakit.{a.name}" for a in node.names]
            )
        yield from names


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    for name in imported(path):
        if name.startswith("lorakit."):
            target = name.split(".")[1]
            assert target in LAYER, f"{name} 没有登记层次"
            assert LAYER[target] <= LAYER[part(path)], f"{path.name} 不该导入 {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{path.name}:{node.name}"


def test_only_families_name_a_family():
    for path in modules():
        if part(path) in {"families", "tiny", "config", "report", "cli"}:
            continue
        names = [n for n in imported(path) if n.startswith("lorakit.families.")]
        assert set(names) <= {"lorakit.families.base"}, path.name


def test_import_is_light():
    code = "import sys, lorakit, lorakit.config, lorakit.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names_exist():
    import lorakit

    assert len(lorakit.__all__) <= 17
    for name in lorakit.__all__:
        assert getattr(lorakit, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = lorakit.nothing
