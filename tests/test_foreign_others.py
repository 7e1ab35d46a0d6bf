"""读不了的文件：说出它是什么，不叫人去跑一条一定失败的命令；用不上的部分说一声。"""

import zipfile

import pytest
import torch
from foreign_tools import (
    Q,
    flux,
    moved,
    named,
    pair,
    put,
    write,
)

from lorakit import lora
from lorakit.errors import LorakitWarning, WeightsError
from lorakit.families.flux import Flux
from lorakit.lora import audit as lora_audit
from lorakit.lora import files as lora_files

ONES = torch.ones


@pytest.fixture(scope="module")
def base():
    """不改动它：要挂东西的测试自己造一个。"""
    return flux()


# ---- 不是 Transformer 的部分，与读不了的


def test_the_text_encoders_part_is_left_out_and_said(base, tmp_path):
    a, b = pair(base, Q)
    others = ["lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_te3_encoder_block_0",
              "text_encoder.layers.0.q_proj", "text_encoder_2.block.0"]  # fmt: skip
    tensors = named(Q, a, b)
    for stem in others:
        tensors |= named(stem, ONES(1, 2), ONES(2, 1), "", "lora_down", "lora_up")
        tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    file = write(tmp_path, tensors)
    result = lora_audit.audit(file, base)
    assert result.good and len(result.left) == 12 and "用不上" in result.text()
    with pytest.warns(LorakitWarning, match="12 个张量属于文本编码器"):
        lora_audit.refuse(result, file)
    with pytest.warns(LorakitWarning, match="12 个张量"):
        pipe, before = put(file)
    assert moved(pipe.transformer, before).keys() == {Q}
    only = write(tmp_path, {k: v for k, v in tensors.items() if Q not in k})
    with pytest.raises(WeightsError, match="只练了文本编码器") as said:
        lora.check_fits(only, base)
    assert "--model" not in str(said.value)


PAIR = {
    f"transformer.{Q}.lora_A.weight": ONES(1, 128),
    f"transformer.{Q}.lora_B.weight": ONES(128, 1),
}
KINDS = {
    "LoHa": {f"lycoris_x.hada_{w}": ONES(2, 2) for w in ("w1_a", "w1_b", "w2_a", "w2_b")},
    "OFT": {"lycoris_x.oft_blocks": ONES(2, 2, 2)},
    "GLoRA": {"lycoris_x.a1.weight": ONES(2, 2)},
    "(IA)³": {"base_model.model.x.ia3_l": ONES(2, 1)},
    "权重的差": {**PAIR, "diffusion_model.norm.diff": ONES(2)},
    "modules_to_save": {**PAIR, "base_model.model.proj_out.weight": ONES(4, 128)},
    "又有 LoRA 又有 LoKr": {**PAIR, f"{Q}.lokr_w1": ONES(2, 2), f"{Q}.lokr_w2": ONES(64, 64)},
    "词嵌入": {**PAIR, "base_model.model.emb.lora_embedding_A": ONES(4, 8)},
    "reshape_weight": {**PAIR, f"transformer.{Q}.reshape_weight": torch.tensor([128.0, 256.0])},
    "带偏置": {**PAIR, f"transformer.{Q}.lora_B.bias": ONES(2)},
    "量化过的": {**PAIR, f"transformer.{Q}.absmax": ONES(2)},
    "ControlNet": {"controlnet_blocks.0.weight": ONES(2, 2)},
    "IP-Adapter": {"double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": ONES(2, 2)},
    "文本反演": {"emb_params": ONES(2, 4)},
    "VAE": {"decoder.conv_in.weight": ONES(2, 2, 3, 3)},
    "文本编码器": {"text_model.embeddings.weight": ONES(2, 2)},
    "整个模型": {"transformer_blocks.0.attn.to_q.weight": ONES(2, 2)},
    "Tucker": {**PAIR, f"transformer.{Q}.lora_mid.weight": ONES(2, 2, 3, 3)},
    "DoRA 的 LoKr": {f"x.{Q}.lokr_w1": ONES(2, 2), f"x.{Q}.lokr_w2": ONES(64, 64),
                    f"x.{Q}.dora_scale": ONES(128, 1)},
    "两份": {**PAIR, f"{Q}.lora_A.weight": ONES(1, 128) * 2},
}  # fmt: skip


@pytest.mark.parametrize(("kind", "tensors"), KINDS.items(), ids=KINDS)
def test_what_cannot_be_read_is_named(base, tmp_path, kind, tensors):
    file = write(tmp_path, {key.replace("x.tr", "tr", 1): v for key, v in tensors.items()})
    with pytest.raises(WeightsError) as said:
        lora.check_fits(file, base, Flux.original)
    assert kind in str(said.value), said.value
    assert "lorakit" not in str(said.value)  # 不叫人去跑一条一定失败的命令


@pytest.mark.parametrize(("start", "said"), [
    (b"PK\x03\x04" + b"\0" * 80, "pickle"), (b"\x80\x02}", "pickle"), (b"GGUF\x03", "GGUF"),
    (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), (b"<!DOCTYPE html>", "网页"),
    (b"", "空的"), (b"\n <html>", "网页"), (b"\xef\xbb\xbf<html>", "网页"),
    (b'{"error": "login"}', "网站回的"), (b"7z\xbc\xaf'\x1c", "压缩包"), (b"Rar!\x1a\7", "压缩包"),
    (b"\x1f\x8b\x08", "压缩包"), (b"\x89PNG\r\n", "一张图"), (b"\xff\xd8\xff\xe0", "一张图"),
    (b"\0" * 4096, "没有下载完"), (b"<\1" + b"\0" * 6 + b'{"a":', "不是完整的"),
])  # fmt: skip
def test_what_is_no_safetensors_is_named(base, tmp_path, start, said):
    file = tmp_path / "x.safetensors"
    file.write_bytes(start)
    with pytest.raises(WeightsError, match=said):
        lora.check_fits(file, base)


@pytest.mark.parametrize(
    ("inside", "said"), [("a/x.safetensors", "先解压"), ("a/data.pkl", "pickle")]
)
def test_a_zip_is_not_always_a_pickle(base, tmp_path, inside, said):
    file = tmp_path / "x.safetensors"
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr(inside, "x")
    with pytest.raises(WeightsError, match=said):
        lora.check_fits(file, base)


def test_a_whole_model_is_named_without_reading_it(base, tmp_path, monkeypatch):
    file = write(tmp_path, {f"transformer_blocks.{i}.ff.weight": ONES(2) for i in range(3)})
    monkeypatch.setattr(lora_files, "load_file", lambda path: pytest.fail("读进来了"))
    with pytest.raises(WeightsError, match="整个模型"):
        lora.check_fits(file, base)


def test_parts_and_folders_say_what_to_give(base, tmp_path):
    with pytest.raises(WeightsError, match=r"没有 pytorch_lora[^。]*。[^。]*。$"):
        lora.find(tmp_path)
    write(tmp_path, PAIR)
    with pytest.raises(WeightsError, match=r"里面有 f\.safetensors"):
        lora.find(tmp_path)
    (tmp_path / "f.safetensors").rename(tmp_path / "f-00001-of-00002.safetensors")
    with pytest.raises(WeightsError, match="00001-of-00002"):
        lora.find(tmp_path / "f-00001-of-00002.safetensors")
    (tmp_path / "f-00001-of-00002.safetensors").rename(tmp_path / "f-00001-of-00001.safetensors")
    assert lora.find(tmp_path / "f-00001-of-00001.safetensors")
    with pytest.raises(WeightsError, match="pickle"):
        lora.find(tmp_path / "x.PT")


@pytest.mark.parametrize("card", ["{bad", "[]", '"x"', "[" * 100_000, "3", '{"base": [1]}'])
def test_a_broken_card_is_no_card(base, tmp_path, card, recwarn):
    file = write(tmp_path, PAIR, lorakit=card)
    assert lora.read(file)[1] == {} and lora_audit.audit(file, base).good
    nothing = [w for w in recwarn if "卡片坏了" in str(w.message)]
    assert bool(nothing) == (card != '{"base": [1]}')
