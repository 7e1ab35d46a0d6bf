"""Z-Image 与 Kandinsky 5 自己的事；合同里人人都有的那些在 test_contract.py。"""

import random_kandinsky5
import random_zimage
import torch
from test_contract import LONG, SHORT, TIMES, attach, noise, open_family, predict

from lorakit.config import load_config
from lorakit.memory import apply


def test_long_prompts_cross_the_padding_of_z_image(tmp_path):
    """Z-Image 把文字补到 32 的倍数：合同里的两句话要分在 32 的两边，才看得出掩码对不对。"""
    family = open_family("z-image", random_zimage.build(tmp_path))
    short, long = (len(cond["text"]) for cond in family.encode_prompts([SHORT, LONG]))
    assert short <= 32 < long


def test_stock_kandinsky_sees_the_padding(tmp_path):
    """为什么要 text_lengths：不告诉 stock 的 Transformer，短句就会看到补齐的词元。"""
    family = open_family("kandinsky5", random_kandinsky5.build(tmp_path))
    conds, x = family.encode_prompts([SHORT, LONG]), noise(family, 2)
    batch, masked = family.collate(conds), predict(family, conds, x)
    del batch["text_mask"]
    with torch.no_grad():
        padded = family.predict_velocity(family.load("transformer"), x, torch.tensor(TIMES), batch)
    assert (padded[0] - masked[0]).abs().max() > 0.01
    torch.testing.assert_close(padded[1], masked[1], atol=1e-3, rtol=1e-3)


def test_kandinsky_recomputes_with_the_lengths_of_its_own_batch(tmp_path):
    """有陪练的图时，反向之前已经走过两次 forward：重算头一批，要用头一批的长度。"""
    grads, folder = [], random_kandinsky5.build(tmp_path)
    for how in ("off", "full"):
        family = open_family("kandinsky5", folder)
        learned, model = attach(family, fill=0.1), family.load("transformer").train()
        settings = load_config(None, [f"memory.checkpointing={how}"]).memory
        apply.prepare(model, settings, family)
        short, long = family.encode_prompts([SHORT, LONG])
        x, t, loss = noise(family, 2), torch.tensor(TIMES), 0.0
        for conds in ([short, long], [long, long]):
            loss += family.predict_velocity(model, x, t, family.collate(conds)).square().mean()
        loss.backward()
        grads.append({name: value.grad for name, value in learned.items()})
    for name, right in grads[0].items():
        torch.testing.assert_close(grads[1][name], right)
