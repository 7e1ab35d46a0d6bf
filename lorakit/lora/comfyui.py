"""ComfyUI 工作流：随包的 API 写法填上你的 LoRA、提示词和参数；画布写法由它生成。

两种写法说的是同一件事：API 写法（*.api.json）给程序提交用，画布写法（*.json）拖进网页就能看能改。
节点的输入、输出与取值范围在 assets/comfyui/nodes.json，注明了从 ComfyUI 的哪个版本读来。
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from lorakit.errors import LorakitError
from lorakit.files import ASSETS, write_text

FOLDER = ASSETS / "comfyui"
API = ".api.json"
EMPTY = ("EmptySD3LatentImage", "EmptyFlux2LatentImage")  # 定图有多大的节点
WIDGETS = {"INT", "FLOAT", "STRING", "COMBO", "FILE"}  # 其余的类型都是连线


@dataclass(frozen=True)
class Fill:
    """要填进工作流的东西；steps、guidance、size、seed 与 sample 组同义。"""

    lora: str
    prompt: str
    steps: int
    guidance: float
    size: int
    seed: int
    shift: float  # 真模型在这个尺寸上的时间偏移；自己会算的工作流用不上
    unet: str = ""  # 底模文件；空的就不改


def names() -> list[str]:
    """有现成工作流的模型。"""
    return sorted(path.name.removesuffix(API) for path in FOLDER.glob(f"*{API}"))


def signatures() -> dict[str, dict]:
    """节点名 -> 它的输入与输出。"""
    return json.loads((FOLDER / "nodes.json").read_text("utf-8"))["nodes"]


def refuse_unknown(name: str, known: bool = True):
    """没有现成的这一份，就说怎么办：LoRA 文件是好的，别家的工作流载入的是别的底模。"""
    if name not in names() or not known:
        raise LorakitError(
            f"没有“{name}”的 ComfyUI 工作流。LoRA 文件本身 ComfyUI 能读：放进 models/loras，"
            "在你画它的工作流里，载入底模之后接一个“LoRA 加载器（仅模型）”节点。"
        )


def template(name: str) -> dict[str, dict]:
    """随包的 API 写法：节点号 -> 节点。"""
    return json.loads((FOLDER / f"{name}{API}").read_text("utf-8"))


def defaults(name: str) -> dict[str, float]:
    """这个工作流自带的步数、引导、边长与种子。"""
    nodes = {node["class_type"]: node["inputs"] for node in template(name).values()}
    sampler, guided = nodes["KSampler"], nodes.get("FluxGuidance")
    side = next((nodes[kind]["width"] for kind in EMPTY if kind in nodes), 1024)
    guidance = guided["guidance"] if guided else sampler["cfg"]
    keys = {"steps": sampler["steps"], "seed": sampler["seed"]}
    return {**keys, "guidance": guidance, "size": side}


def fill(name: str, values: Fill) -> dict[str, dict]:
    """把 values 填进名为 name 的工作流（API 写法）。"""
    nodes = template(name)
    guided = any(node["class_type"] == "FluxGuidance" for node in nodes.values())
    square = {"width": values.size, "height": values.size}
    sampler = {"steps": values.steps, "seed": values.seed}
    changes = {
        "LoraLoaderModelOnly": {"lora_name": values.lora},
        "KSampler": sampler if guided else {**sampler, "cfg": values.guidance},
        "FluxGuidance": {"guidance": values.guidance},
        **dict.fromkeys((*EMPTY, "ModelSamplingFlux"), square),
        "TextEncodeQwenImage21": {"resolution": round(values.size / 32) * 32},
        "ModelSamplingAuraFlow": {"shift": min(round(values.shift, 2), 100)},  # 它最多收 100
        "ImageScaleToTotalPixels": {"megapixels": round((values.size / 1024) ** 2, 2)},
    }
    if values.unet:
        changes["UNETLoader"] = {"unet_name": values.unet}
    for node in nodes.values():
        node["inputs"] |= changes.get(node["class_type"], {})
        if node["_meta"]["title"] == "提示词":
            node["inputs"]["text" if "text" in node["inputs"] else "prompt"] = values.prompt
    return nodes


def files(nodes: dict[str, dict]) -> list[str]:
    """工作流要用的文件，相对于 ComfyUI 的文件夹。"""
    table, found = signatures(), []
    for node in nodes.values():
        for key, spec in table[node["class_type"]]["inputs"].items():
            if spec["type"] == "FILE":
                folder = spec["folder"] if spec["folder"] == "input" else f"models/{spec['folder']}"
                found.append(f"{folder}/{node['inputs'][key]}")
    return found


def graph(nodes: dict[str, dict]) -> dict:
    """API 写法 -> 画布写法：排好位置、编好连线，另贴一张说明。"""
    table, order = signatures(), _order(nodes)
    links, leaving, columns, drawn = [], defaultdict(list), defaultdict(int), []
    for name in order:
        node, inputs, values = nodes[name], [], []
        for key, spec in table[node["class_type"]]["inputs"].items():
            value = node["inputs"].get(key)
            if spec["type"] in WIDGETS:
                values += [value, spec["then"]] if "then" in spec else [value]
                continue
            if value is not None:
                source = (int(value[0]), value[1])
                links.append([len(links) + 1, *source, int(name), len(inputs), spec["type"]])
                leaving[source].append(len(links))
            inputs.append({"name": key, "type": spec["type"], "link": value and len(links)})
        column = order[name]
        place = [360 * column, 260 * columns[column]]
        columns[column] += 1
        drawn.append({
            "id": int(name), "type": node["class_type"], "pos": place, "size": [310, 200],
            "flags": {}, "order": len(drawn), "mode": 0, "title": node["_meta"]["title"],
            "inputs": inputs, "outputs": [], "widgets_values": values,
            "properties": {"cnr_id": "comfy-core", "Node name for S&R": node["class_type"]},
        })  # fmt: skip
    for node in drawn:
        for slot, kind in enumerate(table[node["type"]]["outputs"]):
            link = {"name": kind, "type": kind, "slot_index": slot}
            node["outputs"].append({**link, "links": leaving[node["id"], slot]})
    note = _note(nodes, max(map(int, nodes)) + 1, len(drawn))
    return {
        "last_node_id": note["id"], "last_link_id": len(links), "nodes": [*drawn, note],
        "links": links, "groups": [], "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


def _order(nodes: dict[str, dict]) -> dict[str, int]:
    """节点号 -> 在第几列：输入都在它的左边。"""

    def column(name: str) -> int:
        sources = [v[0] for v in nodes[name]["inputs"].values() if isinstance(v, list)]
        return 1 + max(map(column, sources)) if sources else 0

    return dict(sorted(((name, column(name)) for name in nodes), key=lambda pair: pair[1]))


def _note(nodes: dict[str, dict], number: int, order: int) -> dict:
    text = "要用的文件（相对于 ComfyUI 的文件夹）：\n" + "\n".join(f"- {f}" for f in files(nodes))
    return {
        "id": number, "type": "MarkdownNote", "pos": [0, -300], "size": [520, 220], "flags": {},
        "order": order, "mode": 0, "inputs": [], "outputs": [], "properties": {},
        "widgets_values": [text],
    }  # fmt: skip


def write(nodes: dict[str, dict], path: Path) -> Path:
    """写工作流：名字以 .api.json 结尾就是 API 写法，其余 .json 是画布写法。"""
    whole = nodes if path.name.endswith(API) else graph(nodes)
    return write_text(path, json.dumps(whole, ensure_ascii=False, indent=1) + "\n")
