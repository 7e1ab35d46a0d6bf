"""文本编码器怎么放：放得下就原样；内存大的随用随搬；内存小的压成 8 位、4 位，直接读上显卡。"""

import psutil
import pytest
import torch
import transformers

from lorakit import cache, load_config, open_family
from lorakit.cache import keys
from lorakit.cache.why import NAMES
from lorakit.families import open_blank
from lorakit.machine import doctor, estimate
from lorakit.memory import devices, encoders, loading
from lorakit.memory.quantize import FrozenLinear

CPU = torch.device("cpu")
SIZE = encoders.Size(8_000_000_000, 7_000_000_000)


@pytest.mark.parametrize(
    "capacity, host, kept",
    [
        (19e9, 16e9, "none"),  # 16 GB 的权重，另留 2 GiB
        (18e9, 64e9, "moved"),
        (18e9, 32 * 2**30, "int8"),  # 标着 32 GB 的内存是 32 GiB
        (11.2e9, 16e9, "int8"),
        (11.0e9, 16e9, "nf4"),
        (7.0e9, 16e9, "moved"),  # 4 位也放不下
    ],
)
def test_where_an_encoder_goes(capacity, host, kept):
    assert encoders.kept_as(SIZE, 2, capacity, host) == kept


def test_without_bitsandbytes_it_moves(monkeypatch):
    monkeypatch.setattr(encoders, "find_spec", lambda name: None)
    assert encoders.kept_as(SIZE, 2, 12e9, 16e9) == "moved"


def each_encoder():
    for name in ("tiny-qwen-image", "tiny-flux", "tiny-qwen-image-2.1"):
        family = open_family(load_config(name), CPU)
        yield from ((name, part) for part in family.encoders)


@pytest.mark.parametrize("name, part", [*each_encoder()])
def test_read_in_eight_bits(name, part):
    """压的正是 transformers 压的那些层；说的话与没压的几乎一样；占的字节和算的一样。"""
    family = open_family(load_config(name), CPU)
    cls, shell = getattr(transformers, family.text_parts[part]), family.shell(part)
    whole = loading.whole_from(cls, family.folder, part, dtype=torch.float32)
    small = encoders.read(cls, family.folder, part, "int8", torch.float32, CPU)
    packed = [path for path, m in small.named_modules() if isinstance(m, FrozenLinear)]
    assert packed == encoders.packable(shell) and packed
    ids = torch.tensor([[1, 5, 9, 3, 7]])
    with torch.no_grad():
        said = [one(input_ids=ids, output_hidden_states=True) for one in (whole, small)]
    a, b = (one.hidden_states[-1].flatten() for one in said)
    assert torch.cosine_similarity(a, b, dim=0) > 0.9995 and not torch.equal(a, b)
    size = encoders.Size.of([shell])
    assert sum(p.nbytes for p in small.parameters()) == size.bytes("int8", 4)
    assert sum(p.nbytes for p in whole.parameters()) == size.bytes("none", 4)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_rehearsal_packs_the_same_layers(kind):
    family = open_family(load_config("tiny-qwen-image"), CPU)
    shell, source = family.shell("text_encoder"), loading.random_weights(CPU, torch.float32)
    wanted = encoders.Size.of([shell]).bytes(kind, 4)
    made = encoders.fill(shell, source, kind, CPU)
    assert not any(p.is_meta for p in made.parameters())
    held = sum(p.nbytes for p in made.parameters())
    assert held == pytest.approx(wanted, rel=0.02)
    assert made(input_ids=torch.tensor([[1, 5, 9]])).logits.isfinite().all()


def test_the_cache_knows_how_it_was_said(papercut, config):
    """压过的另存一份，没压的键和以前一样；整个准备过程都用得上压过的，连随用随搬的也是。"""
    settings = config("memory.offload=blocks")
    plain, small = (open_family(settings, CPU) for _ in range(2))
    vars(small)["text_kind"] = "int8"
    query = [("一只猫", None, keys.PLAIN)]
    (before,), (after,) = (keys.text_fields(one, query, 64) for one in (plain, small))
    assert after == {**before, "text_kind": "int8"} and "text_kind" in NAMES
    pairs = zip(*(cache.prepare(settings, one).train for one in (plain, small)), strict=True)
    for a, b in pairs:
        x, y = a.cond["text"].flatten(), b.cond["text"].flatten()
        assert torch.cosine_similarity(x, y, dim=0) > 0.999 and not torch.equal(x, y)


def test_the_machine_decides(monkeypatch):
    """看显卡与内存一共多少，不看此刻剩多少：同一台机器上，键总是一样的。"""
    family = open_family(load_config("tiny-qwen-image"), CPU)
    size, number = family._text_size(), family.dtype.itemsize
    for host, kind in ((64e9, "none"), (16e9, "int8")):
        monkeypatch.setattr(psutil, "virtual_memory", lambda host=host: Memory(host))
        room = size.bytes("int8", number) + encoders.ROOM
        monkeypatch.setattr(devices, "whole_memory", lambda device, room=room: room)
        one = family.again(device=torch.device("cuda"))
        assert one.text_kind == kind
    assert family.text_kind == "none", "没有显卡就不压"


class Memory:
    def __init__(self, total: float):
        self.total = self.available = total


@pytest.mark.parametrize("memory, said", [(64e9, None), (32e9, "8 位")])
def test_the_doctor_says_so(memory, said):
    config = load_config("qwen-image-12gb")
    found = {c.what: c for c in doctor._config(config, tier=12, online=False, memory=memory)}
    assert ("文本编码器" in found) == bool(said)
    need = float(found["要用的内存"].said.split()[1])
    if said:
        assert said in found["文本编码器"].said and need < 10
    else:
        assert need > 16


def test_the_real_encoder_fits_a_12_gb_card_in_eight_bits(tmp_path):
    family = open_blank(load_config("qwen-image-12gb"), tmp_path, torch.device("meta"))
    size = encoders.Size.of(estimate.random_encoders(family))
    capacity = estimate.usable(12) * estimate.GIB
    assert size.bytes("int8", 2) + encoders.ROOM < capacity < size.bytes("none", 2)
