"""FLUX.1 Kontext：同一个 FLUX.1，外加一张控制图；它只进 VAE，词元接在带噪的图后面。"""

from typing import ClassVar

from lorakit.families.flux import Flux

BASE = "black-forest-labs/FLUX.1-Kontext-dev"


class FluxKontext(Flux):
    """black-forest-labs/FLUX.1-Kontext-dev（12 B）：照指令改一张图；引导一般 2.5。

    stock 管线把控制图缩放到十七种一百万像素的尺寸；我们照它自己的宽高比缩放，最多差 16 像素。
    """

    name = "flux-kontext"
    called: ClassVar = {"": ("Flux.1-dev", "flux_kontext")}  # musubi 这样叫它
    pipeline_class = "FluxKontextPipeline"
    licences: ClassVar = {"": "flux-1-dev-non-commercial-license"}
    workflows: ClassVar = {"": "flux-kontext"}
    editions = ""
    base_files: ClassVar = {}
    controls = (1, 1)
    read_by: ClassVar = {
        **Flux.read_by,
        "kohya": ("musubi", "sd-scripts", "ComfyUI", "diffusers", "DiffSynth"),
    }
    misses: ClassVar = {**Flux.misses, "musubi": "."}
    distilled: ClassVar = {"schnell": BASE, "turbo": BASE}
    training_adapters: ClassVar = {}
