"""随包的微型模型：在哪里；几个模型共用的部分只存一份，用到时拼成完整的文件夹。"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from lorakit.files import ASSETS, user_path, write_whole

SHARED = "shared.json"  # {"vae": "tiny-qwen-image"}：这一部分与那个模型的逐字节相同


def tiny_models() -> list[str]:
    """随包的微型模型名。"""
    return sorted(path.parent.name for path in ASSETS.glob("*/model_index.json"))


def bundled(name: str) -> Path:
    """随包的模型 -> diffusers 布局的完整文件夹，stock 的 from_pretrained 打得开。

    有共用部分的先拼到用户的缓存里（XDG_CACHE_HOME，默认 ~/.cache），拼过的直接用。

    Raises:
        LorakitError: 缓存写不进。
    """
    home = ASSETS / name
    if not (home / SHARED).is_file():
        return home
    shared = json.loads((home / SHARED).read_text("utf-8"))
    parts = {path.name: path for path in home.iterdir() if path.name != SHARED}
    parts |= {part: ASSETS / other / part for part, other in shared.items()}
    place = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = user_path(place, "XDG_CACHE_HOME") / "lorakit"
    whole = cache / f"{name}-{_digest(parts)}"
    return whole if whole.is_dir() else write_whole(whole, lambda to: _gather(parts, to))


def _digest(parts: dict[str, Path]) -> str:
    """内容变了（换了一版权重）就另拼一份；几十 MB，算一遍不到 0.1 秒。"""
    found = hashlib.sha256()
    for name, path in sorted(parts.items()):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                found.update(f"{name}/{file.name}".encode())
                found.update(file.read_bytes())
    return found.hexdigest()[:12]


def _gather(parts: dict[str, Path], to: Path):
    to.mkdir()
    for name, path in parts.items():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, to / name)
