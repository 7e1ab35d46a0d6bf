"""ComfyUI 工作流：每个节点都照 ComfyUI 的签名核对；两种写法说的是同一件事；export 填得对。"""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline
from safetensors.torch import save_file

from lorakit.cli import main
from lorakit.families.registry import REGISTRY, get, workflow_of
from lorakit.lora import comfyui

TABLE, SHIFTED = comfyui.signatures(), "ModelSamplingAuraFlow"
PYTHON = {"INT": int, "FLOAT": (int, float), "STRING": str, "COMBO": str, "FILE": str}


def check_nodes(nodes):
    for node in nodes.values():
        spec = TABLE[node["class_type"]]["inputs"]
        assert set(node["inputs"]) <= set(spec)
        needed = {key for key, one in spec.items() if not one.get("optional")}
        assert needed <= set(node["inputs"]), node["class_type"]
        for key, value in node["inputs"].items():
            check_value(nodes, spec[key], value, f"{node['class_type']}.{key}")


def check_value(nodes, spec, value, where):
    if spec["type"] not in comfyui.WIDGETS:
        source, slot = value
        assert TABLE[nodes[source]["class_type"]]["outputs"][slot] == spec["type"], where
        return
    assert isinstance(value, PYTHON[spec["type"]]) and not isinstance(value, bool), where
    if spec["type"] == "COMBO":
        assert value in spec["options"], where
    if "min" in spec:
        assert spec["min"] <= value <= spec["max"], where
    if spec["type"] == "INT" and "step" in spec:
        assert value % spec["step"] == 0, where
    if spec["type"] == "FILE" and spec["folder"] != "input":
        assert value.endswith(".safetensors"), where


def back_to_api(drawn):
    """画布写法 -> API 写法，另写一遍，不借用 comfyui.graph 的代码。"""
    links = {link[0]: link for link in drawn["links"]}
    nodes = {}
    for node in drawn["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        values, inputs = list(node["widgets_values"]), {}
        slots = {entry["name"]: (i, entry) for i, entry in enumerate(node["inputs"])}
        for key, spec in TABLE[node["type"]]["inputs"].items():
            if spec["type"] in comfyui.WIDGETS:
                inputs[key] = values.pop(0)
                if "then" in spec:
                    assert values.pop(0) == spec["then"]
            elif slots[key][1]["link"] is not None:
                number, source, slot, target, place, kind = links[slots[key][1]["link"]]
                assert (target, place, kind) == (node["id"], slots[key][0], spec["type"])
                origin = next(one for one in drawn["nodes"] if one["id"] == source)
                assert number in origin["outputs"][slot]["links"]
                assert origin["outputs"][slot]["type"] == kind
                inputs[key] = [str(source), slot]
        assert values == []
        nodes[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": node["title"]},
        }
    return nodes


@pytest.mark.parametrize("name", comfyui.names())
def test_every_node_matches_its_signature(name):
    check_nodes(comfyui.template(name))
    shift = workflow_of(name)[1].full_shift(4096)
    sizes = {"steps": 1000, "guidance": 100, "size": 4096, "seed": 2**32, "shift": shift}
    big = comfyui.Fill("a.safetensors", "一只狗", **sizes)
    check_nodes(comfyui.fill(name, big))


@pytest.mark.parametrize("name", comfyui.names())
def test_both_shipped_forms_agree(name):
    shipped = json.loads((comfyui.FOLDER / f"{name}.json").read_text("utf-8"))
    assert shipped == comfyui.graph(comfyui.template(name))
    assert back_to_api(shipped) == comfyui.template(name)
    assert len({node["id"] for node in shipped["nodes"]}) == len(shipped["nodes"])
    classes = [node["type"] for node in shipped["nodes"]]
    assert classes.count("LoraLoaderModelOnly") == classes.count("KSampler") == 1


def test_every_family_names_its_workflows_and_a_version():
    owned = {name for family in REGISTRY for name in get(family).workflows.values()}
    assert set(comfyui.names()) == owned
    read = json.loads((comfyui.FOLDER / "nodes.json").read_text("utf-8"))
    assert {node["file"] for node in TABLE.values()} == set(read["commits"])


@pytest.mark.parametrize("size", [1024, 1328])
def test_the_shift_is_the_pipelines(size):
    from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

    mu = calculate_shift((size // 16) ** 2, 256, 8192, 0.5, 0.9)
    qwen = ("qwen-image", "qwen-image-edit-2509", "qwen-image-2.1", "qwen-image-2.1-edit")
    wanted = dict.fromkeys(qwen, math.exp(mu)) | {"z-image": 3}
    for name, want in wanted.items():
        shift = workflow_of(name)[1].full_shift(size)
        nodes = comfyui.fill(name, comfyui.Fill("a", "b", 20, 4, size, 0, shift))
        (written,) = [n["inputs"] for n in nodes.values() if n["class_type"] == SHIFTED]
        assert written["shift"] == pytest.approx(want, abs=0.005)


@pytest.fixture
def mine(tmp_path):
    def make(**card):
        file = tmp_path / "mine.safetensors"
        tensors = {f"transformer.x.lora_{k}.weight": torch.ones(1, 1) for k in "AB"}
        save_file(tensors, file, {"lorakit": json.dumps(card)} if card else None)
        return file

    return make


@pytest.mark.parametrize("family", ["qwen-image", "flux", "z-image"])
def test_export_fills_everything(mine, tmp_path, capsys, family):
    out, file = tmp_path / "w.api.json", mine(family=family, base="x/y", trigger="ohwx")
    sets = ["steps=12", "guidance=2.5", "size=768", "seed=7"]
    argv = [word for one in sets for word in ("--set", f"sample.{one}")]
    argv += ["--prompt", "雨中的城市", "--workflow"]
    assert main(["export", str(file), *argv, str(out)]) == 0
    said = capsys.readouterr().out
    assert "ComfyUI/models/loras/mine.safetensors" in said and "models/vae/" in said
    nodes = json.loads(out.read_text("utf-8"))
    check_nodes(nodes)
    by = {node["class_type"]: node["inputs"] for node in nodes.values()}
    assert by["LoraLoaderModelOnly"]["lora_name"] == "mine.safetensors"
    assert nodes["8"]["inputs"]["text"] == "ohwx，雨中的城市"
    sampler = by["KSampler"]
    assert (sampler["steps"], sampler["seed"]) == (12, 7)
    assert by["EmptySD3LatentImage"]["width"] == by["EmptySD3LatentImage"]["height"] == 768
    guidance = by["FluxGuidance"]["guidance"] if family == "flux" else sampler["cfg"]
    assert guidance == 2.5 and (family != "flux" or sampler["cfg"] == 1)
    drawn = tmp_path / "w.json"
    assert main(["export", str(file), *argv, str(drawn)]) == 0
    assert back_to_api(json.loads(drawn.read_text("utf-8"))) == nodes


def test_a_quick_base_is_drawn_in_its_few_steps(mine, tmp_path):
    """练在几步出图的那一版上的：工作流载入它，步数与引导也照它；自己写了的听自己的。"""
    out = tmp_path / "t.api.json"
    file = mine(family="z-image", base="Tongyi-MAI/Z-Image-Turbo")
    for sets, steps in (([], 8), (["--set", "sample.steps=9"], 9)):
        assert main(["export", str(file), "--workflow", str(out), *sets]) == 0
        by = {n["class_type"]: n["inputs"] for n in json.loads(out.read_text("utf-8")).values()}
        assert by["UNETLoader"]["unet_name"] == "z_image_turbo_bf16.safetensors"
        assert (by["KSampler"]["steps"], by["KSampler"]["cfg"]) == (steps, 1.0)


def test_edit_2509_is_chosen_by_the_base(mine, tmp_path):
    out = tmp_path / "e.api.json"
    file = mine(family="qwen-image-edit", base="Qwen/Qwen-Image-Edit-2509")
    assert main(["export", str(file), "--workflow", str(out), "--prompt", "戴上帽子"]) == 0
    nodes = json.loads(out.read_text("utf-8"))
    assert nodes["8"]["class_type"] == "TextEncodeQwenImageEditPlus"
    assert nodes["8"]["inputs"]["prompt"] == "戴上帽子" and nodes["9"]["inputs"]["prompt"] == " "


def test_a_model_of_both_uses_has_two_workflows(mine, tmp_path, capsys):
    """Qwen-Image 2.1：不说就是画图的，它自己说改图的怎么要；大小只能是 32 的倍数。"""
    out, file = tmp_path / "w.api.json", mine(family="qwen-image-2.1", base="Qwen/Qwen-Image-2.1")
    argv = ["export", str(file), "--workflow", str(out), "--prompt", "变成夜晚"]
    for words, pictures in (([], 0), (["--family", "qwen-image-2.1-edit"], 1)):
        assert main([*argv, *words, "--set", "sample.size=1040"]) == 0
        assert ("--family qwen-image-2.1-edit" in capsys.readouterr().out) is (not words)
        nodes = json.loads(out.read_text("utf-8"))
        check_nodes(nodes)
        assert nodes["8"]["inputs"]["prompt"] == "变成夜晚"
        assert ("images.image_1" in nodes["8"]["inputs"]) == pictures


def test_flux2_shifts_by_size_and_steps(mine, tmp_path):
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    out = tmp_path / "w.api.json"
    for family in ("flux2-klein", "flux2-dev"):
        argv = ["export", str(mine(family=family)), "--workflow", str(out)]
        assert main([*argv, "--set", "sample.steps=20", "--set", "sample.size=768"]) == 0
        nodes = json.loads(out.read_text("utf-8")).values()
        by = {node["class_type"]: node["inputs"] for node in nodes}
        want = math.exp(compute_empirical_mu(48 * 48, 20))
        assert by[SHIFTED]["shift"] == pytest.approx(want, abs=0.005)
        assert by["EmptyFlux2LatentImage"]["width"] == 768 and by["KSampler"]["steps"] == 20


@pytest.mark.parametrize(
    ("card", "words", "said"),
    [
        ({}, ["--workflow", "w.json"], "--family"),
        ({"family": "kandinsky5"}, ["--workflow", "w.json"], "没有“kandinsky5”的 ComfyUI 工作流"),
        ({"family": "flux"}, ["--workflow", "w.txt"], "以 .json 结尾"),
        ({"family": "flux"}, [], "写到哪里"),
        ({"family": "flux"}, ["--workflow", "w.json", "--set", "sample.size=777"], "sample.size"),
    ],
)
def test_bad_input_says_what_to_do(mine, tmp_path, monkeypatch, capsys, card, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(mine(**card)), *words]) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("w.*"))


@pytest.mark.parametrize(("name", "last"), [("qwen-image", 0.075), ("qwen-image-edit", 0.066)])
def test_where_the_noise_ends(name, last):
    """文档里说的：diffusers 收到 0.02，ComfyUI 的 simple 停在 0.07 左右。"""
    given, settings = comfyui.defaults(name), get(name).full_size["scheduler"]
    steps, shift = given["steps"], get(name).full_shift(given["size"], given["steps"])
    scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    even = torch.linspace(1, 1 / steps, steps)
    scheduler.set_timesteps(sigmas=even.tolist(), mu=math.log(shift))
    rungs = 1 - torch.floor(torch.arange(steps) * 1000 / steps) / 1000  # 它在 1000 格里取这几格
    theirs = shift * rungs / (1 + (shift - 1) * rungs)
    assert float(scheduler.sigmas[-2]) == pytest.approx(0.02, abs=1e-5)
    assert float(theirs[-1]) == pytest.approx(last, abs=1e-3)
    assert (scheduler.sigmas[:-1] - theirs).abs().max() > 0.04


def test_the_first_noise_is_the_same():
    """ComfyUI 在 CPU 上照种子抽一张 (1, 16, 1, 高/8, 宽/8)；管线抽的摊开以后是同一串数。"""
    seeded = torch.Generator("cpu").manual_seed(7)
    shape = (1, 4, 64, 64, torch.float32, torch.device("cpu"), seeded)
    packed = QwenImagePipeline.prepare_latents(SimpleNamespace(
        vae_scale_factor=8, _pack_latents=QwenImagePipeline._pack_latents
    ), *shape)  # fmt: skip
    ours = QwenImagePipeline._unpack_latents(packed, 64, 64, 8)
    theirs = torch.randn(1, 4, 1, 8, 8, generator=torch.manual_seed(7))
    assert torch.equal(ours, theirs)
