"""测速与估计：估计和真跑一遍、和显卡上量到的都对得上；坏的输入说清楚。"""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_contract import TINY
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lorakit import lora
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import LorakitError
from lorakit.families import REGISTRY, get, open_blank
from lorakit.families.shared import pack
from lorakit.files import ASSETS, read_json
from lorakit.machine import bench, doctor, estimate, table, trace
from lorakit.memory import devices

META = torch.device("meta")
# lorakit bench 在显卡上量到的；host 是 null 的那几次，同一个进程里先测过别的模型，内存不算数
MEASURED = read_json(table.PLACE / "measured.json", [dict])
# 整个训练最大的一个环节要几 GiB：tests/measure_whole_runs.py 在当作小卡的 H200 上量的，五种宽高比
WHOLE = {
    "qwen-image-12gb": 10.2, "qwen-image-24gb": 22.1, "qwen-image-48gb": 41.0,
    "qwen-image-edit-24gb": 16.8, "flux-dev-12gb": 10.0, "flux-dev-24gb": 21.5,
    "flux-dev-16gb": 14.0, "flux-kontext-24gb": 22.0, "z-image-12gb": 10.1,
    "qwen-image-2.1-16gb": 13.8, "qwen-image-16gb": 13.8, "z-image-16gb": 12.6,
}  # fmt: skip
SDPA = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def label(row: dict) -> str:
    return f"{row['command'].removeprefix('lorakit bench ')} ({row['card'].split()[1]})"


def test_estimate_equals_a_real_step(blank, tmp_path):
    """与真的微型模型、真的 LoRA 走一步留下的张量和乘加次数比。"""
    config, _, asked = blank("tiny-qwen-image")
    family = open_blank(config, tmp_path, torch.device("cpu"), torch.bfloat16)
    model = family.load("transformer")
    assert asked.parameters == sum(p.numel() for p in model.parameters())
    for kind in ("none", "fp8", "int8", "fp8-matmul"):
        made = family.again(quantize=kind).load("transformer")
        size = sum(value.nbytes for value in made.state_dict().values())
        assert blank("tiny-qwen-image", f"model.quantize={kind}")[2].weights == size
    learned = lora.attach(model, family, config.lora, 0)
    assert asked.trained == sum(p.numel() for p in learned.values())
    x, t = torch.randn(1, family.latent_channels, 16, 16), torch.rand(1)
    cond = {
        name: torch.randn(1, *shape, dtype=torch.bfloat16)
        for name, shape in family.cond_shapes(estimate.TOKENS, 128).items()
    }
    own = {t.untyped_storage().data_ptr() for t in model.parameters()}
    seen, flops = {}, FlopCounterMode(
        display=False, custom_mapping={SDPA: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    )  # fmt: skip
    keep = torch.autograd.graph.saved_tensors_hooks(
        lambda t: seen.setdefault(t.untyped_storage().data_ptr(), t) is None or t, lambda t: t
    )
    with flops, keep, torch.autocast("cpu", torch.bfloat16):
        family.predict_velocity(model, x, t, cond)
    kept = sum(t.untyped_storage().nbytes() for p, t in seen.items() if p not in own)
    assert kept == pytest.approx(asked.kept, rel=0.2)
    # LoRA 自己的矩阵乘法在微型模型里占得多：总数比底模的多，但不到两倍
    assert 1 < flops.get_total_flops() / (asked.linear + asked.attention) < 2


@pytest.mark.parametrize("variant", ["dora", "lokr"])
def test_every_variant_is_counted_as_it_is(blank, tmp_path, variant):
    config, _, asked = blank("tiny-qwen-image", f"lora.variant={variant}")
    family = open_blank(config, tmp_path, torch.device("cpu"))
    learned = lora.attach(family.load("transformer"), family, config.lora, 0)
    assert asked.trained == sum(p.numel() for p in learned.values())


def test_full_size_models_match_what_was_measured_on_a_card(blank):
    """不编译时 H200 上实测过的峰值（GiB），估计差不到一成；编译的见下一个测试。"""
    config, _, qwen = blank("qwen-image", "memory.compile=false")
    assert qwen.parameters == pytest.approx(20.4e9, rel=0.01)
    assert qwen.peak(config, 1.0) / estimate.GIB == pytest.approx(40.6, rel=0.1)
    assert qwen.peak(config, 0.0) / estimate.GIB == pytest.approx(69.1, rel=0.1)
    assert (qwen.linear + qwen.attention) == pytest.approx(7.0e13, rel=0.02)
    assert qwen.floor(config) == pytest.approx(1.6e14, rel=0.02)
    config, _, flux = blank("flux-dev")
    assert flux.parameters == pytest.approx(11.9e9, rel=0.01)
    assert flux.peak(config, 1.0) / estimate.GIB == pytest.approx(24.5, rel=0.1)


def test_other_tiers_of_the_same_base_are_not_walked_again(blank, monkeypatch):
    family, walked = blank("tiny-qwen-image")[1], []
    monkeypatch.setattr(estimate, "_walk", lambda *a: walked.append(a) or (len(walked),) * 4)
    monkeypatch.setattr(estimate, "_walked", cache(estimate._walked.__wrapped__))  # 假的不留下

    def measure(*overrides):
        return estimate.measure(family, load_config("tiny-qwen-image", overrides))

    one, before = measure(), len(walked)
    tier = measure("model.quantize=int8", "memory.offload=blocks", "train.batch_size=3")
    assert len(walked) == before and tier.weights < one.weights
    same = ("trained", "kept", "inputs", "linear", "attention")
    assert [getattr(tier, key) for key in same] == [getattr(one, key) for key in same]
    for change in ("lora.rank=3", "data.resolution=64", "memory.compile=true"):
        before = len(walked)
        assert measure(change) != one and len(walked) > before


@pytest.mark.parametrize("row", MEASURED, ids=label)
def test_predictions_match_what_bench_measured(row, blank):
    """体检预告的显存与每步的时间，和 lorakit bench 在显卡上量到的差不到 15%。"""
    config, _, asked = blank(row["preset"], *row["set"])
    capacity = estimate.usable(row["tier"] or row["memory"])
    again, peak = doctor.fitting(asked, config, capacity)
    assert peak == pytest.approx(row["allocated"], rel=0.15)
    step = doctor.seconds(asked, config, again, row["ceiling"], True, row["bus"] or doctor.BUS)
    assert step == pytest.approx(row["step"], rel=0.15)
    if row["host"]:
        assert doctor.host(asked, config) == pytest.approx(row["host"], rel=0.15)


@pytest.mark.parametrize(("preset", "need"), WHOLE.items())
def test_the_largest_stage_of_a_whole_run_is_predicted(preset, need, blank):
    config, _, asked = blank(preset)
    capacity = estimate.usable(float(preset.rpartition("-")[2].removesuffix("gb")))
    again, _ = doctor.fitting(asked, config, capacity)
    largest = asked.largest(config, again, capacity * estimate.GIB) / estimate.GIB
    assert largest == pytest.approx(need, rel=0.15)


def test_a_picture_is_decoded_whole_only_where_there_is_room(blank):
    config, _, asked = blank("flux-dev-12gb")
    step, room = asked.peak(config, 1.0), 12 * estimate.GIB
    assert asked.largest(config, 1.0, room) > step == asked.largest(config, 1.0, room / 2)
    quiet = load_config("flux-dev-12gb", ["sample.every=0"])
    assert asked.largest(quiet, 1.0, room) == step


def test_only_an_unrecorded_step_depends_on_the_processor(blank, monkeypatch):
    monkeypatch.setattr(devices, "pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(devices, "pick_dtype", lambda *given: torch.bfloat16)
    monkeypatch.setattr(bench, "gemm_ceiling", lambda *given: 800.0)
    monkeypatch.setattr(bench, "copy_speed", lambda device: 55.0)
    said = {}
    for how in ("graphs", "true", "false"):
        config, _, asked = blank("qwen-image-12gb", f"memory.compile={how}")
        (check,) = doctor._time(config, asked, 1.0)
        said[how] = float(check.said.split()[1]), "看 CPU 快慢" in check.said
    assert said["graphs"][0] < said["true"][0] < said["false"][0]
    assert [slow for _, slow in said.values()] == [False, True, True]
    config, _, asked = blank("qwen-image", "memory.compile=false", "train.grad_accum=2")
    assert doctor.handling(asked, config, 0.0) == pytest.approx(2 * 60 * 2 * 0.0049)


@pytest.mark.parametrize(("name", "billions"), [
    ("z-image", 6.15), ("kandinsky5", 6.0), ("flux-kontext", 11.9), ("flux2-dev", 32.2),
    ("flux2-klein", 3.9), ("flux2-klein-9b", 9.1), ("qwen-image-2.1", 7.1),
])  # fmt: skip
def test_other_full_sizes(tmp_path, name, billions):
    family = open_blank(load_config(name), tmp_path, META)
    count = sum(value.numel() for value in family.skeleton().parameters())
    assert count == pytest.approx(billions * 1e9, rel=0.01)


def test_the_path_says_which_size(tmp_path):
    """FLUX.2 klein 9B 大些；2509、2511 的编辑一次能看三张，2511 的控制图时间恒为 0。"""
    shapes = {}
    for path in ("FLUX.2-klein-base-4B", "FLUX.2-klein-base-9B"):
        config = load_config("flux2-klein", [f"model.path=black-forest-labs/{path}"])
        family = open_blank(config, tmp_path / path, META)
        shapes[path[-2:]] = family.text_shapes(7)["text"][1]
    assert shapes == {"4B": 3 * 2560, "9B": 3 * 4096}  # 三层 Qwen3 4B、8B 的隐状态
    for edition, seen, zero in (("", 1, None), ("-2509", 3, None), ("-2511", 3, True)):
        config = load_config("qwen-image-edit", [f"model.path=Qwen/Qwen-Image-Edit{edition}"])
        family = open_blank(config, tmp_path / f"edit{edition}", META)
        assert family.controls[1] == seen
        assert family.config_of("transformer").get("zero_cond_t") is zero
        assert family.licences[""] == "apache-2.0"


def test_every_family_knows_its_full_size(tmp_path):
    for name in REGISTRY:
        parts = get(name).full_size
        assert {"transformer", "vae", "scheduler"} <= parts.keys(), name
        config = load_config({"model": {"family": name, "path": "someone/model"}})
        family = open_blank(config, tmp_path / name, META)
        assert family.latent_channels in (16, 64, 128)
        assert family.shift(1024, 1024) >= 1
        assert all(len(shape) in (1, 2, 3) for shape in family.cond_shapes(7, 1024).values())


def test_quantized_and_streamed_bases_need_less(blank):
    plain = blank("tiny-qwen-image")[2]
    for kind, share in (("fp8", 0.6), ("int8", 0.6), ("nf4", 0.35), ("fp8-matmul", 0.6)):
        config, _, asked = blank("tiny-qwen-image", f"model.quantize={kind}")
        assert asked.weights < share * plain.weights
        assert (asked.kept, asked.linear) == (plain.kept, plain.linear)
        moved = [
            blank("tiny-qwen-image", f"model.quantize={kind}", f"memory.offload={some}")[2]
            for some in ("blocks", 3)
        ]
        peaks = [one.peak(config, 1.0) for one in (*moved, asked)]
        assert peaks == sorted(set(peaks))
        assert moved[0].moved == pytest.approx(4 / 3 * moved[1].moved, rel=1e-6)
        assert doctor.host(moved[0], config) > doctor.host(moved[1], config) > doctor.HOST
        assert asked.peak(config, 1.0) < asked.peak(config, 0.5) < asked.peak(config, 0.0)


def test_bench_measures_three_ways(tmp_path, capsys):
    out = tmp_path / "bench.json"
    command = ["bench", "tiny-qwen-image", "--baseline", "seed", "--plain", "--steps", "2"]
    small = ["--set", "data.resolution=64", "--set", "train.batch_size=2"]
    assert main([*command, "--warm", "1", "--out", str(out), *small]) == 0
    said, facts = capsys.readouterr().out, json.loads(out.read_text("utf-8"))
    rows = {row["way"]: row for row in facts["rows"]}
    assert list(rows) == ["ours", "seed", "plain"]
    for row in rows.values():
        assert row["step"] > 0 and row["images"] == pytest.approx(2 / row["step"])
        assert row["host"] > 0 and row["floor"] > 0 and not row["error"]
    assert "秒/步" in said and "倍" in said and "TFLOP" in said
    assert not list(Path.cwd().glob("runs/*bench*"))


def test_every_way_measures_the_same_base(monkeypatch):
    """常见写法不量化；之后的 plain 仍照设置量化。"""
    seen, real = [], bench._plainly

    def note(config, family, *rest, **more):
        seen.append(family.quantize)
        return real(config, family, *rest, **more)

    monkeypatch.setattr(bench, "_plainly", note)
    sets = ["model.quantize=int8", "data.resolution=64", "train.batch_size=1"]
    bench.run(load_config("tiny-qwen-image", sets), ("ours", "seed", "plain"), steps=1, warm=1)
    assert seen == ["none", "int8"]


def test_averages_and_class_pictures_are_counted(blank):
    config, _, asked = blank("tiny-qwen-image")
    kept = asked.peak(config, 0.0)
    ema = load_config("tiny-qwen-image", ["train.ema=0.9"])
    assert asked.peak(ema, 0.0) == kept + 4 * asked.trained
    kin = load_config("tiny-qwen-image", ["data.class_folder=somewhere"])
    acts = asked.kept + asked.one
    assert asked.peak(kin, 0.0) == kept + config.train.batch_size * acts
    assert asked.work(kin, 0.0) == 2 * asked.work(config, 0.0)


def test_models_that_are_not_here_need_no_download(monkeypatch):
    """站上的模型只用它的尺寸：把尺寸缩小，照样从头测到尾。"""
    small = json.loads((ASSETS / "tiny-qwen-image" / "transformer" / "config.json").read_text())
    parts = get("qwen-image").full_size | {"transformer": small}
    monkeypatch.setattr(get("qwen-image"), "full_size", parts)
    small_too = ["data.resolution=64", "memory.compile=false", "memory.offload=2"]
    config = load_config("qwen-image-24gb", small_too)
    row = bench.run(config, steps=1, warm=1).rows[0]
    assert row.step > 0 and not row.error


def test_out_of_memory_is_a_row_not_a_crash(monkeypatch):
    def full(config, family):
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    monkeypatch.setattr(bench, "_ours", full)
    report = bench.run(load_config("tiny-qwen-image"), ("ours",), steps=1, warm=1)
    assert report.rows[0].error and "放不下：lorakit" in report.text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--steps", "0"], "--steps 和 --warm 至少是 1"),
        (["--tier", "24"], "要有 NVIDIA 显卡"),
        (["--set", "train.batch_size=0"], "train.batch_size"),
    ],
)
def test_bad_input_to_bench(more, said, tmp_path, capsys):
    assert main(["bench", "tiny-qwen-image", "--out", str(tmp_path / "b.json"), *more]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", REGISTRY)
def test_every_family_is_compared_with_the_usual_loop(name, tmp_path):
    folder = TINY[name].build(tmp_path / "model")
    sets = [f"model.path={folder}", f"model.family={name}", "train.batch_size=1"]
    rows = bench.run(load_config("tiny-qwen-image", sets), ("ours", "seed"), steps=1, warm=1).rows
    assert [row.way for row in rows] == ["ours", "seed"]
    assert all(not row.error and row.step > 0 for row in rows)


def test_full_fine_tuning_is_compared_with_its_usual_loop(monkeypatch):
    """常见写法也练每一个权重，也累积；一步都算 batch_size x grad_accum 张。"""
    learned, real = [], bench.optim.build
    monkeypatch.setattr(
        bench.optim, "build", lambda given, train: learned.append(list(given)) or real(given, train)
    )
    config = load_config("tiny-qwen-image-full", ["train.batch_size=3", "train.grad_accum=2"])
    rows = bench.run(config, ("ours", "seed", "plain"), steps=1, warm=1).rows
    assert [row.images * row.step for row in rows] == [pytest.approx(6)] * 3
    counts = {sum(p.numel() for p in one) for one in learned}
    assert len(learned) == 3 and len(counts) == 1 and counts.pop() > 1e6


def test_models_too_big_for_this_host_are_refused(blank, monkeypatch):
    config, family, asked = blank("tiny-qwen-image")
    monkeypatch.setattr(
        bench.psutil, "virtual_memory", lambda: type("M", (), {"available": 1 << 20})
    )
    with pytest.raises(LorakitError, match=r"内存放不下.*tiny-qwen-image"):
        bench._refuse_too_big(asked, config, family)


def test_packing_is_what_the_floor_counts():
    """一张 1024² 的图是 4096 个图像词元：估计用的形状与训练的一样。"""
    assert pack(torch.zeros(1, 16, 128, 128)).shape == (1, 4096, 64)


def test_a_trace_says_where_the_time_goes():
    names = {
        "nvjet_tst_256x128_64x4_1x2_h_bz_coopA_NTN": "矩阵乘法",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16": "注意力",
        "triton_poi_fused_add_mul_3": "逐元素（编译器写的）",
        "Memcpy HtoD (Pinned -> Device)": "搬运",
        "void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>": "优化器",
        "void at::native::vectorized_elementwise_kernel": "其余",
    }
    assert {name: trace.kind_of(name) for name in names} == names
    a = torch.rand(300, 300)
    seen = trace.record(lambda: [a @ a for _ in range(7)], torch.device("cpu"))
    assert {share.name: share.count for share in seen.slowest}["aten::mm"] == 7
    assert sum(share.milliseconds for share in seen.kinds) == pytest.approx(seen.milliseconds)


def test_overlapping_kernels_are_counted_once():
    def event(start, end, device=DeviceType.CUDA):
        span = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(device_type=device, time_range=span)

    ran = [event(0, 10), event(5, 12), event(20, 25), event(0, 99, DeviceType.CPU)]
    assert trace.busy(ran) == pytest.approx(0.017)


def test_every_measured_step_is_a_whole_batch(monkeypatch):
    """图比一批少，训练就只走半批，张/秒便是虚的。"""
    seen, real = [], bench.Trainer._accumulate

    def note(trainer):
        used = real(trainer)
        seen.append([len(names) for _, _, names in used])
        return used

    monkeypatch.setattr(bench.Trainer, "_accumulate", note)
    config = load_config("tiny-qwen-image", ["train.batch_size=6", "train.grad_accum=2"])
    (row,) = bench.run(config, steps=2, warm=1).rows
    assert seen == [[6, 6]] * 3
    assert row.images * row.step == pytest.approx(12)
