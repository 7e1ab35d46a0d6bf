"""让读它的软件自己读：每个家族、每种写法，读进了几层，ΔW 差多少。不是测试，手工运行。

  python tests/measure_readers.py --comfyui 文件夹 --musubi 文件夹 --sd-scripts 文件夹 \
      --diffsynth 文件夹

文件夹是各家的源代码；没给的、那一版还没有这个家族的，就不量。
块数与宽都是真的，底模在 meta 设备上，LoRA 秩 2。
ΔW 用一个随机向量去量：y = ΔW x；ComfyUI 的先展开成整个权重，只量隔开的几层。
"""

import argparse
import importlib
import re
import sys
import tempfile
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

import diffusers
import torch
from safetensors.torch import load_file
from torch import nn

from lorakit.families.registry import get
from lorakit.lora import convert
from lorakit.lora.tensors import write_tensors

FAMILIES = ("qwen-image", "qwen-image-2.1", "flux", "flux-kontext", "z-image", "kandinsky5",
            "flux2-klein", "flux2-klein:9b", "flux2-dev")  # 冒号后面：是哪一种大小  # fmt: skip
SAMPLED = 12  # ComfyUI 展开几层
RANK = 2
KANDINSKY = {"time_dim": 512, "model_dim": 2560, "ff_dim": 10240, "num_visual_blocks": 50,
             "axes_dims": (32, 48, 48)}  # fmt: skip


def shell_of(family, size: str = ""):
    config = dict(family.size_of(size)["transformer"])
    with torch.device("meta"):
        return getattr(diffusers, config.pop("_class_name"))(**config)


def random_lora(family, shell):
    g = torch.Generator().manual_seed(0)
    return {
        path: (
            torch.randn(RANK, m.in_features, generator=g),
            torch.randn(m.out_features, RANK, generator=g),
        )
        for path, m in shell.named_modules()
        if isinstance(m, nn.Linear) and re.fullmatch(family.targets["all-linear"], path)
    }


class Truth:
    """一层（diffusers 的或原作者并起来的）的 ΔW x 应该是多少。"""

    def __init__(self, layers, places):
        self.layers = layers
        self.parts = {name: [path for path, _ in parts] for name, parts in places.items()}
        self.flat = {n.replace(".", "_"): n for n in (*layers, *self.parts)}

    def __call__(self, name: str, x: torch.Tensor) -> torch.Tensor:
        paths = [name] if name in self.layers else self.parts[name]
        return torch.cat([b @ (a @ x) for a, b in (self.layers[path] for path in paths)])

    def error(self, name: str, x: torch.Tensor, y: torch.Tensor) -> float:
        want = self(name, x)
        return float((y - want).norm() / want.norm())

    def count(self, names) -> int:
        """原作者的几层合起来是 diffusers 的几层。"""
        return sum(1 if name in self.layers else len(self.parts[name]) for name in names)


def by_diffusers(name: str, family, file: Path, truth: Truth):
    pipe = getattr(diffusers, family.pipeline_class)
    found, worst, count = pipe.lora_state_dict(load_file(file)), 0.0, 0
    for path, (a, _) in truth.layers.items():
        pair = [found.get(f"transformer.{path}.lora_{side}.weight") for side in "AB"]
        if None not in [None if one is None else 1 for one in pair]:
            x = torch.randn(a.shape[1])
            worst = max(worst, truth.error(path, x, pair[1] @ (pair[0] @ x)))
            count += 1
    return count, worst


def by_modules(network, model, truth: Truth, state):
    """sd-scripts 与 musubi 的网络：每个模块自己算，缩放也是它自己的。"""
    network.apply_to([], model, apply_text_encoder=False, apply_unet=True)
    network.load_state_dict(state, strict=False)
    loras, worst = network.unet_loras, 0.0
    names = [truth.flat[one.lora_name.removeprefix("lora_unet_")] for one in loras]
    for one, name in zip(loras, names, strict=True):
        x = torch.randn(one.lora_down.in_features)
        with torch.no_grad():
            worst = max(worst, truth.error(name, x, one.lora_up(one.lora_down(x)) * one.scale))
    return truth.count(names), worst


def musubi_model(name: str):
    load = lambda path: importlib.import_module(f"musubi_tuner.{path}")  # noqa: E731
    if name == "qwen-image-2.1":
        model = load("qwen_image_21.qwen_image_21_model")
        return model.QwenImage21Transformer2DModel(), "qwen_image_21"
    if name == "flux-kontext":
        flux = load("flux.flux_models")
        return flux.Flux(flux.configs_flux_dev_context.params), "flux"
    if name == "qwen-image":
        return load("qwen_image.qwen_image_model").QwenImageTransformer2DModel(), "qwen_image"
    if name == "z-image":
        return load("zimage.zimage_model").ZImageTransformer2DModel(), "zimage"
    if name == "kandinsky5":
        made = load("kandinsky5.models.dit").DiffusionTransformer3D(**KANDINSKY, in_visual_dim=16)
        return made, "kandinsky"
    if name.startswith("flux2"):
        flux = load("flux_2.flux2_models")
        kinds = {"flux2-klein": flux.Klein4BParams, "flux2-klein:9b": flux.Klein9BParams}
        return flux.Flux2(kinds.get(name, flux.Flux2Params)(), attn_mode="torch"), "flux_2"
    return None


def by_musubi(name: str, family, file: Path, truth: Truth):
    with torch.device("meta"):
        made = musubi_model(name)
    if made is None:
        return None
    network = importlib.import_module(f"musubi_tuner.networks.lora_{made[1]}")
    state = load_file(file)
    network = network.create_arch_network_from_weights(1.0, state, unet=made[0])
    try:
        return by_modules(network, made[0], truth, state)
    except RuntimeError as error:  # 一层也不认时它自己报错
        if "No LoRA modules found" not in str(error):
            raise
        return 0, 0.0


def by_sd_scripts(name: str, family, file: Path, truth: Truth):
    if family.name not in ("flux", "flux-kontext"):
        return None
    from library import flux_models
    from networks import lora_flux

    with torch.device("meta"):
        model = flux_models.Flux(flux_models.configs["dev"].params)
    state = load_file(file)
    made = lora_flux.create_network_from_weights(1.0, None, None, [], model, weights_sd=state)
    network = made[0] if isinstance(made, tuple) else made
    return by_modules(network, model, truth, state)


FLUX1 = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096,
         "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19,
         "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
         "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}  # fmt: skip
FLUX2 = FLUX1 | {"in_channels": 128, "out_channels": 128, "vec_in_dim": None, "mlp_ratio": 3.0,
                 "context_in_dim": 15360, "hidden_size": 6144, "num_heads": 48, "depth": 8,
                 "depth_single_blocks": 48, "axes_dim": [32] * 4, "theta": 2000, "patch_size": 1,
                 "qkv_bias": False, "global_modulation": True, "mlp_silu_act": True,
                 "ops_bias": False}  # fmt: skip
KLEIN = FLUX2 | {"context_in_dim": 7680, "hidden_size": 3072, "num_heads": 24, "depth": 5,
                 "depth_single_blocks": 20, "guidance_embed": False}  # fmt: skip
Z_IMAGE = {"in_channels": 16, "dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30,
           "n_kv_heads": 30, "ffn_dim_multiplier": 8 / 3, "qk_norm": True, "cap_feat_dim": 2560,
           "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
           "z_image_modulation": True}  # fmt: skip
KLEIN_9B = KLEIN | {"context_in_dim": 12288, "hidden_size": 4096, "num_heads": 32, "depth": 8,
                    "depth_single_blocks": 24}  # fmt: skip
COMFY = {  # 家族 -> (它的模型类、model_base 里的名字、设置)
    "qwen-image": ("qwen_image.model.QwenImageTransformer2DModel", "QwenImage", {}),
    "qwen-image-2.1": ("qwen_image21.model.QwenImage21Transformer2DModel", "QwenImage", {}),
    "flux": ("flux.model.Flux", "Flux", FLUX1), "flux-kontext": ("flux.model.Flux", "Flux", FLUX1),
    "flux2-klein": ("flux.model.Flux", "Flux2", KLEIN),
    "flux2-klein:9b": ("flux.model.Flux", "Flux2", KLEIN_9B),
    "flux2-dev": ("flux.model.Flux", "Flux2", FLUX2),
    "z-image": ("lumina.model.NextDiT", "Lumina2", Z_IMAGE),
    "kandinsky5": ("kandinsky5.model.Kandinsky5", "Kandinsky5", KANDINSKY),
}  # fmt: skip


def comfy_model(name: str):
    import comfy.model_base
    import comfy.ops

    where, kind, config = COMFY[name]
    module, _, cls = where.rpartition(".")
    cls = getattr(importlib.import_module(f"comfy.ldm.{module}"), cls)
    inside = cls(**config, device="meta", dtype=torch.float32, operations=comfy.ops.manual_cast)
    made = type(kind, (getattr(comfy.model_base, kind),), {"__init__": nn.Module.__init__})()
    made.diffusion_model, made.model_config = inside, types.SimpleNamespace(unet_config=config)
    return made


def by_comfyui(name: str, family, file: Path, truth: Truth):
    import comfy.lora

    model = comfy_model(name)
    keys = comfy.lora.model_lora_keys_unet(model, {})
    patches, shapes = {}, {key: value.shape for key, value in model.state_dict().items()}
    for target, adapter in comfy.lora.load_lora(load_file(file), keys, log_missing=False).items():
        key, offset = target if isinstance(target, tuple) else (target, None)
        patches.setdefault(key, []).append((1.0, adapter, 1.0, offset, None))
    names = {key: key.removeprefix("diffusion_model.").removesuffix(".weight") for key in patches}
    worst = 0.0
    for key in [*patches][:: max(1, len(patches) // SAMPLED)]:
        whole = comfy.lora.calculate_weight(patches[key], torch.zeros(shapes[key]), key)
        x = torch.randn(shapes[key][1])
        worst = max(worst, truth.error(names[key], x, whole @ x))
    return truth.count(names.values()), worst


DIFFSYNTH = {  # 家族 -> (它的模型类、读 LoRA 的类)；这几个的层名就是 diffusers 的
    "qwen-image": ("qwen_image_dit.QwenImageDiT", "general.GeneralLoRALoader"),
    "qwen-image-2.1": ("qwen_image_21_dit.QwenImage21DiT", "general.GeneralLoRALoader"),
    "z-image": ("z_image_dit.ZImageDiT", "general.GeneralLoRALoader"),
    "flux2-klein": ("flux2_dit.Flux2DiT", "general.GeneralLoRALoader"),
    "flux2-klein:9b": ("flux2_dit.Flux2DiT", "general.GeneralLoRALoader"),
    "flux2-dev": ("flux2_dit.Flux2DiT", "general.GeneralLoRALoader"),
}


def by_diffsynth(name: str, family, file: Path, truth: Truth):
    """读成它自己的名字，再看它的模型里有没有这一层。"""
    if name not in DIFFSYNTH:
        return None
    places = [f"models.{DIFFSYNTH[name][0]}", f"utils.lora.{DIFFSYNTH[name][1]}"]
    made, loader = (
        getattr(importlib.import_module(f"diffsynth.{home}"), cls)
        for home, _, cls in (place.rpartition(".") for place in places)
    )
    sizes = family.size_of(name.partition(":")[2])["transformer"]
    given = {key: value for key, value in sizes.items() if key[0] != "_"}
    with torch.device("meta"):
        model = made(**given if name.startswith("flux2") else {})
    found, worst, count = loader().convert_state_dict(load_file(file)), 0.0, 0
    for path, _ in model.named_modules():
        pair = [found.get(f"{path}.lora_{side}.weight") for side in "AB"]
        if pair[0] is not None:
            x = torch.randn(pair[0].shape[1])
            worst = max(worst, truth.error(path, x, pair[1] @ (pair[0] @ x)))
            count += 1
    return count, worst


def prepared(args) -> dict:
    """给了哪几家的源代码，就用哪几家；它们导入的 torchvision 读 LoRA 用不上，用空的代替。"""
    readers = {"diffusers": by_diffusers}
    for name in ("", ".ops", ".transforms", ".transforms.functional"):
        name = f"torchvision{name}"
        made = sys.modules[name] = MagicMock(name=name)
        made.__spec__, made.__path__ = ModuleSpec(name, None), []
    if args.comfyui:
        sys.path.insert(0, str(args.comfyui))
        import comfy.options

        comfy.options.enable_args_parsing(False)
        from comfy.cli_args import args as theirs

        theirs.cpu = True
        readers["ComfyUI"] = by_comfyui
    if args.musubi:
        sys.path.insert(0, str(args.musubi / "src"))
        readers["musubi"] = by_musubi
    if args.sd_scripts:
        sys.path.insert(0, str(args.sd_scripts))
        readers["sd-scripts"] = by_sd_scripts
    if args.diffsynth:  # 只要模型与读 LoRA 的那几个文件，不经它的 __init__（要装的太多）
        sys.modules["diffsynth"] = types.ModuleType("diffsynth")
        for inside in ("", ".models", ".utils", ".utils.lora"):
            made = sys.modules.setdefault(f"diffsynth{inside}", types.ModuleType(inside))
            made.__path__ = [str(args.diffsynth / f"diffsynth{inside}".replace(".", "/"))]
        readers["DiffSynth"] = by_diffsynth
    return readers


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("comfyui", "sd-scripts", "musubi", "diffsynth"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--families", nargs="*", default=FAMILIES)
    args = parser.parse_args()
    sys.argv = sys.argv[:1]
    readers = prepared(args)
    columns = ("家族", "写法", "软件", "读进的层", "ΔW 的最大相对误差", "read_by 说")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in args.families:
        kind, _, size = name.partition(":")
        family = get(kind)
        shell = shell_of(family, size)
        names, layers = convert.Names.of(family, shell), random_lora(family, shell)
        truth = Truth(layers, names.places)
        for form in convert.FORMATS:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "x.safetensors")
                write_tensors(file, convert.spell(layers, form, names), {"format": "pt"})
                for reader, read in readers.items():
                    try:
                        found = read(name, family, file, truth)
                    except ModuleNotFoundError as error:
                        if not re.match(r"(comfy|musubi_tuner|diffsynth)\.", error.name):
                            raise  # 要另外装的包
                        print(f"（{reader} 的这一版没有 {error.name}）", file=sys.stderr)
                        continue
                    if found:
                        said = "能" if reader in family.read_by[form] else "不能"
                        row = (name, form, reader, f"{found[0]}/{len(layers)}", f"{found[1]:.1e}")
                        print(f"| {' | '.join(row)} | {said} |", flush=True)


if __name__ == "__main__":
    main()
