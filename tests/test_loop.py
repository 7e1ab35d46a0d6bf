"""03 里手写的训练循环：格子里的代码原样拿来跑，每一步的损失都和 Trainer 一样。"""

import pytest
import torch
from notebook_tools import ROOT, code_cells, read

import lorakit
from lorakit import cache, lora
from lorakit.tiny import samples

BOOK = ROOT / "notebooks" / "03_train_qwen.ipynb"


def loop() -> str:
    """带 loop 标签的那几格，按次序。"""
    cells = [c for c in code_cells(read(BOOK)) if "loop" in c.metadata.get("tags", ())]
    assert len(cells) == 4
    return "\n".join(cell.source for cell in cells)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["train.seed=5", "train.batch_size=3", "train.lr=2e-3", "data.caption_dropout=0.5"],
        ["train.timestep.density=uniform", "train.timestep.shift=2", "lora.rank=4"],
    ],
    ids=["as written", "seed and dropout", "times and rank"],
)
def test_the_loop_in_the_book_is_the_trainers(tmp_path, own_cache, capsys, changes):
    papers = samples.write("papercut", tmp_path / "papers", count=8)

    def settings(name):
        places = [f"data.folder={papers}", f"run.output={tmp_path / name}", "eval.every=0"]
        short = ["train.steps=6", "train.batch_size=2", "train.warmup=4"]
        return lorakit.load_config("tiny-qwen-image", [*places, *short, *changes])

    scope = {
        "settings": settings,
        "lorakit": lorakit,
        "torch": torch,
        "cache": cache,
        "lora": lora,
    }
    exec(loop(), scope)
    trainer = lorakit.Trainer(settings("trainer"))
    theirs = [step.loss for step in trainer]
    assert scope["losses"] == theirs and len(set(theirs)) == 6
    mine = list(scope["parameters"].values())
    assert all(torch.equal(a, b) for a, b in zip(mine, trainer.parameters.values(), strict=True))
    assert capsys.readouterr().out.startswith("前三步")
