"""记到 TensorBoard、W&B、SwanLab：都经过 accelerate；没有要求就什么也不做。

只记数字、设置和样张；密钥由它们自己从环境变量里取，设置里不写，也就不会被记下。
"""

from collections.abc import Sequence

import numpy as np
from accelerate import Accelerator
from PIL import Image

from lorakit.config import Config
from lorakit.config.load import flat

PROJECT = "lorakit"
NUMBERS = ("loss", "held", "lr", "grad_norm", "t", "seconds")  # metrics.jsonl 里的这几项


def start(accelerator: Accelerator, config: Config):
    """建一次记录，写下全部设置；只有 0 号进程真的建。"""
    if config.run.tracker == "none":
        return
    # TensorBoard 的第一个参数是子文件夹，另两个是项目名
    project = "tensorboard" if config.run.tracker == "tensorboard" else PROJECT
    name = config.run.output.name
    options = {
        "wandb": {"name": name, "dir": str(config.run.output)},
        "swanlab": {"experiment_name": name, "logdir": str(config.run.output / "swanlab")},
    }
    plain = {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in flat(config).items()
    }
    accelerator.init_trackers(project, plain, options)


def log(accelerator: Accelerator, facts: dict):
    """记下一步的数字；没有检验的那些步就没有 held。"""
    values = {key: facts[key] for key in NUMBERS if facts.get(key) is not None}
    delta = facts.get("delta") or {}
    values |= {f"delta/{block}": value for block, value in delta.items()}
    accelerator.log(values, step=facts["step"])


def pictures(accelerator: Accelerator, images: Sequence[Image.Image], step: int):
    """记下这一步的样张。"""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            stack = np.stack([np.asarray(image) for image in images])  # (N, H, W, 3)
            tracker.log_images({"sample": stack}, step=step, dataformats="NHWC")
        else:
            tracker.log_images({"sample": list(images)}, step=step)


def finish(accelerator: Accelerator):
    """把没写完的写完。"""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers.clear()
