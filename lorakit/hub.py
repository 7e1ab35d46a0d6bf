"""权重从哪里来：随包的微型模型、本地文件夹、模型站。"""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from lorakit.bundled import bundled, tiny_models
from lorakit.errors import LorakitError

PARTS = ["model_index.json", "*/config.json", "*/*.safetensors", "*/*.json", "*/*.txt", "*/*.jinja"]


def locate(path: str) -> Path:
    """model.path -> diffusers 布局的本地文件夹；模型站上的会先下载（可续传）。

    Raises:
        LorakitError: 本地没有、站上没有、要先同意许可、或连不上。
    """
    local = bundled(path) if path in tiny_models() else Path(path).expanduser()
    if (local / "model_index.json").is_file():
        return local
    if local.is_dir():
        raise LorakitError(
            f"model.path：文件夹“{local}”里没有 model_index.json，不是 diffusers 布局的模型。"
        )
    tiny = "、".join(tiny_models())
    try:
        return Path(snapshot_download(path, allow_patterns=PARTS))
    except GatedRepoError as error:
        raise LorakitError(
            f"model.path：“{path}”要先在它的主页上同意许可，再用 hf auth login 登录，才能下载。"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise LorakitError(
            f"model.path：找不到“{path}”：不是本地文件夹，模型站上也没有。随包的微型模型有：{tiny}。"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise LorakitError(
            f"model.path：“{path}”不在本地，也连不上模型站。请检查网络，或设 HF_ENDPOINT 用镜像；"
            f"不联网可以先用随包的微型模型：{tiny}。"
        ) from error
