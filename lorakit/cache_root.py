"""缓存放在哪里：编码好的图和描述、看过的图、摊开的 datasets 都在这一个文件夹里。"""

import os
from pathlib import Path


def root() -> Path:
    """缓存文件夹：环境变量 LORAKIT_CACHE，或 ~/.cache/lorakit。"""
    return Path(os.environ.get("LORAKIT_CACHE", "~/.cache/lorakit")).expanduser()
