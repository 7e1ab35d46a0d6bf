"""随包的模型：共用的部分拼得完整，stock 管线打得开；拼过的不再拼，写不进就说清楚。"""

import json

import pytest

from lorakit.errors import LorakitError
from lorakit.files import ASSETS
from lorakit.hub.bundled import bundled, tiny_models

EDIT = "tiny-qwen-image-edit"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_every_bundled_model_is_whole(cache):
    for name in tiny_models():
        folder = bundled(name)
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        parts = [key for key, value in index.items() if isinstance(value, list) and value[0]]
        assert [part for part in parts if not (folder / part).is_dir()] == []


def test_stock_pipeline_opens_the_assembled_edit_model(cache):
    from diffusers import AutoModel, QwenImageEditPipeline
    from transformers import Qwen2VLProcessor

    folder = bundled(EDIT)
    transformer = AutoModel.from_pretrained(str(folder), subfolder="transformer")
    assert type(transformer).__name__ == "QwenImageTransformer2DModel"
    index = QwenImageEditPipeline.load_config(folder)
    assert index["processor"] == ["transformers", Qwen2VLProcessor.__name__]
    ours = (folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    base = ASSETS / "tiny-qwen-image" / "vae" / "diffusion_pytorch_model.safetensors"
    assert ours == base.read_bytes()


def test_assembled_once(cache):
    first = bundled(EDIT)
    stamp = (first / "model_index.json").stat().st_mtime_ns
    assert bundled(EDIT) == first and (first / "model_index.json").stat().st_mtime_ns == stamp
    assert [p.name for p in (cache / "lorakit").iterdir()] == [first.name]  # 没有留下临时的


def test_unwritable_cache_says_so(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(LorakitError, match="写不进"):
        bundled(EDIT)


def test_models_carry_no_path_of_the_machine_they_were_made_on():
    for path in ASSETS.rglob("*.json"):
        assert "_name_or_path" not in path.read_text("utf-8"), path
