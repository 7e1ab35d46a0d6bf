"""随机权重的微型 FLUX.1 Kontext：真正的类、diffusers 布局，只为对照，不会改图。"""

from pathlib import Path

import random_flux
from diffusers import FluxKontextPipeline, FluxPipeline

to_latents = random_flux.to_latents


def build(folder: Path) -> Path:
    """写一条随机权重的管线到 folder 并返回它；每次写出的权重都一样。"""
    pipe = FluxPipeline.from_pretrained(random_flux.build(folder))
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    FluxKontextPipeline(**parts).save_pretrained(folder)
    return folder
