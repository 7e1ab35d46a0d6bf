"""别人的 LoRA 文件里什么都可能有：读它、体检它，要么成，要么是一句中文，不会是一长串英文。"""

import json
import struct
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lorakit import lora
from lorakit.errors import LorakitError
from lorakit.families.flux import Flux
from lorakit.lora import audit as lora_audit
from lorakit.lora import foreign
from lorakit.lora import fused as lora_fused
from lorakit.tiny.pretrain import shapes

TRIES = 300
QUICK = settings(max_examples=TRIES, deadline=None, derandomize=True,
                 suppress_health_check=list(HealthCheck))  # fmt: skip


@pytest.fixture(scope="module")
def shell():
    with torch.device("meta"):
        return shapes.flux_transformer(latent_channels=4, layers=1, single_layers=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("any")


ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["folded", "4", "nan", "1e999", "Dynamic", "(a+)+$", "[", "\x1b[31m"]),
)  # fmt: skip
JSON = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora",
                 "transformer.r", "transformer.lora_alpha", "transformer.alpha_pattern",
                 "base", "family", "rank", "to_q", ".*", "("]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=8,
)  # fmt: skip
TEXTS = st.one_of(JSON.map(json.dumps), st.text(max_size=12), st.just("[" * 100_000))
HEADERS = st.dictionaries(
    st.sampled_from(["lorakit", "lora_adapter_metadata", "adapter_config", "peft_config",
                     "ss_network_alpha", "ss_network_dim", "ss_network_module", "ot_config"]),
    TEXTS, max_size=4,
)  # fmt: skip
LAYERS = st.sampled_from(
    ["transformer_blocks.0.attn.to_q", "transformer_blocks_0_attn_to_q", "proj_out",
     "single_blocks.0.linear1", "single_blocks_0_linear1", "double_blocks.0.img_attn.qkv",
     "final_layer.adaLN_modulation.1", "norm_out.linear", "nowhere", "text_model.x", "",
     "double_blocks.0.processor.qkv", "single_blocks.0.processor.proj"]
)  # fmt: skip
PREFIXES = st.sampled_from(["", "transformer.", "diffusion_model.", "model.diffusion_model.",
                            "pipe.dit.", "base_model.model.", "lora_unet_", "lycoris_",
                            "lora_te1_", "text_encoder."])  # fmt: skip
ENDS = st.sampled_from(
    [".lora_A.weight", ".lora_B.weight", ".lora_A.x.weight", ".lora_down.weight", ".alpha",
     ".lora_up.weight", ".lora_magnitude_vector", ".dora_scale", ".lokr_w1", ".lokr_w2",
     ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2", ".hada_w1_a", ".diff",
     ".lora_B.bias", ".absmax", "_lora1.down.weight", "_lora1.up.weight", ".weight", ""]
)  # fmt: skip
NAMES = st.tuples(PREFIXES, LAYERS, ENDS).map("".join) | st.text(max_size=10)
SIDES = st.sampled_from([0, 1, 2, 4, 8, 16, 128, 384])
FLOATS = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64,
                          torch.float8_e4m3fn, torch.float8_e5m2])  # fmt: skip
DTYPES = st.sampled_from(
    [torch.float32] * 20 + [torch.int8, torch.int64, torch.bool, torch.uint8, torch.complex64]
)


@st.composite
def tensors(draw):
    """多半像样的一份：几层配好的，再混进乱的。"""
    made = {}
    for _ in range(draw(st.integers(0, 3))):
        stem, kind = draw(PREFIXES) + draw(LAYERS), draw(FLOATS)
        rank = draw(st.sampled_from([1, 2, 4]))
        wide, out = draw(st.sampled_from([(128, 128), (128, 384), (128, 896), (640, 128), (0, 1)]))
        layer = {
            "lora_A.weight": torch.ones(rank, wide), "lora_B.weight": torch.ones(out, rank),
            "alpha": torch.tensor(2.0), "dora_scale": torch.ones(out, 1),
            "lora_magnitude_vector": torch.ones(out),
            "lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(out // 2, wide // 2),
            "lokr_w2_a": torch.ones(out // 2, rank), "lokr_w2_b": torch.ones(rank, wide // 2),
        }  # fmt: skip
        taken = draw(st.sampled_from([
            "lora_A.weight lora_B.weight", "lora_A.weight lora_B.weight alpha",
            "lora_A.weight lora_B.weight dora_scale alpha",
            "lora_A.weight lora_B.weight lora_magnitude_vector",
            "lokr_w1 lokr_w2", "lokr_w1 lokr_w2_a lokr_w2_b alpha",
        ]))  # fmt: skip
        made |= {f"{stem}.{name}": layer[name].to(kind) for name in taken.split()}
    for name in draw(st.lists(NAMES, max_size=draw(st.sampled_from([0, 0, 1, 4])))):
        shape = draw(st.lists(SIDES, max_size=3))
        value = torch.ones([min(side, 16) if len(shape) > 2 else side for side in shape])
        fill = draw(st.sampled_from([1.0] * 8 + [0.0, -2.0, float("nan"), float("inf")]))
        made[name] = (value * fill).to(draw(DTYPES))
    return made


def only_a_sentence(file, shell):
    places = lora_fused.slots(Flux.original, shell)
    names = [name for name, _ in shell.named_modules()]
    for act in (
        lambda: lora_audit.audit(file, shell, places).text(),
        lambda: foreign.read(file, names, places),
        lambda: lora.check_fits(file, shell, Flux.original),
        lambda: lora.read(file),
    ):
        try:
            said = act()
        except LorakitError as error:
            said = str(error)
        if isinstance(said, str):
            assert "\x1b" not in said


@QUICK
@given(made=tensors(), header=HEADERS, config=st.none() | TEXTS)
def test_only_sentences_come_out(shell, place, made, header, config):
    file = place / "adapter_model.safetensors"
    beside = place / "adapter_config.json"
    beside.unlink(missing_ok=True)
    if config is not None:
        beside.write_text(config, encoding="utf-8", errors="surrogatepass")
    made = {name.encode("utf-8", "ignore").decode(): value for name, value in made.items()}
    header = {k: v.encode("utf-8", "ignore").decode() for k, v in header.items()}
    save_file(made, file, header)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        only_a_sentence(file, shell)


SLOTS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F8_E8M0", "F4", "F6_E2M3", "I4", "U64", "X", 3]),
        "shape": st.lists(st.integers(-1, 5) | st.just(2**62), max_size=3),
        "data_offsets": st.lists(st.integers(-1, 40) | st.just(2**63), max_size=3),
    },
)


@QUICK
@given(head=st.dictionaries(NAMES, SLOTS | JSON, max_size=3), size=st.integers(-2, 2),
       tail=st.binary(max_size=40))  # fmt: skip
def test_broken_headers_too(shell, place, head, size, tail):
    text = json.dumps(head).encode()
    file = place / "broken.safetensors"
    file.write_bytes(struct.pack("<Q", max(0, len(text) + size)) + text + tail)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        only_a_sentence(file, shell)


@settings(QUICK, max_examples=40)
@given(made=tensors())
def test_what_audit_accepts_is_put_on(place, made):
    """体检说全部对得上的，就挂得上。"""
    with torch.device("cpu"):
        model = shapes.flux_transformer(latent_channels=4, layers=1, single_layers=1)
    file = place / "fits.safetensors"
    made = {name.encode("utf-8", "ignore").decode(): value for name, value in made.items()}
    a, b = torch.ones(2, 128), torch.ones(384, 2)
    made["double_blocks.0.img_attn.qkv.lora_A.weight"] = a
    made["double_blocks.0.img_attn.qkv.lora_B.weight"] = b
    save_file(made, file)
    places = lora_fused.slots(Flux.original, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            good = lora_audit.audit(file, model, places).good
        except LorakitError:
            good = False
        if good:
            lora.put_on(SimpleNamespace(transformer=model), file, original=Flux.original)
