"""Qwen-Image 2.1 的 Transformer 一次看一批长短不一的描述：补齐、每行各自的位置与掩码。

stock 的 forward 一批只有一种排法，补齐会挪动后面的图的位置；预训练一步看几百张，要拼得成批。
每一行都与单独送进 stock 相同（有测试）。
"""

import torch
from torch import nn
from torch.nn import functional as F

from lorakit.families.qwen_image_2_1 import QwenImage21

SIDE = 8  # 一张图的潜变量每边几个词元
Layout = tuple[int, int]  # 控制图之前有几个文字词元；文字里它占的位置有几个


class Padded:
    """注意力：掩码 (B, 1, S, S) 与每行各自的旋转 (B, S, D/2, 2) 都是现成的。"""

    def __call__(self, attn, hidden_states, attention_mask=None, rotary_emb=None, **_):
        q, k, v = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1))
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        q, k = turn(attn.norm_q(q), rotary_emb).to(v), turn(attn.norm_k(k), rotary_emb).to(v)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, S, H, D) -> (B, H, S, D)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def turn(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """(B, S, H, D) 的 q 或 k 按 (B, S, D/2, 2) 的余弦、正弦转一个角度。"""
    cos, sin = rotary.unsqueeze(2).unbind(-1)
    real, imag = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([real * cos - imag * sin, real * sin + imag * cos], -1).flatten(-2)


class Rows(nn.Module):
    """包着一个 Transformer：(文字, 各行的长短, x_t, t, 控制图) -> 速度，都是词元。"""

    def __init__(self, transformer: nn.Module):
        super().__init__()
        self.transformer = transformer
        for block in transformer.transformer_blocks:
            block.attn.set_processor(Padded())
        for i, table in enumerate(transformer.pos_embed.freqs):
            self.register_buffer(f"axis_{i}", torch.view_as_real(table).clone(), persistent=False)

    def forward(self, text, length, x_t, t, control=None, layout: Layout = (0, 0)):
        """text (B, L, D) 右边补齐，length (B,) 是真有几个（连图占的位置）；别的 (B, 64, C)。"""
        model, (before, slots) = self.transformer, layout
        said, parts = model.txt_in(text), []
        if control is not None:
            parts = [said[:, :before], model.img_in(control)]
        parts += [said[:, before + slots :], model.img_in(x_t)]
        x = torch.cat(parts, dim=1)
        places, mask = _arranged(
            length - before - slots, before, control is not None, parts[-2].shape[1]
        )
        axes = [getattr(self, f"axis_{i}")[places[..., i]] for i in range(3)]
        rotary = torch.cat(axes, dim=-2)  # (B, S, D/2, 2)
        target = torch.arange(x.shape[1], device=x.device) >= x.shape[1] - x_t.shape[1]
        embedded = model.time_text_embed(torch.cat([t, t.new_zeros(1)]), x)
        modulation = model.modulation(embedded)
        for block in model.transformer_blocks:
            x = block(x, modulation, rotary, mask, target)
        return model.proj_out(model.norm_out(x, embedded, target))[:, -x_t.shape[1] :]


def _arranged(real: torch.Tensor, before: int, edits: bool, rest: int):
    """每行的三维位置 (B, S, 3) 与掩码 (B, 1, S, S)；real 是目标图前面那段文字的真长 (B,)。"""
    count, device = len(real), real.device
    rows = torch.arange(-(SIDE - SIDE // 2), SIDE // 2, device=device)
    grid = torch.cartesian_prod(rows, rows)  # (64, 2)：图的行列以零为中心

    def words(start: int, length: int):
        return torch.arange(start, start + length, device=device)[:, None].expand(length, 3)

    def picture(frame):
        frame = frame.view(-1, 1, 1).expand(-1, len(grid), 1)
        return torch.cat([frame, grid.expand(len(frame), -1, -1)], dim=-1)

    start = before + SIDE * edits
    parts, blocks = [words(start, rest).expand(count, -1, -1)], [torch.full((rest,), -1)]
    if edits:
        fixed = picture(torch.tensor([before], device=device)).expand(count, -1, -1)
        parts = [words(0, before).expand(count, -1, -1), fixed, *parts]
        blocks = [torch.full((before,), -1), torch.full((len(grid),), 0), *blocks]
    parts.append(picture(start + real))
    block = torch.cat([*blocks, torch.full((len(grid),), 1)]).to(device)
    order = torch.arange(len(block), device=device)
    same = (block[:, None] == block) & (block >= 0)
    seen = (order[:, None] >= order) | same  # 文字只看前面的，一张图里互相看
    valid = torch.ones(count, len(block), dtype=torch.bool, device=device)
    end = len(block) - len(grid)
    valid[:, end - rest : end] = torch.arange(rest, device=device) < real[:, None]
    return torch.cat(parts, dim=1), (seen & valid[:, None]).unsqueeze(1)


class FastQwenImage21(QwenImage21):
    """打分用：长短不一的几句一批画，不用一句句来。"""

    rows: Rows | None = None

    def predict_velocity(self, transformer, x_t, t, cond):
        if self.rows is None:
            self.rows = Rows(transformer)
        text = cond["text"]
        mask = cond.get("text_mask", torch.ones(text.shape[:2], device=text.device))
        control, layout = None, (0, 0)
        if "control_1" in cond:
            control = cond["control_1"].to(x_t).flatten(2).transpose(1, 2)
            layout = cond["gaps"].shape[1], SIDE * SIDE // 4
        tokens = x_t.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, hw, C)
        out = self.rows(text, mask.sum(1).long(), tokens, t, control, layout)
        return out.transpose(1, 2).reshape(x_t.shape)
